"""Files of a run: written completely or not at all, read without executing their content."""

import csv
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

FORMAT = 1  # of the checkpoints; raise it when their keys change
FINITE = {"model", "ema", "optimizer", "scaler", "critic"}  # must hold no NaN and no infinity


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used or written; the message names the file and the reason."""


def write_atomic(path: Path, content: bytes | memoryview, keep: Path | None = None) -> None:
    """Write under a temporary name, flush to disk, rename: a reader sees the old file or the new.
    The old one becomes `keep`. Raises OSError (disk full, read-only); the old file is then kept."""
    temporary = path.with_name(f".{path.name}.tmp")  # one name: leftovers are overwritten
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict) -> None:
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def write_history(path: Path, history: list[dict]) -> None:
    """One line per epoch; columns are the union over epochs, in order of appearance."""
    columns = list(dict.fromkeys(key for row in history for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomic(path, text.getvalue().encode())


def check_finite(value, name: str = "") -> None:
    """FloatingPointError for a NaN or infinity among the weights of a checkpoint's state."""
    if isinstance(value, dict):
        for key in value if name else value.keys() & FINITE:
            check_finite(value[key], f"{name}.{key}" if name else key)
    elif isinstance(value, (float, torch.Tensor)) and not torch.as_tensor(value).isfinite().all():
        raise FloatingPointError(f"{name} is not finite")


def save_checkpoint(path: Path, state: dict) -> None:
    """Save tensors, plain numbers, strings, lists and dicts; the file before is kept as
    `previous.<name>`, so that a torn file costs one interval and not the run.

    Raises FloatingPointError, and leaves the files alone, where a weight is not finite.
    """
    check_finite(state)
    buffer = io.BytesIO()  # writing to a file directly, torch would hide that the disk is full
    torch.save({"format": FORMAT, **state}, buffer)
    # release the view: if left to the garbage collector, it crashes Python 3.12.1
    with buffer.getbuffer() as content:
        write_atomic(path, content, keep=path.with_name(f"previous.{path.name}"))


def load_checkpoint(path: Path, use: Callable[[dict], None] | None = None) -> dict:
    """The saved dict, on the CPU, passed to `use`. Never unpickles objects (`weights_only=True`).

    Raises CheckpointError for a file that is missing, torn, foreign or of another format, that has
    weights that are not finite, or for which `use` raises.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # every part of a torch file carries a CRC
            # torch does not compress: a compressed file may be a zip bomb
            if any(part.compress_type for part in archive.infolist()) or archive.testzip():
                raise ValueError("damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        if found != FORMAT:
            raise ValueError(f"it has format {found}, this vaekit reads {FORMAT}")
        check_finite(state)
        if use:
            use(state)
    except Exception as error:  # zipfile, pickle, torch and models each raise kinds of their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be used: {reason}") from error
    return state


def newest_valid(
    folder: Path,
    name: str = "last.pt",
    use: Callable[[dict], None] | None = None,
    repair: bool = False,
) -> dict | None:
    """`load_checkpoint` of `name`, or of the one before it; None where neither was ever written.

    Prints which file was skipped; `repair` puts the good one in its place, or the next save would
    keep the bad one. Raises CheckpointError where files are or were there, and none is good.
    """
    newest = folder / name
    before = folder / f"previous.{name}"
    problems = []
    for file in (newest, before):
        try:
            state = load_checkpoint(file, use)
        except CheckpointError as error:
            problems.append(error)
            continue
        if problems:
            print(f"{problems[0]}; going on from {before.name}")
        if problems and repair:
            os.replace(before, newest)
        return state
    lost = name == "last.pt" and (folder / "history.csv").exists()  # written after the first epoch
    if lost or newest.exists() or before.exists():
        raise problems[0]
    return None
