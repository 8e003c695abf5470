"""One training run in several processes, one per GPU: `fit` starts torchrun and waits.

Forking this process (accelerate's `notebook_launcher`) would fail, because a notebook has used CUDA
before it trains. The processes are new; they read config and data from disk, and write the run.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vaekit.config import Config
from vaekit.data import Data, Split, load_kept
from vaekit.keep.guards import Stop
from vaekit.place.device import count_gpus

COMPARED = 1000  # images of a split, spread over it


class ProcessFailed(RuntimeError):
    """One of several processes failed; the last checkpoint is complete."""


def choose_processes(
    wanted: int | None, cfg: Config, data: Data, on_epoch_end: Callable | None, say: Callable
) -> int:
    """How many processes train: `wanted`, or one per GPU; prints it if it is not just one.

    1 inside a group that torchrun has started, and where something cannot be passed to processes.
    ValueError for more processes than GPUs.
    """
    if "LOCAL_RANK" in os.environ:
        return 1
    gpus = count_gpus() if wanted != 1 else 1
    if wanted is not None and (wanted < 1 or gpus and wanted > gpus):
        raise ValueError(f"processes={wanted} is not from 1 to the number of GPUs, here {gpus}")
    batch = min(cfg.batch_size, len(data.train))
    number = min(wanted or gpus or 1, batch)
    if number == 1:
        return 1
    reason = why_one(data, on_epoch_end)
    if reason:
        say(f"one process trains, not {number}: {reason}")
        return 1
    share = batch // number
    who = "GPUs" if gpus else "processes"
    say(f"{number} {who} train together, with {share} images of each batch (processes=1: just one)")
    if share * number < batch:
        say(f"a batch of {batch} does not divide by {number}: it has {share * number} images here")
    return number


def why_one(data: Data, on_epoch_end: Callable | None) -> str:
    """The reason to train in this process alone, "" where there is none."""
    if sys.platform != "linux":
        return "vaekit starts others on Linux only"
    if on_epoch_end:
        return "on_epoch_end is called in this one"
    if not is_kept(data):
        return "these images are in memory only; those of load_data are on disk as well"
    return ""


def is_kept(data: Data) -> bool:
    """Whether the splits are as the cache has them: all of the images, in their order."""
    if not Path(data.file).is_file():
        return False
    kept = load_kept(data.file, data.source, data.path)
    return same_images(data.train, kept.train) and same_images(data.val, kept.val)


def same_images(mine: Split, kept: Split) -> bool:
    every = max(1, len(mine) // COMPARED)
    return len(mine) == len(kept) and torch.equal(mine.images[::every], kept.images[::every])


def train_in_processes(number: int, stop: Stop, cfg: Config, data: Data, options: dict) -> Path:
    """`fit` of `cfg` in `number` processes, whose output is printed here; returns the run's folder.

    When `stop` gets a signal, a pipe is closed, and they save and end. It also closes when this
    process dies; they then end at their last checkpoint. ProcessFailed where one of them fails.
    """
    job = {"data": (data.file, data.source, data.path), "argv": sys.argv, **options}
    job["deadline"] = None if stop.minutes is None else time.time() + stop.left + stop.reserve
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={number}"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command += ["--log-dir", name, "-m", "vaekit.keep.worker", name]
        cfg.save(folder / "config.json")
        (folder / "job.json").write_text(json.dumps(job))
        with open(folder / "stderr", "wb") as errors:
            process = subprocess.Popen(
                command,
                env=environment(number),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # a notebook's Interrupt reaches this process alone
            )
        with process:
            stop.tell = process.stdin.close
            if stop.signal:
                stop.tell()
            try:
                for line in process.stdout:
                    print(line, end="")
            except BaseException:  # a second Ctrl-C
                process.terminate()
                raise
        if process.returncode:
            raise ProcessFailed(failure(folder, number))
        return Path((folder / "run").read_text())


def environment(number: int) -> dict[str, str]:
    """Environment of the processes: they import from the same places, and share the cores."""
    threads = max(1, (os.cpu_count() or 1) // number)
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    return {"OMP_NUM_THREADS": str(threads), **os.environ, **own, "VAEKIT_PROGRESS": "lines"}


def failure(folder: Path, number: int) -> str:
    """Why the processes ended, from what they left in `folder`, and what can be done."""
    said = (folder / "stderr").read_text(errors="replace")
    signals = re.findall(r"Signal \d+ \((SIG\w+)\)", said)
    errors = sorted(folder.glob("error-*"), key=lambda file: file.stat().st_mtime_ns)
    if "SIGKILL" in signals:
        cause = "it was killed (SIGKILL), as happens where the machine's memory runs out"
    elif errors:
        cause = errors[0].read_text()
    else:
        cause = signals[0] if signals else (said.strip() or "it said nothing").splitlines()[-1]
    text = f"one of {number} processes failed: {cause}. The same call goes on from what is saved"
    if "memory" in cause:
        text += "; a smaller batch_size needs less"
    return f"{text}; processes=1 trains in this process"


def leave_group() -> None:
    """Leave the group of processes, if there is one, together: another may still write."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
