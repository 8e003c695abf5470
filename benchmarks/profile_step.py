"""Where the time of a training step goes: vaekit's, and the plain one beside it.

    python benchmarks/profile_step.py --size 128 --batch 32
    python benchmarks/profile_step.py --size 128 --batch 8 --ops 20

Marks are set where a part of the step begins, forwards and backwards; the time between two marks
belongs to the first one's part. CUDA events on a GPU, the clock elsewhere. `--ops` adds the
operations that take most time, by torch.profiler.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from vaekit.config import preset
from vaekit.data import load_data
from vaekit.place import device

from peers import PlainStep, build  # isort: skip
from throughput import Ours  # isort: skip

PARTS = ("data", "encoder", "decoder", "trunk", "losses", "optimiser")


class Clock:
    """Marks in time: the time between two marks belongs to the first one's part."""

    def __init__(self, device: torch.device):
        self.cuda, self.marks = device.type == "cuda", []

    def mark(self, part: str) -> None:
        now = time.perf_counter()
        if self.cuda:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self.marks.append((part, now))

    def seconds(self) -> dict[str, float]:
        if self.cuda:
            torch.cuda.synchronize()
        spent = defaultdict(float)
        for (part, start), (_, end) in zip(self.marks, self.marks[1:], strict=False):
            spent[part] += start.elapsed_time(end) / 1e3 if self.cuda else end - start
        return {part: spent[part] for part in PARTS}

    def watch(self, part: str, module: nn.Module, first=None, last=None) -> None:
        """`part` from the module's beginning to its end in both directions, then the losses.
        Backwards its `last` layer begins and its `first` one ends, else the module itself."""
        module.register_forward_pre_hook(lambda *_: self.mark(part))
        module.register_forward_hook(lambda *_: self.mark("losses"))
        (last or module).register_full_backward_pre_hook(lambda *_: self.mark(part))
        if part != "encoder":  # after it comes nothing but the clipping
            (first or module).register_full_backward_hook(lambda *_: self.mark("losses"))


def set_marks(engine: Ours | PlainStep, clock: Clock) -> None:
    """At the data, the networks, the trunk, and where clipping begins."""
    ours = isinstance(engine, Ours)
    trunk = engine.trainer.features.trunk if ours else engine.loss.trunk
    clock.watch("encoder", engine.network.encoder)
    clock.watch("decoder", engine.network.decoder)
    clock.watch("trunk", trunk, trunk.layers[0], trunk.layers[-1])  # hooks know no dict of outputs
    films, clip = engine.films, torch.nn.utils.clip_grad_norm_

    def marked():
        while True:
            clock.mark("data")
            x = next(films)
            clock.mark("losses")
            yield x

    def clipped(*arguments, **options):
        clock.mark("optimiser")
        return clip(*arguments, **options)

    engine.films, torch.nn.utils.clip_grad_norm_ = marked(), clipped


def seconds_of(engine, steps: int, warm: int = 3) -> dict[str, float]:
    """Seconds of each part, mean over `steps`."""
    clock, clip = Clock(device.choose_device()), torch.nn.utils.clip_grad_norm_
    set_marks(engine, clock)
    engine.run(warm)
    clock.marks.clear()
    engine.run(steps)
    clock.mark("end")
    torch.nn.utils.clip_grad_norm_ = clip
    return {part: spent / steps for part, spent in clock.seconds().items()}


def operations(engine, most: int) -> str:
    """torch.profiler's table of one step, the `most` expensive operations first."""
    cuda = torch.cuda.is_available()
    engine.run(1)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=kinds) as found:
        engine.run(1)
    by = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return found.key_averages().table(sort_by=by, row_limit=most, max_name_column_width=48)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", default="", help="a folder; default: the one load_data finds")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--features", default="squeezenet", help="the trunk")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2, help="of the plain step")
    parser.add_argument("--ops", type=int, default=0, help="so many operations, by torch.profiler")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cfg = preset("chest_xray", profile="full", image_size=given.size, features=given.features,
                 batch_size=given.batch, data_path=given.films)  # fmt: skip
    data, rows = load_data(cfg), []
    print("| step | ms | " + " | ".join(PARTS) + " |\n|---" + "|---" * (len(PARTS) + 1) + "|")
    for name in ("vaekit", "plain"):
        engine = Ours(cfg, data) if name == "vaekit" else build(name, cfg, data, given.workers)
        table = operations(engine, given.ops) if given.ops else ""
        spent = seconds_of(engine, given.steps)
        total = sum(spent.values())
        cells = [f"{value / total:.0%}" for value in spent.values()]
        print("|", " | ".join([name, f"{1e3 * total:.1f}", *cells]), "|")
        print(table, end="\n" * bool(table))
        rows.append({"name": name, "seconds": spent, "size": given.size, "batch": given.batch,
                     "device": device.choose_device().type, "features": cfg.features,
                     "torch": torch.__version__, "threads": torch.get_num_threads(),
                     "command": " ".join(["python", *sys.argv])})  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
