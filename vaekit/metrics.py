"""What is measured image by image."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vaekit.data import chunks, pixels_of
from vaekit.features import FeatureLoss
from vaekit.losses import mse_per_image, ssim_per_image

PSNR_CAP = 100.0  # dB, for identical images
LPIPS = "squeezenet, LPIPS v0.1"


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,): -10 log10(mean squared error), at most 100."""
    return -10 * mse_per_image(x_hat, x).clamp(min=10 ** (-PSNR_CAP / 10)).log10()


def ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Structural similarity, (B,), 1 for identical images: `losses.ssim_per_image`."""
    return ssim_per_image(x_hat, x)


@torch.no_grad()
def lpips_squeeze(x_hat: Tensor, x: Tensor, judge: FeatureLoss, batch_size: int = 32) -> Tensor:
    """LPIPS v0.1 on SqueezeNet, (B,), 0 for identical images, in chunks of `batch_size`.

    `judge` comes from `load_judge`. Images below 128 px are enlarged bilinearly to 128 first.
    Source: Zhang et al. 2018, arXiv 1801.03924.
    """
    pairs = [at_least(images.float(), 128).split(batch_size) for images in (x_hat, x)]
    return torch.cat([judge(a, b)["lpips"] for a, b in zip(*pairs, strict=True)])


def to_grey(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), weights of ITU-R 601 (as cv2); grey is returned as it is."""
    if x.shape[1] != 3:
        return x
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def sharpness(x: Tensor) -> Tensor:
    """Variance over pixels of the 3x3 four-neighbour Laplacian of the grey image, (B,).

    Pixels in [0, 1]: times 255^2 it is cv2's on 0..255, but for the border, left out here.
    """
    kernel = x.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).float().view(1, 1, 3, 3)
    edges = F.conv2d(to_grey(x.float()), kernel)
    return edges.flatten(1).var(1, correction=0)


def brightness(x: Tensor) -> Tensor:
    """Mean over pixels and channels, (B,), in [0, 1]."""
    return x.float().flatten(1).mean(1)


def appearance(x: Tensor) -> dict[str, Tensor]:
    """Sharpness, brightness, contrast (standard deviation over pixels and channels, at most 0.5)
    and the darkest and brightest value of each image: {name: (B,)}."""
    pixels = x.float().flatten(1)
    return {"sharpness": sharpness(x), "brightness": brightness(x),
            "contrast": pixels.std(1, correction=0), "range low": pixels.amin(1),
            "range high": pixels.amax(1)}  # fmt: skip


def compare_images(x_hat: Tensor, x: Tensor, judge: FeatureLoss | None) -> dict[str, Tensor]:
    """PSNR, SSIM and, with a judge, LPIPS of each pair: {name: (B,)}."""
    found = {"psnr": psnr(x_hat, x), "ssim": ssim(x_hat, x)}
    return found | ({"lpips": lpips_squeeze(x_hat, x, judge)} if judge is not None else {})


def collect(results: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Per-image results of many batches -> {name: (N,) float32 on the CPU}."""
    found: dict[str, list[float]] = {}
    for result in results:
        for name, values in result.items():
            # numbers, not tensors: thousands of small tensors between large ones that come and go
            # tear the heap to pieces, 25 kB an image at 64 px
            found.setdefault(name, []).extend(values.float().tolist())
    return {name: torch.tensor(values) for name, values in found.items()}


def sharpness_ratio(images, real) -> float:
    """Mean sharpness of `images` over that of `real`: below 1 is blur, above 1.1 is noise."""
    means = [collect({"s": sharpness(x)} for x in chunks(s))["s"].mean() for s in (images, real)]
    return (means[0] / means[1]).item()


@torch.no_grad()
def radial_power_spectrum(images, batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies in cycles per pixel, up to 0.5; power), averaged over images and angles.

    Grey, mean removed, Hann window (a film's edges do not wrap around) and normalised, so that
    white noise of deviation s has the power s^2 at every frequency. Rings are 1/side wide.
    """
    height, width = pixels_of(images).shape[-2:]
    window = torch.outer(*(torch.hann_window(n + 2)[1:-1] for n in (height, width)))
    total = torch.zeros(height, width, dtype=torch.float64)
    for x in chunks(images, batch_size):
        x = to_grey(x)[:, 0]
        spectrum = torch.fft.fft2((x - x.mean((1, 2), keepdim=True)) * window)
        total += spectrum.abs().square().sum(0).double()
    total /= len(pixels_of(images)) * window.square().sum()
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    ring = (radius * max(height, width)).round().long().flatten()
    power = torch.bincount(ring, total.flatten()) / torch.bincount(ring)
    last = max(height, width) // 2
    return np.arange(1, last + 1) / max(height, width), power[1 : last + 1].numpy()


def at_least(x: Tensor, side: int) -> Tensor:
    """Enlarged bilinearly so that the shorter side has `side` pixels; larger images unchanged."""
    scale = side / min(x.shape[-2:])
    if scale <= 1:
        return x
    size = [round(s * scale) for s in x.shape[-2:]]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
