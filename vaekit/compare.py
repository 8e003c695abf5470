"""Two runs side by side: what was set differently, what it did to the numbers and to the films."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vaekit import metrics, plots
from vaekit.features import trunk_name
from vaekit.losses import l1_per_image
from vaekit.runs import Run
from vaekit.sample import decode_batched, encode_all, sample_latents

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "lpips": False, "l1": False}
DIFFERENCE = "b - a"
SHOWN = 8  # films and samples that are kept for the plot
SAME_NOISE = "samples of a and b are decoded from the same noise"


@dataclass
class Comparison:
    """What `compare` found. `rows` is for a DataFrame, `print` for reading, `plot()` for the eye.

    rows: keys as in `metrics.COLUMNS`, subject "a", "b" or "b - a", low and high at 1.96 standard
    errors; changed: {field: (a, b)} of the configs.
    """

    names: tuple[str, str]  # of the two run folders
    changed: dict
    rows: list[dict]
    images: dict[str, Tensor]  # rows of pictures, (SHOWN, C, H, W) each
    notes: list[str]

    def __str__(self) -> str:
        lines = [f"{letter}: {name}" for letter, name in zip("ab", self.names, strict=True)]
        lines += [f"  {k}: {a!r} -> {b!r}" for k, (a, b) in self.changed.items()]
        lines += [] if self.changed else ["  the configs do not differ"]
        findings = [finding(row) for row in self.rows if row["metric"] in HIGHER_IS_BETTER
                    and row["subject"] == DIFFERENCE]  # fmt: skip
        return "\n".join([*lines, "", metrics.format_table(self.rows), "", *findings, *self.notes])

    def plot(self) -> Figure:
        """The same films in every column, one row each: film, a, b, |b - a|, samples of a and b.

        The differences share one scale, from 0 to the largest shown, which the row's label gives.
        """
        pictures = dict(self.images)
        gap = pictures["|b - a|"] = (pictures["b"] - pictures["a"]).abs().mean(1, keepdim=True)
        order = ("film", "a", "b", "|b - a|", "samples of a", "samples of b")
        figure, axes = plots._grid(len(order), len(gap), pictures["film"][0], 1.1, labels=True)
        for line, name in zip(axes, order, strict=True):
            top = max(gap.max().item(), 1e-6) if name == "|b - a|" else 1
            label = name.replace("s of", "s\nof") if top == 1 else f"{name}\n0 to {top:.2g}"
            for axis, image in zip(line, pictures[name], strict=True):
                plots._show(axis, image, label=label if axis is line[0] else "", vmax=top)
        return figure


def compare(run_a: Run, run_b: Run, test, val=None, seed: int = 0) -> Comparison:
    """Both runs on the same films: reconstructions from the mean, film by film, and prior samples.

    test, val: Split or (N, C, H, W), uint8 or float, of at least two films. PSNR, SSIM, LPIPS
    (where a judge is to be had), L1 and the sharpness ratio of every test film. Difficult films
    are difficult for both, so "b - a" is taken per film and its interval is the narrow, right one;
    overlapping intervals of a and b alone say little. With `val` (films other than test's), also
    Fréchet distances of its reconstructions and of prior samples from `test`, beside their floor.
    ValueError where the two models, or the films, differ in size or channels.
    """
    runs, test = (run_a, run_b), metrics.pixels_of(test)
    shapes = [(r.cfg.in_channels, r.cfg.image_size, r.cfg.image_size) for r in runs]
    shapes.append(tuple(test.shape[1:]))
    if len(set(shapes)) > 1 or len(test) < 2:
        a, b, films = ("x".join(map(str, shape)) for shape in shapes)
        raise ValueError(f"a makes {a} images, b {b}, and test has {len(test)} of {films}:"
                         " comparing takes at least 2, and one size for all")  # fmt: skip
    device = next(run_a.model.parameters()).device
    judge = metrics.load_judge(device, download=run_a.cfg.profile != "smoke")
    heard = " and ".join(dict.fromkeys(trunk_name(run.cfg) for run in runs))
    rows = pair_rows(runs, test, judge, f"; trained with {heard}")
    if val is not None:
        rows += distance_rows(runs, test, val, judge, f"; trained with {heard}", seed)
    notes, shown = [SAME_NOISE], test[:SHOWN]
    if run_a.model.latent_shape != run_b.model.latent_shape:
        a, b = (tuple(run.model.latent_shape) for run in runs)
        notes = [f"latents are {a} in a and {b} in b: their samples cannot share noise, each has"
                 f" its own draw from seed {seed}"]  # fmt: skip
    if len({run.info.get("data", {}).get("hash") for run in runs}) > 1:
        notes.append("a and b were trained on different data")
    images = {"film": metrics.as_float(shown.cpu())}
    for letter, run in zip("ab", runs, strict=True):
        images[letter] = reconstructions(run.model, shown)
        images[f"samples of {letter}"] = samples(run.model, len(shown), seed)
    names = (run_a.path.name, run_b.path.name)
    changed = run_a.cfg.differences(run_b.cfg)
    return Comparison(names, changed, rows, images, notes)


def reconstructions(model, images) -> Tensor:
    """From the mean: float32 (N, C, H, W) in [0, 1], CPU."""
    return decode_batched(model, encode_all(model, images)[0])


def samples(model, n: int, seed: int) -> Tensor:
    """n prior samples; models with latents of one shape decode the same noise."""
    return decode_batched(model, sample_latents(model, n, seed=seed))


def measure(model, test: Tensor, judge) -> dict[str, Tensor]:
    """Every per-image metric of the reconstructions from the mean: {name: (N,)}."""
    found = []
    with metrics.evaluating(model) as device:
        for x in metrics.chunks(test, device=device):
            x_hat = model.reconstruct(x)
            own = {"l1": l1_per_image(x_hat, x), "sharpness ratio": metrics.sharpness(x_hat)}
            found.append(metrics.compare_images(x_hat, x, judge) | own)
    return metrics.collect(found)


def pair_rows(runs, test: Tensor, judge, heard: str) -> list[dict]:
    """Three rows a metric: the means of a and of b, and the mean of b - a film by film."""
    a, b = (measure(run.model, test, judge) for run in runs)
    real = metrics.collect({"s": metrics.sharpness(x)} for x in metrics.chunks(test))["s"]
    rows = []
    for name in a:
        network = f"squeezenet, LPIPS v0.1{heard}" if name == "lpips" else ""
        for subject, values in (("a", a[name]), ("b", b[name]), (DIFFERENCE, b[name] - a[name])):
            if name == "sharpness ratio":  # of means; its delta method suits a difference as well
                rows.append(metrics.ratio_row(name, subject, values, real, paired=True))
            else:
                rows.append(metrics.mean_row(name, subject, values, network))
    return rows


def distance_rows(runs, test: Tensor, val, judge, heard: str, seed: int) -> list[dict]:
    """Fréchet distances from `test` of what each run makes of `val`, and of prior samples.

    Both runs meet the same films in the same cut. A difference of two distances has no interval.
    """
    trunk = judge.trunk if judge is not None else None
    network = metrics.network_name(trunk) + heard
    real, others = (metrics.feature_vectors(images, trunk) for images in (test, val))
    makers = {"frechet, reconstruction": lambda model: reconstructions(model, val),
              "frechet, prior": lambda model: samples(model, len(test), seed)}  # fmt: skip
    rows = []
    for name, make in makers.items():
        pair = [metrics.frechet_row(subject, metrics.feature_vectors(make(run.model), trunk), real,
                                    others, network, seed)
                for subject, run in zip("ab", runs, strict=True)]  # fmt: skip
        gap = metrics.row("frechet", DIFFERENCE, pair[1]["value"] - pair[0]["value"],
                          n=pair[0]["n"], network=pair[0]["network"])  # fmt: skip
        rows += [row | {"metric": name} for row in (*pair, gap)]
    return rows


def finding(row: dict) -> str:
    """A "b - a" row in words: which run is better, or that the films do not tell them apart."""
    metric, low, high = row["metric"], row["low"], row["high"]
    interval = f"{metric}: b - a = {row['value']:+.3g} ({low:+.3g} to {high:+.3g})"
    if low <= 0 <= high:
        return f"{interval}: {row['n']} films do not tell them apart"
    return f"{interval}: {'b' if (low > 0) == HIGHER_IS_BETTER[metric] else 'a'} is better"
