"""Samplers must fit what they are given, repeat with their seed, and beat the prior."""

from types import SimpleNamespace

import pytest
import torch
from conftest import need_weights
from test_metrics import CFG, films

import vaekit
from vaekit import sample
from vaekit.metrics import gaussian_frechet
from vaekit.model import VAE


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VAE(vaekit.preset(**CFG)).eval()


def two_clusters(n: int, shape=(2, 2, 2), seed: int = 0):
    """Codes around +-3 along the first element, correlated ones elsewhere, and their noise."""
    g = torch.Generator().manual_seed(seed)
    flat = torch.randn(n, 8, generator=g) * 0.3 + 1
    flat[:, 1] = flat[:, 2] + 0.05 * torch.randn(n, generator=g)
    flat[:, 0] += 3 * torch.randint(0, 2, (n,), generator=g).mul(2).sub(1)
    return flat.view(n, *shape), torch.full((n, *shape), -4.0)


def aggregate(n: int, **kwargs):
    mu, logvar = two_clusters(n, **kwargs)
    return (mu + (0.5 * logvar).exp() * torch.randn(mu.shape)).flatten(1).double().numpy()


def test_encode_and_decode(model):
    split = SimpleNamespace(images=films(7))
    mu, logvar = sample.encode_all(model, split, batch_size=3)
    expected = model.encode(split.images.float() / 255)
    torch.testing.assert_close((mu, logvar), expected, atol=1e-5, rtol=1e-4)
    images = sample.decode_batched(model, mu, batch_size=3)
    torch.testing.assert_close(images, model.decode(mu).detach(), atol=1e-5, rtol=1e-4)
    assert not images.requires_grad


def test_fitted_samplers_beat_the_prior_and_the_mixture_the_gaussian():
    mu, logvar = two_clusters(400)
    truth, distance, between = aggregate(2000, seed=1), {}, {}
    for kind in sample.SAMPLERS:
        z = sample.fit_sampler(mu, logvar, kind).sample(2000).flatten(1).double().numpy()
        distance[kind] = gaussian_frechet(truth, z)
        between[kind] = (abs(z[:, 0] - 1) < 1.5).mean()  # the hole between the clusters
    assert distance["gaussian"] < distance["prior"] / 20
    assert distance["gmm"] < distance["prior"] / 20
    assert between["gmm"] < 0.02 < 0.2 < between["gaussian"]


def test_mixture_recovers_two_clusters():
    mu, logvar = two_clusters(400)
    fitted = sample.fit_sampler(mu, logvar, "gmm")
    assert fitted.mixture.n_components >= 2 and "gmm: " in str(fitted)
    z = fitted.sample(4000).flatten(1)
    assert (z[:, 0] > 1).float().mean().item() == pytest.approx(
        (mu.flatten(1)[:, 0] > 1).float().mean().item(), abs=0.03)  # fmt: skip
    assert (z[:, 1] - z[:, 2]).std() < 0.3 < z[:, 1].std() + 0.1  # the correlation is kept
    codes = fitted.sample(500, temperature=0.0).flatten(1)
    assert len(torch.unique(codes.round(decimals=3), dim=0)) <= fitted.mixture.n_components


@pytest.mark.parametrize("kind", ["gaussian", "gmm"])
def test_moments_are_those_of_the_aggregated_posterior(kind):
    g = torch.Generator().manual_seed(0)
    mu = torch.randn(600, 3, 2, 2, generator=g) * torch.tensor([3.0, 1.0, 0.01]).view(3, 1, 1) + 2
    logvar = torch.zeros_like(mu)
    logvar[:, 0] = -3
    z = sample.fit_sampler(mu, logvar, kind).sample(20000)
    expected = mu.var(0) + logvar.exp().mean(0)
    torch.testing.assert_close(z.mean(0), mu.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(z.var(0), expected, atol=0, rtol=0.12)


@pytest.mark.parametrize("kind", ["gaussian", "gmm"])
def test_more_dimensions_than_films(kind):
    mu = torch.randn(24, 16, 4, 4)
    z = sample.fit_sampler(mu, torch.zeros_like(mu), kind).sample(50)
    assert z.shape == (50, 16, 4, 4) and z.isfinite().all()
    assert z.var().item() == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_films_and_vector_latents(n):
    for kind in ("gaussian", "gmm"):
        z = sample.fit_sampler(torch.randn(n, 6), torch.zeros(n, 6), kind).sample(3)
        assert z.shape == (3, 6) and z.isfinite().all()


def test_collapsed_latents_are_the_prior():
    mu = 1e-5 * torch.randn(50, 4, 2, 2)
    for kind in ("gaussian", "gmm"):
        z = sample.fit_sampler(mu, torch.zeros_like(mu), kind).sample(5000)
        assert z.std().item() == pytest.approx(1, abs=0.02)


def test_sampling_repeats_and_does_not_touch_the_global_seed(model):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    for kind in sample.SAMPLERS:
        draws = [sample.sample_latents(model, 5, kind, films(12), seed=s) for s in (3, 3, 4)]
        assert draws[0].shape == (5, *model.latent_shape)
        assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_temperature_scales_the_prior(model):
    hot, cold = (sample.sample_latents(model, 9, temperature=t) for t in (1.0, 0.5))
    torch.testing.assert_close(cold, 0.5 * hot)


def test_errors_say_what_to_do(model):
    with pytest.raises(ValueError, match="prior, gaussian, gmm"):
        sample.sample_latents(model, 3, "flow")
    with pytest.raises(ValueError, match="fit_on=data.train"):
        sample.sample_latents(model, 3, "gmm")
    with pytest.raises(ValueError, match="1 film"):
        sample.fit_sampler(torch.zeros(1, 4), torch.zeros(1, 4), "gaussian")


def test_interpolation():
    a, b = torch.randn(2, 3, 4, 4)
    b = b * a.norm() / b.norm()
    for how in ("linear", "spherical"):
        path = sample.interpolate(a, b, 7, how)
        assert path.shape == (7, 3, 4, 4)
        assert torch.equal(path[0], a)
        torch.testing.assert_close(path[-1], b)
    norms = path.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, a.norm().expand(7))
    assert sample.interpolate(a, b, 3)[1].norm() < 0.9 * a.norm()
    torch.testing.assert_close(sample.interpolate(a, a, 3, "spherical")[1], a)
    with pytest.raises(ValueError, match="linear, spherical"):
        sample.interpolate(a, b, 3, "cubic")


def test_principal_directions():
    axis = torch.zeros(4, 2, 2)
    axis[1, 0, 1] = 1
    mu = 5 * torch.randn(200, 1, 1, 1) * axis + 0.1 * torch.randn(200, 4, 2, 2) + 1
    mean, directions, std = sample.principal_directions(mu, 3)
    torch.testing.assert_close(mean, mu.mean(0))
    torch.testing.assert_close(directions.flatten(1).norm(dim=1), torch.ones(3))
    assert (directions[0] * axis).sum().abs() > 0.99
    assert std[0].item() == pytest.approx(mu[:, 1, 0, 1].std().item(), rel=0.01)
    with pytest.raises(ValueError, match="between 1 and 16"):
        sample.principal_directions(mu, 17)


def test_traverse(model):
    mean, direction = torch.zeros(model.latent_shape), torch.ones(model.latent_shape)
    images = sample.traverse(model, mean, direction, 0.5, [-2, 0, 2])
    z = torch.stack([-direction, mean, direction])
    torch.testing.assert_close(images, model.decode(z).detach(), atol=1e-5, rtol=1e-4)


def test_nearest_neighbours_find_the_copy():
    split = SimpleNamespace(images=films(12))
    order = [7, 2, 11]
    found = sample.nearest_neighbours(split.images[order].float() / 255, split, k=2, trunk=None)
    assert found.indices[:, 0].tolist() == order and found.network == "pixels 32x32"
    assert found.distances.shape == (3, 2) and (found.distances[:, 0] < 1e-4).all()
    need_weights("squeezenet")
    found = sample.nearest_neighbours(split.images[order], split)
    assert found.indices[:, 0].tolist() == order and "squeezenet" in found.network
