"""The linear model's rate-distortion curve against the exact one for Gaussians."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import vaekit
from vaekit.lessons import rates
from vaekit.linear import LinearVAE

VARIANCES = torch.tensor([4e-3, 2e-3, 1e-3, 3e-4, 1e-4, 1e-5])


def gaussian(n: int, seed: int) -> torch.Tensor:
    """(n, 1, 4, 4) around 0.5, far from 0 and 1: VARIANCES along six directions, none in others."""
    rotation, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(9)))
    g = torch.Generator().manual_seed(seed)
    y = torch.randn(n, 6, generator=g) * VARIANCES.sqrt()
    return (0.5 + y @ rotation[:6]).view(n, 1, 4, 4)


@pytest.fixture(scope="module")
def model() -> LinearVAE:
    return rates.all_directions(gaussian(5000, 0), mirror=False)


def test_on_its_own_images_the_formula_is_exact(model):
    for theta in (2e-3, 1e-4):
        found = rates.measure(rates.at_price(model, theta), gaussian(5000, 0))
        rate = 0.5 * (model.variances / theta).clamp(min=1).log().sum().item()
        error = model.variances.clamp(max=theta).sum().item() / 16
        assert found.rate == pytest.approx(rate, rel=1e-3)
        assert found.mse == pytest.approx(error, rel=0.02)  # one z an image
        assert found.mse_of_mean < found.mse


def test_what_is_left_out_costs_nothing_and_the_rest_is_as_before(model):
    whole = LinearVAE(model.mean, model.basis, model.variances, 8e-4, model.size)
    part = rates.at_price(model, 8e-4)
    x = gaussian(50, 2)
    assert part.latent_shape == (3,) and whole.latent_shape == (16,)
    torch.testing.assert_close(part.reconstruct(x), whole.reconstruct(x))
    assert rates.measure(part, x).rate == pytest.approx(rates.measure(whole, x).rate, rel=1e-5)
    nothing = rates.measure(rates.at_price(model, 1.0), x)
    assert nothing.rate == 0 and nothing.mse == nothing.mse_of_mean
    assert rates.all_directions(gaussian(5, 0), mirror=False).latent_shape == (4,)


def test_between_two_points_the_curve_is_nearly_straight(model):
    x = gaussian(2000, 1)
    curve = rates.linear_curve(model, x, [0.1, *torch.logspace(-2.5, -5, 12).tolist()])
    exact = rates.measure(rates.at_price(model, 2.3e-4), x)
    found = rates.at_rate(curve, exact.rate)
    assert found.mse == pytest.approx(exact.mse, rel=0.02)
    assert found.ssim == pytest.approx(exact.ssim, abs=0.01)
    assert math.isnan(rates.at_rate(curve, 1e6).mse)
    axis = Figure().subplots()
    rates.draw(axis, curve, curve, {"a model": exact})
    assert len(axis.lines) == 4 and axis.get_xscale() == "log"


def test_a_price_may_be_a_numpy_number():
    model = vaekit.linear_vae(torch.rand(20, 1, 8, 8), 4)
    images = torch.rand(6, 1, 8, 8)
    (point,) = rates.linear_curve(model, images, [np.float64(0.01)])
    assert np.isfinite(point.rate)
