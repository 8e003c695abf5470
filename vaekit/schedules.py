"""What changes during training: beta, the learning rate, the critic's pull. Pure functions of
progress, and two small controllers that follow the run."""

import math

from vaekit.config import Config


def beta_at(cfg: Config, epoch: float, level: float | None = None) -> float:
    """The KL weight at `epoch` (counted from 0 over both phases, fractions allowed).

    0 in phase 1. In phase 2, by `beta_schedule`: "constant" is `beta`; "warmup" rises in a straight
    line from `beta_start`, or `beta` if that is smaller, to `beta` over `beta_warmup` epochs
    (Bowman et al. 2016); "cyclical" has cycles of `cycle_epochs`, of which the first
    `cycle_cooldown` are at `cycle_reduction` times beta, but not below a floor that grows from
    cycle to cycle (after Fu et al. 2019). With "adaptive" and "adaptive_cyclical" beta is the
    `level` of a `BetaBand`, at first `cfg.beta`.
    """
    since = epoch - cfg.epochs_phase1
    if since < 0:
        return 0.0
    beta = cfg.beta if level is None else level
    if cfg.beta_schedule == "warmup" and since < cfg.beta_warmup:
        start = min(cfg.beta_start, beta)
        return start + (beta - start) * since / cfg.beta_warmup
    if "cyclical" in cfg.beta_schedule:
        cycle, within = divmod(since, cfg.cycle_epochs)
        if within < cfg.cycle_cooldown:
            floor = cfg.beta_floor * cfg.beta_floor_growth**cycle
            return min(beta, max(floor, cfg.cycle_reduction * beta))
    return beta


def decoder_only(cfg: Config, epoch: float) -> bool:
    """Whether the encoder is frozen and a critic trains: the last part of a run that has one."""
    return cfg.critic_share > 0 and epoch >= cfg.critic_from * cfg.num_epochs


def critic_share_at(cfg: Config, epoch: float) -> float:
    """The critic's pull on the decoder. Of the epochs with a critic: 0 in the first quarter, where
    it learns and the decoder trains without it; a straight rise in the second; then the whole."""
    if not decoder_only(cfg, epoch):
        return 0.0
    start = cfg.critic_from * cfg.num_epochs
    progress = (epoch - start) / (cfg.num_epochs - start)
    return cfg.critic_share * min(max(4 * progress - 1, 0.0), 1.0)


def final_objective(cfg: Config, epoch: int) -> bool:
    """Whether `epoch` trains with the full beta, and the full critic if there is one. Validation
    losses are comparable only among such epochs."""
    if critic_share_at(cfg, epoch) < cfg.critic_share:
        return False
    if not cfg.epochs_phase2:
        return True
    return epoch >= cfg.epochs_phase1 and beta_at(cfg, epoch) == cfg.beta


class BetaBand:
    """Keeps the KL's share of the loss between `kl_share_low` and `kl_share_high`.

    `step(share, ceiling)` once an epoch: share is the KL's part of the loss at `level`; it is
    smoothed. Outside the band, `level` moves towards the band's geometric middle, by a factor of 2
    at most. It stays at or below `ceiling`, the ELBO's beta: a collapsed KL has a small share too,
    and more beta would not bring it back.
    """

    def __init__(self, cfg: Config):
        self.low, self.high = cfg.kl_share_low, cfg.kl_share_high
        self.level = cfg.beta
        self.share = None

    def step(self, share: float, ceiling: float = math.inf) -> float:
        share = max(share, 1e-12)
        # mean of logarithms: shares differ by orders of magnitude
        if self.share is not None:
            share = self.share**0.5 * share**0.5
        factor = 1.0
        if not self.low <= share <= self.high:
            middle = math.sqrt(self.low * self.high)
            factor = min(max((middle / share) ** 0.5, 0.5), 2.0)
        level = min(self.level * factor, ceiling)
        # expect the share at the new level, or the smoothing would overshoot
        self.share = share * level / self.level
        self.level = level
        return level

    def state_dict(self) -> dict:
        """Plain numbers, for checkpoints."""
        return {"level": self.level, "share": self.share}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def lr_factor(kind: str, progress: float, warmup: float = 0.0) -> float:
    """Multiplier of the phase's learning rate at `progress` in [0, 1] of the phase.

    A straight rise over the first `warmup` of the phase (Goyal et al. 2017), then: "constant" 1;
    "plateau" 1, which a `Plateau` lowers; "cosine" a half cosine to 0; "cosine_restarts" three half
    cosines from 1 to 0, each twice as long as the one before (Loshchilov and Hutter 2017).
    """
    if progress < warmup:
        # a rate of 0 would waste the first step
        return max(progress / warmup, 0.02)
    if kind in ("constant", "plateau"):
        return 1.0
    progress = (progress - warmup) / (1 - warmup)
    if kind == "cosine_restarts":
        # in units of the first cycle: the cycles begin at 0, 1 and 3
        at = 7 * progress
        cycle = min(int(math.log2(at + 1)), 2)
        progress = (at + 1) / 2**cycle - 1
    progress = min(max(progress, 0.0), 1.0)
    return 0.5 * (1 + math.cos(math.pi * progress))


class Plateau:
    """Halves the learning rate when the value has not fallen by at least a thousandth for more than
    `patience` epochs. `step(value)` -> the factor of the phase's rate."""

    def __init__(self, patience: int = 5):
        self.patience = patience
        self.best = math.inf
        self.bad_epochs = 0
        self.scale = 1.0

    def step(self, value: float) -> float:
        if self.best == math.inf or value < self.best - 1e-3 * abs(self.best):
            self.best = value
            self.bad_epochs = 0
        else:
            self.bad_epochs += 1
        if self.bad_epochs > self.patience:
            self.scale *= 0.5
            self.bad_epochs = 0
        return self.scale

    def state_dict(self) -> dict:
        """Plain numbers, for checkpoints."""
        return {"best": self.best, "bad_epochs": self.bad_epochs, "scale": self.scale}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def ema_decay(cfg: Config, step: int) -> float:
    """Decay of the averaged weights at `step`: small at first, `cfg.ema` in the end."""
    return min(cfg.ema, (1 + step) / (10 + step))
