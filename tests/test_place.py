"""Where a notebook finds vaekit, and what it says about the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import stamp
import torch
from IPython.core.inputtransformer2 import TransformerManager

from vaekit.place import device, progress, setup

ROOT = Path(__file__).parent.parent
RUN = "import sys; sys.path = [p for p in sys.path if p != '']; exec(sys.stdin.read())"
HIDE = (
    "import sys; sys.meta_path = [f for f in sys.meta_path"
    " if not getattr(f, '__module__', getattr(f, '__name__', '')).startswith('__editable__')];"
    f"sys.path = [p for p in sys.path if p.rstrip('/') != {str(ROOT)!r}]\n"
)
WAYS = ("ttach the repository", "make bundle")


def set_up(cwd: Path, kaggle: Path, *, installed=False, repo="") -> subprocess.CompletedProcess:
    """Run the set-up cell in a fresh Python without the editable install of this checkout; what
    IPython would do for a line with % is printed."""
    code = TransformerManager().transform_cell(stamp.setup_cell(repo))
    code = code.replace('"/kaggle/', f'"{kaggle.as_posix()}/')
    code = code.replace("get_ipython().run_line_magic", "print")
    if not installed:
        code = HIDE + code.replace("print(vaekit.set_up())", "")  # seconds: once is enough
    code += "\nimport os; print('found in', os.path.realpath(vaekit.__file__))"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if installed:
        environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run([sys.executable, "-c", RUN], input=code, cwd=cwd, env=environment,
                          capture_output=True, text=True)  # fmt: skip


@pytest.fixture
def copy(tmp_path):
    """Puts what looks like the package into a folder below tmp_path; its path."""

    def place(where: str) -> Path:
        target = tmp_path / where / "vaekit"
        target.mkdir(parents=True)
        (target / "__init__.py").touch()
        return target

    return place


@pytest.mark.parametrize(
    "where",
    ["input/vaekit-repo", "input/vaekit/vaekit-main", "input/datasets/someone/vaekit-repo",
     "input/datasets/someone/vaekit/vaekit-main", "input/notebooks/someone/vaekit",
     "working", "working/vaekit", "."],
)  # fmt: skip
def test_the_set_up_cell_finds_what_is_attached_or_near(tmp_path, copy, where):
    target = copy(where)
    work = tmp_path / "working"
    work.mkdir(exist_ok=True)
    done = set_up(work, tmp_path)
    assert f"found in {target}" in done.stdout, done.stderr


def test_the_set_up_cell_does_not_search_whole_data_sets(tmp_path, copy):
    copy("input/chexpert/train/patient00001/study1")
    done = set_up(tmp_path, tmp_path)
    assert "No module named 'vaekit'" in done.stderr, done.stdout


def test_the_set_up_cell_prefers_the_installed_package(tmp_path, copy):
    copy("input/vaekit-repo")
    done = set_up(tmp_path, tmp_path, installed=True)
    assert f"found in {ROOT / 'vaekit'}" in done.stdout, done.stderr
    assert done.stdout.startswith("vaekit 0.") and len(done.stdout.splitlines()) == 2


def test_the_set_up_cell_says_what_to_do_when_there_is_nothing(tmp_path):
    done = set_up(tmp_path, tmp_path / "none")
    assert done.returncode and "No module named 'vaekit'" in done.stderr
    assert all(way in stamp.setup_cell("") for way in WAYS)


def test_with_an_address_it_installs_vaekit_and_nothing_else(tmp_path):
    done = set_up(tmp_path, tmp_path / "none", repo="nobody/nothing")
    address = "https://github.com/nobody/nothing/archive/HEAD.zip"
    assert done.stdout.split()[:2] == ["pip", "install"] and "--no-deps" in done.stdout
    assert done.stdout.split()[-1] == address
    assert "No module named 'vaekit'" in done.stderr  # pip was only printed
    assert all(way in stamp.setup_cell("nobody/nothing") for way in WAYS)


def test_set_up_installs_what_is_missing_and_nothing_else(monkeypatch):
    there, asked = {"lpips": False, "torchmetrics": False, "tqdm": True}, []

    def pip(command, **_):
        asked.extend(command)
        pinned = Path(command[command.index("-c") + 1]).read_text()
        assert [line.split("==")[0] for line in pinned.split()] == ["torch", "torchvision", "numpy"]
        there["lpips"] = True  # ... and torchmetrics is not to be had

    monkeypatch.setattr(setup.subprocess, "run", pip)
    monkeypatch.setattr(setup, "_absent", lambda names: [n for n in names if not there.get(n, 1)])
    line = setup.set_up()
    assert asked[-2:] == ["lpips", "torchmetrics"] and "\n" not in line
    assert "installed lpips" in line and "no FID: torchmetrics is missing" in line
    there["tqdm"] = False
    with pytest.raises(ModuleNotFoundError, match="tqdm missing: .*Internet"):
        setup.set_up()
    there["torch"] = False
    with pytest.raises(ModuleNotFoundError, match="torch, tqdm missing"):
        setup.set_up()


def test_what_is_needed_is_what_is_required():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {line.split(">=")[0] for line in lines if not line.startswith("#")}
    own = {"torch", "torchvision", "numpy", "opencv-python"}
    here = {"jupyter", "nbval", "scikit-image"}  # to work on a machine of one's own, and its tests
    assert required == own | here | {setup.ON_PYPI.get(name, name) for name in setup.NEEDED}


def test_attached_folders_of_both_layouts_nearest_first(monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "KAGGLE_INPUT", tmp_path)
    for name in ("old/a/b/c/d/deeper", "notebooks/me/before"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "old/file").touch()
    names = [path.relative_to(tmp_path).as_posix() for path in setup.attached()]
    levels = ["notebooks", "old", "notebooks/me", "old/a", "notebooks/me/before", "old/a/b"]
    assert names == [*levels, "old/a/b/c", "old/a/b/c/d"]
    for patient in range(setup.FEW_FOLDERS + 1):
        (tmp_path / f"old/a/b/{patient}/study").mkdir(parents=True)
    names = [path.relative_to(tmp_path).as_posix() for path in setup.attached()]
    assert names == levels  # tens of thousands of patients would take minutes


def test_a_training_ends_before_kaggle_does(monkeypatch):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    assert setup.minutes_left() is None
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setattr(setup, "STARTED", setup.time.monotonic() - 3600)
    assert setup.minutes_left() == pytest.approx(12 * 60 - 30 - 60, abs=1)


def test_host(monkeypatch):
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    assert setup.host() == "local"
    monkeypatch.setenv("COLAB_RELEASE_TAG", "x")
    assert setup.host() == "colab"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert setup.host() == "kaggle"


def test_a_gpu_without_kernels_is_found_before_training(monkeypatch):
    def no_kernel(*args, **kwargs):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla P100")
    monkeypatch.setattr(torch, "ones", no_kernel)
    assert "Tesla P100" in device.gpu_problem() and not device.usable_gpu()


def test_nobody_watches_a_batch_run(monkeypatch):
    monkeypatch.delenv("VAEKIT_PROGRESS", raising=False)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert not progress.watched()
    monkeypatch.setenv("VAEKIT_PROGRESS", "bar")
    assert progress.watched()


def test_lines_are_thinned_out_in_long_runs(monkeypatch, capsys):
    monkeypatch.setenv("VAEKIT_PROGRESS", "lines")
    row = {"phase": 1, "beta": 0, "beta_elbo": 0, "train_loss": 1, "val_loss": 1, "val_kl": 1,
           "val_psnr": 1, "seconds": 1}  # fmt: skip
    bar = progress.Progress(150, 0, True)
    for epoch in range(1, 151):
        bar.show(row | {"epoch": epoch})
    lines = capsys.readouterr().out.splitlines()
    assert 20 <= len(lines) <= 40 and lines[0].startswith("epoch   1/150")
