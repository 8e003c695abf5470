"""Four small models, each trained to be one of the verdicts, and the numbers against theory."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
from tiny import SMALL, blobs

import vaekit
from vaekit.data import Data
from vaekit.judge import health
from vaekit.judge.distances import memorisation, mmd
from vaekit.model import VAE
from vaekit.sample import decode_all, sample_latents

ELBO = {  # by the book: with these three, beta is beta_elbo
    "calibrated": True, "recon_reduction": "sum", "kl_reduction": "sum", "ssim_weight": 0.0,
    "latent": "vector", "widths": [16, 32], "lr_phase1": 3e-3, "lr_phase2": 3e-3, "flip": False,
    "lr_schedule_phase1": "constant", "lr_schedule_phase2": "constant", "batch_size": 32,
    "beta_schedule": "constant", "ema": 0.98, "sample_every": 100, "max_images": 0,
}  # fmt: skip


def kinds(n: int, seed: int) -> torch.Tensor:
    """uint8 (n, 1, 16, 16): one of eight shapes, a little darker or brighter, with noise."""
    g, shapes = torch.Generator().manual_seed(seed), blobs(8, 999) / 255
    which = torch.randint(8, (n,), generator=g)
    films = shapes[which] * (0.9 + 0.1 * torch.rand(n, 1, 1, 1, generator=g))
    films = films + 0.03 * torch.randn(films.shape, generator=g)
    return (films.clamp(0, 1) * 255).byte()


def textures(n: int, seed: int) -> torch.Tensor:
    """uint8 (n, 1, 16, 16): blobs with finer ones on top, of more dimensions than a basis has."""
    noise = torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return (0.8 * blobs(n, seed) + 0.2 * 255 * noise).byte()


def trained(draw, beta: float, units: int, phase1: int, phase2: int):
    given = dict(beta=beta, latent_channels=units, epochs_phase1=phase1, epochs_phase2=phase2)
    cfg = vaekit.preset("chest_xray", **{**SMALL, **ELBO, **given})
    return vaekit.fit(cfg, Data.from_tensors(draw(400, 10), draw(50, 11), draw(10, 12))).model


@pytest.mark.parametrize(("verdict", "draw", "beta", "units", "phase1", "phase2"), [
    ("healthy", blobs, 1.0, 8, 0, 35), ("collapsed", blobs, 100.0, 8, 0, 8),
    ("autoencoder", blobs, 0.0, 24, 5, 25), ("off the prior", kinds, 0.5, 24, 5, 25)])  # fmt: skip
def test_each_is_told(verdict, draw, beta, units, phase1, phase2):
    found = vaekit.diagnose(trained(draw, beta, units, phase1, phase2), draw(100, 13))
    assert found.verdict == verdict, str(found)
    assert str(found).startswith(f"{verdict}: ") and "{" not in found.advice
    assert all(type(value) in (int, float) for value in found.numbers.values())
    assert len(found.plot().axes) == 4 and not plt.get_fignums()


def codes(n: int, units: int, scale: float = 1.0, sigma: float = 0.5):
    """mu (n, units) and E sigma^2 of codes whose aggregate is N(0, scale^2)."""
    g = torch.Generator().manual_seed(0)
    mu = torch.randn(n, units, generator=g, dtype=torch.float64) * (scale**2 - sigma**2) ** 0.5
    return mu, torch.full((units,), sigma**2, dtype=torch.float64)


def test_covariance_is_the_law_of_total_variance_and_the_gap_the_kl_of_its_gaussian():
    g, (mu, noise) = torch.Generator().manual_seed(1), codes(300, 6, scale=2)
    mu[:, 1] = 0.8 * mu[:, 0] + 0.6 * mu[:, 1]
    z = (mu + 0.5 * torch.randn(200, *mu.shape, generator=g)).flatten(0, 1)
    cov = health.covariance(mu, noise)
    torch.testing.assert_close(cov.diagonal(), z.var(0), rtol=0.01, atol=0)
    found, arrays = health.prior_gap(mu, noise, g)
    sampled = torch.linalg.eigvalsh(torch.cov(z.T)).flip(0)
    torch.testing.assert_close(arrays["eigenvalues"], sampled, rtol=0.02, atol=0)
    p = torch.distributions.MultivariateNormal(torch.zeros(6).double(), torch.eye(6).double())
    q = torch.distributions.MultivariateNormal(mu.mean(0), cov)
    nats = torch.distributions.kl_divergence(q, p).item()
    assert found["prior_gap"] == pytest.approx(nats / 6, rel=0.02)
    assert health.total_correlation(torch.tensor([[1, 0.6], [0.6, 1]])) == pytest.approx(
        -torch.tensor(1 - 0.36).log().item() / 2)  # fmt: skip


@pytest.mark.parametrize(("n", "units"), [(500, 4), (60, 200), (30, 256)])
def test_gap_does_not_depend_on_the_number_of_films(n, units):
    def gap(scale):
        found, arrays = health.prior_gap(*codes(n, units, scale, 0.2), torch.Generator())
        assert arrays["eigenvalues"].shape == arrays["expected_eigenvalues"].shape == (units,)
        return found["prior_gap"]

    assert abs(gap(1.0)) < 0.06
    for scale in (0.5, 2.0):
        nats = (scale**2 - 1 - torch.tensor(scale**2).log().item()) / 2
        assert gap(scale) == pytest.approx(nats, rel=0.15)


def test_mmd_agrees_with_theory_and_is_unbiased():
    g, d, shift = torch.Generator().manual_seed(0), 5, 1.0
    x, y = torch.randn(2, 2000, d, generator=g, dtype=torch.float64)
    # E k of two normals, kernel variance d: (d / (d + 2))^(d / 2) exp(-|m|^2 / 2 (d + 2))
    same = (d / (d + 2)) ** (d / 2)
    apart = same * torch.tensor(-d * shift**2 / (2 * (d + 2))).exp().item()
    value, share = mmd(x + shift, y, health.rbf)
    assert value == pytest.approx(2 * (same - apart), rel=0.05)
    assert share == pytest.approx(1 - apart / same, rel=0.05)
    small = torch.randn(200, 2, 20, d, generator=g, dtype=torch.float64)
    values = torch.tensor([mmd(a, b, health.rbf)[0] for a, b in small])
    assert abs(values.mean()) < 3 * values.std() / 200**0.5


def test_samples_of_the_prior_stay_below_its_null():
    g = torch.Generator().manual_seed(0)
    found = health.prior_mmd(torch.randn(300, 8, generator=g).double(), g)
    assert found["mmd"] < found["mmd_null"] and abs(found["mmd_share"]) < 0.02
    far = health.prior_mmd(torch.randn(300, 8, generator=g).double() + 1, g)
    assert far["mmd"] > 10 * far["mmd_null"] and far["mmd_share"] > 0.1


def test_noise_price_is_beta_in_the_linear_case():
    """Decoder x = W z, W orthogonal columns: at the ELBO's optimum sigma_z^2 w^2 is beta s^2."""
    pixels, units, s, w, beta = 400, 10, 0.05, 4.0, 0.3
    g, noise = torch.Generator().manual_seed(0), torch.full((units,), beta * s**2 / w**2)
    error = s * torch.randn(500, pixels, generator=g)
    moved = torch.zeros(500, pixels)
    moved[:, :units] = w * noise.sqrt() * torch.randn(500, units, generator=g)
    arrays = {"variance": torch.ones(units), "noise": noise, "kl": torch.ones(units),
              "sigma": noise.sqrt().expand(500, units), "mse_other": torch.ones(500),
              "mse_mean": error.square().mean(1),
              "mse_sampled": (error + moved).square().mean(1)}  # fmt: skip
    numbers = health.describe(arrays, pixels)
    assert numbers["noise_price"] == pytest.approx(beta, rel=0.1)
    assert numbers["active_units"] == units and numbers["kl"] == units


class Codes(torch.nn.Module):
    """An encoder that gives the codes it was made with, and a decoder that listens to all."""

    def __init__(self, mu, sigma: float):
        super().__init__()
        self.mu, self.logvar = torch.nn.Parameter(mu.float()), 2 * math.log(sigma)

    def encode(self, x):
        mu = self.mu[: len(x)].detach()
        return mu, torch.full_like(mu, self.logvar)

    def reparameterize(self, mu, logvar, generator):
        return mu + (logvar / 2).exp() * torch.randn(mu.shape, generator=generator)

    def decode(self, z):  # the films are what the means decode to, and noise
        return 0.5 + z.view(-1, 1, 16, 16) / 10


@pytest.mark.parametrize(("rank", "verdict"), [(256, "healthy"), (8, "off the prior")])
def test_codes_that_hang_together_leave_a_hole_however_little_a_unit_knows(rank, verdict):
    g = torch.Generator().manual_seed(0)
    mix = torch.linalg.qr(torch.randn(256, 256, generator=g))[0][:, :rank]
    mu = 0.6 * torch.randn(500, rank, generator=g) @ mix.T * (256 / rank) ** 0.5
    model = Codes(mu, sigma=0.8)
    films = model.decode(mu) + 0.03 * torch.randn(500, 1, 16, 16, generator=g)
    found = vaekit.diagnose(model, films.detach(), batch_size=500)
    assert found.verdict == verdict, str(found)
    assert found.numbers["prior_gap"] < 0.25  # nats: next to nothing in any one unit


def test_verdicts_in_their_order():
    good = dict(active_units=8, units=8, active_share=1.0, idle_share=0.0, kl=20.0, kl_active=2.5,
                sigma=0.1, sigma_to_spread=0.1, sample_to_mean=1.1, other_to_mean=4.0,
                noise_price=1.0, prior_gap=0.0, gap_share=0.0, mmd=0.0, mmd_null=0.01,
                mmd_share=0.0, largest_eigenvalue=1.2, smallest_eigenvalue=0.8)  # fmt: skip

    def verdict(**changes):
        return health.verdict_of(good | changes)

    tight = {"sigma_to_spread": 0.01}
    assert verdict() == verdict(**tight) == "healthy"  # tight, but as dear as the ELBO wants it
    assert verdict(**tight, noise_price=0.01, gap_share=0.5) == "autoencoder"
    assert verdict(sample_to_mean=50.0) == "autoencoder"
    assert verdict(gap_share=0.3) == verdict(mmd=0.1, mmd_share=0.3) == "off the prior"
    assert verdict(mmd=0.005, mmd_share=0.3) == "healthy"  # within what the prior itself shows
    assert verdict(idle_share=0.9, other_to_mean=1.0, gap_share=0.5) == "collapsed"
    assert verdict(idle_share=0.9) == "healthy"  # the decoder listens to the others
    assert "more sharply" in health.advice_for("healthy", good | {"noise_price": 9.0})
    assert "more sharply" not in health.advice_for("healthy", good)
    assert "Train phase 2" in health.advice_for("autoencoder", good | {"sample_to_mean": 50.0})


@pytest.mark.filterwarnings("ignore:.*the basis holds the images")
def test_a_basis_that_holds_its_training_images_is_told_where_samples_are_not_taken_for_copies():
    train, test = textures(40, 1), textures(80, 2)
    model = vaekit.linear_vae(train, 64, mirror=False)
    samples = decode_all(model, sample_latents(model, 60))
    flat = [x.float().flatten(1).numpy() / 255 for x in (train, test)]
    assert not memorisation(samples.flatten(1).numpy(), *flat).memorises  # they are mixtures
    found = vaekit.diagnose(model, test, train=train)
    assert found.numbers["train_to_test"] < 0.01
    assert "holds the images themselves" in found.advice
    many = textures(1000, 3)
    fair = vaekit.diagnose(vaekit.linear_vae(many, 64), test, train=many)
    assert 0.7 < fair.numbers["train_to_test"] < 1.1
    assert "holds" not in fair.advice
    without = vaekit.diagnose(model, test)
    assert "train_to_test" not in without.numbers and "holds" not in without.advice


@pytest.mark.parametrize("latent", ["vector", "spatial"])
def test_untrained_models_splits_and_seeds(latent):
    model = VAE(vaekit.preset("chest_xray", **SMALL, latent=latent)).eval()
    data = Data.from_tensors(blobs(9, 1), blobs(9, 2), blobs(9, 3))
    first, again, other = (vaekit.diagnose(model, data.val, seed, size)
                           for seed, size in [(0, 64), (0, 4), (1, 64)])  # fmt: skip
    assert first.numbers == pytest.approx(again.numbers, rel=1e-4)
    assert first.numbers != other.numbers and first.numbers["images"] == 9
    as_floats = vaekit.diagnose(model, blobs(9, 2) / 255)
    assert as_floats.numbers == pytest.approx(first.numbers, rel=1e-4)
    assert len(first.plot().axes) == 4


def test_what_cannot_be_judged_is_an_error():
    model = VAE(vaekit.preset("chest_xray", **SMALL)).eval()
    with pytest.raises(ValueError, match="1 image"):
        vaekit.diagnose(model, blobs(1, 1))
    with torch.no_grad():
        model.encoder.mu.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="diverged"):
        vaekit.diagnose(model, blobs(4, 1))
