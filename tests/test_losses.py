"""Loss terms: values by hand and from libraries, ranges, gradients, reductions."""

import hashlib
import math

import numpy as np
import pytest
import torch
from conftest import need_weights
from skimage.metrics import structural_similarity

import vaekit
from vaekit import features, losses
from vaekit.files import weights

# distances: 0 for equal images. A term that does not compare gets tests of its own.
TERMS = {
    "l1": losses.l1_per_image,
    "mse": losses.mse_per_image,
    "ssim": lambda a, b: 1 - losses.ssim_per_image(a, b),
    "spectral": losses.spectral_per_image,
    "bands": losses.band_energy_per_image,
}
CFG = vaekit.preset("chest_xray", perceptual_weight=0.0)
# the weights of all terms that need no network; recon_weight is of their sum
WEIGHTS = {name for name in CFG.to_dict() if name.endswith("_weight")}
WEIGHTS -= {"recon_weight", "perceptual_weight", "lpips_weight"}


def pair(size=32, channels=1, n=3):
    x = torch.rand(n, channels, size, size)
    return x, (x + 0.1 * torch.randn_like(x)).clamp(0, 1)


def test_pixel_terms_of_flat_images():
    x, x_hat = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.5)
    assert losses.l1_per_image(x_hat, x).item() == 0.5
    assert losses.mse_per_image(x_hat, x).item() == 0.25
    # SSIM is its luminance part, C1 / (0.25 + C1)
    assert losses.ssim_per_image(x_hat, x).item() == pytest.approx(1e-4 / (0.25 + 1e-4), rel=1e-3)


def test_kl_against_torch_distributions():
    mu, logvar = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    q = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(losses.kl_elements(mu, logvar), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("field", sorted(WEIGHTS))
def test_every_weight_moves_the_total_by_its_term(field):
    x, x_hat = pair()
    cfg = CFG.replace(**dict.fromkeys(WEIGHTS, 0.0) | {"l1_weight": 1.0, field: 1.0})
    logged = losses.vae_loss(x_hat, x, *torch.zeros(2, 3, 4), cfg, 0.0)
    more = losses.vae_loss(x_hat, x, *torch.zeros(2, 3, 4), cfg.replace(**{field: 3.0}), 0.0)
    name = {"band_weight": "bands"}.get(field, field.removesuffix("_weight"))
    torch.testing.assert_close(more.total - logged.total, 2 * logged.terms[name])


@pytest.mark.parametrize(("size", "channels"), [(64, 1), (33, 3), (11, 1)])
def test_ssim_against_skimage(size, channels):
    x, x_hat = pair(size, channels)
    how = dict(channel_axis=0, data_range=1.0, gaussian_weights=True, use_sample_covariance=False)
    pairs = zip(x.numpy(), x_hat.numpy(), strict=True)
    expected = [structural_similarity(a, b, sigma=1.5, **how) for a, b in pairs]
    np.testing.assert_allclose(losses.ssim_per_image(x_hat, x).numpy(), expected, atol=1e-4)


def test_spectral_term_against_numpy():
    x, x_hat = pair(24)
    gap = np.fft.rfft2(x_hat.numpy(), norm="ortho") - np.fft.rfft2(x.numpy(), norm="ortho")
    found = losses.spectral_per_image(x_hat, x).numpy()
    np.testing.assert_allclose(found, np.abs(gap).mean((1, 2, 3)), rtol=1e-4)


def test_band_energy_is_how_much_detail_and_not_where():
    at = torch.arange(32)
    board = ((at[:, None] + at) % 2).float().expand(1, 1, 32, 32)  # detail of the first band alone
    grey = torch.full((1, 1, 32, 32), 0.5)
    energy = losses.band_energy_per_image(grey, board).item()
    assert energy == pytest.approx(0.5, abs=1e-3)  # an rms of 1/2, and nothing in two bands
    assert losses.band_energy_per_image(1 - board, board).item() < 1e-6  # moved by a pixel
    assert losses.rms_in_windows(board).shape[2:] == (7, 7)  # of 8 pixels, 4 apart
    weaker = 0.5 + 0.6 * (board - 0.5)
    assert losses.band_energy_per_image(weaker, board).item() == pytest.approx(0.2, abs=1e-3)


def test_ssim_window_shrinks_below_eleven_pixels():
    x, x_hat = pair(8)
    at = np.arange(7) - 3
    w = np.exp(-(at**2) / (2 * 1.5**2))
    w = np.outer(w, w) / w.sum() ** 2
    a, b = x[0, 0, :7, :7].numpy(), x_hat[0, 0, :7, :7].numpy()
    (ma, mb), c1, c2 = ((w * a).sum(), (w * b).sum()), 1e-4, 9e-4
    va, vb, cov = (w * a * a).sum() - ma**2, (w * b * b).sum() - mb**2, (w * a * b).sum() - ma * mb
    by_hand = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    ours = losses.ssim_per_image(x_hat[:1, :, :7, :7], x[:1, :, :7, :7])
    assert ours.item() == pytest.approx(by_hand, abs=1e-4)
    assert losses.ssim_per_image(x, x).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("case", ["black", "white", "same", "bf16", "fp16"])
def test_safe_on_extreme_images(name, case):
    x = {"black": torch.zeros, "white": torch.ones}.get(case, torch.rand)(2, 1, 32, 32)
    x_hat = x.clone()
    if case in ("bf16", "fp16"):
        x_hat = x_hat.to(torch.bfloat16 if case == "bf16" else torch.float16)
    x_hat.requires_grad_(True)
    value = TERMS[name](x_hat, x)
    value.sum().backward()
    assert value.dtype == torch.float32 and value.abs().max() < 0.02
    assert x_hat.grad.isfinite().all() and (x_hat.grad.any() or "16" not in case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("logvar", [-15.0, 0.0, 15.0])
def test_kl_is_safe_at_the_clamp_and_in_half_precision(logvar, dtype):
    mu = torch.full((2, 4, 2, 2), 3.0, dtype=dtype, requires_grad=True)
    lv = torch.full((2, 4, 2, 2), logvar, dtype=dtype, requires_grad=True)
    kl = losses.kl_per_image(mu, lv)
    kl.sum().backward()
    by_hand = 16 * 0.5 * (9 + math.exp(logvar) - 1 - logvar)
    assert kl.dtype == torch.float32 and kl[0].item() == pytest.approx(by_hand, rel=1e-4)
    assert mu.grad.isfinite().all() and lv.grad.isfinite().all()
    assert losses.kl_per_image(torch.zeros(2, 8), torch.zeros(2, 8)).tolist() == [0, 0]


def test_free_bits_of_both_kinds():
    mu = torch.tensor([[0.0, 2.0], [0.4, 2.0]], requires_grad=True)
    logvar = torch.zeros(2, 2)
    element = losses.kl_with_free_bits(mu, logvar, 0.25, "element")
    torch.testing.assert_close(element, torch.tensor([2.25, 2.25]))
    element.sum().backward()
    assert mu.grad[:, 0].abs().max() == 0  # below the floor: no gradient
    mu2 = torch.tensor([[0.0, 2.0, 0.0], [1.0, 2.0, 0.0]], requires_grad=True)
    batch = losses.kl_with_free_bits(mu2, torch.zeros(2, 3), 0.2, "batch")  # means: 0.25, 2 and 0
    torch.testing.assert_close(batch, torch.tensor([2.45, 2.45]))
    batch.sum().backward()
    assert mu2.grad[1, 0] > 0  # the batch average is above the floor
    none = losses.kl_with_free_bits(mu, logvar, 0.0, "element")
    assert torch.equal(none, losses.kl_per_image(mu, logvar))


@pytest.mark.parametrize("recon", ["mean", "sum"])
@pytest.mark.parametrize("kl", ["mean", "sum"])
def test_total_is_what_the_config_says(recon, kl):
    cfg = CFG.replace(ssim_weight=0.0, recon_reduction=recon, kl_reduction=kl, recon_weight=3.0)
    x, x_hat = pair(16)
    mu, logvar = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    loss = losses.vae_loss(x_hat, x, mu, logvar, cfg, beta=0.5)
    rec = losses.l1_per_image(x_hat, x).mean() * (256 if recon == "sum" else 1)
    div = losses.kl_per_image(mu, logvar).mean() / (1 if kl == "sum" else 16)
    torch.testing.assert_close(loss.total, 3 * rec + 0.5 * div)
    assert loss.terms["kl"].item() == pytest.approx(losses.kl_per_image(mu, logvar).mean().item())
    share = losses.kl_share(cfg, 0.5, loss.terms["recon"].item(), loss.terms["kl"].item(), 256, 16)
    assert share == pytest.approx((0.5 * div / loss.total).item(), rel=1e-5)


def test_calibrated_decoder_has_the_gradient_of_the_elbo():
    x, x_hat = pair()
    x_hat.requires_grad_(True)
    cfg = CFG.replace(calibrated=True, ssim_weight=0.0)
    nll = losses.calibrated_nll(x_hat, x, cfg)
    b = losses.l1_per_image(x_hat, x).mean()
    torch.testing.assert_close(nll.mean(), 1 + (2 * b).log())
    nll.sum().backward()
    torch.testing.assert_close(x_hat.grad, (x_hat - x).sign() / (b.detach() * 32 * 32))
    summed = cfg.replace(recon_reduction="sum", kl_reduction="sum")
    assert losses.beta_elbo(summed, 1.0, 0.03, 0.1, 1024, 64) == pytest.approx(1)


def test_calibrated_gaussian_against_torch_distributions():
    x, x_hat = pair()
    cfg = CFG.replace(calibrated=True, l1_weight=0.0, mse_weight=1.0)
    sigma = losses.mse_per_image(x_hat, x).mean().sqrt()
    expected = -torch.distributions.Normal(x_hat, sigma).log_prob(x).mean((1, 2, 3))
    torch.testing.assert_close(losses.calibrated_nll(x_hat, x, cfg), expected)
    worse = -torch.distributions.Normal(x_hat, 1.1 * sigma).log_prob(x).mean()
    assert worse > expected.mean()  # the scale is at its optimum


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)], ids=["l1", "mse"])
def test_calibrated_scale_is_floored_where_images_are_identical(weights):
    cfg = CFG.replace(calibrated=True, l1_weight=weights[0], mse_weight=weights[1])
    x = torch.rand(2, 1, 16, 16)
    x_hat = x.clone().requires_grad_(True)
    nll = losses.calibrated_nll(x_hat, x, cfg)
    nll.sum().backward()
    assert nll.isfinite().all() and x_hat.grad.isfinite().all()


def test_scales_average_and_shrink():
    x, x_hat = pair(32)
    terms = losses.pixel_terms(x_hat, x, CFG.replace(num_scales=3))
    half = torch.nn.functional.avg_pool2d
    by_hand = [losses.l1_per_image(half(x_hat, k), half(x, k)) for k in (1, 2, 4)]
    torch.testing.assert_close(terms["l1"], torch.stack(by_hand).mean(0))
    assert terms["ssim"].isfinite().all()  # the third scale is 8 px, below the window
    once = losses.pixel_terms(x_hat, x, CFG.replace(num_scales=3, spectral_weight=1.0))["spectral"]
    assert torch.equal(once, losses.spectral_per_image(x_hat, x))


def test_oxfords_weights_get_bytes_and_answer_at_torchvisions_size():
    layers = fixed_trunk((1,)).layers
    x = torch.rand(1, 3, 64, 64)
    mean = torch.tensor(features.IMAGENET_MEAN).view(1, 3, 1, 1)
    expected = layers(255 * (x - mean)) / (255 * sum(features.IMAGENET_STD) / 3)
    layers.load_state_dict(weights.as_torchvisions(layers.state_dict()))
    oxford = features.Trunk("vgg19", layers, (1,))
    torch.testing.assert_close(oxford(x)[1], expected, atol=1e-5, rtol=1e-4)


def test_the_feature_loss_listens_with_the_trunk_that_it_is_given():
    x, _ = pair(64)
    trunk = features.Trunk("squeezenet", fixed_trunk().layers, (1, 4, 7))
    found = features.FeatureLoss(trunk).trunk(x)
    assert all(torch.equal(found[tap], trunk(x)[tap]) for tap in (1, 4, 7))


def test_lpips_reproduces_the_documented_value():
    need_weights("squeezenet")
    torch.manual_seed(123)  # torchmetrics' own example: 0.1008
    a, b = (torch.rand(10, 3, 100, 100) for _ in range(2))
    loss = features.FeatureLoss(weights.load_trunk("squeezenet"), perceptual=False, lpips=True)
    assert loss(a, b)["lpips"].mean().item() == pytest.approx(0.1008, abs=5e-5)


@pytest.mark.parametrize("name", ["squeezenet", "vgg19"])
def test_feature_terms_have_gradients_and_are_zero_for_equal_images(name):
    need_weights(name)
    lpips = name == "squeezenet"
    loss = features.FeatureLoss(weights.load_trunk(name), perceptual=True, lpips=lpips)
    x, x_hat = pair(64)
    x_hat.requires_grad_(True)
    terms = loss(x_hat, x)
    assert set(terms) == ({"perceptual", "lpips"} if lpips else {"perceptual"})
    for value in terms.values():
        (grad,) = torch.autograd.grad(value.sum(), x_hat, retain_graph=True)
        assert grad.isfinite().all() and grad.abs().max() > 0 and value.shape == (3,)
    assert max(v.abs().max() for v in loss(x, x).values()) < 1e-6


def fixed_trunk(taps=(1, 4, 7)) -> features.Trunk:
    """SqueezeNet's layers with weights drawn from a seed: what needs no file can be tested."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    return features.Trunk("squeezenet", squeezenet1_1(weights=None).features, taps)


@pytest.mark.parametrize(("distance", "power"), [("l1", 1), ("squared", 2)])
def test_perceptual_by_hand(distance, power):
    trunk = fixed_trunk()
    loss = features.FeatureLoss(trunk, distance=distance)
    x, x_hat = pair(64)
    mean = torch.tensor(features.IMAGENET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(features.IMAGENET_STD).view(1, 3, 1, 1)
    gaps = []
    for last in (1, 4, 7):  # layer by layer, from the first, as torchvision counts
        a, b = (trunk.layers[: last + 1]((image - mean) / std) for image in (x_hat, x))
        gaps.append((a - b).abs().pow(power).mean((1, 2, 3)))
    torch.testing.assert_close(loss(x_hat, x)["perceptual"], sum(gaps) / 3)


def test_one_trunk_pass_serves_both_terms_and_the_target_has_no_graph():
    trunk, calls = fixed_trunk((1, 4, 7, 9, 10, 11, 12)), []
    loss = features.FeatureLoss(trunk, perceptual=True, lpips=True)
    loss.trunk.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    x, x_hat = pair(64)
    both = loss(x_hat.requires_grad_(True), x)
    assert calls == [False, True]  # the target's, then the output's
    for name, alone in (("perceptual", (True, False)), ("lpips", (False, True))):
        torch.testing.assert_close(features.FeatureLoss(trunk, *alone)(x_hat, x)[name], both[name])


@pytest.mark.parametrize("case", ["black", "white", "same", "bf16"])
def test_feature_terms_are_safe_on_extreme_images(case):
    loss = features.FeatureLoss(fixed_trunk((1, 4, 7, 9, 10, 11, 12)), True, lpips=True)
    x = {"black": torch.zeros, "white": torch.ones}.get(case, torch.rand)(2, 1, 64, 64)
    x_hat = x.clone().requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "bf16"):
        terms = loss(x_hat, x)
    sum(v.sum() for v in terms.values()).backward()
    assert all(v.dtype == torch.float32 and v.abs().max() < 1e-3 for v in terms.values())
    assert x_hat.grad.isfinite().all()


def test_trunk_is_frozen_and_cut_after_the_last_tap():
    need_weights("squeezenet")
    trunk = weights.load_trunk("squeezenet", taps=(1, 4))
    assert len(trunk.layers) == 5 and not any(p.requires_grad for p in trunk.parameters())
    assert {k: v.shape[1] for k, v in trunk(torch.rand(1, 1, 64, 64)).items()} == {1: 64, 4: 128}


def test_missing_weights_say_how_to_get_them(no_weights, capsys):
    cfg = vaekit.preset("chest_xray")
    assert features.feature_loss(cfg) is None
    assert "VAEKIT_WEIGHTS" in capsys.readouterr().out
    with pytest.raises(features.WeightsMissing, match="vgg16-397923af.pth"):
        features.feature_loss(cfg.replace(features="vgg16"))
    with pytest.raises(ValueError, match="squeezenet"):
        weights.load_trunk("resnet")
    assert features.feature_loss(cfg.replace(perceptual_weight=0.0)) is None


def test_a_file_of_another_network_is_not_taken_and_named_if_given(no_weights, tmp_path):
    from torchvision.models import alexnet, vgg11_bn

    with torch.device("meta"):
        nets = {"vgg16_bn-6c64b313.pth": vgg11_bn(), "alexnet.pth": alexnet()}
    for name, net in nets.items():
        torch.save({k: torch.zeros(1) for k in net.state_dict()}, tmp_path / name)
    (tmp_path / "torn.pth").write_bytes(b"<html>not found</html>")
    with pytest.raises(features.WeightsMissing):
        weights.load_trunk("vgg16", download=False)
    for file in [*nets, "torn.pth"]:
        with pytest.raises(ValueError, match=rf"{file} does not hold torchvision's squeezenet1_1"):
            weights.load_trunk("squeezenet", tmp_path / file)


def test_a_download_is_kept_only_with_the_right_hash(no_weights, monkeypatch, tmp_path):
    server, name = tmp_path / "server", "squeezenet1_1-b8a52dc0.pth"
    server.mkdir()
    monkeypatch.setattr(weights, "URL", f"{server.as_uri()}/")
    (server / name).write_bytes(b"torn")
    with pytest.raises(features.WeightsMissing, match="tried to download it"):
        weights.find_weights("squeezenet")
    digest = hashlib.sha256(b"torn").hexdigest()[:8]
    spec = features.TRUNKS["squeezenet"]._replace(url_file=f"squeezenet1_1-{digest}.pth")
    monkeypatch.setitem(features.TRUNKS, "squeezenet", spec)
    (server / spec.url_file).write_bytes(b"torn")
    file = weights.find_weights("squeezenet")
    assert file.read_bytes() == b"torn" and [*file.parent.iterdir()] == [file]
