"""Stored results of many short runs that differ in one value, with their spread over seeds.

`benchmarks/sweep.py` trains the runs and writes results/<name>.json and .webp; the notebooks draw
these, and train a case again with `Sweep.config`.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from vaekit.config import Config, preset
from vaekit.data import Data, load_data
from vaekit.files.images import prepare
from vaekit.files.phantom import draw_film
from vaekit.files.sources import bundled
from vaekit.plots import COLOURS, label, panels

RESULTS = Path(__file__).parent / "results"
SHOWN = 4  # reconstructions, and as many prior samples, of each case that is pictured
SHOWN_FILMS = ((95, 0), (96, 0), (97, 1), (97, 0))  # patient, film


def bundled_data(size: int = 64) -> Data:
    """The bundled films, whatever other data this machine has, size x size pixels; in the smoke
    profile their sample."""
    cfg = preset("chest_xray", image_size=size, max_images=0)
    path = str(bundled(cfg.profile).path)
    return load_data(cfg.replace(data_path=path), verbose=False)


def shown_films(size: int = 64) -> Tensor:
    """The originals of the stored pictures of bundled films: (SHOWN, 1, size, size) in [0, 1].

    Drawn again, without JPEG. They were test films of the 400 films that were bundled when the
    sweeps ran; in today's set they are training films."""
    cfg = preset("chest_xray", image_size=size)
    films = [prepare(draw_film(*shown, seed=1), cfg) for shown in SHOWN_FILMS]
    return torch.from_numpy(np.stack(films)).float() / 255


def explained(x_hat: Tensor, x: Tensor) -> float:
    """Share of the images' variance around their mean that x_hat explains: 1 all, 0 as the mean
    alone. Unlike PSNR it is comparable between images of different contrast."""
    left = (x_hat - x).square().mean() / (x - x.mean(0)).square().mean()
    return 1 - left.item()


class Difference(NamedTuple):
    """`metric` of `case` less that of `against`: mean over seeds, and its 95% interval."""

    value: float
    low: float
    high: float
    seeds: int

    @property
    def word(self) -> str:
        """ "higher", "lower", or "no difference" where the interval holds 0."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "no difference"


@dataclass
class Sweep:
    """Results of one sweep: {case: changes}, and a row of numbers for each case and seed."""

    name: str
    about: dict  # command, data, base preset and its changes, versions
    cases: dict[str, dict]
    rows: list[dict]

    @classmethod
    def load(cls, name: str) -> "Sweep":
        """The committed results/<name>.json; FileNotFoundError without them."""
        return cls(**json.loads((RESULTS / f"{name}.json").read_text()))

    def config(self, case: str, seed: int = 0, **changes) -> Config:
        """The Config that trained `case`; KeyError for an unknown case."""
        values = {**self.about["base"], **self.cases[case], "seed": seed, **changes}
        values.pop("select", None)  # says which epoch's weights were kept
        return preset(self.about["preset"], **values)

    def values(self, case: str, metric: str) -> np.ndarray:
        """One number per seed, in their order; NaN for a run that stopped early."""
        rows = sorted((r for r in self.rows if r["case"] == case), key=lambda r: r["seed"])
        return np.array([r.get(metric, math.nan) for r in rows], dtype=float)

    def difference(self, case: str, against: str, metric: str) -> Difference:
        """Paired by seed: the same seed means the same films, batches and first weights."""
        from scipy.stats import t

        pairs = zip(self.values(case, metric), self.values(against, metric), strict=False)
        gap = np.array([a - b for a, b in pairs])  # an unfinished sweep has fewer of one
        n = len(gap)
        mean, error = float(gap.mean()), math.inf
        if n > 1:
            error = float(t.ppf(0.975, n - 1) * gap.std(ddof=1) / n**0.5)
        return Difference(mean, mean - error, mean + error, n)

    def table(self, cases: dict[str, str], metrics: list[str], against: str) -> str:
        """Markdown, one row per case, {case: its title}: the mean over seeds, and in brackets the
        difference from `against` where its interval does not hold 0."""
        lines = [f"| | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
        for case, name in cases.items():
            line = f"| {name}"
            for metric in metrics:
                gap = self.difference(case, against, metric)
                line += f" | {self.values(case, metric).mean():.3g}"
                if gap.word != "no difference":
                    line += f" ({gap.value:+.3g})"
            lines.append(f"{line} |")
        return "\n".join(lines)

    def verdicts(self, case: str) -> list[str]:
        """The verdict of `diagnose` for each seed."""
        return [r.get("verdict", "broke off") for r in self.rows if r["case"] == case]

    def pictures(self, case: str) -> Tensor:
        """(2 * SHOWN, C, H, W) in [0, 1]: seed 0's reconstructions, then its prior samples.

        ValueError for a case that is not among `about["pictured"]`."""
        mode = "L" if self.config(case).in_channels == 1 else "RGB"  # WebP has no grey
        sheet = np.asarray(Image.open(RESULTS / f"{self.name}.webp").convert(mode))
        side = sheet.shape[1] // (2 * SHOWN)
        row = self.about["pictured"].index(case) * side
        strip = torch.from_numpy(sheet[row : row + side].copy()).float() / 255
        strip = strip.reshape(side, 2 * SHOWN, side, -1)  # (H, images, W, C)
        return strip.permute(1, 3, 0, 2)


def plot_gaps(gaps: dict, title: str = "") -> Figure:
    """Effects of changes: {metric: {change: {series: Difference}}}, one panel per metric.

    A dot with its 95% interval for each series; hollow where the interval holds 0.
    """
    changes = list(next(iter(gaps.values())))
    size = 2.6 * len(gaps) + 2.2, 1.1 + 0.45 * len(changes)
    figure, axes = panels(1, len(gaps), size, title)
    for axis, (metric, rows) in zip(axes[0], gaps.items(), strict=True):
        series = list(rows[changes[0]])
        for y, change in enumerate(changes):
            for i, gap in enumerate(rows[change].values()):
                at = y + 0.3 * (i - (len(series) - 1) / 2)
                colour = COLOURS[i]
                fill = "white" if gap.word == "no difference" else colour
                axis.plot([gap.low, gap.high], [at, at], color=colour, lw=1.6)
                axis.plot(gap.value, at, "o", ms=5, color=colour, mfc=fill)
        axis.axvline(0, color="0.4", lw=0.8)
        axis.set_yticks(range(len(changes)), changes if axis is axes[0, 0] else [])
        axis.set_ylim(len(changes) - 0.5, -0.5)
        label(axis, metric)
    dots = [Line2D([], [], color=c, marker="o") for c in COLOURS[: len(series)]]
    figure.legend(dots, series, loc="outside lower center", ncols=len(series), fontsize=8)
    return figure
