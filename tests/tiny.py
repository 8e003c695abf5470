"""A configuration that trains in a second, and smooth random shapes to train it on."""

import torch

import vaekit
from vaekit.data import Data

SMALL = dict(widths=[8, 16], attention=[], latent_channels=4, image_size=16, stem_kernel=3)
SMALL |= dict(perceptual_weight=0.0, precision="fp32", epochs_phase1=2, epochs_phase2=4)
# a critic acts in the second half
JUDGED = dict(critic_share=0.5, critic_from=0.5, epochs_phase1=0, epochs_phase2=8)


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


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return a == b


def same(run, other) -> bool:
    """Weights, optimiser, averages and histories are equal to the last bit."""
    a, b = (torch.load(r.path / "last.pt", weights_only=True) for r in (run, other))
    parts = ("model", "ema", "optimizer", "step", "plateau", "band", "best_loss", "bad_epochs")
    if not all(equal(a[part], b[part]) for part in parts):
        return False
    return torch.equal(weights(run), weights(other)) and rows(run.history) == rows(other.history)
