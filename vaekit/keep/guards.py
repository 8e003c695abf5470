"""A Trainer for long runs: it saves when stopped, skips steps that are not finite, and splits
batches when memory runs out."""

import copy
import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from vaekit.config import Config
from vaekit.keep.best import Best
from vaekit.model import VAE
from vaekit.schedules import final_objective
from vaekit.train import Trainer

MAX_SKIPPED = 25  # steps in a row; fp16 may skip 16 until its scale is down to 1
LOOK_EVERY = 50  # steps between two checks, each of which waits for the device
MAX_SETBACKS = 3  # times that a run goes back, each time with half the learning rate
SHORT_EPOCH = 30  # seconds; the writer saves after each longer one
MAX_PARTS = 8  # of a batch: memory may run out three times


class NotFinite(FloatingPointError):
    """NaN or infinity where training cannot go on."""


class Stopped(Exception):
    """Training has to end here, between two epochs."""


class Interrupted(Stopped):
    """Training has to end between two steps; the current epoch is trained again later."""


class Stop:
    """Remembers SIGTERM and Ctrl-C until the step is done and saved, and watches the clock.

    On exit the signal is passed on to its previous handler. A second Ctrl-C does not wait.
    """

    def __init__(self, minutes: float | None = None):
        self.minutes = minutes
        self.start = time.perf_counter()
        self.reserve = 2.0  # seconds that saving takes
        self.signal = None
        self.before = {}
        self.tell = None  # called at a signal: other processes do the work (`keep.launch`)

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # Python allows it only there
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.remember)
        return self

    def remember(self, number: int, frame) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if self.tell:
            self.tell()

    def __exit__(self, kind, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if self.signal and kind is None:
            sys.stdout.flush()  # SIGTERM ends the process on the spot
            signal.raise_signal(self.signal)

    @property
    def left(self) -> float:
        """Seconds, without the time for saving; infinite without a limit."""
        limit = math.inf if self.minutes is None else 60 * self.minutes
        return limit - (time.perf_counter() - self.start) - self.reserve

    def now(self, ahead: float) -> bool:
        """Whether to stop: by request, or because `ahead` more seconds and saving would be too
        long."""
        return bool(self.signal) or ahead > self.left

    def __str__(self) -> str:
        if self.signal:
            return signal.Signals(self.signal).name
        if self.minutes is None:
            return "another process was asked to stop"
        return f"{self.minutes:g} minutes are up"


class GuardedTrainer(Trainer):
    """A Trainer that skips steps that are not finite, splits a batch when memory runs out, stops
    between two steps, and remembers the best epoch."""

    def __init__(self, cfg: Config, data, features=None, stop: Stop | None = None):
        super().__init__(cfg, data, features)
        self.stop = stop or Stop()
        self.best = Best()
        self.setbacks = 0  # times it went back to a checkpoint
        self.skipped = 0  # steps of this epoch
        self.streak = 0  # ... in a row

    # ---- steps -----------------------------------------------------------------------------------

    def step(self, x: Tensor, epoch: float) -> dict[str, Tensor]:
        """As `Trainer.step`; skipped where loss or gradient is not finite, as `grad_norm` then
        shows."""
        self.buffers = [(b, b.clone()) for b in self.raw.buffers()]  # BatchNorm's; most have none
        terms = super().step(x, epoch)
        skipped = ~terms["grad_norm"].isfinite()
        self.skipped = self.skipped + skipped
        self.streak = (self.streak + 1) * skipped
        return terms

    def gradients(self, x: Tensor, epoch: float) -> dict[str, Tensor]:
        """As `Trainer.gradients`, in more parts where memory runs out."""
        return self.in_memory(super().gradients, x, epoch)

    def zero_grad(self) -> None:
        super().zero_grad()
        for now, before in self.buffers:  # an attempt that ran out of memory may have changed them
            now.copy_(before)

    def in_memory(self, work: Callable, *args):
        """work(*args); where memory runs out, again with batches in twice as many parts."""
        while True:
            try:
                return work(*args)
            except RuntimeError as error:
                batch = min(self.cfg.batch_size, len(self.data.train))
                self.parts = more_parts(error, self.parts, batch, self.accelerator.num_processes)
            # only now, after the error is gone, is its memory free
            clear_device_cache(garbage_collection=True)

    def objective(self, total: Tensor) -> Tensor:
        """NaN for a loss that is not finite: as a factor it reaches every gradient, in all
        processes."""
        return total * torch.where(total.detach().isfinite(), 1.0, math.nan)

    @torch.no_grad()
    def update(self, terms: dict[str, Tensor]) -> None:
        """An optimiser step if the gradient is finite; else weights and statistics stay."""
        finite = terms["grad_norm"].isfinite()
        if self.fused:
            # the flag by which a GradScaler tells a fused Adam to change nothing: no number comes
            # back from the device. (An enabled scaler puts its own in its place.)
            self.optimizer.found_inf = (~finite).float()
            if self.critic:
                self.critic.optimizer.found_inf = (~finite).float()
        # other optimisers (MPS) know no flag: here the number is waited for
        if self.fused or finite:
            super().update(terms)
        else:
            self.scaler.update()
        for now, before in self.buffers:
            now.copy_(torch.where(finite, now, before))

    def learning_rate(self, epoch: float) -> float:
        return super().learning_rate(epoch) / 2**self.setbacks

    # ---- epochs ----------------------------------------------------------------------------------

    def run_epoch(self) -> dict[str, float]:
        """As `Trainer.run_epoch`; raises Interrupted, or NotFinite where it cannot continue."""
        start = time.perf_counter()
        row = super().run_epoch()
        row["seconds"] = round(time.perf_counter() - start, 3)
        return row

    def epoch_batches(self) -> Iterator[tuple[Tensor, float]]:
        for i, batch in enumerate(super().epoch_batches()):
            if i % LOOK_EVERY == 0:
                self.check_streak()
            if self.interrupted(i):
                raise Interrupted
            yield batch
        self.check_streak()

    def interrupted(self, step: int) -> bool:
        """Whether to end before this step; several processes ask one another now and then."""
        asked = bool(self.stop.signal) and not self.soon_over
        if self.accelerator.num_processes == 1:
            return asked
        return step % LOOK_EVERY == 0 and self.in_any_process(asked)

    def in_any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process: all have to leave the loop together."""
        flags = torch.tensor(float(flag), device=self.device)
        return self.accelerator.reduce(flags).item() > 0

    @property
    def soon_over(self) -> bool:
        """Whether epochs are so short that this one can be finished before stopping."""
        return bool(self.history) and self.history[-1]["seconds"] < SHORT_EPOCH

    def check_streak(self) -> None:
        if self.streak >= MAX_SKIPPED:
            raise NotFinite(f"{MAX_SKIPPED} steps in a row were not finite")

    def begin_phase2(self) -> None:
        self.in_memory(super().begin_phase2)

    def validate(self) -> dict[str, float]:
        return self.in_memory(super().validate)

    def train_epoch(self) -> dict[str, float]:
        self.skipped = 0
        means = super().train_epoch()
        skipped = int(self.skipped)
        return means | {"skipped": skipped} if skipped else means

    def new_row(self, train_means: dict, val_means: dict) -> dict[str, float]:
        if not math.isfinite(train_means["loss"] + val_means["loss"]):
            raise NotFinite("the loss is not finite")
        return super().new_row(train_means, val_means)

    # ---- the best epoch --------------------------------------------------------------------------

    def adapt(self, row: dict[str, float]) -> None:
        if final_objective(self.cfg, self.epoch):
            self.best.consider(self, row)
        super().adapt(row)
        if "adaptive" in self.cfg.beta_schedule:  # beta has moved, and the KL's weight with it
            self.best.loss = self.best.loss_at(self.final_beta)

    @property
    def done(self) -> bool:
        impatient = 0 < self.cfg.early_stop <= self.best.bad_epochs
        return impatient or super().done

    def result(self) -> VAE:
        """The averaged weights of the best epoch, or of the last one if annealing has not ended."""
        model = copy.deepcopy(self.ema)
        if self.best.state:
            model.load_state_dict(self.best.state["model"])
        return model

    # ---- what is in a checkpoint -----------------------------------------------------------------

    def state_dict(self) -> dict:
        """Complete between two epochs; the best epoch's weights are in their own file."""
        return super().state_dict() | {
            "best_loss": self.best.loss,
            "bad_epochs": self.best.bad_epochs,
            "setbacks": self.setbacks,
            "parts": self.parts,
        }

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.best.loss = state["best_loss"]
        self.best.bad_epochs = state["bad_epochs"]
        self.setbacks = state.get("setbacks", 0)  # older files lack these
        self.parts = state.get("parts", 1)
        self.streak = 0


def more_parts(error: RuntimeError, parts: int, batch: int, processes: int) -> int:
    """Twice the parts, of two images or more, if `error` means that memory ran out. Else raises
    `error`, as it does where other processes would wait for this one."""
    possible = 2 * parts <= MAX_PARTS and batch >= 4 * parts and processes == 1
    if not possible or not should_reduce_batch_size(error):
        raise error
    warnings.warn(
        f"out of memory: batches of {batch} go through in {2 * parts} parts from here on. The"
        " gradient is that of the batch, but BatchNorm, calibrated, free_bits_kind='batch', a"
        " critic's share and VQ's codebook see the parts",
        stacklevel=4,
    )
    return 2 * parts
