"""The user's own images: a preset that suits them, their channels, files as model input."""

import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from vaekit import config
from vaekit.config import Config
from vaekit.data import as_float
from vaekit.files.images import BadImage, Reader, decode, fit_square, prepare
from vaekit.files.sources import find_dataset, list_images

# images
LOOKED_AT = 64
# longer side over shorter; of films it is 1.3
FAR_FROM_SQUARE = 1.4
# no CLAHE, no patients, the centre of each image
PLAIN = {"dataset": "images", "fit": "crop", "crop": 1.0, "clahe_clip": 0.0, "patient_key": "none"}


def preset_for(folder: str | Path = "", preset: str = "sharp", **changes) -> Config:
    """A preset for the images in `folder`; "": those in `VAEKIT_DATA`, or attached on Kaggle.

    Grey or RGB, as most images are. No CLAHE, no patients, the centre of each image. For `sharp`
    also the size, that of the median smaller side, but at most the profile's; and a number of the
    code for 16 pixels, but no more than there are training images, about. `changes` override all
    of it. FileNotFoundError where there are no images.
    """
    values = PLAIN | {"preset": preset, "data_path": str(folder)} | changes
    cfg = config.preset(**values)
    side, _, channels, count = _look(find_dataset(cfg).path)
    if preset == "sharp":
        size = changes.get("image_size") or min(cfg.image_size, 8 * round(side / 8))
        # of N training images, 80% of the files, a linear model has N - 1 directions
        count = 0.8 * min(count, cfg.max_images or count)
        numbers = max(1, round(min(size**2 / 16, count)))
        values = {"image_size": size, "latent_channels": numbers} | values
    return config.preset(**{"in_channels": channels} | values)


def count_channels(folder: str | Path = "") -> int:
    """3 if most images of `folder` are in colour, else 1: `in_channels` for a preset of X-rays.

    Without `folder`: the images that such a preset would read, from `VAEKIT_DATA` or the bundle.
    FileNotFoundError where there are none.
    """
    return _look(find_dataset(config.preset(data_path=str(folder))).path)[2]


def load_images(paths: str | Path | Sequence[str | Path], cfg: Config) -> torch.Tensor:
    """Your own files as a model's input: float (N, C, S, S) in [0, 1], read as `load_data` does.

    One path or several; channels, CLAHE and size as in `cfg`. BadImage, a ValueError, names the
    file that cannot be read.
    """
    images = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        try:
            images.append(prepare(decode(path, cfg.in_channels), cfg))
        except BadImage as error:
            raise BadImage(f"{path}: {error}") from error
    return as_float(torch.from_numpy(np.stack(images)))


def say_what_is_lost(root: Path, cfg: Config) -> None:
    """A line where `cfg` reads colour images in grey, and one where it distorts them."""
    _, aspect, channels, _ = _look(root)
    if channels > cfg.in_channels:
        print("the images are in colour: in_channels=1 reads them in grey")
    if cfg.fit == "squash" and aspect > FAR_FROM_SQUARE:
        print(f"sides are {aspect:.1f} to 1: fit='squash' distorts them, 'crop' does not")


def _look(root: Path) -> tuple[float, float, int, int]:
    """(smaller side, longer over smaller, channels, files): medians of some images; channels is 3
    if most are in colour, else 1."""
    files, _ = list_images(root)
    reader = Reader(root, channels=3)
    sides, colours = [], []
    for file in random.Random(0).sample(files, len(files)):
        with suppress(BadImage):  # load_data lists it
            pixels = reader.read(file.name).pixels
            sides.append(sorted(pixels.shape[:2]))
            # from the pixels: many grey images are saved as RGB
            small = fit_square(pixels, 32).astype(int)
            colours.append(np.ptp(small, axis=-1).mean() > 4)
        if len(sides) == LOOKED_AT:
            break
    if not sides:
        raise FileNotFoundError(f"{root}: not one of {len(files)} files can be read as an image")
    side, longer = np.median(sides, axis=0)
    return side, longer / side, 3 if np.mean(colours) > 0.5 else 1, len(files)
