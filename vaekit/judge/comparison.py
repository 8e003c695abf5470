"""Two runs side by side: what was set differently, what it did to the numbers and to the images."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from vaekit import plots
from vaekit.config import Config
from vaekit.data import as_float, chunks, pixels_of
from vaekit.files.weights import downloads_allowed
from vaekit.judge import networks
from vaekit.judge.evaluation import heard_by, measure, say_heard
from vaekit.judge.rows import collect, format_table, frechet_row, mean_row, ratio_row
from vaekit.linear import LinearVAE
from vaekit.metrics import LPIPS, appearance
from vaekit.sample import decode_all, encode_all, sample_latents

HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "lpips": False, "l1": False}
DIFFERENCE = "b - a"
SHOWN = 8  # images and samples that are kept for the plot


@dataclass
class Comparison:
    """What `compare` found. `rows` is for a DataFrame, `print` for reading, `plot()` for the eye.

    rows: keys as in `rows.COLUMNS`, subject "a", "b" or "b - a", low and high at 1.96 standard
    errors; changed: {field: (a, b)} of the configs, None where one of the two has none.
    """

    names: tuple[str, str]  # of the two run folders, or what model it is
    changed: dict | None
    rows: list[dict]
    images: dict[str, Tensor]  # rows of pictures, (SHOWN, C, H, W) each
    notes: list[str]

    def __str__(self) -> str:
        lines = [f"a: {self.names[0]}", f"b: {self.names[1]}"]
        if self.changed is None:
            lines.append("  not both have a config")
        elif not self.changed:
            lines.append("  the configs do not differ")
        lines += [f"  {name}: {a!r} -> {b!r}" for name, (a, b) in (self.changed or {}).items()]
        lines += ["", format_table(self.rows), ""]
        gaps = [r for r in self.rows if r["subject"] == DIFFERENCE]
        lines += [finding(r) for r in gaps if r["metric"] in HIGHER_IS_BETTER]
        return "\n".join(lines + self.notes)

    def plot(self, columns: int = SHOWN) -> Figure:
        """The same images in every column; rows: real, a, b, |b - a|, samples of a and of b."""
        gap = plots.difference(self.images["b"], self.images["a"], "|b - a|")
        rows = {name: self.images[name] for name in ("image", "a", "b")} | gap
        for name in "ab":
            rows[f"samples\nof {name}"] = self.images[f"samples of {name}"]
        return plots.show_rows(rows, columns=columns)


class Side(NamedTuple):
    """One of the two: a run, or a model alone."""

    name: str
    model: Any
    cfg: Config | None
    data_hash: str | None  # of what it was trained on; None for a model, which does not say


def side_of(run) -> Side:
    """Of a Run, or of a model in its place."""
    model = getattr(run, "model", run)
    cfg = getattr(run, "cfg", None)
    if model is run:
        return Side(title_of(model), model, cfg, None)
    data_hash = run.info.get("data", {}).get("hash", "")
    return Side(run.path.name, model, cfg, data_hash)


def title_of(model) -> str:
    """What a model without a run folder goes by: "linear VAE, 256 numbers"."""
    kind = "linear VAE" if isinstance(model, LinearVAE) else type(model).__name__
    return f"{kind}, {math.prod(model.latent_shape)} numbers"


def compare(run_a, run_b, test, val=None) -> Comparison:
    """Both runs on the same images: reconstructions from the mean, one by one, and prior samples.

    In a run's place a model may stand, as `vaekit.linear_vae` gives: compare(run, pca, data.test).
    test, val: Split or (N, C, H, W), uint8 or float, of at least two images. PSNR, SSIM, LPIPS
    (where a judge is to be had), L1 and the sharpness ratio of every test image. Difficult images
    are difficult for both, so "b - a" is taken per image and its interval is the narrow, right
    one; overlapping intervals of a and b alone say little. With `val` (images other than test's),
    also Fréchet distances of its reconstructions and of prior samples from `test`, beside their
    floor. ValueError where the two models, or the images, differ in size or channels.
    """
    runs, test = (side_of(run_a), side_of(run_b)), pixels_of(test)
    a, b = (run.model.image_shape for run in runs)
    if not a == b == tuple(test.shape[1:]) or len(test) < 2:
        raise ValueError(
            f"a makes {a} images, b {b}, and test has {len(test)} of {tuple(test.shape[1:])}:"
            " comparing takes at least 2, and one size for all"
        )
    cfgs = [run.cfg for run in runs if run.cfg is not None]
    download = downloads_allowed(cfgs[0].profile) if cfgs else None
    judge = networks.load_judge(next(runs[0].model.parameters()).device, download)
    rows = pair_rows(runs, test, judge)
    if val is not None:
        rows += frechet_rows(runs, test, val, judge)
    rows = say_heard(rows, *(heard_by(run.model, run.cfg) for run in runs))
    images = {"image": as_float(test[:SHOWN].cpu())}
    for name, run in zip("ab", runs, strict=True):
        images[name] = reconstructions(run.model, test[:SHOWN])
        images[f"samples of {name}"] = samples(run.model, len(images[name]))
    names = runs[0].name, runs[1].name
    changed = cfgs[0].differences(cfgs[1]) if len(cfgs) == 2 else None
    return Comparison(names, changed, rows, images, notes_on(*runs))


def reconstructions(model, images) -> Tensor:
    """From the mean: float32 (N, C, H, W) in [0, 1], CPU."""
    mu, _ = encode_all(model, images)
    return decode_all(model, mu)


def samples(model, n: int) -> Tensor:
    """n prior samples; models with latents of one shape decode the same noise."""
    return decode_all(model, sample_latents(model, n, seed=0))


def pair_rows(runs, test: Tensor, judge) -> list[dict]:
    """Three rows a metric: the means of a and of b, and the mean of b - a image by image."""
    a, b = (measure(run.model, test, judge) for run in runs)
    trio = {"a": a, "b": b, DIFFERENCE: {name: b[name] - a[name] for name in a}}
    real = collect(map(appearance, chunks(test)))
    rows = []
    for name in [name for name in HIGHER_IS_BETTER if name in a]:
        network = LPIPS if name == "lpips" else ""
        for subject, found in trio.items():
            rows.append(mean_row(name, subject, found[name], network))
    for subject, found in trio.items():  # a delta method of means suits their difference as well
        pair = found["sharpness"], real["sharpness"]
        rows.append(ratio_row("sharpness ratio", subject, *pair, paired=True))
    return rows


def frechet_rows(runs, test: Tensor, val, judge) -> list[dict]:
    """Fréchet distances from `test` of what each run makes of `val`, and of prior samples.

    Both runs meet the same images in the same cut. A difference of two distances has no interval.
    """
    trunk = judge.trunk if judge is not None else None

    def seen(images):
        return networks.feature_vectors(images, trunk)

    made = {
        "reconstruction": [seen(reconstructions(run.model, val)) for run in runs],
        "prior": [seen(samples(run.model, len(test))) for run in runs],
    }
    sets = seen(test), seen(val), networks.network_name(trunk)
    rows = []
    for name, (of_a, of_b) in made.items():
        a, b = frechet_row("a", of_a, *sets), frechet_row("b", of_b, *sets)
        gap = {"subject": DIFFERENCE, "value": b["value"] - a["value"]}
        gap = a | gap | dict(low=None, high=None, floor=None)
        rows += [r | {"metric": f"frechet, {name}"} for r in (a, b, gap)]
    return rows


def notes_on(run_a: Side, run_b: Side) -> list[str]:
    """Sentences on what the two share, and what they do not."""
    a, b = (tuple(run.model.latent_shape) for run in (run_a, run_b))
    if a == b:
        notes = ["samples of a and b are decoded from the same noise"]
    else:
        notes = [f"latents are {a} in a and {b} in b: their samples cannot share noise"]
    trained_on = [run_a.data_hash, run_b.data_hash]
    if None not in trained_on and trained_on[0] != trained_on[1]:
        notes.append("a and b were trained on different data")
    return notes


def finding(row: dict) -> str:
    """A "b - a" row in words: which run is better, or that the images do not tell them apart."""
    metric, low, high = row["metric"], row["low"], row["high"]
    interval = f"{metric}: b - a = {row['value']:+.3g} ({low:+.3g} to {high:+.3g})"
    if low <= 0 <= high:
        return f"{interval}: {row['n']} images do not tell them apart"
    b_is_better = (low > 0) == HIGHER_IS_BETTER[metric]
    return f"{interval}: {'b' if b_is_better else 'a'} is better"
