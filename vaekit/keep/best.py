"""Which epoch was best: its averaged weights are what a run returns."""

import math

from vaekit.losses import reduction_factors

TOLERANCE = 0.02  # of the lowest loss: what an epoch may be above it
BROKEN = 0.25  # ... with a critic, which pays with distance for what the loss does not see


class Best:
    """The newest epoch whose averaged weights validation does not call broken.

    Only epochs of the final objective compete (`schedules.final_objective`): with a smaller beta,
    or without a term that comes later, the loss is smaller because less is asked. Of these the
    newest is taken whose loss on validation images, at the final beta, is within TOLERANCE of the
    lowest so far: epochs that close differ by chance, and detail is still improving when the loss
    no longer does. With a critic, whose term no loss measures, it may rise by BROKEN. An adaptive
    beta moves; the kept epoch's KL is then priced at the new one.
    """

    def __init__(self):
        self.state = None  # as it lies in best.pt
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
        """The lowest validation loss, the KL of the kept epoch priced at `beta`."""
        if self.state is None:
            return math.inf
        risen = beta - self.state.get("beta", beta)
        lowest = self.state.get("lowest", self.state["loss"])
        return lowest + risen * self.state.get("rate", 0.0)
