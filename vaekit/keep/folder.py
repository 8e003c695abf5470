"""Runs on disk: the folder, finding one again."""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from vaekit.config import Config
from vaekit.keep.resume import differences
from vaekit.place.setup import attached


def runs_dir() -> Path:
    """Where runs are written: `VAEKIT_RUNS`, else `runs` in the working folder."""
    return Path(os.environ.get("VAEKIT_RUNS") or "runs")


def read_info(path: Path) -> dict:
    """What `run.json` says of a run; {} where it says nothing."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        info = json.loads((path / "run.json").read_text())
        return info if isinstance(info, dict) and isinstance(info.get("data"), dict) else {}
    return {}


def find_runs(out: str | Path, cfg: Config, data_hash: str) -> list[Path]:
    """Folders below `out` with a run of exactly this config and data, newest first."""
    return [path for path, changed in _runs(out, cfg, data_hash) if not changed]


def _runs(out: str | Path, cfg: Config, data_hash: str) -> Iterator[tuple[Path, str]]:
    """(folder, what differs from `cfg` and the data) of every readable run, newest first."""
    for file in sorted(Path(out).glob("*/run.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            changed = differences(Config.load(file.parent / "config.json"), cfg)
            same_data = read_info(file.parent).get("data", {}).get("hash") == data_hash
            texts = changed, "" if same_data else "other data"
            yield file.parent, "; ".join(filter(None, texts))


@contextlib.contextmanager
def open_run(out: Path, cfg: Config, data_hash: str, resume: str, say) -> Iterator[Path]:
    """The folder of a finished run, or one to go on in, or a new one: no other process trains in
    it for as long as it is open."""
    if resume == "auto":
        _fetch_attached(out, cfg, data_hash, say)
    found = list(_runs(out, cfg, data_hash)) if resume == "auto" else []
    same = [path for path, changed in found if not changed]
    for path, changed in [(p, c) for p, c in found if cfg.preset in p.name and not same][:1]:
        say(f"new run; against {path.name}: {changed}")
    for path in (*same, None):
        path = path or _new_folder(out, cfg)
        with contextlib.ExitStack() as stack:
            if not read_info(path).get("finished"):  # a finished one may lie on a read-only disk
                try:
                    stack.enter_context(FileLock(path / ".lock", timeout=0))
                except Timeout:
                    say(f"{path.name} is being trained by another process: starting a new run")
                    continue
            yield path
            return


def _new_folder(out: Path, cfg: Config) -> Path:
    stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
    for attempt in itertools.count():
        path = out / f"{stamp}-{cfg.preset}{f'-{attempt}' if attempt else ''}"
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            cfg.save(path / "config.json")
            return path


def _fetch_attached(out: Path, cfg: Config, data_hash: str, say) -> None:
    """Copy the newest such run of an attached notebook's output to `out`: inputs are read-only."""
    if find_runs(out, cfg, data_hash):
        return
    found = [path for place in attached() for inside in ("runs", "")
             for path in find_runs(place / inside, cfg, data_hash)]  # fmt: skip
    for path in sorted(found, key=lambda path: path.name)[-1:]:
        for file in path.rglob("*"):
            if file.is_file() and file.name != ".lock":
                target = out / path.name / file.relative_to(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)  # without its mode, which may be read-only
        say(f"copied {path.name} from the attached {path.parent}")
