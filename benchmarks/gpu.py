"""The questions that need a GPU, a part each; `on_gpu.sh` asks them all.

    python benchmarks/gpu.py convs       how near is a step to its convolutions alone?
    python benchmarks/gpu.py variants    what do layout, torch.compile and CUDA graphs bring?
    python benchmarks/gpu.py recipe      how long does chest_xray take whole, on 5,000 films?
    python benchmarks/gpu.py memory      does celeba256 at its batch fit into 24 GB?

Films are the bundled ones over and over, or noise, and where the trunk's weights are not at hand
it has random ones (`python benchmarks/gpu.py weights`): time and memory do not depend on them.
On a CPU all of it runs too, to see that it does.
"""

import argparse
import copy
import gc
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torchvision import models

from vaekit import fast
from vaekit.config import Config, preset
from vaekit.data import Data, load_data
from vaekit.features import TRUNKS, feature_loss
from vaekit.keep.guards import GuardedTrainer
from vaekit.keep.run import fit
from vaekit.place.device import choose_device, choose_precision
from vaekit.train import Trainer

from peers import from_memory  # isort: skip
from throughput import Ours, peak_mb, synchronize  # isort: skip

CARD = 24e9 - 0.6e9  # bytes of the card that `memory` plays, less CUDA's context, assumed
EPOCHS, COUNT = (50, 100), 5000  # of the recipe
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def weights(folder: Path) -> None:
    """Files as `features.find_weights` looks for, their values random."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("vgg16", "squeezenet"):
        spec = TRUNKS[name]
        with torch.device("meta"):  # shapes only: filling what is thrown away takes seconds
            layers = getattr(models, spec.builder)(weights=None).features
        values = {}
        for key, value in layers.state_dict().items():
            empty = torch.empty(value.shape)
            values[f"features.{key}"] = (
                nn.init.zeros_(empty) if key.endswith("bias") else nn.init.kaiming_normal_(empty)
            )
        torch.save(values, folder / spec.url_file)


def films(cfg: Config, count: int) -> Data:
    """`count` films to train on: the bundled ones again and again, or noise in colour."""
    if cfg.in_channels == 3:
        shape = 3, cfg.image_size, cfg.image_size
        few = [torch.randint(0, 256, (n, *shape), dtype=torch.uint8) for n in (8, 8)]
        return Data.from_tensors(
            torch.randint(0, 256, (count, *shape), dtype=torch.uint8), *few)  # fmt: skip
    data = load_data(cfg, verbose=False)
    rows = torch.arange(count) % len(data.train)
    return Data.from_tensors(data.train.images[rows], data.val.images, data.test.images)


def timed(work, steps: int) -> float:
    """Seconds of one call, the mean of `steps`."""
    synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        work()
    synchronize()
    return (time.perf_counter() - start) / steps


# ---- the convolutions alone ----------------------------------------------------------------------


def conv_calls(engine: Ours) -> list[tuple]:
    """(convolution, shape of its input, whether that wants a gradient) of each call in a step."""
    calls, hooks = [], []
    for root in (engine.trainer.raw, engine.trainer.features):
        for module in root.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                hooks.append(module.register_forward_pre_hook(
                    lambda m, x: calls.append((m, x[0].shape, x[0].requires_grad))))  # fmt: skip
    engine.run(1)
    for hook in hooks:
        hook.remove()
    return calls


def bare(calls: list[tuple], device: torch.device, dtype: torch.dtype):
    """A function that runs those convolutions and their gradients, and nothing else."""
    layout, jobs = {"memory_format": torch.channels_last}, []
    for conv, shape, wants in calls:
        twin = copy.deepcopy(conv).to(dtype).to(**layout)
        x = torch.randn(shape, device=device, dtype=dtype).to(**layout).requires_grad_(wants)
        inputs = [p for p in (x, *twin.parameters()) if p.requires_grad]
        with torch.no_grad():
            jobs.append((twin, x, inputs, torch.randn_like(twin(x))))

    def run() -> None:
        for twin, x, inputs, gradient in jobs:
            with torch.set_grad_enabled(bool(inputs)):
                y = twin(x)
            if inputs:
                torch.autograd.grad(y, inputs, gradient)

    return run


def convs(given) -> dict:
    cfg = preset("chest_xray", profile="full", image_size=given.size, batch_size=given.batch)
    engine = Ours(cfg, films(cfg, 8 * cfg.batch_size))
    engine.run(3)
    dtype = DTYPES[engine.trainer.precision]
    calls = conv_calls(engine)
    alone = bare(calls, engine.trainer.device, dtype)
    alone()
    found = {"convolutions": len(calls), "seconds": {"step": [], "bare": []}}
    for _ in range(5):  # in turns
        found["seconds"]["step"].append(timed(engine.step, given.steps))
        found["seconds"]["bare"].append(timed(alone, given.steps))
    step = statistics.median(found["seconds"]["step"])
    only = statistics.median(found["seconds"]["bare"])
    return found | {"share": only / step, "images_per_s": cfg.batch_size / step}


# ---- layout, compilation, graphs -----------------------------------------------------------------


def through_nchw(self, x):
    """GroupNorm in NCHW, copies between the layouts around it."""
    y = nn.GroupNorm.forward(self, x.contiguous())
    return y.contiguous(memory_format=torch.channels_last)


def compiled(trainer: Trainer, backend: str, mode: str | None) -> None:
    options = {"backend": backend, **({"mode": mode} if backend == "inductor" else {})}
    trainer.model = torch.compile(trainer.model, **options)
    trainer.features = torch.compile(trainer.features, **options)


def variant(name: str, given) -> dict:
    """Seconds until three steps are done, and of a step after that."""
    cfg = preset("chest_xray", profile="full", image_size=given.size, batch_size=given.batch,
                 channels_last="NCHW" not in name or "norm" in name)  # fmt: skip
    own = fast.GroupNorm.forward
    if "norm" in name:
        fast.GroupNorm.forward = through_nchw
    try:
        engine = Ours(cfg, films(cfg, 8 * cfg.batch_size))
        if "compiled" in name:
            compiled(engine.trainer, given.backend, "reduce-overhead" if "graphs" in name else None)
        warm = timed(lambda: engine.run(3), 1)
        return {"variant": name, "warm_seconds": warm, "step_seconds": timed(
            engine.step, given.steps), "peak_mb": peak_mb()}  # fmt: skip
    except RuntimeError as error:  # a compiler that is not there
        return {"variant": name, "failed": f"{type(error).__name__}: {error}"[:300]}
    finally:
        fast.GroupNorm.forward = own
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()


def variants(given) -> dict:
    """Each, and the seconds of the whole recipe with its warm-up counted."""
    names = ("as it is", "NCHW", "norm through NCHW", "compiled", "compiled, CUDA graphs")
    steps = sum(EPOCHS) * (COUNT // given.batch)
    rows = [variant(name, given) for name in names]
    for row in rows:
        if "failed" not in row:
            row["recipe_seconds"] = row["warm_seconds"] + (steps - 3) * row["step_seconds"]
    return {"steps_of_the_recipe": steps, "variants": rows}


# ---- a whole training, and the largest preset ----------------------------------------------------


def recipe(given) -> dict:
    """fit() from its first line to its last, checkpoints and samples included."""
    one, two = given.epochs
    cfg = preset("chest_xray", profile="full", image_size=given.size, batch_size=given.batch,
                 epochs_phase1=one, epochs_phase2=two)  # fmt: skip
    data = films(cfg, given.count)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        run = fit(cfg, data, out=out, resume="never")
    seconds = time.perf_counter() - start
    last = run.history[-1]
    return {"seconds": seconds, "films": len(data.train), "epochs": [one, two],
            "epoch_seconds": [row["seconds"] for row in run.history],
            "val_psnr": last["val_psnr"], "finite": math.isfinite(last["val_loss"])}  # fmt: skip


def steps_of(cfg: Config, data: Data, steps: int) -> dict:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer = GuardedTrainer(cfg, data, feature_loss(cfg))
    trainer.model.train()
    images = from_memory(cfg, data, trainer.device, cfg.channels_last)
    for _ in range(steps):
        trainer.step(next(images), float(cfg.epochs_phase1))
    cuda = torch.cuda.is_available()
    reserved = torch.cuda.max_memory_reserved() / 1e6 if cuda else None
    return {"peak_mb": peak_mb(), "reserved_mb": reserved, "parts": trainer.parts}


def memory(given) -> dict:
    """The preset's own batch with all memory there is; then with 24 GB of it, where a step that
    does not fit is taken in parts, as `fit` does."""
    cfg = preset("celeba256", profile="full", batch_size=given.memory_batch)
    if not torch.cuda.is_available():
        cfg = cfg.replace(image_size=64, widths=cfg.widths[:4], profile="quick")
    data, found = films(cfg, cfg.batch_size), {"batch": cfg.batch_size}
    found["all"] = steps_of(cfg, data, given.steps)
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        share = CARD / torch.cuda.get_device_properties(0).total_memory
        if share < 1:
            torch.cuda.set_per_process_memory_fraction(share)
        found["24 GB"] = steps_of(cfg, data, given.steps)
    return found


PARTS = {"convs": convs, "variants": variants, "recipe": recipe, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=[*PARTS, "weights"])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--memory-batch", type=int, help="of celeba256; else its own")
    parser.add_argument("--steps", type=int, default=50, help="that are timed")
    parser.add_argument("--count", type=int, default=COUNT, help="films of the recipe")
    parser.add_argument("--epochs", type=int, nargs=2, default=EPOCHS, help="of its two phases")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    given = parser.parse_args()
    if given.part == "weights":
        return weights(given.out)
    device = choose_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found = {"part": given.part, "device": name, "torch": torch.__version__,
             "precision": choose_precision("auto", device), "cpus": os.cpu_count(),
             "command": " ".join(["python", *sys.argv])} | PARTS[given.part](given)  # fmt: skip
    print(json.dumps(found, indent=1))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{given.part}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
