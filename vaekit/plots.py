"""Figures. Each function returns a matplotlib Figure that pyplot no longer holds.

A notebook shows it once, if it ends a cell; elsewhere call `display(figure)`. Images are drawn in
grey on a fixed scale, 0 black and 1 white, at a whole number of figure pixels per pixel. Colours
are Okabe and Ito's, which colour-blind readers can tell apart.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from vaekit.data import as_float, pixels_of

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GAP = 4  # figure pixels between images
# figure pixels per line of a title
LINE = 15


def panels(rows: int, columns: int, size: tuple, title: str = ""):
    """(figure of `size` inches, axes (rows, columns)), already closed for pyplot."""
    style = dict(figsize=size, dpi=100, layout="constrained")
    figure, axes = plt.subplots(rows, columns, squeeze=False, **style)
    plt.close(figure)
    figure.suptitle(title, fontsize=10)
    return figure, axes


def label(axis, title: str = "", x: str = "", y: str = "", **legend) -> None:
    """Title and axis labels; a legend where something drawn has a label."""
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=9, which="both")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=9, frameon=False, **legend)


def show_images(
    images, titles=None, columns: int = 8, title: str = "", row_labels=None, size: float = 1.1
) -> Figure:
    """A grid of images (N, C, H, W), uint8 or float in [0, 1], grey or RGB, or of a Split.

    titles: one string per image; row_labels: one per row; size: inches per image, about.
    """
    x = _enlarged(images, size).permute(0, 2, 3, 1)  # (N, h, w, C)
    n, h, w, channels = x.shape
    columns = min(columns, n)
    titles = [str(text) for text in titles or [""] * n]
    lines = [len(text.splitlines()) for text in titles]
    longest = max(len(line) for text in titles for line in text.split("\n"))
    fontsize = min(9, max(7, 1.2 * w / max(longest, 1)))  # smaller where titles would overlap
    heads = [LINE * max(lines[i : i + columns]) for i in range(0, n, columns)]
    tops = np.cumsum(heads) + (h + GAP) * np.arange(len(heads)) + (26 if title else 0)
    left = 32 if row_labels else 0
    height = tops[-1] + h
    width = left + columns * (w + GAP) - GAP
    figure = plt.figure(figsize=(width / 100, height / 100), dpi=100)
    plt.close(figure)
    # the whole figure, in figure pixels
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    canvas = torch.ones(height, width, channels)
    for i, image in enumerate(x):
        top = tops[i // columns]
        start = left + i % columns * (w + GAP)
        canvas[top : top + h, start : start + w] = image
        axis.text(start + w / 2, top - 1, titles[i], fontsize=fontsize, ha="center", va="bottom")
    beside = dict(rotation=90, ha="right", va="center", multialignment="center")
    for top, text in zip(tops, row_labels or [], strict=False):
        axis.text(left - 3, top + h / 2, text, fontsize=9, **beside)
    axis.text(width / 2, 12, title, fontsize=10, ha="center", va="center")
    axis.imshow(canvas.squeeze(-1), "gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    return figure


def _enlarged(images, size: float) -> Tensor:
    """Images of about `size` inches at 100 dpi, float (N, C, h, w), CPU. Every pixel is repeated,
    so edges stay sharp and the stored PNG small. Larger images are scaled down."""
    x = as_float(pixels_of(images)).detach().cpu().clamp(0, 1)
    scale = 100 * size / max(x.shape[-2:])
    times = round(scale)
    if times == 0:
        return F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True)
    return x.repeat_interleave(times, 2).repeat_interleave(times, 3)


def show_rows(
    rows: dict, title: str = "", columns: int = 8, size: float = 1.1, titles=None
) -> Figure:
    """One labelled row per entry: show_rows({"real": x, "reconstruction": y}).

    Shows the first `columns` images of each, or fewer where there are fewer. titles: first row.
    """
    sets = [pixels_of(images) for images in rows.values()]
    columns = min(columns, *map(len, sets))
    x = torch.cat([as_float(images[:columns]).detach().cpu() for images in sets])
    if titles:
        titles = [*titles] + [""] * (len(x) - columns)
    return show_images(x, titles, columns, title, list(rows), size)
