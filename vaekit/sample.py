"""From latents to images: a ladder of samplers, and the choice among them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaekit.directions import (  # noqa: F401
    find_trunk,
    interpolate,
    nearest_neighbours,
    principal_directions,
    traverse,
)
from vaekit.features import Trunk
from vaekit.flow import fit_flow
from vaekit.metrics import (
    chunks,
    evaluating,
    feature_vectors,
    frechet_row,
    network_name,
    pixels_of,
    row,
)  # fmt: skip

SAMPLERS = ("prior", "gaussian", "gmm", "flow")
COMPONENTS = (1, 2, 4, 8, 16)
LEADING_DIMS = 64  # directions that mixture and flow are fitted in, at most
LEADING_SHARE = 0.95  # of the variance of the means, where that takes fewer directions


def encode_all(model, images, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """mu, logvar of every film of a Split or (N, C, H, W) tensor: (N, *latent_shape), CPU."""
    with evaluating(model) as device:
        codes = [[t.cpu() for t in model.encode(x)] for x in chunks(images, batch_size, device)]
    mu, logvar = (torch.cat(parts) for parts in zip(*codes, strict=True))
    return mu, logvar


def decode_batched(model, z: Tensor, batch_size: int = 64) -> Tensor:
    """z (N, *latent_shape) on any device -> images float32 (N, C, H, W) in [0, 1], CPU."""
    with evaluating(model) as device:
        return torch.cat([model.decode(part.to(device)).cpu() for part in z.split(batch_size)])


# ---- samplers ------------------------------------------------------------------------------------


@dataclass
class LatentSampler:
    """z = mean + scale * (y @ basis + noise * e), e ~ N(0, I): what every sampler here is.

    y are coordinates along `basis`: normal with deviations `stds`, the leading ones from
    `mixture` or `flow` where there is one. The prior has no basis, and noise 1.
    """

    kind: str
    shape: tuple  # of one latent
    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    basis: np.ndarray  # (r, D), orthonormal rows
    stds: np.ndarray  # (r,)
    noise: np.ndarray  # (D,)
    mixture: Any = None  # scikit-learn's GaussianMixture, of y
    flow: Any = None  # a Flow, of y / stds

    def sample(self, n: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
        """z (n, *shape) float32 on the CPU, the same for the same seed on every machine.

        temperature scales every deviation from the mean, from a component's own mean, or of the
        normal numbers that the flow bends.
        """
        rng = np.random.default_rng(seed)
        y = temperature * rng.standard_normal((n, len(self.stds)))
        if self.flow is not None:
            y[:, : self.flow.dims] = self.flow.bend(y[:, : self.flow.dims])
        y *= self.stds
        if self.mixture is not None:
            y[:, : self.mixture.n_features_in_] = draw_mixture(self.mixture, n, temperature, rng)
        e = temperature * rng.standard_normal((n, len(self.mean)))
        z = self.mean + self.scale * (y @ self.basis + self.noise * e)
        return torch.from_numpy(z).float().view(n, *self.shape)

    def __str__(self) -> str:
        if self.flow is not None:
            return f"{self.kind}: {self.flow.dims} of {len(self.mean)} dimensions are bent"
        if self.mixture is None:
            return f"{self.kind} in {len(self.mean)} dimensions"
        m = self.mixture
        return (f"{self.kind}: {m.n_components} {m.covariance_type} components in"
                f" {m.n_features_in_} of {len(self.mean)} dimensions")  # fmt: skip


def draw_mixture(mixture, n: int, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """(n, d) from a GaussianMixture ("full" or "diag"): m_k + T L_k e, k drawn by weight."""
    k = rng.choice(mixture.n_components, n, p=mixture.weights_ / mixture.weights_.sum())
    e = temperature * rng.standard_normal((n, mixture.n_features_in_))
    if mixture.covariance_type == "diag":
        return mixture.means_[k] + np.sqrt(mixture.covariances_[k]) * e
    for j, root in enumerate(np.linalg.cholesky(mixture.covariances_)):
        e[k == j] = e[k == j] @ root.T
    return mixture.means_[k] + e


def prior_sampler(shape: tuple) -> LatentSampler:
    """N(0, I) over latents of `shape`."""
    zero = np.zeros(int(np.prod(shape)))
    return LatentSampler("prior", tuple(shape), zero, zero + 1, np.zeros((0, len(zero))),
                         np.zeros(0), zero + 1)  # fmt: skip


def fit_sampler(mu: Tensor, logvar: Tensor, kind: str, seed: int = 0) -> LatentSampler:
    """A sampler fitted to the aggregated posterior: mu, logvar (N, *latent_shape) as encoded.

    Latents are centred and scaled per channel; E[sigma^2] is the noise on top of the means, whose
    distribution is "gaussian": full covariance, shrunk (Ledoit and Wolf 2004), "gmm": a mixture in
    the leading principal directions (see `fit_mixture`), a Gaussian in the others, or "flow": a
    learned prior in these directions (see `fit_flow`). "prior" ignores them. Source: Ghosh et al.
    2020, arXiv 1903.12436. ValueError for another kind, or N < 2.
    """
    check_kind(kind)
    if kind == "prior":
        return prior_sampler(mu.shape[1:])
    if len(mu) < 2:
        raise ValueError(f"a {kind} sampler cannot be fitted to {len(mu)} film")
    from sklearn.covariance import ledoit_wolf_shrinkage
    from sklearn.decomposition import PCA

    mu, logvar = mu.cpu().double(), logvar.cpu().double()
    mean, scale = mu.mean(0), channel_scale(mu, logvar)
    x = ((mu - mean) / scale).flatten(1).numpy()
    noise = (logvar.exp().mean(0) / scale**2).flatten().numpy()  # E sigma^2
    n, d = x.shape
    pca = PCA(min(n - 1, d), svd_solver="covariance_eigh" if n > d else "full").fit(x)
    variance, mixture, flow = pca.explained_variance_, None, None
    y = (x @ pca.components_.T)[:, : leading(variance, n)]
    if kind == "gaussian":  # (1 - a) S + a tr(S)/D I
        a = ledoit_wolf_shrinkage(x, assume_centered=True)
        variance, noise = (1 - a) * variance, noise + a * x.var(0).mean()
    elif kind == "gmm":
        mixture = fit_mixture(y, seed)
    else:
        flow = fit_flow(y / np.sqrt(variance[: y.shape[1]]).clip(min=1e-9), seed)
    mean, scale = mean.flatten().numpy(), scale.expand_as(mean).flatten().numpy()
    return LatentSampler(kind, tuple(mu.shape[1:]), mean, scale, pca.components_,
                         np.sqrt(variance), np.sqrt(noise), mixture, flow)  # fmt: skip


def channel_scale(mu: Tensor, logvar: Tensor) -> Tensor:
    """Standard deviation of z per channel, (C, 1, 1) or (C,) for a vector latent: the law of total
    variance, Var z = Var mu + E sigma^2."""
    total = mu.var(0, correction=0) + logvar.exp().mean(0)
    return (total.mean((1, 2), keepdim=True) if total.dim() == 3 else total).sqrt()


def leading(variance: np.ndarray, n: int) -> int:
    """How many principal directions hold 95% of the variance: at most n / 4 and 64, at least 1."""
    share = np.cumsum(variance) / max(variance.sum(), 1e-30)
    d = 1 + int(np.searchsorted(share, LEADING_SHARE))
    return max(1, min(d, n // 4, LEADING_DIMS, len(variance)))


def fit_mixture(y: np.ndarray, seed: int = 0):
    """GaussianMixture of y (N, d), principal coordinates, the largest first.

    Number and kind of components by likelihood on held-out thirds, full covariances only with 2
    films a dimension and component.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from sklearn.model_selection import GridSearchCV, KFold
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    n, d = y.shape
    few = [k for k in COMPONENTS if k == 1 or n >= 10 * k]
    full = [k for k in few if 1 < k <= n / (2 * d)]  # alone, "full" is "diag": PCA decorrelates
    blank = GaussianMixture(covariance_type="diag", random_state=seed,
                            reg_covar=1e-6 * float(y[:, 0].var(ddof=1)) + 1e-12)  # fmt: skip
    if few == [1]:
        return blank.fit(y)
    grid = [{"n_components": few, "covariance_type": ["diag"]}]
    grid += [{"n_components": full, "covariance_type": ["full"]}] if full else []
    folds = KFold(3, shuffle=True, random_state=seed)
    # small problems: more threads only wait for one another, on a busy machine for seconds
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GridSearchCV(blank, grid, cv=folds).fit(y).best_estimator_


def check_kind(kind: str) -> None:
    if kind not in SAMPLERS:
        raise ValueError(f"sampler={kind!r} is not one of {', '.join(SAMPLERS)}")


def sample_latents(model, n: int, sampler: str = "prior", fit_on=None, temperature: float = 1.0,
                   seed: int = 0) -> Tensor:  # fmt: skip
    """z (n, *latent_shape) on the model's device; see `fit_sampler` for the kinds.

    fit_on: the training films (Split or tensor), which all but "prior" encode; to draw twice
    without fitting twice, call `fit_sampler` and its `.sample`. ValueError for an unknown sampler,
    or a missing fit_on.
    """
    check_kind(sampler)
    device = next(model.parameters()).device
    if sampler == "prior":
        return prior_sampler(model.latent_shape).sample(n, temperature, seed).to(device)
    if fit_on is None:
        raise ValueError(f"sampler={sampler!r} is fitted to latents: give fit_on=data.train")
    fitted = fit_sampler(*encode_all(model, fit_on), sampler, seed)
    return fitted.sample(n, temperature, seed).to(device)


# ---- which of them -------------------------------------------------------------------------------


class Choice(NamedTuple):
    best: str  # the kind with the smallest distance among those that do not memorise
    samplers: dict[str, LatentSampler]  # all of them, fitted
    rows: list[dict]  # the validation table, keys as in `metrics.COLUMNS`


def choose_sampler(model, train, val, kinds=SAMPLERS, trunk: Trunk | str | None = "auto",
                   memorises: Callable | None = None, draws: int = 3, seed: int = 0,
                   download: bool = True) -> Choice:  # fmt: skip
    """Samplers fitted on `train`, the best by Fréchet distance to `val` (Splits or tensors).

    Each value is the mean over `draws` draws of as many images as `val` has, beside the floor and
    the reconstructions of training films at the same N. memorises(images (n, C, H, W)) -> bool
    takes a kind out of the choice; None asks `distances.memorisation` on the judge's features.
    trunk, download: as for `nearest_neighbours`. Test films are not to be seen here: score them
    afterwards. ValueError for an unknown kind, or where every kind memorises.
    """
    for kind in kinds:
        check_kind(kind)
    trunk, train, val = find_trunk(trunk, download), pixels_of(train), pixels_of(val)
    mu, logvar = encode_all(model, train)
    fitted = {kind: fit_sampler(mu, logvar, kind, seed) for kind in kinds}
    real, others = (feature_vectors(s, trunk) for s in (val, train))
    if memorises is None:
        from vaekit.distances import memorisation

        def memorises(images):
            return memorisation(feature_vectors(images, trunk), others, real).memorises

    rng, n = np.random.default_rng(seed), min(len(train), len(val))
    codes = {"reconstruction": [mu[rng.permutation(len(mu))[:n]] for _ in range(draws)]}
    codes |= {kind: [sampler.sample(n, seed=seed + i) for i in range(draws)]
              for kind, sampler in fitted.items()}  # fmt: skip
    rows, allowed = [], {}
    for name, z in codes.items():
        images = decode_batched(model, torch.cat(z))
        found = [frechet_row(name, f, real, others, network_name(trunk), seed)
                 for f in np.split(feature_vectors(images, trunk), draws)]  # fmt: skip
        means = {k: float(np.mean([r[k] for r in found])) for k in ("value", "low", "high")}
        rows.append(found[0] | means)
        if name in fitted:
            copies = bool(memorises(images))
            rows.append(row("memorises", name, float(copies), n=len(images)))
            allowed |= {} if copies else {name: means["value"]}
    if not allowed:
        raise ValueError(f"every one of {', '.join(kinds)} memorises its training films")
    return Choice(min(allowed, key=allowed.get), fitted, rows)
