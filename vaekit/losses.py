"""Every term of the loss, per image, and the total.

Each term returns one number per image, (B,), float32; the reductions of the config are applied
once, in `vae_loss`. Autocast is off in here: sums, squares and Fourier transforms in half
precision lose what the loss is about.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vaekit.config import Config
from vaekit.features import FeatureLoss

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


def l1_per_image(x_hat: Tensor, x: Tensor) -> Tensor:
    """mean |x_hat - x| over pixels and channels: (B,), in [0, 1] for images in [0, 1]."""
    return (x_hat.float() - x.float()).abs().flatten(1).mean(1)


def mse_per_image(x_hat: Tensor, x: Tensor) -> Tensor:
    """mean (x_hat - x)^2 over pixels and channels: (B,), in [0, 1] for images in [0, 1]."""
    return (x_hat.float() - x.float()).square().flatten(1).mean(1)


def _blur_matrix(length: int, size: int, like: Tensor) -> Tensor:
    """(length - size + 1, length): each row the Gaussian window at one position."""
    first = torch.arange(length - size + 1, device=like.device)[:, None]
    at = torch.arange(length, device=like.device) - first - (size - 1) / 2
    window = torch.exp(-at.square() / (2 * SSIM_SIGMA**2)) * (at.abs() < size / 2)
    return window / window.sum(1, keepdim=True)


def ssim_per_image(x_hat: Tensor, x: Tensor) -> Tensor:
    """Structural similarity, (B,), 1 for identical images (Wang et al. 2004, eq. 13).

    Gaussian window 11, sigma 1.5, population variances, data range 1, no padding: equal to
    scikit-image with `gaussian_weights=True, use_sample_covariance=False`, which crops the same
    border. Below 11 px the window shrinks to the largest odd size that fits.
    """
    x_hat, x = x_hat.float(), x.float()
    size = min(SSIM_WINDOW, *x.shape[-2:])
    size -= 1 - size % 2
    rows = _blur_matrix(x.shape[-2], size, x)
    columns = _blur_matrix(x.shape[-1], size, x).T

    def blur(t: Tensor) -> Tensor:  # two matrix products: several times faster than convolving
        return rows @ t @ columns

    with torch.no_grad():
        mu_b, bb = blur(x), blur(x * x)
    mu_a, aa, ab = blur(x_hat), blur(x_hat * x_hat), blur(x_hat * x)
    var_a, var_b, cov = aa - mu_a**2, bb - mu_b**2, ab - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (luminance * structure).flatten(1).mean(1)


def spectral_per_image(x_hat: Tensor, x: Tensor) -> Tensor:
    """mean |FFT(x_hat) - FFT(x)| over frequencies: (B,). Orthonormal, so noise of deviation s
    costs about s at every frequency, and missing fine detail costs what it weighs."""
    gap = torch.fft.rfft2(x_hat.float() - x.float(), norm="ortho")
    # |a + ib| by hand: the gradient of abs() at exactly 0 is NaN-safe with the small term
    return (gap.real.square() + gap.imag.square() + 1e-12).sqrt().flatten(1).mean(1)


def kl_elements(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of every latent element, in nats, >= 0: shape of mu.
    Source: Kingma and Welling 2014, appendix B: (mu^2 + sigma^2 - 1 - log sigma^2) / 2."""
    mu, logvar = mu.float(), logvar.float()
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def kl_per_image(mu: Tensor, logvar: Tensor) -> Tensor:
    """The KL summed over latent elements, in nats: (B,)."""
    return kl_elements(mu, logvar).flatten(1).sum(1)


def kl_with_free_bits(mu: Tensor, logvar: Tensor, free_bits: float, kind: str) -> Tensor:
    """The summed KL, (B,), where an element below `free_bits` nats costs `free_bits`.

    "element" clamps every element of every image (no gradient below the floor); "batch" clamps
    the batch average of each element (Kingma et al. 2016), which leaves single images free.
    """
    kl = kl_elements(mu, logvar).flatten(1)
    if not free_bits:
        return kl.sum(1)
    if kind == "element":
        return kl.clamp(min=free_bits).sum(1)
    floored = kl.mean(0).clamp(min=free_bits)
    return floored.sum().expand(len(kl))


def calibrated_nll(x_hat: Tensor, x: Tensor, cfg: Config, floor: float = 1e-3) -> Tensor:
    """Pixel negative log-likelihood in nats per pixel, (B,), its scale at the batch's optimum.

    Laplace with b = mean |e| for L1, Gaussian with sigma^2 = mean e^2 for MSE, floored and
    detached, so that its gradient is the ELBO's own (Rybkin et al. 2021, sigma-VAE).
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


def pixel_terms(x_hat: Tensor, x: Tensor, cfg: Config) -> dict[str, Tensor]:
    """The terms that need no network, each (B,), averaged over `num_scales` halvings."""
    terms: dict[str, list[Tensor]] = {}
    for scale in range(cfg.num_scales):
        if scale:
            x_hat, x = F.avg_pool2d(x_hat, 2), F.avg_pool2d(x, 2)
        terms.setdefault("l1", []).append(l1_per_image(x_hat, x))
        terms.setdefault("mse", []).append(mse_per_image(x_hat, x))
        if cfg.ssim_weight:
            terms.setdefault("ssim", []).append(1 - ssim_per_image(x_hat, x))
        if scale == 0 and cfg.spectral_weight:
            terms["spectral"] = [spectral_per_image(x_hat, x)]
    return {name: torch.stack(values).mean(0) for name, values in terms.items()}


@dataclass
class Loss:
    """`total` is what is minimised; `terms` are detached batch means of every part, unweighted."""

    total: Tensor
    terms: dict[str, Tensor]


def vae_loss(x_hat: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, cfg: Config, beta: float,
             features: FeatureLoss | None = None) -> Loss:  # fmt: skip
    """recon_weight * reconstruction + beta * KL, each reduced as the config says, batch mean.

    x_hat, x (B, C, H, W) in [0, 1]; mu, logvar (B, *latent_shape). "mean" divides the
    reconstruction by the pixels and the KL by the latent elements, "sum" does not: that choice
    alone changes what a given beta means by a factor of thousands (see `beta_elbo`).
    """
    with torch.autocast(x.device.type, enabled=False):
        x_hat, x = x_hat.float(), x.float()
        terms = pixel_terms(x_hat, x, cfg)
        weights = {"ssim": cfg.ssim_weight, "spectral": cfg.spectral_weight}
        if cfg.calibrated:
            terms["nll"], weights["nll"] = calibrated_nll(x_hat, x, cfg), 1.0
        else:
            weights |= {"l1": cfg.l1_weight, "mse": cfg.mse_weight}
        kl = kl_per_image(mu, logvar)
        charged = kl_with_free_bits(mu, logvar, cfg.free_bits, cfg.free_bits_kind)
    if features is not None:
        terms |= features(x_hat, x)
        weights |= {"perceptual": cfg.perceptual_weight, "lpips": cfg.lpips_weight}
    recon = sum(w * terms[name] for name, w in weights.items() if w and name in terms)
    k_rec, k_kl = reduction_factors(x[0].numel(), mu[0].numel(), cfg)
    per_image = cfg.recon_weight * k_rec * x[0].numel() * recon + beta * k_kl * charged
    total = per_image.mean()
    terms = {name: value.detach().mean() for name, value in terms.items()}
    terms |= {"recon": recon.detach().mean(), "kl": kl.detach().mean(), "loss": total.detach()}
    return Loss(total, terms)


def reduction_factors(num_pixels: int, num_latents: int, cfg: Config) -> tuple[float, float]:
    """(k_rec, k_kl): what the summed reconstruction and the summed KL are multiplied by."""
    k_rec = 1.0 if cfg.recon_reduction == "sum" else 1 / num_pixels
    k_kl = 1.0 if cfg.kl_reduction == "sum" else 1 / num_latents
    return k_rec, k_kl


def beta_elbo(cfg: Config, beta: float, l1: float, mse: float, num_pixels: int,
              num_latents: int) -> float:  # fmt: skip
    """This beta as a multiple of the KL weight in the ELBO itself, at the current error.

    beta * k_kl / (recon_weight * k_rec * tau), tau = l1_weight * l1 + 2 * mse_weight * mse:
    pixel errors of scale b = mean|e| (Laplace) or sigma^2 = mean e^2 (Gaussian) enter the true
    log-likelihood divided by b or 2 sigma^2, each at its optimum. 1 is the ELBO, far below 1
    an autoencoder, far above 1 a collapse. SSIM and feature terms also resist the KL and are
    left out, so the figure overstates its pressure.
    """
    k_rec, k_kl = reduction_factors(num_pixels, num_latents, cfg)
    # a calibrated scale divides each pixel term by itself: tau is then the sum of its weights
    l1, two_mse = (1.0, 1.0) if cfg.calibrated else (l1, 2 * mse)
    tau = cfg.l1_weight * l1 + cfg.mse_weight * two_mse
    return beta * k_kl / max(cfg.recon_weight * k_rec * tau, 1e-30)


def kl_share(cfg: Config, beta: float, recon: float, kl: float, num_pixels: int,
             num_latents: int) -> float:  # fmt: skip
    """The KL's part of the total loss at this beta, 0..1; recon and kl as in `Loss.terms`."""
    k_rec, k_kl = reduction_factors(num_pixels, num_latents, cfg)
    charged, rest = beta * k_kl * kl, cfg.recon_weight * k_rec * num_pixels * recon
    # a calibrated reconstruction is a log-likelihood and may be negative
    return charged / max(charged + abs(rest), 1e-30)
