"""Measurements that need a GPU, in parts, the most important first; `on_gpu.sh` runs them all.

        python benchmarks/gpu.py precisions  a step in every precision: seconds, memory, losses
        python benchmarks/gpu.py t4          two epochs in fp16 in a T4's memory, the second resumed
        python benchmarks/gpu.py convs       a step compared with its convolutions alone
        python benchmarks/gpu.py sharp       `sharp` on real films, beside the best PCA
        python benchmarks/gpu.py recipe      ... and `chest_xray`, with the trunk that is available
        python benchmarks/gpu.py pack        packs the films of VAEKIT_DATA and the weights

Each part adds its results to OUT/gpu.json when it ends. The first three need no real weights
(`gpu.py weights` makes random ones): time and memory do not depend on them. Without a pack, the
bundled films are used. `--tiny`: the profile smoke, to check on a CPU that everything runs.
"""

import argparse
import copy
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torchvision import models

import vaekit
from vaekit import plots, sample
from vaekit.config import Config, preset
from vaekit.data import SPLITS, Data, as_float, load_data
from vaekit.features import TRUNKS, WeightsMissing, feature_loss
from vaekit.files.weights import find_weights, weight_places
from vaekit.judge import evaluation
from vaekit.keep.checkpoint import write_json
from vaekit.keep.guards import GuardedTrainer
from vaekit.keep.run import Run, fit
from vaekit.place.device import choose_device, choose_precision

from own_data import shortened  # isort: skip
from peers import from_memory  # isort: skip
from throughput import Ours, peak_mb, synchronize  # isort: skip

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SYSTEMS = ("sharp", "chest_xray")
T4 = 15e9 - 0.6e9  # bytes that a T4 has for tensors, less CUDA's context, assumed
FEW = 512  # films of the two epochs in fp16
SIDE = 128  # pixels of the films in a pack
MOST = {"val": 300, "test": 400}  # films of a pack; to train on, as many as fit
PIECE = 15_000_000  # bytes of a file of weights: larger ones do not come back


def weights(folder: Path) -> None:
    """Weight files with random values, under the names that `features.find_weights` looks for."""
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


def system(name: str, given, **changes) -> Config:
    """The preset in full, at 128 pixels unless asked otherwise, or tiny."""
    if not given.tiny:
        asked = {"image_size": given.side, "features": given.features, "batch_size": given.batch}
        changes = asked | changes
    return preset(name, profile="smoke" if given.tiny else "full", **changes)


def pack(folder: Path, megabytes: float) -> None:
    """FOLDER/films.npz: as many films as fit, decoded and equalised for the preset `chest_xray`,
    lossless; and the weights from VAEKIT_WEIGHTS beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    data = load_data(preset("chest_xray", profile="full", image_size=SIDE))
    quality = [cv2.IMWRITE_WEBP_QUALITY, 101]  # above 100: lossless
    found, room = {}, 1e6 * megabytes
    for name in reversed(SPLITS):  # test, val, and the rest is to train on
        images = getattr(data, name).images
        order = np.random.default_rng(0).permutation(len(images))[: MOST.get(name)]
        files = []
        for i in order:
            file = cv2.imencode(".webp", images[i, 0].numpy(), quality)[1]
            room -= len(file)
            if room < 0:
                break
            files.append(file)
        found[name], found[f"{name}_sizes"] = np.concatenate(files), [len(f) for f in files]
        print(f"{name}: {len(files):,} of {len(images):,} films")
    np.savez(folder / "films.npz", source=data.source, **found)
    for place in weight_places()[:1]:
        for file in place.glob("*.pth"):
            shutil.copy(file, folder)


def films(cfg: Config, given, most: int | None = None) -> Data:
    """The films of the pack, else the bundled ones; at most `most` for training."""
    if given.pack is None or not given.pack.is_file():
        data = load_data(cfg, verbose=False)
        splits, source = [getattr(data, name).images for name in SPLITS], data.source
    else:
        with np.load(given.pack) as found:
            source, splits = str(found["source"]), []
            for name in SPLITS:
                files = np.split(found[name], found[f"{name}_sizes"].cumsum()[:-1])
                images = [cv2.imdecode(file, cv2.IMREAD_GRAYSCALE) for file in files]
                if cfg.image_size != SIDE:
                    size = (cfg.image_size, cfg.image_size)
                    images = [cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in images]
                splits.append(torch.from_numpy(np.stack(images))[:, None])
    data = Data.from_tensors(splits[0][:most], *splits[1:])
    data.source = source
    return data


def timed(work, steps: int) -> float:
    """Seconds per call, the mean of `steps` calls."""
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
    """A function that runs only those convolutions and their gradients."""
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
    cfg = system("chest_xray", given)
    engine = Ours(cfg, films(cfg, given))
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


# ---- every precision, and a T4's -----------------------------------------------------------------


def take_step(trainer: GuardedTrainer, images, epoch: float, losses: list) -> None:
    losses.append(trainer.step(next(images), epoch)["loss"])


def seconds_a_step(cfg: Config, data: Data, steps: int) -> dict:
    """Seconds per step, also late in a run, where a critic may have joined; first and last losses;
    memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer = GuardedTrainer(cfg, data, feature_loss(cfg, verbose=False))
    trainer.model.train()
    images = from_memory(cfg, data, trainer.device, cfg.channels_last)
    losses, found = [], {}
    for when, epoch in ("step", float(cfg.epochs_phase1)), ("late step", 0.9 * cfg.num_epochs):
        step = partial(take_step, trainer, images, epoch, losses)
        timed(step, 3)
        found[f"{when} seconds"] = timed(step, steps)
    first, last = losses[0].item(), losses[-1].item()
    return found | {"losses": [first, last], "skipped": int(trainer.skipped),
                    "batch": cfg.batch_size, "peak_mb": peak_mb()}  # fmt: skip


def precisions(given) -> dict:
    found = {}
    for name in SYSTEMS:
        for precision in DTYPES:
            cfg = system(name, given, precision=precision)
            found[f"{name} {precision}"] = seconds_a_step(cfg, films(cfg, given, FEW), given.steps)
    return found


def t4(given) -> dict:
    """fp16 with its scaler, as on Kaggle's GPUs and in their memory; a run that is resumed."""
    if torch.cuda.is_available():
        share = T4 / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    found = {}
    for name in SYSTEMS:
        phases = dict(epochs_phase1=1, epochs_phase2=1) if name == "chest_xray" else {}
        cfg = system(name, given, precision="fp16", **(phases or {"epochs_phase2": 2}))
        data, trainers = films(cfg, given, FEW), []
        for epoch in range(2):
            trainers.append(GuardedTrainer(cfg, data, feature_loss(cfg, verbose=False)))
            if epoch:
                trainers[1].load_state_dict(trainers[0].state_dict())
            trainers[-1].run_epoch()
        last = trainers[-1]
        found[name] = {"history": last.history, "scale": last.scaler.get_scale(),
                       "batch": cfg.batch_size, "parts": last.parts, "films": len(data.train),
                       "peak_mb": peak_mb()}  # fmt: skip
    return found


# ---- whole trainings on real films ---------------------------------------------------------------


def trunk_there(names: tuple) -> str:
    """The first of these trunks whose weights are on this machine, or "none"."""
    for name in names:
        try:
            find_weights(name, download=False)
            return name
        except WeightsMissing:
            pass
    return "none"


def trained(name: str, given, trunks: tuple) -> dict:
    """The preset trained for at most these minutes, scored beside the best linear VAE."""
    changes = {"features": trunk_there(trunks)}
    cfg = system(name, given, **changes)
    data = films(cfg, given)
    whole = cfg.num_epochs
    start = time.perf_counter()
    if not given.tiny:
        changes |= dict(profile="full", image_size=SIDE)
        cfg = shortened(cfg, data, 0.9 * given.minutes, changes)
    with tempfile.TemporaryDirectory() as out:
        run = fit(cfg, data, out=out, resume="never", max_minutes=given.minutes)
    seconds = time.perf_counter() - start
    store_weights(run, given.out, name)
    pca = vaekit.linear_vae(data.train, min(cfg.latent_channels, len(data.train) - 1))
    pictures = {}
    for kind in ("prior", "gmm"):
        z = vaekit.sample_latents(run.model, len(data.test), kind, fit_on=data.train)
        pictures[kind] = sample.decode_all(run.model, z)
    scores = {name: evaluation.evaluate(run.model, data.test, cfg, data.val, pictures),
              "pca": evaluation.evaluate(pca, data.test, cfg, data.val)}  # fmt: skip
    x = as_float(data.test.images[:8])
    device = next(run.model.parameters()).device
    rows = {"real": x, name: run.model.reconstruct(x.to(device)), "pca": pca.reconstruct(x)}
    plots.show_rows(rows | pictures, size=1.6).savefig(given.out / f"{name}.png", dpi=110)
    history = run.history
    return {"seconds": seconds, "films": len(data.train), "from": data.source,
            "trunk": changes["features"], "epochs": len(history), "of": whole,
            "epoch_seconds": statistics.median(row["seconds"] for row in history),
            "finite": math.isfinite(history[-1]["val_loss"]), "last": history[-1],
            "scores": scores, "config": cfg.to_dict()}  # fmt: skip


def store_weights(run: Run, folder: Path, name: str) -> None:
    """name.0.pt, name.1.pt, ...: together the averaged weights, in half precision."""
    pieces, size = [{}], 0
    for key, value in run.model.state_dict().items():
        value = value.cpu().half() if value.is_floating_point() else value.cpu()
        if pieces[-1] and size + value.nbytes > PIECE:
            pieces.append({})
            size = 0
        pieces[-1][key] = value
        size += value.nbytes
    for i, piece in enumerate(pieces):
        torch.save(piece, folder / f"{name}.{i}.pt")


def sharp(given) -> dict:
    """SqueezeNet trains if available: then VGG-19, which no loss used, can judge."""
    return trained("sharp", given, ("squeezenet", "vgg16", "vgg19"))


def recipe(given) -> dict:
    """The published trunk is VGG-16; if it is missing, the nearest one replaces it, by name."""
    return trained("chest_xray", given, ("vgg16", "vgg19", "squeezenet"))


PARTS = {f.__name__: f for f in (precisions, t4, convs, sharp, recipe)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=[*PARTS, "weights", "pack"])
    parser.add_argument("--steps", type=int, default=50, help="that are timed")
    parser.add_argument("--side", type=int, default=SIDE, help="pixels")
    parser.add_argument("--features", help="the trunk; default: the preset's")
    parser.add_argument("--batch", type=int, help="default: the preset's")
    parser.add_argument("--minutes", type=float, default=4.0, help="of a whole training")
    parser.add_argument("--pack", type=Path, help="films.npz, as `pack` writes it")
    parser.add_argument("--megabytes", type=float, default=38.0, help="of films in a pack")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    given = parser.parse_args()
    if given.part == "weights":
        return weights(given.out)
    if given.part == "pack":
        return pack(given.out, given.megabytes)
    given.out.mkdir(parents=True, exist_ok=True)
    device = choose_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found = {"device": name, "torch": torch.__version__, "cpus": os.cpu_count(),
             "precision": choose_precision("auto", device),
             "command": " ".join(["python", *sys.argv])} | PARTS[given.part](given)  # fmt: skip
    print(json.dumps({k: v for k, v in found.items() if k not in ("scores", "config")}, indent=1))
    file = given.out / "gpu.json"
    others = json.loads(file.read_text()) if file.exists() else {}
    write_json(file, others | {given.part: found})


if __name__ == "__main__":
    main()
