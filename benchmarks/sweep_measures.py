"""The numbers that `sweep.py` stores for each trained model."""

from typing import Any

import torch
from torch import Tensor

from vaekit import metrics
from vaekit.data import as_float, chunks
from vaekit.judge import networks
from vaekit.judge.distances import NEAREST, gaussian_frechet, precision_recall, principal_axes
from vaekit.judge.health import diagnose
from vaekit.lessons.sweeps import SHOWN, explained
from vaekit.sample import decode_all, encode_all, sample_latents


def variety(images: Tensor) -> float:
    """Mean absolute difference between two images of the set, over pixels and pairs, in [0, 1]."""
    return torch.pdist(images.flatten(1), 1).mean().item() / images[0].numel()


def checkerboard(images) -> float:
    """Power at periods of 2 and 4 pixels, along rows and columns, divided by that of neighbouring
    frequencies: about 1 in a picture without a grid, else more.

    images: Split or (N, C, H, W), sides divisible by 4, 32 px at least. Geometric means.
    """
    x = torch.cat([metrics.to_grey(part)[:, 0] for part in chunks(images)])
    x = x - x.mean((1, 2), keepdim=True)
    ratios = []
    for lines in (x, x.transpose(1, 2)):
        n = lines.shape[2]
        spectrum = torch.fft.rfft(lines * torch.hann_window(n), dim=2)
        power = spectrum.abs().square().mean((0, 1)).double()
        for k in (n // 2, n // 4):  # a Hann window spreads a line over one bin either side
            near = [power[j] for j in (k - 4, k - 3, k + 3, k + 4) if j < len(power)]
            ratios.append(power[k].log() - torch.stack(near).log().mean())
    return torch.stack(ratios).mean().exp().item()


@torch.no_grad()
def measure(model, data, seed: int = 0) -> tuple[dict[str, Any], Tensor]:
    """(numbers of one model, (2 * SHOWN, C, H, W) reconstructions and prior samples).

    Reconstructions are of the test films, from the mean; N prior samples for N test films. Ratios
    are to the real test films. `prior_excess` is the samples' Fréchet distance from the test films
    on SqueezeNet (on pixels without its weights), minus that of the training films, `floor`.
    """
    real = as_float(data.test.images)
    mu, logvar = encode_all(model, real)
    noise = torch.Generator().manual_seed(seed)
    x_hat = decode_all(model, mu)
    x_noisy = decode_all(model, model.reparameterize(mu, logvar, noise))
    prior = decode_all(model, sample_latents(model, len(real), seed=seed))
    found = diagnose(model, data.test, seed)
    judge = networks.load_judge()
    numbers = {k: v.mean().item() for k, v in metrics.compare_images(x_hat, real, judge).items()}
    looks = metrics.appearance(x_hat)
    numbers |= {
        "mse": (x_hat - real).square().mean().item(),
        "explained": explained(x_hat, real),
        "psnr_sampled": metrics.psnr(x_noisy, real).mean().item(),
        "sharpness": metrics.sharpness_ratio(x_hat, real),
        "prior_sharpness": metrics.sharpness_ratio(prior, real),
        "lattice": checkerboard(x_hat),
        "prior_lattice": checkerboard(prior),
        "prior_variety": variety(prior) / variety(real),
        **{k.replace("range ", ""): v.mean().item() for k, v in looks.items() if k != "sharpness"},
        **_distances(prior, data, judge),
        "verdict": found.verdict,
    }
    wanted = ("kl", "active_share", "idle_share", "sigma", "gap_share", "mmd_share", "noise_price")
    numbers |= {name: found.numbers[name] for name in wanted}
    power = [metrics.radial_power_spectrum(s)[1] for s in (real, x_hat, prior)]
    numbers |= {
        "spectrum": (power[1] / power[0]).tolist(),
        "prior_spectrum": (power[2] / power[0]).tolist(),
    }
    return numbers, torch.cat([x_hat[:SHOWN], prior[:SHOWN]])


def _distances(prior: Tensor, data, judge) -> dict[str, float]:
    trunk, n = judge and judge.trunk, len(data.test)
    drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    others = data.train.images[drawn[:n]]
    real, others, prior = (networks.feature_vectors(x, trunk) for x in (data.test, others, prior))
    axes = principal_axes(real, len(real))
    floor, sampled = (gaussian_frechet(real @ axes, x @ axes) for x in (others, prior))
    precision, _, _, coverage = precision_recall(real, prior, min(NEAREST, n // 4))
    return {
        "prior_excess": sampled - floor,
        "floor": floor,
        "prior_precision": precision,
        "prior_coverage": coverage,
    }
