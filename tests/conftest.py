"""Every test runs in the smoke profile, in folders of its own, without a network."""

import os

import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def _sandbox(monkeypatch, tmp_path):
    monkeypatch.setenv("VAEKIT_PROFILE", "smoke")
    monkeypatch.setenv("VAEKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)


def need_weights(*names: str):
    """Skip, with the reason, where VAEKIT_WEIGHTS does not hold the trunks."""
    from vaekit.features import WeightsMissing
    from vaekit.files.weights import find_weights

    for name in names:
        try:
            find_weights(name, download=False)
        except WeightsMissing:
            pytest.skip(f"VAEKIT_WEIGHTS holds no {name}")
