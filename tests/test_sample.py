"""Samplers must fit what they are given, repeat with their seed, and beat the prior."""

import math
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
from vaekit.priors.flow import BentGaussian, Flow, fit_flow, train_flow
from vaekit.priors.mixture import Mixture

FITTED = ("gaussian", "gmm", "flow")


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


@pytest.mark.parametrize("kind", FITTED)
def test_more_dimensions_than_films(kind):
    mu = torch.randn(24, 16, 4, 4)
    z = sample.fit_sampler(mu, torch.zeros_like(mu), kind).sample(50)
    assert z.shape == (50, 16, 4, 4) and z.isfinite().all()
    assert z.var().item() == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_films_and_vector_latents(n):
    for kind in FITTED:
        z = sample.fit_sampler(torch.randn(n, 6), torch.zeros(n, 6), kind).sample(3)
        assert z.shape == (3, 6) and z.isfinite().all()


def test_collapsed_latents_are_the_prior():
    mu = 1e-5 * torch.randn(50, 4, 2, 2)
    for kind in FITTED:
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


def fitted_flow(x: np.ndarray) -> Flow | None:
    """What bends x, which has the moments of N(0, I); None where a Gaussian will do."""
    d = x.shape[1]
    normal = sample.Gaussian((d,), np.zeros(d), np.ones(d), np.eye(d), np.ones(d), np.zeros(d))
    found = fit_flow(normal, x)
    return found.flow if isinstance(found, BentGaussian) else None


def any_flow(dims: int) -> Flow:
    """A flow that is not the identity, in double precision."""
    flow = Flow(dims, layers=3, width=8).double().requires_grad_(False)
    for p in flow.parameters():
        p += 0.3 * torch.randn_like(p)
    return flow


def standard(x: np.ndarray) -> np.ndarray:
    return -0.5 * (x**2 + math.log(2 * math.pi)).sum(1)


def test_a_flow_begins_as_the_standard_normal():
    e = np.random.default_rng(0).standard_normal((6, 5))
    flow = Flow(5).double().requires_grad_(False)
    np.testing.assert_allclose(flow.bend(e), e, atol=1e-12)
    np.testing.assert_allclose(flow.log_density(torch.from_numpy(e)), standard(e), atol=1e-12)


def test_the_flows_density_is_that_of_what_it_draws():
    flow, h = any_flow(5), 1e-5
    e = np.random.default_rng(0).standard_normal((4, 5))
    steps = [(flow.bend(e + h * axis) - flow.bend(e - h * axis)) / (2 * h) for axis in np.eye(5)]
    jacobian = np.stack(steps, axis=2)  # (4, 5, 5): dx / de
    expected = standard(e) - np.linalg.slogdet(jacobian).logabsdet
    found = flow.log_density(torch.from_numpy(flow.bend(e)))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert abs(found.numpy() - standard(flow.bend(e))).max() > 0.1  # it does bend


def test_the_flows_density_integrates_to_one():
    axis = torch.linspace(-25, 25, 1001, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    total = any_flow(2).log_density(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert total.item() == pytest.approx(1, abs=0.01)


def test_a_flow_learns_a_bent_density_that_a_gaussian_cannot():
    flow = fitted_flow(banana(1000))
    gain = flow.log_density(torch.from_numpy(banana(1000, seed=1))).mean().item()
    gain -= standard(banana(1000, seed=1)).mean()  # banana() has the moments of N(0, I)
    assert gain > 0.5  # nats; the truth gains about 1.1
    x = flow.bend(np.random.default_rng(2).standard_normal((2000, 2)))
    assert np.corrcoef(x[:, 0] ** 2, x[:, 1])[0, 1] > 0.8


def test_a_flow_bends_as_many_dimensions_as_the_films_can_tell():
    x = np.random.default_rng(0).standard_normal((400, 24))
    x[:, :2] = banana(400)
    assert fitted_flow(x).dims < 24


def test_flows_of_every_size_are_compared_on_the_same_films(monkeypatch):
    held, density = [], Flow.log_density

    def watch(self, x):
        if not held or held[-1][0] != self.dims:  # the first look of a flow is at what is held out
            held.append((self.dims, x[:, 0].tolist()))
        return density(self, x)

    monkeypatch.setattr(Flow, "log_density", watch)
    fitted_flow(np.random.default_rng(0).standard_normal((60, 20)))
    assert [dims for dims, _ in held] == [8, 16, 20]
    assert held[0][1] == held[1][1] == held[2][1]


def test_a_flow_that_has_nothing_to_learn_stays_a_gaussian():
    rng = np.random.default_rng(0)
    _, flow = train_flow(torch.from_numpy(rng.standard_normal((200, 16))).float())
    new = rng.standard_normal((2000, 16))
    loss = standard(new).mean() - flow.log_density(torch.from_numpy(new).float()).mean().item()
    assert loss < 0.25  # nats, of 22.7
    assert fitted_flow(rng.standard_normal((19, 3))) is None
    assert fitted_flow(rng.standard_normal((50, 1))) is None


def test_a_fitted_flow_repeats_and_at_temperature_zero_is_one_code():
    mu = torch.from_numpy(banana(200)).float() + 3
    logvar, before = torch.full_like(mu, -6.0), torch.random.get_rng_state()
    one, two = (sample.fit_sampler(mu, logvar, "flow", seed=1) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.sample(9, seed=2), two.sample(9, seed=2))
    assert one.flow.dims == 2
    cold = one.sample(9, temperature=0.0)
    assert torch.equal(cold, cold[:1].expand_as(cold))
    gaussian = sample.fit_sampler(mu, logvar, "gaussian").sample(2, temperature=0.0)
    torch.testing.assert_close(gaussian, mu.mean(0).expand_as(gaussian))


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
