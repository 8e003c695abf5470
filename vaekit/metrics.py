"""Measures of single images. x, x_hat: float (B, C, H, W) in [0, 1], grey or RGB."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vaekit.data import chunks, pixels_of
from vaekit.losses import mse_per_image
from vaekit.losses import ssim_per_image as ssim

LPIPS = "squeezenet, LPIPS v0.1"


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, (B,): -10 log10(MSE), at most 100."""
    return -10 * mse_per_image(x_hat, x).clamp(min=1e-10).log10()


@torch.no_grad()
def lpips_squeeze(x_hat: Tensor, x: Tensor, judge: torch.nn.Module) -> Tensor:
    """LPIPS v0.1 on SqueezeNet, (B,), 0 for identical images.

    `judge` comes from `load_judge`. Images below 128 px are enlarged bilinearly to 128 first.
    Source: Zhang et al. 2018, arXiv 1801.03924.
    """
    return judge(at_least(x_hat.float(), 128), at_least(x.float(), 128))["lpips"]


def compare_images(x_hat: Tensor, x: Tensor, judge: torch.nn.Module | None) -> dict[str, Tensor]:
    """PSNR, SSIM and, with a judge, LPIPS of each pair: {name: (B,)}."""
    found = {"psnr": psnr(x_hat, x), "ssim": ssim(x_hat, x)}
    if judge is not None:
        found["lpips"] = lpips_squeeze(x_hat, x, judge)
    return found


def sharpness(x: Tensor) -> Tensor:
    """Variance over pixels of the 3x3 four-neighbour Laplacian of the grey image, (B,).

    Times 255^2 it equals cv2's on 0..255, except for the border, which is left out here.
    """
    x = to_grey(x.float())
    kernel = x.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    edges = F.conv2d(x, kernel.view(1, 1, 3, 3))
    return edges.flatten(1).var(1, correction=0)


def sharpness_ratio(images, real) -> float:
    """Mean sharpness of `images` divided by that of `real`: below 1 is blur, above 1.1 is noise.

    Both: a Split or (N, C, H, W), uint8 or float.
    """
    a, b = (torch.cat([sharpness(x) for x in chunks(s)]) for s in (images, real))
    return (a.mean() / b.mean()).item()


def brightness(x: Tensor) -> Tensor:
    """Mean over pixels and channels, (B,), in [0, 1]."""
    return x.float().flatten(1).mean(1)


def appearance(x: Tensor) -> dict[str, Tensor]:
    """Sharpness, brightness, contrast (standard deviation over pixels and channels, at most 0.5)
    and the darkest and brightest value of each image: {name: (B,)}."""
    pixels = x.float().flatten(1)
    return {
        "sharpness": sharpness(x),
        "brightness": brightness(x),
        "contrast": pixels.std(1, correction=0),
        "range low": pixels.amin(1),
        "range high": pixels.amax(1),
    }


@torch.no_grad()
def radial_power_spectrum(images) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies in cycles per pixel, up to 0.5; power), averaged over images and angles.

    For square images; `power_spectra` averaged over rings of width 1/side.
    """
    side = pixels_of(images).shape[-1]
    total = sum(power_spectra(x).double().sum(0) for x in chunks(images))
    total /= len(pixels_of(images))
    ring = (radii(side, side) * side).round().long().flatten()
    power = torch.bincount(ring, total.flatten()) / torch.bincount(ring)
    rings = np.arange(1, side // 2 + 1)
    return rings / side, power.numpy()[rings]


@torch.no_grad()
def octave_powers(images) -> Tensor:
    """Mean power of each image in every octave of frequency, (N, octaves), CPU: the highest first.

    images: Split or (N, C, H, W). The first octave is 1/4 to 1/2 cycles per pixel (1/2 included),
    each next one half of it, down to the last that fits into the shorter side: five at 64 px. Left
    out are the mean, one cycle per image (into which the mean leaks), and the corners beyond 1/2.
    Power is that of `power_spectra`; `octave_name` names the columns.
    """
    size = pixels_of(images).shape[2:]
    octave = (-radii(*size).log2()).floor()  # 1 above 1/4 and up to 1/2
    count = max(1, min(size).bit_length() - 2)
    rings = [octave == i + 1 for i in range(count)]
    spectra = map(power_spectra, chunks(images))
    return torch.cat([torch.stack([p[:, ring].mean(1) for ring in rings], 1) for p in spectra])


def octave_name(i: int) -> str:
    """Name of column i of `octave_powers`, in cycles per pixel: "power 1/4-1/2" for the first."""
    return f"power 1/{2 ** (i + 2)}-1/{2 ** (i + 1)}"


def power_spectra(x: Tensor) -> Tensor:
    """Power of each image at every frequency, (B, H, W), arranged as `radii`.

    The image is made grey, its mean removed, and a Hann window applied: an image does not wrap
    around, and without the window the jump between its edges leaks into all frequencies.
    Normalised, so that white noise of standard deviation s has power s^2 at every frequency.
    """
    x = to_grey(x.float())[:, 0]
    x = x - x.mean((1, 2), keepdim=True)
    hann = [torch.hann_window(n + 2)[1:-1] for n in x.shape[1:]]  # without the zeros at its ends
    window = torch.outer(*hann).to(x.device)
    return torch.fft.fft2(x * window).abs().square() / window.square().sum()


def radii(height: int, width: int) -> Tensor:
    """(H, W): frequency of each entry of a Fourier transform, in cycles per pixel."""
    return torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width))


def to_grey(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), weights of ITU-R 601 (as cv2); grey is returned as it is."""
    if x.shape[1] != 3:
        return x
    weights = x.new_tensor([0.299, 0.587, 0.114])
    return (x * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


def at_least(x: Tensor, side: int) -> Tensor:
    """Enlarged bilinearly until the shorter side has `side` pixels; larger images unchanged."""
    scale = side / min(x.shape[-2:])
    if scale <= 1:
        return x
    size = [round(s * scale) for s in x.shape[-2:]]
    return F.interpolate(x, size, mode="bilinear", align_corners=False)
