"""Save & Run All on Kaggle: the session ends, and the next one resumes from attached output."""

import pytest
import torch

from vaekit import Data, fit, preset
from vaekit.place import setup


@pytest.fixture
def session(monkeypatch, tmp_path):
    """(cfg, data, folder of a previous version's output), on Kaggle."""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setattr(setup, "KAGGLE_INPUT", tmp_path / "input")
    images = torch.randint(0, 255, (8, 1, 16, 16), dtype=torch.uint8)
    cfg = preset("chest_xray", image_size=16, widths=(4, 8), attention=(), latent_channels=2,
                 perceptual_weight=0.0, epochs_phase1=1, epochs_phase2=2)  # fmt: skip
    return cfg, Data.from_tensors(images, images, images), tmp_path / "input/notebooks/me/before"


def test_the_end_of_the_session_stops_a_training_that_the_next_one_finishes(
    session, monkeypatch, tmp_path, capsys
):
    cfg, data, before = session
    with monkeypatch.context() as late:  # the twelve hours are nearly over
        late.setattr("vaekit.keep.run.minutes_left", lambda: 0.001)
        stopped = fit(cfg, data, out=before / "runs")
    assert not stopped.finished and len(stopped.history) == 1
    assert "the same call goes on" in capsys.readouterr().out
    state = {path: path.stat().st_mtime_ns for path in before.rglob("*")}
    run = fit(cfg, data, out=tmp_path / "working")
    printed = capsys.readouterr().out
    assert f"copied {run.path.name} from the attached" in printed and "going on with" in printed
    assert run.finished and len(run.history) == 3 and run.path.parent == tmp_path / "working"
    assert {path: path.stat().st_mtime_ns for path in before.rglob("*")} == state
    assert "copied" not in (fit(cfg, data, out=tmp_path / "working"), capsys.readouterr().out)[1]
    assert "epoch   2/3" in printed and "\r" not in printed  # a line an epoch, no bar


def test_an_attached_run_of_another_configuration_stays_where_it_is(session, tmp_path, capsys):
    cfg, data, before = session
    fit(cfg, data, out=before / "runs", verbose=False)
    fit(cfg.replace(beta=0.5), data, out=tmp_path / "working")
    assert "copied" not in capsys.readouterr().out
