"""How good are the images? Numbers that carry their N, their network and their floor."""

import contextlib  # noqa: I001
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaekit import distances
from vaekit.config import Config
from vaekit.distances import frechet_distance, gaussian_frechet, principal_axes  # noqa: F401
from vaekit.features import FeatureLoss, trunk_name
from vaekit.judges import (  # noqa: F401, I001
    as_float, at_least, chunks, feature_vectors, features_by, fid, inception_vectors, kid,
    load_inception, load_judge, load_judges, network_name, pixels_of, train_judge,
)  # fmt: skip
from vaekit.losses import l1_per_image, mse_per_image, ssim_per_image

PSNR_CAP = 100.0  # dB, for identical images
MAX_IMAGES = 2000  # of a set, for its distances: they need every pair
LPIPS = "squeezenet, LPIPS v0.1"
COLUMNS = ("metric", "subject", "value", "low", "high", "n", "network", "floor")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients; gives the model's device and restores its mode."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(was)


# ---- per image: (B, C, H, W) float in [0, 1] -> (B,) float32 -------------------------------------


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,): -10 log10(mean squared error), at most 100."""
    return -10 * mse_per_image(x_hat, x).clamp(min=10 ** (-PSNR_CAP / 10)).log10()


def ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Structural similarity, (B,), 1 for identical images: `losses.ssim_per_image`."""
    return ssim_per_image(x_hat, x)


@torch.no_grad()
def lpips_squeeze(x_hat: Tensor, x: Tensor, judge: FeatureLoss, batch_size: int = 32) -> Tensor:
    """LPIPS v0.1 on SqueezeNet, (B,), 0 for identical images, in chunks of `batch_size`.

    `judge` comes from `load_judge`. Images below 128 px are enlarged bilinearly to 128 first.
    Source: Zhang et al. 2018, arXiv 1801.03924.
    """
    pairs = [at_least(images.float(), 128).split(batch_size) for images in (x_hat, x)]
    return torch.cat([judge(a, b)["lpips"] for a, b in zip(*pairs, strict=True)])


def to_grey(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), weights of ITU-R 601 (as cv2); grey is returned as it is."""
    if x.shape[1] != 3:
        return x
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def sharpness(x: Tensor) -> Tensor:
    """Variance over pixels of the 3x3 four-neighbour Laplacian of the grey image, (B,).

    Pixels in [0, 1]: times 255^2 it is cv2's on 0..255, but for the border, left out here.
    """
    kernel = x.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).float().view(1, 1, 3, 3)
    edges = F.conv2d(to_grey(x.float()), kernel)
    return edges.flatten(1).var(1, correction=0)


def brightness(x: Tensor) -> Tensor:
    """Mean over pixels and channels, (B,), in [0, 1]."""
    return x.float().flatten(1).mean(1)


def appearance(x: Tensor) -> dict[str, Tensor]:
    """Sharpness, brightness, contrast (standard deviation over pixels and channels, at most 0.5)
    and the darkest and brightest value of each image: {name: (B,)}."""
    pixels = x.float().flatten(1)
    return {"sharpness": sharpness(x), "brightness": brightness(x),
            "contrast": pixels.std(1, correction=0), "range low": pixels.amin(1),
            "range high": pixels.amax(1)}  # fmt: skip


def compare_images(x_hat: Tensor, x: Tensor, judge: FeatureLoss | None) -> dict[str, Tensor]:
    """PSNR, SSIM and, with a judge, LPIPS of each pair: {name: (B,)}."""
    found = {"psnr": psnr(x_hat, x), "ssim": ssim(x_hat, x)}
    return found | ({"lpips": lpips_squeeze(x_hat, x, judge)} if judge is not None else {})


def collect(results: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Per-image results of many batches -> {name: (N,) float32 on the CPU}."""
    found: dict[str, list[float]] = {}
    for result in results:
        for name, values in result.items():
            # numbers, not tensors: thousands of small tensors between large ones that come and go
            # tear the heap to pieces, 25 kB an image at 64 px
            found.setdefault(name, []).extend(values.float().tolist())
    return {name: torch.tensor(values) for name, values in found.items()}


def measure(model, images, judge: FeatureLoss | None = None, batch_size: int = 64) -> dict:
    """All of the above, and L1, of the reconstructions of `images` from the mean: {name: (N,)}."""

    def measured(x: Tensor) -> dict[str, Tensor]:
        x_hat = model.reconstruct(x)
        return compare_images(x_hat, x, judge) | {"l1": l1_per_image(x_hat, x)} | appearance(x_hat)

    with evaluating(model) as device:
        return collect(map(measured, chunks(images, batch_size, device)))


def sharpness_ratio(images, real) -> float:
    """Mean sharpness of `images` over that of `real`: below 1 is blur, above 1.1 is noise."""
    means = [collect({"s": sharpness(x)} for x in chunks(s))["s"].mean() for s in (images, real)]
    return (means[0] / means[1]).item()


@torch.no_grad()
def radial_power_spectrum(images, batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies in cycles per pixel, up to 0.5; power), averaged over images and angles.

    Grey, mean removed, Hann window (a film's edges do not wrap around) and normalised, so that
    white noise of deviation s has the power s^2 at every frequency. Rings are 1/side wide.
    """
    height, width = pixels_of(images).shape[-2:]
    window = torch.outer(*(torch.hann_window(n + 2)[1:-1] for n in (height, width)))
    total = torch.zeros(height, width, dtype=torch.float64)
    for x in chunks(images, batch_size):
        x = to_grey(x)[:, 0]
        spectrum = torch.fft.fft2((x - x.mean((1, 2), keepdim=True)) * window)
        total += spectrum.abs().square().sum(0).double()
    total /= len(pixels_of(images)) * window.square().sum()
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    ring = (radius * max(height, width)).round().long().flatten()
    power = torch.bincount(ring, total.flatten()) / torch.bincount(ring)
    last = max(height, width) // 2
    return np.arange(1, last + 1) / max(height, width), power[1 : last + 1].numpy()


# ---- the evaluation ------------------------------------------------------------------------------


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


def _shuffled(images: Tensor, n: int, seed: int) -> Tensor:
    order = np.random.default_rng(seed).permutation(len(images))[:n]
    return images[torch.from_numpy(order)]


def _reference(test: Tensor, val, seed: int) -> tuple[Tensor, Tensor]:
    """Disjoint (real, others), shuffled: test and val, or without val the two halves of test."""
    n = min(len(test), MAX_IMAGES)
    if val is not None:
        return _shuffled(test, n, seed), _shuffled(pixels_of(val), n, seed)
    return _shuffled(test, 2 * n, seed).tensor_split(2)


def evaluate(model, test, cfg: Config, val=None, samples: dict | None = None, fid: bool = False,
             judges: Iterable = ("squeezenet",)) -> list[dict]:  # fmt: skip
    """Rows (keys: COLUMNS) for reconstructions of `test` from the mean, real films and `samples`.

    test, val: Split or (N, C, H, W), uint8 or float; samples: {name: images}. Distances compare
    test with reconstructions of *other* films, `val` (training films do as well: more of them);
    without `val`, one half of test with reconstructions of the other half. They come once for
    each of `judges` (see `load_judges`), all at the N of the smallest set of 4 images or more,
    with their floor; see `distance_rows`. Means carry -+ 1.96 standard errors. `fid` adds FID and
    KID of `samples`.
    """
    test, size, download = pixels_of(test), cfg.batch_size, cfg.profile != "smoke"
    samples = {name: pixels_of(images) for name, images in (samples or {}).items()}
    with evaluating(model) as device:
        found = measure(model, test, load_judge(device, download), size)
        rows = _image_rows(found, test, samples, size)
        real, others = _reference(test, val, cfg.seed)
        counts = {"anything": min(len(real), len(others))} | {k: len(s) for k, s in samples.items()}
        few = [name for name, count in counts.items() if count < 4]
        if few:
            print(f"no distances of {', '.join(few)}: below 4 images")
        if "anything" not in few:
            sets = {name: _shuffled(images, MAX_IMAGES, cfg.seed)
                    for name, images in samples.items() if name not in few}  # fmt: skip
            batches = {"reconstruction": map(model.reconstruct, chunks(others, size, device))}
            batches |= {name: chunks(images, size) for name, images in sets.items()}
            judged = load_judges(judges, device, download)
            rows += _judged_rows(batches, real, others, judged, size, cfg.seed)
            rows += _inception_rows(sets, real, others, device) if fid else []
    return say_heard(rows, getattr(model, "cfg", cfg))


def say_heard(rows: list[dict], *cfgs: Config) -> list[dict]:
    """The rows, judges beside what the trainer listened to: one that it has heard flatters."""
    heard = " and ".join(dict.fromkeys(map(trunk_name, cfgs)))
    for r in rows:
        r["network"] += r["network"] and f"; trained with {heard}"
    return rows


def _image_rows(found: dict[str, Tensor], test: Tensor, samples: dict, size: int) -> list[dict]:
    """Rows of what is measured image by image; found: of the reconstructions, see `measure`."""
    real, *drawn = (collect(map(appearance, chunks(s, size))) for s in (test, *samples.values()))
    rows = [mean_row(name, "reconstruction", found[name], LPIPS if name == "lpips" else "")
            for name in ("psnr", "ssim", "lpips") if name in found]  # fmt: skip
    looks = {"reconstruction": found, "real": real, **dict(zip(samples, drawn, strict=True))}
    for subject, values in looks.items():
        rows += [mean_row(name, subject, values[name]) for name in real]
        if subject != "real":
            pair = values["sharpness"], real["sharpness"]
            rows.append(ratio_row("sharpness ratio", subject, *pair, values is found))
    return rows


def _judged_rows(streams: dict, real: Tensor, others: Tensor, judges: list, size: int, seed: int):
    rows, references = [], [features_by(judges, chunks(s, size)) for s in (real, others)]
    fakes = {name: features_by(judges, stream) for name, stream in streams.items()}
    for i, judge in enumerate(judges):
        vectors = {name: found[i] for name, found in fakes.items()}
        rows += distance_rows(vectors, *(r[i] for r in references), network_name(judge), seed)
    return rows


def _inception_rows(sets: dict, real: Tensor, others: Tensor, device) -> list[dict]:
    rows, network, name = [], load_inception(device), "inception, all 2048"
    real, others = (inception_vectors(s, network) for s in (real, others))
    for subject, images in sets.items():
        fake = inception_vectors(images, network)
        n = min(len(real), len(others), len(fake))
        a, b, c = real[:n], fake[:n], others[:n]
        rows.append(row("fid", subject, fid(a, b), n=n, network=name, floor=fid(a, c)))
        (value, error), (floor, _) = kid(a, b), kid(a, c)
        rows.append(row("kid", subject, value, value - 1.96 * error, value + 1.96 * error, n, name,
                        floor))  # fmt: skip
    return rows


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


class Cases(NamedTuple):
    """Indices of the best (best first) and worst (worst first) films, and every film's value."""

    best: list[int]
    worst: list[int]
    values: Tensor  # (N,)
    metric: str


def rank_cases(model, split, k: int = 4, batch_size: int = 64) -> Cases:
    """The k best and k worst reconstructed (from the mean) films of `split`, by SSIM."""
    found = measure(model, split, batch_size=batch_size)["ssim"]
    order = found.argsort(descending=True).tolist()
    return Cases(order[:k], order[::-1][:k], found, "SSIM")
