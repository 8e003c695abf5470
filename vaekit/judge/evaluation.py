"""evaluate(): scores of reconstructions and samples, with their N, judge and floor."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaekit.checks import check_range
from vaekit.config import Config
from vaekit.data import chunks, pixels_of
from vaekit.features import FeatureLoss, trunk_name
from vaekit.files.weights import downloads_allowed
from vaekit.judge import networks
from vaekit.judge.distances import LEAST
from vaekit.judge.rows import MAX_IMAGES, collect, distance_rows, mapped, mean_row, ratio_row
from vaekit.linear import LinearVAE
from vaekit.losses import l1_per_image
from vaekit.metrics import LPIPS, appearance, at_least, compare_images, octave_name, octave_powers
from vaekit.model import evaluating

# of a set, for the second judge, which takes thirty times as long as the first
SECOND_IMAGES = 256


def measure(model, images, judge: FeatureLoss | None = None, batch_size: int = 64) -> dict:
    """`compare_images`, `looks` and L1 of reconstructions from the mean, image by image.

    images: Split or (N, C, H, W); {name: (N,)}.
    """

    def measured(x: Tensor) -> dict[str, Tensor]:
        x_hat = model.reconstruct(x)
        l1 = l1_per_image(x_hat, x)
        return compare_images(x_hat, x, judge) | {"l1": l1} | looks(x_hat)

    with evaluating(model) as device:
        if judge is not None:
            judge = judge.to(device)
        return collect(measured, images, batch_size, device)


def looks(x: Tensor) -> dict[str, Tensor]:
    """`appearance` of each image, and its power in every octave: {name: (B,)}."""
    powers = octave_powers(x).T
    return appearance(x) | {octave_name(i): power for i, power in enumerate(powers)}


def evaluate(model, test, cfg: Config, val=None, samples=None, judges=None) -> list[dict]:
    """Rows (keys: COLUMNS) for reconstructions of `test` from the mean, real images and `samples`.

    test, val: Split or (N, C, H, W), uint8 or float; samples: {name: images}. Distances compare
    test with reconstructions of *other* images, `val` (training images are fine too, and are more);
    without `val`, one half of test with reconstructions of the other half. There is a set of
    distances for each of `judges` (see `load_judges`), all with the N of the smallest set of 4
    images or more, and with their floor; see `distance_rows`. Means have -+ 1.96 standard errors.

    judges: None for SqueezeNet and, if its weights are on this machine, VGG-19 to relu3_4 (see
    `second_judge`), which also gives the "feature distance" of reconstructions. Where SqueezeNet
    was trained with, go by VGG-19. It sees at most 256 images of a set, drawn at random. An empty
    list leaves distances out, which saves time.

    "power 1/4-1/2" and so on: power of a subject divided by that of real images, in an octave of
    frequency in cycles per pixel (see `octave_powers`). Below 0.75 is blur, above 1.25 noise or
    flecks. `figures.plot_octaves` draws them.
    """
    test = pixels_of(test)
    samples = {name: pixels_of(images) for name, images in (samples or {}).items()}
    for images in samples.values():
        check_range(images)
    download = downloads_allowed(cfg.profile)
    with evaluating(model) as device:
        judge = networks.load_judge(device, download)
        second = networks.second_judge(device) if judges is None else None
        rows = _image_rows(model, test, samples, judge, cfg.batch_size)
        if judges is not None and not judges:
            return say_heard(rows, model, cfg=cfg)
        if second is not None:
            part = _shuffled(test, SECOND_IMAGES, cfg.seed)
            rows.append(_feature_row(model, part, second, cfg.batch_size))
        real, others = _reference(test, val, cfg.seed)
        least = min(LEAST, len(real), len(others))
        few = [name for name, images in samples.items() if len(images) < least]
        large = {k: _shuffled(s, MAX_IMAGES, cfg.seed) for k, s in samples.items() if k not in few}
        if few:
            print(f"no distances of {', '.join(few)}: below {LEAST} images")
        for judge in networks.load_judges(judges or ["squeezenet"], device, download):
            rows += _judged_rows(model, large, real, others, judge, cfg)
        if second is not None:
            large = {k: s[:SECOND_IMAGES] for k, s in large.items()}
            real, others = real[:SECOND_IMAGES], others[:SECOND_IMAGES]
            rows += _judged_rows(model, large, real, others, second.trunk, cfg)
    return say_heard(rows, model, cfg=cfg)


def _image_rows(model, test: Tensor, samples: dict, judge, batch_size: int) -> list[dict]:
    """Rows of all that is measured image by image."""
    found = measure(model, test, judge, batch_size)
    rows = [mean_row(name, "reconstruction", found[name]) for name in ("psnr", "ssim")]
    if judge is not None:
        rows.append(mean_row("lpips", "reconstruction", found["lpips"], LPIPS))
    sets = {"reconstruction": found}
    for name, images in ({"real": test} | samples).items():
        sets[name] = collect(looks, images, batch_size)
    real = sets["real"]
    octaves = [name for name in real if name.startswith("power")]
    for subject, values in sets.items():
        rows += [mean_row(name, subject, values[name]) for name in real if name not in octaves]
        for name in ["sharpness", *octaves]:
            if subject != "real" and name in values:  # smaller images have fewer octaves
                metric = "sharpness ratio" if name == "sharpness" else name
                pair = values[name], real[name]
                rows.append(ratio_row(metric, subject, *pair, paired=values is found))
    return rows


def _feature_row(model, test: Tensor, judge: FeatureLoss, batch_size: int) -> dict:
    """Mean perceptual distance of reconstructions from their originals, both at 64 px or more."""

    def measured(x: Tensor) -> dict[str, Tensor]:
        return judge(at_least(model.reconstruct(x), 64), at_least(x, 64))

    device = next(model.parameters()).device
    found = collect(measured, test, batch_size, device)
    name = networks.network_name(judge.trunk)
    return mean_row("feature distance", "reconstruction", found["perceptual"], name)


def _reference(test: Tensor, val, seed: int) -> tuple[Tensor, Tensor]:
    """Disjoint (real, others), shuffled: test and val; without val the two halves of test."""
    n = min(len(test), MAX_IMAGES)
    if val is not None:
        return _shuffled(test, n, seed), _shuffled(pixels_of(val), n, seed)
    return _shuffled(test, 2 * n, seed).tensor_split(2)


def _shuffled(images: Tensor, n: int, seed: int) -> Tensor:
    order = np.random.default_rng(seed).permutation(len(images))[:n]
    return images[torch.from_numpy(order)]


def _judged_rows(model, samples: dict, real: Tensor, others: Tensor, judge, cfg) -> list[dict]:
    """Distances of reconstructions of `others` and of `samples`, by one judge."""
    if min(len(real), len(others)) < LEAST:
        network = networks.network_name(judge)
        return distance_rows({"reconstruction": others} | samples, real, others, network)
    device = next(model.parameters()).device
    remade = mapped(lambda x: model.reconstruct(x).cpu(), others, cfg.batch_size, device)
    fakes = {"reconstruction": torch.cat(remade)} | samples
    return judge_images(fakes, real, others, judge, cfg.seed, cfg.batch_size)


def judge_images(fakes: dict, real, others, judge=None, seed=0, batch_size=64) -> list[dict]:
    """`distance_rows` of images: each {subject: images} from `real`, the floor from `others`.

    Each is a Split or (N, C, H, W); judge: one of `load_judges`. Features are computed once per
    set.
    """
    sets = [real, others, *fakes.values()]
    real, others, *seen = (networks.feature_vectors(x, judge, batch_size) for x in sets)
    vectors = dict(zip(fakes, seen, strict=True))
    return distance_rows(vectors, real, others, networks.network_name(judge), seed)


def say_heard(rows: list[dict], *models, cfg: Config | None = None) -> list[dict]:
    """The rows, where a judge's name also says that one of `models` was trained with it: such a
    judge flatters. cfg: for models that have none."""
    names = []
    for model in models:
        own = getattr(model, "cfg", cfg)
        name = trunk_name(own) if own else "unknown"
        names.append("none" if isinstance(model, LinearVAE) else name)
    heard = " and ".join(dict.fromkeys(names))
    for r in rows:
        if r["network"]:
            r["network"] += f"; model trained with {heard}"
    return rows


class Cases(NamedTuple):
    """Indices of the best (best first) and worst (worst first) images, and every image's SSIM."""

    best: list[int]
    worst: list[int]
    values: Tensor  # (N,)


def rank_cases(x_hat, x, k: int = 4) -> Cases:
    """The k best and k worst of reconstructions x_hat by SSIM with x; a Split or (N, C, H, W)."""
    pairs = zip(chunks(x_hat), chunks(x), strict=True)
    values = torch.cat([compare_images(*pair, None)["ssim"] for pair in pairs])
    order = values.argsort(descending=True).tolist()
    return Cases(order[:k], order[::-1][:k], values)
