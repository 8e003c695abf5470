"""Runs on disk: the folder, what is written into it, finding and loading one again."""

import contextlib
import itertools
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
from vaekit.resume import differences, same_config, state_of

SAVE_SECONDS = 30  # between checkpoints of short epochs; the end of a phase always saves


@dataclass(repr=False)
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

    def __repr__(self) -> str:
        """What was trained, on what and with what, a line each."""
        changed = self.cfg.differences(Config(preset=self.cfg.preset))
        facts = {"epochs": f"{len(self.history)} of {self.cfg.num_epochs}", **self.info}
        facts["config"] = {name: mine for name, (mine, _) in changed.items()}
        return "\n  ".join([self.path.name, *(f"{name}: {value}" for name, value in facts.items())])


class RunWriter:
    """What a run leaves on disk; only the `main` process writes.

    Raises CheckpointError, which names the last good state, where the disk is full or read-only.
    """

    def __init__(self, run: Run, trainer, main: bool):
        from torch.utils.tensorboard import SummaryWriter

        self.run, self.trainer, self.main = run, trainer, main
        self.good = trainer.epoch if (run.path / "last.pt").exists() else None
        self.saved, self.board, self.best = time.perf_counter(), None, trainer.best
        if main:
            with self._disk():
                checkpoint.write_json(run.path / "run.json", run.info)
                self.board = SummaryWriter(str(run.path), purge_step=trainer.epoch + 1)
            if self.good is None:  # a bad disk is found before the work is done
                self.save()

    def close(self) -> None:
        if self.board:
            with contextlib.suppress(OSError):  # of a full disk has been told already
                self.board.close()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            good = "nothing" if self.good is None else f"the state after epoch {self.good}"
            raise checkpoint.CheckpointError(
                f"{self.run.path} cannot be written: {error}. On disk, and whole, is {good}: make"
                " room, and the same call goes on from there"
            ) from error

    def epoch(self, row: dict) -> None:
        """Log it and draw samples; save where a phase or half a minute is over."""
        cfg, trainer = self.run.cfg, self.trainer
        if not self.main:
            return
        with self._disk():
            for name, value in row.items():
                self.board.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
            if row["epoch"] % cfg.sample_every == 0 or trainer.done:
                self.board.add_image("samples", self._samples(row["epoch"]), row["epoch"])
        late = time.perf_counter() - self.saved > SAVE_SECONDS
        if late or trainer.done or trainer.epoch == cfg.epochs_phase1:
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
        path, trainer, start = self.run.path, self.trainer, time.perf_counter()
        with self._disk():
            if trainer.best is not self.best:  # first: who dies in between trains it again
                checkpoint.save_checkpoint(path / "best.pt", trainer.best)
                self.best = trainer.best
            checkpoint.save_checkpoint(path / "last.pt", state_of(trainer))
            self.good = trainer.epoch
            checkpoint.write_history(path / "history.csv", trainer.history)
        self.saved = time.perf_counter()
        trainer.stop.reserve = 2 + 2 * (self.saved - start)

    def finish(self) -> None:
        """All that it has, the weights for other tools, and only then that it has finished."""
        from safetensors.torch import save

        if not self.main:
            return
        if self.good < self.trainer.epoch or self.trainer.partial:
            self.save()
        weights = {k: v.contiguous() for k, v in self.run.model.state_dict().items()}
        with self._disk():
            checkpoint.write_atomic(self.run.path / "model.safetensors", save(weights))
            self.run.info["finished"] = self.trainer.done
            checkpoint.write_json(self.run.path / "run.json", self.run.info)


def read_info(path: Path) -> dict:
    """What `run.json` says of a run; {} where it says nothing."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        info = json.loads((path / "run.json").read_text())
        return info if isinstance(info, dict) and isinstance(info.get("data"), dict) else {}
    return {}


def load_run(path: str | Path) -> Run:
    """The run in a folder: best weights, history, config. Never executes code from a file.

    Raises CheckpointError where the folder holds no readable run.
    """
    path = Path(path)
    try:
        cfg = Config.load(path / "config.json")
        with torch.random.fork_rng():
            model = VAE(cfg)
    except (OSError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path} holds no readable run: {error}") from error

    def use(state: dict) -> None:
        same_config(state, cfg)
        model.load_state_dict(state["ema"] if "ema" in state else state["model"])

    last = checkpoint.newest_valid(path, use=use)
    if last is None:
        raise checkpoint.CheckpointError(f"{path} holds no checkpoint yet")
    checkpoint.newest_valid(path, "best.pt", use)
    model = model.to(hosting.choose_device()).eval().requires_grad_(False)
    return Run(model, last["history"], path, cfg, read_info(path))


def find_runs(out: str | Path, cfg: Config, data_hash: str) -> list[Path]:
    """Folders below `out` with a run of exactly this config and data, newest first."""
    return [path for path, changed in _runs(out, cfg, data_hash) if not changed]


def _runs(out: str | Path, cfg: Config, data_hash: str) -> Iterator[tuple[Path, str]]:
    """(folder, what differs from `cfg` and the data) of every readable run, newest first."""
    for file in sorted(Path(out).glob("*/run.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            changed = differences(Config.load(file.parent / "config.json"), cfg)
            same_data = read_info(file.parent).get("data", {}).get("hash") == data_hash
            texts = changed, "" if same_data else "other data"
            yield file.parent, "; ".join(filter(None, texts))


@contextlib.contextmanager
def open_run(out: Path, cfg: Config, data_hash: str, resume: str, say) -> Iterator[Path]:
    """The folder of a finished run, or one to go on in, or a new one: no other process trains in
    it for as long as it is open."""
    if resume == "auto":
        _fetch_attached(out, cfg, data_hash, say)
    found = list(_runs(out, cfg, data_hash)) if resume == "auto" else []
    same = [path for path, changed in found if not changed]
    for path, changed in [(p, c) for p, c in found if cfg.preset in p.name and not same][:1]:
        say(f"new run; against {path.name}: {changed}")
    for path in (*same, None):
        path = path or _new_folder(out, cfg)
        with contextlib.ExitStack() as stack:
            if not read_info(path).get("finished"):  # a finished one may lie on a read-only disk
                try:
                    stack.enter_context(FileLock(path / ".lock", timeout=0))
                except Timeout:
                    say(f"{path.name} is being trained by another process: starting a new run")
                    continue
            yield path
            return


def _new_folder(out: Path, cfg: Config) -> Path:
    stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
    for attempt in itertools.count():
        path = out / f"{stamp}-{cfg.preset}{f'-{attempt}' if attempt else ''}"
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            cfg.save(path / "config.json")
            return path


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
