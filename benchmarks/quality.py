"""Quality after a given time of training on this machine.

    python benchmarks/quality.py --train DIR --test DIR --size 64 --minutes 6 --out DIR

Trains on every image below the first folder, with schedules stretched to the minutes, and scores on
the second. Writes OUT/run (a vaekit run), OUT/quality.json and OUT/films.png. `--set norm=batch`
changes one field of the config, as the one-change rows of README.md do.
"""

import argparse
import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from vaekit import data as data_module
from vaekit import metrics, plots, sample
from vaekit.__main__ import parse_changes
from vaekit.config import Config, preset
from vaekit.data import Data, Split, batches
from vaekit.features import feature_loss
from vaekit.files.images import BadImage, decode, prepare
from vaekit.files.sources import SUFFIXES
from vaekit.judge import distances, networks
from vaekit.keep.guards import GuardedTrainer
from vaekit.keep.run import fit
from vaekit.train import epoch_order

WATCHED = 32  # training films for the validation loss of each epoch
NUM_JUDGED = 200  # N of the Fréchet distances
DIMS = 64  # principal directions of the real features
# Changes to the profile "quick" for six minutes on two cores: after two minutes the pixel terms
# gain little, so the terms for structure and texture have twice the preset's weight.
CHANGES = {"latent_channels": 64, "batch_size": 16, "ssim_weight": 1.0, "perceptual_weight": 0.23}
PHASE1_SHARE = 0.25


def load_folder(folder: Path, cfg: Config) -> Split:
    """Every image below `folder`, whatever its subfolders: CLAHE at its own size, then squashed."""
    files = sorted(p for p in folder.rglob("*")
                   if p.name.lower().endswith(SUFFIXES) and not p.name.startswith("."))  # fmt: skip

    def one(file: Path):
        try:
            return prepare(decode(file, cfg.in_channels), cfg)
        except BadImage as error:
            print(f"left out: {file}: {error}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = list(pool.map(one, files))
    good = [i for i, image in enumerate(images) if image is not None]
    if len(good) < 8:
        raise SystemExit(f"{folder} holds {len(good)} readable images; 8 are needed")
    pixels = torch.from_numpy(np.stack([images[i] for i in good]))
    names = [str(files[i].relative_to(folder)) for i in good]
    labels = torch.zeros(len(good), dtype=torch.int64)
    return Split(pixels, labels, names, names, ["all"])


def part(split: Split, n: int, seed: int = 0) -> Split:
    """`n` of its images, drawn at random."""
    rows = np.random.default_rng(seed).permutation(len(split))[:n]
    names = [split.names[i] for i in rows]
    return Split(split.images[rows], split.labels[rows], names, names, split.classes)


def seconds_per_epoch(cfg: Config, data: Data, patience: float = 12.0) -> float:
    """Seconds per epoch of training and validation, from real steps that are discarded."""
    trainer = GuardedTrainer(cfg, data, feature_loss(cfg, verbose=False))
    order, flip = epoch_order(cfg, len(data.train), 0)
    trainer.model.train()
    marks = []
    while len(marks) < 8 or len(marks) < len(order) and marks[-1] - marks[0] < patience:
        i = len(marks) * cfg.batch_size % (len(order) - cfg.batch_size + 1)
        (x,) = batches(data.train, cfg.batch_size, trainer.device, order[i : i + cfg.batch_size],
                       flip[i : i + cfg.batch_size], channels_last=cfg.channels_last)  # fmt: skip
        trainer.step(x, float(cfg.epochs_phase1))
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
    trainer.validate()
    start = time.perf_counter()
    trainer.validate()
    watching = time.perf_counter() - start
    step = (marks[-1] - marks[3]) / (len(marks) - 4)  # the first are slower
    return len(order) // cfg.batch_size * step + watching


def stretched(cfg: Config, data: Data, minutes: float) -> Config:
    """`cfg` with as many epochs as fit into the minutes; the phases keep their shares."""
    start = time.perf_counter()
    each = seconds_per_epoch(cfg, data)
    left = 60 * minutes - (time.perf_counter() - start) - 3
    epochs = max(4, int(0.95 * left / each))
    first = max(1, round(PHASE1_SHARE * epochs)) if cfg.epochs_phase1 else 0
    print(f"{each:.1f} s an epoch: {first} + {epochs - first} epochs in {minutes:g} minutes")
    return cfg.replace(epochs_phase1=first, epochs_phase2=epochs - first,
                       beta_warmup=(epochs - first) // 2, sample_every=epochs)  # fmt: skip


@torch.no_grad()
def raw_features(images, trunk) -> np.ndarray:
    """(N, 512): SqueezeNet's last layer averaged over space for greys in [0, 1] as they are.

    The rows of other implementations were judged on these inputs, without ImageNet's normalisation
    and at the films' own size. vaekit's `evaluate` normalises.
    """
    found = []
    for x in data_module.chunks(images):
        h = x.expand(-1, 3, -1, -1)
        for layer in trunk.layers:
            h = layer(h)
        found.append(h.mean((2, 3)).double().numpy())
    return np.concatenate(found)


def frechet(real: np.ndarray, other: np.ndarray) -> float:
    axes = distances.principal_axes(real, 4 * DIMS, DIMS)
    return distances.gaussian_frechet(real @ axes, other @ axes)


def score(run, data: Data, cfg: Config) -> tuple[dict, dict]:
    """(the scores in quality.json, {name: images})."""
    judge, test = networks.load_judge(), part(data.test, NUM_JUDGED)
    x = data_module.as_float(test.images)
    x_hat = sample.decode_all(run.model, sample.encode_all(run.model, test)[0])
    found = {name: values.mean().item()
             for name, values in metrics.compare_images(x_hat, x, judge).items()}  # fmt: skip
    found["sharpness_ratio"] = metrics.sharpness_ratio(x_hat, test)
    codes = sample.encode_all(run.model, data.train)
    pictures = {"real": x, "reconstructed": x_hat}
    for kind in sample.SAMPLERS:
        z = sample.fit_sampler(*codes, kind, cfg.seed).sample(len(test), seed=cfg.seed)
        pictures[kind] = sample.decode_all(run.model, z)
    if judge is not None and len(test) > DIMS:
        others = part(data.train, len(test)).images
        seen_by = {"frechet": (raw_features, judge.trunk),
                   "frechet_normalised": (networks.feature_vectors, judge.trunk)}  # fmt: skip
        if unheard := networks.load_judges(["vgg19"])[0]:  # which no loss here listens to
            seen_by["frechet_vgg19"] = networks.feature_vectors, unheard
        for key, (features, network) in seen_by.items():
            real = features(x, network)
            found[key] = {name: frechet(real, features(images, network))
                          for name, images in pictures.items() if name != "real"}  # fmt: skip
            found[key]["floor"] = frechet(real, features(others, network))
        found["best_sampler"] = min(sample.SAMPLERS, key=found["frechet"].get)
    return found, pictures


def measure(train: Path, test: Path, size: int, minutes: float, out: Path, command: str,
            **changes) -> dict:  # fmt: skip
    """Train, score, write OUT; returns the content of quality.json."""
    cfg = preset("chest_xray", profile="quick", image_size=size, **{**CHANGES, **changes})
    train, test = load_folder(train, cfg), load_folder(test, cfg)
    data = Data(train, part(train, WATCHED), test, train.classes, "folder", "",
                f"{len(train)}-{len(test)}")  # fmt: skip
    print(f"{len(train)} films to train on, {len(test)} to judge by")
    start = time.perf_counter()
    cfg = stretched(cfg, data, minutes)
    left = minutes - (time.perf_counter() - start) / 60
    run = fit(cfg, data, out, resume="never", max_minutes=left)
    spent = (time.perf_counter() - start) / 60
    found, pictures = score(run, data, cfg)
    shutil.rmtree(out / "run", ignore_errors=True)
    run.path.replace(out / "run")
    seconds = sum(r["seconds"] for r in run.history)
    result = {
        "command": command, "changes": changes, "seed": cfg.seed, "minutes": round(spent, 2),
        "epochs": len(run.history), "of": cfg.num_epochs, "n_train": len(train),
        "n_test": len(test), "n_judged": min(NUM_JUDGED, len(test)),
        "images_per_second": round(len(run.history) * len(train) / seconds, 1),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "device": run.info["device"], "precision": run.info["precision"],
        "features": run.info["features"], "torch": torch.__version__, **found,
        "config": run.cfg.to_dict(),
    }  # fmt: skip
    (out / "quality.json").write_text(json.dumps(result, indent=2) + "\n")
    figure = plots.show_rows({name: images[:8] for name, images in pictures.items()})
    figure.savefig(out / "films.png", dpi=110)
    return result


def folders_parser(description: str, minutes: float) -> argparse.ArgumentParser:
    """The arguments that every training script here has; keyword arguments of `measure`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main() -> None:
    parser = folders_parser(__doc__.split("\n")[0], minutes=6.0)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    given = vars(parser.parse_args())
    changes = parse_changes(given.pop("set"))
    result = measure(**given, command=" ".join(["python", *sys.argv]), **changes)
    print(json.dumps({k: v for k, v in result.items() if k != "config"}, indent=2))


if __name__ == "__main__":
    main()
