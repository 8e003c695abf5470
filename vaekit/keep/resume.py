"""What of a training is in its checkpoints, and how it goes on from them, or back to them."""

from pathlib import Path

from vaekit.config import Config
from vaekit.keep import checkpoint, guards

PARTS = ("raw", "ema", "optimizer", "scaler")  # of a Trainer, with a state_dict; raw is "model"
COUNTERS = ("epoch", "step", "best_loss", "bad_epochs", "setbacks", "parts", "streak", "partial")


def state_of(trainer) -> dict:
    """All that a Trainer needs to go on as if nothing had happened."""
    state = {name: getattr(trainer, name).state_dict() for name in PARTS}
    state |= {name: getattr(trainer, name) for name in COUNTERS}
    state |= {"plateau": trainer.plateau.state_dict(), "band": trainer.band.state_dict()}
    return {"model": state.pop("raw"), "history": trainer.history,
            "config": trainer.cfg.to_dict(), **state}  # fmt: skip


def differences(mine: Config, theirs: Config) -> str:
    """Those that matter, in words: where the data lies does not, its hash says what it is."""
    changed = mine.differences(theirs)
    return ", ".join(f"{k} {a!r} -> {b!r}" for k, (a, b) in changed.items() if k != "data_path")


def same_config(state: dict, cfg: Config) -> None:
    """ValueError unless a checkpoint was trained with `cfg` (the oldest best.pt do not say)."""
    if changed := differences(Config.from_dict(state.get("config", cfg.to_dict())), cfg):
        raise ValueError(f"it was trained with another config: {changed}")


def go_on_from(trainer, path: Path) -> bool:
    """Put the Trainer where the newest good checkpoints in `path` are; False where there is none.

    Raises CheckpointError where there are some, but of another config or damaged.
    """

    def use_best(state: dict) -> None:
        same_config(state, trainer.cfg)
        trainer.ema.load_state_dict(state["model"])
        trainer.best = state

    def use_last(state: dict) -> None:
        same_config(state, trainer.cfg)
        for name in PARTS:
            if saved := state["model" if name == "raw" else name]:  # a scaler that is off has none
                getattr(trainer, name).load_state_dict(saved)
        trainer.plateau.load_state_dict(state["plateau"])
        trainer.band.load_state_dict(state["band"])
        for name in COUNTERS:  # some are younger than the format
            setattr(trainer, name, state.get(name, getattr(trainer, name)))
        trainer.history[:] = state["history"]  # in place: it is the Run's as well

    checkpoint.newest_valid(path, "best.pt", use_best, repair=True)
    found = checkpoint.newest_valid(path, "last.pt", use_last, repair=True)
    # where best.pt was lost, or is the one before, a worse epoch may become the best
    trainer.best_loss = max(trainer.best_loss, trainer.best_now())
    return found is not None


def go_back(trainer, path: Path, error: guards.NotFinite, say) -> None:
    """To the last good checkpoint, with half the learning rate; raises NotFinite with what is
    known about it where that has not helped MAX_SETBACKS times."""
    cfg, setbacks = trainer.cfg, trainer.setbacks + 1
    what = f"epoch {trainer.epoch + 1}: {error}"
    if setbacks > guards.MAX_SETBACKS:
        raise guards.NotFinite(
            f"{what}, also with 1/{2**trainer.setbacks} of the learning rate. The last checkpoint"
            f" in {path} is good; lower lr_phase{1 + (trainer.epoch >= cfg.epochs_phase1)},"
            " or set grad_clip, logvar_clamp"
        ) from error
    go_on_from(trainer, path)
    trainer.setbacks = setbacks
    say(f"{what}: back to epoch {trainer.epoch}, with 1/{2**setbacks} of the learning rate")
