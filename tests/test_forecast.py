"""The forecast of a long run: its end, whether it fits the session, what to change."""

from datetime import datetime
from math import inf

import pytest
from tiny import shapes, small

import vaekit
from vaekit.keep import forecast as room
from vaekit.keep import guards
from vaekit.keep.forecast import forecast

NOON = datetime(2026, 3, 2, 12)  # a Monday
LONG = small(image_size=128, epochs_phase1=50, epochs_phase2=100)


def test_it_says_when_the_run_ends_and_whether_that_fits():
    row = {"epoch": 2, "seconds": 90.0}  # 148 more: 3.7 hours
    ends = "90 s an epoch: 148 more end Mon 15:42, in 3.7 hours"
    assert forecast(LONG, row, inf, NOON) == ends
    assert forecast(LONG, row, 4 * 3600, NOON) == f"{ends}, within the 4.0 hours that are left"


def test_it_says_what_to_change_and_that_would_fit(monkeypatch):
    row = {"epoch": 2, "seconds": 300.0}  # 12.3 hours
    text = forecast(LONG, row, 5 * 3600, NOON)
    assert "later than the 5.0 hours that are left" in text and "after about epoch 62" in text
    assert "epochs_phase1=20, epochs_phase2=40; or image_size=64" in text
    assert 300 * (20 + 40) <= 5 * 3600 and "week" not in text
    row = {"epoch": 2, "seconds": 900.0}
    monkeypatch.setattr(room, "host", lambda: "kaggle")
    assert "more than the 30 GPU hours of a week" in forecast(LONG, row, 5 * 3600, NOON)
    one_phase = LONG.replace(epochs_phase1=0)
    assert "one: epochs_phase2=20; or" in forecast(one_phase, row, 5 * 3600, NOON)
    assert "after about epoch 2, saved" in forecast(LONG, row, -5.0, NOON)


@pytest.mark.parametrize("profile", ["full", "quick"])
def test_the_full_profile_says_it_after_two_epochs(profile, tmp_path, monkeypatch, capsys):
    clock = iter(range(0, 10**9, 10))  # every look at the clock takes ten seconds
    monkeypatch.setattr(guards.time, "perf_counter", lambda: float(next(clock)))
    cfg = small(profile=profile, epochs_phase1=4, epochs_phase2=20, image_size=16)
    run = vaekit.fit(cfg, shapes(), out=tmp_path, max_minutes=5)
    lines = capsys.readouterr().out.splitlines()
    told = [i for i, line in enumerate(lines) if " more end " in line]
    if profile == "quick":
        assert not told
        return
    assert lines[told[0] - 1].startswith("epoch   2/24") and not run.finished
    assert "22 more end" in lines[told[0]] and "epochs_phase1=" in lines[told[0]]
    assert all("later than" in lines[i] for i in told)
