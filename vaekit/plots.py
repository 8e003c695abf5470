"""Figures. Each function returns a matplotlib Figure that is already closed for pyplot.

A notebook shows it once where it ends a cell; elsewhere say `display(figure)`. Films are grey on a
fixed scale, black 0 and white 1, one film pixel a whole number of figure pixels; colours are Okabe
and Ito's, told apart by colour-blind readers.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from vaekit.data import as_float, pixels_of

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LABELS = {"l1": "L1", "mse": "MSE", "ssim": "1 - SSIM", "perceptual": "perceptual",
          "lpips": "LPIPS", "spectral": "spectral", "nll": "NLL"}  # fmt: skip


def panels(rows: int, columns: int, size: tuple[float, float], title: str = ""):
    """(figure, axes (rows, columns)); closed, so that a notebook does not show it twice."""
    figure, axes = plt.subplots(rows, columns, figsize=size, dpi=100, squeeze=False,
                                layout="constrained")  # fmt: skip
    plt.close(figure)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure, axes


def label(axis, title: str = "", x: str = "", y: str = "", **legend) -> None:
    """Small type; a legend where something drawn has a label."""
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.tick_params(labelsize=7, which="both")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, frameon=False, **legend)


def _enlarged(images, size: float) -> Tensor:
    """Images of about `size` inches at 100 dpi, float (N, C, h, w), CPU: every pixel repeated, so
    that it stays as sharp as it is and the stored PNG small; larger images are scaled down."""
    x = as_float(pixels_of(images)).detach().cpu().clamp(0, 1)
    scale = 100 * size / max(x.shape[-2:])
    if times := round(scale):
        return x.repeat_interleave(times, 2).repeat_interleave(times, 3)
    return F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True)


def show_images(images, titles=None, columns: int = 8, title: str = "", row_labels=None,
                size: float = 1.1) -> Figure:  # fmt: skip
    """A grid of images (N, C, H, W), uint8 or float in [0, 1], grey or RGB, or of a Split.

    titles: one string an image; row_labels: one a row; size: inches an image, about.
    """
    x = _enlarged(images, size)
    (n, channels, h, w), gap, left = x.shape, 4, 32 * bool(row_labels)
    columns = max(1, min(columns, n))
    rows = [list(map(str, titles or [""] * n))[i : i + columns] for i in range(0, n, columns)]
    heads = [max(14 * (text.count("\n") + bool(text)) for text in row) for row in rows]
    tops = 26 * bool(title) + np.cumsum(heads) + (h + gap) * np.arange(len(rows))
    height, width = tops[-1] + h, left + columns * (w + gap) - gap
    canvas = torch.ones(height, width, channels)
    figure = plt.figure(figsize=(width / 100, height / 100), dpi=100)
    plt.close(figure)
    axis = figure.add_axes((0, 0, 1, 1))  # its units are pixels
    for i, image in enumerate(x):
        top, at = tops[i // columns], left + i % columns * (w + gap)
        canvas[top : top + h, at : at + w] = image.permute(1, 2, 0)
        axis.text(at + w / 2, top - 1, rows[i // columns][i % columns], fontsize=7, ha="center",
                  va="bottom")  # fmt: skip
    for top, text in zip(tops, row_labels or [], strict=False):
        axis.text(left - 3, top + h / 2, text, fontsize=8, rotation=90, ha="right", va="center",
                  multialignment="center")  # fmt: skip
    axis.text(width / 2, 12, title, fontsize=10, ha="center", va="center")
    axis.imshow(canvas.squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest",
                extent=(0, width, height, 0))  # fmt: skip
    axis.set_axis_off()
    return figure


def show_rows(rows: dict, title: str = "", columns: int = 8, size: float = 1.1,
              titles=None) -> Figure:  # fmt: skip
    """One labelled row an entry, the same columns: show_rows({"real": x, "reconstruction": y}).

    The first `columns` images of each; fewer where an entry has fewer. titles: of the first row.
    """
    columns = min(columns, *(len(pixels_of(images)) for images in rows.values()))
    parts = [as_float(pixels_of(s)[:columns]).detach().cpu() for s in rows.values()]
    titles = titles and [*titles, *[""] * (columns * (len(rows) - 1))]
    return show_images(torch.cat(parts), titles, columns, title, list(rows), size)


def difference(a: Tensor, b: Tensor, name: str) -> dict[str, Tensor]:
    """A row for `show_rows`: |a - b|, mean over channels, on one scale for all images, from 0 to
    the largest difference, which the row's label gives."""
    gap = (a - b).abs().mean(1, keepdim=True)
    top = gap.max().clamp(min=1e-6)
    return {f"{name}\n0 to {top:.2g}": (gap / top).expand_as(a)}


def _curves(axis, history: list[dict], names: dict[str, str | None], **style) -> None:
    """One line a column of the history that is there; `names`: column -> label."""
    epochs = [row["epoch"] for row in history]
    for (column, name), colour in zip(names.items(), COLOURS, strict=False):
        values = [np.nan if row.get(column) is None else row[column] for row in history]
        if not np.isnan(values).all():
            axis.plot(epochs, values, label=name, **({"color": colour, "lw": 1.4} | style))


def _twin(axis, history: list[dict], column: str, name: str):
    """A second scale, on the right."""
    twin = axis.twinx()
    _curves(twin, history, {column: None}, color=COLOURS[1], ls="--")
    label(twin, y=name)
    twin.yaxis.label.set_color(COLOURS[1])
    return twin


def plot_history(history: list[dict], title: str = "") -> Figure:
    """Loss, reconstruction terms, KL against beta, PSNR and learning rate over epochs.

    history: `run.history`. Solid lines are validation where both are drawn, dotted training;
    phase 1 (reconstruction only) is shaded.
    """
    figure, axes = panels(2, 2, (8, 4.4), title)
    loss, terms, kl, psnr = axes.flat
    _curves(loss, history, {"val_loss": "validation, final beta"})
    _curves(loss, history, {"train_loss": "training, current beta"}, ls=":")
    _curves(terms, history, {f"val_{k}": name for k, name in LABELS.items()})
    _curves(terms, history, {f"train_{k}": None for k in LABELS}, ls=":")
    _curves(kl, history, {"val_kl": None})
    _curves(psnr, history, {"val_psnr": None})
    first, last = history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5
    copying = sum(row["phase"] == 1 for row in history)
    for axis in axes.flat:
        axis.set_xlim(first, last)
        axis.axvspan(first, first + copying, color="0.93", zorder=0, lw=0)
    label(loss, "loss", loc="upper right", ncols=2)
    label(terms, "reconstruction terms, unweighted (dotted: training)", loc="upper right", ncols=2)
    label(kl, "KL and beta", "epoch", "KL of an image, nats")
    label(psnr, "PSNR (z sampled) and learning rate", "epoch", "PSNR, dB")
    _twin(kl, history, "beta", "beta")
    _twin(psnr, history, "lr", "learning rate").set_yscale("log")
    if min((v for line in terms.lines for v in line.get_ydata()), default=0) > 0:
        terms.set_yscale("log")  # of very different size; calibrated ones may be negative
        terms.set_ylim(top=8 * terms.get_ylim()[1])  # room for the legend
    return figure


def plot_histogram(sets: dict, bins: int = 64, title: str = "Grey levels") -> Figure:
    """Histograms of all pixel values of {name: images}, as densities over [0, 1], overlaid."""
    figure, axes = panels(1, 1, (4.5, 3), title)
    edges = np.linspace(0, 1, bins + 1)
    for i, (name, images) in enumerate(sets.items()):
        images = pixels_of(images).detach().cpu()
        counts = sum(np.histogram(as_float(part), edges)[0] for part in images.split(256))
        axes[0, 0].stairs(counts / counts.sum() * bins, edges, color=COLOURS[i % len(COLOURS)],
                          lw=1.4, label=f"{name}, N={len(images)}")  # fmt: skip
    label(axes[0, 0], x="grey level", y="density")
    return figure
