"""Codes of images, images of codes, and samplers of new codes.

Training pulls the codes towards N(0, I), the prior. Where they differ from it, fit a distribution
to them after training and sample from that: here a Gaussian, in `priors/` a mixture of Gaussians
and flow matching. Source: Ghosh et al. 2020, arXiv 1903.12436.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vaekit import checks
from vaekit.data import chunks
from vaekit.model import evaluating
from vaekit.quantise import Quantiser

SAMPLERS = ("prior", "gaussian", "gmm", "flow")
# at most this many directions for mixture and flow
LEADING_DIMS = 64
# ... or those that hold this share of the means' variance, if fewer
LEADING_SHARE = 0.95


def encode_all(model, images, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """mu, logvar (N, *latent_shape), CPU, of every image of a Split or (N, C, H, W) tensor."""
    with evaluating(model) as device:
        codes = [model.encode(x) for x in chunks(images, batch_size, device)]
    mu, logvar = zip(*codes, strict=True)
    return torch.cat(mu).cpu(), torch.cat(logvar).cpu()


def decode_all(model, z: Tensor, batch_size: int = 64) -> Tensor:
    """z (N, *latent_shape) on any device -> images float32 (N, C, H, W) in [0, 1], CPU."""
    with evaluating(model) as device:
        images = [model.decode(part.to(device)).cpu() for part in z.split(batch_size)]
    return torch.cat(images)


@dataclass
class Prior:
    """z ~ N(0, I); for a quantised latent, codes that are all equally likely, at every place."""

    shape: tuple  # of one code
    quantiser: Quantiser | None = None

    def sample(self, n: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
        """z (n, *shape) float32, CPU, the same for the same seed. temperature scales z; it has no
        effect on quantised codes."""
        rng = np.random.default_rng(seed)
        if self.quantiser is None:
            z = temperature * rng.standard_normal((n, *self.shape))
            return torch.from_numpy(z).float()
        indices = rng.integers(self.quantiser.num_codes, size=(n, *self.shape[1:]))
        return self.quantiser.lookup(torch.from_numpy(indices)).cpu()


@dataclass
class Gaussian:
    """z = mean + scale * (y @ basis + noise * e), y ~ N(0, stds^2), e ~ N(0, I).

    y @ basis is the variation between images, e the encoder's uncertainty about each.
    """

    shape: tuple  # of one code, D numbers
    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    # (r, D), principal directions: orthonormal rows, largest variance first
    basis: np.ndarray
    stds: np.ndarray  # (r,), standard deviation along each
    noise: np.ndarray  # (D,)

    def sample(self, n: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
        """z (n, *shape) float32, CPU, the same for the same seed on every machine.

        temperature scales the deviations from the mean (in a mixture, from each component's mean).
        """
        rng = np.random.default_rng(seed)
        y = temperature * rng.standard_normal((n, len(self.stds)))
        e = temperature * rng.standard_normal((n, len(self.mean)))
        y = self.coordinates(y, rng)
        z = self.mean + self.scale * (y @ self.basis + self.noise * e)
        return torch.from_numpy(z).float().view(n, *self.shape)

    def coordinates(self, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Coordinates along the basis, from normal numbers y (n, r)."""
        return y * self.stds


def fit_sampler(
    mu: Tensor, logvar: Tensor, kind: str, seed: int = 0, labels: Tensor | None = None
) -> Prior | Gaussian:
    """A sampler fitted to the aggregated posterior: mu, logvar (N, *latent_shape) as encoded.

    "prior" needs no fit. "gaussian" has the full covariance, shrunk (Ledoit and Wolf 2004). "gmm"
    and "flow" replace it, in the leading principal directions, by a mixture or by flow matching. A
    flow that gains nothing on held-out codes gives way to the Gaussian, unless labels (N,) are
    given: it can then sample one class, see `FlowMatching`. ValueError for another kind, or N < 2.
    """
    checks.check_sampler(kind, SAMPLERS)
    if kind == "prior":
        return Prior(tuple(mu.shape[1:]))
    if len(mu) < 2:
        raise ValueError(f"a {kind} sampler cannot be fitted to {len(mu)} image")
    gaussian, y = principal_gaussian(mu, logvar, kind)
    if kind == "gaussian":
        return gaussian
    if kind == "gmm":
        from vaekit.priors.mixture import fit_mixture

        return fit_mixture(gaussian, y, seed)
    from vaekit.priors.flow import fit_flow

    # None where it gains nothing
    return fit_flow(gaussian, y, seed, labels) or fit_sampler(mu, logvar, "gaussian")


def principal_gaussian(mu: Tensor, logvar: Tensor, kind: str) -> tuple[Gaussian, np.ndarray]:
    """A Gaussian for `kind`, and the means' coordinates in its leading directions, (N, d).

    The means are divided by a scale; their principal directions are PCA's. For "flow" the scale is
    the encoder's noise, so that directions are ordered by signal over noise (with `start="linear"`
    variances alone are alike); else it is the deviation of z in its channel. Only for "gaussian" is
    the covariance shrunk, (1 - a) S + a tr(S)/D I.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage
    from sklearn.decomposition import PCA

    mu, logvar = mu.cpu().double(), logvar.cpu().double()
    mean = mu.mean(0)
    sigma2 = logvar.exp().mean(0)
    scale = sigma2.sqrt() if kind == "flow" else channel_scale(mu, logvar)
    x = ((mu - mean) / scale).flatten(1).numpy()  # (N, D)
    sigma2 = (sigma2 / scale**2).flatten().numpy()
    n, d = x.shape
    solver = "covariance_eigh" if n > d else "full"
    pca = PCA(min(n - 1, d), svd_solver=solver).fit(x)
    # between images, along each direction
    variance = pca.explained_variance_
    y = x @ pca.components_[: count_leading(variance, n)].T
    if kind == "gaussian":
        a = ledoit_wolf_shrinkage(x, assume_centered=True)
        variance = (1 - a) * variance
        sigma2 = sigma2 + a * x.var(0).mean()
    gaussian = Gaussian(
        shape=tuple(mean.shape),
        mean=mean.flatten().numpy(),
        scale=scale.expand_as(mean).flatten().numpy(),
        basis=pca.components_,
        stds=np.sqrt(variance),
        noise=np.sqrt(sigma2),
    )
    return gaussian, y


def channel_scale(mu: Tensor, logvar: Tensor) -> Tensor:
    """Standard deviation of z per channel, (C, 1, 1), or (C,) for a vector latent.

    The law of total variance: Var z = Var mu + E sigma^2.
    """
    variance = mu.var(0, correction=0) + logvar.exp().mean(0)
    if variance.dim() == 3:
        variance = variance.mean((1, 2), keepdim=True)
    return variance.sqrt()


def count_leading(variance: np.ndarray, n: int) -> int:
    """How many principal directions hold 95% of the variance; at most n / 4 and 64, at least 1."""
    share = np.cumsum(variance) / max(variance.sum(), 1e-30)
    d = 1 + int(np.searchsorted(share, LEADING_SHARE))
    return max(1, min(d, n // 4, LEADING_DIMS, len(variance)))


def sample_latents(
    model, n: int, sampler: str = "prior", fit_on=None, temperature: float = 1.0, seed: int = 0
) -> Tensor:
    """z (n, *latent_shape) on the model's device; see `fit_sampler` for the kinds.

    fit_on: the training images (Split or tensor); every sampler but "prior" encodes them. To draw
    twice and fit once, call `fit_sampler` and its `.sample`. With a quantised latent, "prior" makes
    all codes equally likely and "codes" is a transformer that learns their order, see
    `priors.tokens`. ValueError for an unknown sampler, one that this latent does not have, or a
    missing fit_on.
    """
    quantiser = getattr(model, "quantiser", None)
    checks.check_sampler(sampler, SAMPLERS, quantiser, fit_on)
    if sampler == "prior":
        fitted = Prior(model.latent_shape, quantiser)
    elif sampler == "codes":
        from vaekit.priors.tokens import fit_codes

        fitted = fit_codes(model, fit_on, seed=seed)
    else:
        fitted = fit_sampler(*encode_all(model, fit_on), sampler, seed)
    return fitted.sample(n, temperature, seed).to(next(model.parameters()).device)
