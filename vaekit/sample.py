"""From latents to images: samplers, paths between codes, and what was near in training."""

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaekit.features import Trunk
from vaekit.metrics import chunks, evaluating, feature_vectors, load_judge, network_name

SAMPLERS = ("prior", "gaussian", "gmm")
COMPONENTS = (1, 2, 4, 8, 16)
MIXTURE_DIMS = 64  # directions that the mixture is fitted in, at most
MIXTURE_SHARE = 0.95  # of the variance of the means, where that takes fewer directions


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
    `mixture` where there is one. The prior has no basis, and noise 1.
    """

    kind: str
    shape: tuple  # of one latent
    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    basis: np.ndarray  # (r, D), orthonormal rows
    stds: np.ndarray  # (r,)
    noise: np.ndarray  # (D,)
    mixture: Any = None  # scikit-learn's GaussianMixture

    def sample(self, n: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
        """z (n, *shape) float32 on the CPU, the same for the same seed on every machine.

        temperature scales every deviation from the mean, or from a component's own mean.
        """
        rng = np.random.default_rng(seed)
        y = temperature * self.stds * rng.standard_normal((n, len(self.stds)))
        if self.mixture is not None:
            y[:, : self.mixture.n_features_in_] = draw_mixture(self.mixture, n, temperature, rng)
        e = temperature * rng.standard_normal((n, len(self.mean)))
        z = self.mean + self.scale * (y @ self.basis + self.noise * e)
        return torch.from_numpy(z).float().view(n, *self.shape)

    def __str__(self) -> str:
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
    covariance is "gaussian": full, shrunk (Ledoit and Wolf 2004), or "gmm": a mixture in the
    leading principal directions (see `fit_mixture`), a Gaussian in the others. "prior" ignores
    them. Source: Ghosh et al. 2020, arXiv 1903.12436. ValueError for another kind, or N < 2.
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
    variance, mixture = pca.explained_variance_, None
    if kind == "gaussian":  # (1 - a) S + a tr(S)/D I
        a = ledoit_wolf_shrinkage(x, assume_centered=True)
        variance, noise = (1 - a) * variance, noise + a * x.var(0).mean()
    else:
        mixture = fit_mixture(x @ pca.components_.T, variance, seed)
    mean, scale = mean.flatten().numpy(), scale.expand_as(mean).flatten().numpy()
    return LatentSampler(kind, tuple(mu.shape[1:]), mean, scale, pca.components_,
                         np.sqrt(variance), np.sqrt(noise), mixture)  # fmt: skip


def channel_scale(mu: Tensor, logvar: Tensor) -> Tensor:
    """Standard deviation of z per channel, (C, 1, 1) or (C,) for a vector latent: the law of total
    variance, Var z = Var mu + E sigma^2."""
    total = mu.var(0, correction=0) + logvar.exp().mean(0)
    return (total.mean((1, 2), keepdim=True) if total.dim() == 3 else total).sqrt()


def fit_mixture(y: np.ndarray, variance: np.ndarray, seed: int = 0):
    """GaussianMixture in the first columns of y (N, r), principal coordinates with `variance`.

    As many as hold 95% of the variance, at most N / 4 and 64; number and kind of components by
    likelihood on held-out thirds, full covariances only with 2 films a dimension and component.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from sklearn.model_selection import GridSearchCV, KFold
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    share = np.cumsum(variance) / max(variance.sum(), 1e-30)
    n, d = len(y), 1 + int(np.searchsorted(share, MIXTURE_SHARE))
    d = max(1, min(d, n // 4, MIXTURE_DIMS, y.shape[1]))
    few = [k for k in COMPONENTS if k == 1 or n >= 10 * k]
    full = [k for k in few if 1 < k <= n / (2 * d)]  # alone, "full" is "diag": PCA decorrelates
    blank = GaussianMixture(covariance_type="diag", random_state=seed,
                            reg_covar=1e-6 * float(variance[0]) + 1e-12)  # fmt: skip
    if few == [1]:
        return blank.fit(y[:, :d])
    grid = [{"n_components": few, "covariance_type": ["diag"]}]
    grid += [{"n_components": full, "covariance_type": ["full"]}] if full else []
    folds = KFold(3, shuffle=True, random_state=seed)
    # small problems: more threads only wait for one another, on a busy machine for seconds
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GridSearchCV(blank, grid, cv=folds).fit(y[:, :d]).best_estimator_


def check_kind(kind: str) -> None:
    if kind not in SAMPLERS:
        raise ValueError(f"sampler={kind!r} is not one of {', '.join(SAMPLERS)}")


def sample_latents(model, n: int, sampler: str = "prior", fit_on=None, temperature: float = 1.0,
                   seed: int = 0) -> Tensor:  # fmt: skip
    """z (n, *latent_shape) on the model's device; see `fit_sampler` for "gaussian" and "gmm".

    fit_on: the training films (Split or tensor), which those two encode; to draw twice without
    fitting twice, call `fit_sampler` and its `.sample`. ValueError for an unknown sampler, or a
    missing fit_on.
    """
    check_kind(sampler)
    device = next(model.parameters()).device
    if sampler == "prior":
        return prior_sampler(model.latent_shape).sample(n, temperature, seed).to(device)
    if fit_on is None:
        raise ValueError(f"sampler={sampler!r} is fitted to latents: give fit_on=data.train")
    fitted = fit_sampler(*encode_all(model, fit_on), sampler, seed)
    return fitted.sample(n, temperature, seed).to(device)


# ---- paths and directions ------------------------------------------------------------------------


def interpolate(z_a: Tensor, z_b: Tensor, steps: int, how: str = "linear") -> Tensor:
    """(steps, *latent_shape) from z_a to z_b, both included; "linear" or "spherical".

    Spherical turns by equal angles and keeps the norm of codes of equal norm, which in many
    dimensions the straight line does not: its middle is too short. Source: White 2016,
    arXiv 1609.04468. ValueError for another `how`.
    """
    t = torch.linspace(0, 1, steps, dtype=z_a.dtype, device=z_a.device)
    if how == "linear":
        a, b = 1 - t, t
    elif how == "spherical":
        cos = torch.cosine_similarity(z_a.flatten(), z_b.flatten(), dim=0)
        angle = cos.clamp(-1, 1).acos()
        if angle.sin() < 1e-4:  # parallel or opposite: no plane to turn in
            return interpolate(z_a, z_b, steps)
        a, b = ((1 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()
    else:
        raise ValueError(f"how={how!r} is not one of linear, spherical")
    view = (-1, *[1] * z_a.dim())
    return a.view(view) * z_a + b.view(view) * z_b


def principal_directions(mu: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """mean (*latent_shape), the k largest directions (k, *latent_shape) of unit norm, std (k,).

    mu (N, *latent_shape) as encoded; k at most min(N - 1, latent elements), else ValueError.
    """
    from sklearn.decomposition import PCA

    flat, most = mu.flatten(1).double().numpy(), min(len(mu) - 1, mu[0].numel())
    if not 1 <= k <= most:
        raise ValueError(f"k={k} directions: {len(mu)} codes have between 1 and {most}")
    pca = PCA(k, svd_solver="full").fit(flat)
    directions = torch.from_numpy(pca.components_).float().view(k, *mu.shape[1:])
    return mu.mean(0), directions, torch.from_numpy(pca.explained_variance_**0.5).float()


def traverse(model, mean: Tensor, direction: Tensor, std: Tensor | float, values) -> Tensor:
    """Images (len(values), C, H, W) of mean + value * std * direction, values in deviations."""
    steps = torch.as_tensor(values).to(mean).view(-1, *[1] * mean.dim())
    return decode_batched(model, mean + steps * std * direction)


# ---- nearest training films ----------------------------------------------------------------------


class Neighbours(NamedTuple):
    indices: Tensor  # (n, k) into the split, nearest first
    distances: Tensor  # (n, k), Euclidean
    network: str  # what they are distances of


def nearest_neighbours(images, split, k: int = 1, trunk: Trunk | str | None = "auto",
                       batch_size: int = 64) -> Neighbours:  # fmt: skip
    """The k films of `split` nearest to each of `images`, by feature vector.

    trunk: one from `load_trunk`; "auto": the judge's SqueezeNet if its weights are there;
    otherwise, or None, the distance is of pixels at 32x32.
    """
    from sklearn.neighbors import NearestNeighbors

    if trunk == "auto":
        judge = load_judge()
        trunk = judge.trunk if judge is not None else None
    there, here = (feature_vectors(s, trunk, batch_size) for s in (split, images))
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(there)
    distances, indices = search.kneighbors(here)
    return Neighbours(torch.from_numpy(indices), torch.from_numpy(distances).float(),
                      network_name(trunk))  # fmt: skip
