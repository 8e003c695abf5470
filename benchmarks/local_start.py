"""Can a linear start be local, so that a spatial latent could begin there?

    python benchmarks/local_start.py --seconds 60 --out benchmarks/local_start.json

Four linear codes of 256 numbers for films of 64 pixels, measured on test films: directions of the
whole image; 16 numbers for each of 4x4 patches, with one basis for all or one per place; and a pair
of convolutions over overlapping windows of 32x32, which start at the patches' basis and are
trained.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from fast_forms import processor
from torch import Tensor

import vaekit
from vaekit.data import as_float
from vaekit.metrics import psnr, ssim

SIDE, PATCH, NUMBERS = 64, 16, 16  # pixels, pixels, numbers a patch


def cut(x: Tensor) -> Tensor:
    """(N, 1, 64, 64) -> (N, 16 places, 256 pixels)."""
    return F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)


def joined(patches: Tensor) -> Tensor:
    return F.fold(patches.transpose(1, 2), SIDE, PATCH, stride=PATCH)


def leading(rows: Tensor) -> Tensor:
    """(256, 16): the directions in which the rows vary most."""
    return torch.linalg.eigh(rows.T @ rows)[1].flip(1)[:, :NUMBERS]


def lapped(train: Tensor, test: Tensor, basis: Tensor, seconds: float) -> Tensor:
    """Reconstructions by two convolutions with windows that overlap by half."""
    encoder = F.pad(basis.T.reshape(NUMBERS, 1, PATCH, PATCH), (8, 8, 8, 8))
    weights = [encoder.clone().requires_grad_(), encoder.clone().requires_grad_()]
    optimizer = torch.optim.Adam(weights)

    def through(x: Tensor) -> Tensor:
        code = F.conv2d(x, weights[0], stride=PATCH, padding=8)
        return F.conv_transpose2d(code, weights[1], stride=PATCH, padding=8)

    start = time.perf_counter()
    while (share := (time.perf_counter() - start) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = 3e-3 * max(1 - share, 0.02)
        x = train[torch.randint(len(train), (64,))]
        loss = (through(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return through(test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    data = vaekit.load_data(vaekit.preset("chest_xray", profile="quick"))
    train, test = (as_float(split.images) for split in (data.train, data.test))
    train = torch.cat([train, train.flip(-1)])
    mean = train.mean(0)
    x, new = cut(train - mean), cut(test - mean)
    shared = leading(x.flatten(0, 1))
    places = [leading(x[:, i]) for i in range(x.shape[1])]
    own = torch.stack([new[:, i] @ b @ b.T for i, b in enumerate(places)], 1)
    pictures = {
        "whole image": vaekit.linear_vae(data.train, 256).reconstruct(test),
        "patches, one basis": joined(new @ shared @ shared.T) + mean,
        "patches, a basis a place": joined(own) + mean,
        "overlapping convolutions": lapped(train - mean, test - mean, shared, given.seconds) + mean,
    }
    rows = {}
    for name, made in pictures.items():
        made = made.clamp(0, 1)
        rows[name] = {
            "psnr": psnr(made, test).mean().item(),
            "ssim": ssim(made, test).mean().item(),
        }
        print(name, {k: round(v, 3) for k, v in rows[name].items()})
    facts = {"command": "python benchmarks/local_start.py", "seconds": given.seconds, "seed": 0}
    facts |= {"data": data.source, "train": len(data.train), "n": len(test)}
    facts |= {"processor": processor()}
    if given.out:
        given.out.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
