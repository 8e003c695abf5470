"""Figures. Each function returns a matplotlib Figure that is already closed for pyplot.

A notebook shows it once where it ends a cell; elsewhere say `display(figure)`. Films are grey on a
fixed scale, black 0 and white 1, one film pixel a whole number of figure pixels; colours are Okabe
and Ito's, told apart by colour-blind readers.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vaekit.hosting import watched
from vaekit.metrics import Cases, as_float, evaluating, pixels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LABELS = {"l1": "L1", "mse": "MSE", "ssim": "1 - SSIM", "perceptual": "perceptual",
          "lpips": "LPIPS", "spectral": "spectral", "nll": "NLL"}  # fmt: skip


def _subplots(rows: int, columns: int, size: tuple[float, float], title: str = ""):
    """(figure, axes (rows, columns)); closed, so that a notebook does not show it twice."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=size, dpi=100, squeeze=False,
                                layout="constrained")  # fmt: skip
    plt.close(figure)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure, axes


def _label(axis, title: str = "", x: str = "", y: str = "") -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.tick_params(labelsize=7, which="both")


def _grid(rows: int, columns: int, image: Tensor, size: float, title: str = "",
          labels: bool = False, heads: int = 0, top: int = 0):  # fmt: skip
    """(figure, axes (rows, columns)), each axis a whole multiple of the image's pixels.

    `size` inches an image, about; larger images are scaled down to it. Pixels that fall on
    pixels stay as sharp as they are, and the stored PNG stays small. heads: lines over every
    image; top: pixels over all of them.
    """
    import matplotlib.pyplot as plt

    height, width = image.shape[-2:]
    scale = round(100 * size / max(height, width)) or 100 * size / max(height, width)
    h, w, gap, head = round(height * scale), round(width * scale), 4, 14 * heads
    left, top = 32 * labels, max(top, 26 * bool(title))
    total_w = left + columns * (w + gap) - gap
    total_h = top + rows * (h + gap + head) - gap
    figure = plt.figure(figsize=(total_w / 100, total_h / 100), dpi=100)
    plt.close(figure)
    if title:
        figure.text(0.5, 1 - 12 / total_h, title, fontsize=10, ha="center", va="center")
    axes = np.empty((rows, columns), dtype=object)
    for r, c in np.ndindex(rows, columns):
        x, y = left + c * (w + gap), total_h - top - r * (h + gap + head) - head - h
        axes[r, c] = figure.add_axes((x / total_w, y / total_h, w / total_w, h / total_h))
        axes[r, c].set_axis_off()
    return figure, axes


def _show(axis, image: Tensor, head: str = "", label: str = "", **options) -> None:
    """One image (C, H, W) into an axis of `_grid`, with a head over it and a label on its left."""
    picture = as_float(image.detach().cpu()).permute(1, 2, 0).squeeze(-1).clamp(0, 1)
    options = {"cmap": "gray", "vmin": 0, "vmax": 1} | options
    exact = max(picture.shape[:2]) <= axis.get_window_extent().width
    axis.imshow(picture.numpy(), interpolation="nearest" if exact else "antialiased", **options)
    axis.set_title(head, fontsize=7, pad=2)
    axis.text(-0.03, 0.5, label, fontsize=8, rotation=90, ha="right", va="center",
              multialignment="center", transform=axis.transAxes)  # fmt: skip


def show_images(images, titles=None, columns: int = 8, title: str = "", row_labels=None,
                size: float = 1.1) -> Figure:  # fmt: skip
    """A grid of images (N, C, H, W), uint8 or float in [0, 1], grey or RGB, or of a Split.

    titles: one string an image; row_labels: one a row; size: inches an image, about.
    """
    images = pixels_of(images)
    columns = max(1, min(columns, len(images)))
    rows, labels = -(-len(images) // columns), list(row_labels or [])
    heads = max((str(t).count("\n") + 1 for t in titles), default=0) if titles is not None else 0
    figure, axes = _grid(rows, columns, images[0], size, title, bool(labels), heads)
    for axis in axes.flat[len(images) :]:
        axis.remove()
    for i, image in enumerate(images):
        label = labels[i // columns] if i % columns == 0 and i // columns < len(labels) else ""
        _show(axes.flat[i], image, str(titles[i]) if titles is not None else "", label)
    return figure


def show_rows(rows: dict, title: str = "", columns: int = 8, size: float = 1.1) -> Figure:
    """One labelled row an entry, the same columns: show_rows({"real": x, "reconstruction": y}).

    The first `columns` images of each; fewer where an entry has fewer.
    """
    columns = min(columns, *(len(pixels_of(images)) for images in rows.values()))
    grid = torch.cat([as_float(pixels_of(s)[:columns]).detach().cpu() for s in rows.values()])
    return show_images(grid, columns=columns, title=title, row_labels=list(rows), size=size)


def show_cases(model, split, cases: Cases) -> Figure:
    """The best and worst films of `rank_cases`: film, reconstruction, absolute difference.

    The differences share one scale, from 0 to the largest shown, which the row's label gives.
    """
    chosen = [*cases.best, *cases.worst]
    with evaluating(model) as device:
        x = as_float(pixels_of(split)[chosen].to(device))
        x_hat = model.reconstruct(x)
    gap = (x - x_hat).abs().mean(1, keepdim=True)
    top, columns = gap.max().item(), len(chosen)
    figure, axes = _grid(3, columns, x[0], 1.1, labels=True, top=28)
    names = ["best"] * len(cases.best) + ["worst"] * len(cases.worst)
    labels = ("film", "reconstruction", f"|difference|\n0 to {top:.2f}")
    for i, (name, index) in enumerate(zip(names, chosen, strict=True)):
        film, reconstruction, difference = labels if i == 0 else ("", "", "")
        head = f"{name}\n{cases.metric} {cases.values[index]:.3f}"
        _show(axes[0, i], x[i], head, film)
        _show(axes[1, i], x_hat[i], label=reconstruction)
        _show(axes[2, i], gap[i], label=difference, vmax=top)
    return figure


def _curves(axis, history: list[dict], names: dict[str, str], first: int = 0, **style) -> None:
    """One line a column of the history that is there; `names`: column -> label."""
    epochs = [row["epoch"] for row in history]
    for i, (column, label) in enumerate(names.items()):
        values = [np.nan if row.get(column) is None else row[column] for row in history]
        if not np.isnan(values).all():
            colour = COLOURS[(first + i) % len(COLOURS)]
            axis.plot(epochs, values, label=label, **({"color": colour, "lw": 1.4} | style))


def _second_axis(axis, history: list[dict], column: str, label: str):
    twin = axis.twinx()
    _curves(twin, history, {column: label}, first=1, ls="--")
    _label(twin, y=label)
    twin.yaxis.label.set_color(COLOURS[1])
    return twin


def plot_history(history: list[dict], title: str = "") -> Figure:
    """Loss, reconstruction terms, KL against beta, PSNR and learning rate over epochs.

    history: `run.history`. Solid lines are validation where both are drawn, dotted training;
    phase 1 (reconstruction only) is shaded.
    """
    figure, axes = _subplots(2, 2, (8, 4.4), title)
    loss, terms, kl, psnr = axes.flat
    _curves(loss, history, {"val_loss": "validation, final beta"})
    _curves(loss, history, {"train_loss": "training, current beta"}, ls=":")
    for kind, style in (("val", {}), ("train", {"ls": ":"})):
        _curves(terms, history, {f"{kind}_{k}": label if kind == "val" else None
                                 for k, label in LABELS.items()}, **style)  # fmt: skip
    _curves(kl, history, {"val_kl": "KL"})
    _curves(psnr, history, {"val_psnr": "PSNR"})
    _label(loss, "loss")
    _label(terms, "reconstruction terms, unweighted (dotted: training)")
    _label(kl, "KL and beta", "epoch", "KL of a film, nats")
    _label(psnr, "PSNR (z sampled) and learning rate", "epoch", "PSNR, dB")
    _second_axis(kl, history, "beta", "beta")
    _second_axis(psnr, history, "lr", "learning rate").set_yscale("log")
    last = max((row["epoch"] for row in history if row["phase"] == 1), default=None)
    for axis in axes.flat:
        axis.set_xlim(*_span(history))
        if last is not None:
            axis.axvspan(_span(history)[0], last + 0.5, color="0.93", zorder=0, lw=0)
    for axis in (loss, terms):
        if axis.lines:
            axis.legend(fontsize=7, frameon=False, loc="upper right", ncols=2)
    if min((v for line in terms.lines for v in line.get_ydata()), default=0) > 0:
        terms.set_yscale("log")
        terms.set_ylim(
            top=8 * terms.get_ylim()[1]
        )  # room for the legend; terms of very different size; calibrated ones may be negative
    return figure


class LiveHistory:
    """A hook for `fit(on_epoch_end=...)`: `plot_history`, redrawn in place about 20 times a run.

    Only in a notebook that somebody watches (see `hosting.watched`); silent everywhere else.
    """

    def __init__(self):
        self.handle = None

    def __call__(self, run) -> None:
        every = max(1, run.cfg.num_epochs // 20)
        ipython = sys.modules.get("IPython")
        if not ipython or not ipython.get_ipython() or not watched() or len(run.history) % every:
            return
        figure = plot_history(run.history)
        if self.handle is None:
            self.handle = ipython.display.display(figure, display_id=True)
        else:
            self.handle.update(figure)


def _span(history: list[dict]) -> tuple[float, float]:
    return history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5


def plot_histogram(sets: dict, bins: int = 64, title: str = "Grey levels") -> Figure:
    """Histograms of all pixel values of {name: images}, as densities over [0, 1], overlaid."""
    figure, axes = _subplots(1, 1, (4.5, 3), title)
    edges = np.linspace(0, 1, bins + 1)
    for i, (name, images) in enumerate(sets.items()):
        images = pixels_of(images).detach().cpu()
        counts = sum(np.histogram(as_float(part), edges)[0] for part in images.split(256))
        axes[0, 0].stairs(counts / counts.sum() * bins, edges, color=COLOURS[i % len(COLOURS)],
                          lw=1.4, label=f"{name}, N={len(images)}")  # fmt: skip
    _label(axes[0, 0], x="grey level", y="density")
    axes[0, 0].legend(fontsize=7, frameon=False)
    return figure


def _intervals(axis, rows: list[dict]) -> None:
    """A dot a row with its interval, subjects from top to bottom."""
    for y, row in enumerate(rows):
        axis.plot(row["value"], y, "o", color=COLOURS[0], ms=5)
        if row["low"] is not None:
            axis.plot([row["low"], row["high"]], [y, y], color=COLOURS[0], lw=1.4)
    axis.set_yticks(range(len(rows)), [f"{row['subject']}\nN={row['n']}" for row in rows])
    axis.set_ylim(max(len(rows), 1) - 0.5, -0.5)


def plot_rows(rows: list[dict], title: str = "") -> Figure:
    """The evaluation's Fréchet distances with their floors, and its sharpness ratios.

    rows: of `metrics.evaluate`. A tick marks the floor, real films against real films at the
    same N: nothing can be expected below it. The grey band is a sharpness ratio of 0.9 to 1.1.
    """
    distances = [row for row in rows if row["metric"] == "frechet"]
    ratios = [row for row in rows if row["metric"] == "sharpness ratio"]
    height = 1.2 + 0.45 * max(len(distances), len(ratios), 1)
    figure, axes = _subplots(1, 2, (9, height), title)
    left, right = axes[0]
    _intervals(left, distances)
    for y, row in enumerate(distances):
        left.plot([row["floor"]] * 2, [y - 0.3, y + 0.3], color=COLOURS[1], lw=2,
                  label="floor: real against real" if y == 0 else None)  # fmt: skip
    if distances:
        left.legend(fontsize=7, frameon=False)
        left.set_xlim(left=0)
    networks = sorted({row["network"] for row in distances})
    _label(left, "Fréchet distance\n" + "\n".join(networks))
    _intervals(right, ratios)
    right.axvspan(0.9, 1.1, color="0.9", zorder=0, lw=0)
    right.set_xlim(left=0)
    right.axvline(1, color="0.4", lw=1)
    _label(right, "Sharpness ratio to real films\n1 is best, above 1.1 is noise")
    return figure
