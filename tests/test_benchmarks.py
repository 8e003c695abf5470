"""The benchmark scripts run from a shell and write what they promise; no numbers here."""

import json
import math
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import vaekit

ROOT = Path(__file__).parent.parent
FILMS = ROOT / "data/chest_xray_phantom"


def run(script: str, *arguments) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=1800)
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
    assert {"prior", "gaussian", "gmm", "flow", ladder["chosen"]} == tried
    assert ladder["memorises"].keys() == {"prior", "gaussian", "gmm", "flow", ladder["chosen"]}


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def random_trunks(tmp_path, monkeypatch):
    """Weights to be found, of any value: what is fast does not depend on them."""
    run("gpu.py", "weights", "--out", tmp_path / "weights")
    monkeypatch.setenv("VAEKIT_WEIGHTS", str(tmp_path / "weights"))


TINY = ["--films", FILMS, "--batch", 4, "--steps", 1, "--workers", 1]


def test_throughput_writes_a_row_an_engine_and_names_who_is_missing(tmp_path, random_trunks):
    said = run("throughput.py", *TINY, "--sizes", 32, 64, "--rounds", 1, "--engines", "vaekit",
               "plain", "monai", "--out", tmp_path / "rows.json")  # fmt: skip
    rows = json.loads((tmp_path / "rows.json").read_text())
    names = ["vaekit", "plain"] + ["monai"] * (find_spec("monai") is not None)
    assert [(r["size"], r["name"]) for r in rows] == [(s, n) for s in (32, 64) for n in names]
    assert ("left out: monai" in said) == ("monai" not in names)
    for row in rows:
        rate = row["images_per_s"]
        assert 0 < rate["low"] <= rate["median"] <= rate["high"] and row["peak_mb"] > 50
    assert rows[1]["alike"] and rows[1]["parameters"] == rows[0]["parameters"]


def test_no_ratio_where_the_spread_is_larger_than_the_difference(benchmarks):
    from throughput import times_as_fast

    slow, fast = dict(low=9, median=10, high=12), dict(low=19, median=20, high=21)
    assert times_as_fast(fast, slow) == 2
    assert times_as_fast(fast | {"low": 9}, slow) is None
    assert times_as_fast(dict(low=20, median=20, high=20), dict(low=9, median=9, high=9)) is None


@pytest.mark.parametrize("name", ["monai", "diffusers", "pythae"])
@pytest.mark.parametrize("size", [64, 128])
def test_a_peer_is_of_our_size(name, size, benchmarks, random_trunks):
    pytest.importorskip(name)
    import peers

    cfg = vaekit.preset(profile="full", image_size=size, features="squeezenet", batch_size=2,
                        data_path=str(FILMS), max_images=4)  # fmt: skip
    ours = peers.size_of(vaekit.VAE(cfg), cfg)
    theirs = peers.size_of(peers.build(name, cfg, vaekit.load_data(cfg), 0).network, cfg)
    assert theirs["latents"] == ours["latents"]
    assert all(abs(theirs[k] / ours[k] - 1) < 0.03 for k in ("parameters", "macs"))


@pytest.mark.parametrize("name", ["plain", "monai", "diffusers", "pythae"])
def test_a_peer_learns_the_same_loss(name, benchmarks, random_trunks):
    if name != "plain":
        pytest.importorskip(name)
    import peers

    from vaekit.features import feature_loss
    from vaekit.losses import vae_loss

    cfg = vaekit.preset(profile="full", image_size=32, features="squeezenet", batch_size=4,
                        data_path=str(FILMS), max_images=8)  # fmt: skip
    engine = peers.build(name, cfg, vaekit.load_data(cfg), 0)
    before = torch.cat([p.detach().flatten() for p in engine.network.parameters()])
    engine.run(2)
    after = torch.cat([p.detach().flatten() for p in engine.network.parameters()])
    assert after.isfinite().all() and (after != before).float().mean() > 0.5
    x, x_hat, mu, logvar = torch.rand(4, 1, 32, 32), *torch.rand(3, 4, 1, 32, 32)
    plain = peers.PlainLoss(cfg)(x, x_hat, mu, logvar)
    ours = vae_loss(x_hat, x, mu, logvar, cfg, cfg.beta, feature_loss(cfg)).total
    torch.testing.assert_close(plain, ours, rtol=1e-4, atol=1e-5)


def test_loop_and_loss_trains_each_pair_once(tmp_path, random_trunks):
    train, test = folder_of("train", 24, tmp_path / "a"), folder_of("test", 8, tmp_path / "b")
    call = ["loop_and_loss.py", "--train", train, "--test", test, "--size", 32, "--minutes", 0.02,
            "--out", tmp_path / "rows.json"]  # fmt: skip
    run(*call, "--peers")
    alone = json.loads((tmp_path / "rows.json").read_text())
    said = run(*call, "--peers", "plain")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[:1] == alone
    pairs = [("vaekit", "vaekit"), ("plain", "plain"), ("plain", "vaekit"), ("vaekit", "plain")]
    assert [(r["loop"], r["loss"]) for r in rows] == pairs
    assert all(0 < r["psnr"] < 60 and r["n_judged"] == 8 for r in rows)
    assert rows[1]["changes"] == rows[3]["changes"] != rows[0]["changes"] == {}
    assert said.count("\n| plain |") == 2


def test_growth_goes_on_and_fits_a_slope(tmp_path, benchmarks):
    import growth

    call = ["growth.py", "--size", 16, "--least", 0.01, "--out", tmp_path / "growth.json"]
    run(*call, "--counts", 60)
    kept = json.loads((tmp_path / "growth.json").read_text())["rows"]
    assert "time per film goes with count" in run(*call, "--counts", 60, 120)
    found = json.loads((tmp_path / "growth.json").read_text())
    assert found["rows"][0] == kept[0] and [r["films"] for r in found["rows"]] == [60, 120]
    for row in found["rows"]:
        assert 0.6 * row["films"] < row["train"] < row["films"] and row["peak_mb"] > row["own_mb"]
        assert all(row[f"{stage}_us"] > 0 for stage in growth.STAGES)
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    a, error = growth.slope([10, 100, 1000], [5.0, 50.0, 500.0])
    assert a == pytest.approx(1) and error == pytest.approx(0, abs=1e-9)


def test_the_profile_gives_every_part_its_time(tmp_path, random_trunks):
    said = run("profile_step.py", *TINY, "--size", 32, "--out", tmp_path / "profile.json")
    rows = json.loads((tmp_path / "profile.json").read_text())
    assert [row["name"] for row in rows] == ["vaekit", "plain"] and "| vaekit |" in said
    assert all(seconds > 0 for row in rows for seconds in row["seconds"].values())


def test_scaling_adds_up(benchmarks):
    import scaling

    place = scaling.Place("two", 2, 1e12, 1e9, 0.0)
    found = scaling.row(place, size=10**9, step=1.5)  # each sends all of it once: a second
    assert found == {"sent": 1e9, "reduce": 1.0, "worst": 0.6, "best": 1.0}
    four = scaling.row(place._replace(devices=4, latency=1e-3), size=10**9, step=1.5)
    assert four["reduce"] == pytest.approx(1.5 + 6 * 39 * 1e-3) and four["best"] < 1
    assert "8,088,129 parameters" in run("scaling.py")


@pytest.mark.skipif(shutil.which("bash") is None, reason="a shell script")
def test_what_needs_a_gpu_runs_to_its_end_without_one(tmp_path):
    script, out = ROOT / "benchmarks/on_gpu.sh", tmp_path / "out"
    env = os.environ | {"DEVICE": "cpu", "STEPS": "1", "OUT": str(out), "PYTHON": sys.executable}
    parts = ["convs", "variants", "memory", "recipe"]
    done = subprocess.run([script, *parts], capture_output=True, text=True, env=env, timeout=1800)
    assert done.returncode == 0 and "failed: none" in done.stdout, done.stdout + done.stderr
    convs, variants, memory, recipe = (json.loads((out / f"{p}.json").read_text()) for p in parts)
    assert convs["convolutions"] > 30 and 0 < convs["share"] < 2
    assert not any("failed" in row for row in variants["variants"])
    assert memory["all"]["parts"] == 1 and recipe["films"] == 24 and recipe["finite"]


def test_a_step_begins_without_the_gradients_of_the_last(benchmarks):
    from tiny import shapes, small

    from vaekit.train import Trainer

    trainer, alive = Trainer(small(), shapes(), None), []
    weights = list(trainer.raw.parameters())
    trainer.raw.register_forward_pre_hook(
        lambda *_: alive.append(any(p.grad is not None for p in weights)))  # fmt: skip
    for _ in range(2):
        trainer.train_step(torch.rand(4, 1, 16, 16), 0.0)
    assert alive == [False, False] and weights[0].grad is not None


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
