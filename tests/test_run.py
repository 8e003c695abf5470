"""fit(): the files it writes, finding and resuming a run, the epoch it returns."""

import contextlib
import csv
import json
import math
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from tiny import JUDGED, blobs, rows, same, small, weights

import vaekit
from vaekit import __main__, train
from vaekit.data import Data
from vaekit.keep import checkpoint, folder, guards, resume, writer
from vaekit.keep.checkpoint import CheckpointError
from vaekit.model import VAE


class Killed(BaseException):
    """What ends a training at a chosen moment; tests/torture/kills.py does it with SIGKILL."""


def kill(*_):
    raise Killed


def full(*_):
    raise OSError(28, "No space left on device")


def at_call(n: int, do, original):
    """`original`, with `do` before its n-th call."""
    calls = iter(range(1, 10**9))

    def wrapped(*args, **kwargs):
        if next(calls) == n:
            do()
        return original(*args, **kwargs)

    return wrapped


def at_rename(name: str, n: int, do):
    """os.replace, with `do` before the n-th rename to a file called `name`."""
    rename, calls = os.replace, iter(range(1, 10**9))

    def replace(source, target):
        if Path(target).name == name and next(calls) == n:
            do()
        rename(source, target)

    return replace


@pytest.fixture(scope="module")
def template(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
        patch.setenv("VAEKIT_PROFILE", "smoke")
        patch.setattr(writer, "SAVE_SECONDS", 0)
        patch.setattr(train.Trainer, "begin_phase2", kill)
        vaekit.fit(small(), data, out=out, verbose=False)
    return next(out.iterdir())


@pytest.fixture
def unfinished(template, tmp_path):
    """A run with last.pt after epoch 2 and previous.last.pt after epoch 1: its folder."""
    return shutil.copytree(template, tmp_path / "runs" / template.name)


# ---- what is left, and found again -----------------------------------------------------------


def test_what_a_run_leaves_on_disk(whole, data):
    names = {p.name.split(".out.")[0] for p in whole.path.iterdir()}
    files = {"config.json", "run.json", "history.csv", "last.pt", "best.pt", "samples"}
    assert names >= {*files, "model.safetensors", "events"}
    table = csv.DictReader((whole.path / "history.csv").open())
    assert [int(r["epoch"]) for r in table] == [1, 2, 3, 4, 5, 6]
    info = json.loads((whole.path / "run.json").read_text())
    assert info["finished"] and info["data"]["hash"] == data.hash and info["precision"] == "fp32"
    assert len(list((whole.path / "samples").iterdir())) == 6  # smoke: every epoch
    shown = repr(vaekit.load_run(whole.path))
    torches = f"torch: {torch.__version__}"
    for text in ("epochs: 6 of 6", torches, "command: ", data.hash, "'latent_channels': 4"):
        assert text in shown


def test_load_run_gives_the_same_model(whole, unfinished):
    again = vaekit.load_run(whole.path)
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(again.model.reconstruct(x), whole.model.reconstruct(x))
    assert again.cfg == whole.cfg and again.history == whole.history
    with pytest.raises(CheckpointError, match="no readable run"):
        vaekit.load_run(whole.path / "nowhere")
    early = vaekit.load_run(unfinished).model.state_dict()  # before any epoch can be the best
    averages = torch.load(unfinished / "last.pt", weights_only=True)["ema"]
    assert all(torch.equal(early[name], averages[name]) for name in averages)


def test_finished_is_loaded_changed_is_new_and_says_what_differs(data, capsys):
    first = vaekit.fit(small(), data)
    again = vaekit.fit(small(), data)
    assert again.path == first.path and "finished run found" in capsys.readouterr().out
    other = vaekit.fit(small(beta=0.5), data)
    assert other.path != first.path and "beta 0.001 -> 0.5" in capsys.readouterr().out
    more = Data.from_tensors(blobs(41, 1), blobs(12, 2), blobs(12, 3))
    assert vaekit.fit(small(), more).path not in (first.path, other.path)
    assert "other data" in capsys.readouterr().out


def test_more_epochs_go_on_from_a_finished_run(data, tmp_path, capsys):
    common = {"lr_schedule_phase2": "constant", "beta_warmup": 1}
    short = fit_all(data, tmp_path, epochs_phase2=2, **common)
    cfg = small(epochs_phase2=4, **common)
    for how, first in (("auto", "epoch   5/6"), ("never", "epoch   1/6")):
        more = vaekit.fit(cfg, data, out=tmp_path, resume=how)
        said = capsys.readouterr().out
        assert more.finished and more.path != short.path and len(more.history) == 6
        assert rows(more.history)[:4] == rows(short.history)
        assert vaekit.load_run(more.path).finished and first in said
        assert ("epoch   1/6" in said) == (how == "never")
        assert (f"{short.path.name} ended" in said) == (how == "auto")
    vaekit.fit(cfg.replace(epochs_phase2=5, beta=0.5), data, out=tmp_path)
    assert "epoch   1/7" in capsys.readouterr().out


def test_the_best_of_a_shorter_run_counts_only_under_the_final_objective(data, tmp_path):
    short = fit_all(data, tmp_path, epochs_phase2=2, beta_warmup=1)
    for warmup, kept in ((1, True), (3, False)):
        trainer = guards.GuardedTrainer(small(epochs_phase2=4, beta_warmup=warmup), data)
        assert resume.go_on_from(trainer, short.path, short.cfg)
        assert trainer.epoch == 4 and (trainer.best.state is not None) == kept
    assert (short.path / "previous.last.pt").exists()  # another run's files are left as they are


@pytest.mark.parametrize("features", ["auto", "squeezenet"])
def test_a_finished_run_is_found_without_the_weights_it_was_trained_with(
    data, monkeypatch, features
):
    cfg = small(epochs_phase1=0, epochs_phase2=1, beta_warmup=0)
    run = vaekit.fit(cfg, data)
    asked = cfg.replace(perceptual_weight=0.1, features=features)
    asked.replace(features="squeezenet").save(run.path / "config.json")
    for file in run.path.glob("*.pt"):
        state = torch.load(file, weights_only=True)
        torch.save(state | {"config": asked.replace(features="squeezenet").to_dict()}, file)
    monkeypatch.setattr(vaekit.keep.run, "feature_loss", lambda *_: pytest.fail("was loaded"))
    assert vaekit.fit(asked, data).path == run.path


def test_a_run_is_compared_with_one_of_its_own_preset(tmp_path, capsys):
    for name in ("celeba64_original", "celeba64"):
        cfg = vaekit.preset(name)
        path = tmp_path / f"2026-{name}"
        path.mkdir()
        cfg.save(path / "config.json")
        (path / "run.json").write_text('{"data": {"hash": "x"}}')
    with folder.open_run(tmp_path, vaekit.preset("celeba64", beta=0.5), "x", "auto", print):
        pass
    said = capsys.readouterr().out
    assert said == "new run; against 2026-celeba64: beta 0.9 -> 0.5\n"


def test_a_run_in_use_is_left_alone(data, capsys):
    first = vaekit.fit(small(), data, max_minutes=1e-9)
    assert not first.finished
    with FileLock(first.path / ".lock"):
        second = vaekit.fit(small(), data)
    assert second.path != first.path and "another process" in capsys.readouterr().out
    with folder.open_run(first.path.parent, small(beta=0.7), data.hash, "auto", print) as path:
        with pytest.raises(folder.Timeout):  # a new one is taken as well
            folder.claim(path)


def test_config_and_data_must_agree(data):
    with pytest.raises(ValueError, match="32"):
        vaekit.fit(small(image_size=32), data)
    with pytest.raises(ValueError, match="in_channels"):
        vaekit.fit(small(in_channels=3), data)
    with pytest.raises(ValueError, match="auto, never"):
        vaekit.fit(small(), data, resume="yes")


def test_missing_and_unwritable_folders(data, tmp_path):
    run = vaekit.fit(small(epochs_phase1=0, epochs_phase2=1), data, out=tmp_path / "a" / "b")
    assert run.finished
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        vaekit.fit(small(), data, out=tmp_path / "file" / "runs")


# ---- which epoch is the best -----------------------------------------------------------------


def test_the_newest_epoch_is_taken_unless_validation_says_it_broke(data, monkeypatch):
    losses = iter([0.1, 0.1, 0.2, 0.2, 0.2, 1.0, 0.9, 0.91, 0.95, 0.917, 0.93])  # 2% of 0.9: 0.018
    measured = {"kl": 0, "psnr": 0}
    monkeypatch.setattr(train.Trainer, "validate", lambda self: measured | {"loss": next(losses)})
    run = vaekit.fit(small(epochs_phase2=9, beta_warmup=3), data)
    best = torch.load(run.path / "best.pt", weights_only=True)
    assert (best["epoch"], best["loss"], best["lowest"]) == (10, 0.917, 0.9)
    again = VAE(run.cfg)
    again.load_state_dict(best["model"])
    torch.testing.assert_close(again.encoder.mu.weight, run.model.encoder.mu.weight)


def test_best_of_an_adaptive_beta_is_judged_at_the_beta_it_has_come_to(data):
    cfg = small(beta_schedule="adaptive", beta=50.0, lr_phase2=2e-3)
    cfg = cfg.replace(epochs_phase1=0, epochs_phase2=24)
    run = vaekit.fit(cfg, data, resume="never", verbose=False)
    saved = torch.load(run.path / "best.pt", weights_only=True)
    assert run.history[-1]["beta"] < 5 and saved["epoch"] > 12  # the first had almost no code
    row = run.history[saved["epoch"] - 1]
    assert saved["beta"] == row["beta"] and saved["loss"] == row["val_loss"]
    latents = run.model.encode(torch.zeros(1, 1, 16, 16))[0].numel()
    assert saved["rate"] == pytest.approx(row["val_kl"] / latents)


def test_early_stopping_ends_the_run(data, monkeypatch):
    monkeypatch.setattr(train.Trainer, "validate", lambda self: {"loss": 1.0, "kl": 0, "psnr": 0})
    run = vaekit.fit(small(epochs_phase2=9, beta_warmup=1, early_stop=2), data)
    assert run.finished and len(run.history) == 2 + 1 + 1 + 2


def test_a_lost_best_may_be_beaten_by_a_worse_one(data, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SAVE_SECONDS", 0)
        run = vaekit.fit(small(epochs_phase2=6), data, out=tmp_path, verbose=False)
    names = ("best.pt", "previous.best.pt")
    held = [torch.load(run.path / name, weights_only=True)["loss"] for name in names]
    assert held[0] < held[1]
    for loss in (held[1], math.inf):  # the second time it is the repaired one that is lost
        (run.path / "best.pt").unlink()
        trainer = guards.GuardedTrainer(run.cfg, data)
        assert resume.go_on_from(trainer, run.path) and trainer.best.loss == loss


# ---- killed, stopped, full -------------------------------------------------------------------

MOMENTS = {
    "in a step": (guards.GuardedTrainer, "update", 13),
    "between the phases": (train.Trainer, "begin_phase2", 1),
    "in the sample grid": (writer.RunWriter, "draw_samples", 3),
    "in validation": (train.Trainer, "validate", 6),
    "at the end": (writer.RunWriter, "finish", 1),
}
RENAMES = [("last.pt", 1), ("last.pt", 4), ("previous.last.pt", 3), ("best.pt", 2)]
RENAMES += [("history.csv", 2), ("history.csv", 6), ("model.safetensors", 1), ("run.json", 2)]


def fit_all(data, out, **changes):
    return vaekit.fit(small(**changes), data, out=out, verbose=False)


def check_resumed(run, whole, out) -> None:
    assert run.finished and vaekit.load_run(run.path).finished and same(run, whole)
    table = (run.path / "history.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[0]) for line in table] == [1, 2, 3, 4, 5, 6]
    assert not list(out.glob("*/.*.tmp")) and (run.path / "model.safetensors").exists()


@pytest.mark.parametrize("moment", [*MOMENTS, *RENAMES], ids=str)
def test_killed_and_resumed_equals_uninterrupted(data, whole, moment, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SAVE_SECONDS", 0)
        if moment in RENAMES:
            patch.setattr(os, "replace", at_rename(*moment, kill))
        else:
            place, name, n = MOMENTS[moment]
            patch.setattr(place, name, at_call(n, kill, getattr(place, name)))
        with pytest.raises(Killed):
            fit_all(data, tmp_path)
    check_resumed(fit_all(data, tmp_path), whole, tmp_path)


def test_a_best_that_is_newer_than_the_last_checkpoint_is_trained_again(data, whole, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            os, "replace", at_rename("last.pt", 3, kill)
        )  # of the start, phase 1, the end
        fit_all(data, tmp_path)
    (path,) = tmp_path.iterdir()
    best, last = (checkpoint.load_checkpoint(path / n) for n in ("best.pt", "previous.last.pt"))
    assert best["epoch"] > last["epoch"] == 2
    check_resumed(fit_all(data, tmp_path), whole, tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    checkpoint.write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("moment", [("last.pt", 1), ("last.pt", 3), ("history.csv", 2)], ids=str)
def test_a_full_disk_leaves_the_last_good_state_and_names_it(data, whole, tmp_path, moment):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SAVE_SECONDS", 0)
        patch.setattr(os, "replace", at_rename(*moment, full))
        with pytest.raises(CheckpointError, match="No space left.*, is (nothing|the state)"):
            fit_all(data, tmp_path)
    assert not list(tmp_path.glob("*/.*.tmp"))
    check_resumed(fit_all(data, tmp_path), whole, tmp_path)


PLATEAU = dict(lr_schedule_phase2="plateau", early_stop=9)
LINEAR = dict(start="linear", latent="vector", rescale_latents=False)
SHORT = dict(epochs_phase1=1, epochs_phase2=2)
STUCK = dict(lr_schedule_phase1="plateau", plateau_patience=0, lr_phase1=1.0, epochs_phase1=5)
STATEFUL = {  # what a training may have to remember, and the epoch after which it is stopped
    "lower rate": (STUCK | dict(epochs_phase2=1), 4),
    "band": (dict(beta_schedule="adaptive", precision="fp16") | PLATEAU, 3),
    "band and cycles": (dict(beta_schedule="adaptive_cyclical") | PLATEAU, 5),
    "linear start": (LINEAR | dict(epochs_phase1=0, shift=1, band_weight=1.0), 1),
    "critic": (JUDGED, 6),
    "critic, linear start": (JUDGED | LINEAR, 6),
    "levels": (dict(latent="fsq", levels=(4, 3)) | SHORT, 1),
    "codebook": (dict(latent="vq", codebook_size=12) | SHORT, 1),
}


@pytest.mark.parametrize("kind", STATEFUL)
def test_what_has_a_state_goes_on_where_it_was(data, kind, tmp_path, monkeypatch):
    changes, stop = STATEFUL[kind]
    whole = fit_all(data, tmp_path / "whole", **changes)

    def pull_the_plug(run):
        if run.history[-1]["epoch"] == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(writer, "SAVE_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        vaekit.fit(small(**changes), data, out=tmp_path / "cut", on_epoch_end=pull_the_plug)
    resumed = fit_all(data, tmp_path / "cut", **changes)
    assert same(resumed, whole) and resumed.finished
    assert torch.equal(weights(vaekit.load_run(resumed.path)), weights(whole))


def test_max_minutes_stops_saved_and_goes_on(data, tmp_path, monkeypatch, capsys):
    measure = train.Trainer.validate  # gets worse from here on: the best epoch is not the last
    worse = lambda self: {**measure(self), "loss": float(self.epoch)}  # noqa: E731
    monkeypatch.setattr(train.Trainer, "validate", worse)
    whole = fit_all(data, tmp_path / "whole", epochs_phase2=8)
    clock = iter(range(10**6))
    with pytest.MonkeyPatch.context() as patch:  # every look at the clock takes a second
        patch.setattr(guards.time, "perf_counter", lambda: float(next(clock)))
        cfg = small(epochs_phase2=8)
        cut = vaekit.fit(cfg, data, out=tmp_path / "cut", max_minutes=2 / 3)
    assert "goes on from here" in capsys.readouterr().out and not cut.finished
    assert whole.cfg.epochs_phase1 + whole.cfg.beta_warmup < len(cut.history) < 10
    resumed = fit_all(data, tmp_path / "cut", epochs_phase2=8)
    assert resumed.path == cut.path and torch.equal(weights(whole), weights(resumed))
    last = torch.load(whole.path / "last.pt", weights_only=True)["ema"]
    best = torch.load(whole.path / "best.pt", weights_only=True)["model"]
    assert not all(torch.equal(last[name], best[name]) for name in best)  # what goes on is the last


def test_a_checkpoint_of_the_flat_package_is_read(data, whole):
    """The keys of its state_dict."""
    state = torch.load(whole.path / "last.pt", weights_only=True)
    kept = {"model", "ema", "optimizer", "scaler", "plateau", "band", "epoch", "step", "history"}
    kept |= {"best_loss", "bad_epochs", "setbacks", "parts", "config", "critic"}
    assert state.keys() == kept | {"format"}
    trainer = guards.GuardedTrainer(whole.cfg, data)
    trainer.load_state_dict(state | {"setbacks": 2, "parts": 4})
    assert (trainer.setbacks, trainer.parts) == (2, 4)
    for name in ("setbacks", "parts"):  # the first ones had none of these
        del state[name]
    state |= {"streak": 0, "partial": None}  # later ones had these
    trainer.load_state_dict(state)
    assert (trainer.epoch, trainer.setbacks, trainer.parts) == (6, 0, 1)


# ---- torn, foreign, hostile ------------------------------------------------------------------


def spoil(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how.startswith("cut"):
        path.write_bytes(content[: len(content) * int(how[3:]) // 10])
        return
    state = torch.load(path, weights_only=True)
    bias = state["ema"]["encoder.mu.bias"]
    if how == "flipped":
        content[content.index(bias.numpy().tobytes())] ^= 1
        path.write_bytes(content)
        return
    if how == "foreign":
        state["config"] = small(beta=0.5).to_dict()
    elif how == "older":
        state["format"] = 0
    else:
        bias[0] = math.nan
    torch.save(state, path)


SPOILED = ["cut0", "cut5", "cut9", "flipped", "foreign", "older", "nan"]


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_checkpoint_gives_way_to_the_one_before(unfinished, data, how, capsys):
    spoil(unfinished / "last.pt", how)
    trainer = guards.GuardedTrainer(small(features="none"), data)
    assert resume.go_on_from(trainer, unfinished) and trainer.epoch == 1
    assert "last.pt cannot be used" in capsys.readouterr().out
    assert checkpoint.load_checkpoint(unfinished / "last.pt")["epoch"] == 1  # repaired
    assert not (unfinished / "previous.last.pt").exists()


@pytest.mark.parametrize("how", ["cut0", "flipped", "foreign"])
def test_nothing_good_left_is_an_error_and_no_fresh_start(unfinished, data, how):
    for name in ("last.pt", "previous.last.pt"):
        spoil(unfinished / name, how)
    go_on = partial(fit_all, data, unfinished.parent)
    for call in (go_on, partial(vaekit.load_run, unfinished)):
        with pytest.raises(CheckpointError, match="last.pt cannot be used"):
            call()
    for name in ("last.pt", "previous.last.pt"):
        (unfinished / name).unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        go_on()
    assert len(list(unfinished.parent.iterdir())) == 1


def test_killed_after_a_repair_there_is_still_a_good_one(unfinished, data, whole):
    spoil(unfinished / "last.pt", "flipped")
    rename = os.replace

    def replace(source, target):  # dies between the two renames of the next save
        rename(source, target)
        if str(target).endswith("previous.last.pt"):
            kill()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(writer, "SAVE_SECONDS", 0)
        patch.setattr(os, "replace", replace)
        fit_all(data, unfinished.parent)
    assert same(fit_all(data, unfinished.parent), whole)


class Evil:
    def __reduce__(self):
        return (os.mkdir, (os.environ["EVIL"],))


def test_code_in_a_run_is_named_and_never_run(unfinished, data, tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    state = torch.load(unfinished / "last.pt", weights_only=True)
    for name in ("last.pt", "previous.last.pt", "best.pt"):
        torch.save(state | {"history": Evil()}, unfinished / name)
    for call in (partial(fit_all, data, unfinished.parent), partial(vaekit.load_run, unfinished)):
        with pytest.raises(CheckpointError, match=r"(last|best).pt cannot be used"):
            call()
    assert not (tmp_path / "evil").exists()


NOT_RUNS = ["[]", "{}", "3", '{"data": 5}', '{"data": {"hash": []}}', "nul", ""]


@pytest.mark.parametrize("text", NOT_RUNS)
@pytest.mark.parametrize("name", ["run.json", "config.json"])
def test_json_of_the_wrong_shape_is_passed_over(unfinished, data, name, text):
    (unfinished / name).write_text(text)
    cfg = small(features="none")
    with folder.open_run(unfinished.parent, cfg, data.hash, "auto", print) as path:
        assert path != unfinished
    if name == "config.json":
        with pytest.raises(CheckpointError, match="no readable run|another config"):
            vaekit.load_run(unfinished)


# ---- from a shell ----------------------------------------------------------------------------


def from_shell(*arguments, before=()) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *before, "-m", "vaekit", "chest_xray", "attention=[]"]
    command += ["latent_channels=4", "precision=fp32", "perceptual_weight=0", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_under_torchrun_one_of_two_processes_writes_and_speaks(tmp_path):
    """That they train what one does: tests/test_launch.py."""
    arguments = ["widths=[8,16,32]", "epochs_phase1=1", "epochs_phase2=1", f"out={tmp_path}"]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    said = from_shell(*arguments, before=torchrun)
    assert said.count("2 epochs, finished") == 1
    (file,) = tmp_path.glob("*/history.csv")
    info = folder.read_info(file.parent)
    assert (
        info["finished"] and info["processes"] == 2 and len(list(csv.DictReader(file.open()))) == 2
    )


def test_arguments_of_the_command_line():
    found = __main__.parse_changes(["beta=0.1", "widths=[8]", "norm=batch", "flip=false"])
    assert found == {"beta": 0.1, "widths": [8], "norm": "batch", "flip": False}
    with pytest.raises(ValueError, match="key=value"):
        __main__.parse_changes(["beta"])
