"""How many images a second train here, and how many do without the engine?

    python benchmarks/throughput.py --out rows.json

The same model, losses and films twice in one run, in turns: vaekit's own step (films decoded
once and kept as bytes, native precision, channels_last, one trunk pass), and the plain way, as a
notebook would write it: a Dataset that reads, equalises and resizes film by film in DataLoader
workers, float32, NCHW.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from vaekit import hosting
from vaekit.config import Config, preset
from vaekit.data import batches, load_data
from vaekit.features import feature_loss, load_trunk
from vaekit.losses import SSIM_SIGMA, SSIM_WINDOW
from vaekit.model import VAE
from vaekit.train import Trainer, epoch_order


class PlainFilms(Dataset):
    """One film an item: read, equalise, resize, mirror at random, to float."""

    def __init__(self, files: list[Path], cfg: Config):
        self.files, self.cfg = files, cfg

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        cfg = self.cfg
        film = cv2.imread(str(self.files[i]), cv2.IMREAD_GRAYSCALE)
        film = cv2.createCLAHE(cfg.clahe_clip, (cfg.clahe_tiles, cfg.clahe_tiles)).apply(film)
        film = cv2.resize(film, (cfg.image_size, cfg.image_size), interpolation=cv2.INTER_AREA)
        x = torch.from_numpy(film)[None].float() / 255
        return x.flip(-1) if torch.rand(()) < 0.5 else x


def endless(loader):
    while True:
        yield from loader


class Plain:
    """The step of a plain implementation: the same terms, written straight down."""

    def __init__(self, cfg: Config, files: list[Path], workers: int):
        self.cfg, self.device = cfg, hosting.choose_device()
        self.model = VAE(cfg.replace(channels_last=False)).to(self.device)
        self.trunk = load_trunk("squeezenet", taps=(1, 4, 7)).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=cfg.lr_phase2)
        loader = DataLoader(PlainFilms(files, cfg), cfg.batch_size, shuffle=True, drop_last=True,
                            num_workers=workers, persistent_workers=True)  # fmt: skip
        self.films = endless(loader)
        at = torch.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
        row = torch.exp(-at.square() / (2 * SSIM_SIGMA**2))
        window = torch.outer(row, row) / row.sum() ** 2
        self.window = window[None, None].to(self.device)

    def ssim(self, a, b):
        blur = lambda x: F.conv2d(x, self.window)  # noqa: E731
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        covariance = blur(a * b) - mean_a * mean_b
        top = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
        return (top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))).mean()

    def step(self) -> None:
        cfg, x = self.cfg, next(self.films).to(self.device)
        x_hat, mu, logvar = self.model(x)
        loss = F.l1_loss(x_hat, x) + cfg.ssim_weight * (1 - self.ssim(x_hat, x))
        with torch.no_grad():
            target = self.trunk(x)
        output = self.trunk(x_hat)
        gaps = [F.l1_loss(output[t], target[t]) for t in output]
        loss = loss + cfg.perceptual_weight * sum(gaps) / len(gaps)
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).mean()
        self.optimizer.zero_grad()
        (loss + cfg.beta * kl).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), cfg.grad_clip)
        self.optimizer.step()


class Ours:
    """vaekit's step, as `fit` takes it, clipping, averaged weights and logged terms included."""

    def __init__(self, cfg: Config, data):
        self.trainer = Trainer(cfg, data, feature_loss(cfg))
        self.trainer.model.train()
        self.films = self.endless(cfg, data)

    def endless(self, cfg: Config, data):
        for epoch in range(10**6):
            order, flip = epoch_order(cfg, len(data.train), epoch)
            yield from batches(data.train, cfg.batch_size, self.trainer.device, order, flip,
                               channels_last=cfg.channels_last)  # fmt: skip

    def step(self) -> None:
        self.trainer.train_step(next(self.films), float(self.trainer.cfg.epochs_phase1))


def start(name: str, cfg: Config, workers: int) -> None:
    """Build the engine `name` in this process, which is its own."""
    global ENGINE
    data = load_data(cfg, verbose=False)
    files = [Path(data.path) / file for file in data.train.names]
    ENGINE = Ours(cfg, data) if name == "vaekit" else Plain(cfg, files, workers)


def seconds(steps: int, warm: int = 4) -> float:
    """Seconds for `steps` after `warm` untimed ones, which also empty the workers' queue."""
    for _ in range(warm):
        ENGINE.step()
    start = time.perf_counter()
    for _ in range(steps):
        ENGINE.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--films", default="", help="a folder; default: the one load_data finds")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the rows here as JSON")
    arguments = parser.parse_args()
    cfg = preset("chest_xray", profile="full", image_size=arguments.size, features="squeezenet",
                 batch_size=arguments.batch, data_path=arguments.films)  # fmt: skip
    data = load_data(cfg)
    found = {name: [] for name in ("vaekit", "plain")}
    spawn = multiprocessing.get_context("spawn")
    # a process each: what one does to its memory or threads does not reach the other
    engines = {name: ProcessPoolExecutor(1, spawn) for name in found}
    for name, engine in engines.items():
        engine.submit(start, name, cfg, arguments.workers).result()
    for _ in range(arguments.rounds):  # in turns: what slows the machine down meets both
        for name, engine in engines.items():
            spent = engine.submit(seconds, arguments.steps).result()
            found[name].append(cfg.batch_size * arguments.steps / spent)
    device = hosting.choose_device()
    precision = hosting.choose_precision(cfg.precision, device)
    described = {
        "vaekit": f"{precision}, channels_last, films kept as bytes",
        "plain": f"fp32, NCHW, read and equalised by {arguments.workers} workers",
    }
    rows = [
        {"engine": name, "how": described[name], "device": device.type,
         "images_per_second": round(statistics.median(rates), 1),
         "lowest": round(min(rates), 1), "highest": round(max(rates), 1),
         "rounds": arguments.rounds, "steps": arguments.steps, "batch": cfg.batch_size,
         "size": cfg.image_size, "features": "squeezenet", "films": data.source,
         "torch": torch.__version__, "threads": torch.get_num_threads(),
         "command": " ".join(["python", *sys.argv])}
        for name, rates in found.items()
    ]  # fmt: skip
    for r in rows:
        print(f"{r['engine']:>7}: {r['images_per_second']:6.1f} images/s"
              f" ({r['lowest']}-{r['highest']})  {r['how']}")  # fmt: skip
    pairs = [a / b for a, b in zip(found["vaekit"], found["plain"], strict=True)]
    print(f"  ratio: {statistics.median(pairs):.2f} ({min(pairs):.2f}-{max(pairs):.2f})")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
