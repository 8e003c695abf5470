"""fit(): the bare loop of `train`, kept alive, on disk."""

import contextlib
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list

from vaekit.config import Config
from vaekit.data import Data
from vaekit.features import feature_loss
from vaekit.keep import checkpoint, guards
from vaekit.keep.folder import open_run, read_info, runs_dir
from vaekit.keep.resume import go_back, go_on_from, same_config
from vaekit.keep.writer import RunWriter
from vaekit.model import VAE
from vaekit.place.device import choose_device
from vaekit.place.progress import Progress
from vaekit.place.setup import minutes_left
from vaekit.train import Trainer


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
    model = model.to(choose_device()).eval().requires_grad_(False)
    return Run(model, last["history"], path, cfg, read_info(path))


def fit(cfg: Config, data: Data, out: str | Path | None = None, resume: str = "auto",
        max_minutes: float | None = None, on_epoch_end: Callable[[Run], None] | None = None,
        verbose: bool = True) -> Run:  # fmt: skip
    """Train `cfg` on `data` in two phases and return the Run.

    out: folder of runs (default `VAEKIT_RUNS` or "runs"). resume: "auto" continues an unfinished
    run of the same config and data, or loads a finished one, and says so; "never" starts anew.
    max_minutes: stop before the epoch that would not fit, saved and ready to go on; on Kaggle the
    session's end is the limit where none is given.
    on_epoch_end(run): called after every epoch with the run so far, `run.model` the averaged
    weights. Raises FloatingPointError where the loss stops being finite, ValueError where data
    and config disagree.
    """
    if resume not in ("auto", "never"):
        raise ValueError(f"resume={resume!r} is not one of auto, never")
    data.check(cfg)
    max_minutes = minutes_left() if max_minutes is None else max_minutes
    with guards.Stop(max_minutes) as stop, contextlib.ExitStack() as stack:
        features = feature_loss(cfg, verbose)
        cfg = cfg.replace(features=features.name if features else "none")
        trainer = Trainer(cfg, data, features)
        main, trainer.stop = trainer.accelerator.is_main_process, stop
        say = print if verbose and main else lambda *_: None
        out = Path(out) if out else runs_dir()
        path = stack.enter_context(open_run(out, cfg, data.hash, resume, say)) if main else None
        path = Path(broadcast_object_list([str(path)])[0])  # the main process's, told to the others
        if read_info(path).get("finished"):
            run = load_run(path)
            say(f"finished run found: {path.name}, {len(run.history)} epochs; loaded, not trained")
            return run
        if go_on_from(trainer, path):
            say(f"going on with {path.name} after epoch {trainer.epoch} of {cfg.num_epochs}")
        run = Run(trainer.ema, trainer.history, path, cfg, _run_info(cfg, data, trainer))
        while True:
            try:
                with contextlib.closing(RunWriter(run, trainer, main)) as writer:
                    _loop(trainer, run, writer, on_epoch_end, say)
                return run
            except guards.NotFinite as error:
                go_back(trainer, path, error, say)


def _loop(trainer: Trainer, run: Run, writer: RunWriter, on_epoch_end, say) -> None:
    """Epoch after epoch until the run is done or has to stop; saved either way."""
    cfg, stop = trainer.cfg, trainer.stop
    with contextlib.closing(Progress(cfg.num_epochs, trainer.epoch, say is print)) as bar:
        while not trainer.done and (row := trainer.run_epoch()):
            bar.show(row)
            writer.epoch(row)
            if on_epoch_end:
                on_epoch_end(run)
            ahead = 1.2 * max(row["seconds"] for row in trainer.history[-3:])
            if trainer.any_process(stop.now(ahead, least=0)):
                break
    run.model = trainer.result()
    writer.finish()
    if not trainer.done:
        steps = f" and {trainer.partial['steps']} steps" if trainer.partial else ""
        say(f"{stop} after epoch {trainer.epoch}{steps} of {cfg.num_epochs}: saved in {run.path};"
            " the same call goes on from here")  # fmt: skip


def _run_info(cfg: Config, data: Data, trainer: Trainer) -> dict:
    from vaekit import __version__

    return {
        "vaekit": __version__, "torch": torch.__version__, "python": platform.python_version(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": trainer.device.type, "precision": trainer.precision, "features": cfg.features,
        "processes": trainer.accelerator.num_processes, "finished": False,
        "data": {"source": data.source, "hash": data.hash, "train": len(data.train),
                 "val": len(data.val), "test": len(data.test)},
    }  # fmt: skip
