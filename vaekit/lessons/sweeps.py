"""Many short runs, one value changed at a time: what each measured, and what the spread allows.

`benchmarks/sweep.py` trains them and writes vaekit/results/<name>.json and .png; the notebooks
draw these, and train a case again with `Sweep.config`.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from vaekit import metrics
from vaekit.config import Config, preset
from vaekit.data import Data, as_float, chunks, load_data
from vaekit.files.sources import bundled
from vaekit.judge import networks
from vaekit.judge.distances import NEAREST, gaussian_frechet, precision_recall, principal_axes
from vaekit.judge.health import diagnose
from vaekit.plots import COLOURS, label, panels
from vaekit.sample import decode_all, encode_all, sample_latents


def plot_gaps(gaps: dict, title: str = "") -> Figure:
    """What changes brought: {metric: {change: {series: sweeps.Difference}}}, a panel a metric.

    A dot with its 95% interval for each series; hollow where the interval holds 0.
    """
    changes = list(next(iter(gaps.values())))
    size = 2.6 * len(gaps) + 2.2, 1.1 + 0.45 * len(changes)
    figure, axes = panels(1, len(gaps), size, title)
    for axis, (metric, rows) in zip(axes[0], gaps.items(), strict=True):
        series = list(rows[changes[0]])
        for y, change in enumerate(changes):
            for i, gap in enumerate(rows[change].values()):
                at, colour = y + 0.3 * (i - (len(series) - 1) / 2), COLOURS[i]
                fill = "white" if gap.word == "no difference" else colour
                axis.plot([gap.low, gap.high], [at, at], color=colour, lw=1.6)
                axis.plot(gap.value, at, "o", ms=5, color=colour, mfc=fill)
        axis.axvline(0, color="0.4", lw=0.8)
        axis.set_yticks(range(len(changes)), changes if axis is axes[0, 0] else [])
        axis.set_ylim(len(changes) - 0.5, -0.5)
        label(axis, metric)
    marks = [plt.Line2D([], [], color=colour, marker="o", label=name)
             for name, colour in zip(series, COLOURS, strict=False)]  # fmt: skip
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=8)
    return figure


RESULTS = Path(__file__).parent / "results"
SHOWN = 6  # reconstructions, and as many prior samples, of each case in the picture


def bundled_data(size: int = 64) -> Data:
    """The bundled films, whatever data this machine has: all of them, size x size pixels."""
    cfg = preset("chest_xray", image_size=size, max_images=0, data_path=str(bundled().path))
    return load_data(cfg, verbose=False)


def lattice(images) -> float:
    """Power of the fine lattices (periods of 2 and 4 pixels, along rows and columns) over that of
    their neighbours in frequency: about 1 in a picture without a checkerboard, else more.

    images: Split or (N, C, H, W), sides divisible by 4, 32 px at least. Geometric means.
    """
    x = torch.cat([metrics.to_grey(x)[:, 0] for x in chunks(images)])
    x = x - x.mean((1, 2), keepdim=True)
    ratios = []
    for dim in (1, 2):
        n = x.shape[dim]
        window = torch.hann_window(n, periodic=True).unsqueeze(2 - dim)
        power = torch.fft.rfft(x * window, dim=dim).abs().square().mean((0, 3 - dim)).double()
        for k in (n // 2, n // 4):  # a Hann window spreads a line over one bin either side
            near = [power[j] for j in (k - 4, k - 3, k + 3, k + 4) if 0 < j < len(power)]
            ratios.append(power[k].log() - torch.stack(near).log().mean())
    return torch.stack(ratios).mean().exp().item()


def explained(x_hat: Tensor, x: Tensor) -> float:
    """Share of what sets the images apart from their mean that x_hat has: 1 all, 0 no more than
    the mean has. Comparable where PSNR is not, between images of different contrast."""
    left = (x_hat - x).square().mean() / (x - x.mean(0)).square().mean()
    return 1 - left.item()


def variety(images: Tensor) -> float:
    """Mean absolute difference of two images of the set, over pixels and pairs, in [0, 1]."""
    return torch.pdist(images.flatten(1), 1).mean().item() / images[0].numel()


@torch.no_grad()
def measure(model, data, seed: int = 0) -> tuple[dict[str, Any], Tensor]:
    """(numbers of one model, (2 * SHOWN, C, H, W) reconstructions and prior samples).

    Reconstructions are of the test films and from the mean; N prior samples for N test films.
    Ratios are to the real test films. `prior_excess` is the samples' Fréchet distance from the
    test films on SqueezeNet (without its weights on pixels), less the training films' own, `floor`.
    """
    real = as_float(data.test.images)
    mu, logvar = encode_all(model, real)
    noise = torch.Generator().manual_seed(seed)
    x_hat = decode_all(model, mu)
    x_noisy = decode_all(model, model.reparameterize(mu, logvar, noise))
    prior = decode_all(model, sample_latents(model, len(real), seed=seed))
    found = diagnose(model, data.test, seed)
    judge = networks.load_judge()
    numbers = {k: v.mean().item() for k, v in metrics.compare_images(x_hat, real, judge).items()}
    looks = metrics.appearance(x_hat)
    numbers |= {
        "mse": (x_hat - real).square().mean().item(),
        "explained": explained(x_hat, real),
        "psnr_sampled": metrics.psnr(x_noisy, real).mean().item(),
        "sharpness": metrics.sharpness_ratio(x_hat, real),
        "prior_sharpness": metrics.sharpness_ratio(prior, real),
        "lattice": lattice(x_hat), "prior_lattice": lattice(prior),
        "prior_variety": variety(prior) / variety(real),
        **{k.replace("range ", ""): v.mean().item() for k, v in looks.items() if k != "sharpness"},
        **_distances(prior, data, judge), "verdict": found.verdict,
    }  # fmt: skip
    wanted = ("kl", "active_share", "idle_share", "sigma", "gap_share", "mmd_share", "noise_price")
    numbers |= {name: found.numbers[name] for name in wanted}
    power = [metrics.radial_power_spectrum(s)[1] for s in (real, x_hat, prior)]
    numbers |= {"spectrum": (power[1] / power[0]).tolist(),
                "prior_spectrum": (power[2] / power[0]).tolist()}  # fmt: skip
    return numbers, torch.cat([x_hat[:SHOWN], prior[:SHOWN]])


def _distances(prior: Tensor, data, judge) -> dict[str, float]:
    trunk, n = judge and judge.trunk, len(data.test)
    drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    others = data.train.images[drawn[:n]]
    real, others, prior = (networks.feature_vectors(x, trunk) for x in (data.test, others, prior))
    axes = principal_axes(real, len(real))
    floor, sampled = (gaussian_frechet(real @ axes, x @ axes) for x in (others, prior))
    precision, _, _, coverage = precision_recall(real, prior, min(NEAREST, n // 4))
    return {"prior_excess": sampled - floor, "floor": floor,
            "prior_precision": precision, "prior_coverage": coverage}  # fmt: skip


class Difference(NamedTuple):
    """`metric` of `case` less that of `against`: mean over seeds, and its 95% interval."""

    value: float
    low: float
    high: float
    seeds: int

    @property
    def word(self) -> str:
        """ "higher", "lower", or "no difference" beyond the spread of the seeds."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "no difference"


@dataclass
class Sweep:
    """Results of one sweep: {case: changes}, and a row of numbers for each case and seed."""

    name: str
    about: dict  # command, data, base preset and its changes, versions
    cases: dict[str, dict]
    rows: list[dict]

    @classmethod
    def load(cls, name: str) -> "Sweep":
        """The committed results vaekit/results/<name>.json; FileNotFoundError without them."""
        return cls(**json.loads((RESULTS / f"{name}.json").read_text()))

    def config(self, case: str, seed: int = 0, **changes) -> Config:
        """What trained `case`; KeyError for an unknown one."""
        values = {**self.about["base"], **self.cases[case], "seed": seed, **changes}
        values.pop("select", None)  # says which epoch's weights were kept
        return preset(self.about["preset"], **values)

    def values(self, case: str, metric: str) -> np.ndarray:
        """One number a seed, in the order of the seeds; NaN for a run that broke off."""
        rows = sorted((r for r in self.rows if r["case"] == case), key=lambda r: r["seed"])
        return np.array([r.get(metric, math.nan) for r in rows], dtype=float)

    def difference(self, case: str, against: str, metric: str) -> Difference:
        """Seed by seed: the same seed means the same films, batches and first weights."""
        from scipy.stats import t

        a, b = self.values(case, metric), self.values(against, metric)
        n = min(len(a), len(b))  # a sweep that is not finished has fewer of one
        gap = a[:n] - b[:n]
        mean, error = float(gap.mean()), math.inf
        if n > 1:
            error = float(t.ppf(0.975, n - 1) * gap.std(ddof=1) / n**0.5)
        return Difference(mean, mean - error, mean + error, n)

    def table(self, cases: dict[str, str], metrics: list[str], against: str) -> str:
        """Markdown: a row a case, {case: what to call it}; the mean over seeds, and in brackets the
        difference from `against` where it is beyond the spread of the seeds."""
        lines = ["| | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
        for case, label in cases.items():
            cells = []
            for metric in metrics:
                gap = self.difference(case, against, metric)
                told = f" ({gap.value:+.3g})" if gap.word != "no difference" else ""
                cells.append(f"{self.values(case, metric).mean():.3g}{told}")
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def verdicts(self, case: str) -> list[str]:
        """What `diagnose` said of it, seed by seed."""
        return [r.get("verdict", "broke off") for r in self.rows if r["case"] == case]

    def pictures(self, case: str) -> Tensor:
        """(2 * SHOWN, C, H, W) in [0, 1]: seed 0's reconstructions, then its prior samples."""
        sheet = np.asarray(Image.open(RESULTS / f"{self.name}.png"))
        side = sheet.shape[1] // (2 * SHOWN)
        row = list(self.cases).index(case) * side
        strip = torch.from_numpy(sheet[row : row + side].copy()).float() / 255
        strip = strip[None] if strip.dim() == 2 else strip.permute(2, 0, 1)
        return torch.stack(strip.split(side, dim=2))
