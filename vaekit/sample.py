"""Codes of images, images of codes, and where new codes are drawn from.

A decoder is only as good as the codes it is given. Training asks codes to look like N(0, I), the
prior. Where they do not, fit them after training and draw from the fit: here a Gaussian, in
`priors/` a mixture of Gaussians and flow matching. Source: Ghosh et al. 2020, arXiv 1903.12436.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vaekit.data import chunks
from vaekit.model import evaluating

SAMPLERS = ("prior", "gaussian", "gmm", "flow")
# directions that mixture and flow are fitted in, at most
LEADING_DIMS = 64
# of the variance of the means, where that takes fewer directions
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
    """z ~ N(0, I)."""

    shape: tuple  # of one code

    def sample(self, n: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
        """z (n, *shape) float32, CPU, the same for the same seed; temperature scales z."""
        rng = np.random.default_rng(seed)
        z = temperature * rng.standard_normal((n, *self.shape))
        return torch.from_numpy(z).float()


class UniformCodes:
    """Quantised: at every place one of the model's codes, all equally likely."""

    def __init__(self, model):
        self.quantiser = model.quantiser
        self.shape = model.latent_shape[1:]

    def sample(self, n: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
        """z (n, *latent_shape) float32, CPU; no temperature changes it."""
        rng = np.random.default_rng(seed)
        indices = torch.from_numpy(rng.integers(self.quantiser.num_codes, size=(n, *self.shape)))
        return self.quantiser.lookup(indices).cpu()


@dataclass
class Gaussian:
    """z = mean + scale * (y @ basis + noise * e), y ~ N(0, stds^2), e ~ N(0, I).

    y @ basis is how the means of images differ, e what the encoder leaves open about each.
    """

    shape: tuple  # of one code, D numbers
    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    # (r, D), the principal directions: orthonormal rows, the largest first
    basis: np.ndarray
    stds: np.ndarray  # (r,), the deviation along each
    noise: np.ndarray  # (D,)

    def sample(self, n: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
        """z (n, *shape) float32, CPU, the same for the same seed on every machine.

        temperature scales every deviation from the mean, or from a component's own mean.
        """
        rng = np.random.default_rng(seed)
        y = temperature * rng.standard_normal((n, len(self.stds)))
        e = temperature * rng.standard_normal((n, len(self.mean)))
        y = self.coordinates(y, rng)
        z = self.mean + self.scale * (y @ self.basis + self.noise * e)
        return torch.from_numpy(z).float().view(n, *self.shape)

    def coordinates(self, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Where normal numbers y (n, r) lie along the basis."""
        return y * self.stds


def check_kind(kind: str) -> None:
    if kind not in SAMPLERS:
        raise ValueError(f"sampler={kind!r} is not one of {', '.join(SAMPLERS)}")


def fit_sampler(
    mu: Tensor, logvar: Tensor, kind: str, seed: int = 0, labels: Tensor | None = None
) -> Prior | Gaussian:
    """A sampler fitted to the aggregated posterior: mu, logvar (N, *latent_shape) as encoded.

    "prior" needs no fit. "gaussian" has the full covariance, shrunk (Ledoit and Wolf 2004). "gmm"
    and "flow" put a mixture, or flow matching, in its place in the leading principal directions;
    one that gains nothing on held-out codes is the Gaussian, one that is given labels (N,) can be
    asked for a class, see `FlowMatching`. ValueError for another kind, or N < 2.
    """
    check_kind(kind)
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

    flow = fit_flow(gaussian, y, seed, labels)
    if flow is None:  # nothing is gained
        return fit_sampler(mu, logvar, "gaussian")
    return flow


def principal_gaussian(mu: Tensor, logvar: Tensor, kind: str) -> tuple[Gaussian, np.ndarray]:
    """The Gaussian of all codes, and where the means lie in its leading directions, (N, d).

    "gaussian": its covariance is shrunk, (1 - a) S + a tr(S)/D I (Ledoit and Wolf 2004). "flow":
    directions lead that the encoder is sure of, whatever their variance: where the code is white,
    as that of `start="linear"`, all variances are alike, and say nothing.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage
    from sklearn.decomposition import PCA

    mu, logvar = mu.cpu().double(), logvar.cpu().double()
    mean, scale = mu.mean(0), channel_scale(mu, logvar)
    if kind == "flow":
        scale = logvar.exp().mean(0).sqrt()
    x = ((mu - mean) / scale).flatten(1).numpy()  # (N, D)
    # E sigma^2
    noise = (logvar.exp().mean(0) / scale**2).flatten().numpy()
    n, d = x.shape
    solver = "covariance_eigh" if n > d else "full"
    pca = PCA(min(n - 1, d), svd_solver=solver).fit(x)
    variance = pca.explained_variance_
    y = x @ pca.components_[: count_leading(variance, n)].T
    if kind == "gaussian":
        a = ledoit_wolf_shrinkage(x, assume_centered=True)
        variance = (1 - a) * variance
        noise = noise + a * x.var(0).mean()
    gaussian = Gaussian(
        shape=tuple(mean.shape),
        mean=mean.flatten().numpy(),
        scale=scale.expand_as(mean).flatten().numpy(),
        basis=pca.components_,
        stds=np.sqrt(variance),
        noise=np.sqrt(noise),
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
    """How many principal directions hold 95% of the variance: at most n / 4 and 64, at least 1."""
    share = np.cumsum(variance) / max(variance.sum(), 1e-30)
    d = 1 + int(np.searchsorted(share, LEADING_SHARE))
    return max(1, min(d, n // 4, LEADING_DIMS, len(variance)))


def sample_latents(
    model, n: int, sampler: str = "prior", fit_on=None, temperature: float = 1.0, seed: int = 0
) -> Tensor:
    """z (n, *latent_shape) on the model's device; see `fit_sampler` for the kinds.

    fit_on: the training images (Split or tensor), which all but "prior" encode; to draw twice
    without fitting twice, call `fit_sampler` and its `.sample`. Of a quantised latent "prior" has
    all codes equally likely, and "codes" is a transformer that learns which follow which, see
    `priors.tokens`. ValueError for an unknown sampler, one that the latent does not have, or a
    missing fit_on.
    """
    quantiser = getattr(model, "quantiser", None)
    if sampler != "codes":
        check_kind(sampler)
    elif quantiser is None:
        raise ValueError("sampler='codes' needs quantised codes: latent='fsq' or 'vq'")
    if sampler == "prior":
        fitted = Prior(model.latent_shape) if quantiser is None else UniformCodes(model)
    elif fit_on is None:
        raise ValueError(f"sampler={sampler!r} is fitted to latents: give fit_on=data.train")
    elif sampler == "codes":
        from vaekit.priors.tokens import fit_codes

        fitted = fit_codes(model, fit_on, seed=seed)
    else:
        fitted = fit_sampler(*encode_all(model, fit_on), sampler, seed)
    return fitted.sample(n, temperature, seed).to(next(model.parameters()).device)
