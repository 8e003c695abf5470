"""Rows of a table: a number, its interval, its N, its network, its floor."""

from collections.abc import Callable, Iterable, Iterator
from math import inf, nan

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from vaekit.data import as_float
from vaekit.judge import distances

COLUMNS = ("metric", "subject", "value", "low", "high", "n", "network", "floor")
MAX_IMAGES = 2000  # of a set, for its distances: they need every pair
SHARES = ("precision", "recall", "coverage")
METRICS = ("frechet", "frechet excess", "kernel", "precision", "recall", "density", "coverage")


def row(metric, subject, value, low=None, high=None, n=0, network="", floor=None) -> dict:
    """One row of the evaluation, keys as in COLUMNS; None where there is no such number."""
    what = dict(metric=metric, subject=subject, value=value, low=low, high=high)
    return what | dict(n=n, network=network, floor=floor)


def mapped(function: Callable, images: Tensor, batch_size: int, device="cpu") -> Iterator:
    """`function` of float batches of images (N, C, H, W) on `device`, in order: of `batch_size`
    or, from where memory runs out, of half as many, and so on."""
    start = 0
    while start < len(images):
        x = as_float(images[start : start + batch_size].to(device))
        try:
            yield function(x)
            start += len(x)
            continue
        except RuntimeError as error:
            if len(x) < 2 or not should_reduce_batch_size(error):
                raise
            batch_size = len(x) // 2
        clear_device_cache(garbage_collection=True)  # without the error, which holds what failed


def collect(results: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Per-image results of many batches -> {name: (N,) float32 on the CPU}."""
    found: dict[str, list] = {}
    for result in results:
        for name, values in result.items():
            # numbers, not tensors: thousands of small tensors between large ones that come and go
            # tear the heap to pieces, 25 kB an image at 64 px
            found.setdefault(name, []).extend(values.float().tolist())
    return {name: torch.tensor(values) for name, values in found.items()}


def mean_row(metric: str, subject: str, values: Tensor, network: str = "") -> dict:
    """The mean of values (N,), low and high at 1.96 standard errors either side, None for N = 1."""
    values, n = values.double(), len(values)
    mean = values.mean().item()
    if n < 2:
        return row(metric, subject, mean, n=n, network=network)
    error = 1.96 * values.std().item() / n**0.5
    return row(metric, subject, mean, mean - error, mean + error, n, network)


def ratio_row(metric: str, subject: str, top: Tensor, bottom: Tensor, paired: bool) -> dict:
    """mean(top) / mean(bottom), low and high at 1.96 standard errors (delta method), or None.

    paired: both are of the same images, whose common spread then cancels.
    """
    a, b = top.double(), bottom.double()
    ratio = (a.mean() / b.mean()).item()
    if min(len(a), len(b)) < 2:
        return row(metric, subject, ratio, n=len(a))
    if paired:
        variance = (a - ratio * b).var() / len(a)
    else:
        variance = a.var() / len(a) + ratio**2 * b.var() / len(b)
    error = 1.96 * (variance.sqrt() / b.mean()).item()
    return row(metric, subject, ratio, ratio - error, ratio + error, len(a))


def distance_rows(
    fakes: dict, real: np.ndarray, others: np.ndarray, network: str, seed: int = 0
) -> list[dict]:
    """Distances of each {subject: (N, D)} from `real`; the floor: real images `others` from `real`.

    All sets are cut at random to the smallest (and to 2,000), so that every value and floor has
    the same N, directions and bias. Rows: see METRICS, the excess being a value less its floor.
    low, high: 1.96 standard errors (jackknife) either side, within what the metric can be; shares
    at least Wilson's interval (1927) of that many images. Below 4 images all is NaN, and a line
    says so.
    """
    rng = np.random.default_rng(seed)
    sets = [real, others, *fakes.values()]
    n = min(MAX_IMAGES, *map(len, sets))
    if n < distances.LEAST:
        print(f"distances take {distances.LEAST} images of each set: there are {n}")
        pairs = [(metric, subject) for metric in METRICS for subject in fakes]
        return [row(*pair, nan, n=n, network=network, floor=nan) for pair in pairs]
    real, others, *cut = (s[rng.permutation(len(s))[:n]] for s in sets)
    axes = distances.principal_axes(real, n)
    k = min(distances.NEAREST, n // 4)

    def measure(real, fake, others) -> list[float]:  # as METRICS
        a, b, c = real @ axes, fake @ axes, others @ axes
        frechet = distances.gaussian_frechet(a, b)
        excess = frechet - distances.gaussian_frechet(a, c)
        kernel = distances.kernel_distance(real, fake)
        return [frechet, excess, kernel, *distances.precision_recall(real, fake, k)]

    floors = measure(real, others, others)
    values = [measure(real, fake, others) for fake in cut]
    errors = [distances.jackknife_error(measure, real, fake, others, rng=rng) for fake in cut]
    pcs = f"{network}, {axes.shape[1]} PCs"
    judges = {"frechet": pcs, "frechet excess": pcs, "kernel": network}
    rows = []
    for i, metric in enumerate(METRICS):
        judge = judges.get(metric, f"{network}, k={k}")
        for subject, value, error in zip(fakes, values, errors, strict=True):
            low, high = _interval(metric, value[i], 1.96 * error[i], n)
            rows.append(row(metric, subject, value[i], low, high, n, judge, floors[i]))
    return rows


def _interval(metric: str, value: float, error: float, n: int) -> list[float]:
    from scipy.stats import binomtest

    low, high = value - error, value + error
    if metric in SHARES:  # subsamples of a share of 0 or 1 do not differ, other images may
        share = binomtest(round(value * n), n).proportion_ci(method="wilson")
        low, high = min(low, share.low), max(high, share.high)
    least = -inf if metric in ("frechet excess", "kernel") else 0
    most = 1 if metric in SHARES else inf
    return np.clip([low, high], least, most).tolist()


def frechet_row(subject: str, features, real, others, network: str, seed: int = 0) -> dict:
    """The Fréchet row of `distance_rows`, for one set of `features`."""
    return distance_rows({subject: features}, real, others, network, seed)[0]


def format_table(rows: list[dict]) -> str:
    """The rows as aligned text that is also a Markdown table; None is left blank."""
    table = [list(COLUMNS)] + [[_text(row[c]) for c in COLUMNS] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("| " + " | ".join(padded) + " |")
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _text(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}"
    return str(value)
