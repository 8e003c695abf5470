import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import blobs, rows, shapes, small, weights

import vaekit
from vaekit import __main__, train
from vaekit.data import Data
from vaekit.keep.checkpoint import CheckpointError
from vaekit.losses import vae_loss
from vaekit.model import VAE
from vaekit.place import device


@pytest.fixture
def data() -> Data:
    return shapes()


def test_both_phases_run_and_the_loss_falls(data, tmp_path):
    run = vaekit.fit(small(epochs_phase1=4, epochs_phase2=4), data)
    assert run.finished and [r["phase"] for r in run.history] == [1] * 4 + [2] * 4
    assert run.history[3]["train_l1"] < run.history[0]["train_l1"]
    assert [r["beta"] for r in run.history[:4]] == [0, 0, 0, 0]
    assert run.history[-1]["beta"] == run.cfg.beta
    assert all(r["beta_elbo"] >= 0 and r["train_grad_norm"] > 0 for r in run.history)
    assert not run.model.training and run.path.parent == tmp_path / "runs"


@pytest.mark.parametrize("beta", [1.0, 1e-4], ids=["from above", "from below"])
def test_adaptive_beta_settles_in_its_band(data, beta):
    cfg = small(beta_schedule="adaptive", beta=beta, epochs_phase2=32, lr_phase2=2e-3,
                lr_schedule_phase2="cosine")  # fmt: skip
    history = vaekit.fit(cfg, data).history
    assert not 0.02 <= history[2]["kl_share"] <= 0.10
    assert all(0.02 <= row["kl_share"] <= 0.10 for row in history[-4:])
    assert len({row["beta"] for row in history[-4:]}) == 1 and history[-1]["beta_elbo"] < 1


def test_best_of_an_adaptive_beta_is_judged_at_the_beta_it_has_come_to(data):
    cfg = small(beta_schedule="adaptive", beta=50.0, epochs_phase1=0, epochs_phase2=24,
                lr_phase2=2e-3)  # fmt: skip
    run = vaekit.fit(cfg, data, resume="never", verbose=False)
    saved = torch.load(run.path / "best.pt", weights_only=True)
    assert run.history[-1]["beta"] < 5 and saved["epoch"] > 12  # the first had almost no code
    row = run.history[saved["epoch"] - 1]
    assert saved["beta"] == row["beta"] and saved["loss"] == row["val_loss"]
    latents = run.model.encode(torch.zeros(1, 1, 16, 16))[0].numel()
    assert saved["rate"] == pytest.approx(row["val_kl"] / latents)


def test_cycles_are_trained_and_logged(data):
    run = vaekit.fit(small(beta_schedule="cyclical", cycle_epochs=3, cycle_cooldown=1,
                           epochs_phase2=6), data)  # fmt: skip
    quarter = pytest.approx(run.cfg.beta / 4)
    assert [r["beta"] for r in run.history[2:]] == [quarter, run.cfg.beta, run.cfg.beta] * 2


def test_phase_2_begins_with_codes_as_wide_as_the_prior(data):
    free, scaled = (
        vaekit.fit(small(rescale_latents=on, lr_phase2=1e-6), data) for on in (False, True)
    )
    spread = [
        run.model.encode(data.train.images / 255)[0].square().mean().sqrt()
        for run in (free, scaled)
    ]
    assert abs(spread[1] - 1) < 0.05 < abs(spread[0] - 1)
    x = data.val.images / 255  # the units change, the pictures do not
    torch.testing.assert_close(
        free.model.reconstruct(x), scaled.model.reconstruct(x), atol=1e-2, rtol=0
    )


def test_what_a_run_leaves_on_disk(data):
    run = vaekit.fit(small(), data)
    names = {p.name.split(".out.")[0] for p in run.path.iterdir()}
    assert {"config.json", "run.json", "history.csv", "last.pt", "best.pt", "samples",
            "model.safetensors"} <= names  # fmt: skip
    assert any(p.name.startswith("events.out") for p in run.path.iterdir())
    table = csv.DictReader((run.path / "history.csv").open())
    assert [int(r["epoch"]) for r in table] == [1, 2, 3, 4, 5, 6]
    info = json.loads((run.path / "run.json").read_text())
    assert info["finished"] and info["data"]["hash"] == data.hash and info["precision"] == "fp32"
    assert len(list((run.path / "samples").iterdir())) == 6  # smoke: every epoch


def test_load_run_gives_the_same_model(data):
    run = vaekit.fit(small(), data)
    again = vaekit.load_run(run.path)
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(again.model.reconstruct(x), run.model.reconstruct(x))
    assert again.cfg == run.cfg and again.history == run.history
    with pytest.raises(CheckpointError, match="no readable run"):
        vaekit.load_run(run.path / "nowhere")


def test_same_seed_same_weights_other_seed_other_weights(data):
    a, b = (vaekit.fit(small(), data, resume="never") for _ in range(2))
    assert torch.equal(weights(a), weights(b)) and a.path != b.path
    assert not torch.equal(weights(a), weights(vaekit.fit(small(seed=1), data)))


@pytest.mark.parametrize(("stop", "schedule"), [
    (1, "warmup"), (2, "warmup"), (3, "adaptive"), (5, "adaptive_cyclical")])  # fmt: skip
def test_interrupted_and_resumed_equals_uninterrupted(data, stop, schedule, tmp_path):
    cfg = small(beta_schedule=schedule, lr_schedule_phase2="plateau")
    whole = vaekit.fit(cfg, data, out=tmp_path / "whole")

    def pull_the_plug(run):
        if run.history[-1]["epoch"] == stop:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vaekit.keep.writer.SAVE_SECONDS", 0)
        with pytest.raises(KeyboardInterrupt):
            vaekit.fit(cfg, data, out=tmp_path / "cut", on_epoch_end=pull_the_plug)
    resumed = vaekit.fit(cfg, data, out=tmp_path / "cut")
    assert torch.equal(weights(whole), weights(resumed))
    assert rows(whole.history) == rows(resumed.history)
    table = csv.DictReader((resumed.path / "history.csv").open())
    assert [int(r["epoch"]) for r in table] == [1, 2, 3, 4, 5, 6]


def test_finished_is_loaded_changed_is_new_and_says_what_differs(data, capsys):
    first = vaekit.fit(small(), data)
    again = vaekit.fit(small(), data)
    assert again.path == first.path and "finished run found" in capsys.readouterr().out
    other = vaekit.fit(small(beta=0.5), data)
    assert other.path != first.path and "beta 0.001 -> 0.5" in capsys.readouterr().out
    more = Data.from_tensors(blobs(41, 1), blobs(12, 2), blobs(12, 3))
    assert vaekit.fit(small(), more).path not in (first.path, other.path)
    assert "other data" in capsys.readouterr().out


def test_a_run_in_use_is_left_alone(data, capsys):
    from filelock import FileLock

    first = vaekit.fit(small(), data, max_minutes=1e-9)
    assert not first.finished
    with FileLock(first.path / ".lock"):
        second = vaekit.fit(small(), data)
    assert second.path != first.path and "another process" in capsys.readouterr().out


def test_max_minutes_stops_saved_and_goes_on(data, capsys):
    first = vaekit.fit(small(), data, max_minutes=1e-9)
    assert len(first.history) == 1 and not first.finished
    assert "goes on from here" in capsys.readouterr().out
    rest = vaekit.fit(small(), data)
    assert rest.path == first.path and rest.finished and len(rest.history) == 6


def test_stopped_late_by_the_clock_and_resumed_equals_uninterrupted(data, tmp_path, monkeypatch):
    measure = train.Trainer.validate  # gets worse from here on: the best epoch is not the last
    worse = lambda self: {**measure(self), "loss": float(self.epoch)}  # noqa: E731
    monkeypatch.setattr(train.Trainer, "validate", worse)
    whole = vaekit.fit(small(epochs_phase2=8), data, out=tmp_path / "whole")
    clock = iter(range(10**6))
    with pytest.MonkeyPatch.context() as patch:  # every look at the clock takes half a second
        patch.setattr(train.time, "perf_counter", lambda: 0.5 * next(clock))
        cut = vaekit.fit(small(epochs_phase2=8), data, out=tmp_path / "cut", max_minutes=2 / 3)
    assert whole.cfg.epochs_phase1 + whole.cfg.beta_warmup < len(cut.history) < 10
    resumed = vaekit.fit(small(epochs_phase2=8), data, out=tmp_path / "cut")
    assert resumed.path == cut.path and torch.equal(weights(whole), weights(resumed))
    last = torch.load(whole.path / "last.pt", weights_only=True)["ema"]
    best = torch.load(whole.path / "best.pt", weights_only=True)["model"]
    assert not all(torch.equal(last[name], best[name]) for name in best)  # what goes on is the last


def test_best_is_only_taken_after_annealing(data):
    run = vaekit.fit(small(epochs_phase2=6, beta_warmup=3), data)
    best = torch.load(run.path / "best.pt", weights_only=True)
    losses = {r["epoch"]: r["val_loss"] for r in run.history if r["epoch"] > 5}
    assert best["epoch"] == min(losses, key=losses.get)
    again = VAE(run.cfg)
    again.load_state_dict(best["model"])
    torch.testing.assert_close(again.encoder.mu.weight, run.model.encoder.mu.weight)


def test_early_stopping_ends_the_run(data, monkeypatch):
    monkeypatch.setattr(train.Trainer, "validate", lambda self: {"loss": 1.0, "kl": 0, "psnr": 0})
    run = vaekit.fit(small(epochs_phase2=9, beta_warmup=1, early_stop=2), data)
    assert run.finished and len(run.history) == 2 + 1 + 1 + 2


def test_not_finite_stops_with_advice(data, monkeypatch):
    monkeypatch.setattr(train.Trainer, "validate", lambda self: {"loss": float("nan")})
    with pytest.raises(FloatingPointError, match="lr_phase1"):
        vaekit.fit(small(), data)


def test_fit_leaves_the_callers_random_numbers_alone(data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    vaekit.fit(small(), data)
    assert torch.equal(torch.rand(3), expected)


def test_config_and_data_must_agree(data):
    with pytest.raises(ValueError, match="32"):
        vaekit.fit(small(image_size=32), data)
    with pytest.raises(ValueError, match="auto, never"):
        vaekit.fit(small(), data, resume="yes")


def test_loop_by_hand_equals_fit(data):
    cfg = small(epochs_phase1=0, epochs_phase2=1, batch_size=20, ema=0.0)
    run = vaekit.fit(cfg, data)
    trainer = train.Trainer(cfg, data, None)
    model = trainer.raw.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=cfg.weight_decay)
    order, flip = train.epoch_order(cfg, 40, epoch=0)
    torch.manual_seed(cfg.seed * 1_000_003 * 64)
    for step in range(2):
        rows = slice(20 * step, 20 * step + 20)
        x = data.train.images[order[rows]].float() / 255
        x = torch.where(flip[rows].view(-1, 1, 1, 1), x.flip(-1), x)
        x = x.contiguous(memory_format=torch.channels_last)
        x_hat, mu, logvar = model(x)
        beta = cfg.beta
        optimizer.param_groups[0]["lr"] = cfg.lr_phase2
        optimizer.zero_grad()
        vae_loss(x_hat, x, mu, logvar, cfg, beta).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        optimizer.step()
    by_hand = torch.cat([p.flatten() for p in model.parameters()])
    torch.testing.assert_close(by_hand, weights(run), atol=1e-6, rtol=1e-4)


def test_epoch_order_is_shared_out_without_overlap():
    cfg = small(batch_size=8)
    order, flip = train.epoch_order(cfg, 40, epoch=3)
    assert sorted(order.tolist()) == list(range(40)) and 5 < flip.sum() < 35
    parts = [train.epoch_order(cfg, 40, 3, rank, 2)[0].view(-1, 4) for rank in (0, 1)]
    assert torch.equal(torch.cat(parts, 1), order.view(-1, 8))
    assert not torch.equal(order, train.epoch_order(cfg, 40, epoch=4)[0])
    assert len(train.epoch_order(cfg, 41, 0)[0]) == 40 and len(train.epoch_order(cfg, 5, 0)[0]) == 5


@pytest.mark.parametrize(
    ("kind", "bf16", "capability", "expected"),
    [("cpu", True, None, "bf16"), ("cpu", False, None, "fp32"), ("cuda", False, (8, 0), "bf16"),
     ("cuda", False, (7, 5), "fp16"), ("mps", False, None, "fp32")],
)  # fmt: skip
def test_native_precision(monkeypatch, kind, bf16, capability, expected):
    monkeypatch.setattr("vaekit.place.device.cpu_has_bf16", lambda: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert device.choose_precision("auto", torch.device(kind)) == expected
    assert device.choose_precision("fp32", torch.device(kind)) == "fp32"


def test_bf16_and_batchnorm_train_too(data):
    run = vaekit.fit(small(precision="bf16", norm="batch", batch_size=64), data)
    assert run.finished and weights(run).isfinite().all()


def test_command_line(tmp_path):
    environment = os.environ | {"VAEKIT_PROFILE": "smoke", "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-m", "vaekit.train", "chest_xray", "widths=[8,16]",
               "attention=[]", "latent_channels=4", "norm=batch", f"out={tmp_path}"]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "finished" in done.stdout.splitlines()[-1]
    (run,) = tmp_path.glob("*/run.json")
    assert json.loads(run.read_text())["finished"]


def test_two_processes_equal_one_where_no_noise_is_drawn(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    arguments = ["-m", "vaekit.train", "chest_xray", "widths=[8,16,32]", "attention=[]",
                 "latent_channels=4", "precision=fp32", "epochs_phase1=2", "epochs_phase2=1",
                 "perceptual_weight=0"]  # fmt: skip
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    histories = []
    for command, out in (([sys.executable], "one"), (two, "two")):
        subprocess.run([*command, *arguments, f"out={tmp_path / out}"], env=environment,
                       capture_output=True, text=True, check=True)  # fmt: skip
        (file,) = tmp_path.glob(f"{out}/*/history.csv")  # one writer, one run
        histories.append(list(csv.DictReader(file.open())))
    for one, two in zip(*(h[:2] for h in histories), strict=True):
        for name in ("train_loss", "val_loss", "val_l1", "train_grad_norm"):
            assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-4), name


def test_arguments_of_the_command_line():
    assert __main__.parse_changes(["beta=0.1", "widths=[8]", "norm=batch", "flip=false"]) == {
        "beta": 0.1, "widths": [8], "norm": "batch", "flip": False,
    }  # fmt: skip
    with pytest.raises(ValueError, match="key=value"):
        __main__.parse_changes(["beta"])
