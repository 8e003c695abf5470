"""Runs on disk: the folder, what is written into it, finding and loading one again."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from vaekit import checkpoint, hosting
from vaekit.config import Config
from vaekit.data import batches
from vaekit.model import VAE

SAVE_SECONDS = 30  # between checkpoints of short epochs; the end of a phase always saves


@dataclass
class Run:
    """A training run: `model` (averaged weights of the best epoch, evaluation mode), `history`
    (one dict per epoch), `path`, `cfg`, and `info` (versions, data, device, finished or not)."""

    model: VAE
    history: list[dict]
    path: Path
    cfg: Config
    info: dict = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return bool(self.info.get("finished"))


class RunWriter:
    """What a run leaves on disk; only the main process has one."""

    def __init__(self, run: Run, trainer):
        from torch.utils.tensorboard import SummaryWriter

        self.run, self.trainer, self.saved = run, trainer, time.perf_counter()
        self.board = SummaryWriter(str(run.path), purge_step=trainer.epoch + 1)
        checkpoint.write_json(run.path / "run.json", run.info)

    def epoch(self, row: dict) -> None:
        cfg, trainer = self.run.cfg, self.trainer
        for name, value in row.items():
            self.board.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
        if row["epoch"] % cfg.sample_every == 0 or trainer.done:
            self.board.add_image("samples", self._samples(row["epoch"]), row["epoch"])
        turn = trainer.epoch in (cfg.epochs_phase1, cfg.num_epochs) or trainer.done
        if turn or time.perf_counter() - self.saved > SAVE_SECONDS:
            self.save()

    def _samples(self, epoch: int) -> Tensor:
        """Eight films, their reconstructions and eight prior samples, also as a PNG."""
        from torchvision.utils import make_grid, save_image

        model, split = self.trainer.ema, self.trainer.data.val
        x = next(batches(split, min(8, len(split)), self.trainer.device))
        noise = torch.Generator().manual_seed(self.run.cfg.seed)
        z = torch.randn(8, *model.latent_shape, generator=noise).to(x.device)
        with torch.no_grad():
            grid = make_grid(torch.cat([x, model.reconstruct(x), model.decode(z)]), nrow=8)
        folder = self.run.path / "samples"
        folder.mkdir(exist_ok=True)
        save_image(grid, folder / f"epoch_{epoch:04d}.png")
        return grid.cpu()

    def save(self) -> None:
        path, trainer = self.run.path, self.trainer
        if trainer.best:  # first: a run that dies in between trains the same epochs again
            checkpoint.save_checkpoint(path / "best.pt", trainer.best)
        checkpoint.save_checkpoint(path / "last.pt", trainer.state())
        checkpoint.write_history(path / "history.csv", trainer.history)
        checkpoint.write_json(path / "run.json", self.run.info)
        self.saved = time.perf_counter()

    def close(self, run: Run) -> None:
        from safetensors.torch import save

        weights = {k: v.contiguous() for k, v in run.model.state_dict().items()}
        checkpoint.write_atomic(run.path / "model.safetensors", save(weights))
        self.board.close()


def load_run(path: str | Path) -> Run:
    """The run in a folder: best weights, history, config. Never executes code from a file.

    Raises CheckpointError where the folder holds no readable run.
    """
    path = Path(path)
    try:
        cfg = Config.load(path / "config.json")
        info = json.loads((path / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path} holds no readable run: {error}") from error
    last = checkpoint.newest_valid(path)
    if last is None:
        raise checkpoint.CheckpointError(f"{path} holds no checkpoint yet")
    best = checkpoint.newest_valid(path, "best.pt")
    with torch.random.fork_rng():
        model = VAE(cfg)
    model.load_state_dict(best["model"] if best else last["ema"])
    model = model.to(hosting.choose_device()).eval().requires_grad_(False)
    return Run(model, last["history"], path, cfg, info)


def find_runs(out: str | Path, cfg: Config, data_hash: str) -> list[Path]:
    """Folders below `out` with a run of exactly this config and data, newest first."""
    found = []
    for file in sorted(Path(out).glob("*/run.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError):
            same = not _differences(Config.load(file.parent / "config.json"), cfg)
            if same and json.loads(file.read_text())["data"]["hash"] == data_hash:
                found.append(file.parent)
    return found


def _differences(mine: Config, theirs: Config) -> dict:
    """Differences that matter: where the data lies does not, its hash says what it is."""
    return {k: v for k, v in mine.differences(theirs).items() if k != "data_path"}


def open_run(out: Path, cfg: Config, data_hash: str, resume: str, say) -> Path:
    """The folder to go on in, or a new one."""
    if resume == "auto":
        _fetch_attached(out, cfg, data_hash, say)
        for path in find_runs(out, cfg, data_hash):
            with contextlib.suppress(Timeout), FileLock(path / ".lock", timeout=0):
                return path
            say(f"{path.name} is being trained by another process: starting a new run")
        _say_what_differs(out, cfg, data_hash, say)
    stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
    for attempt in range(100):
        path = out / f"{stamp}-{cfg.preset}{f'-{attempt}' if attempt else ''}"
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            cfg.save(path / "config.json")
            return path
    raise FileExistsError(f"{path} and 99 more names are taken")


def _fetch_attached(out: Path, cfg: Config, data_hash: str, say) -> None:
    """Copy the newest such run of an attached notebook's output to `out`: inputs are read-only."""
    if find_runs(out, cfg, data_hash):
        return
    found = [path for place in hosting.attached() for inside in ("runs", "")
             for path in find_runs(place / inside, cfg, data_hash)]  # fmt: skip
    for path in sorted(found, key=lambda path: path.name)[-1:]:
        for file in path.rglob("*"):
            if file.is_file() and file.name != ".lock":
                target = out / path.name / file.relative_to(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)  # without its mode, which may be read-only
        say(f"copied {path.name} from the attached {path.parent}")


def _say_what_differs(out: Path, cfg: Config, data_hash: str, say) -> None:
    for file in sorted(out.glob(f"*-{cfg.preset}*/run.json"), reverse=True)[:1]:
        with contextlib.suppress(OSError, ValueError, KeyError):
            changed = _differences(Config.load(file.parent / "config.json"), cfg)
            text = ", ".join(f"{k} {a!r} -> {b!r}" for k, (a, b) in changed.items())
            if json.loads(file.read_text())["data"]["hash"] != data_hash:
                text += ("; " if text else "") + "other data"
            say(f"new run; against {file.parent.name}: {text}")


@contextlib.contextmanager
def held(path: Path, main: bool) -> Iterator[None]:
    """Keep other processes out of this run folder for as long as we train in it."""
    if not main:
        yield
        return
    try:
        with FileLock(path / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise RuntimeError(f"another process trains in {path}") from error
