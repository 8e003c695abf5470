"""fit() and load_run(): the loop of `train` with checkpoints on disk, resumed or loaded again."""

import contextlib
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from vaekit import checks
from vaekit.config import Config
from vaekit.data import Data
from vaekit.features import feature_loss, trunk_name
from vaekit.keep import forecast, launch
from vaekit.keep.checkpoint import CheckpointError, newest_valid
from vaekit.keep.folder import find_finished, find_shorter, open_run, read_info, runs_dir
from vaekit.keep.guards import GuardedTrainer, Interrupted, NotFinite, Stop, Stopped
from vaekit.keep.resume import check_config, go_back, go_on_from, in_words
from vaekit.keep.writer import RunWriter
from vaekit.model import VAE
from vaekit.place.device import choose_device
from vaekit.place.progress import Progress
from vaekit.place.setup import minutes_left
from vaekit.train import train


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
        """What was trained, on which data, and how, one per line."""
        changed = self.cfg.differences(Config(preset=self.cfg.preset))
        facts = {"epochs": f"{len(self.history)} of {self.cfg.num_epochs}", **self.info}
        facts["config"] = {name: mine for name, (mine, _) in changed.items()}
        return "\n  ".join([self.path.name, *(f"{name}: {value}" for name, value in facts.items())])


@torch.inference_mode(False)  # it trains, also in a cell without gradients
def fit(
    cfg: Config,
    data: Data,
    out: str | Path | None = None,
    resume: str = "auto",
    max_minutes: float | None = None,
    on_epoch_end: Callable[[Run], None] | None = None,
    verbose: bool = True,
    processes: int | None = None,
) -> Run:
    """Train `cfg` on `data` in two phases and return the Run.

    out: folder of runs (default `VAEKIT_RUNS` or "runs"). resume: "auto" continues an unfinished
    run of the same config and data, or loads a finished one, and says so; a finished run that only
    had fewer epochs of phase 2 is continued from its end. "never" starts a new run. max_minutes:
    stop before the epoch that would not fit, saved, so that the same call continues; on Kaggle the
    default is the session's end. on_epoch_end(run): called after every epoch with the run so far;
    `run.model` has the averaged weights. processes: default one per GPU where there are several
    (`keep.launch` says how, and what trains in one process all the same); 1 stays in this process.
    FloatingPointError where the loss is no longer finite, even after going back to the checkpoint
    three times, each time with half the learning rate; ValueError where data and config
    disagree, ProcessFailed where one of several processes fails.
    """
    if resume not in ("auto", "never"):
        raise ValueError(f"resume={resume!r} is not one of auto, never")
    checks.check_data(data, cfg)
    minutes = minutes_left() if max_minutes is None else max_minutes
    out = Path(out) if out else runs_dir()
    main = Accelerator(cpu=choose_device().type == "cpu").is_main_process
    say = print if verbose and main else lambda text: None
    with Stop(minutes) as stop, contextlib.ExitStack() as stack:
        path = shorter = None
        if main and resume == "auto":  # a finished run needs no feature network
            wanted = cfg.replace(features=trunk_name(cfg))
            path = find_finished(out, wanted, data.hash, say)
        (path,) = broadcast_object_list([path])  # the main process tells the others
        if path:
            return load_finished(path, say)
        features = feature_loss(cfg, verbose)
        cfg = cfg.replace(features=features.name if features else "none")
        number = launch.choose_processes(processes, cfg, data, on_epoch_end, say)
        if number > 1:
            options = {"out": str(out), "resume": resume, "verbose": verbose}
            return load_run(launch.train_in_processes(number, stop, cfg, data, options))
        if main:
            path = stack.enter_context(open_run(out, cfg, data.hash, resume, say))
            if resume == "auto":
                shorter = find_shorter(out, cfg, data.hash)
        path, shorter = broadcast_object_list([path, shorter])
        if read_info(path).get("finished"):
            return load_finished(path, say)
        trainer = GuardedTrainer(cfg, data, features, stop)
        if go_on_from(trainer, path):
            say(f"going on with {path.name} after epoch {trainer.epoch} of {cfg.num_epochs}")
        elif shorter and go_on_from(trainer, shorter.path, shorter.cfg):
            before = f"the finished {shorter.path.name} ended: {in_words(shorter.changed)}"
            say(f"going on after epoch {trainer.epoch} of {cfg.num_epochs}, where {before}")
        run = Run(trainer.ema, trainer.history, path, cfg, run_info(cfg, data, trainer))
        while not attempt(trainer, run, main, on_epoch_end, say):
            pass
        return run


def load_finished(path: Path, say: Callable) -> Run:
    run = load_run(path)
    say(f"finished run found: {path.name}, {len(run.history)} epochs; loaded, not trained")
    return run


def attempt(trainer: GuardedTrainer, run: Run, main: bool, on_epoch_end, say: Callable) -> bool:
    """Train until the run is done or has to stop, saved in both cases. False if it went back to a
    checkpoint after NaN, to go on with half the learning rate."""
    cfg = run.cfg
    writer = RunWriter(run, trainer, main)
    bar = Progress(cfg.num_epochs, trainer.epoch, say is print)
    with contextlib.closing(writer), contextlib.closing(bar):
        try:
            train(trainer, partial(after_epoch, run, writer, bar, on_epoch_end))
        except Interrupted:
            go_on_from(trainer, run.path)
        except Stopped:
            pass
        except NotFinite as error:
            go_back(trainer, run.path, error, say)
            return False
        run.model = trainer.result()
        writer.finish()
    if not trainer.done:
        where = f"after epoch {trainer.epoch} of {cfg.num_epochs}: saved in {run.path}"
        say(f"{trainer.stop} {where}; the same call goes on from here")
    return True


def after_epoch(
    run: Run, writer: RunWriter, bar: Progress, on_epoch_end, trainer: GuardedTrainer, row: dict
) -> None:
    """Show it, write it, call `on_epoch_end`; raises Stopped where the next epoch would not fit."""
    bar.show(row)
    writer.write_epoch(row)
    if on_epoch_end:
        on_epoch_end(run)
    if bar.visible and run.cfg.profile == "full" and forecast.is_due(run.cfg, row, bar.shown):
        print(forecast.forecast(run.cfg, row, trainer.stop.left, datetime.now()))
    ahead = 1.2 * max(past["seconds"] for past in trainer.history[-3:])
    if trainer.in_any_process(trainer.stop.now(ahead)):
        raise Stopped


def run_info(cfg: Config, data: Data, trainer: GuardedTrainer) -> dict:
    from vaekit import __version__

    sizes = {"train": len(data.train), "val": len(data.val), "test": len(data.test)}
    return {
        "vaekit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": trainer.device.type,
        "precision": trainer.precision,
        "features": cfg.features,
        "processes": trainer.accelerator.num_processes,
        "finished": False,
        "data": {"source": data.source, "hash": data.hash, **sizes},
    }


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
        raise CheckpointError(f"{path} holds no readable run: {error}") from error
    use = partial(use_weights, model, cfg)
    last = newest_valid(path, "last.pt", use)
    if last is None:
        raise CheckpointError(f"{path} holds no checkpoint yet")
    newest_valid(path, "best.pt", use)
    model = model.to(choose_device()).eval().requires_grad_(False)
    return Run(model, last["history"], path, cfg, read_info(path))


def use_weights(model: VAE, cfg: Config, state: dict) -> None:
    check_config(state, cfg)
    model.load_state_dict(state["ema"] if "ema" in state else state["model"])
