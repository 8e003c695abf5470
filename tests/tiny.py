"""A configuration that trains in a second, and smooth random shapes to train it on."""

import torch

import vaekit
from vaekit.data import Data

SMALL = {
    "widths": [8, 16], "attention": [], "latent_channels": 4, "image_size": 16, "stem_kernel": 3,
    "perceptual_weight": 0.0, "precision": "fp32", "epochs_phase1": 2, "epochs_phase2": 4,
}  # fmt: skip


def small(**changes):
    return vaekit.preset("chest_xray", **{**SMALL, **changes})


def blobs(n: int, seed: int) -> torch.Tensor:
    """uint8 (n, 1, 16, 16): smooth random shapes that a small VAE can learn."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 1, 4, 4, generator=g)
    return (torch.nn.functional.interpolate(coarse, 16, mode="bicubic").clamp(0, 1) * 255).byte()


def shapes() -> Data:
    return Data.from_tensors(blobs(40, 1), blobs(12, 2), blobs(12, 3))


def weights(run) -> torch.Tensor:
    return torch.cat([p.flatten() for p in run.model.parameters()])


def rows(history: list[dict]) -> list[dict]:
    """A history without the seconds, which no two runs share."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]
