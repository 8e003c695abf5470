"""One of the processes that `launch` starts: `torchrun -m vaekit.keep.worker FOLDER`."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from vaekit.config import Config
from vaekit.data import load_kept
from vaekit.keep.launch import leave_group
from vaekit.keep.run import fit


def main(folder: Path) -> None:
    """`fit` as the job in `folder` says; writes the run's path there, or the error."""
    rank = os.environ["RANK"]
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until `fit` listens
    threading.Thread(target=stop_with_the_parent, daemon=True).start()
    try:
        job = json.loads((folder / "job.json").read_text())
        path = train(Config.load(folder / "config.json"), **job)
        if rank == "0":
            (folder / "run").write_text(str(path))
        leave_group()
    except Exception as error:
        (folder / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
        raise


def train(cfg: Config, data: list, argv: list, deadline: float | None, **options) -> Path:
    sys.argv = argv  # the command that run.json records
    minutes = None if deadline is None else (deadline - time.time()) / 60
    return fit(cfg, load_kept(*data), max_minutes=minutes, **options).path


def stop_with_the_parent() -> None:
    """Wait until the parent's end of the pipe is closed, by its request or its death; then end."""
    sys.stdin.read()
    while signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
