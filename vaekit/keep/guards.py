"""What keeps a run alive: a stop that saves, steps that are not finite, memory that runs out."""

import math
import signal
import sys
import threading
import time
import warnings

import torch
from torch import Tensor

MAX_SKIPPED = 25  # steps in a row; fp16 may rightly skip 16, until its scale has come down to 1
LOOK_EVERY = 50  # steps between two looks at that number, each of which waits for the device
MAX_SETBACKS = 3  # times that a run goes back, each time with half the learning rate
MAX_PARTS = 8  # of a batch: memory may run out three times
LEAST_SECONDS = 30  # that a call trains before the clock may cut an epoch short


class NotFinite(FloatingPointError):
    """NaN or infinity where training cannot go on."""


class Stop:
    """Remembers SIGTERM and Ctrl-C until the step is done and saved, and watches the clock.

    On exit the signal is passed on to whoever had it before. A second Ctrl-C does not wait.
    """

    def __init__(self, minutes: float | None = None):
        self.minutes, self.start, self.reserve = minutes, time.perf_counter(), 2.0  # seconds
        self.signal, self.before = None, {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # Python allows it only there
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, kind, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if self.signal and kind is None:
            sys.stdout.flush()  # SIGTERM ends the process on the spot
            signal.raise_signal(self.signal)

    def now(self, ahead: float = 0.0, least: float = LEAST_SECONDS) -> bool:
        """Whether to stop: asked to, or `ahead` more seconds and a checkpoint would be too late."""
        used = time.perf_counter() - self.start + ahead + self.reserve
        return bool(self.signal or self.minutes and used > max(60 * self.minutes, least))

    def __str__(self) -> str:
        return (
            signal.Signals(self.signal).name if self.signal else f"{self.minutes:g} minutes are up"
        )


class Tally:
    """Sums of the loss terms over an epoch's steps, each over its finite values; the gradient's
    norm is the last of them. All of it stays on the device: no step waits for another."""

    def __init__(self, streak=0, sums=0, finite=0):
        self.streak, self.sums, self.finite = streak, sums, finite

    def add(self, terms: dict[str, Tensor]) -> None:
        values = torch.stack(list(terms.values()))
        ok = values.isfinite()
        self.sums, self.finite = self.sums + torch.where(ok, values, 0), self.finite + ok
        self.streak = (self.streak + 1) * ~ok[-1]  # steps skipped in a row, up to now

    def check(self) -> None:
        if self.streak >= MAX_SKIPPED:
            raise NotFinite(f"{MAX_SKIPPED} steps in a row were not finite")


def poison(loss: Tensor) -> Tensor:
    """1, or NaN for a loss that is not finite: as a factor it reaches every gradient."""
    return torch.where(loss.detach().isfinite(), 1.0, math.nan)


@torch.no_grad()
def step_if(finite: Tensor, optimizer, scaler, buffers: list[tuple[Tensor, Tensor]]) -> None:
    """An optimiser step where `finite`; else weights stay, and (now, before) of `buffers` are as
    before. Fused optimisers decide that on the device; only the others (MPS) wait for it."""
    if optimizer.defaults["fused"]:
        optimizer.found_inf = (~finite).float()  # an enabled scaler puts its own in its place
    if optimizer.defaults["fused"] or finite:
        scaler.step(optimizer)
    scaler.update()
    for now, before in buffers:
        now.copy_(torch.where(finite, now, before))


def more_parts(error: RuntimeError, parts: int, batch: int, processes: int) -> int:
    """Twice the parts, of two images or more, where `error` is that memory ran out; else raises
    it, also where other processes would wait for this one."""
    from accelerate.utils.memory import should_reduce_batch_size

    helps = 2 * parts <= MAX_PARTS and batch >= 4 * parts and processes == 1
    if not helps or not should_reduce_batch_size(error):
        raise error
    warnings.warn(f"out of memory: batches of {batch} go through in {2 * parts} parts from here on."
                  " The gradient is that of the batch; BatchNorm, calibrated and free_bits_kind"
                  "='batch' see the parts", stacklevel=4)  # fmt: skip
    return 2 * parts
