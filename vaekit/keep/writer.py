"""What a run leaves on disk."""

import contextlib
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from vaekit.data import batches
from vaekit.keep import checkpoint
from vaekit.keep.resume import state_of

SAVE_SECONDS = 30  # between checkpoints of short epochs; the end of a phase always saves


class RunWriter:
    """What a run leaves on disk; only the `main` process writes.

    Raises CheckpointError, which names the last good state, where the disk is full or read-only.
    """

    def __init__(self, run, trainer, main: bool):
        from torch.utils.tensorboard import SummaryWriter

        self.run, self.trainer, self.main = run, trainer, main
        self.good = trainer.epoch if (run.path / "last.pt").exists() else None
        self.saved, self.board, self.best = time.perf_counter(), None, trainer.best
        if main:
            with self._disk():
                checkpoint.write_json(run.path / "run.json", run.info)
                self.board = SummaryWriter(str(run.path), purge_step=trainer.epoch + 1)
            if self.good is None:  # a bad disk is found before the work is done
                self.save()

    def close(self) -> None:
        if self.board:
            with contextlib.suppress(OSError):  # of a full disk has been told already
                self.board.close()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            good = "nothing" if self.good is None else f"the state after epoch {self.good}"
            raise checkpoint.CheckpointError(
                f"{self.run.path} cannot be written: {error}. On disk, and whole, is {good}: make"
                " room, and the same call goes on from there"
            ) from error

    def epoch(self, row: dict) -> None:
        """Log it and draw samples; save where a phase or half a minute is over."""
        cfg, trainer = self.run.cfg, self.trainer
        if not self.main:
            return
        with self._disk():
            for name, value in row.items():
                self.board.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
            if row["epoch"] % cfg.sample_every == 0 or trainer.done:
                self.board.add_image("samples", self._samples(row["epoch"]), row["epoch"])
        late = time.perf_counter() - self.saved > SAVE_SECONDS
        if late or trainer.done or trainer.epoch == cfg.epochs_phase1:
            self.save()

    def _samples(self, epoch: int) -> Tensor:
        """Eight films, their reconstructions and eight prior samples, also as a PNG."""
        from torchvision.utils import make_grid, save_image

        model, split = self.trainer.ema, self.trainer.data.val
        x = next(batches(split, min(8, len(split)), self.trainer.device))
        noise = torch.Generator().manual_seed(self.run.cfg.seed)
        z = torch.randn(8, *model.latent_shape, generator=noise).to(x.device)
        with torch.no_grad():
            grid = make_grid(torch.cat([x, model.reconstruct(x), model.decode(z)]), nrow=8)
        folder = self.run.path / "samples"
        folder.mkdir(exist_ok=True)
        save_image(grid, folder / f"epoch_{epoch:04d}.png")
        return grid.cpu()

    def save(self) -> None:
        path, trainer, start = self.run.path, self.trainer, time.perf_counter()
        with self._disk():
            if trainer.best is not self.best:  # first: who dies in between trains it again
                checkpoint.save_checkpoint(path / "best.pt", trainer.best)
                self.best = trainer.best
            checkpoint.save_checkpoint(path / "last.pt", state_of(trainer))
            self.good = trainer.epoch
            checkpoint.write_history(path / "history.csv", trainer.history)
        self.saved = time.perf_counter()
        trainer.stop.reserve = 2 + 2 * (self.saved - start)

    def finish(self) -> None:
        """All that it has, the weights for other tools, and only then that it has finished."""
        from safetensors.torch import save

        if not self.main:
            return
        if self.good < self.trainer.epoch or self.trainer.partial:
            self.save()
        weights = {k: v.contiguous() for k, v in self.run.model.state_dict().items()}
        with self._disk():
            checkpoint.write_atomic(self.run.path / "model.safetensors", save(weights))
            self.run.info["finished"] = self.trainer.done
            checkpoint.write_json(self.run.path / "run.json", self.run.info)
