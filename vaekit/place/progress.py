"""How a training is watched."""

import os
import sys


def watched() -> bool:
    """Whether someone watches the output live: a terminal or an interactive notebook.

    `VAEKIT_PROGRESS=bar|lines` decides where it is set (a notebook executed by a script looks
    like any other from within).
    """
    wanted = os.environ.get("VAEKIT_PROGRESS", "")
    if wanted:
        return wanted == "bar"
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch":
        return False
    interactive = "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None
    return interactive or sys.stderr.isatty()


class Progress:
    """A tqdm bar over epochs when someone watches, a line an epoch when nobody does
    (thinned out to about 25 lines in long runs)."""

    def __init__(self, total: int, done: int, visible: bool):
        self.total, self.visible, self.bar = total, visible, None
        self.every = max(1, round(total / 25))
        if visible and watched():
            from tqdm.auto import tqdm

            self.bar = tqdm(total=total, initial=done, unit="epoch")

    def show(self, row: dict) -> None:
        text = (
            f"phase {row['phase']}  beta {row['beta']:.2g} (beta_elbo {row['beta_elbo']:.2g})"
            f"  train {row['train_loss']:.4f}  val {row['val_loss']:.4f}"
            f"  KL {row['val_kl']:.0f} nats  PSNR {row['val_psnr']:.1f} dB"
        )
        if self.bar is not None:
            self.bar.set_description_str(text, refresh=False)
            self.bar.update()
        elif self.visible and (row["epoch"] % self.every == 0 or row["epoch"] in (1, self.total)):
            print(f"epoch {row['epoch']:>3}/{self.total}  {text}  {row['seconds']:.1f} s")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
