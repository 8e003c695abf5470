"""From latents to images: a ladder of samplers, and the choice among them."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaekit.data import chunks
from vaekit.model import evaluating

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


def decode_all(model, z: Tensor, batch_size: int = 64) -> Tensor:
    """z (N, *latent_shape) on any device -> images float32 (N, C, H, W) in [0, 1], CPU."""
    with evaluating(model) as device:
        return torch.cat([model.decode(part.to(device)).cpu() for part in z.split(batch_size)])


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
        e = temperature * rng.standard_normal((n, len(self.mean)))
        if self.flow is not None:
            y[:, : self.flow.dims] = self.flow.bend(y[:, : self.flow.dims])
        along = y * self.stds
        if self.mixture is not None:
            d = self.mixture.n_features_in_
            along[:, :d] = mix(self.mixture, y[:, :d], rng)
        z = self.mean + self.scale * (along @ self.basis + self.noise * e)
        return torch.from_numpy(z).float().view(n, *self.shape)

    def __str__(self) -> str:
        if self.flow is not None:
            return f"{self.kind}: {self.flow.dims} of {len(self.mean)} dimensions are bent"
        if self.mixture is None:
            return f"{self.kind} in {len(self.mean)} dimensions"
        m = self.mixture
        return (f"{self.kind}: {m.n_components} {m.covariance_type} components in"
                f" {m.n_features_in_} of {len(self.mean)} dimensions")  # fmt: skip


def mix(mixture, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """m_k + L_k y of normal y (n, d), k drawn by weight from a "full" or "diag" GaussianMixture."""
    k = rng.choice(mixture.n_components, len(y), p=mixture.weights_ / mixture.weights_.sum())
    if mixture.covariance_type == "diag":
        return mixture.means_[k] + np.sqrt(mixture.covariances_[k]) * y
    x = mixture.means_[k]
    for j, root in enumerate(np.linalg.cholesky(mixture.covariances_)):
        x[k == j] += y[k == j] @ root.T
    return x


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
        from vaekit.priors.flow import fit_flow

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
    if sampler != "prior" and fit_on is None:
        raise ValueError(f"sampler={sampler!r} is fitted to latents: give fit_on=data.train")
    fitted = prior_sampler(model.latent_shape) if sampler == "prior" else (
        fit_sampler(*encode_all(model, fit_on), sampler, seed))  # fmt: skip
    return fitted.sample(n, temperature, seed).to(next(model.parameters()).device)
