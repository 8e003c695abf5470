"""How a run resumes from its checkpoints, and goes back to them after NaN, at half the rate."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from vaekit.config import Config
from vaekit.keep.best import Best
from vaekit.keep.checkpoint import newest_valid
from vaekit.keep.guards import MAX_SETBACKS, GuardedTrainer, NotFinite
from vaekit.schedules import final_objective


def differences(mine: Config, theirs: Config) -> dict:
    """{field: (mine, theirs)}, without the data's path: its hash identifies the data."""
    changed = mine.differences(theirs)
    changed.pop("data_path", None)
    return changed


def in_words(changed: dict) -> str:
    return ", ".join(f"{k} {a!r} -> {b!r}" for k, (a, b) in changed.items())


def check_config(state: dict, cfg: Config) -> None:
    """ValueError unless the checkpoint was trained with `cfg` (the oldest best.pt have no
    config)."""
    changed = differences(Config.from_dict(state.get("config", cfg.to_dict())), cfg)
    if changed:
        raise ValueError(f"it was trained with another config: {in_words(changed)}")


def use_best(trainer: GuardedTrainer, cfg: Config, state: dict) -> None:
    check_config(state, cfg)
    trainer.ema.load_state_dict(state["model"])  # raises if they do not fit
    trainer.best.state = state | {"config": trainer.cfg.to_dict()}


def use_last(trainer: GuardedTrainer, cfg: Config, state: dict) -> None:
    check_config(state, cfg)
    trainer.load_state_dict(state)


def go_on_from(trainer: GuardedTrainer, path: Path, shorter: Config | None = None) -> bool:
    """Load the newest good checkpoints in `path` into the trainer; False where there are none.

    shorter: the config of the run in `path`, if that is another run with fewer epochs. Raises
    CheckpointError for checkpoints that are damaged or of another config.
    """
    cfg = shorter or trainer.cfg

    def load(best: str, repair: bool) -> dict | None:
        # last.pt comes second: the weights of both pass through `ema`, and its own have to stay
        newest_valid(path, best, partial(use_best, trainer, cfg), repair)
        return newest_valid(path, "last.pt", partial(use_last, trainer, cfg), repair)

    found = load("best.pt", trainer.accelerator.is_main_process and not shorter)
    best = trainer.best
    if best.state and best.state.get("epoch", 0) > trainer.epoch:
        # killed between the two files: train that epoch again; the best is the one before
        best.state = None
        load("previous.best.pt", repair=False)
    # best.pt was lost, or is the one before: a worse epoch may become the best
    best.loss = max(best.loss, best.loss_at(trainer.final_beta))
    if shorter and best.state and not final_objective(trainer.cfg, best.state["epoch"] - 1):
        trainer.best = Best()  # its epochs now lie in a warm-up, and do not compete
    return found is not None


def go_back(trainer: GuardedTrainer, path: Path, error: NotFinite, say: Callable) -> None:
    """To the last good checkpoint, with half the learning rate. Raises NotFinite, with advice,
    after MAX_SETBACKS attempts."""
    what = f"epoch {trainer.epoch + 1}: {error}"
    setbacks = trainer.setbacks + 1
    if setbacks > MAX_SETBACKS:
        raise NotFinite(
            f"{what}, also with 1/{2**trainer.setbacks} of the learning rate. The last checkpoint"
            f" in {path} is good; lower lr_phase{trainer.phase}, or set grad_clip, logvar_clamp"
        ) from error
    go_on_from(trainer, path)
    trainer.setbacks = setbacks
    say(f"{what}: back to epoch {trainer.epoch}, with 1/{2**setbacks} of the learning rate")
