"""diagnose(): is this latent space healthy? Numbers, a figure, and a verdict in words.

The verdict is the first in this table that holds. A unit is one element of the latent. The
thresholds, named below, lie between models that were trained to be each of the four.

| verdict       | holds if                                                                        |
|---------------|---------------------------------------------------------------------------------|
| collapsed     | idle_share > 0.5: in most units sigma exceeds the deviation of mu; and          |
|               | other_to_mean < 3: the decoder does nearly as well with another image's code    |
| autoencoder   | sigma_to_spread < 0.03 and noise_price < 0.25: codes are points, noise is free; |
|               | or sample_to_mean > 10: the decoder was never shown its noise                   |
| off the prior | gap_share > 0.1: of the KL, by mean, variances and correlations; or             |
|               | mmd_share > 0.1 and mmd > mmd_null: by shape                                    |
| healthy       | none of these; prior samples may still be poor, where codes differ by shape     |
"""

import math
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vaekit.data import chunks, pixels_of
from vaekit.judge.distances import mmd
from vaekit.losses import kl_elements, mse_per_image
from vaekit.model import evaluating
from vaekit.plots import COLOURS, label, panels
from vaekit.sample import encode_all

ACTIVE = 0.01  # variance of mu over images above which a unit is active (Burda et al. 2016)
IDLE = 0.5  # share of units whose sigma is larger than the deviation of mu
SWAPPED = 3.0  # error from another image's code, relative to the image's own
UNHEARD = 10.0  # squared error from a sampled z, relative to that from the mean
TINY_NOISE = 0.03  # sigma over the deviation of mu, median over active units
FREE_NOISE = 0.25  # price of the noise, relative to what the ELBO accepts
DEAR_NOISE = 3.0  # above this price a healthy model is called blurred
GAP_SHARE = 0.1  # of the KL: nats that only measure the distance from the prior
PRIOR_MMD = 0.1  # share, 0..1
HELD = 0.25  # of other images' error; below it the model stores its training images
UNITS = 1024  # at most, at random, in the covariance, whose spectrum costs their cube
IMAGES = 500  # at most, in the MMD, whose null costs their square
NULLS = 40
ADVICE = {
    "collapsed": """
{idle_share:.0%} of {units} units hold more noise than signal ({active_units} are active), an image
has {kl:.2g} nats, and another image's code costs only {other_to_mean:.2g} times the error of its
own. Lower beta, warm it up for longer, or give free_bits.""",
    "autoencoder": """
sigma is {sigma_to_spread:.2g} of the spread of mu, and the noise in z costs {noise_price:.2g} of
what it costs in the best VAE: codes are points, of {kl_active:.2g} nats a unit. Raise beta until
beta_elbo is near 1.""",
    "untrained": """
a sampled code costs {sample_to_mean:.3g} times the error of the mean: the decoder was never
trained on this noise. Train phase 2, where z is sampled.""",
    "off the prior": """
units are active and their noise is real, but the codes lie {prior_gap:.2g} nats a unit from
N(0, I), {gap_share:.0%} of the KL (MMD {mmd:.2g}, from the prior to itself {mmd_null:.2g}): prior
draws land where no image is. Sample with sampler="gaussian" or "gmm", or raise beta.""",
    "healthy": """
{active_units} of {units} units are active, the noise in z costs {noise_price:.2g} of what it
costs in the best VAE, and the codes lie {prior_gap:.2g} nats a unit from N(0, I). Only samples
show whether they look real.""",
    "blurred": """
Beta is well above the ELBO's: a lower one would reconstruct more sharply.""",
    "held": """
Training images come back with {train_to_test:.2g} of the error of these: the model holds the images
themselves.""",
}


@dataclass
class Diagnosis:
    """verdict: "healthy", "collapsed", "autoencoder" or "off the prior"; advice: why, and what to
    change; numbers: plain numbers; arrays: the data of the numbers and of `plot()`."""

    verdict: str
    advice: str
    numbers: dict[str, float | int]
    arrays: dict[str, Tensor]

    def __str__(self) -> str:
        width = max(map(len, self.numbers))
        lines = [f"  {name:<{width}}  {value:.4g}" for name, value in self.numbers.items()]
        return "\n".join([f"{self.verdict}: {self.advice}", *lines])

    def plot(self) -> Figure:
        """KL, active units, sigma and the spectrum, each with what a perfect model would show."""
        figure, axes = panels(2, 2, (7.5, 5.8), f"verdict: {self.verdict}")
        kl, units, sigma, spectrum = axes.flat
        blue, red = COLOURS[:2]
        found, n = self.arrays, self.numbers
        kl.plot(found["kl"].flatten().sort(descending=True).values, color=blue)
        label(kl, f"KL: {n['kl']:.0f} nats in all", "rank", "nats")
        units.semilogy(found["variance"], found["noise"], ".", color=blue, ms=4)
        rest = torch.logspace(-4, 0, 200)
        units.plot(1 - rest, rest, color="0.4", label="sum 1 (prior)")
        units.axvline(ACTIVE, color=red, ls="--", label="active from here")
        at = dict(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2)
        label(units, f"{n['active_units']} active units", "variance of mu", "mean sigma²", **at)
        sigma.hist(found["sigma"].flatten().log10(), bins=50, color=blue)
        sigma.axvline(0, color="0.4", label="the prior's")
        label(sigma, f"median of sigma: {n['sigma']:.2g}", "log10 sigma", "count")
        spectrum.semilogy(found["eigenvalues"], color=blue, label="codes")
        spectrum.plot(found["expected_eigenvalues"], "--", color=red, label="as many of N(0, I)")
        label(spectrum, f"{n['gap_share']:.0%} of the KL: off the prior", "direction", "variance")
        return figure


def diagnose(model, split, seed: int = 0, batch_size: int = 64, train=None) -> Diagnosis:
    """The state of `model`'s latent space, measured on images that it was not trained on.

    split: Split or (N, C, H, W), uint8 or float, N >= 2, better a hundred. `numbers` has: active
    units and their KL in nats (`kl`: per image, summed over units); sigma, alone and divided by the
    deviation of mu; mean squared errors from the mean, from a sampled z and from another image's
    code, with `noise_price` (see `describe`); the spectrum of the aggregated posterior and
    `prior_gap` (see there), whose sum over units is `gap_share` of the KL; its squared `mmd` from
    N(0, I), one z per image, RBF kernel, with the 95th percentile of prior against prior at the
    same N. The module's docstring has the verdict's thresholds. With `train`, the training images,
    also `train_to_test` (see there), which the advice mentions below HELD. ValueError for fewer
    than two images, or codes that are not finite.
    """
    n, *shape = pixels_of(split).shape
    if n < 2:
        raise ValueError(f"a latent space cannot be judged by {n} image")
    mu, logvar = encode_all(model, split, batch_size)
    if logvar.isneginf().all():
        raise ValueError("quantised codes have no noise to judge: see val_perplexity in history")
    if not (mu.isfinite().all() and logvar.isfinite().all()):
        raise ValueError("the codes are not finite: this model has diverged")
    generator = torch.Generator().manual_seed(seed)
    z = model.reparameterize(mu, logvar, generator)
    other = mu.roll(n // 2, 0)  # not the next image: that may be the same patient
    arrays = {"kl": kl_elements(mu, logvar).mean(0), "sigma": (0.5 * logvar).exp().flatten(1)}
    for name, codes in (("mean", mu), ("sampled", z), ("other", other)):
        arrays[f"mse_{name}"] = decoding_errors(model, split, codes, batch_size)
    mu, logvar, z = (t.flatten(1).double() for t in (mu, logvar, z))
    arrays["variance"] = mu.var(0)
    arrays["noise"] = logvar.exp().mean(0)
    gap, spectrum = prior_gap(mu, arrays["noise"], generator)
    numbers = describe(arrays, math.prod(shape)) | gap | prior_mmd(z, generator)
    off = numbers["prior_gap"] * max(numbers["active_units"], 1)
    numbers["gap_share"] = off / max(numbers["kl"], 1e-9)
    if train is not None:
        numbers["train_to_test"] = train_to_test(model, train, arrays["mse_mean"], batch_size)
    verdict = verdict_of(numbers)
    return Diagnosis(verdict, advice_for(verdict, numbers), numbers, arrays | spectrum)


def decoding_errors(model, split, z: Tensor, batch_size: int) -> Tensor:
    """Mean squared error (N,) of each image, decoded from its row of z."""
    errors = []  # numbers, not tensors: many small ones between large ones tear the heap
    with evaluating(model) as device:
        images = chunks(split, batch_size, device)
        for x, part in zip(images, z.split(batch_size), strict=True):
            errors += mse_per_image(model.decode(part.to(device)), x).tolist()
    return torch.tensor(errors)


def train_to_test(model, train, errors: Tensor, batch_size: int = 64) -> float:
    """Mean squared error of training images, from the mean, divided by `errors` (N,) of others.

    Uses at most N training images, drawn at random. About 1 where the model treats both alike, 0
    where it stores the training images, as a linear VAE with at least as many directions as images
    does. Its samples are mixtures of them, which `distances.memorisation` does not count as copies.
    """
    images = pixels_of(train)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images = images[order[: len(errors)]]
    mu, _ = encode_all(model, images, batch_size)
    found = decoding_errors(model, images, mu, batch_size)
    return (found.mean() / errors.mean().clamp(min=1e-12)).item()


def describe(arrays: dict[str, Tensor], pixels: int) -> dict[str, float | int]:
    """Properties of the posteriors, image by image and unit by unit.

    "noise_price" is the squared error that sampling z adds, as a share of the mean's own error per
    pixel, for every active unit. With the ELBO's KL weight it is about 1: noise grows until it
    costs one pixel's error. In general it is about the beta_elbo that the whole loss acted as.
    Source: the linear case, Lucas et al. 2019, arXiv 1911.02469.
    """
    variance, noise = arrays["variance"], arrays["noise"]
    kl = arrays["kl"].flatten()
    active = variance > ACTIVE
    count, units = int(active.sum()), len(active)
    those = active if count else ~active  # without active units: of the others
    spread = variance[those].clamp(min=1e-12)
    errors = [arrays[f"mse_{name}"].double().mean() for name in ("mean", "sampled", "other")]
    mean, sampled, other = torch.stack(errors).clamp(min=1e-12).tolist()
    return {
        "images": len(arrays["sigma"]),
        "units": units,
        "active_units": count,
        "active_share": count / units,
        "idle_share": (noise > variance).double().mean().item(),
        "kl": kl.sum().item(),
        "kl_active": kl[those].mean().item(),
        "sigma": arrays["sigma"].median().item(),
        "sigma_to_spread": (noise[those] / spread).sqrt().median().item(),
        "mse_mean": mean,
        "mse_sampled": sampled,
        "sample_to_mean": sampled / mean,
        "other_to_mean": other / mean,
        "noise_price": (sampled / mean - 1) * pixels / max(count, 1),
    }


def covariance(mu: Tensor, noise: Tensor) -> Tensor:
    """(D, D) of the aggregated posterior: Cov mu + diag E sigma^2, the law of total variance."""
    return torch.cov(mu.T).view(len(noise), -1) + noise.diag()


def total_correlation(cov: Tensor) -> float:
    """KL of a Gaussian from the one with the same variances and independent units, in nats."""
    return (cov.diagonal().log().sum() - torch.linalg.slogdet(cov).logabsdet).item() / 2


def prior_gap(mu: Tensor, noise: Tensor, generator) -> tuple[dict, dict]:
    """How far N(m, C) with the aggregated posterior's moments is from N(0, I), and its spectrum.

    KL(N(m, C) || N(0, I)) is a lower bound of the marginal KL(q(z) || p(z)) (Hoffman and Johnson
    2016). It is the sum over single units, from their means and variances, and a part from their
    correlations. Few images make units look correlated, so the value of independent codes with the
    same N, variances and noise is subtracted. "prior_gap" is the rest, in nats per active unit. The
    eigenvalues of C come with those that N images of a perfect model would show, mu from
    N(0, 1 - E sigma^2).
    """
    chosen = torch.randperm(len(noise), generator=generator)[:UNITS]
    mu, noise = mu[:, chosen], noise[chosen].clamp(min=1e-12)
    drawn = prior_like(mu, generator)
    cov = covariance(mu, noise)
    independent = covariance(drawn * mu.std(0), noise)
    perfect = covariance(drawn * (1 - noise).clamp(min=0).sqrt(), noise)
    variance = cov.diagonal()
    alone = (variance - 1 - variance.log() + mu.mean(0).square()).sum().item() / 2
    together = max(total_correlation(cov) - total_correlation(independent), 0.0)
    active = max(int((mu.var(0) > ACTIVE).sum()), 1)
    spectrum = {}
    for name, matrix in (("eigenvalues", cov), ("expected_eigenvalues", perfect)):
        spectrum[name] = torch.linalg.eigvalsh(matrix).flip(0).clamp(min=1e-12)
    numbers = {
        "prior_gap": (alone + together) / active,
        "largest_eigenvalue": spectrum["eigenvalues"][0].item(),
        "smallest_eigenvalue": spectrum["eigenvalues"][-1].item(),
    }
    return numbers, spectrum


def prior_like(z: Tensor, generator) -> Tensor:
    return torch.randn(z.shape, generator=generator, dtype=z.dtype)


def rbf(x: Tensor, y: Tensor) -> Tensor:
    """exp(-|x_i - y_j|^2 / 2D), (N, M). Two prior draws have a mean squared distance of 2D, so the
    kernel is the same for every model with D units."""
    return torch.exp(-torch.cdist(x, y).square() / (2 * x.shape[1]))


def prior_mmd(z: Tensor, generator) -> dict[str, float]:
    """MMD of posterior samples z (N, D), one an image, from N prior draws, and prior from prior.

    At most IMAGES of them, drawn at random; "mmd_null" is the 95th percentile of prior from prior.
    """
    z = z[torch.randperm(len(z), generator=generator)[:IMAGES]]
    nulls = []
    for _ in range(NULLS):
        a, b = prior_like(z, generator), prior_like(z, generator)
        nulls.append(mmd(a, b, rbf)[0])
    value, share = mmd(z, prior_like(z, generator), rbf)
    null = torch.tensor(nulls).quantile(0.95).item()
    return {"mmd": value, "mmd_null": null, "mmd_share": share}


def verdict_of(n: dict) -> str:
    """The first verdict in the table of the module's docstring that holds."""
    tight = n["sigma_to_spread"] < TINY_NOISE and n["noise_price"] < FREE_NOISE
    apart = n["mmd_share"] > PRIOR_MMD and n["mmd"] > n["mmd_null"]
    if n["idle_share"] > IDLE and n["other_to_mean"] < SWAPPED:
        return "collapsed"
    if tight or n["sample_to_mean"] > UNHEARD:
        return "autoencoder"
    if apart or n["gap_share"] > GAP_SHARE:
        return "off the prior"
    return "healthy"


def advice_for(verdict: str, n: dict) -> str:
    """The reason, with its numbers, and what to change."""
    advice = ADVICE[verdict]
    if verdict == "autoencoder" and n["sample_to_mean"] > UNHEARD:
        advice = ADVICE["untrained"]
    if verdict == "healthy" and n["noise_price"] > DEAR_NOISE:
        advice += ADVICE["blurred"]
    if n.get("train_to_test", 1.0) < HELD:
        advice += ADVICE["held"]
    return " ".join(advice.split()).format(**n)
