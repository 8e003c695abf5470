"""Two runs side by side: what was set differently, what it did to the numbers and to the films."""

from dataclasses import dataclass

from matplotlib.figure import Figure
from torch import Tensor

from vaekit import metrics, plots
from vaekit.data import as_float, chunks, pixels_of
from vaekit.judge import networks
from vaekit.judge.evaluation import measure, say_heard
from vaekit.judge.rows import format_table, frechet_row, mean_row, ratio_row
from vaekit.keep.run import Run
from vaekit.sample import decode_all, encode_all, sample_latents

HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "lpips": False, "l1": False}
DIFFERENCE = "b - a"
SHOWN = 8  # films and samples that are kept for the plot


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
        return "\n".join([*lines, "", format_table(self.rows), "", *findings, *self.notes])

    def plot(self, columns: int = SHOWN) -> Figure:
        """The same images in every column; rows: real, a, b, |b - a|, samples of a and of b."""
        image, a, from_a, b, from_b = self.images.values()
        gap = plots.difference(b, a, "|b - a|")
        return plots.show_rows({"image": image, "a": a, "b": b, **gap, "samples\nof a": from_a,
                                "samples\nof b": from_b}, columns=columns)  # fmt: skip


def compare(run_a: Run, run_b: Run, test, val=None, seed: int = 0) -> Comparison:
    """Both runs on the same films: reconstructions from the mean, film by film, and prior samples.

    test, val: Split or (N, C, H, W), uint8 or float, of at least two films. PSNR, SSIM, LPIPS
    (where a judge is to be had), L1 and the sharpness ratio of every test film. Difficult films
    are difficult for both, so "b - a" is taken per film and its interval is the narrow, right one;
    overlapping intervals of a and b alone say little. With `val` (films other than test's), also
    Fréchet distances of its reconstructions and of prior samples from `test`, beside their floor.
    ValueError where the two models, or the films, differ in size or channels.
    """
    runs, test = (run_a, run_b), pixels_of(test)
    shapes = [(r.cfg.in_channels, r.cfg.image_size, r.cfg.image_size) for r in runs]
    shapes.append(tuple(test.shape[1:]))
    if len(set(shapes)) > 1 or len(test) < 2:
        a, b, films = ("x".join(map(str, shape)) for shape in shapes)
        raise ValueError(f"a makes {a} images, b {b}, and test has {len(test)} of {films}:"
                         " comparing takes at least 2, and one size for all")  # fmt: skip
    device = next(run_a.model.parameters()).device
    judge = networks.load_judge(device, download=run_a.cfg.profile != "smoke")
    rows = pair_rows(runs, test, judge)
    rows += distance_rows(runs, test, val, judge, seed) if val is not None else []
    images = {"image": as_float(test[:SHOWN].cpu())}
    for name, run in zip("ab", runs, strict=True):
        images[name] = reconstructions(run.model, test[:SHOWN])
        images[f"samples of {name}"] = samples(run.model, len(images["image"]), seed)
    names, changed = (run_a.path.name, run_b.path.name), run_a.cfg.differences(run_b.cfg)
    rows = say_heard(rows, run_a.cfg, run_b.cfg)
    return Comparison(names, changed, rows, images, notes_on(run_a, run_b, seed))


def notes_on(run_a: Run, run_b: Run, seed: int) -> list[str]:
    """Sentences on what the two share, and what they do not."""
    notes = ["samples of a and b are decoded from the same noise"]
    a, b = (tuple(run.model.latent_shape) for run in (run_a, run_b))
    if a != b:
        notes = [f"latents are {a} in a and {b} in b: their samples cannot share noise, each has"
                 f" its own draw from seed {seed}"]  # fmt: skip
    if run_a.info.get("data", {}).get("hash") != run_b.info.get("data", {}).get("hash"):
        notes.append("a and b were trained on different data")
    return notes


def reconstructions(model, images) -> Tensor:
    """From the mean: float32 (N, C, H, W) in [0, 1], CPU."""
    return decode_all(model, encode_all(model, images)[0])


def samples(model, n: int, seed: int) -> Tensor:
    """n prior samples; models with latents of one shape decode the same noise."""
    return decode_all(model, sample_latents(model, n, seed=seed))


def pair_rows(runs, test: Tensor, judge) -> list[dict]:
    """Three rows a metric: the means of a and of b, and the mean of b - a film by film."""
    a, b = (measure(run.model, test, judge) for run in runs)
    real = metrics.collect(map(metrics.appearance, chunks(test)))["sharpness"]
    rows = []
    for name in (name for name in (*HIGHER_IS_BETTER, "sharpness") if name in a):
        network = metrics.LPIPS if name == "lpips" else ""
        for subject, values in (("a", a[name]), ("b", b[name]), (DIFFERENCE, b[name] - a[name])):
            if name == "sharpness":  # of means; its delta method suits a difference as well
                rows.append(ratio_row("sharpness ratio", subject, values, real, True))
            else:
                rows.append(mean_row(name, subject, values, network))
    return rows


def distance_rows(runs, test: Tensor, val, judge, seed: int) -> list[dict]:
    """Fréchet distances from `test` of what each run makes of `val`, and of prior samples.

    Both runs meet the same films in the same cut. A difference of two distances has no interval.
    """
    trunk = judge.trunk if judge is not None else None
    real, others = (networks.feature_vectors(images, trunk) for images in (test, val))
    makers = {"frechet, reconstruction": lambda model: reconstructions(model, val),
              "frechet, prior": lambda model: samples(model, len(test), seed)}  # fmt: skip
    rows = []
    for name, make in makers.items():
        made = (networks.feature_vectors(make(run.model), trunk) for run in runs)
        a, b = (frechet_row(subject, f, real, others, networks.network_name(trunk), seed)
                for subject, f in zip("ab", made, strict=True))  # fmt: skip
        gap = {"subject": DIFFERENCE, "value": b["value"] - a["value"], "low": None, "high": None}
        rows += [row | {"metric": name} for row in (a, b, a | gap | {"floor": None})]
    return rows


def finding(row: dict) -> str:
    """A "b - a" row in words: which run is better, or that the images do not tell them apart."""
    metric, low, high = row["metric"], row["low"], row["high"]
    interval = f"{metric}: b - a = {row['value']:+.3g} ({low:+.3g} to {high:+.3g})"
    if low <= 0 <= high:
        return f"{interval}: {row['n']} images do not tell them apart"
    return f"{interval}: {'b' if (low > 0) == HIGHER_IS_BETTER[metric] else 'a'} is better"
