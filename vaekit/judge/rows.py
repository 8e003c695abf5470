"""Rows of a results table: a number with its interval, N, network and floor."""

from collections.abc import Callable
from contextlib import suppress
from math import inf, nan

import numpy as np
import torch
from accelerate.utils import memory
from torch import Tensor

from vaekit.data import chunks
from vaekit.judge import distances

COLUMNS = ("metric", "subject", "value", "low", "high", "n", "network", "floor")
MAX_IMAGES = 2000  # of a set, for distances, which need all pairs
SHARES = ("precision", "recall", "coverage")
METRICS = ("frechet", "frechet excess", "kernel", "precision", "recall", "density", "coverage")


def row(metric, subject, value, low=None, high=None, n=0, network="", floor=None) -> dict:
    """One row of the evaluation, keys as in COLUMNS; None where there is no such number."""
    values = metric, subject, value, low, high, n, network, floor
    return dict(zip(COLUMNS, values, strict=True))


def mapped(function: Callable, images, batch_size: int = 64, device="cpu") -> list:
    """`function` applied to float batches of images, a Split or (N, C, H, W), on `device`, in
    order. Batches have `batch_size` images, or as many as fit into memory."""

    def run(size: int) -> list:
        return [function(x) for x in chunks(images, size, device)]

    with suppress(RuntimeError):
        return run(batch_size)
    # Again, with less where memory was short. Not at once: accelerate begins with a collection of
    # garbage, which can take longer than `run`.
    return memory.find_executable_batch_size(run, batch_size)()


def collect(function: Callable, images, batch_size: int = 64, device="cpu") -> dict[str, Tensor]:
    """Per-image results of `mapped`, {name: (B,)} -> {name: (N,) float32 on the CPU}."""

    def numbers(x: Tensor) -> dict[str, list]:
        # not tensors: thousands of small ones between large temporary ones fragment the heap, 25 kB
        # per image at 64 px
        return {name: values.float().tolist() for name, values in function(x).items()}

    parts = mapped(numbers, images, batch_size, device)
    return {name: torch.tensor(sum((part[name] for part in parts), [])) for name in parts[0]}


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
    pcs = f"{network}, {axes.shape[1]} PCs"
    judges = {"frechet": pcs, "frechet excess": pcs, "kernel": network}
    rows = []
    for subject, fake in zip(fakes, cut, strict=True):
        values = measure(real, fake, others)
        errors = distances.jackknife_error(measure, real, fake, others, rng=rng)
        for metric, value, error, floor in zip(METRICS, values, errors, floors, strict=True):
            low, high = _interval(metric, value, 1.96 * error, n)
            judge = judges.get(metric, f"{network}, k={k}")
            rows.append(row(metric, subject, value, low, high, n, judge, floor))
    return sorted(rows, key=lambda found: METRICS.index(found["metric"]))


def _interval(metric: str, value: float, error: float, n: int) -> list[float]:
    from scipy.stats import binomtest

    low, high = value - error, value + error
    if metric in SHARES:  # subsamples of a share of 0 or 1 are equal; other images may differ
        share = binomtest(round(value * n), n).proportion_ci(method="wilson")
        low, high = min(low, share.low), max(high, share.high)
    least = -inf if metric in ("frechet excess", "kernel") else 0
    return np.clip([low, high], least, 1 if metric in SHARES else inf).tolist()


def format_table(rows: list[dict], columns=COLUMNS) -> str:
    """The rows as aligned text that is also a Markdown table; None becomes blank."""
    table = [columns] + [[_text(row[c]) for c in columns] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    table.insert(1, ["-" * w for w in widths])
    lines = []
    for cells in table:
        cells = map(str.ljust, cells, widths)
        lines.append(f"| {' | '.join(cells)} |")
    lines[1] = lines[1].replace(" ", "-")
    return "\n".join(lines)


def _text(value) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}"
    return "" if value is None else str(value)
