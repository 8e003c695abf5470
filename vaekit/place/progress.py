"""Training progress: a bar where someone watches, lines elsewhere."""

import os
import sys


def watched() -> bool:
    """Whether someone watches the output live: a terminal or an interactive notebook.

    `VAEKIT_PROGRESS=bar|lines` overrides it: from within, a notebook that a script executes looks
    like any other.
    """
    wanted = os.environ.get("VAEKIT_PROGRESS")
    if wanted:
        return wanted == "bar"
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch":
        return False
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython():
        return True
    return sys.stderr.isatty()


class Progress:
    """A tqdm bar over epochs when someone watches, else one line per epoch (about 25 lines at most
    in long runs). `visible=False`: neither."""

    def __init__(self, total: int, done: int, visible: bool):
        self.total = total
        self.visible = visible
        self.every = max(1, round(total / 25))
        self.shown = 0
        self.bar = None
        if visible and watched():
            from tqdm.auto import tqdm

            self.bar = tqdm(total=total, initial=done, unit="epoch")

    def show(self, row: dict) -> None:
        """Report an epoch by its row of the history."""
        text = (
            f"phase {row['phase']}  beta {row['beta']:.2g} (beta_elbo {row['beta_elbo']:.2g})"
            f"  train {row['train_loss']:.4f}  val {row['val_loss']:.4f}"
            f"  KL {row['val_kl']:.0f} nats  PSNR {row['val_psnr']:.1f} dB"
        )
        epoch = row["epoch"]
        self.shown += 1
        if self.bar:
            self.bar.set_description_str(text, refresh=False)
            self.bar.update()
        elif self.visible and (epoch % self.every == 0 or epoch in (1, self.total)):
            print(f"epoch {epoch:>3}/{self.total}  {text}  {row['seconds']:.1f} s")

    def close(self) -> None:
        if self.bar:
            self.bar.close()
