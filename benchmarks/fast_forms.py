"""The gain of each fast form: a whole training step with it and with its plain twin, in turns.

    python benchmarks/fast_forms.py --out benchmarks/fast_forms.json

Each row is one speed-up: most of `vaekit.fast`, the Gaussian blur of SSIM, attention without
PyTorch's fused kernel. `plain` and `fast` are medians over rounds of seconds per step. `gain` is
the median of 1 - fast / plain, the share of the step that is saved, with the lowest and the highest
round. Images are noise and the trunk's weights random, since speed does not depend on them. On a
CPU it is the processor's time of one thread, which other jobs disturb least. Ten minutes a preset.
"""

import argparse
import contextlib
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaekit import fast, losses
from vaekit.config import preset
from vaekit.data import Data
from vaekit.features import TRUNKS, FeatureLoss, Trunk
from vaekit.model import SelfAttention
from vaekit.place.device import choose_device
from vaekit.train import Trainer

BATCH = {64: 32, 128: 16}


# ---- the plain twins -----------------------------------------------------------------------------


def plain_down(x: Tensor, c_out: int) -> Tensor:
    return F.pixel_unshuffle(x, 2).unflatten(1, (c_out, -1)).mean(2)


def plain_up(x: Tensor, repeats: int) -> Tensor:
    return F.pixel_shuffle(x.repeat_interleave(repeats, 1), 2)


def strided_convolution(self: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, self.weight, self.bias, stride=self.every)


def blur_by_convolution(images: Tensor, size: int) -> Tensor:
    at = torch.arange(size, device=images.device) - (size - 1) / 2
    row = torch.exp(-at.square() / (2 * losses.SSIM_SIGMA**2))
    window = torch.outer(row, row) / row.sum() ** 2
    channels = images.shape[1]
    return F.conv2d(images, window.expand(channels, 1, size, size), groups=channels)


def fused_attention(self: SelfAttention, x: Tensor) -> Tensor:
    q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
    out = F.scaled_dot_product_attention(q, k, v)
    return x + self.project(out.transpose(1, 2).reshape(x.shape))


# form: what replaces it, [(owner, attribute, plain twin)]
PLAIN = {
    "all of fast.py": [(fast, "ENABLED", False)],
    "free shortcuts": [(fast, "free_down", plain_down), (fast, "free_up", plain_up)],
    "GroupNorm backwards": [(fast.GroupNorm, "forward", nn.GroupNorm.forward)],
    "features as they lie": [(fast, "flatten", lambda x: x.flatten(1))],
    "SSIM by matrices": [(losses, "gaussian_blur", blur_by_convolution)],
    "attention written out": [(SelfAttention, "forward", fused_attention)],
    "pointwise convolution": [(fast.PointwiseConv, "forward", strided_convolution)],
    "freed memory kept": [],
}


# ---- in a separate process -----------------------------------------------------------------------


def start(given: dict, shortcut: str, keep_memory: bool) -> str:
    """Build the step in this process; returns its precision."""
    global STEP
    torch.set_num_threads(1)
    cfg = preset(profile="full", shortcut=shortcut, **given)
    shape = cfg.batch_size, 1, cfg.image_size, cfg.image_size
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    data = Data.from_tensors(images, images, images)
    if not keep_memory:
        fast.keep_freed_memory = lambda: False
    trainer = Trainer(cfg, data, random_features())
    trainer.model.train()
    x = images.to(trainer.device).float() / 255
    x = x.contiguous(memory_format=torch.channels_last)
    STEP = lambda: trainer.step(x, cfg.epochs_phase1)  # noqa: E731
    return trainer.precision


def random_features() -> FeatureLoss:
    from torchvision.models import squeezenet1_1

    layers = squeezenet1_1(weights=None).features
    return FeatureLoss(Trunk("squeezenet", layers, TRUNKS["squeezenet"].perceptual_taps))


def now() -> float:
    """Seconds of this process on a CPU, of the clock on a GPU."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(plain: str, steps: int) -> float:
    """Seconds per step, after one untimed step, with the form `plain` replaced by its twin."""
    with contextlib.ExitStack() as stack:
        for owner, name, twin in PLAIN.get(plain, []):
            stack.enter_context(mock.patch.object(owner, name, twin))
        STEP()
        begin = now()
        for _ in range(steps):
            STEP()
        return (now() - begin) / steps


# ---- rounds in turns -----------------------------------------------------------------------------


def measure(size: int, given: argparse.Namespace) -> list[dict]:
    """One row per form: every round takes the step as it is and the step with the plain twin."""
    spawn = multiprocessing.get_context("spawn")
    # freed memory that is kept cannot be given back, and 1x1 shortcuts are another network
    kinds = {"usual": ("free", True), "memory": ("free", False), "conv": ("conv", True)}
    pools = {kind: ProcessPoolExecutor(1, spawn) for kind in kinds}
    batch = given.batch or BATCH[size]
    values = {"name": given.preset, "image_size": size, "batch_size": batch}
    values |= {"precision": given.precision}
    for kind, pool in pools.items():
        precision = pool.submit(start, values, *kinds[kind]).result()
    found = {form: {"plain": [], "fast": []} for form in PLAIN}
    if size >= 128:
        del found["pointwise convolution"]  # its twin writes beyond its memory there
    for _ in range(given.rounds):
        for form, times in found.items():
            ours = pools["conv" if form.startswith("pointwise") else "usual"]
            theirs = pools["memory"] if form == "freed memory kept" else ours
            times["plain"].append(theirs.submit(seconds, form, given.steps).result())
            times["fast"].append(ours.submit(seconds, "", given.steps).result())
    for pool in pools.values():
        pool.shutdown()
    return [row(form, times, size, batch, precision) for form, times in found.items()]


def row(form: str, times: dict, size: int, batch: int, precision: str) -> dict:
    gains = [1 - a / b for a, b in zip(times["fast"], times["plain"], strict=True)]
    return {
        "form": form,
        "size": size,
        "batch": batch,
        "precision": precision,
        "plain": statistics.median(times["plain"]),
        "fast": statistics.median(times["fast"]),
        "gain": {"median": statistics.median(gains), "low": min(gains), "high": max(gains)},
    }


def processor() -> str:
    """The processor's name, according to Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(BATCH))
    parser.add_argument("--batch", type=int, help="default: 32 at 64 pixels, 16 at 128")
    parser.add_argument("--preset", default="chest_xray")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    print("| form | size | plain, ms | fast, ms | gain |\n|---|---|---|---|---|")
    for size in given.sizes:
        for r in measure(size, given):
            gain = "{median:.1%} ({low:.1%} to {high:.1%})".format(**r["gain"])
            times = f"{1e3 * r['plain']:.1f} | {1e3 * r['fast']:.1f}"
            print(f"| {r['form']} | {size} | {times} | {gain} |", flush=True)
            rows.append(r)
    run = {
        "command": " ".join(["python", *sys.argv]),
        "processor": processor(),
        "device": choose_device().type,
        "torch": torch.__version__,
        "threads": 1,
        "rounds": given.rounds,
        "steps": given.steps,
        "rows": rows,
    }
    if given.out:  # beside the runs of other processors and precisions
        runs = json.loads(given.out.read_text()) if given.out.exists() else []
        given.out.write_text(json.dumps([*runs, run], indent=1) + "\n")


if __name__ == "__main__":
    main()
