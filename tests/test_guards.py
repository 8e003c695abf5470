"""A run that is stopped, meets NaN, or runs out of memory loses nothing."""

import ast
import math
import os
import signal
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from films import film, write
from tiny import blobs, same, small, weights

import vaekit
from vaekit import losses, train
from vaekit import model as model_module
from vaekit.data import Data
from vaekit.keep import checkpoint, guards, writer
from vaekit.keep.checkpoint import CheckpointError
from vaekit.keep.guards import GuardedTrainer


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that `fit` makes."""
    made = []
    build = GuardedTrainer.__init__

    def remember(self, *args):
        made.append(self)
        build(self, *args)

    monkeypatch.setattr(GuardedTrainer, "__init__", remember)
    return made


def before_step(n: int, do):
    """GuardedTrainer.update with `do` before its n-th call."""
    update = GuardedTrainer.update
    calls = iter(range(1, 10**9))

    def wrapped(self, terms):
        if next(calls) == n:
            do()
        update(self, terms)

    return wrapped


# ---- asked to stop ---------------------------------------------------------------------------

SIGNALS = [(signal.SIGTERM, 7), (signal.SIGINT, 12), (signal.SIGTERM, 15)]


@pytest.mark.parametrize(("number", "step"), SIGNALS)
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    data, whole, tmp_path, number, step, capsys
):
    heard = []
    before = signal.signal(number, lambda *_: heard.append(number))  # whoever listened before
    try:
        with pytest.MonkeyPatch.context() as patch:
            if step == 12:  # as if epochs were long: nothing since the start has been saved
                patch.setattr(guards, "SHORT_EPOCH", 0)
                patch.setattr(writer.RunWriter, "write_epoch", lambda *_: None)
            ask = before_step(step, lambda: os.kill(os.getpid(), number))
            patch.setattr(GuardedTrainer, "update", ask)
            cut = vaekit.fit(small(), data, out=tmp_path)
        assert heard == [number]  # passed on, after all was saved
    finally:
        signal.signal(number, before)
    assert len(cut.history) == {7: 2, 12: 0, 15: 3}[step]  # of 5 steps
    assert not cut.finished
    said = capsys.readouterr().out
    assert number.name in said and "saved in" in said and "same call goes on" in said
    rest = vaekit.fit(small(), data, out=tmp_path)
    assert rest.path == cut.path and same(rest, whole)


def test_ctrl_c_is_still_an_interrupt_and_the_second_does_not_wait(
    data, tmp_path, listens_to_ctrl_c
):
    def once():
        os.kill(os.getpid(), signal.SIGINT)

    def twice():
        once()
        once()
        pytest.fail("the second Ctrl-C waited")

    for do in (once, twice):
        out = tmp_path / do.__name__
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(GuardedTrainer, "update", before_step(1, do))
            vaekit.fit(small(), data, out=out, verbose=False)
        state = checkpoint.newest_valid(next(out.iterdir()))
        assert state["epoch"] == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ---- hostile ---------------------------------------------------------------------------------


def test_a_zip_bomb_is_refused_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(10**7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "testzip", lambda self: pytest.fail("was inflated"))
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load_checkpoint(tmp_path / "bomb.pt")


def test_nothing_in_the_package_unpickles():
    for file in Path(vaekit.__file__).parent.rglob("*.py"):
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
    trainer = GuardedTrainer(small(**change), data)
    x = data.train.images[:8] / 255
    trainer.step(x, 2.0)
    for inside in (False, True):
        before = {k: v.clone() for k, v in trainer.raw.state_dict().items()}
        moments = [v.clone() for s in trainer.optimizer.state.values() for v in s.values()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "vae_loss", planted(value, {1}, inside))
            trainer.step(x, 2.0)
        if change.get("norm") == "batch" and not inside:
            # in the image: it reaches the running statistics
            monkeypatch.setattr(model_module, "model_input", lambda _, x: x)
            trainer.step(x * value, 2.0)
        assert all(torch.equal(before[k], v) for k, v in trainer.raw.state_dict().items())
        after = [v for s in trainer.optimizer.state.values() for v in s.values()]
        assert all(map(torch.equal, moments, after))
    trainer.step(x, 2.0)
    assert not all(torch.equal(before[k], v) for k, v in trainer.raw.state_dict().items())


def test_skipped_steps_are_in_the_history_and_the_means_are_of_the_others(data, monkeypatch):
    monkeypatch.setattr(train, "vae_loss", planted(math.nan, {2, 3}))
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
    monkeypatch.setattr(train, "vae_loss", planted(math.nan, {7, 8}))
    run = vaekit.fit(small(), data)
    assert run.finished and not any("train_skipped" in row for row in run.history)
    # a row is counted over the end of an epoch too
    monkeypatch.setattr(train, "vae_loss", losses.vae_loss)
    monkeypatch.setattr(train, "vae_loss", planted(math.nan, {5, 6}))
    over = vaekit.fit(small(seed=1), data)
    for path in (run.path, over.path):
        assert torch.load(path / "last.pt", weights_only=True)["setbacks"] == 1


def test_what_does_not_help_stops_with_a_diagnosis(data, monkeypatch, capsys):
    monkeypatch.setattr(train, "vae_loss", planted(math.nan, range(6, 10**6)))
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
    trainer = GuardedTrainer(small(logvar_clamp=clamp), data)
    with torch.no_grad():
        trainer.raw.encoder.logvar.bias.fill_(value)
    for _ in range(3):
        terms = trainer.step(data.train.images[:8] / 255, 3.0)
    checkpoint.check_finite(trainer.state_dict())
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


def test_odd_files_are_trained(tmp_path):
    for i in range(40):
        grey = film(i, 33, 47)
        image = np.dstack([grey, grey // 2, grey // 3]) if i % 2 else grey
        write(tmp_path / "films" / "ab"[i % 2] / f"{i}.png", image)
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
    trainer = GuardedTrainer(parts.cfg, data)
    trainer.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a resumed run knows
        trainer.step(data.train.images[:20] / 255, 0.0)


def test_out_of_memory_in_validation_and_between_the_phases(data, tmp_path, monkeypatch):
    cfg = small(epochs_phase2=1, beta_warmup=0, batch_size=16)
    whole = vaekit.fit(cfg, data, out=tmp_path / "a", verbose=False)
    encode = model_module.VAE.encode

    def limited(self, x):
        if len(x) > 4 and not torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return encode(self, x)

    monkeypatch.setattr(model_module.VAE, "encode", limited)
    with pytest.warns(UserWarning, match="in 4 parts"):
        parts = vaekit.fit(cfg, data, out=tmp_path / "b", verbose=False)
    assert parts.finished and parts.history[0]["val_loss"] == pytest.approx(
        whole.history[0]["val_loss"], rel=1e-4
    )
    with pytest.warns(UserWarning, match="in 4 parts"):
        GuardedTrainer(cfg, data).begin_phase2()


def test_out_of_memory_three_times_at_most(data, monkeypatch):
    monkeypatch.setattr(guards, "clear_device_cache", lambda **_: None)  # half a second each time
    for most, batch, parts in ((3, 20, 8), (1, 40, 8), (1, 4, 2)):
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as said:
            patch.setattr(model_module.VAE, "forward", crowded(most))
            warnings.simplefilter("always")
            trainer = GuardedTrainer(small(batch_size=batch), data)
            x = data.train.images[:batch] / 255
            if most == 3:
                trainer.step(x, 0.0)
            else:
                with pytest.raises(torch.OutOfMemoryError):
                    trainer.step(x, 0.0)
        assert trainer.parts == parts == 2 ** len(said)


def test_what_failed_for_memory_leaves_no_trace_in_the_statistics(data, monkeypatch):
    cfg = small(norm="batch", batch_size=20)
    trainers = [GuardedTrainer(cfg, data) for _ in range(2)]
    trainers[1].parts, x = 2, data.train.images[:20] / 255
    trainers[1].step(x, 0.0)
    monkeypatch.setattr(model_module.VAE, "forward", crowded(10))
    with pytest.warns(UserWarning, match="memory"):
        trainers[0].step(x, 0.0)
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
        GuardedTrainer(small(), data).step(data.train.images[:8] / 255, 0.0)
    assert held
