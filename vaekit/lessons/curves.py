"""Plots of a training history, and histograms of grey levels."""

import numpy as np
from matplotlib.figure import Figure

from vaekit.data import chunks, pixels_of
from vaekit.plots import COLOURS, label, panels

TERMS = ("l1", "mse", "ssim", "perceptual", "lpips", "spectral")
LABELS = ("L1", "MSE", "1 - SSIM", "perceptual", "LPIPS", "spectral")


def plot_history(history: list[dict], title: str = "") -> Figure:
    """Loss, reconstruction terms, KL against beta, PSNR and learning rate over epochs.

    history: `run.history`. Where both are drawn, solid lines are validation and dotted lines
    training; phase 1 (reconstruction only) is shaded.
    """
    figure, axes = panels(2, 2, (9, 5), title)
    loss, terms, kl, psnr = axes.flat
    _draw(loss, history, "val_loss", label="validation, final beta")
    _draw(loss, history, "train_loss", label="training, current beta", ls=":")
    for term, name, colour in zip(TERMS, LABELS, COLOURS, strict=False):
        first = history[0].get(f"val_{term}")
        if first:
            shares = [row | {term: row[f"val_{term}"] / first} for row in history]
            _draw(terms, shares, term, label=name, color=colour)
    _draw(kl, history, "val_kl")
    _draw(psnr, history, "val_psnr")
    start = history[0]["epoch"] - 0.5
    phase1 = sum(row["phase"] == 1 for row in history)
    for axis in axes.flat:
        axis.set_xlim(start, start + len(history))
        axis.axvspan(start, start + phase1, color="0.93", zorder=0, lw=0)
    label(loss, "loss", loc="upper right")
    label(terms, "each term of the reconstruction, over its first epoch", loc="upper right")
    label(kl, "KL and beta", "epoch", "KL of an image, nats")
    label(psnr, "PSNR (z sampled) and learning rate", "epoch", "PSNR, dB")
    _draw_right(kl, history, "beta", "beta")
    _draw_right(psnr, history, "lr", "rate as an epoch begins").set_yscale("log")
    return figure


def _draw(axis, history, column, color=COLOURS[0], **style) -> None:
    """One line over epochs, if the history has that column."""
    values = np.array([row.get(column) for row in history], dtype=float)  # None: NaN
    if not np.isnan(values).all():
        axis.plot([row["epoch"] for row in history], values, lw=1.4, color=color, **style)


def _draw_right(axis, history, column, name):
    """Draws on a second scale, on the right, and returns it."""
    right = axis.twinx()
    _draw(right, history, column, color=COLOURS[1], ls="--")
    label(right, y=name)
    right.yaxis.label.set_color(COLOURS[1])
    return right


def plot_histogram(sets: dict, title: str = "Grey levels") -> Figure:
    """Histograms of all pixel values of {name: images}, as densities over [0, 1], overlaid."""
    figure, axes = panels(1, 1, (6, 3), title)
    edges = np.linspace(0, 1, 65)
    for i, (name, images) in enumerate(sets.items()):
        name = f"{name}, N={len(pixels_of(images))}"
        counts = sum(np.histogram(x.detach(), edges)[0] for x in chunks(images))
        density = counts / counts.sum() * 64
        axes[0, 0].stairs(density, edges, color=COLOURS[i % 7], lw=1.4, label=name)
    label(axes[0, 0], x="grey level", y="density", loc="upper left", bbox_to_anchor=(1, 1))
    return figure
