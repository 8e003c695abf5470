"""evaluate(): how good are the images? Numbers that carry their N, network and floor."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaekit.config import Config
from vaekit.data import chunks, pixels_of
from vaekit.features import FeatureLoss, trunk_name
from vaekit.files.weights import downloads_allowed
from vaekit.judge import networks
from vaekit.judge.rows import MAX_IMAGES, collect, distance_rows, mean_row, ratio_row, row
from vaekit.losses import l1_per_image
from vaekit.metrics import LPIPS, appearance, compare_images
from vaekit.model import evaluating


def measure(model, images, judge: FeatureLoss | None = None, batch_size: int = 64) -> dict:
    """What `compare_images` and `appearance` find, and L1, of reconstructions from the mean.

    images: Split or (N, C, H, W); {name: (N,)}.
    """

    def measured(x: Tensor) -> dict[str, Tensor]:
        x_hat = model.reconstruct(x)
        l1 = l1_per_image(x_hat, x)
        return compare_images(x_hat, x, judge) | {"l1": l1} | appearance(x_hat)

    with evaluating(model) as device:
        return collect(map(measured, chunks(images, batch_size, device)))


def evaluate(
    model, test, cfg: Config, val=None, samples=None, fid: bool = False, judges=("squeezenet",)
) -> list[dict]:
    """Rows (keys: COLUMNS) for reconstructions of `test` from the mean, real images and `samples`.

    test, val: Split or (N, C, H, W), uint8 or float; samples: {name: images}. Distances compare
    test with reconstructions of *other* images, `val` (training images do as well: more of them);
    without `val`, one half of test with reconstructions of the other half. They come once for
    each of `judges` (see `load_judges`), all at the N of the smallest set of 4 images or more,
    with their floor; see `distance_rows`. Means carry -+ 1.96 standard errors. `fid` adds FID and
    KID of `samples`.
    """
    test = pixels_of(test)
    samples = {name: pixels_of(images) for name, images in (samples or {}).items()}
    download = downloads_allowed(cfg.profile)
    with evaluating(model) as device:
        judge = networks.load_judge(device, download)
        rows = _image_rows(model, test, samples, judge, cfg.batch_size)
        real, others = _reference(test, val, cfg.seed)
        large = {k: _shuffled(s, MAX_IMAGES, cfg.seed) for k, s in samples.items() if len(s) > 3}
        few = [name for name in samples if name not in large]
        enough = min(len(real), len(others)) > 3
        if few or not enough:
            print(f"no distances of {', '.join(few) if enough else 'anything'}: below 4 images")
        if enough:
            for judge in networks.load_judges(judges, device, download):
                rows += _judged_rows(model, large, real, others, judge, cfg)
            if fid:
                rows += _inception_rows(large, real, others, device)
    return say_heard(rows, getattr(model, "cfg", cfg))


def _image_rows(model, test: Tensor, samples: dict, judge, batch_size: int) -> list[dict]:
    """Rows of what is measured image by image."""

    def looks(images: Tensor) -> dict[str, Tensor]:
        return collect(map(appearance, chunks(images, batch_size)))

    found, real = measure(model, test, judge, batch_size), looks(test)
    rows = [mean_row(name, "reconstruction", found[name]) for name in ("psnr", "ssim")]
    if judge is not None:
        rows.append(mean_row("lpips", "reconstruction", found["lpips"], LPIPS))
    drawn = {name: looks(images) for name, images in samples.items()}
    for subject, values in ({"reconstruction": found, "real": real} | drawn).items():
        rows += [mean_row(name, subject, values[name]) for name in real]
        if subject != "real":
            pair = values["sharpness"], real["sharpness"]
            rows.append(ratio_row("sharpness ratio", subject, *pair, paired=values is found))
    return rows


def _reference(test: Tensor, val, seed: int) -> tuple[Tensor, Tensor]:
    """Disjoint (real, others), shuffled: test and val, or without val the two halves of test."""
    n = min(len(test), MAX_IMAGES)
    if val is not None:
        return _shuffled(test, n, seed), _shuffled(pixels_of(val), n, seed)
    return _shuffled(test, 2 * n, seed).tensor_split(2)


def _shuffled(images: Tensor, n: int, seed: int) -> Tensor:
    order = np.random.default_rng(seed).permutation(len(images))[:n]
    return images[torch.from_numpy(order)]


def _judged_rows(model, samples: dict, real: Tensor, others: Tensor, judge, cfg) -> list[dict]:
    """Distances, in one judge's eyes, of reconstructions of `others` and of `samples`."""
    device, size = next(model.parameters()).device, cfg.batch_size
    remade = map(model.reconstruct, chunks(others, size, device))
    fakes = {"reconstruction": networks.features_by(judge, remade)}
    for name, images in samples.items():
        fakes[name] = networks.feature_vectors(images, judge, size)
    real, others = (networks.feature_vectors(s, judge, size) for s in (real, others))
    return distance_rows(fakes, real, others, networks.network_name(judge), cfg.seed)


def _inception_rows(samples: dict, real: Tensor, others: Tensor, device) -> list[dict]:
    network, name = networks.load_inception(device), "inception, all 2048"
    real, others = (networks.inception_vectors(s, network) for s in (real, others))
    rows = []
    for subject, images in samples.items():
        fake = networks.inception_vectors(images, network)
        n = min(len(real), len(others), len(fake))
        a, b, c = real[:n], fake[:n], others[:n]
        value, floor = networks.fid(a, b), networks.fid(a, c)
        rows.append(row("fid", subject, value, n=n, network=name, floor=floor))
        (value, error), (floor, _) = networks.kid(a, b), networks.kid(a, c)
        low, high = value - 1.96 * error, value + 1.96 * error
        rows.append(row("kid", subject, value, low, high, n, name, floor))
    return rows


def say_heard(rows: list[dict], *cfgs: Config) -> list[dict]:
    """The rows, judges beside what the trainer listened to: one that it has heard flatters."""
    heard = " and ".join(dict.fromkeys(map(trunk_name, cfgs)))
    for r in rows:
        if r["network"]:
            r["network"] += f"; trained with {heard}"
    return rows


class Cases(NamedTuple):
    """Indices of the best (best first) and worst (worst first) images, and every image's value."""

    best: list[int]
    worst: list[int]
    values: Tensor  # (N,)
    metric: str


def rank_cases(model, split, k: int = 4, batch_size: int = 64) -> Cases:
    """The k best and k worst reconstructed (from the mean) images of `split`, by SSIM."""
    values = measure(model, split, batch_size=batch_size)["ssim"]
    order = values.argsort(descending=True).tolist()
    return Cases(order[:k], order[::-1][:k], values, "SSIM")
