"""The linear VAE against scikit-learn, torch.distributions and a trained linear VAE."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from tiny import shapes, small
from torch.distributions import MultivariateNormal, kl_divergence

import vaekit
from vaekit import fast, linear, losses, metrics
from vaekit.data import SPLITS, Data
from vaekit.train import Trainer


def images(n: int, side: int = 8, channels: int = 1, seed: int = 0) -> torch.Tensor:
    """Float images (n, C, side, side): a few smooth patterns, and noise."""
    g = torch.Generator().manual_seed(seed)
    patterns = torch.randn(5, channels * side**2, generator=torch.Generator().manual_seed(9))
    strengths = torch.randn(n, 5, generator=g) * torch.tensor([0.08, 0.06, 0.04, 0.02, 0.01])
    noise = 0.01 * torch.randn(n, channels * side**2, generator=g)
    x = 0.5 + strengths @ patterns + noise
    return x.view(n, channels, side, side).clamp(0, 1)


def fit(x, k=3, **more):
    return linear.linear_vae(x, k, mirror=False, **more)


@pytest.mark.parametrize(
    "side, enabled", [(6, True), (12, True), (6, False)], ids=["covariance", "Gram", "plain"]
)
def test_against_scikit_learn(side, enabled, monkeypatch):
    monkeypatch.setattr(fast, "ENABLED", enabled)
    x, new = images(100, side), images(40, side, seed=1)
    flat, new_flat = (t.flatten(1).double().numpy() for t in (x, new))
    pca = PCA(3, svd_solver="full").fit(flat)
    model = fit(x)
    np.testing.assert_allclose(model.variances, pca.explained_variance_, rtol=1e-4)
    dots = (model.basis.double().numpy() * pca.components_).sum(1)
    np.testing.assert_allclose(np.abs(dots), 1, atol=1e-5)
    if side == 6:  # below as many images as pixels it averages over other directions
        assert model.sigma2 == pytest.approx(pca.noise_variance_, rel=1e-4)
        score = model.log_likelihood(new).mean().item()
        assert score == pytest.approx(pca.score(new_flat), rel=1e-4)
    plain = fit(x, sigma2=linear.LEAST_SIGMA2)
    expected = pca.inverse_transform(pca.transform(new_flat)).clip(0, 1)
    found = plain.reconstruct(new).flatten(1)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_posterior_and_its_kl_are_those_of_the_joint_gaussian():
    x = images(200, 4)
    model = fit(x, sigma2=2e-3)
    w = (model.basis * (model.variances - model.sigma2).clamp(min=0).sqrt()[:, None]).double()
    noise = model.sigma2 * torch.eye(16).double()
    cov = w.T @ w + noise
    centred = (x[:5] - model.mean).flatten(1).double()
    expected = centred @ torch.linalg.solve(cov, w.T)
    spread = torch.eye(3).double() - w @ torch.linalg.solve(cov, w.T)
    mu, logvar = model.encode(x[:5])
    torch.testing.assert_close(mu.double(), expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(logvar[0].exp().diag().double(), spread, atol=1e-5, rtol=1e-3)
    marginal = MultivariateNormal(model.mean.flatten().double(), cov)
    found = model.log_likelihood(x[:5]).double()
    torch.testing.assert_close(
        found, marginal.log_prob(x[:5].flatten(1).double()), rtol=1e-4, atol=0.01
    )
    posterior = MultivariateNormal(expected[0], spread)
    prior = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    kl = losses.kl_per_image(mu, logvar)[0].item()
    assert kl == pytest.approx(kl_divergence(posterior, prior).item(), rel=1e-3)


def test_what_holds_no_more_than_the_noise_is_idle():
    model = fit(images(200, 6), k=8, sigma2=1e-3)
    assert model.idle.tolist() == (model.variances <= 1e-3).tolist() and 0 < model.idle.sum() < 8
    mu, logvar = model.encode(images(4, 6, seed=2))
    assert (mu[:, model.idle] == 0).all() and (logvar[:, model.idle] == 0).all()
    z = torch.zeros(1, 8)
    z[0, model.idle] = 3.0
    torch.testing.assert_close(model.decode(z), model.decode(torch.zeros(1, 8)))


def test_few_images_are_said_to_be_held_themselves_and_leave_directions_idle():
    x = images(6, 8)
    with pytest.warns(UserWarning, match="6 images, 10 directions: the basis holds the images"):
        model = linear.linear_vae(x, 10, mirror=False)
    assert model.latent_shape == (10,) and model.idle.sum() >= 5
    torch.testing.assert_close(model.reconstruct(x), x.clamp(0, 1), atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match="1 image"):
        linear.linear_vae(x[:1], 2, mirror=False)


def test_mirrored_copies_count():
    x = images(50, 6)
    both = linear.linear_vae(torch.cat([x, x.flip(-1)]), 4, mirror=False)
    model = linear.linear_vae(x, 4)
    torch.testing.assert_close(model.variances, both.variances)
    torch.testing.assert_close(model.mean, model.mean.flip(-1))


def test_a_large_set_is_fitted_by_iteration(monkeypatch):
    x = images(300, 10, channels=3)
    exact = fit(x, 4)
    monkeypatch.setattr(fast, "EXACT", 100)
    monkeypatch.setattr(fast, "leading", None)
    nearly = fit(x, 4)
    torch.testing.assert_close(nearly.variances, exact.variances, rtol=1e-3, atol=0)
    torch.testing.assert_close(nearly.reconstruct(x), exact.reconstruct(x), atol=1e-3, rtol=0)


def test_large_images_are_fitted_small_and_enlarged(monkeypatch):
    monkeypatch.setattr(linear, "LARGEST_BASIS", 1000)
    monkeypatch.setattr(linear, "SMALL", 8)
    x = torch.nn.functional.interpolate(images(80, 8), scale_factor=4, mode="bilinear")
    model = linear.linear_vae(x, 5)
    assert model.mean.shape == (1, 8, 8) and model.reconstruct(x).shape == x.shape
    assert metrics.psnr(model.reconstruct(x), x.clamp(0, 1)).mean() > 25


# ---- start="linear" --------------------------------------------------------------------------


def starting(**changes):
    cfg = small(start="linear", latent="vector", latent_channels=6, epochs_phase1=0)
    return cfg.replace(rescale_latents=False, **changes)


def in_colour(data: Data) -> Data:
    splits = [getattr(data, name).images for name in SPLITS]
    shaded = [torch.cat([x, x.flip(-1), x // 2], 1) for x in splits]
    return Data.from_tensors(*shaded)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["grey", "colour", "odd"])
def test_before_training_it_is_the_linear_vae(kind, precision):
    data = shapes()
    cfg = starting(precision=precision)
    if kind == "colour":
        data, cfg = in_colour(data), cfg.replace(in_channels=3)
    if kind == "odd":
        data = Data.from_tensors(*(getattr(data, name).images[..., :15, :15] for name in SPLITS))
        cfg = cfg.replace(image_size=15, widths=(8, 16, 32))
    trainer = Trainer(cfg, data)
    alone = linear.linear_vae(data.train, 6)
    x = data.test.images / 255
    with trainer.autocast():
        mu, logvar = trainer.raw.encode(x)
        same = trainer.raw.reconstruct(x)
    torch.testing.assert_close(same, alone.reconstruct(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(mu, alone.encode(x)[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(logvar, alone.encode(x)[1], atol=1e-4, rtol=0)


def discs(n: int, seed: int) -> torch.Tensor:
    """uint8 (n, 1, 16, 16): a disc somewhere, which a few linear components only smear."""
    centre = 4 + 8 * torch.rand(n, 2, 1, 1, generator=torch.Generator().manual_seed(seed))
    at = torch.arange(16.0)
    inside = (at[:, None] - centre[:, 0]) ** 2 + (at - centre[:, 1]) ** 2 < 16
    return (255 * inside).byte()[:, None]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_learns_what_the_linear_picture_lacks(precision):
    data = Data.from_tensors(discs(160, 1), discs(40, 2), discs(40, 3))
    cfg = starting(epochs_phase2=10, lr_phase2=5e-3, batch_size=16, precision=precision)
    run = vaekit.fit(cfg, data, resume="never")
    x = data.test.images / 255
    alone = linear.linear_vae(data.train, 6)
    before, after = (losses.l1_per_image(m.reconstruct(x), x).mean() for m in (alone, run.model))
    assert after < 0.4 * before


def test_directions_without_data_are_idle():
    data = shapes()
    few = Data.from_tensors(data.train.images[:2], data.val.images, data.test.images)
    with pytest.warns(UserWarning, match="hold"):
        model = Trainer(starting(), few).raw
    mu, logvar = model.encode(data.test.images / 255)
    assert model.linear.idle.sum() == 3  # 2 films and their mirror images span 3 directions
    assert not mu[:, 3:].any() and not logvar[:, 3:].any()
