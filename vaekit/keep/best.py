"""Which epoch's averaged weights a run returns: the newest whose loss is close to the lowest."""

import math

from vaekit.losses import reduction_factors

TOLERANCE = 0.02  # how far above the lowest loss an epoch may be, as a share of it
BROKEN = 0.25  # ... with a critic, which raises the loss to gain detail


class Best:
    """The epoch in best.pt: not that of the lowest validation loss, but the newest close to it.

    Only epochs with the final objective compete (`schedules.final_objective`): with a smaller beta,
    or without a term that comes later, the loss is lower because less is asked. Of these it takes
    the newest whose validation loss, at the final beta, is within TOLERANCE of the lowest so far:
    such epochs differ by chance, and detail still improves when the loss no longer does. With a
    critic, whose term is not in the loss, it may rise by BROKEN. When an adaptive beta moves, the
    KL of the kept epoch is weighted by the new one.
    """

    def __init__(self):
        self.state = None  # as stored in best.pt
        self.loss = math.inf  # the lowest so far
        self.bad_epochs = 0  # since the lowest

    def consider(self, trainer, row: dict[str, float]) -> None:
        loss = row["val_loss"]
        self.bad_epochs += 1
        tolerance = BROKEN if trainer.cfg.critic_share else TOLERANCE
        if math.isnan(loss) or loss > self.loss + tolerance * abs(self.loss):
            return
        if loss < self.loss:
            self.loss = loss
            self.bad_epochs = 0
        _, k_kl = reduction_factors(*trainer.sizes, trainer.cfg)
        weights = trainer.ema.state_dict().items()
        self.state = {
            "model": {name: value.detach().cpu().clone() for name, value in weights},
            "epoch": row["epoch"],
            "loss": loss,
            "lowest": self.loss,
            "beta": trainer.final_beta,
            "rate": k_kl * row["val_kl"],
            "config": trainer.cfg.to_dict(),
        }

    def loss_at(self, beta: float) -> float:
        """The lowest validation loss, with the KL of the kept epoch weighted by `beta`."""
        if self.state is None:
            return math.inf
        risen = beta - self.state.get("beta", beta)
        lowest = self.state.get("lowest", self.state["loss"])
        return lowest + risen * self.state.get("rate", 0.0)
