"""A training killed at random moments with SIGKILL, and stopped with SIGTERM and Ctrl-C: what is
resumed must equal, to the last bit, what was never interrupted."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import torch
from tiny import equal, rows, shapes, small

import vaekit
from vaekit import train
from vaekit.keep import folder, resume, writer
from vaekit.keep.guards import GuardedTrainer

WHERE = {  # the moments: where the n-th call dies, and how many calls there are
    "in a step": (train.Trainer, "gradients", 45), "in a checkpoint": (os, "fsync", 12),
    "between the renames": (os, "replace", 12),
    "in the sample grid": (writer.RunWriter, "draw_samples", 9),
    "between the phases": (train.Trainer, "begin_phase2", 1),
    "in validation": (train.Trainer, "validate", 9), "at any time": (None, "", 0),
}  # fmt: skip
CFG = dict(epochs_phase1=3, epochs_phase2=6, lr_schedule_phase2="plateau", norm="batch")


def child(work, *args) -> int:
    """What became of `work(*args)` in a process of its own: the status that os.wait gives."""
    if pid := os.fork():
        return os.waitpid(pid, 0)[1]
    with contextlib.suppress(BaseException):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work(*args)
        os._exit(0)
    os._exit(3)


def train_in(out: Path, save_seconds: float) -> None:
    writer.SAVE_SECONDS = save_seconds
    run = vaekit.fit(small(**CFG), shapes(), out=out, verbose=False)
    torch.save(torch.get_rng_state(), run.path / "rng.pt")


def killed_in(out: Path, save_seconds: float, where: str, rng: random.Random) -> None:
    place, name, calls = WHERE[where]
    if place is None:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.05, 2.0))
    else:
        original, left = getattr(place, name), iter(range(rng.randint(1, calls), -1, -1))

        def last(*args, **kwargs):
            if next(left) == 1:
                if name == "fsync":  # half of the file is there
                    os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(place, name, last)
    train_in(out, save_seconds)


def left_behind(out: Path) -> dict:
    (path,) = [p for p in out.iterdir() if (p / "last.pt").exists()]
    state = torch.load(path / "last.pt", weights_only=True)
    table = (path / "history.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[0]) for line in table] == list(range(1, 10)), table
    assert folder.read_info(path)["finished"]
    return {"state": {k: state[k] for k in ("model", "ema", "optimizer", "step", "plateau")},
            "best": torch.load(path / "best.pt", weights_only=True), "rows": rows(state["history"]),
            "rng": torch.load(path / "rng.pt", weights_only=True)}  # fmt: skip


def kill(trials: int, seed: int = 0) -> dict:
    """`trials` trainings, each killed once to three times and resumed to the end."""
    count, rng = Counter(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        assert child(train_in, Path(folder) / "whole", 30) == 0
        whole = left_behind(Path(folder) / "whole")
        for trial in range(trials):
            out, save_seconds = Path(folder) / str(trial), rng.choice([0, 0, 30])
            for _ in range(rng.randint(1, 3)):
                where, again = rng.choice(list(WHERE)), random.Random(rng.random())
                if child(killed_in, out, save_seconds, where, again) == 9:
                    count[where] += 1
            assert child(train_in, out, save_seconds) == 0
            assert equal(left_behind(out), whole), f"trial {trial} differs, last killed {where}"
    return {"seed": seed, "trainings": trials, "SIGKILLs": sum(count.values()), **count,
            "differ": 0}  # fmt: skip


def stop_command(trials: int = 3, seed: int = 0) -> dict:
    """`python -m vaekit` and SIGTERM, after a while; then the same command again."""
    rng, steps = random.Random(seed), []
    command = [sys.executable, "-m", "vaekit", "chest_xray", "widths=[8,16]", "attention=[]",
               "latent_channels=4", "precision=fp32", "perceptual_weight=0", "epochs_phase2=400",
               "beta_warmup=2"]  # fmt: skip
    for _ in range(trials):
        with tempfile.TemporaryDirectory() as out:
            process = subprocess.Popen([*command, f"out={out}"], stdout=subprocess.PIPE, text=True)
            while not list(Path(out).glob("*/last.pt")):
                time.sleep(0.05)
            time.sleep(rng.uniform(0.1, 3))
            process.terminate()
            said = process.communicate()[0]
            assert process.returncode == -signal.SIGTERM and "the same call goes on" in said, said
            (file,) = Path(out).glob("*/last.pt")
            state = torch.load(file, weights_only=True)
            steps.append(state["step"])
            assert (file.parent / "history.csv").exists() and folder.read_info(file.parent)
    return {"SIGTERMs": trials, "stopped after steps": steps}


def stop_notebook() -> dict:
    """Ctrl-C (the stop button) in a real kernel: saved, said, raised; the next cell goes on."""
    from jupyter_client.manager import start_new_kernel

    said: list = []

    def run(code: str) -> dict:
        hook = lambda message: said.append(message["content"].get("text", ""))  # noqa: E731
        return client.execute_interactive(code, output_hook=hook, timeout=120)["content"]

    def interrupt() -> None:
        while not list(Path(out).glob("*/history.csv")):
            time.sleep(0.1)
        time.sleep(1)
        manager.interrupt_kernel()

    with tempfile.TemporaryDirectory() as out:
        manager, client = start_new_kernel(env=os.environ | {"VAEKIT_PROGRESS": "lines"})
        call = f"vaekit.fit(small(epochs_phase2=500), shapes(), {out!r}, max_minutes="
        try:
            run(f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})")
            run("from tiny import *")
            threading.Thread(target=interrupt).start()
            reply = run(f"run = {call}None)")
            (file,) = Path(out).glob("*/last.pt")
            saved = torch.load(file, weights_only=True)
            run(f"run = {call}1e-9); print('epochs', len(run.history))")
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    text = "".join(said)
    assert reply["ename"] == "KeyboardInterrupt" and "SIGINT after epoch" in text, text
    assert f"epochs {saved['epoch'] + 1}" in text, text
    return {"Ctrl-C in a kernel": 1, "saved after steps": saved["step"]}


def spoil(trials: int, seed: int = 0) -> dict:
    """A real last.pt with one byte changed or cut anywhere: the same state, or the one before."""
    rng, count = random.Random(seed), Counter()
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(KeyboardInterrupt):
            writer.SAVE_SECONDS = 0

            def stop(run):
                if len(run.history) == 3:
                    raise KeyboardInterrupt

            vaekit.fit(small(**CFG), shapes(), out=folder, verbose=False, on_epoch_end=stop)
        (path,) = Path(folder).iterdir()
        good = {name: (path / name).read_bytes() for name in ("last.pt", "previous.last.pt")}
        for trial in range(trials):
            for name, content in good.items():
                (path / name).write_bytes(content)
            content, at = bytearray(good["last.pt"]), rng.randrange(len(good["last.pt"]))
            if trial % 2:
                content[at] ^= rng.randint(1, 255)
            (path / "last.pt").write_bytes(content if trial % 2 else content[:at])
            trainer = GuardedTrainer(small(**CFG, features="none"), shapes())
            with contextlib.redirect_stdout(None):
                assert resume.go_on_from(trainer, path) and trainer.epoch in (2, 3)
            count["the one before" if trainer.epoch == 2 else "harmless"] += 1
    return {"seed": seed, "spoiled": trials, **count}
