"""One run in several processes: when they start, the same result as one process, how they end."""

import dataclasses
import json
import os
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import psutil
import pytest
import torch
from tiny import blobs, shapes, small

import vaekit
from vaekit.keep import guards, launch, worker


@pytest.fixture
def cfg(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, x in enumerate(blobs(40, 1)):
        cv2.imwrite(str(folder / f"{i}.png"), x[0].numpy())
    own = {"dataset": "images", "data_path": str(folder), "patient_key": "none", "clahe_clip": 0.0}
    return small(**own, batch_size=8, epochs_phase1=1, epochs_phase2=1, beta_warmup=0)


@pytest.fixture
def data(cfg):
    return vaekit.load_data(cfg, verbose=False)


@pytest.fixture
def two_gpus(monkeypatch):
    """For `launch` alone; that it starts processes is an error."""
    monkeypatch.setattr(launch, "count_gpus", lambda: 2)
    monkeypatch.setattr(launch, "train_in_processes", lambda *_: pytest.fail("were started"))


def choose(cfg, data, wanted=None, hook=None) -> tuple[int, str]:
    said = []
    return launch.choose_processes(wanted, cfg, data, hook, said.append), "; ".join(said)


# ---- how many --------------------------------------------------------------------------------


def test_every_gpu_has_a_process_and_it_is_said(cfg, data, two_gpus, monkeypatch):
    number, said = choose(cfg, data)
    assert number == 2 and said.startswith("2 GPUs train together, with 4 images of each batch")
    assert choose(cfg, data, wanted=1) == (1, "")
    assert (
        "a batch of 9 does not divide by 2: it has 8" in choose(cfg.replace(batch_size=9), data)[1]
    )
    assert choose(cfg.replace(batch_size=1), data) == (1, "")
    for wanted in (0, 3):
        with pytest.raises(ValueError, match=f"processes={wanted} is not from 1 to .*, here 2"):
            choose(cfg, data, wanted)
    monkeypatch.setenv("LOCAL_RANK", "0")  # torchrun has started this one
    assert choose(cfg, data) == (1, "")


def test_on_a_cpu_one_process_unless_more_are_asked_for(cfg, data):
    assert choose(cfg, data) == (1, "")
    assert choose(cfg, data, wanted=2)[1].startswith("2 processes train together")


def test_what_cannot_cross_trains_in_one_process_and_says_why(cfg, data, two_gpus, monkeypatch):
    fewer = dataclasses.replace(data.train, images=data.train.images[:-1])
    turned = dataclasses.replace(data.train, images=data.train.images.flip(0))
    for other in (
        shapes(),
        dataclasses.replace(data, train=fewer),
        dataclasses.replace(data, train=turned),
    ):
        assert choose(cfg, other)[0] == 1
        assert "these images are in memory only" in choose(cfg, other)[1]
    number, said = choose(cfg, data, hook=print)
    assert number == 1 and said == "one process trains, not 2: on_epoch_end is called in this one"
    Path(data.file).unlink()
    assert choose(cfg, data)[0] == 1
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux only" in choose(cfg, data)[1]


def test_a_finished_run_is_loaded_and_starts_nothing(cfg, data, two_gpus, capsys):
    seen = []
    run = vaekit.fit(cfg, data, on_epoch_end=seen.append)
    assert len(seen) == 2 and "one process trains, not 2" in capsys.readouterr().out
    assert (
        vaekit.fit(cfg, data).path == run.path and "finished run found" in capsys.readouterr().out
    )


# ---- two of them, really ---------------------------------------------------------------------


def test_two_processes_equal_one(cfg, data, tmp_path, monkeypatch, capsys):
    """Phase 1 draws no noise. The batch of 9 becomes one of 8, and a port in use is no obstacle."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        two = vaekit.fit(cfg.replace(batch_size=9), data, out=tmp_path / "two", processes=2)
    said = capsys.readouterr().out
    assert "epoch   2/2" in said and "it has 8 images here" in said
    assert two.finished and two.info["processes"] == 2 and len(two.history) == 2
    assert two.info["command"].startswith(Path(sys.argv[0]).name)
    assert not two.model.training and two.path.parent == tmp_path / "two"
    one = vaekit.fit(cfg, data, out=tmp_path / "one", processes=1)
    for name in ("train_loss", "val_loss", "val_l1", "train_grad_norm"):
        assert two.history[0][name] == pytest.approx(one.history[0][name], rel=1e-4), name


def test_killed_it_says_so_and_interrupted_it_is_saved(
    cfg, data, tmp_path, monkeypatch, listens_to_ctrl_c
):
    """At the first line of an epoch; the second call goes on with the run of the first."""
    cfg = cfg.replace(epochs_phase2=2000)

    def kill_one():
        below = psutil.Process().children(recursive=True)
        parents = {process.ppid() for process in below}
        next(process for process in below if process.pid not in parents).kill()  # not torchrun

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    def fit(at_first_epoch):
        def show(line, end):
            if line.startswith("epoch"):
                at_first_epoch()

        monkeypatch.setattr(launch, "print", show, raising=False)
        vaekit.fit(cfg, data, out=tmp_path / "runs", processes=2)

    with pytest.raises(launch.ProcessFailed, match="one of 2 .*SIGKILL.*same call goes on"):
        fit(kill_one)
    with pytest.raises(KeyboardInterrupt):
        fit(interrupt)
    (path,) = (tmp_path / "runs").iterdir()
    run = vaekit.load_run(path)
    assert not run.finished and 1 <= len(run.history) < cfg.num_epochs


# ---- what ends them --------------------------------------------------------------------------

PORT = "Traceback ...\nRuntimeError: The server socket has failed to listen: EADDRINUSE\n"


@pytest.mark.parametrize(
    ("said", "errors", "found"),
    [
        (PORT, {}, "RuntimeError: The server socket has failed to listen: EADDRINUSE"),
        ("traceback : Signal 11 (SIGSEGV) received by PID 7\n", {}, "SIGSEGV"),
        ("Signal 9 (SIGKILL) received\n", {"error-0": "closed by peer"}, "memory runs out"),
        (PORT, {"error-1": "NotFinite: it is", "error-0": "closed by peer"}, "NotFinite: it is"),
        ("", {}, "it said nothing"),
    ],
)  # fmt: skip
def test_the_first_cause_is_named(tmp_path, said, errors, found):
    (tmp_path / "stderr").write_text(said)
    for second, (name, text) in enumerate(errors.items()):
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (second, second))
    text = launch.failure(tmp_path, 2)
    assert found in text and "closed by peer" not in text
    assert "The same call goes on" in text and "processes=1" in text


def test_a_process_out_of_memory_says_what_would_help(
    cfg, data, tmp_path, monkeypatch, listens_to_ctrl_c
):
    def fit(cfg, data, max_minutes, out):
        assert (len(data.train), max_minutes, sys.argv) == (24, None, ["notebook"])
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    job = {"data": (data.file, "given", ""), "argv": ["notebook"], "deadline": None, "out": "runs"}
    cfg.save(tmp_path / "config.json")
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "stderr").write_text("")
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(worker, "fit", fit)
    monkeypatch.setattr(worker, "stop_with_the_parent", lambda: None)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(torch.OutOfMemoryError):
        worker.main(tmp_path)
    text = launch.failure(tmp_path, 2)
    assert "OutOfMemoryError: CUDA out of memory" in text and "a smaller batch_size" in text


def test_several_processes_end_before_the_same_step(data, cfg):
    trainer = guards.GuardedTrainer(cfg, data)
    asked = []
    reduce = lambda flags: asked.append(float(flags)) or flags  # noqa: E731
    trainer.accelerator = SimpleNamespace(num_processes=2, reduce=reduce)
    trainer.stop.signal = signal.SIGINT
    steps = (0, 1, guards.LOOK_EVERY)
    assert [trainer.interrupted(step) for step in steps] == [True, False, True]
    trainer.history.append({"seconds": 1})  # short epochs are finished
    assert not trainer.interrupted(0) and asked == [1, 1, 0]
