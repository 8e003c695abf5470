"""Every term of the loss, per image, and the total.

Each term returns one number per image, (B,), float32; `vae_loss` applies the reductions of the
config once. Autocast is off here, except for the features: half precision is too coarse for
sums, squares and Fourier transforms.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vaekit.config import Config

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def l1_per_image(x_hat: Tensor, x: Tensor) -> Tensor:
    """mean |x_hat - x| over pixels and channels: (B,), in [0, 1] for images in [0, 1]."""
    return (x_hat.float() - x.float()).abs().flatten(1).mean(1)


def mse_per_image(x_hat: Tensor, x: Tensor) -> Tensor:
    """mean (x_hat - x)^2 over pixels and channels: (B,), in [0, 1] for images in [0, 1]."""
    return (x_hat.float() - x.float()).square().flatten(1).mean(1)


def gaussian_windows(length: int, size: int, device: torch.device) -> Tensor:
    """(length - size + 1, length): row i is the Gaussian window over pixels i ... i + size - 1."""
    first = torch.arange(length - size + 1, device=device)[:, None]
    middle = first + (size - 1) / 2
    at = torch.arange(length, device=device) - middle
    window = torch.exp(-at.square() / (2 * SSIM_SIGMA**2)) * (at.abs() < size / 2)
    return window / window.sum(1, keepdim=True)


def gaussian_blur(images: Tensor, size: int) -> Tensor:
    """Gaussian average around each pixel over size x size, without the border: (B, C, H, W) ->
    (B, C, H - size + 1, W - size + 1). Columns first, then rows, as matrix products: several times
    faster than a convolution."""
    height, width = images.shape[-2:]
    columns = gaussian_windows(height, size, images.device)
    rows = gaussian_windows(width, size, images.device)
    return columns @ images @ rows.T


def ssim_per_image(x_hat: Tensor, x: Tensor) -> Tensor:
    """Structural similarity, (B,), 1 for identical images (Wang et al. 2004, eq. 13).

    Gaussian window 11, sigma 1.5, population variances, data range 1, no padding: equal to
    scikit-image with `gaussian_weights=True, use_sample_covariance=False`, which crops the same
    border. Below 11 px the window shrinks to the largest odd size that fits.
    """
    a, b = x_hat.float(), x.float()
    size = min(SSIM_WINDOW, *x.shape[-2:])
    size -= 1 - size % 2
    mu_a = gaussian_blur(a, size)
    mu_b = gaussian_blur(b, size)
    var_a = gaussian_blur(a * a, size) - mu_a**2
    var_b = gaussian_blur(b * b, size) - mu_b**2
    cov = gaussian_blur(a * b, size) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (luminance * structure).flatten(1).mean(1)


def spectral_per_image(x_hat: Tensor, x: Tensor) -> Tensor:
    """mean |FFT(x_hat) - FFT(x)| over frequencies: (B,). The FFT is orthonormal: noise of standard
    deviation s costs about s at every frequency."""
    gap = torch.fft.rfft2(x_hat.float() - x.float(), norm="ortho")
    # |a + ib| by hand: the small term keeps the gradient finite where both are exactly 0
    size = (gap.real.square() + gap.imag.square() + 1e-12).sqrt()
    return size.flatten(1).mean(1)


def bands(x: Tensor) -> list[Tensor]:
    """Three bands of detail, each an octave below the one before: what an image loses when it is
    halved and enlarged again (Laplacian pyramid, Burt and Adelson 1983)."""
    parts = []
    for _ in range(3):
        half = F.avg_pool2d(x, 2)
        again = F.interpolate(half, size=x.shape[-2:], mode="bilinear", align_corners=False)
        parts.append(x - again)
        x = half
    return parts


def band_energy_per_image(x_hat: Tensor, x: Tensor) -> Tensor:
    """|rms(x_hat) - rms(x)|, mean over 8x8 windows that overlap by half, sum of three bands: (B,).

    It compares how much detail there is, not where. So leaving detail out does not lower it.
    """
    gap = 0
    for a, b in zip(bands(x_hat.float()), bands(x.float()), strict=True):
        difference = rms_in_windows(a) - rms_in_windows(b)
        gap = gap + difference.abs().flatten(1).mean(1)
    return gap


def rms_in_windows(x: Tensor) -> Tensor:
    size = min(8, *x.shape[-2:])
    power = F.avg_pool2d(x.square(), size, max(size // 2, 1))
    # the small term keeps the gradient finite at 0
    return (power + 1e-8).sqrt()


def kl_elements(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of every latent element, in nats, >= 0: shape of mu.
    Source: Kingma and Welling 2014, appendix B: (mu^2 + sigma^2 - 1 - log sigma^2) / 2."""
    mu, logvar = mu.float(), logvar.float()
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def kl_per_image(mu: Tensor, logvar: Tensor) -> Tensor:
    """The KL summed over latent elements, in nats: (B,)."""
    return kl_elements(mu, logvar).flatten(1).sum(1)


def kl_with_free_bits(mu: Tensor, logvar: Tensor, free_bits: float, kind: str) -> Tensor:
    """The summed KL, (B,); an element below `free_bits` nats costs `free_bits`.

    "element" applies this to every element of every image: no gradient below the limit. "batch"
    applies it to each element's mean over the batch (Kingma et al. 2016).
    """
    kl = kl_elements(mu, logvar).flatten(1)
    if not free_bits:
        return kl.sum(1)
    if kind == "element":
        return kl.clamp(min=free_bits).sum(1)
    return kl.mean(0).clamp(min=free_bits).sum().expand(len(kl))


def calibrated_nll(x_hat: Tensor, x: Tensor, cfg: Config, floor: float = 1e-3) -> Tensor:
    """Pixel negative log-likelihood in nats per pixel, (B,), at the batch's best scale.

    Laplace with b = mean |e| for L1, Gaussian with sigma^2 = mean e^2 for MSE; at least `floor`,
    and detached, so that the gradient is that of the ELBO (Rybkin et al. 2021, sigma-VAE).
    """
    nll = torch.zeros(len(x), device=x.device)
    if cfg.l1_weight:
        l1 = l1_per_image(x_hat, x)
        b = l1.mean().detach().clamp(min=floor)
        nll = nll + cfg.l1_weight * (l1 / b + (2 * b).log())
    if cfg.mse_weight:
        mse = mse_per_image(x_hat, x)
        var = mse.mean().detach().clamp(min=floor**2)
        nll = nll + cfg.mse_weight * 0.5 * (mse / var + (2 * torch.pi * var).log())
    return nll


def local_terms(x_hat: Tensor, x: Tensor, cfg: Config) -> dict[str, Tensor]:
    """L1, MSE and 1 - SSIM at one resolution, each (B,)."""
    terms = {"l1": l1_per_image(x_hat, x), "mse": mse_per_image(x_hat, x)}
    if cfg.ssim_weight:
        terms["ssim"] = 1 - ssim_per_image(x_hat, x)
    return terms


def pixel_terms(x_hat: Tensor, x: Tensor, cfg: Config) -> dict[str, Tensor]:
    """The terms that need no network, each (B,). L1, MSE and SSIM are averaged over `num_scales`
    resolutions, each half the one before; the others use the full resolution."""
    scales = [local_terms(x_hat, x, cfg)]
    terms = {}
    if cfg.spectral_weight:
        terms["spectral"] = spectral_per_image(x_hat, x)
    if cfg.band_weight:
        terms["bands"] = band_energy_per_image(x_hat, x)
    for _ in range(cfg.num_scales - 1):
        x_hat = F.avg_pool2d(x_hat, 2)
        x = F.avg_pool2d(x, 2)
        scales.append(local_terms(x_hat, x, cfg))
    local = {name: torch.stack([scale[name] for scale in scales]).mean(0) for name in scales[0]}
    return local | terms


def term_weights(cfg: Config) -> dict[str, float]:
    """The factor of each part of the reconstruction; "nll" stands for L1 and MSE together."""
    pixels = {"nll": 1.0} if cfg.calibrated else {"l1": cfg.l1_weight, "mse": cfg.mse_weight}
    features = {"perceptual": cfg.perceptual_weight, "lpips": cfg.lpips_weight}
    detail = {"spectral": cfg.spectral_weight, "bands": cfg.band_weight}
    codes = {"rounding": cfg.commitment if cfg.latent == "vq" else 0.0}
    return {"ssim": cfg.ssim_weight} | detail | pixels | features | codes


@dataclass
class Loss:
    """`total` is minimised; `terms` are detached batch means: every part unweighted ("ssim" is
    1 - SSIM), their weighted sum "recon", and "kl" in nats, before free bits."""

    total: Tensor
    terms: dict[str, Tensor]


def vae_loss(
    x_hat: Tensor,
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    cfg: Config,
    beta: float,
    features=None,
    quantiser=None,
) -> Loss:
    """recon_weight * reconstruction + beta * KL: reduced as the config says, mean over the batch.

    x_hat, x (B, C, H, W) in [0, 1]; mu, logvar (B, *latent_shape). features: a FeatureLoss, where
    its terms have a weight. Reduction "mean" is per pixel and channel, and per latent element;
    "sum" is per image. This choice alone changes the meaning of beta by factors of thousands (see
    `beta_elbo`). quantiser: the model's, for quantised codes. Their KL is fixed, and with `VQ` the
    rounding error joins the reconstruction as "rounding", weighted by `commitment`.
    """
    x_hat, x = x_hat.float(), x.float()
    with torch.autocast(x.device.type, enabled=False):
        terms = pixel_terms(x_hat, x, cfg)
        if cfg.calibrated:
            terms["nll"] = calibrated_nll(x_hat, x, cfg)
        if quantiser is None:
            kl = kl_per_image(mu, logvar)
            charged = kl_with_free_bits(mu, logvar, cfg.free_bits, cfg.free_bits_kind)
        else:
            kl = charged = quantiser.kl(mu)
            terms["rounding"] = quantiser.distance(mu)
    if features is not None:
        terms |= features(x_hat, x)

    recon = 0
    for name, weight in term_weights(cfg).items():
        if weight and name in terms:
            recon = recon + weight * terms[name]
    num_pixels = x[0].numel()
    k_rec, k_kl = reduction_factors(num_pixels, mu[0].numel(), cfg)
    # k_rec is for the sum over pixels, recon is their mean
    scale = cfg.recon_weight * k_rec * num_pixels
    total = (scale * recon + beta * k_kl * charged).mean()

    terms |= {"recon": recon, "kl": kl, "loss": total}
    means = {name: term.detach().mean() for name, term in terms.items()}
    return Loss(total, means)


def reduction_factors(num_pixels: int, num_latents: int, cfg: Config) -> tuple[float, float]:
    """(k_rec, k_kl): the factors of the summed reconstruction and of the summed KL."""
    k_rec = 1.0 if cfg.recon_reduction == "sum" else 1 / num_pixels
    k_kl = 1.0 if cfg.kl_reduction == "sum" else 1 / num_latents
    return k_rec, k_kl


def beta_elbo(
    cfg: Config, beta: float, l1: float, mse: float, num_pixels: int, num_latents: int
) -> float:
    """This beta as a multiple of the KL's weight in the ELBO, at the current error.

    The ELBO divides a summed |e| by b = mean |e| (Laplace), and e^2 by 2 sigma^2 = 2 mean e^2
    (Gaussian). This loss multiplies them by recon_weight * k_rec * l1_weight (or mse_weight). So
    its own ELBO has beta * k_kl = recon_weight * k_rec * tau, tau = l1_weight * l1 + 2 * mse_weight
    * mse; the result is the ratio. 1 is the ELBO; far below 1 the model is an autoencoder, far
    above 1 it collapses. SSIM and features resist the KL too but are left out, so the figure
    overstates the KL's pressure.
    """
    k_rec, k_kl = reduction_factors(num_pixels, num_latents, cfg)
    tau = cfg.l1_weight * l1 + cfg.mse_weight * (2 * mse)
    # each pixel term is already divided by its own scale
    if cfg.calibrated:
        tau = cfg.l1_weight + cfg.mse_weight
    return beta * k_kl / max(cfg.recon_weight * k_rec * tau, 1e-30)


def kl_share(
    cfg: Config, beta: float, recon: float, kl: float, num_pixels: int, num_latents: int
) -> float:
    """The KL's share of the total loss at this beta, 0..1; recon and kl as in `Loss.terms`."""
    k_rec, k_kl = reduction_factors(num_pixels, num_latents, cfg)
    charged = beta * k_kl * kl
    rest = cfg.recon_weight * k_rec * num_pixels * recon
    # a calibrated reconstruction is a log-likelihood and may be negative
    return charged / max(charged + abs(rest), 1e-30)
