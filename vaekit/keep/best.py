"""Which epoch was best: its averaged weights are what a run returns."""

import math

from vaekit.losses import reduction_factors


class Best:
    """The epoch with the lowest negative ELBO on validation images, at the final beta.

    Only epochs that train at the full beta compete: with a smaller one the loss is smaller for no
    merit of its own. An adaptive beta moves; the best epoch's KL is then priced at the new one.
    """

    def __init__(self):
        self.state = None  # as it lies in best.pt
        self.loss = math.inf
        self.bad_epochs = 0  # since the best one

    def consider(self, trainer, row: dict[str, float]) -> None:
        self.bad_epochs += 1
        if row["val_loss"] >= self.loss or math.isnan(row["val_loss"]):
            return
        self.loss = row["val_loss"]
        self.bad_epochs = 0
        _, k_kl = reduction_factors(*trainer.sizes, trainer.cfg)
        weights = trainer.ema.state_dict().items()
        self.state = {
            "model": {name: value.detach().cpu().clone() for name, value in weights},
            "epoch": row["epoch"],
            "loss": row["val_loss"],
            "beta": trainer.final_beta,
            "rate": k_kl * row["val_kl"],
            "config": trainer.cfg.to_dict(),
        }

    def loss_at(self, beta: float) -> float:
        """The best epoch's validation loss, its KL priced at `beta`."""
        if self.state is None:
            return math.inf
        risen = beta - self.state.get("beta", beta)
        return self.state["loss"] + risen * self.state.get("rate", 0.0)
