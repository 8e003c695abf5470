"""Two runs side by side: differences in config, scores and images."""

import math
from dataclasses import dataclass

from matplotlib.figure import Figure
from torch import Tensor

from vaekit import plots
from vaekit.data import as_float, pixels_of
from vaekit.files.weights import downloads_allowed
from vaekit.judge import networks
from vaekit.judge.evaluation import measure, say_heard
from vaekit.judge.figures import difference
from vaekit.judge.rows import collect, format_table, mean_row, ratio_row
from vaekit.linear import LinearVAE
from vaekit.metrics import LPIPS, appearance
from vaekit.sample import decode_all, encode_all, sample_latents

HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "lpips": False, "l1": False}
DIFFERENCE = "b - a"
SHOWN = 8  # images and samples that are kept for the plot


@dataclass
class Comparison:
    """The result of `compare`: `rows` for a DataFrame, `print` for text, `plot()` for images.

    rows: keys as in `rows.COLUMNS`, subject "a", "b" or "b - a", low and high at 1.96 standard
    errors; changed: {field: (a, b)} of the configs, None where one of the two has no config.
    """

    names: tuple[str, str]  # of the two run folders, or of models
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
        gap = difference(self.images["b"], self.images["a"], "|b - a|")
        rows = {name: self.images[name] for name in ("image", "a", "b")} | gap
        for name in "ab":
            rows[f"samples\nof {name}"] = self.images[f"samples of {name}"]
        return plots.show_rows(rows, columns=columns)


def title_of(run) -> str:
    """The name of a run's folder; for a model without a run: "linear VAE, 256 numbers"."""
    if hasattr(run, "path"):
        return run.path.name
    if isinstance(run, LinearVAE):
        return f"linear VAE, {run.latent_shape[0]} numbers"
    if getattr(run, "quantiser", None) is not None:
        places = math.prod(run.latent_shape[1:])
        return f"{type(run).__name__}, {places} places, {run.quantiser.num_codes} codes"
    return f"{type(run).__name__}, {math.prod(run.latent_shape)} numbers"


def compare(run_a, run_b, test) -> Comparison:
    """Compare two runs on the same images: reconstructions from the mean, and prior samples.

    A run can also be a model, such as `vaekit.linear_vae` returns: compare(run, pca, data.test).
    test: Split or (N, C, H, W), uint8 or float, at least two images. Measures PSNR, SSIM, LPIPS (if
    its weights are there), L1 and sharpness ratio of every test image. Difficult images are
    difficult for both models, so "b - a" is taken per image. Its interval is the one that decides;
    overlapping intervals of a and b alone say little. ValueError where models or images differ in
    size or channels.
    """
    runs, test = (run_a, run_b), pixels_of(test)
    models = [getattr(run, "model", run) for run in runs]
    a, b = (model.image_shape for model in models)
    if not a == b == tuple(test.shape[1:]) or len(test) < 2:
        raise ValueError(
            f"a makes {a} images, b {b}, and test has {len(test)} of {tuple(test.shape[1:])}:"
            " comparing takes at least 2, and one size for all"
        )
    cfgs = [run.cfg for run in runs if hasattr(run, "cfg")]
    download = downloads_allowed(cfgs[0].profile) if cfgs else None
    judge = networks.load_judge(next(models[0].parameters()).device, download)
    rows = pair_rows(models, test, judge)
    rows = say_heard(rows, *models)
    images = {"image": as_float(test[:SHOWN].cpu())}
    for name, model in zip("ab", models, strict=True):
        mu, _ = encode_all(model, test[:SHOWN])
        z = sample_latents(model, len(mu), seed=0)  # latents of one shape share the noise
        images[name] = decode_all(model, mu)
        images[f"samples of {name}"] = decode_all(model, z)
    a, b = (tuple(model.latent_shape) for model in models)
    notes = [f"latents are {a} in a and {b} in b: their samples cannot share noise"]
    if a == b:
        notes = ["samples of a and b are decoded from the same noise"]
    hashes = {run.info.get("data", {}).get("hash") for run in runs if hasattr(run, "info")}
    if len(hashes) == 2:
        notes.append("a and b were trained on different data")
    names = title_of(run_a), title_of(run_b)
    changed = cfgs[0].differences(cfgs[1]) if len(cfgs) == 2 else None
    return Comparison(names, changed, rows, images, notes)


def pair_rows(models, test: Tensor, judge) -> list[dict]:
    """Three rows per metric: the means of a and of b, and the mean of b - a over the images."""
    a, b = (measure(model, test, judge) for model in models)
    trio = {"a": a, "b": b, DIFFERENCE: {name: b[name] - a[name] for name in a}}
    real = collect(appearance, test)["sharpness"]
    rows = []
    for name in [name for name in HIGHER_IS_BETTER if name in a]:
        network = LPIPS if name == "lpips" else ""
        for subject, found in trio.items():
            rows.append(mean_row(name, subject, found[name], network))
    for subject, found in trio.items():  # the delta method suits differences of means too
        ratio = ratio_row("sharpness ratio", subject, found["sharpness"], real, paired=True)
        rows.append(ratio)
    return rows


def finding(row: dict) -> str:
    """A "b - a" row in words: which run is better, or that these images do not decide it."""
    metric, low, high = row["metric"], row["low"], row["high"]
    interval = f"{metric}: b - a = {row['value']:+.3g} ({low:+.3g} to {high:+.3g})"
    if low <= 0 <= high or row["n"] < 5:  # of so few the interval is too narrow
        return f"{interval}: {row['n']} images do not tell them apart"
    b_is_better = (low > 0) == HIGHER_IS_BETTER[metric]
    return f"{interval}: {'b' if b_is_better else 'a'} is better"
