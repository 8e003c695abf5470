"""The benchmark scripts run and write their files: one step of each part, no scores."""

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import equal_time
import gpu
import growth
import ladder
import large
import own_data
import peers
import priors
import pytest
import scaling
import throughput
import torch
from start import Adder
from throughput import compare, times_as_fast
from tiny import shapes, small

import vaekit
from vaekit.features import feature_loss
from vaekit.losses import vae_loss
from vaekit.train import Trainer

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
FILMS = ROOT / "data/chest_xray_phantom"
TINY = ["--films", FILMS, "--batch", 4, "--steps", 1, "--workers", 0]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """They fit a flow in a moment: none is judged here by what it learns."""
    monkeypatch.setattr("vaekit.priors.flow.MOST_STEPS", 20)


@pytest.fixture
def run(monkeypatch, capsys):
    """Calls a script's main() in this process, with arguments; what it printed."""

    def call(script: str, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{script}.py", *map(str, arguments)])
        capsys.readouterr()
        importlib.import_module(script).main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def in_this_process(monkeypatch):
    """Where a script starts a process for each part, a thread: starting torch takes seconds."""
    for script in (growth, throughput):
        monkeypatch.setattr(script, "ProcessPoolExecutor", lambda n, _: ThreadPoolExecutor(n))


@pytest.fixture
def small_network(monkeypatch):
    """Gives a script's presets a small network: what is tested does not depend on its size."""

    def use(script: str, **more) -> None:
        module = importlib.import_module(script)
        preset, changes = module.preset, {"widths": (8, 16), "attention": (), **more}
        monkeypatch.setattr(
            module, "preset", lambda *name, **given: preset(*name, **(given | changes))
        )

    return use


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory):
    """Weights to be found, of any value: what is fast does not depend on them."""
    folder = tmp_path_factory.mktemp("weights")
    gpu.weights(folder)
    return folder


@pytest.fixture
def random_trunks(weights_folder, monkeypatch):
    monkeypatch.setenv("VAEKIT_WEIGHTS", str(weights_folder))


def folder_of(split: str, n: int, to: Path) -> Path:
    to.mkdir()
    for file in sorted((FILMS / split).rglob("*.jpeg"))[:n]:
        shutil.copy(file, to / file.name)
    (to / "notes.txt").write_text("not a film")
    (to / "torn.jpeg").write_bytes(b"\xff\xd8 torn")
    return to


@pytest.fixture
def films(tmp_path):
    """Arguments that name a folder to train on and one to judge by."""
    train, test = folder_of("train", 24, tmp_path / "a"), folder_of("test", 8, tmp_path / "b")
    return ["--train", train, "--test", test]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_finds_what_it_imports(script):
    importlib.import_module(script)


def test_quality_trains_scores_and_keeps_its_run(tmp_path, films, run, no_weights, monkeypatch):
    out = tmp_path / "out"
    tiny = ["--size", 32, "--minutes", 0.01, "--set", "widths=[8,16]", "features=none"]
    said = run("quality", *films, *tiny, "--out", out)
    assert "24 films to train on, 8 to judge by" in said and "left out" in said
    found = json.loads((out / "quality.json").read_text())
    assert found["epochs"] >= 1 and 0 < found["psnr"] < 60 and found["n_judged"] == 8
    assert found["changes"] == {"widths": [8, 16], "features": "none"}
    assert vaekit.load_run(out / "run").cfg.image_size == 32
    assert (out / "films.png").stat().st_size > 10_000
    monkeypatch.setattr(ladder, "DRAWS", 1)
    said = run("ladder", "--run", out / "run", *films, "--judges", "pixels",
               "--out", out / "ladder.json")  # fmt: skip
    found = json.loads((out / "ladder.json").read_text())
    assert f"{found['chosen']}, chosen on held-out films, has" in said
    tried = {r["subject"] for r in found["choice"] if r["metric"] == "memorises"}
    assert {"prior", "gaussian", "gmm", "flow", found["chosen"]} <= tried
    assert found["memorises"].keys() == {"prior", "gaussian", "gmm", "flow", found["chosen"]}


def test_priors_goes_on_where_it_was_stopped(tmp_path, run, monkeypatch):
    monkeypatch.setattr(vaekit, "load_data", lambda cfg: shapes())
    out = tmp_path / "priors.json"
    tiny = ["--preset", "linear", "--counts", 30, "--steps", 2, "--judge", "pixels", "--out", out]
    said = run("priors", *tiny, "--seeds", 1)
    assert said.count('{"prior"') == 6
    (found,) = json.loads(out.read_text())["sets"].values()
    kinds = {"prior", "gaussian", "gmm", "flow", "half way", "flow, 2 steps"}
    assert {row["prior"] for row in found["rows"]} == kinds and found["test"] == 12
    assert all(0 <= row["distance ratio"] < 9 for row in found["rows"])
    assert run("priors", *tiny, "--seeds", 2).count('"seed": 1') == 6


def test_priors_of_a_quantised_code_are_tokens(tmp_path, run, monkeypatch):
    monkeypatch.setattr(vaekit, "load_data", lambda cfg: shapes())
    out = tmp_path / "priors.json"
    small = {"latent": "fsq", "levels": [2, 2], "image_size": 16, "epochs_phase2": 1}
    run("priors", "--preset", "fashion_mnist", "--set", json.dumps(small), "--counts", 30,
        "--judge", "pixels", "--seeds", 1, "--runs", tmp_path, "--out", out)  # fmt: skip
    ((name, found),) = json.loads(out.read_text())["sets"].items()
    assert name.endswith("fashion_mnist, FSQ")
    assert [row["prior"] for row in found["rows"]] == ["prior", "codes", "half way"]


def test_an_untrained_flow_over_the_map_draws_from_the_gaussian(monkeypatch):
    monkeypatch.setattr(priors, "MAP_STEPS", 0)
    mu = 2 + 3 * torch.randn(500, 3, 1, 2, generator=torch.Generator().manual_seed(0))
    fitted = priors.fit_map_flow(mu, torch.full_like(mu, -2.0), seed=0)
    z = fitted.sample(1000)
    assert z.shape == (1000, 3, 1, 2)
    total = (mu.var(0) + torch.tensor(-2.0).exp()).sqrt()
    torch.testing.assert_close(z.std(0), total, atol=0.25, rtol=0)
    torch.testing.assert_close(z.mean(0), mu.mean(0), atol=0.25, rtol=0)


def test_throughput_writes_a_row_an_engine(
    tmp_path, run, random_trunks, in_this_process, small_network
):
    small_network("throughput")
    out = tmp_path / "rows.json"
    said = run("throughput", *TINY, "--sizes", 32, "--rounds", 1, "--engines", "vaekit",
               "--out", out)  # fmt: skip
    (row,) = json.loads(out.read_text())
    rate = row["images_per_s"]
    assert (row["size"], row["name"], row["alike"]) == (32, "vaekit", True)
    assert 0 < rate["low"] <= rate["median"] <= rate["high"] and row["peak_mb"] > 50
    assert said.splitlines()[-1].startswith("| 32 | vaekit | ")


def test_throughput_names_who_is_missing(run, monkeypatch):
    measured = []

    def measure(cfg, names, given):
        measured.append(names)
        return []

    monkeypatch.setattr(throughput, "find_spec", lambda name: None if name == "monai" else True)
    monkeypatch.setattr(throughput, "measure", measure)
    monkeypatch.setattr(throughput, "compare", len)
    said = run("throughput", *TINY, "--sizes", 32, "--engines", "plain", "monai", "monai bf16")
    assert measured == [["vaekit", "plain"]] and "left out: monai, monai bf16" in said


def test_no_ratio_where_the_spread_is_larger_than_the_difference():
    slow, fast = dict(low=9, median=10, high=12), dict(low=19, median=20, high=21)
    assert times_as_fast(fast, slow) == 2
    assert times_as_fast(fast | {"low": 9}, slow) is None
    assert times_as_fast(dict(low=20, median=20, high=20), dict(low=9, median=9, high=9)) is None
    both = {"size": 64, "name": "x", "parameters": 100, "peak_mb": 60.0, "how": ""}
    rows = [both | {"macs": 100, "images_per_s": fast}, both | {"macs": 89, "images_per_s": slow}]
    compare(rows)
    assert [row["alike"] for row in rows] == [True, False] and rows[1]["ours_is"] == 2


@pytest.mark.parametrize("name", ["monai", "diffusers", "pythae"])
@pytest.mark.parametrize("size", [64, 128])
def test_a_peer_is_of_our_size(name, size, random_trunks):
    pytest.importorskip(name)
    cfg = vaekit.preset(profile="full", image_size=size, features="squeezenet", batch_size=2,
                        data_path=str(FILMS), max_images=4)  # fmt: skip
    ours = peers.size_of(vaekit.VAE(cfg), cfg)
    theirs = peers.size_of(peers.build(name, cfg, vaekit.load_data(cfg), 0).network, cfg)
    assert theirs["latents"] == ours["latents"]
    assert all(abs(theirs[k] / ours[k] - 1) < 0.03 for k in ("parameters", "macs"))


@pytest.mark.parametrize("name", ["plain", "monai", "diffusers", "pythae"])
def test_a_peer_learns_the_same_loss(name, random_trunks):
    if name != "plain":
        pytest.importorskip(name)
    narrow = {"widths": (8, 16), "attention": ()} if name == "plain" else {}
    cfg = vaekit.preset(profile="full", image_size=32, features="squeezenet", batch_size=4,
                        data_path=str(FILMS), max_images=8, **narrow)  # fmt: skip
    engine = peers.build(name, cfg, vaekit.load_data(cfg), 0)
    before = torch.cat([p.detach().flatten() for p in engine.network.parameters()])
    engine.run(2)
    after = torch.cat([p.detach().flatten() for p in engine.network.parameters()])
    assert after.isfinite().all() and (after != before).float().mean() > 0.5
    x, x_hat, mu, logvar = torch.rand(4, 1, 32, 32), *torch.rand(3, 4, 1, 32, 32)
    plain = peers.PlainLoss(cfg)(x, x_hat, mu, logvar)
    ours = vae_loss(x_hat, x, mu, logvar, cfg, cfg.beta, feature_loss(cfg)).total
    torch.testing.assert_close(plain, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["published", "monai", "pythae"])
def test_equal_time_trains_for_its_seconds(
    model, tmp_path, run, random_trunks, small_network, capsys
):
    if model != "published":
        pytest.importorskip(model)
    small_network("equal_time", data_path=str(FILMS), image_size=32, max_images=24)
    out = tmp_path / "equal.json"
    run("equal_time", f"{model}/0", "--seconds", 0.5, "--out", out)
    (found,) = json.loads(out.read_text()).values()
    assert found["core_seconds"] >= 0.5 and found["images_seen"] > 0 and found["kl"] >= 0
    found["scores"] = {name: [1.0] for name, _ in equal_time.COLUMNS.values()}
    found["scores"]["frechet prior vgg19"] += [100, 57.0]
    equal_time.show({model: found})
    assert f"| {model} | " in capsys.readouterr().out


@pytest.mark.parametrize("sees", [False, True])
def test_a_decoder_that_adds_begins_at_the_linear_picture(sees):
    cfg = vaekit.preset("sharp", profile="smoke")
    x = torch.rand(20, 1, 32, 32)
    linear = vaekit.linear_vae(x, 16)
    model = Adder(cfg, sees)
    model.start_at(linear)
    torch.testing.assert_close(model.reconstruct(x), linear.reconstruct(x))
    x_hat, mu, logvar = model(x)
    (x_hat - x).square().sum().backward()
    assert model.decoder.to_image[-1].weight.grad.abs().sum() > 0 and len(model.see) == 5 * sees


def test_growth_goes_on_and_fits_a_slope(tmp_path, run, in_this_process, monkeypatch):
    for name in ("VAEKIT_CACHE", "VAEKIT_WEIGHTS", "TORCH_HOME"):
        monkeypatch.setenv(name, "")  # it sets them itself: put back in the end
    out = tmp_path / "growth.json"
    call = ["growth", "--size", 16, "--least", 0.0, "--out", out]
    run(*call, "--counts", 60)
    (kept,) = json.loads(out.read_text())["rows"]
    assert "time per film goes with count" in run(*call, "--counts", 60, 120)
    found = json.loads(out.read_text())
    assert found["rows"][0] == kept and [r["films"] for r in found["rows"]] == [60, 120]
    for row in found["rows"]:
        assert 0.6 * row["films"] < row["train"] < row["films"] and row["peak_mb"] > row["own_mb"]
        assert all(row[f"{stage}_us"] > 0 for stage in growth.STAGES)
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    a, error = growth.slope([10, 100, 1000], [5.0, 50.0, 500.0])
    assert a == pytest.approx(1) and error == pytest.approx(0, abs=1e-9)


def test_the_profile_gives_every_part_its_time(tmp_path, run, random_trunks, small_network):
    small_network("profile_step")
    said = run("profile_step", *TINY, "--size", 32, "--out", tmp_path / "profile.json")
    rows = json.loads((tmp_path / "profile.json").read_text())
    assert [row["name"] for row in rows] == ["vaekit", "plain"] and "| vaekit |" in said
    assert all(seconds > 0 for row in rows for seconds in row["seconds"].values())


def test_scaling_adds_up(run, small_network):
    place = scaling.Place("two", 2, 1e12, 1e9, 0.0)
    found = scaling.row(place, size=10**9, step=1.5)  # each sends all of it once: a second
    assert found == {"sent": 1e9, "reduce": 1.0, "worst": 0.6, "best": 1.0}
    four = scaling.row(place._replace(devices=4, latency=1e-3), size=10**9, step=1.5)
    assert four["reduce"] == pytest.approx(1.5 + 6 * 39 * 1e-3) and four["best"] < 1
    small_network("scaling", features="squeezenet")
    said = run("scaling")
    model = vaekit.VAE(vaekit.preset(profile="full", widths=(8, 16), attention=()))
    count = sum(p.numel() for p in model.parameters())
    assert f"{count:,} parameters" in said
    assert all(said.count(f"| {place.name} |") >= 1 for place in scaling.PLACES)


@pytest.fixture
def asked(tmp_path):
    return Namespace(steps=1, minutes=0.05, tiny=True, pack=None, out=tmp_path)


def test_a_step_of_every_precision(asked, random_trunks, small_network):
    small_network("gpu", latent_channels=4)
    found = gpu.precisions(asked)
    assert list(found) == [f"{name} {kind}" for name in gpu.SYSTEMS for kind in gpu.DTYPES]
    for row in found.values():
        assert all(map(math.isfinite, row["losses"]))
        assert row["step seconds"] > 0 and row["late step seconds"] > 0


def test_two_epochs_in_fp16_are_taken_up_again(asked, no_weights, small_network):
    small_network("gpu", features="none", latent_channels=4)
    found = gpu.t4(asked)
    assert found.keys() == set(gpu.SYSTEMS)
    for row in found.values():
        assert [r["epoch"] for r in row["history"]] == [1, 2] and row["scale"] > 1


def test_how_near_a_step_is_to_its_convolutions(asked, random_trunks, small_network):
    small_network("gpu", features="squeezenet")
    found = gpu.convs(asked)
    assert found["convolutions"] > 30 and found["share"] > 0 and found["images_per_s"] > 0


def test_a_whole_training_is_scored_and_stored(asked, no_weights, small_network, monkeypatch):
    small_network("gpu", latent_channels=4)
    monkeypatch.setattr(gpu, "PIECE", 3000)
    found = gpu.sharp(asked)
    assert found["trunk"] == "none" and found["films"] > 8 and found["finite"]
    assert found["epochs"] <= found["of"]
    psnr = {name: rows[0]["value"] for name, rows in found["scores"].items()}
    assert "pca" in psnr and len(psnr) == 2 and all(0 < value < 60 for value in psnr.values())
    (picture,) = asked.out.glob("*.png")
    assert picture.stat().st_size > 10_000
    pieces = [torch.load(file, weights_only=True) for file in sorted(asked.out.glob("*.pt"))]
    stored = {key: value for piece in pieces for key, value in piece.items()}
    assert len(pieces) > 1 and all(v.dtype == torch.float16 for v in stored.values())
    cfg = vaekit.Config.from_dict(found["config"])
    vaekit.VAE(cfg).load_state_dict({key: value.float() for key, value in stored.items()})


def test_a_pack_holds_as_many_films_as_fit(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("VAEKIT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("VAEKIT_DATA", str(FILMS))
    monkeypatch.setattr(gpu, "SIDE", 32)
    monkeypatch.setattr(gpu, "MOST", {"val": 3, "test": 4})
    (tmp_path / "some.pth").write_bytes(b"weights")
    gpu.pack(tmp_path / "pack", 0.012)
    assert (tmp_path / "pack/some.pth").exists()
    assert (tmp_path / "pack/films.npz").stat().st_size < 16_000
    asked.pack = tmp_path / "pack/films.npz"
    cfg = vaekit.preset("chest_xray", profile="full", image_size=32)
    packed, whole = gpu.films(cfg, asked), vaekit.load_data(cfg)
    assert (len(packed.val), len(packed.test)) == (3, 4) and 0 < len(packed.train) < 20
    assert packed.source == whole.source
    for name in ("train", "val", "test"):  # not a pixel is lost
        there = {x.numpy().tobytes() for x in getattr(whole, name).images}
        assert all(x.numpy().tobytes() in there for x in getattr(packed, name).images)


@pytest.mark.skipif(shutil.which("bash") is None, reason="a shell script")
def test_one_command_asks_every_part_and_names_what_failed(tmp_path):
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text('#!/bin/sh\necho "asked: $*"\n[ "$2" != convs ]\n')
    python.chmod(0o755)
    env = os.environ | {"DEVICE": "cpu", "STEPS": "1", "OUT": str(out), "PYTHON": str(python)}
    done = subprocess.run([ROOT / "benchmarks/on_gpu.sh"], capture_output=True, text=True, env=env)
    asked = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("asked")]
    assert all("--out" in words for words in asked)
    parts = [words[1] if "gpu.py" in words[0] else words[0] for words in asked]
    throughput = "benchmarks/throughput.py"
    assert parts == ["weights", "precisions", "t4", throughput, "convs", "sharp", "recipe"]
    assert done.returncode == 1 and "failed: convs" in done.stdout, done.stderr


def test_a_step_begins_without_the_gradients_of_the_last():
    trainer, alive = Trainer(small(), shapes(), None), []
    weights = list(trainer.raw.parameters())
    trainer.raw.register_forward_pre_hook(
        lambda *_: alive.append(any(p.grad is not None for p in weights)))  # fmt: skip
    for _ in range(2):
        trainer.step(torch.rand(4, 1, 16, 16), 0.0)
    assert alive == [False, False] and weights[0].grad is not None


def test_own_data_shortens_scores_and_prints_its_table(tmp_path, run, no_weights, monkeypatch):
    scored, score = [], own_data.score

    def score_once(run, data):
        scored.append(score(run, data) if not scored else scored[0])
        return scored[-1]

    monkeypatch.setattr(own_data, "score", score_once)
    out, runs = tmp_path / "own.json", tmp_path / "runs"
    call = ["own_data", "chest_xray", "--name", "films", "--data", FILMS, "--minutes", 0.01,
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
    said = run("own_data", "--table", "--out", out)
    assert f"| `films` | 24 / {row['test']:,} |" in said and f"| {mse:.4f} |" in said
    assert len({line.count("|") for line in said.splitlines()}) == 1  # as many cells in every line
    (run_folder,) = [p for p in (runs / "films").iterdir() if p.is_dir()]
    run(*call)  # a finished run is scored again, not trained again, and its row is replaced
    assert [p for p in (runs / "films").iterdir() if p.is_dir()] == [run_folder]
    assert len(json.loads(out.read_text())) == 1 and len(scored) == 2


def test_large_takes_real_steps(tmp_path, run):
    """256 px and channels_last: where a strided 1x1 convolution used to end the process."""
    run("large", "medical256", "--batch", 1, "--steps", 1, "--data", FILMS, "--features", "none",
        "--images", 8, "--out", tmp_path / "large.json")  # fmt: skip
    (row,) = json.loads((tmp_path / "large.json").read_text())
    assert len(row["losses"]) == 1 and 0 < row["loss_last"] < 10
    assert (row["batch"], row["preset_batch"], row["size"]) == (1, 16, 256)
    assert row["peak_rss_gb"] > 0 and row["estimated_gb"] > 0


def test_large_counts_what_a_real_step_saves():
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
