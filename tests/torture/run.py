"""The long trials: `make torture`, or `python tests/torture/run.py --minutes 60 --only soak`.

Each part prints its counts; with --store they are kept as JSON, with what produced them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("", "notebooks", "tests", "tests/torture")]
os.environ |= {"VAEKIT_PROFILE": "smoke", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
os.environ.setdefault("OMP_NUM_THREADS", "1")

import disks  # noqa: E402
import few  # noqa: E402
import folders  # noqa: E402
import kills  # noqa: E402
import soak  # noqa: E402
import torch  # noqa: E402

import vaekit  # noqa: E402


def fuzz(cases: int) -> dict:
    """tests/test_fuzz.py with `cases` examples a property."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "counts.json"
        environment = os.environ | {"VAEKIT_CASES": str(cases), "VAEKIT_RECORD": str(record)}
        subprocess.run([sys.executable, "-m", "pytest", "-q", str(ROOT / "tests" / "test_fuzz.py")],
                       env=environment, cwd=ROOT, check=True)  # fmt: skip
        count = json.loads(record.read_text())
    return {"cases": sum(count.values()), "undocumented errors": 0, **count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="of soaking")
    parser.add_argument("--cases", type=int, default=2000, help="a fuzzed property")
    parser.add_argument("--seed", type=int, default=0, help="of the first random tree of folders")
    parser.add_argument("--trials", type=int, default=30, help="trainings that are killed")
    parser.add_argument("--only", nargs="*", help="names of parts")
    parser.add_argument("--store", type=Path, help="JSON to write")
    given = parser.parse_args()
    parts = {
        "killed": lambda: kills.kill(given.trials), "SIGTERM": kills.stop_command,
        "notebook": kills.stop_notebook, "spoiled": lambda: kills.spoil(10 * given.trials),
        "disk full": disks.fill_up, "disk read-only": disks.lock_up,
        "folders": lambda: folders.fuzz(given.cases, given.seed),
        "few images": few.on_few_images, "many images": few.on_many_images,
        "fuzzed": lambda: fuzz(given.cases), "soak": lambda: soak.soak(given.minutes),
    }  # fmt: skip
    kept = given.store and given.store.exists()
    found = json.loads(given.store.read_text()) if kept else {}
    by = {"command": " ".join(["python", "tests/torture/run.py", *sys.argv[1:]]),
          "vaekit": vaekit.__version__, "torch": torch.__version__,
          "python": sys.version.split()[0]}  # fmt: skip
    for name in given.only or parts:
        start = time.time()
        found[name] = parts[name]() | by
        found[name]["seconds"] = round(time.time() - start)
        print(f"{name}: {found[name]}", flush=True)
        if given.store:  # part by part; those not asked for stay
            given.store.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
