"""Writes a run to disk: checkpoints, history, sample grids, and the final weights."""

import contextlib
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from vaekit.data import as_float
from vaekit.keep import checkpoint
from vaekit.sample import decode_all, encode_all, sample_latents

SAVE_SECONDS = 30  # between checkpoints of short epochs; the end of a phase always saves


class RunWriter:
    """Writes checkpoints, history, TensorBoard events and sample grids; only the `main` process.

    Raises CheckpointError, with the last good state, where the disk is full or read-only.
    """

    def __init__(self, run, trainer, main: bool):
        self.run = run
        self.trainer = trainer
        self.main = main
        self.board = None
        self.good = trainer.epoch if (run.path / "last.pt").exists() else None
        self.best = None if self.good is None else trainer.best.state  # as stored on disk
        self.saved = time.perf_counter()
        if main:
            from torch.utils.tensorboard import SummaryWriter

            with self.disk():
                checkpoint.write_json(run.path / "run.json", run.info)
                self.board = SummaryWriter(str(run.path), purge_step=trainer.epoch + 1)
            if self.good is None:  # a bad disk is found before the work is done
                self.save()

    def close(self) -> None:
        if self.board:
            with contextlib.suppress(OSError):  # a full disk has been reported already
                self.board.close()

    @contextlib.contextmanager
    def disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            good = "nothing" if self.good is None else f"the state after epoch {self.good}"
            raise checkpoint.CheckpointError(
                f"{self.run.path} cannot be written: {error}. On disk, and whole, is {good}: make"
                " room, and the same call goes on from there"
            ) from error

    def write_epoch(self, row: dict) -> None:
        """Log it and draw samples; save at the end of a phase and after half a minute."""
        if not self.main:
            return
        cfg = self.run.cfg
        epoch = row["epoch"]
        with self.disk():
            for name, value in row.items():
                self.board.add_scalar(name.replace("_", "/", 1), value, epoch)
            if epoch % cfg.sample_every == 0 or self.trainer.done:
                self.board.add_image("samples", self.draw_samples(epoch), epoch)
        late = time.perf_counter() - self.saved > SAVE_SECONDS
        if late or self.trainer.done or epoch == cfg.epochs_phase1:
            self.save()

    def draw_samples(self, epoch: int) -> Tensor:
        """Eight images, their reconstructions and eight prior samples, also as a PNG."""
        from torchvision.utils import make_grid, save_image

        model = self.trainer.ema
        x = as_float(self.trainer.data.val.images[:8])
        z = sample_latents(model, 8, seed=self.run.cfg.seed)
        size = self.run.cfg.batch_size // self.trainer.parts
        copies = decode_all(model, encode_all(model, x, size)[0], size)
        grid = make_grid(torch.cat([x, copies, decode_all(model, z, size)]), nrow=8)
        folder = self.run.path / "samples"
        folder.mkdir(exist_ok=True)
        save_image(grid, folder / f"epoch_{epoch:04d}.png")
        return grid

    def save(self) -> None:
        path = self.run.path
        trainer = self.trainer
        start = time.perf_counter()
        with self.disk():
            if trainer.best.state is not self.best:  # first: a kill after it costs an epoch
                checkpoint.save_checkpoint(path / "best.pt", trainer.best.state)
                self.best = trainer.best.state
            checkpoint.save_checkpoint(path / "last.pt", trainer.state_dict())
            self.good = trainer.epoch
            checkpoint.write_history(path / "history.csv", trainer.history)
        self.saved = time.perf_counter()
        trainer.stop.reserve = 2 + 2 * (self.saved - start)

    def finish(self) -> None:
        """Save everything, export the weights for other tools, and then mark the run as
        finished."""
        from safetensors.torch import save

        if not self.main:
            return
        if self.good < self.trainer.epoch:
            self.save()
        weights = {k: v.contiguous() for k, v in self.run.model.state_dict().items()}
        with self.disk():
            checkpoint.write_history(self.run.path / "history.csv", self.trainer.history)
            checkpoint.write_atomic(self.run.path / "model.safetensors", save(weights))
            self.run.info["finished"] = self.trainer.done
            checkpoint.write_json(self.run.path / "run.json", self.run.info)
