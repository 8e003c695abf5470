"""Samplers must fit what they are given, repeat with their seed, and beat the prior."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_metrics import CFG, films
from tiny import shapes, small

import vaekit
from vaekit import sample
from vaekit.judge import choice, networks
from vaekit.judge.distances import gaussian_frechet, principal_axes
from vaekit.model import VAE
from vaekit.priors.flow import FlowMatching, Velocity, fit_flow, train_velocity
from vaekit.priors.mixture import Mixture

FITTED = ("gaussian", "gmm", "flow")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A flow that is fitted in a second."""
    monkeypatch.setattr("vaekit.priors.flow.MOST_STEPS", 150)


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
    images = sample.decode_all(model, mu, batch_size=3)
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
    assert max(distance["gmm"], distance["flow"]) < distance["prior"] / 20
    assert between["gmm"] < 0.02 < 0.2 < between["gaussian"]


def test_mixture_recovers_two_clusters():
    mu, logvar = two_clusters(400)
    kept = (mu[:, 0, 0, 0] < 0) | (torch.arange(400) % 4 == 0)  # four in one to one in the other
    mu, logvar = mu[kept], logvar[kept]
    fitted = sample.fit_sampler(mu, logvar, "gmm")
    assert isinstance(fitted, Mixture) and fitted.mixture.n_components >= 2
    z = fitted.sample(4000).flatten(1)
    assert (z[:, 0] > 1).float().mean().item() == pytest.approx(
        (mu.flatten(1)[:, 0] > 1).float().mean().item(), abs=0.03)  # fmt: skip
    assert (z[:, 1] - z[:, 2]).std() < 0.3 < z[:, 1].std() + 0.1  # the correlation is kept
    codes = fitted.sample(500, temperature=0.0).flatten(1)
    assert len(torch.unique(codes.round(decimals=3), dim=0)) <= fitted.mixture.n_components


@pytest.mark.parametrize("kind", FITTED)
def test_moments_are_those_of_the_aggregated_posterior(kind):
    g = torch.Generator().manual_seed(0)
    mu = torch.randn(600, 3, 2, 2, generator=g) * torch.tensor([3.0, 1.0, 0.01]).view(3, 1, 1) + 2
    logvar = torch.zeros_like(mu)
    logvar[:, 0] = -3
    z = sample.fit_sampler(mu, logvar, kind).sample(20000)
    expected = mu.var(0) + logvar.exp().mean(0)
    torch.testing.assert_close(z.mean(0), mu.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(z.var(0), expected, atol=0, rtol=0.12)


@pytest.mark.parametrize("shape", [(2, 6), (3, 6), (5, 6), (24, 16, 4, 4)], ids=str)
@pytest.mark.parametrize("kind", FITTED)
def test_more_dimensions_than_films(kind, shape):
    z = sample.fit_sampler(torch.randn(shape), torch.zeros(shape), kind).sample(50)
    assert z.shape == (50, *shape[1:]) and z.isfinite().all()
    assert shape[0] < 24 or z.var().item() == pytest.approx(2, rel=0.15)


def test_collapsed_latents_are_the_prior():
    mu = 1e-5 * torch.randn(50, 4, 2, 2)
    for kind in FITTED:
        z = sample.fit_sampler(mu, torch.zeros_like(mu), kind).sample(5000)
        assert z.std().item() == pytest.approx(1, abs=0.02)


def test_sampling_repeats_and_does_not_touch_the_global_seed(model):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    for kind in sample.SAMPLERS:
        draws = [sample.sample_latents(model, 5, kind, films(24), seed=s) for s in (3, 3, 4)]
        assert draws[0].shape == (5, *model.latent_shape)
        assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_temperature_scales_the_prior(model):
    hot, cold = (sample.sample_latents(model, 9, temperature=t) for t in (1.0, 0.5))
    torch.testing.assert_close(cold, 0.5 * hot)


def test_errors_say_what_to_do(model):
    with pytest.raises(ValueError, match="prior, gaussian, gmm, flow"):
        sample.sample_latents(model, 3, "diffusion")
    with pytest.raises(ValueError, match="fit_on=data.train"):
        sample.sample_latents(model, 3, "gmm")
    with pytest.raises(ValueError, match="1 image"):
        sample.fit_sampler(torch.zeros(1, 4), torch.zeros(1, 4), "gaussian")


def banana(n: int, seed: int = 0) -> np.ndarray:
    """(n, 2) of mean 0 and deviation 1, the second number a parabola of the first, and noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 2))
    x[:, 1] = (x[:, 0] ** 2 - 1 + 0.3 * x[:, 1]) / math.sqrt(2 + 0.3**2)
    return x


def normal(d: int) -> sample.Gaussian:
    return sample.Gaussian((d,), np.zeros(d), np.ones(d), np.eye(d), np.ones(d), np.zeros(d))


def test_a_velocity_that_has_learnt_nothing_moves_noise_to_itself():
    e = torch.randn(500, 5, generator=torch.Generator().manual_seed(0))
    flow = FlowMatching(**vars(normal(5)), velocity=Velocity(5))
    torch.testing.assert_close(flow.move(e), e, atol=5e-3, rtol=0)
    rough = (flow.move(e, steps=3) - e).abs().max()
    assert rough > 10 * (flow.move(e, steps=12) - e).abs().max()  # the midpoint's error: steps^-2


def test_the_first_velocity_is_the_mean_one_between_two_normal_clouds():
    g = torch.Generator().manual_seed(0)
    x, e = torch.randn(2, 200_000, 1, generator=g)
    for t in (0.2, 0.7):
        at = (1 - t) * e + t * x
        slope = (at * (x - e)).sum() / at.square().sum()  # least squares of x - e on x_t
        found = Velocity(1)(torch.ones(1, 1), torch.full((1, 1), t), torch.tensor([0]))
        assert found.item() == pytest.approx(slope.item(), abs=0.01)


def test_flow_matching_learns_a_bent_density_that_a_gaussian_cannot():
    gains, velocity = train_velocity(torch.from_numpy(banana(400)).float(), steps=250)
    assert max(gains) > 0.05  # of the squared error
    x = FlowMatching(**vars(normal(2)), velocity=velocity).sample(1000, seed=2).numpy()
    assert np.corrcoef(x[:, 0] ** 2, x[:, 1])[0, 1] > 0.75
    again, _ = train_velocity(torch.from_numpy(banana(400)).float(), steps=50)
    assert again == gains[:2]


def test_flow_matching_that_has_nothing_to_learn_stays_near_the_gaussian():
    rng = np.random.default_rng(0)
    x, e = torch.from_numpy(rng.standard_normal((2, 60, 16))).float()
    moved = {}
    for patience in (2, None):
        gains, velocity = train_velocity(x, steps=300, patience=patience)
        moved[patience] = (FlowMatching(**vars(normal(16)), velocity=velocity).move(e) - e).std()
    assert gains[-1] < -0.1  # without early stopping it learns the codes by heart
    assert moved[2] < 0.2 and moved[2] < moved[None] / 3
    assert fit_flow(normal(3), x[:19, :3].numpy()) is None
    few = sample.fit_sampler(x[:19], torch.zeros(19, 16), "flow")
    shrunk = sample.fit_sampler(x[:19], torch.zeros(19, 16), "gaussian")
    assert torch.equal(few.sample(3), shrunk.sample(3))


def test_flow_matching_draws_the_class_that_it_is_asked_for():
    mu, labels = two_clusters(300)[0], torch.arange(300) % 2
    mu = mu + 4 * labels.view(-1, 1, 1, 1)
    flow = sample.fit_sampler(mu, torch.full_like(mu, -6.0), "flow", labels=labels)
    means = {}
    for label, guidance in ((0, 1.0), (1, 1.0), (1, 2.0), (None, 1.0)):
        asked = replace(flow, label=label, guidance=guidance)
        means[label, guidance] = asked.sample(200).flatten(1)[:, 3:].mean().item()
    assert means[0, 1.0] == pytest.approx(1, abs=1) and means[1, 1.0] == pytest.approx(5, abs=1)
    assert means[0, 1.0] + 1 < means[None, 1.0] < means[1, 1.0] - 1
    assert means[1, 2.0] > means[1, 1.0]


def test_flow_matching_is_the_same_for_the_same_seed():
    mu = torch.from_numpy(banana(200)).float() + 3
    one, two = (sample.fit_sampler(mu, torch.full_like(mu, -6), "flow", seed=1) for _ in range(2))
    assert isinstance(one, FlowMatching) and torch.equal(one.sample(9), two.sample(9))


class Pixels(torch.nn.Module):
    """A model whose codes are the logits of its pixels: 8x8 images, decoded exactly."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def encode(self, x):
        return x.clamp(0.01, 0.99).logit(), torch.full_like(x, -8.0)

    def decode(self, z):
        return z.sigmoid()


def smooth_codes(n: int, seed: int = 0) -> torch.Tensor:
    """Logits of 8x8 images with long-range structure, which the prior does not know."""
    z = torch.randn(n, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(z, (8, 8), mode="bicubic")


@pytest.fixture(scope="module")
def smooth():
    """Training and validation images."""
    return (255 * smooth_codes(200).sigmoid()).byte().split((140, 60))


def choose(smooth, copies=(), kinds=("prior", "gaussian", "gmm"), **kwargs):
    """Of the kinds asked about, in order, those in `copies` memorise; None: as it is found."""
    answers = (SimpleNamespace(memorises=kind in copies) for kind in kinds)
    with pytest.MonkeyPatch.context() as patch:
        if copies is not None:
            patch.setattr(choice.distances, "memorisation", lambda *_: next(answers))
        kwargs = {"judge": "pixels", "draws": 3, "kinds": kinds} | kwargs
        return choice.choose_sampler(Pixels(), *smooth, **kwargs)


def rows_of(found, metric: str) -> dict:
    return {r["subject"]: r for r in found.rows if r["metric"] == metric}


def values(found, metric: str) -> dict:
    return {name: r["value"] for name, r in rows_of(found, metric).items()}


def test_the_sampler_nearest_to_validation_is_chosen(smooth):
    found = choose(smooth)
    rows, value = rows_of(found, "frechet"), values(found, "frechet")
    assert list(rows) == ["reconstruction", "prior", "gaussian", "gmm"]
    assert {r["n"] for r in rows.values()} == {60}
    assert len({r["floor"] for r in rows.values()}) == 1
    assert all(0 <= r["low"] < r["value"] < r["high"] for r in rows.values())
    fitted = {kind: value[kind] for kind in found.samplers}
    assert found.best == min(fitted, key=fitted.get) != "prior"
    assert fitted["prior"] > 3 * fitted[found.best]
    # Pixels reconstructs exactly: only the images differ
    assert value["reconstruction"] < 2 * rows["prior"]["floor"]


def test_distances_are_means_over_draws_from_the_same_random_numbers(smooth):
    """By hand, of the prior: draws of seeds 0, 1, 2 against 60 of 60 validation images."""
    found = choose(smooth, kinds=("prior",))
    val = networks.feature_vectors(smooth[1], None)
    axes = principal_axes(val, 60)
    draws = [found.samplers["prior"].sample(60, seed=i).sigmoid() for i in range(3)]
    far = [gaussian_frechet(val @ axes, networks.feature_vectors(x, None) @ axes) for x in draws]
    assert values(found, "frechet")["prior"] == pytest.approx(np.mean(far))


def test_gaps_are_paired_and_say_what_is_chance(smooth):
    found = choose(smooth)
    rows, value = rows_of(found, "frechet gap"), values(found, "frechet")
    assert rows.keys() == value.keys() - {found.best, "reconstruction"}
    for name, r in rows.items():
        assert r["value"] == pytest.approx(value[name] - value[found.best])
        assert r["high"] - r["value"] == pytest.approx(r["value"] - r["low"])
    assert rows["prior"]["low"] > 0
    other = rows["gmm" if found.best == "gaussian" else "gaussian"]
    alone = rows_of(found, "frechet")[found.best]
    assert other["high"] - other["low"] < 0.8 * (alone["high"] - alone["low"])
    codes = sample.encode_all(Pixels(), smooth[0])
    again = choose(smooth, codes=codes)
    assert again.rows == found.rows
    assert np.array_equal(again.seen, networks.feature_vectors(smooth[0]))
    assert choose(smooth, seed=1).rows != found.rows


def test_a_sampler_that_memorises_cannot_be_chosen(smooth, capsys):
    best = choose(smooth).best
    found = choose(smooth, [best])
    assert found.best not in (best, "prior")
    assert [kind for kind, copies in values(found, "memorises").items() if copies] == [best]
    assert choose(smooth, ("prior", "gaussian", "gmm")).best == best
    assert "every one" in capsys.readouterr().out
    few = choose((smooth[0], smooth[1][:3]), kinds=("gaussian", "prior"))
    assert (few.best, few.rows) == ("gaussian", [])
    assert "3 images are too few" in capsys.readouterr().out
    with pytest.raises(ValueError, match="prior, gaussian, gmm, flow"):
        choose(smooth, None, kinds=("gaussian", "diffusion"))


class Copies:
    """Training codes, hardly moved: nearer to the images than any honest sampler."""

    def __init__(self, mu):
        self.mu = mu

    def sample(self, n, temperature=1.0, seed=0):
        rng = np.random.default_rng(seed)
        z = self.mu[rng.integers(len(self.mu), size=n)]
        return z + 0.01 * temperature * torch.from_numpy(rng.standard_normal(z.shape)).float()


def test_copies_of_training_images_are_found(smooth, monkeypatch):
    honest = sample.fit_sampler

    def fit(mu, logvar, kind, seed):
        return Copies(mu) if kind == "gmm" else honest(mu, logvar, kind, seed)

    monkeypatch.setattr(choice, "fit_sampler", fit)
    found = choose(smooth, None, kinds=("prior", "gmm"))
    copies, value = values(found, "memorises"), values(found, "frechet")
    assert copies["gmm"] == 1 and value["gmm"] < value["prior"] / 3
    assert found.best == "prior" and not copies["prior"]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_what_fits_switches_gradients_on(context, model):
    with context():
        x = films(24)
        assert vaekit.sample_latents(model, 2, "flow", fit_on=x).isfinite().all()
        split = SimpleNamespace(images=x, labels=torch.arange(24) % 2)
        networks.train_judge(split, epochs=1)
        vaekit.fit(small(epochs_phase1=0, epochs_phase2=1, beta_warmup=0), shapes(), verbose=False)
