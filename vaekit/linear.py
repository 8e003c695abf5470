"""The best linear VAE, in closed form: probabilistic PCA. A network has to beat it.

p(z) = N(0, I) and p(x|z) = N(m + W z, sigma2 I). With lambda and v the eigenvalues and eigenvectors
of the training images' covariance, the likelihood is highest where column i of W is
v_i sqrt(lambda_i - sigma2), for the k largest, and sigma2 is the mean of the others. The posterior
is then a Gaussian, with the same variances sigma2 / lambda_i for every image. A direction with
lambda <= sigma2 carries no information: it is idle, and its code follows the prior. Sources:
Tipping and Bishop 1999; as a VAE, Lucas et al. 2019, arXiv 1911.02469.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaekit import checks, fast
from vaekit.data import chunks, model_input, pixels_of

# numbers (128 MB); with more, images are fitted at 64 pixels
LARGEST_BASIS = 2**25
SMALL = 64
# squared pixels; 0 would make every posterior a point
LEAST_SIGMA2 = 1e-8


class BaseVAE(nn.Module):
    """What every VAE does with its own `encode` and `decode`: LinearVAE here, and `model.VAE`."""

    def reparameterize(self, mu: Tensor, logvar: Tensor, generator=None) -> Tensor:
        """z = mu + sigma * eps, eps ~ N(0, I): a sample that lets gradients through."""
        eps = torch.empty_like(mu).normal_(generator=generator)
        return mu + (0.5 * logvar).exp() * eps

    def forward(self, x: Tensor, sample=True, decoder_only=False) -> tuple[Tensor, Tensor, Tensor]:
        """x_hat, mu, logvar; without `sample` z is the mean. `decoder_only`: no gradient for the
        encoder."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not decoder_only):
            mu, logvar = self.encode(x)
            z = self.reparameterize(mu, logvar) if sample else mu
        return self.decode(z), mu, logvar

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """decode(mean of q(z|x)): the reconstruction without sampling noise."""
        mu, _ = self.encode(x)
        return self.decode(mu)


class LinearVAE(BaseVAE):
    """A VAE without training. It reconstructs as PCA does, each direction shrunk by
    1 - sigma2 / lambda.

    `latent_shape` is (k,). Images of another size than `fit_size` are shrunk before they are
    encoded, and enlarged after they are decoded. `sigma2` is in squared pixels, in [0, 1].
    """

    def __init__(self, mean: Tensor, basis: Tensor, variances: Tensor, sigma2: float, size: int):
        super().__init__()
        self.latent_shape = (len(basis),)
        self.image_shape = (len(mean), size, size)
        self.size = size
        self.sigma2 = nn.Parameter(torch.tensor(float(sigma2)), requires_grad=False)
        # (C, fit_size, fit_size)
        self.mean = nn.Parameter(mean, requires_grad=False)
        # (k, D), orthonormal rows
        self.basis = nn.Parameter(basis, requires_grad=False)
        # (k,), largest first
        self.variances = nn.Parameter(variances, requires_grad=False)

    @classmethod
    def blank(cls, num_latents: int, channels: int, size: int) -> "LinearVAE":
        """A model without data, every direction idle, to be filled by `load_state_dict`."""
        side = min(size, SMALL)
        basis = torch.zeros(num_latents, channels * side**2)
        mean = torch.full((channels, side, side), 0.5)
        return cls(mean, basis, torch.zeros(num_latents), 1.0, size)

    @property
    def idle(self) -> Tensor:
        """(k,) bool: directions whose variance is not above the noise."""
        return self.variances <= self.sigma2

    def coordinates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates along the basis (B, k), and the centred images (B, D)."""
        if x.shape[-1] != self.mean.shape[-1]:
            x = shrink(x, self.mean.shape[-1])
        centred = (x - self.mean).flatten(1)
        return centred @ self.basis.T, centred

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, S, S), uint8 or in [0, 1] -> mu, logvar (B, k) of the exact posterior, float32.

        ValueError for other shapes or ranges.
        """
        y, _ = self.coordinates(model_input(self, x))
        # idle: mu 0, variance 1
        variances = self.variances.clamp(min=self.sigma2)
        mu = y * (variances - self.sigma2).sqrt() / variances
        logvar = (self.sigma2 / variances).log()
        return mu.float(), logvar.float().expand_as(mu)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, k) -> images float32 (B, C, S, S), clipped to [0, 1]. ValueError for others."""
        checks.check_shape("codes", z, self.latent_shape)
        weights = (self.variances - self.sigma2).clamp(min=0).sqrt()
        z = z.to(weights.dtype)
        x = (z * weights @ self.basis).view(-1, *self.mean.shape) + self.mean
        if x.shape[-1] != self.size:
            x = F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        return x.clamp(0, 1).float()

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B,), of images of `fit_size`, without clipping."""
        y, centred = self.coordinates(x)
        active = ~self.idle
        y = y[:, active]
        variances = self.variances[active]
        num_pixels = centred.shape[1]
        rest = centred.square().sum(1) - y.square().sum(1)
        log_det = variances.log().sum() + (num_pixels - len(variances)) * self.sigma2.log()
        distance = (y.square() / variances).sum(1) + rest / self.sigma2
        return -0.5 * (num_pixels * math.log(2 * math.pi) + log_det + distance)


def linear_vae(
    images,
    num_latents: int = 256,
    sigma2: float | None = None,
    mirror: bool = True,
    fit_size: int | None = None,
) -> LinearVAE:
    """The LinearVAE fitted to `images`, a Split or (N, C, S, S) tensor, uint8 or float in [0, 1].

    sigma2: the noise variance in squared pixels; None: estimated as the mean variance of the
    directions that are left out. mirror: every image counts twice, once mirrored. fit_size: larger
    images are shrunk to it; None: no shrinking, but 64 pixels where the basis would have more than
    2^25 numbers. Images are streamed. Many large images are fitted by subspace iteration (Halko et
    al. 2011, arXiv 0909.4061). Covariances divide by N - 1, as scikit-learn does. Warns where there
    are no more images than directions: the basis then holds the images themselves. ValueError for
    N < 2.
    """
    images = pixels_of(images)
    channels, size = images.shape[1], images.shape[-1]
    n = len(images) * (2 if mirror else 1)
    checks.check_directions(n, num_latents)
    if fit_size is None:
        fit_size = size if num_latents * channels * size**2 <= LARGEST_BASIS else SMALL
    fit_size = min(fit_size, size)
    source = Source(images, fit_size, mirror)
    num_pixels = channels * fit_size**2
    variances, basis = principal_directions(source, num_latents)
    if sigma2 is None:
        left = source.total_variance - variances.sum().item()
        sigma2 = left / max(num_pixels - len(variances), 1)
    missing = num_latents - len(variances)  # directions without data: idle
    variances = F.pad(variances, (0, missing)).clamp(min=0)
    basis = F.pad(basis, (0, 0, 0, missing))
    mean = source.mean.view(channels, fit_size, fit_size)
    return LinearVAE(mean, basis.float(), variances.float(), max(sigma2, LEAST_SIGMA2), size)


class Source:
    """The images as centred rows, in chunks, with their mean and total variance."""

    def __init__(self, images: Tensor, size: int, mirror: bool):
        self.images = images
        self.size = size
        self.mirror = mirror
        self.count = len(images) * (2 if mirror else 1)
        self.mean = 0.0
        total = sum(rows.double().sum(0) for rows in self.rows())
        self.mean = (total / self.count).float()
        squares = sum(rows.double().square().sum().item() for rows in self.rows())
        self.total_variance = squares / (self.count - 1)

    def rows(self) -> Iterator[Tensor]:
        """Chunks (B, D) float32, minus the mean."""
        for x in chunks(self.images, 256):
            x = shrink(x, self.size)
            if self.mirror:
                x = torch.cat([x, x.flip(-1)])
            yield x.flatten(1) - self.mean


def shrink(x: Tensor, size: int) -> Tensor:
    """To size x size pixels; images that have this size are returned unchanged."""
    if x.shape[-1] == size:
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)


def principal_directions(source: Source, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues, and eigenvectors as rows (k, D), of the (D, D) covariance."""
    if fast.ENABLED:
        return fast.principal_directions(source, k)
    covariance = sum(rows.T @ rows for rows in map(Tensor.double, source.rows()))
    values, vectors = torch.linalg.eigh(covariance / (source.count - 1))
    return values.flip(0)[:k], vectors.flip(1)[:, :k].T
