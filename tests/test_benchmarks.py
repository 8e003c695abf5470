"""The benchmark scripts run from a shell and write what they promise; no numbers here."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def test_own_data_shortens_scores_and_prints_its_table(tmp_path):
    out, runs = tmp_path / "own.json", tmp_path / "runs"
    call = ["own_data.py", "chest_xray", "--name", "films", "--data", FILMS, "--minutes", 0.02,
            "--runs", runs, "--out", out, "--set", "profile=smoke", "widths=[8,16]",
            "epochs_phase2=3", "features=none"]  # fmt: skip
    run(*call)
    (row,) = json.loads(out.read_text())
    found = {(r["metric"], r["subject"]): r["value"] for r in row["rows"]}
    mse = found["mse", "reconstruction"]
    # Jensen: the mean of -log is at least -log of the mean
    assert 0 < mse < 0.5 and found["psnr", "reconstruction"] >= -10 * math.log10(mse) - 1e-6
    assert row["train"] == 24 and row["epochs"] <= 4 and row["changed"]["widths"] == [8, 16]
    assert "--data DIR" in row["command"] and str(tmp_path) not in row["command"].split("--out")[0]
    said = run("own_data.py", "--table", "--out", out)
    assert f"| `films` | 24 / {row['test']:,} |" in said and f"| {mse:.4f} |" in said
    assert len({line.count("|") for line in said.splitlines()}) == 1  # as many cells in every line
    (run_folder,) = [p for p in (runs / "films").iterdir() if p.is_dir()]
    run(*call)  # a finished run is scored again, not trained again, and its row is replaced
    assert [p for p in (runs / "films").iterdir() if p.is_dir()] == [run_folder]
    assert len(json.loads(out.read_text())) == 1


def test_large_takes_real_steps(tmp_path):
    """256 px and channels_last: where a strided 1x1 convolution used to end the process."""
    run("large.py", "medical256", "--batch", 4, "--steps", 1, "--data", FILMS,
        "--images", 8, "--out", tmp_path / "large.json")  # fmt: skip
    (row,) = json.loads((tmp_path / "large.json").read_text())
    assert len(row["losses"]) == 1 and 0 < row["loss_last"] < 10
    assert (row["batch"], row["preset_batch"], row["size"]) == (4, 16, 256)
    assert 0.5 < row["grown_gb"] / row["estimated_gb"] < 4


def test_large_counts_what_a_real_step_saves(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import large

    cfg = vaekit.preset("celeba256", profile="smoke", widths=(8, 16), features="none")
    model, x = vaekit.VAE(cfg), torch.rand(3, 3, 32, 32).contiguous(
        memory_format=torch.channels_last)  # fmt: skip
    found = [large.step_bytes(cfg, batch, None) for batch in (1, 2, 3)]
    real = large.forward(model, x, cfg, None)[1]
    assert real == pytest.approx(found[2]["saved"], rel=1e-3)  # a few scalars apart
    each = found[1]["saved"] - found[0]["saved"]
    assert found[2]["saved"] - found[1]["saved"] == each > x[0].nbytes
    weights = sum(p.nbytes for p in model.parameters())
    assert found[2]["fixed"] == pytest.approx(5 * weights, rel=0.02)  # gradients, two moments, EMA
    assert found[2]["peak"] > found[2]["saved"] + 4 * weights
