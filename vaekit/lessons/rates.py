"""Rate and distortion: how many nats a code has, and how large the error is.

The linear VAE where a nat costs theta = beta sigma^2, in squared pixels: a direction of variance
lambda > theta gets log(lambda / theta) / 2 nats and keeps an error of theta; the others get none
and are lost. For Gaussian data no code is better at that rate ("reverse water-filling":
Cover and Thomas, Elements of Information Theory, 2nd edition, section 10.3.3).
"""

from typing import NamedTuple

import numpy as np
import torch

from vaekit.data import chunks, pixels_of
from vaekit.linear import LEAST_SIGMA2, LinearVAE, linear_vae
from vaekit.losses import kl_per_image, mse_per_image, ssim_per_image
from vaekit.model import evaluating
from vaekit.plots import COLOURS


class Point(NamedTuple):
    """A model in the rate-distortion plane: means over images, pixels in [0, 1]."""

    rate: float  # KL(q(z|x) || p(z)), nats an image; `Quantiser.kl` where codes are quantised
    mse: float  # of decode(z), z drawn from q(z|x)
    ssim: float  # the same
    mse_of_mean: float  # of decode(mu): this uses digits of mu that the rate does not count


def measure(model, images, seed: int = 0) -> Point:
    """Encode and decode `images`, a Split or (N, C, S, S), with one z per image."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    with evaluating(model) as device:
        for x in chunks(images, device=device):
            mu, logvar = model.encode(x)
            eps = torch.randn(mu.shape, generator=generator)
            x_hat = model.decode(mu + (0.5 * logvar).exp() * eps.to(device))
            quantiser = getattr(model, "quantiser", None)
            kl = kl_per_image(mu, logvar) if quantiser is None else quantiser.kl(mu)
            of_mean = mse_per_image(model.decode(mu), x)
            numbers = [kl, mse_per_image(x_hat, x), ssim_per_image(x_hat, x), of_mean]
            rows.append(torch.stack(numbers, 1).cpu())
    return Point(*torch.cat(rows).mean(0).tolist())


def all_directions(images, mirror: bool) -> LinearVAE:
    """The linear VAE with every direction in which the training images differ: a rate limits the
    nats, not the number of directions. One fit serves all prices; see `at_price`."""
    shape = pixels_of(images).shape
    n = shape[0] * (2 if mirror else 1)
    return linear_vae(images, min(n - 1, shape[1:].numel()), LEAST_SIGMA2, mirror)


def at_price(model: LinearVAE, theta: float) -> LinearVAE:
    """The best linear VAE where a nat costs `theta`, without the directions that are idle there."""
    paid = model.variances > theta
    return LinearVAE(model.mean, model.basis[paid], model.variances[paid], theta, model.size)


def linear_curve(model: LinearVAE, images, prices) -> list[Point]:
    """`model` at each price, measured on `images`."""
    return [measure(at_price(model, theta), images) for theta in prices]


def at_rate(curve: list[Point], rate: float) -> Point:
    """The point of `curve` at this rate, interpolated in logarithms of rate and error; NaN beyond
    its ends."""
    logs = np.log([p for p in sorted(curve) if p.rate > 0])
    at = np.log(rate)
    columns = [np.interp(at, logs[:, 0], values, np.nan, np.nan) for values in logs.T]
    return Point(*np.exp(columns).tolist())


def draw(axis, held_out: list[Point], training: list[Point], models: dict[str, Point]) -> None:
    """Squared error against rate: the linear model as lines, `models` as named points."""
    for curve, style, name in ((held_out, "-", "held out"), (training, ":", "training images")):
        points = [p for p in curve if p.rate > 0]
        x, y = [p.rate for p in points], [p.mse for p in points]
        axis.plot(x, y, style, color=COLOURS[0], label=f"linear, {name}")
    rates, mse, _, of_mean = zip(*models.values(), strict=True)
    axis.plot(rates, mse, "o", color=COLOURS[1], label="network, held out")
    axis.plot(rates, of_mean, "o", color=COLOURS[1], mfc="none", label="network, mean decoded")
    for name, point in models.items():
        ahead = point.mse < at_rate(held_out, point.rate).mse
        side = "right" if ahead else "left"  # of the label that the point is on
        offset = (-7, -3) if ahead else (6, 4)
        axis.annotate(name, point[:2], offset, textcoords="offset points", ha=side, fontsize=9)
    axis.set(xscale="log", xlabel="rate: KL (nats an image)")
    axis.set(yscale="log", ylabel="distortion: mean squared error")
