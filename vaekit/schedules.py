"""What changes during training: beta and the learning rate. Pure functions of progress."""

import math

from vaekit.config import Config


def beta_at(cfg: Config, epoch: float) -> float:
    """The KL weight at `epoch` (counted from 0 over both phases, fractions allowed).

    0 in phase 1. In phase 2 `beta` from the start ("constant"), or rising in a straight line
    from `beta_start` to `beta` over `beta_warmup` epochs ("warmup"; Bowman et al. 2016).
    """
    since = epoch - cfg.epochs_phase1
    if since < 0:
        return 0.0
    if cfg.beta_schedule == "constant" or since >= cfg.beta_warmup:
        return cfg.beta
    return cfg.beta_start + (cfg.beta - cfg.beta_start) * since / cfg.beta_warmup


def annealed(cfg: Config, epoch: int) -> bool:
    """Whether `epoch` trains at the final beta: only then is a validation loss comparable."""
    if not cfg.epochs_phase2:
        return True
    return epoch >= cfg.epochs_phase1 and beta_at(cfg, epoch) == cfg.beta


def lr_factor(kind: str, progress: float, num_restarts: int = 3, warmup: float = 0.02) -> float:
    """Multiplier of the phase's learning rate at `progress` in [0, 1] of the phase.

    "constant" and "plateau" (which a `Plateau` lowers) 1; "cosine" a short linear warm-up, then a
    half cosine to 0; "cosine_restarts" cycles that double in length and end with the phase, each
    from 1 to 0 (Loshchilov and Hutter 2017).
    """
    if kind in ("constant", "plateau"):
        return 1.0
    if kind == "cosine":
        if progress < warmup:
            return max(progress / warmup, 0.02)
        progress = (progress - warmup) / (1 - warmup)
    else:
        unit, start = 2**num_restarts - 1, 0  # cycles of 1, 2, 4 units
        for cycle in range(num_restarts):
            length = 2**cycle
            if progress * unit < start + length or cycle == num_restarts - 1:
                progress = (progress * unit - start) / length
                break
            start += length
    return 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


class Plateau:
    """Halves the learning rate when the watched value has not fallen for `patience` epochs.

    `step(value)` -> the factor to multiply the phase's rate by. `state()` and `restore()` speak
    plain numbers, so that a checkpoint can hold them.
    """

    def __init__(self, patience: int = 5, factor: float = 0.5, threshold: float = 1e-3):
        self.patience, self.factor, self.threshold = patience, factor, threshold
        self.best, self.bad_epochs, self.scale = math.inf, 0, 1.0

    def step(self, value: float) -> float:
        if value < self.best - self.threshold * abs(self.best) or self.best == math.inf:
            self.best, self.bad_epochs = value, 0
        else:
            self.bad_epochs += 1
        if self.bad_epochs > self.patience:
            self.scale, self.bad_epochs = self.scale * self.factor, 0
        return self.scale

    def state(self) -> dict:
        return {"best": self.best, "bad_epochs": self.bad_epochs, "scale": self.scale}

    def restore(self, state: dict) -> None:
        self.best, self.bad_epochs = state["best"], state["bad_epochs"]
        self.scale = state["scale"]


def ema_decay(cfg: Config, step: int) -> float:
    """Decay of the averaged weights at `step`: short memory first, `cfg.ema` in the end."""
    return min(cfg.ema, (1 + step) / (10 + step))
