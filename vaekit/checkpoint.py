"""Files of a run: written whole or not at all, read without ever executing what they hold."""

import csv
import io
import json
import os
import zipfile
from pathlib import Path

import torch

FORMAT = 1  # of the checkpoints; raise it when their keys change


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write under a temporary name, flush to disk, rename: a reader sees the old file or the new.

    Raises OSError (disk full, read-only); the old file is then still whole.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
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


def save_checkpoint(path: Path, state: dict) -> None:
    """Save tensors, plain numbers, strings, lists and dicts; the file before is kept as
    `previous.<name>`, so that one torn by a failing disk costs one interval and not the run."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    if path.exists():
        os.replace(path, path.with_name(f"previous.{path.name}"))
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict:
    """The saved dict, on the CPU. Never unpickles objects (`weights_only=True`).

    Raises CheckpointError for a file that is missing, torn, foreign, or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:  # every part of a torch file carries a CRC
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f"{path} is damaged (at {damaged})")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, pickle and torch each raise kinds of their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read: {reason}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path} has format {found}, this vaekit reads {FORMAT}")
    return state


def newest_valid(folder: Path, name: str = "last.pt") -> dict | None:
    """The newest readable of `name` and the one before it; None where neither was ever written.

    Says which file was passed over; raises CheckpointError when files are there and none is good.
    """
    problems = []
    for path in (folder / name, folder / f"previous.{name}"):
        try:
            state = load_checkpoint(path)
            if problems:
                print(f"{problems[-1]}; going on from {path.name}")
            return state
        except CheckpointError as error:
            problems.append(error)
    if any((folder / n).exists() for n in (name, f"previous.{name}")):
        raise problems[0]
    return None
