"""Files of a run: written whole or not at all, read without ever executing what they hold."""

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
    The old one becomes `keep`. Raises OSError (disk full, read-only); it is then still in place."""
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a kill leaves is overwritten
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
    `previous.<name>`, so that one torn by a failing disk costs one interval and not the run.

    Raises FloatingPointError, and leaves the files alone, where a weight is not finite.
    """
    check_finite(state)
    buffer = io.BytesIO()  # straight into a file, torch would make other errors of a full disk
    torch.save({"format": FORMAT, **state}, buffer)
    # let go of the view: one left to the garbage collector crashes Python 3.12.1
    with buffer.getbuffer() as content:
        write_atomic(path, content, keep=path.with_name(f"previous.{path.name}"))


def load_checkpoint(path: Path, use: Callable[[dict], None] | None = None) -> dict:
    """The saved dict, on the CPU, given to `use`. Never unpickles objects (`weights_only=True`).

    Raises CheckpointError for a file that is missing, torn, foreign or of another format, whose
    weights are not finite, or that `use` raises anything at.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # every part of a torch file carries a CRC
            # torch compresses nothing: what is compressed may be a bomb
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
    """`load_checkpoint` of `name` or else the one before it; None where neither was ever written.

    Says which file was passed over; `repair` puts the good one in its place, lest the next save
    keep the bad one. Raises CheckpointError when files are there, or were, and none is good.
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
    lost = name == "last.pt" and (folder / "history.csv").exists()  # written after the first
    if lost or newest.exists() or before.exists():
        raise problems[0]
    return None
