"""evaluate(): how good are the images? Numbers that carry their N, their network and their floor."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaekit.config import Config
from vaekit.data import chunks, pixels_of
from vaekit.features import FeatureLoss, trunk_name
from vaekit.judge.networks import (
    features_by,
    fid,
    inception_vectors,
    kid,
    load_inception,
    load_judge,
    load_judges,
    network_name,
)
from vaekit.judge.rows import MAX_IMAGES, distance_rows, mean_row, ratio_row, row
from vaekit.losses import l1_per_image
from vaekit.metrics import LPIPS, appearance, collect, compare_images
from vaekit.model import evaluating


def measure(model, images, judge: FeatureLoss | None = None, batch_size: int = 64) -> dict:
    """All of the above, and L1, of the reconstructions of `images` from the mean: {name: (N,)}."""

    def measured(x: Tensor) -> dict[str, Tensor]:
        x_hat = model.reconstruct(x)
        return compare_images(x_hat, x, judge) | {"l1": l1_per_image(x_hat, x)} | appearance(x_hat)

    with evaluating(model) as device:
        return collect(map(measured, chunks(images, batch_size, device)))


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
