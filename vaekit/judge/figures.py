"""Figures of an evaluation."""

from fractions import Fraction
from math import ceil

from matplotlib.figure import Figure

from vaekit.data import as_float, pixels_of
from vaekit.judge.evaluation import Cases
from vaekit.model import evaluating
from vaekit.plots import COLOURS, difference, label, panels, show_rows

HEADS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "frechet": "Fréchet distance",
    "sharpness ratio": "Sharpness ratio to real images\n1 is best, above 1.1 is noise",
    "fid": "FID",
    "kid": "KID",
}


def show_cases(model, split, cases: Cases) -> Figure:
    """The best and worst images of `rank_cases`: image, reconstruction, absolute difference."""
    chosen = [*cases.best, *cases.worst]
    with evaluating(model) as device:
        x = as_float(pixels_of(split)[chosen].to(device))
        x_hat = model.reconstruct(x)
    titles = [f"best\n{cases.metric} {cases.values[i]:.3f}" for i in cases.best]
    titles += [f"worst\n{cases.metric} {cases.values[i]:.3f}" for i in cases.worst]
    rows = {"image": x, "reconstruction": x_hat} | difference(x, x_hat, "|difference|")
    return show_rows(rows, columns=len(chosen), titles=titles)


def plot_rows(rows: list[dict], title: str = "", metrics=("frechet", "sharpness ratio")) -> Figure:
    """Rows of `evaluate`: a panel for each of `metrics`, of any that are there, and judge.

    A tick marks what real images score against real images at the same N: the floor of a distance,
    the ceiling of precision and coverage.
    The grey band is a sharpness ratio of 0.9 to 1.1. ValueError where no row is of these metrics.
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
    height = 1.2 + 0.45 * max(map(len, groups.values()))
    figure, axes = panels(lines, columns, (4.5 * columns, lines * height), title)
    for axis in axes.flat[len(groups) :]:
        axis.remove()
    for axis, group in zip(axes.flat, groups.values(), strict=False):
        _draw_group(axis, group)
    return figure


def plot_octaves(rows: list[dict], title: str = "") -> Figure:
    """Power over that of real images, octave by octave, of rows of `evaluate`: a line a subject.

    The grey band is 0.75 to 1.25: below is blur, above noise or flecks. Bars are the rows'
    intervals. ValueError where no row is of an octave.
    """
    subjects: dict[str, list] = {}
    ends = set()
    for row in rows:
        if row["metric"].startswith("power "):
            low, high = map(Fraction, row["metric"].removeprefix("power ").split("-"))
            ends |= {low, high}
            subjects.setdefault(row["subject"], []).append((float(low * high) ** 0.5, row))
    if not subjects:
        raise ValueError("no row is of an octave of the power spectrum")
    figure, ((axis,),) = panels(1, 1, (6.5, 4.2))
    axis.set_xscale("log", base=2)
    axis.axhspan(0.75, 1.25, color="0.9", zorder=0, lw=0)
    axis.axhline(1, color="0.4", lw=1)
    for i, (subject, points) in enumerate(subjects.items()):
        colour = COLOURS[i % len(COLOURS)]
        aside = 2 ** (0.06 * (i - (len(subjects) - 1) / 2))  # intervals side by side
        x = [middle * aside for middle, _ in points]
        name = f"{subject}, N={points[0][1]['n']}"
        axis.plot(x, [row["value"] for _, row in points], "o-", color=colour, ms=5, label=name)
        for at, (_, row) in zip(x, points, strict=True):
            if row["low"] is not None:
                axis.plot([at, at], [row["low"], row["high"]], color=colour, lw=1.4)
    axis.set_xticks([float(end) for end in ends], [str(end) for end in ends])
    axis.minorticks_off()
    axis.set_xlim(float(min(ends)), float(max(ends)))
    axis.set_ylim(0, max(1.5, axis.get_ylim()[1]))
    axis.tick_params(labelsize=9)
    axis.set_xlabel("cycles per pixel", fontsize=10)
    axis.set_ylabel("power over that of real images", fontsize=10)
    axis.set_title(title or "Power by octave: less than 1 is blur, more is noise", fontsize=10)
    axis.legend(fontsize=9, frameon=False)
    return figure


def _draw_group(axis, rows: list[dict]) -> None:
    """A dot a row with its interval and its floor, subjects from top to bottom."""
    metric, network = rows[0]["metric"], rows[0]["network"]
    for y, row in enumerate(rows):
        axis.plot(row["value"], y, "o", color=COLOURS[0], ms=5)
        if row["low"] is not None:
            axis.plot([row["low"], row["high"]], [y, y], color=COLOURS[0], lw=1.4)
        if row["floor"] is not None:
            name = "real against real" if y == 0 else None
            ends = [y - 0.3, y + 0.3]
            axis.plot([row["floor"]] * 2, ends, color=COLOURS[1], lw=2, label=name)
    axis.set_yticks(range(len(rows)), [f"{row['subject']}\nN={row['n']}" for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    if metric == "sharpness ratio":
        axis.axvspan(0.9, 1.1, color="0.9", zorder=0, lw=0)
        axis.axvline(1, color="0.4", lw=1)
    if metric == "sharpness ratio" or rows[0]["floor"] is not None:
        axis.set_xlim(left=min(0, axis.get_xlim()[0]))
    judge = network.replace("; ", "\n")
    label(axis, f"{HEADS.get(metric, metric)}\n{judge}".strip())
