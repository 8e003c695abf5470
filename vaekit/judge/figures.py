"""Figures of an evaluation."""

from math import ceil

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from vaekit.data import as_float, pixels_of
from vaekit.judge.evaluation import Cases
from vaekit.plots import COLOURS, label, panels, show_rows

HEADS = {
    "psnr": "PSNR, dB",
    "frechet": "Fréchet distance",
    "frechet excess": "Fréchet distance less its floor (excess)",
    "sharpness ratio": "Sharpness ratio (1 is best, above 1.1 noise)",
}


def show_cases(x_hat, x, cases: Cases, title: str = "") -> Figure:
    """The best and worst images of `rank_cases`: image, reconstruction, absolute difference."""
    chosen = [*cases.best, *cases.worst]
    x_hat, x = (as_float(pixels_of(images)[chosen]) for images in (x_hat, x))
    titles = [f"best\nSSIM {cases.values[i]:.3f}" for i in cases.best]
    titles += [f"worst\nSSIM {cases.values[i]:.3f}" for i in cases.worst]
    rows = {"image": x, "reconstruction": x_hat} | difference(x, x_hat, "|difference|")
    return show_rows(rows, title, len(chosen), titles=titles)


def difference(a: Tensor, b: Tensor, name: str) -> dict[str, Tensor]:
    """A row for `show_rows`: |a - b|, mean over channels, all images on one scale from 0 to the
    largest difference, which the row's label gives."""
    gap = (a - b).abs().mean(1, keepdim=True)
    top = gap.max().clamp(min=1e-6)
    return {f"{name}\n0 to {top:.2g}": (gap / top).expand_as(a)}


def plot_rows(rows: list[dict], title: str = "", metrics=("frechet", "sharpness ratio")) -> Figure:
    """Rows of `evaluate`: one panel per judge and metric, for those of `metrics` that occur.

    A tick marks the score of real images against real images at the same N: the floor of a
    distance, the ceiling of precision and coverage. The grey band is a sharpness ratio of 0.9 to
    1.1. ValueError where no row has one of these metrics.
    """
    groups: dict[tuple, list[dict]] = {}
    for metric in metrics:
        for row in rows:
            if row["metric"] == metric:
                groups.setdefault((metric, row["network"]), []).append(row)
    if not groups:
        raise ValueError(f"no row is of {', '.join(metrics)}")
    columns = min(3, len(groups))
    lines = ceil(len(groups) / columns)
    height = 1.4 + 0.32 * max(map(len, groups.values()))
    figure, axes = panels(lines, columns, (4.5 * columns, lines * height), title)
    for axis in axes.flat[len(groups) :]:
        axis.remove()
    for axis, group in zip(axes.flat, groups.values(), strict=False):
        _draw_group(axis, group)
    return figure


def plot_octaves(rows: list[dict], title: str = "") -> Figure:
    """Power divided by that of real images, octave by octave, from rows of `evaluate`; one line per
    subject.

    The grey band is 0.75 to 1.25: below is blur, above noise or flecks. Bars are the rows'
    intervals. ValueError where no row is an octave.
    """
    rows = [row for row in rows if row["metric"].startswith("power ")]
    if not rows:
        raise ValueError("no row is of an octave of the power spectrum")
    octaves = list(dict.fromkeys(row["metric"] for row in rows))
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    figure, ((axis,),) = panels(1, 1, (6.5, 4.2))
    axis.axhspan(0.75, 1.25, color="0.9", zorder=0, lw=0)
    axis.axhline(1, color="0.4", lw=1)
    for i, subject in enumerate(subjects):
        group = [row for row in rows if row["subject"] == subject]
        aside = 0.06 * (i - (len(subjects) - 1) / 2)  # intervals side by side
        x = [octaves.index(row["metric"]) - aside for row in group]
        values = [row["value"] for row in group]
        style = dict(color=COLOURS[i % len(COLOURS)], label=f"{subject}, N={group[0]['n']}")
        axis.errorbar(x, values, reaches(group), fmt="o-", ms=5, **style)
    axis.set_xticks(range(len(octaves)), [name.removeprefix("power ") for name in octaves])
    axis.invert_xaxis()  # rows begin with the highest octave
    axis.set_ylim(0, max(1.5, axis.get_ylim()[1]))
    title = title or "Power by octave: blur below the band, noise above"
    label(axis, title, "cycles per pixel", "power over that of real images")
    return figure


def reaches(rows: list[dict]) -> np.ndarray:
    """(2, N): how far each row's interval reaches below and above its value; NaN without one."""
    low, value, high = np.array([[r["low"], r["value"], r["high"]] for r in rows], float).T
    return np.stack([value - low, high - value])


def _draw_group(axis, rows: list[dict]) -> None:
    """One dot per row with its interval and floor, subjects from top to bottom."""
    metric, network = rows[0]["metric"], rows[0]["network"]
    places = np.arange(len(rows))
    values = [row["value"] for row in rows]
    axis.errorbar(values, places, xerr=reaches(rows), fmt="o", color=COLOURS[0], ms=5)
    floors = [row["floor"] for row in rows if row["floor"] is not None]
    if floors:
        axis.vlines(floors, places - 0.3, places + 0.3, color=COLOURS[1], lw=2)
    axis.set_yticks(places, [row["subject"] for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    if metric == "sharpness ratio":
        axis.axvspan(0.9, 1.1, color="0.9", zorder=0, lw=0)
        axis.axvline(1, color="0.4", lw=1)
    if metric == "sharpness ratio" or floors:
        axis.set_xlim(left=min(0, axis.get_xlim()[0]))
    axis.locator_params(axis="x", nbins=5)
    counts = " and ".join(str(n) for n in sorted({row["n"] for row in rows}))
    title = f"{HEADS.get(metric, metric)}, N = {counts}\n{network}".replace("; ", "\n").strip()
    label(axis, title, "orange ticks: real against real" if floors else "")
