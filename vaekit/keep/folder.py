"""The folders of runs: create one, find one again, lock it against other processes."""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from vaekit.config import Config
from vaekit.keep.checkpoint import write_json
from vaekit.keep.resume import differences, in_words
from vaekit.place.setup import attached
from vaekit.presets import DURATIONS


def runs_dir() -> Path:
    """Where runs are written: `VAEKIT_RUNS`, else `runs` in the working folder."""
    return Path(os.environ.get("VAEKIT_RUNS") or "runs")


def read_info(path: Path) -> dict:
    """The content of `run.json`; {} where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        info = json.loads((path / "run.json").read_text())
        if isinstance(info, dict) and isinstance(info.get("data"), dict):
            return info
    return {}


class Candidate(NamedTuple):
    path: Path
    cfg: Config
    changed: dict  # {field: (its own, the one asked for)}
    same_data: bool
    finished: bool


def candidates(out: str | Path, cfg: Config, data_hash: str) -> Iterator[Candidate]:
    """Every readable run below `out`, newest first."""
    for file in sorted(Path(out).glob("*/run.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            theirs = Config.load(file.parent / "config.json")
            info = read_info(file.parent)
            same_data = info.get("data", {}).get("hash") == data_hash
            changed = differences(theirs, cfg)
            yield Candidate(file.parent, theirs, changed, same_data, bool(info.get("finished")))


def find_runs(out: str | Path, cfg: Config, data_hash: str) -> list[Path]:
    """Folders below `out` with a run of exactly this config and data, newest first."""
    found = candidates(out, cfg, data_hash)
    return [run.path for run in found if run.same_data and not run.changed]


def find_finished(out: Path, cfg: Config, data_hash: str, say: Callable) -> Path | None:
    """The newest finished run of this config and data, in `out` or attached inputs."""
    newest = fetch_runs(out, cfg, data_hash, say)[:1]
    return newest[0] if newest and read_info(newest[0]).get("finished") else None


def find_shorter(out: Path, cfg: Config, data_hash: str) -> Candidate | None:
    """The newest finished run that differs from `cfg` only in having fewer epochs (durations may
    differ with them)."""
    for place in (out, *attached()):
        for run in candidates(place, cfg, data_hash):
            before, after = run.changed.get("epochs_phase2", (0, 0))
            longer = before < after and run.changed.keys() <= {"epochs_phase2", *DURATIONS}
            if longer and run.same_data and run.finished and (run.path / "last.pt").exists():
                return run
    return None


@contextlib.contextmanager
def open_run(out: Path, cfg: Config, data_hash: str, resume: str, say: Callable) -> Iterator[Path]:
    """The folder of a finished run, or of one to resume, or a new one. While it is open, no other
    process trains in it."""
    same = fetch_runs(out, cfg, data_hash, say) if resume == "auto" else []
    if resume == "auto" and not same:
        say_what_differs(out, cfg, data_hash, say)
    for path in same:
        try:
            lock = claim(path)
        except Timeout:
            say(f"{path.name} is being trained by another process: starting a new run")
            continue
        with lock:
            yield path
        return
    path = new_folder(out, cfg)
    with claim(path):
        yield path


def claim(path: Path) -> contextlib.AbstractContextManager:
    """A lock on the run, held from now on; Timeout where another process holds it."""
    if read_info(path).get("finished"):  # nothing to train, and the disk may be read-only
        return contextlib.nullcontext()
    return FileLock(path / ".lock").acquire(timeout=0)


def say_what_differs(out: Path, cfg: Config, data_hash: str, say: Callable) -> None:
    """Print how this config differs from the newest run of the same preset."""
    for run in candidates(out, cfg, data_hash):
        if run.cfg.preset == cfg.preset:
            data = "" if run.same_data else "other data"
            differs = "; ".join(filter(None, [in_words(run.changed), data]))
            say(f"new run; against {run.path.name}: {differs}")
            return


def new_folder(out: Path, cfg: Config) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
    for number in itertools.chain([""], itertools.count(-1, -1)):
        path = out / f"{stamp}-{cfg.preset}{number}"
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            write_json(path / "config.json", cfg.to_dict())
            return path


def fetch_runs(out: Path, cfg: Config, data_hash: str, say: Callable) -> list[Path]:
    """`find_runs`; if it finds none, a copy of the newest such run from an attached notebook's
    output (inputs are read-only)."""
    here = find_runs(out, cfg, data_hash)
    places = [] if here else attached()
    elsewhere = [path for place in places for path in find_runs(place, cfg, data_hash)]
    if not elsewhere:
        return here
    path = max(elsewhere, key=lambda path: path.name)
    # completely or not at all; without the files' modes, which may be read-only
    draft = out / f".{path.name}"
    shutil.rmtree(draft, ignore_errors=True)
    skip_locks = shutil.ignore_patterns(".lock")
    shutil.copytree(path, draft, ignore=skip_locks, copy_function=shutil.copyfile)
    say(f"copied {path.name} from the attached {path.parent}")
    return [draft.rename(out / path.name)]
