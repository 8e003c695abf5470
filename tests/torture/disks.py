"""Full and read-only disks, on a small tmpfs (needs root)."""

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from tiny import shapes, small

import vaekit
from vaekit.keep import checkpoint, writer

CFG = dict(epochs_phase1=3, epochs_phase2=6)


@contextlib.contextmanager
def tmpfs(kilobytes: int):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", folder],
                       check=True)  # fmt: skip
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def fill_up() -> dict:
    """Too little room for one more file, at every stage; then room is made."""
    if os.geteuid():
        return {"skipped": "needs root"}
    writer.SAVE_SECONDS, data, stopped = 0, shapes(), {}
    with tempfile.TemporaryDirectory() as out:
        whole = vaekit.fit(small(**CFG), data, out=out, verbose=False)
        used = sum(f.stat().st_size for f in whole.path.rglob("*")) // 1024
    for kilobytes in range(16, used + 200, max(used // 24, 1)):
        with tmpfs(kilobytes) as folder:
            try:
                vaekit.fit(small(**CFG), data, out=folder, verbose=False)
                stopped[kilobytes] = "room enough"
                continue
            except (checkpoint.CheckpointError, OSError) as error:
                assert "No space left" in str(error), error
                if not list(folder.glob("*/*last.pt")):
                    assert "is nothing" in str(error) or not list(folder.glob("*/config.json"))
                    stopped[kilobytes] = "before the first checkpoint"
                    continue
                state = checkpoint.newest_valid(next(folder.iterdir()))
                assert f"is the state after epoch {state['epoch']}:" in str(error), error
                stopped[kilobytes] = state["epoch"]
            remount(folder, f"size={4 * used + 4096}k")
            rest = vaekit.fit(small(**CFG), data, out=folder, verbose=False)
            pairs = zip(rest.model.parameters(), whole.model.parameters(), strict=True)
            assert rest.finished and all(torch.equal(a, b) for a, b in pairs)
    return {"sizes": len(stopped), "stopped after epoch": list(stopped.values())}


def lock_up() -> dict:
    """Read-only: a finished run is loaded from it, an unfinished one is refused by name."""
    if os.geteuid():
        return {"skipped": "needs root"}
    with tmpfs(8192) as folder:
        done = vaekit.fit(small(**CFG), shapes(), out=folder, verbose=False)
        vaekit.fit(small(seed=1), shapes(), out=folder, max_minutes=1e-9, verbose=False)
        remount(folder, "ro")
        again = vaekit.fit(small(**CFG), shapes(), out=folder, verbose=False)
        assert again.finished and again.path == done.path
        refused = []
        for seed in (1, 2):  # go on; begin
            try:
                vaekit.fit(small(seed=seed), shapes(), out=folder, verbose=False)
            except (OSError, checkpoint.CheckpointError) as error:
                assert "Read-only" in str(error) and str(folder) in str(error)
                refused.append(seed)
        assert refused == [1, 2]
    return {"read-only": "finished run loaded, two others refused"}
