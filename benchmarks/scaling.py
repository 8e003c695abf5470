"""What several devices would gain, on paper: only the model's own counts are measured here.

    python benchmarks/scaling.py [chest_xray] [--share 0.15] [--step-ms 8]

Data parallel: after every step each device has sent and received the gradients of all parameters,
2 (n - 1) / n times their bytes in a ring (Patarasuk and Yuan 2009). Prints this beside the time of
the step, with its assumptions.
"""

import argparse
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vaekit.config import Config, preset
from vaekit.losses import vae_loss
from vaekit.model import VAE

from large import trunk_of_shapes  # isort: skip

BUCKET = 25 * 2**20  # bytes of gradients that DistributedDataParallel sends at a time
BACKWARD = 2 / 3  # of a step, during which gradients can already travel


class Place(NamedTuple):
    """Where it would run: makers' figures for peak speed, assumptions for latency."""

    name: str
    devices: int
    peak: float  # FLOP/s of one device, dense, in the precision vaekit would choose
    link: float  # bytes/s, one direction, between neighbours of the ring
    latency: float  # seconds of one hop, assumed


PLACES = (
    Place("2 x T4, PCIe 3 x16", 2, 65e12, 15.75e9, 20e-6),
    Place("8 x H200, NVLink 4", 8, 989e12, 450e9, 5e-6),
    Place("64 nodes of one H200, 400 Gb/s InfiniBand", 64, 989e12, 400e9 / 8, 10e-6),
)


def flops_per_image(cfg: Config) -> int:
    """FLOP of a training step, trunk and both directions included; convolutions and products
    only."""
    features, found = trunk_of_shapes(cfg), []
    for batch in (1, 2):
        with FakeTensorMode(allow_non_fake_inputs=True):
            model, x = VAE(cfg), torch.rand(batch, cfg.in_channels, *[cfg.image_size] * 2)
            with FlopCounterMode(display=False) as counter:
                vae_loss(*(model(x)[0], x), *model(x)[1:], cfg, cfg.beta, features).total.backward()
        found.append(counter.get_total_flops())
    return found[1] - found[0]


def row(place: Place, size: int, step: float) -> dict:
    """Seconds of a step and of its all-reduce, and the efficiency (speed divided by n times that of
    one device), without overlap with the backward pass and with the most overlap possible."""
    n = place.devices
    sent = 2 * (n - 1) / n * size
    hops = 2 * (n - 1) * -(-size // BUCKET)
    reduce = sent / place.link + hops * place.latency
    seen = max(0.0, reduce - BACKWARD * step)
    return {"sent": sent, "reduce": reduce,
            "worst": step / (step + reduce), "best": step / (step + seen)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", nargs="?", default="chest_xray")
    parser.add_argument("--share", type=float, default=0.15, help="of the peak, assumed")
    parser.add_argument("--step-ms", type=float, help="measured, instead of the assumption")
    given = parser.parse_args()
    cfg = preset(given.preset, profile="full")
    with FakeTensorMode():
        parameters = sum(p.numel() for p in VAE(cfg).parameters())
    size, flops = 4 * parameters, flops_per_image(cfg)
    print(f"{given.preset}: {parameters:,} parameters, {size / 1e6:.1f} MB of fp32 gradients;"
          f" {flops / 1e9:.1f} GFLOP an image and step")  # fmt: skip
    print("| where | images a device | a step | sent a device | all-reduce | efficiency |")
    print("|---|---|---|---|---|---|")
    for place in PLACES:
        for images in dict.fromkeys((cfg.batch_size // place.devices, cfg.batch_size)):
            if not images:  # more devices than images
                continue
            step = flops * images / (given.share * place.peak)
            if given.step_ms:
                step = given.step_ms / 1e3 * images / cfg.batch_size
            r = row(place, size, step)
            cells = [place.name, images, f"{1e3 * step:.2f} ms", f"{r['sent'] / 1e6:.1f} MB",
                     f"{1e3 * r['reduce']:.2f} ms",
                     f"{r['worst']:.0%} to {r['best']:.0%}"]  # fmt: skip
            print("|", *(f"{cell} |" for cell in cells))
    how = f"measured, {given.step_ms} ms at {cfg.batch_size} images" if given.step_ms else (
        f"{given.share:.0%} of the peak, assumed")  # fmt: skip
    print(f"\nstep: {how}. Latency a hop: {', '.join(f'{1e6 * p.latency:.0f} us' for p in PLACES)},"
          f" assumed. Buckets of {BUCKET // 2**20} MiB. The efficiencies: nothing overlaps; or all"
          f" of the last {BACKWARD:.0%} of the step does.")  # fmt: skip


if __name__ == "__main__":
    main()
