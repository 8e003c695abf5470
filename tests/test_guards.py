"""Nothing lost: a run that is killed, asked to stop, or meets NaN, a full disk or full memory."""

import contextlib
import json
import math
import os
import shutil
import signal
import warnings
from functools import partial

import pytest
import torch
from tiny import blobs, rows, shapes, small, weights

import vaekit
from vaekit import losses, train
from vaekit import model as model_module
from vaekit.data import Data
from vaekit.keep import checkpoint, folder, guards, resume, writer
from vaekit.keep.checkpoint import CheckpointError
from vaekit.losses import vae_loss


class Killed(BaseException):
    """What ends a training at a chosen moment; tests/torture/kills.py does it with SIGKILL."""


@pytest.fixture(scope="module")
def data() -> Data:
    return shapes()


@pytest.fixture
def trainers(monkeypatch):
    """The Trainers that `fit` makes."""
    made, build = [], train.Trainer.__init__

    def remember(self, *args):
        made.append(self)
        build(self, *args)

    monkeypatch.setattr(train.Trainer, "__init__", remember)
    return made


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The run that nothing happened to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAEKIT_PROFILE", "smoke")
        return vaekit.fit(small(), data, out=tmp_path_factory.mktemp("whole"), verbose=False)


def same(run, other) -> bool:
    """Weights, optimiser, averages and histories are equal to the last bit."""
    a, b = (torch.load(r.path / "last.pt", weights_only=True) for r in (run, other))
    for part in ("model", "ema"):
        if not all(torch.equal(a[part][k], b[part][k]) for k in b[part]):
            return False
    moments = [s["optimizer"]["state"] for s in (a, b)]
    if not all(torch.equal(x, y) for i in moments[1] for x, y in
               zip(moments[0][i].values(), moments[1][i].values(), strict=True)):  # fmt: skip
        return False
    return torch.equal(weights(run), weights(other)) and rows(run.history) == rows(other.history)


def at_call(n: int, do):
    """A function's replacement that calls `do` before its n-th call."""

    def wrap(original):
        calls = iter(range(1, 10**9))

        def wrapped(*args, **kwargs):
            if next(calls) == n:
                do()
            return original(*args, **kwargs)

        return wrapped

    return wrap


def kill():
    raise Killed


# ---- killed, asked to stop -------------------------------------------------------------------


MOMENTS = [("os.fsync", 2), ("os.fsync", 9), ("os.replace", 5), ("os.replace", 12),
           ("vaekit.train.Trainer.train_step", 13), ("vaekit.train.Trainer.begin_phase2", 1),
           ("vaekit.keep.writer.RunWriter._samples", 3), ("vaekit.train.Trainer.validate", 6),
           ("vaekit.keep.writer.RunWriter.finish", 1), ("safetensors.torch.save", 1)]  # fmt: skip


@pytest.mark.parametrize(("where", "n"), MOMENTS)
def test_killed_and_resumed_equals_uninterrupted(data, whole, where, n, tmp_path):
    module, name = where.rsplit(".", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SAVE_SECONDS", 0)
        import safetensors.torch

        places = {"os": os, "safetensors.torch": safetensors.torch,
                  "vaekit.train.Trainer": train.Trainer,
                  "vaekit.keep.writer.RunWriter": writer.RunWriter}  # fmt: skip
        place = places[module]
        patch.setattr(place, name, at_call(n, kill)(getattr(place, name)))
        with pytest.raises(Killed):
            vaekit.fit(small(), data, out=tmp_path, verbose=False)
    resumed = vaekit.fit(small(), data, out=tmp_path, verbose=False)
    assert resumed.finished and vaekit.load_run(resumed.path).finished
    assert same(resumed, whole)
    table = (resumed.path / "history.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[0]) for line in table] == [1, 2, 3, 4, 5, 6]
    assert not list(tmp_path.glob("*/.*.tmp")) and (resumed.path / "model.safetensors").exists()


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 7), (signal.SIGINT, 12),
                                              (signal.SIGTERM, 15)])  # fmt: skip
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    data, whole, tmp_path, number, step, capsys, monkeypatch
):
    heard = []
    before = signal.signal(number, lambda *_: heard.append(number))  # whoever listened before
    ask = at_call(step, lambda: os.kill(os.getpid(), number))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train.Trainer, "train_step", ask(train.Trainer.train_step))
            cut = vaekit.fit(small(), data, out=tmp_path)
        assert heard == [number]  # passed on, after all was saved
    finally:
        signal.signal(number, before)
    epochs, steps = divmod(step, 5)  # 40 images, 8 a batch
    assert len(cut.history) == epochs and not cut.finished
    stopped = torch.load(cut.path / "last.pt", weights_only=True)["partial"]
    assert (stopped["steps"] if steps else stopped) == (steps or None)
    said = capsys.readouterr().out
    assert number.name in said and "saved in" in said and "same call goes on" in said
    rest = vaekit.fit(small(), data, out=tmp_path)
    assert rest.path == cut.path and same(rest, whole)


def test_ctrl_c_is_still_an_interrupt_and_the_second_does_not_wait(data, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second Ctrl-C waited")

    for do, saved in ((lambda: os.kill(os.getpid(), signal.SIGINT), 1), (twice, 0)):
        out = tmp_path / str(saved)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            step = train.Trainer.train_step
            patch.setattr(train.Trainer, "train_step", at_call(1, do)(step))
            vaekit.fit(small(), data, out=out, verbose=False)
        state = checkpoint.newest_valid(next(out.iterdir()))
        assert (state["partial"] is not None) == saved
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_clock_cuts_an_epoch_that_would_end_too_late(data, whole, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(train.time, "perf_counter", lambda: now[0])
    step = train.Trainer.train_step

    def slow(*args):  # 20 seconds a step: an epoch takes 100
        now[0] += 20
        return step(*args)

    monkeypatch.setattr(train.Trainer, "train_step", slow)
    cut = vaekit.fit(small(), data, out=tmp_path, max_minutes=1, verbose=False)
    assert now[0] == 60 and not cut.history  # 58 s and a reserve of 2 s for saving are over
    monkeypatch.setattr(train.Trainer, "train_step", step)
    assert same(vaekit.fit(small(), data, out=tmp_path, verbose=False), whole)


# ---- torn, full, foreign ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
        patch.setenv("VAEKIT_PROFILE", "smoke")
        patch.setattr(writer, "SAVE_SECONDS", 0)
        patch.setattr(train.Trainer, "begin_phase2", lambda self: kill())
        vaekit.fit(small(), data, out=out, verbose=False)
    return next(out.iterdir())


@pytest.fixture
def unfinished(template, tmp_path):
    """A run with last.pt after epoch 2 and previous.last.pt after epoch 1: its folder."""
    return shutil.copytree(template, tmp_path / "runs" / template.name)


def spoil(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how.startswith("cut"):
        content = content[: len(content) * int(how[3:]) // 10]
    elif how == "flipped":
        bias = torch.load(path, weights_only=True)["ema"]["encoder.mu.bias"]
        content[content.index(bias.numpy().tobytes())] ^= 1
    elif how in ("foreign", "older", "nan"):
        state = torch.load(path, weights_only=True)
        if how == "foreign":
            state["config"] = small(beta=0.5).to_dict()
        elif how == "older":
            state["format"] = 0
        else:
            state["ema"]["encoder.mu.bias"][0] = math.nan
        torch.save(state, path)
        return
    path.write_bytes(content)


SPOILED = [*(f"cut{i}" for i in range(10)), "flipped", "foreign", "older", "nan"]


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_checkpoint_gives_way_to_the_one_before(unfinished, how, capsys):
    spoil(unfinished / "last.pt", how)
    cfg = small(features="none")
    trainer = train.Trainer(cfg, shapes(), None)
    assert resume.go_on_from(trainer, unfinished) and trainer.epoch == 1
    assert "last.pt cannot be used" in capsys.readouterr().out
    assert checkpoint.load_checkpoint(unfinished / "last.pt")["epoch"] == 1  # repaired
    assert not (unfinished / "previous.last.pt").exists()


@pytest.mark.parametrize("how", ["cut0", "cut5", "flipped", "foreign", "older", "nan"])
def test_nothing_good_left_is_an_error_and_no_fresh_start(unfinished, data, how):
    for name in ("last.pt", "previous.last.pt"):
        spoil(unfinished / name, how)
    go_on = partial(vaekit.fit, small(), data, out=unfinished.parent, verbose=False)
    for call in (go_on, partial(vaekit.load_run, unfinished)):
        with pytest.raises(CheckpointError, match="last.pt cannot be used"):
            call()
    for name in ("last.pt", "previous.last.pt"):
        (unfinished / name).unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        vaekit.fit(small(), data, out=unfinished.parent, verbose=False)
    assert len(list(unfinished.parent.iterdir())) == 1


def test_a_lost_best_may_be_beaten_by_a_worse_one(data, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SAVE_SECONDS", 0)
        run = vaekit.fit(small(epochs_phase2=6), data, out=tmp_path, verbose=False)
    held = [torch.load(run.path / name, weights_only=True)["loss"] for name in
            ("best.pt", "previous.best.pt")]  # fmt: skip
    assert held[0] < held[1]
    for name, loss in (("best.pt", held[1]), ("best.pt", math.inf)):  # the second is repaired
        (run.path / name).unlink()
        trainer = train.Trainer(run.cfg, data, None)
        assert resume.go_on_from(trainer, run.path) and trainer.best_loss == loss


def test_killed_after_a_repair_there_is_still_a_good_one(unfinished, data, whole):
    spoil(unfinished / "last.pt", "flipped")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(writer, "SAVE_SECONDS", 0)
        rename, done = os.replace, []

        def replace(source, target):  # dies between the two renames of the next save
            rename(source, target)
            if str(target).endswith("previous.last.pt"):
                done.append(target)
                kill()

        patch.setattr(os, "replace", replace)
        vaekit.fit(small(), data, out=unfinished.parent, verbose=False)
    assert done and same(vaekit.fit(small(), data, out=unfinished.parent, verbose=False), whole)


@pytest.mark.parametrize("call", [1, 2, 3, 5, 7])
def test_a_full_disk_leaves_the_last_good_state_and_names_it(data, whole, tmp_path, call):
    def full():
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SAVE_SECONDS", 0)
        patch.setattr(os, "fsync", at_call(call, full)(os.fsync))
        with pytest.raises(CheckpointError, match="No space left.*, is (nothing|the state)"):
            vaekit.fit(small(), data, out=tmp_path, verbose=False)
    assert not list(tmp_path.glob("*/.*.tmp"))
    assert same(vaekit.fit(small(), data, out=tmp_path, verbose=False), whole)


def test_missing_and_unwritable_folders(data, tmp_path):
    run = vaekit.fit(small(epochs_phase1=0, epochs_phase2=1), data, out=tmp_path / "a" / "b")
    assert run.finished
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        vaekit.fit(small(), data, out=tmp_path / "file" / "runs")


def test_the_second_process_on_a_folder_is_kept_out(unfinished, data, capsys):
    (unfinished.parent / "run").mkdir()
    with folder.open_run(unfinished.parent, small(features="none"), data.hash, "auto", print) as path:
        assert path == unfinished
        with folder.open_run(path.parent, small(features="none"), data.hash, "auto", print) as other:
            assert other != unfinished
    assert "another process" in capsys.readouterr().out


# ---- hostile ---------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (os.mkdir, (os.environ["EVIL"],))


def test_code_in_a_run_is_named_and_never_run(unfinished, data, tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    state = torch.load(unfinished / "last.pt", weights_only=True)
    for name in ("last.pt", "previous.last.pt", "best.pt"):
        torch.save(state | {"history": Evil()}, unfinished / name)
    go_on = partial(vaekit.fit, small(), data, out=unfinished.parent, verbose=False)
    for call in (go_on, partial(vaekit.load_run, unfinished)):
        with pytest.raises(CheckpointError, match=r"(last|best).pt cannot be used"):
            call()
    assert not (tmp_path / "evil").exists()


def test_a_zip_bomb_is_refused_unread(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(10**7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "testzip", lambda self: pytest.fail("was inflated"))
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load_checkpoint(tmp_path / "bomb.pt")


NOT_RUNS = ["[]", "{}", "3", '{"data": 5}', '{"data": {"hash": []}}', "nul", "", "[" * 10**5]


@pytest.mark.parametrize("text", NOT_RUNS)
@pytest.mark.parametrize("name", ["run.json", "config.json"])
def test_json_of_the_wrong_shape_is_passed_over(unfinished, data, name, text):
    (unfinished / name).write_text(text)
    with folder.open_run(unfinished.parent, small(features="none"), data.hash, "auto", print) as path:
        assert path != unfinished
    if name == "config.json":
        with pytest.raises(CheckpointError, match="no readable run|another config"):
            vaekit.load_run(unfinished)


def test_no_name_leaves_the_folder_of_runs(data, tmp_path):
    for name in ("../../evil", "/evil", "a/b", "*", ""):
        with pytest.raises(ValueError, match="preset="):
            small().replace(preset=name)


def test_nothing_in_the_package_unpickles():
    import ast
    from pathlib import Path

    for file in Path(vaekit.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.names[0].name != "UnpicklingError":
                names += [node.module]
            assert not {"pickle", "dill", "joblib", "shelve"} & {n.split(".")[0] for n in names}
            if isinstance(node, ast.Call):
                called, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
                assert called not in ("eval", "exec"), file
                assert "allow_pickle" not in given, file
                if called == "torch.load":
                    assert ast.unparse(given["weights_only"]) == "True", file


# ---- numbers ---------------------------------------------------------------------------------


def planted(value: float, steps, inside: bool = False):
    """vae_loss with its total times `value`, or (`inside`) plus it, which has no gradient."""
    calls, original = iter(range(1, 10**9)), losses.vae_loss

    def loss(x_hat, *args):
        result = original(x_hat, *args)
        if x_hat.requires_grad and next(calls) in steps:
            result.total = result.total + value if inside else result.total * value
            result.terms["loss"] = result.total.detach()
        return result

    return loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "change",
    [{}, {"norm": "batch"}, {"precision": "bf16"}, {"precision": "fp16"}, {"grad_clip": 0.0}],
    ids=str,
)
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(data, value, change, monkeypatch):
    trainer = train.Trainer(small(**change), data, None)
    x = data.train.images[:8] / 255
    trainer.train_step(x, 2.0)
    for inside in (False, True):
        before = {k: v.clone() for k, v in trainer.raw.state_dict().items()}
        moments = [v.clone() for s in trainer.optimizer.state.values() for v in s.values()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(losses, "vae_loss", planted(value, {1}, inside))
            trainer.train_step(x, 2.0)
        if change.get("norm") == "batch" and not inside:
            trainer.train_step(x * value, 2.0)  # in the image: it reaches the running statistics
        assert all(torch.equal(before[k], v) for k, v in trainer.raw.state_dict().items())
        after = [v for s in trainer.optimizer.state.values() for v in s.values()]
        assert all(map(torch.equal, moments, after))
    trainer.train_step(x, 2.0)
    assert not all(torch.equal(before[k], v) for k, v in trainer.raw.state_dict().items())


def test_skipped_steps_are_in_the_history_and_the_means_are_of_the_others(data, monkeypatch):
    monkeypatch.setattr(losses, "vae_loss", planted(math.nan, {2, 3}))
    run = vaekit.fit(small(), data)
    assert [row.get("train_skipped") for row in run.history] == [2, None, None, None, None, None]
    assert math.isfinite(run.history[0]["train_loss"]) and weights(run).isfinite().all()
    header, first, second = (run.path / "history.csv").read_text().splitlines()[:3]
    column = header.split(",").index("train_skipped")
    assert (first.split(",")[column], second.split(",")[column]) == ("2", "")


def test_weights_that_went_bad_come_back_at_half_the_rate(data, monkeypatch, trainers, capsys):
    monkeypatch.setattr(writer, "SAVE_SECONDS", 0)
    planted = []

    def plant(run):
        if run.history[-1]["epoch"] == 3 and not planted:
            planted.append(3)
            with torch.no_grad():
                trainers[0].raw.encoder.mu.weight[0] = math.inf

    run = vaekit.fit(small(lr_schedule_phase2="constant"), data, on_epoch_end=plant)
    said = capsys.readouterr().out
    assert "epoch 4" in said and "back to epoch 3, with 1/2 of the learning rate" in said
    assert run.finished and [r["epoch"] for r in run.history] == [1, 2, 3, 4, 5, 6]
    assert [r["lr"] for r in run.history][2:] == [1e-3, *[5e-4] * 3]
    assert weights(run).isfinite().all()
    for file in run.path.glob("*.pt"):
        checkpoint.check_finite(torch.load(file, weights_only=True))


def test_a_long_row_of_bad_steps_goes_back_before_the_epoch_is_over(data, monkeypatch):
    monkeypatch.setattr(guards, "MAX_SKIPPED", 2)
    monkeypatch.setattr(guards, "LOOK_EVERY", 1)
    monkeypatch.setattr(losses, "vae_loss", planted(math.nan, {7, 8}))
    run = vaekit.fit(small(), data)
    assert run.finished and not any("train_skipped" in row for row in run.history)
    # a row is counted over the end of an epoch too
    monkeypatch.setattr(losses, "vae_loss", vae_loss)
    monkeypatch.setattr(losses, "vae_loss", planted(math.nan, {5, 6}))
    over = vaekit.fit(small(seed=1), data)
    for path in (run.path, over.path):
        assert torch.load(path / "last.pt", weights_only=True)["setbacks"] == 1


def test_what_does_not_help_stops_with_a_diagnosis(data, monkeypatch, capsys):
    monkeypatch.setattr(losses, "vae_loss", planted(math.nan, range(6, 10**6)))
    with pytest.raises(FloatingPointError, match="epoch [12]: .*1/8 of the learning.*lr_phase1"):
        vaekit.fit(small(), data)
    assert capsys.readouterr().out.count("back to epoch") == guards.MAX_SETBACKS
    (path,) = vaekit.runs_dir().iterdir()
    assert torch.load(path / "last.pt", weights_only=True)["epoch"] == 0


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scaler_that_went_bad(data, monkeypatch, trainers, scale):
    monkeypatch.setattr(writer, "SAVE_SECONDS", 0)
    monkeypatch.setattr(guards, "MAX_SKIPPED", 4)
    planted = []

    def plant(run):
        if run.history[-1]["epoch"] == 2 and not planted:
            planted.append(trainers[0].scaler._scale.fill_(scale))

    run = vaekit.fit(small(precision="fp16"), data, on_epoch_end=plant)
    assert planted and run.finished and weights(run).isfinite().all()
    state = torch.load(run.path / "last.pt", weights_only=True)
    assert math.isfinite(state["scaler"]["scale"]) and state["setbacks"] == 1


@pytest.mark.parametrize("part", ["model", "ema", "optimizer", "scaler"])
def test_no_checkpoint_takes_what_is_not_finite(tmp_path, part):
    checkpoint.save_checkpoint(tmp_path / "last.pt", {"epoch": 1})
    bad = {"w": torch.tensor([0, -math.inf])}
    bad = {"scale": math.inf} if part == "scaler" else {"state": {0: bad}}
    with pytest.raises(FloatingPointError, match=f"{part}.*is not finite"):
        checkpoint.save_checkpoint(tmp_path / "last.pt", {"epoch": 2, part: bad})
    assert checkpoint.newest_valid(tmp_path)["epoch"] == 1


@pytest.mark.parametrize("clamp", [15.0, 0.0])
@pytest.mark.parametrize("value", [1e4, -1e4])
def test_logvar_far_out(data, clamp, value):
    trainer = train.Trainer(small(logvar_clamp=clamp), data, None)
    with torch.no_grad():
        trainer.raw.encoder.logvar.bias.fill_(value)
    for _ in range(3):
        terms = trainer.train_step(data.train.images[:8] / 255, 3.0)
    checkpoint.check_finite(resume.state_of(trainer))
    assert terms["grad_norm"].isfinite() or clamp == 0.0 and value > 0  # exp(1e4)


SETS = {
    "black": torch.zeros(9, 1, 16, 16), "white": torch.full((9, 1, 16, 16), 255),
    "constant": torch.full((9, 1, 16, 16), 77), "one image": blobs(1, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("change", [{}, {"norm": "batch", "calibrated": True}], ids=str)
def test_poor_data_is_trained_all_the_same(name, change):
    images = SETS[name].byte()
    cfg = small(epochs_phase1=1, epochs_phase2=1, batch_size=4, **change)
    run = vaekit.fit(cfg, Data.from_tensors(images, images[:1], images[:1], classes=["one"]))
    assert run.finished and weights(run).isfinite().all()
    assert all(math.isfinite(v) for row in run.history for v in row.values())


def test_one_pixel_and_one_image_under_batchnorm_is_refused(data):
    cfg = small(norm="batch", widths=[8] * 4, batch_size=1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        vaekit.fit(cfg, data)
    assert vaekit.fit(small(norm="batch", batch_size=1, epochs_phase2=0), data).finished
    nine = Data.from_tensors(blobs(9, 1), blobs(5, 2), blobs(5, 3))  # 9 = 4 + 4 + 1
    assert vaekit.fit(small(norm="batch", widths=[8] * 4, batch_size=4), nine).finished


def test_sizes_and_channels_that_do_not_fit_are_refused_and_odd_files_trained(tmp_path):
    import numpy as np
    from PIL import Image

    with pytest.raises(ValueError, match=r"\(N, C, S, S\)"):
        Data.from_tensors(*[torch.zeros(4, 1, 33, 47, dtype=torch.uint8)] * 3)
    with pytest.raises(ValueError, match="in_channels"):
        vaekit.fit(small(in_channels=3), shapes())
    noise = np.random.default_rng(0)
    for i in range(40):
        folder = tmp_path / "films" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 255, (33, 47, 3)[: 2 + i % 2], dtype=np.uint8)  # grey, RGB
        Image.fromarray(pixels).save(folder / f"{i}.png")
    for channels in (1, 3):
        cfg = small(dataset="images", data_path=str(tmp_path / "films"), image_size=33,
                    in_channels=channels, patient_key="none", batch_size=4, epochs_phase1=1,
                    epochs_phase2=1, beta_schedule="constant")  # fmt: skip
        assert vaekit.fit(cfg, vaekit.load_data(cfg, verbose=False), verbose=False).finished


# ---- memory ----------------------------------------------------------------------------------


def crowded(most: int):
    """VAE.forward on a device with room for `most` images; it is noticed late."""
    forward = model_module.VAE.forward

    def limited(self, x, *args, **kwargs):
        found = forward(self, x, *args, **kwargs)
        if len(x) > most and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return found

    return limited


def test_out_of_memory_keeps_the_batch_and_says_so_once(data, tmp_path, monkeypatch):
    cfg = small(epochs_phase2=0, batch_size=20)  # no noise is drawn: the parts add up
    whole = vaekit.fit(cfg, data, out=tmp_path / "a", verbose=False)
    monkeypatch.setattr(model_module.VAE, "forward", crowded(10))
    with pytest.warns(UserWarning, match="batches of 20 go through in 2 parts.*BatchNorm") as said:
        parts = vaekit.fit(cfg, data, out=tmp_path / "b", verbose=False)
    assert len([w for w in said if "memory" in str(w.message)]) == 1
    torch.testing.assert_close(weights(parts), weights(whole), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(parts.history[-1]["train_loss"], whole.history[-1]["train_loss"])
    state = torch.load(parts.path / "last.pt", weights_only=True)
    assert state["parts"] == 2 and state["step"] == 4
    trainer = train.Trainer(parts.cfg, data, None)
    resume.go_on_from(trainer, parts.path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a resumed run knows
        trainer.train_step(data.train.images[:20] / 255, 0.0)


def test_out_of_memory_three_times_at_most(data, monkeypatch):
    for most, batch, parts in ((3, 20, 8), (1, 40, 8), (1, 4, 2)):
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as said:
            patch.setattr(model_module.VAE, "forward", crowded(most))
            warnings.simplefilter("always")
            trainer, x = train.Trainer(small(), data, None), data.train.images[:batch] / 255
            if most == 3:
                trainer.train_step(x, 0.0)
            else:
                with pytest.raises(torch.OutOfMemoryError):
                    trainer.train_step(x, 0.0)
        assert trainer.parts == parts == 2 ** len(said)


def test_what_failed_for_memory_leaves_no_trace_in_the_statistics(data, monkeypatch):
    trainers = [train.Trainer(small(norm="batch"), data, None) for _ in range(2)]
    trainers[1].parts, x = 2, data.train.images[:20] / 255
    trainers[1].train_step(x, 0.0)
    monkeypatch.setattr(model_module.VAE, "forward", crowded(10))
    with pytest.warns(UserWarning, match="memory"):
        trainers[0].train_step(x, 0.0)
    a, b = (trainer.raw.state_dict() for trainer in trainers)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_other_errors_are_not_taken_for_memory(data, monkeypatch):
    def broken(self, *args, **kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(model_module.VAE, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        vaekit.fit(small(), data)


def test_what_the_failed_attempt_held_is_let_go_first(data, monkeypatch):
    import weakref

    held, forward = [], model_module.VAE.forward

    def greedy(self, x, *args, **kwargs):
        if len(x) == 8 and torch.is_grad_enabled():
            activations = forward(self, x, *args, **kwargs)[0]
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        assert held[0]() is None
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(model_module.VAE, "forward", greedy)
    with pytest.warns(UserWarning, match="memory"):
        train.Trainer(small(), data, None).train_step(data.train.images[:8] / 255, 0.0)
    assert held


# ---- on record -------------------------------------------------------------------------------


def test_a_run_shows_what_made_it(whole, data):
    shown = repr(vaekit.load_run(whole.path))
    for text in ("epochs: 6 of 6", f"torch: {torch.__version__}", "command: ", data.hash,
                 "'latent_channels': 4", "'seed'" if whole.cfg.seed else "config: "):  # fmt: skip
        assert text in shown
    assert json.loads((whole.path / "run.json").read_text())["vaekit"] == vaekit.__version__
