"""Schedules of beta, learning rate and critic, and the controllers that change them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vaekit
from vaekit.schedules import BetaBand, Plateau, beta_at, ema_decay, final_objective, lr_factor

CFG = vaekit.preset(profile="full")  # 50 + 100 epochs, beta 1e-4 -> 1e-3 over 50


@pytest.mark.parametrize(
    ("epoch", "beta"), [(0, 0), (49.9, 0), (50, 1e-4), (75, 5.5e-4), (100, 1e-3), (149, 1e-3)]
)
def test_beta_is_zero_then_rises_then_stays(epoch, beta):
    assert beta_at(CFG, epoch) == pytest.approx(beta)


def test_a_warm_up_never_falls():
    cfg = CFG.replace(beta=1e-5)  # below beta_start
    assert {beta_at(cfg, 50 + e) for e in range(0, 100, 10)} == {1e-5}


def test_constant_beta_starts_at_once():
    assert beta_at(CFG.replace(beta_schedule="constant"), 50) == CFG.beta


def test_only_epochs_after_annealing_can_be_best():
    assert [final_objective(CFG, e) for e in (0, 49, 50, 99, 100, 149)] == [False] * 4 + [True] * 2
    assert final_objective(CFG.replace(epochs_phase2=0), 0)


CYCLES = CFG.replace(beta_schedule="cyclical")  # of 8 epochs, 2 of them at a quarter


def test_cycles_cool_down_for_two_epochs_of_eight():
    betas = [beta_at(CYCLES, 50 + e) for e in range(16)]
    assert betas == ([pytest.approx(2.5e-4)] * 2 + [1e-3] * 6) * 2
    assert [final_objective(CYCLES, 50 + e) for e in range(8)] == [False] * 2 + [True] * 6


def test_the_floor_of_the_cycles_rises():
    cfg = CYCLES.replace(cycle_reduction=0.0)
    floors = [beta_at(cfg, 50 + 8 * cycle) for cycle in range(4)]
    assert floors == pytest.approx([5e-5, 5e-5 * 1.02, 5e-5 * 1.02**2, 5e-5 * 1.02**3])


@given(st.integers(2, 20), st.integers(1, 19), st.floats(0, 1), st.floats(0, 1), st.floats(0, 150))
def test_cycles_stay_between_their_floor_and_beta(period, cooldown, reduction, floor, epoch):
    cfg = CYCLES.replace(cycle_epochs=period, cycle_cooldown=min(cooldown, period - 1))
    cfg = cfg.replace(cycle_reduction=reduction, beta_floor=floor)
    beta = beta_at(cfg, epoch)
    if epoch < 50:
        assert beta == 0
    else:
        assert min(floor, cfg.beta) <= beta <= cfg.beta and beta >= reduction * cfg.beta


def test_adaptive_follows_the_level_and_combines_with_the_cycles():
    assert beta_at(CFG.replace(beta_schedule="adaptive"), 50, level=0.5) == 0.5
    both = CFG.replace(beta_schedule="adaptive_cyclical")
    betas = [beta_at(both, 50 + e, level=0.5) for e in (0, 1, 2, 7, 8)]
    assert betas == [0.125, 0.125, 0.5, 0.5, 0.125]
    assert beta_at(both, 49, level=0.5) == 0


def run_band(beta: float, free: float, dims: int, recon: float, epochs: int = 60):
    """Shares under the controller, of a model whose codes answer at once: (shares, levels).

    A linear decoder's optimum: sigma^2 = free / (free + beta), so the KL falls as beta rises.
    """
    band = BetaBand(CFG.replace(beta=beta, beta_schedule="adaptive"))
    shares, levels = [], [band.level]
    for _ in range(epochs):
        sigma2 = free / (free + band.level)
        kl = 0.5 * dims * (sigma2 - 1 - math.log(sigma2) + 1 / free / dims)
        shares.append(band.level * kl / (band.level * kl + recon + 0.1 * (1 - sigma2)))
        levels.append(band.step(shares[-1]))
    return shares, levels


@given(st.floats(-8, 2), st.floats(-4, -1), st.integers(4, 1024), st.floats(0.05, 1.0))
def test_every_start_settles(log_beta, log_free, dims, recon):
    shares, levels = run_band(10**log_beta, 10**log_free, dims, recon)
    assert all(0.02 <= s <= 0.10 for s in shares[45:])
    assert len(set(levels[45:])) == 1  # inside the band, beta rests
    assert all(0.49 <= b / a <= 2.01 for a, b in zip(levels, levels[1:], strict=False))


def test_a_collapsed_kl_does_not_drive_beta_through_the_ceiling():
    band = BetaBand(CFG)
    assert [band.step(0.0, ceiling=0.004) for _ in range(9)][-1] == 0.004


def test_the_band_remembers():
    band, again = BetaBand(CFG), BetaBand(CFG)
    assert band.step(0.4) == CFG.beta / 2 and band.share == pytest.approx(0.2)  # half the level
    for _ in range(3):
        band.step(0.5)
    again.load_state_dict(band.state_dict())
    assert again.step(0.3) == band.step(0.3)


KINDS = ["constant", "plateau", "cosine", "cosine_restarts"]


@given(st.sampled_from(KINDS), st.floats(0, 1), st.floats(0, 0.9))
def test_lr_factor_stays_in_the_unit_interval(kind, progress, warmup):
    assert 0 <= lr_factor(kind, progress, warmup) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_warmup_is_a_straight_rise_to_the_schedules_own_start(kind):
    rise = [lr_factor(kind, p, warmup=0.1) for p in (0.025, 0.05, 0.075, 0.1)]
    assert rise == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert lr_factor(kind, 0.0, warmup=0.1) > 0  # no wasted step
    assert lr_factor(kind, 0.0) == 1


def test_cosine_falls_to_zero_through_the_half():
    assert lr_factor("cosine", 0.5) == pytest.approx(0.5)
    assert lr_factor("cosine", 1.0, warmup=0.1) == pytest.approx(0, abs=1e-12)


def test_restarts_double_and_end_with_the_phase():
    factor = [lr_factor("cosine_restarts", i / 700) for i in range(700)]
    jumps = [i for i in range(1, 700) if factor[i] > factor[i - 1]]
    assert jumps == [100, 300]  # 1, 2 and 4 sevenths
    assert lr_factor("cosine_restarts", 1.0) == pytest.approx(0, abs=1e-12)


def test_plateau_halves_after_patience_and_remembers():
    plateau = Plateau(patience=2)
    assert [plateau.step(v) for v in (1.0, 0.5, 0.5, 0.5, 0.5)] == [1, 1, 1, 1, 0.5]
    again = Plateau(patience=2)
    again.load_state_dict(plateau.state_dict())
    assert again.step(0.1) == 0.5 and again.best == 0.1


def test_plateau_understands_negative_values_and_wants_a_thousandth():
    plateau = Plateau(patience=1)
    assert [plateau.step(v) for v in (-1.0, -2.0, -3.0, -4.0)] == [1, 1, 1, 1]
    assert [plateau.step(v) for v in (-4.001, -4.002, -4.1)] == [1, 0.5, 0.5]


def test_ema_has_a_short_memory_first():
    assert ema_decay(CFG, 0) == 0.1 and ema_decay(CFG, 10**6) == CFG.ema
    assert not math.isnan(ema_decay(CFG.replace(ema=0.0), 5))
