"""Fixtures: every test runs in the smoke profile, in temporary folders, without a network."""

import os
import signal
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a thread each: more would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")
ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / folder) for folder in ("benchmarks", "notebooks", "publish")]
PACKS = os.environ.get("VAEKIT_DATA", "")  # for `need_pack`


@pytest.fixture(autouse=True, scope="session")
def _only_what_is_asked_for():
    """No test but those that `need_pack` sees VAEKIT_DATA; kept until here, for xdist's workers."""
    os.environ.pop("VAEKIT_DATA", None)


@pytest.fixture(autouse=True)
def _sandbox(monkeypatch, tmp_path):
    monkeypatch.setenv("VAEKIT_PROFILE", "smoke")
    monkeypatch.setenv("VAEKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("vaekit.place.setup.KAGGLE_INPUT", tmp_path / "input")
    torch.manual_seed(0)
    if "matplotlib.pyplot" in sys.modules:  # what another file's tests left open
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def data():
    """Images to train on in a second."""
    from tiny import shapes

    return shapes()


@pytest.fixture(scope="session")
def whole(data, tmp_path_factory):
    """The run that nothing happened to."""
    from tiny import small

    import vaekit

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAEKIT_PROFILE", "smoke")
        return vaekit.fit(small(), data, out=tmp_path_factory.mktemp("whole"), verbose=False)


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """No network's weights are on this machine, and nobody has been told so."""
    monkeypatch.setenv("VAEKIT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("vaekit.judge.networks._told", set())


@pytest.fixture
def listens_to_ctrl_c():
    """A shell's background job, as tests may be, does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def tiny_sets(monkeypatch):
    """A folder's own val is kept from 5 images on."""
    monkeypatch.setattr("vaekit.files.patients.OWN_VAL", (0.05, 5))


def need_weights(*names: str):
    """Skip, with the reason, where VAEKIT_WEIGHTS does not hold the trunks."""
    from vaekit.features import WeightsMissing
    from vaekit.files.weights import find_weights

    for name in names:
        try:
            find_weights(name, download=False)
        except WeightsMissing:
            pytest.skip(f"VAEKIT_WEIGHTS holds no {name}")


def need_pack(name: str) -> Path:
    """The folder `name` of real images in VAEKIT_DATA; skip, with the reason, where it is not."""
    if not PACKS or not (Path(PACKS) / name).is_dir():
        pytest.skip(f"VAEKIT_DATA has no {name}/")
    return Path(PACKS) / name
