"""The benchmark scripts run from a shell and write what they promise; no numbers here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import vaekit

ROOT = Path(__file__).parent.parent
FILMS = ROOT / "data/chest_xray_phantom"


def run(script: str, *arguments) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def folder_of(split: str, n: int, to: Path) -> Path:
    to.mkdir()
    for file in sorted((FILMS / split).rglob("*.jpeg"))[:n]:
        shutil.copy(file, to / file.name)
    (to / "notes.txt").write_text("not a film")
    (to / "torn.jpeg").write_bytes(b"\xff\xd8 torn")
    return to


def test_quality_trains_scores_and_keeps_its_run(tmp_path):
    train, test = folder_of("train", 24, tmp_path / "a"), folder_of("test", 8, tmp_path / "b")
    out = tmp_path / "out"
    said = run("quality.py", "--train", train, "--test", test, "--size", 32, "--minutes", 0.03,
               "--out", out, "--set", "widths=[8,16]", "features=none")  # fmt: skip
    assert "24 films to train on, 8 to judge by" in said and "left out" in said
    found = json.loads((out / "quality.json").read_text())
    assert found["epochs"] >= 1 and 0 < found["psnr"] < 60 and found["n_judged"] == 8
    assert found["changes"] == {"widths": [8, 16], "features": "none"}
    assert vaekit.load_run(out / "run").cfg.image_size == 32
    assert (out / "films.png").stat().st_size > 10_000
    said = run("ladder.py", "--run", out / "run", "--train", train, "--test", test,
               "--judges", "pixels", "--out", out / "ladder.json")  # fmt: skip
    ladder = json.loads((out / "ladder.json").read_text())
    assert f"{ladder['chosen']}, chosen on held-out films, has" in said
    tried = {r["subject"] for r in ladder["choice"] if r["metric"] == "memorises"}
    assert {"prior", "gaussian", "gmm", "flow", ladder["chosen"]} <= tried and len(tried) == 7
    assert ladder["memorises"].keys() == {"prior", "gaussian", "gmm", "flow", ladder["chosen"]}


def test_throughput_measures_both_engines(tmp_path, monkeypatch):
    from conftest import need_weights

    need_weights("squeezenet")
    run("throughput.py", "--films", FILMS, "--size", 32, "--batch", 4, "--steps", 1, "--rounds", 1,
        "--workers", 1, "--out", tmp_path / "rows.json")  # fmt: skip
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [r["engine"] for r in rows] == ["vaekit", "plain"]
    assert all(r["images_per_second"] > 0 for r in rows)
