"""Training speed in images per second, here and in other libraries.

    python benchmarks/throughput.py --sizes 64 128 --out benchmarks/throughput.json

Full training steps, losses and optimiser included, of vaekit and of its peers (`peers.py`) on the
same films, batch, latent size and loss terms, in turns. A peer that is not installed is named:
`pip install -r benchmarks/requirements.txt` brings them, into an environment of their own.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch

from vaekit.config import Config, preset
from vaekit.data import load_data
from vaekit.features import feature_loss
from vaekit.files.sources import SUFFIXES
from vaekit.keep.guards import GuardedTrainer
from vaekit.place.device import choose_device, choose_precision

from fast_forms import processor  # isort: skip
from peers import ALIKE, build, from_memory, size_of  # isort: skip

HOW = {
    "vaekit": "{precision}, {layout}, films kept as bytes",
    "plain": "fp32, NCHW, read and equalised by {workers} workers",
    "monai": "fp32, NCHW, films kept as bytes",
    "diffusers": "fp32, NCHW, films kept as bytes",
    "pythae": "fp32, NCHW, its trainer and loader, films kept as floats",
    "monai bf16": "autocast, NCHW, films kept as bytes",
    "diffusers bf16": "autocast, NCHW, films kept as bytes",
}


class Ours:
    """vaekit's step, as `fit` takes it, clipping, averaged weights and logged terms included."""

    def __init__(self, cfg: Config, data):
        self.trainer = GuardedTrainer(cfg, data, feature_loss(cfg))
        self.trainer.model.train()
        self.network = self.trainer.raw
        self.films = from_memory(cfg, data, self.trainer.device, cfg.channels_last)

    def step(self) -> None:
        self.trainer.step(next(self.films), float(self.trainer.cfg.epochs_phase1))

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()


def enlarge(source: Path, target: Path, side: int) -> None:
    """A copy of the films below `source`, each enlarged until its shorter side has `side` pixels.

    For machines with small copies only: these files take as long to read as the originals. The
    added noise, two grey levels, brings Kermany's films at 970 pixels to the originals' 0.2 MB
    each.
    """

    def one(i: int) -> None:
        film = cv2.imread(str(files[i]), cv2.IMREAD_GRAYSCALE)
        scale = side / min(film.shape)
        film = cv2.resize(film, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        noisy = film + np.random.default_rng(i).normal(0, 2, film.shape)
        file = target / files[i].relative_to(source).with_suffix(".jpeg")
        file.parent.mkdir(parents=True, exist_ok=True)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
        cv2.imwrite(str(file), noisy.clip(0, 255).astype(np.uint8), quality)

    files = sorted(p for p in source.rglob("*") if p.name.lower().endswith(SUFFIXES))
    with ThreadPoolExecutor() as pool:
        list(pool.map(one, range(len(files))))


def start(name: str, cfg: Config, workers: int) -> dict[str, int]:
    """Build the engine `name` in this process, which has no other; returns its network's size."""
    global ENGINE
    data = load_data(cfg, verbose=False)
    ENGINE = Ours(cfg, data) if name == "vaekit" else build(name, cfg, data, workers)
    return size_of(ENGINE.network, cfg)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(steps: int, warm: int = 4) -> float:
    """Seconds for `steps` after `warm` untimed ones, which also empty the workers' queue."""
    ENGINE.run(warm)
    synchronize()
    start = time.perf_counter()
    ENGINE.run(steps)
    synchronize()
    return time.perf_counter() - start


def peak_mb() -> float:
    """The most memory this process has held: the GPU's, else resident (10^6 bytes)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(cfg: Config, names: list[str], given: argparse.Namespace) -> list[dict]:
    """One row per engine, with its description and speed; one process each, rounds in turns."""
    spawn, rows = multiprocessing.get_context("spawn"), {}
    # one process each: memory and threads of one do not affect another
    pools = {name: ProcessPoolExecutor(1, spawn) for name in names}
    for name, pool in list(pools.items()):
        try:
            size = pool.submit(start, name, cfg, given.workers).result()
            rows[name] = {"name": name, "size": cfg.image_size, "batch": cfg.batch_size, **size}
        except ImportError as error:
            print(f"{name} cannot be imported: {error}")
            pools.pop(name).shutdown()
    rates = {name: [] for name in pools}
    for _ in range(given.rounds):  # in turns: what slows the machine down meets them all
        for name, pool in pools.items():
            spent = pool.submit(seconds, given.steps).result()
            rates[name].append(cfg.batch_size * given.steps / spent)
    for name, pool in pools.items():
        found = rates[name]
        rows[name]["images_per_s"] = {
            "median": statistics.median(found), "low": min(found), "high": max(found)}  # fmt: skip
        rows[name]["peak_mb"] = round(pool.submit(peak_mb).result(), 1)
        pool.shutdown()
    return list(rows.values())


def times_as_fast(a: dict, b: dict) -> float | None:
    """Median of a divided by median of b; None if they differ no more than one engine's rounds do,
    or if there is only one round."""
    spread = max(rate["high"] - rate["low"] for rate in (a, b))
    told_apart = 0 < spread < abs(a["median"] - b["median"])
    return a["median"] / b["median"] if told_apart else None


def compare(rows: list[dict]) -> None:
    """Add to each row its comparison with the first, ours, and print it."""
    first = rows[0]
    for row in rows:
        rate, shares = row["images_per_s"], [row[k] / first[k] for k in ("parameters", "macs")]
        row["alike"] = all(abs(share - 1) <= ALIKE for share in shares)
        row["ours_is"] = ratio = times_as_fast(first["images_per_s"], rate)
        cells = [row["size"], row["name"],
                 f"{rate['median']:.1f} ({rate['low']:.1f} to {rate['high']:.1f})",
                 "" if row is first else f"{ratio:.2f}" if ratio else "not told apart",
                 f"{row['peak_mb']:,.0f}", f"{shares[0]:.2f}",
                 f"{shares[1]:.2f}{'' if row['alike'] else ' NOT ALIKE'}", row["how"]]  # fmt: skip
        print("|", *(f"{cell} |" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", default="", help="a folder; default: the one load_data finds")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--engines", nargs="+", choices=HOW, default=list(HOW))
    parser.add_argument("--features", default="squeezenet", help="the trunk")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shorter-side", type=int, help="pixels to enlarge the films to before")
    parser.add_argument("--out", type=Path, help="write the rows here as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if side := given.shorter_side:
            given.films = given.films or load_data(preset("chest_xray"), verbose=False).path
            enlarge(Path(given.films), Path(folder), side)
            given.films = folder
        measure_sizes(given)


def measure_sizes(given: argparse.Namespace) -> None:
    """Every engine at every size; the table."""
    names = ["vaekit"] + [name for name in given.engines if name != "vaekit"]
    if missing := [n for n in names if n != "plain" and not find_spec(n.split()[0])]:
        print(f"not installed, and left out: {', '.join(missing)}")
    device, rows = choose_device(), []
    print("| px | engine | images/s, median (range) | ours is so many times as fast | peak MB"
          " | parameters, of ours | multiply-adds | how |\n" + "|---" * 8 + "|")  # fmt: skip
    for size in given.sizes:
        cfg = preset("chest_xray", profile="full", image_size=size, features=given.features,
                     batch_size=given.batch, data_path=given.films)  # fmt: skip
        how = {"precision": choose_precision(cfg.precision, device),
               "layout": "channels_last" if cfg.channels_last else "NCHW",
               "workers": given.workers}  # fmt: skip
        data = load_data(cfg, verbose=False)
        found = measure(cfg, [name for name in names if name not in missing], given)
        for row in found:
            row |= {"device": device.type, "how": HOW[row["name"]].format(**how),
                    "rounds": given.rounds, "steps": given.steps, "features": cfg.features,
                    "films": data.source, "shorter_side": given.shorter_side,
                    "torch": torch.__version__,
                    "threads": torch.get_num_threads(),
                    "processor": f"{processor()}, {torch.backends.cpu.get_cpu_capability()}",
                    "command": " ".join(["python", *sys.argv])}  # fmt: skip
        compare(found)
        rows += found
        if given.out:  # size by size: a later one may run out of memory
            given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
