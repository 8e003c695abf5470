"""Sweeps: what is measured of a run, and intervals over seeds."""

import json
import math

import numpy as np
import pytest
import sweep_measures as measures
import torch
from tiny import SMALL, blobs

import vaekit
from vaekit.data import Data
from vaekit.lessons import sweeps
from vaekit.model import VAE


def noise(n: int = 32, side: int = 64) -> torch.Tensor:
    return 0.5 + 0.1 * torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(0))


def test_films_are_those_that_the_stored_pictures_reconstruct():
    films = sweeps.shown_films()
    made = sweeps.Sweep.load("sharp").pictures("optimised")[: sweeps.SHOWN]
    assert films.shape == made.shape
    error = (films[:, None] - made).square().mean((2, 3, 4))  # (films, reconstructions)
    assert torch.equal(error.argmin(1), torch.arange(sweeps.SHOWN))


@pytest.mark.parametrize("side", [32, 64, 96])
def test_noise_has_no_lattice_and_every_lattice_is_found(side):
    plain, at = noise(side=side), torch.arange(side)
    assert measures.checkerboard(plain) == pytest.approx(1, abs=0.2)
    for period in (2, 4):
        wave = 0.05 * torch.cos(2 * math.pi * at / period)
        for lines in (wave, wave[:, None]):
            assert measures.checkerboard(plain + lines) > 1.2  # one of the four that are averaged
    slow = 0.2 * torch.cos(2 * math.pi * at / 16)
    assert measures.checkerboard(plain + slow) == pytest.approx(1, abs=0.2)


def test_explained_share_of_the_films_of_their_mean_and_of_half_the_way():
    x = torch.rand(6, 1, 8, 8)
    mean = x.mean(0).expand_as(x)
    shares = [sweeps.explained(guess, x) for guess in (x, mean, (x + mean) / 2)]
    assert shares == pytest.approx([1, 0, 0.75], abs=1e-5)


def test_variety_is_the_mean_distance_of_pairs():
    images = torch.zeros(3, 1, 4, 4)
    images[2] = 0.6
    assert measures.variety(images) == pytest.approx(0.4)  # pairs: 0, 0.6, 0.6


def test_measure_of_a_model_that_ignores_its_code():
    cfg = vaekit.preset("chest_xray", **{**SMALL, "image_size": 32})
    films = torch.nn.functional.interpolate(blobs(24, 1).float(), size=32).byte()
    data = Data.from_tensors(films, films[:8], films[:16])
    model = VAE(cfg).eval()
    torch.nn.init.zeros_(model.decoder.first.weight)
    numbers, pictures = measures.measure(model, data)
    assert pictures.shape == (2 * sweeps.SHOWN, 1, 32, 32)
    assert numbers["prior_variety"] == pytest.approx(0, abs=1e-6)
    assert numbers["psnr"] == pytest.approx(numbers["psnr_sampled"], abs=1e-4)
    x = films[:16].float() / 255
    mse = (model.reconstruct(x) - x).square().mean().item()
    assert numbers["mse"] == pytest.approx(mse, rel=1e-4)
    assert len(numbers["spectrum"]) == len(numbers["prior_spectrum"]) == 16
    plain = [v for v in numbers.values() if isinstance(v, float)]
    assert np.isfinite(plain).all() and json.dumps(numbers)


def made(gaps) -> sweeps.Sweep:
    rows = [{"case": "base", "seed": s, "psnr": 20.0 + s} for s in range(len(gaps))]
    rows += [{"case": "other", "seed": s, "psnr": 20.0 + s + g} for s, g in enumerate(gaps)]
    about = {"preset": "medical256", "base": {"profile": "full", "image_size": 64}}
    return sweeps.Sweep(
        "made", about, {"base": {}, "other": {"beta": 2.0, "select": "recon"}}, rows
    )


def test_a_difference_is_seed_by_seed_with_students_interval():
    from scipy.stats import ttest_1samp

    gaps = [0.3, 0.5, 0.2, 0.4, 0.6]
    found = made(gaps).difference("other", "base", "psnr")
    low, high = ttest_1samp(gaps, 0).confidence_interval()
    assert found == pytest.approx((0.4, low, high, 5))
    assert found.word == "higher" and made([-g for g in gaps]).difference(
        "other", "base", "psnr").word == "lower"  # fmt: skip
    assert made([0.3, -0.2, 0.1]).difference("other", "base", "psnr").word == "no difference"
    assert made([0.3]).difference("other", "base", "psnr").word == "no difference"  # one seed
    table = made(gaps).table({"base": "first", "other": "second"}, ["psnr"], "base")
    assert table.splitlines()[2:] == ["| first | 22 |", "| second | 22.4 (+0.4) |"]


def test_a_run_that_broke_off_is_no_number():
    sweep = made([0.1, 0.2, 0.3])
    del sweep.rows[-1]["psnr"]
    assert math.isnan(sweep.difference("other", "base", "psnr").value)
    assert sweep.difference("other", "base", "psnr").word == "no difference"
    assert sweep.verdicts("other")[-1] == "broke off"


def test_a_case_is_a_config_again():
    cfg = made([0.1]).config("other", seed=3, batch_size=4)
    assert (cfg.beta, cfg.seed, cfg.batch_size, cfg.preset) == (2.0, 3, 4, "medical256")


def test_no_pictures_of_real_people():
    assert not list(sweeps.RESULTS.glob("faces.[!j]*"))


@pytest.mark.parametrize("name", ["clinic", "beta", "cifar", "faces", "sharp"])
def test_what_is_committed_is_whole(name):
    sweep = sweeps.Sweep.load(name)
    for case in sweep.cases:
        rows = [r for r in sweep.rows if r["case"] == case]
        seeds = 5 if case in sweep.about.get("five", ()) else sweep.about["seeds"]
        assert [r["seed"] for r in rows] == list(range(seeds)), case
        if case not in sweep.about.get("pictured", ()):
            continue
        side = sweep.config(case).image_size
        assert sweep.pictures(case).shape[-2:] == (side, side)
        assert sweep.pictures(case).std() > 0.01
