"""Does the time per image stay the same with 400 times as many images?

    python benchmarks/growth.py --out benchmarks/growth.json

Draws films, reads them with `load_data` (the first time, and from its cache), makes the batches of
a training epoch and evaluates a small model on all of them, in one process per number of films.
Writes the rows, the slope of time per image against number in log-log, and a plot. Resumes where it
was stopped.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch

from vaekit.config import Config, preset
from vaekit.data import batches, load_data
from vaekit.judge.evaluation import evaluate, measure
from vaekit.model import VAE
from vaekit.train import epoch_order

matplotlib.use("Agg")
COUNTS = (500, 1000, 2000, 4000, 10_000, 20_000, 50_000, 100_000, 200_000)
STAGES = {"first": "read, equalised, split, kept", "load": "from the cache",
          "epoch": "batches of an epoch", "measure": "evaluation, image by image",
          "evaluate": "... and with distances, of 2,000 at most"}  # fmt: skip


def draw(folder: Path, count: int, size: int) -> None:
    """`count` grey noise films with large soft shapes, each of another patient, as files."""
    rng = np.random.default_rng(count)
    for kind in ("NORMAL", "PNEUMONIA"):
        (folder / "train" / kind).mkdir(parents=True)

    def one(i: int) -> None:
        coarse = cv2.resize(shapes[i % len(shapes)], (size, size), interpolation=cv2.INTER_CUBIC)
        film = (0.7 * coarse + noise[i % len(noise)]).clip(0, 255).astype(np.uint8)
        kind = ("NORMAL", "PNEUMONIA")[i % 2]
        cv2.imwrite(str(folder / "train" / kind / f"IM-{i:07}-0001.jpeg"), film)

    with ThreadPoolExecutor() as pool:
        for start in range(0, count, 1000):
            n = min(1000, count - start)
            shapes = rng.uniform(0, 255, (n, 6, 6)).astype(np.float32)
            noise = rng.uniform(0, 76, (n, size, size)).astype(np.float32)
            list(pool.map(one, range(start, start + n)))


def memory() -> dict[str, float]:
    """Resident MB (10^6 bytes) of this process: the maximum so far, and now without mapped
    files."""
    words = dict(line.split(":", 1) for line in open("/proc/self/status"))
    names = {"peak_mb": "VmHWM", "own_mb": "RssAnon"}
    return {key: int(words[name].split()[0]) * 1024 / 1e6 for key, name in names.items()}


def seconds(work, least: float) -> float:
    """Median of repeated calls that take `least` seconds together, at least three."""
    spent = []
    while len(spent) < 3 or sum(spent) < least and len(spent) < 100:
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
        if spent[0] > 10 * least:  # once is enough
            break
    return statistics.median(spent)


def first(cfg: Config) -> dict:
    start = time.perf_counter()
    data = load_data(cfg, verbose=False)
    return {"first": time.perf_counter() - start, "train": len(data.train),
            "first_peak_mb": memory()["peak_mb"]}  # fmt: skip


def later(cfg: Config, least: float) -> dict:
    """Seconds of loading from the cache, of an epoch's batches, of evaluating; then memory."""
    found = {"load": seconds(lambda: load_data(cfg, verbose=False), least)}
    data, model = load_data(cfg, verbose=False), VAE(cfg).eval()

    def epoch() -> None:
        for _ in batches(data.train, cfg.batch_size, "cpu", *epoch_order(cfg, len(data.train), 0)):
            pass

    found["epoch"] = seconds(epoch, least)
    found["measure"] = seconds(lambda: measure(model, data.train), least)
    judged = dict(val=data.val, judges=("pixels",))
    found["evaluate"] = seconds(lambda: evaluate(model, data.train, cfg, **judged), least)
    return found | memory()


def row_of(count: int, size: int, least: float, work: Path) -> dict:
    """One row of the table; its films are drawn, and deleted after it."""
    films = work / f"films-{count}-{size}"
    shutil.rmtree(films, ignore_errors=True)
    draw(films, count, size)
    cfg = preset("chest_xray", profile="smoke", image_size=size, widths=(8, 16, 32), max_images=0,
                 attention=(), latent_channels=8, stem_kernel=3, batch_size=64, features="none",
                 data_path=str(films))  # fmt: skip
    found = {"films": count, "size": size}
    spawn = multiprocessing.get_context("spawn")
    for part, arguments in ((first, (cfg,)), (later, (cfg, least))):  # a process each
        with ProcessPoolExecutor(1, spawn) as pool:
            found |= pool.submit(part, *arguments).result()
    shutil.rmtree(films)
    for stage in STAGES:  # loading is of all films, the other two are of those to train on
        of = count if stage in ("first", "load") else found["train"]
        found[f"{stage}_us"] = found[stage] / of * 1e6
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in found.items()}


def slope(counts: list[int], values: list[float]) -> tuple[float, float]:
    """(slope, standard error) of log(value) against log(count), by least squares."""
    x, y = np.log(counts), np.log(values)
    (a, b), n = np.polyfit(x, y, 1), len(x)
    rest = ((y - a * x - b) ** 2).sum() / max(n - 2, 1)
    return float(a), float(np.sqrt(rest / ((x - x.mean()) ** 2).sum())) if n > 2 else float("nan")


def plot(rows: list[dict], file: Path) -> dict[str, tuple[float, float]]:
    """Time per image and memory against the number of films; the slopes in the legend."""
    import matplotlib.pyplot as plt

    counts, slopes = [row["films"] for row in rows], {}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for stage, what in STAGES.items():
        times = [row[f"{stage}_us"] for row in rows]
        slopes[stage] = a, error = slope(counts, times)
        left.loglog(counts, times, "o-", label=f"{what}: slope {a:+.2f} ± {error:.2f}")
    left.set(xlabel="films", ylabel="microseconds per film", title="time")
    for key, what in (("first_peak_mb", "peak, first time"), ("peak_mb", "peak, later"),
                      ("own_mb", "of these, not mapped files")):  # fmt: skip
        right.semilogx(counts, [row[key] for row in rows], "o-", label=what)
    right.set(xlabel="films", ylabel="resident MB", title="memory", ylim=(0, None))
    for axes in (left, right):
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    return slopes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--least", type=float, default=2.0, help="seconds a stage is measured for")
    parser.add_argument("--work", type=Path, help="where films and cache are; default: thrown away")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    kept = json.loads(given.out.read_text())["rows"] if given.out.exists() else []
    rows = {row["films"]: row for row in kept if row["size"] == given.size}
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        # no trunk: what is to grow with the films is the package, not SqueezeNet
        os.environ |= {"VAEKIT_CACHE": f"{work}/cache", "VAEKIT_WEIGHTS": work,
                       "TORCH_HOME": work, "VAEKIT_PROFILE": "smoke"}  # fmt: skip
        for count in sorted(set(given.counts) - set(rows)):
            rows[count] = row_of(count, given.size, given.least, Path(work))
            shutil.rmtree(f"{work}/cache")
            print(json.dumps(rows[count]), flush=True)
            found = {"rows": [rows[count] for count in sorted(rows)], "torch": torch.__version__,
                     "threads": torch.get_num_threads(),
                     "command": " ".join(["python", *sys.argv])}  # fmt: skip
            given.out.write_text(json.dumps(found, indent=1) + "\n")
    if len(rows) > 1:
        slopes = plot([rows[count] for count in sorted(rows)], given.out.with_suffix(".png"))
        for stage, (a, error) in slopes.items():
            print(f"{STAGES[stage]}: time per film goes with count to the {a:+.3f} ± {error:.3f}")
        found = json.loads(given.out.read_text()) | {"slopes": slopes}
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
