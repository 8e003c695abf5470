"""Rows of a table: a number, its interval, its N, its network, its floor."""

from typing import Any

import numpy as np
from torch import Tensor

from vaekit.judge import distances
from vaekit.judge.distances import gaussian_frechet, principal_axes

MAX_IMAGES = 2000  # of a set, for its distances: they need every pair
COLUMNS = ("metric", "subject", "value", "low", "high", "n", "network", "floor")


def row(metric: str, subject: str, value: float, low=None, high=None, n: int = 0,
        network: str = "", floor=None) -> dict[str, Any]:  # fmt: skip
    """One row of the evaluation, keys as in COLUMNS; None where there is no such number."""
    return dict(zip(COLUMNS, (metric, subject, value, low, high, n, network, floor), strict=True))


def mean_row(metric: str, subject: str, values: Tensor, network: str = "") -> dict:
    """The mean of values (N,), low and high at 1.96 standard errors either side, None for N = 1."""
    mean, n = values.double().mean().item(), len(values)
    if n < 2:
        return row(metric, subject, mean, n=n, network=network)
    error = 1.96 * values.double().std().item() / n**0.5
    return row(metric, subject, mean, mean - error, mean + error, n, network)


def ratio_row(metric: str, subject: str, top: Tensor, bottom: Tensor, paired: bool) -> dict:
    """mean(top) / mean(bottom), low and high at 1.96 standard errors (delta method), or None.

    paired: both are of the same films, whose common spread then cancels.
    """
    a, b = top.double(), bottom.double()
    ratio = (a.mean() / b.mean()).item()
    if min(len(a), len(b)) < 2:
        return row(metric, subject, ratio, n=len(a))
    spread = (a - ratio * b).var() / len(a) if paired else (
        a.var() / len(a) + ratio**2 * b.var() / len(b))  # fmt: skip
    error = 1.96 * (spread.sqrt() / b.mean()).item()
    return row(metric, subject, ratio, ratio - error, ratio + error, len(a))


def distance_rows(fakes: dict[str, np.ndarray], real: np.ndarray, others: np.ndarray,
                  network: str, seed: int = 0) -> list[dict]:  # fmt: skip
    """Distances of each {subject: (N, D)} from `real`; the floor: real films `others` from `real`.

    All sets are cut at random to the smallest (and to 2,000), so that every value and floor has
    the same N, directions and bias. Metrics: frechet, frechet excess (its value less its floor),
    kernel, precision, recall, density, coverage. low, high: 1.96 standard errors (jackknife)
    either side, within what the metric can be; shares at least Wilson's interval (1927) of that
    many images. ValueError below 4 images.
    """
    from scipy.stats import binomtest

    sets, rng = [real, others, *fakes.values()], np.random.default_rng(seed)
    n = min(MAX_IMAGES, *map(len, sets))
    real, others, *cut = (s[rng.permutation(len(s))[:n]] for s in sets)
    axes, k = principal_axes(real, n), min(distances.NEAREST, n // 4)

    def measure(real, fake, others):
        value, floor = (gaussian_frechet(real @ axes, s @ axes) for s in (fake, others))
        return [value, value - floor, distances.kernel_distance(real, fake),
                *distances.precision_recall(real, fake, k)]  # fmt: skip

    pcs, near, inf = f"{network}, {axes.shape[1]} PCs", f"{network}, k={k}", np.inf
    names = [("frechet", pcs, 0, inf), ("frechet excess", pcs, -inf, inf),
             ("kernel", network, -inf, inf), ("precision", near, 0, 1), ("recall", near, 0, 1),
             ("density", near, 0, inf), ("coverage", near, 0, 1)]  # fmt: skip
    rows, floors = [], measure(real, others, others)
    for subject, fake in zip(fakes, cut, strict=True):
        values = measure(real, fake, others)
        errors = 1.96 * distances.jackknife_error(measure, real, fake, others, rng=rng)
        for (name, judge, least, most), v, e, floor in zip(
                names, values, errors, floors, strict=True):  # fmt: skip
            ends = [v - e, v + e]
            if most == 1:  # subsamples of a share of 0 or 1 do not differ, other films may
                share = binomtest(round(v * n), n).proportion_ci(method="wilson")
                ends = [min(ends[0], share.low), max(ends[1], share.high)]
            ends = np.clip(ends, least, most).tolist()
            rows.append(row(name, subject, v, *ends, n, judge, floor))
    return [r for i in range(len(names)) for r in rows[i :: len(names)]]  # metric by metric


def frechet_row(subject: str, features: np.ndarray, real: np.ndarray, others: np.ndarray,
                network: str, seed: int = 0) -> dict:  # fmt: skip
    """The Fréchet row of `distance_rows`, for one set of `features`."""
    return distance_rows({subject: features}, real, others, network, seed)[0]


def format_table(rows: list[dict]) -> str:
    """The rows as aligned text that is also a Markdown table; None is left blank."""

    def text(value) -> str:
        if isinstance(value, float):
            return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}"
        return "" if value is None else str(value)

    table = [list(COLUMNS), *([text(r[c]) for c in COLUMNS] for r in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
             for line in table]  # fmt: skip
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
