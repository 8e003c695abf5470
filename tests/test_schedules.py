import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vaekit
from vaekit.schedules import Plateau, annealed, beta_at, ema_decay, lr_factor

CFG = vaekit.preset(profile="full")  # 50 + 100 epochs, beta 1e-4 -> 1e-3 over 50


@pytest.mark.parametrize(
    ("epoch", "beta"), [(0, 0), (49.9, 0), (50, 1e-4), (75, 5.5e-4), (100, 1e-3), (149, 1e-3)]
)
def test_beta_is_zero_then_rises_then_stays(epoch, beta):
    assert beta_at(CFG, epoch) == pytest.approx(beta)


def test_constant_beta_starts_at_once():
    assert beta_at(CFG.replace(beta_schedule="constant"), 50) == CFG.beta


def test_only_epochs_after_annealing_can_be_best():
    assert [annealed(CFG, e) for e in (0, 49, 50, 99, 100, 149)] == [False] * 4 + [True] * 2
    assert annealed(CFG.replace(epochs_phase2=0), 0)


@given(st.floats(0, 200), st.floats(0, 200))
def test_beta_never_falls(a, b):
    low, high = sorted((a, b))
    assert beta_at(CFG, low) <= beta_at(CFG, high)


@given(st.sampled_from(["constant", "plateau", "cosine", "cosine_restarts"]), st.floats(0, 1))
def test_lr_factor_stays_in_the_unit_interval(kind, progress):
    assert 0 <= lr_factor(kind, progress) <= 1


def test_cosine_warms_up_then_falls_to_zero():
    assert lr_factor("cosine", 0.0) < 0.1 and lr_factor("cosine", 0.02) == pytest.approx(1)
    assert lr_factor("cosine", 1.0) == pytest.approx(0, abs=1e-12)


def test_restarts_double_and_end_with_the_phase():
    factor = [lr_factor("cosine_restarts", i / 700) for i in range(700)]
    jumps = [i for i in range(1, 700) if factor[i] > factor[i - 1]]
    assert jumps == [100, 300]  # 1, 2 and 4 sevenths
    assert lr_factor("cosine_restarts", 1.0) == pytest.approx(0, abs=1e-12)


def test_plateau_halves_after_patience_and_remembers():
    plateau = Plateau(patience=2)
    assert [plateau.step(v) for v in (1.0, 0.5, 0.5, 0.5, 0.5)] == [1, 1, 1, 1, 0.5]
    again = Plateau(patience=2)
    again.restore(plateau.state())
    assert again.step(0.1) == 0.5 and again.best == 0.1


def test_plateau_understands_negative_values():
    plateau = Plateau(patience=1)
    assert [plateau.step(v) for v in (-1.0, -2.0, -3.0, -4.0)] == [1, 1, 1, 1]


def test_ema_has_a_short_memory_first():
    assert ema_decay(CFG, 0) == 0.1 and ema_decay(CFG, 10**6) == CFG.ema
    assert not math.isnan(ema_decay(CFG.replace(ema=0.0), 5))
