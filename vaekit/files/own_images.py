"""The user's own images: a preset that suits them, their channels, files as model input."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from vaekit.config import Config, preset
from vaekit.data import as_float
from vaekit.files.images import BadImage, Reader, decode, fit_square, prepare
from vaekit.files.sources import find_dataset, list_images

LOOKED_AT = 64  # images, spread over the folder
BY_SIZE = {  # smallest side at least, in pixels -> preset for one channel, for three
    200: ("medical256", "celeba256"),
    112: ("chest_xray", "chest_xray"),
    48: ("celeba64", "celeba64"),
    0: ("fashion_mnist", "cifar10"),
}
# no CLAHE, no patients, the centre of each image
PLAIN = {"dataset": "images", "fit": "crop", "crop": 1.0, "clahe_clip": 0.0, "patient_key": "none"}


def preset_for(folder: str | Path, **changes) -> Config:
    """The preset whose image size and channels are nearest to the images in `folder`.

    The median smaller side and the majority (colour or grey) decide. No CLAHE, no patients, the
    centre of each image; `changes` override all of it. FileNotFoundError where there are no images.
    """
    side, channels = _look(preset("chest_xray", dataset="images", data_path=str(folder)))
    grey, colour = next(names for least, names in BY_SIZE.items() if side >= least)
    values = {**PLAIN, "data_path": str(folder), "in_channels": channels}
    return preset(colour if channels == 3 else grey, **values | changes)


def count_channels(folder: str | Path = "") -> int:
    """3 if most images of `folder` are in colour, else 1: `in_channels` for a preset of X-rays.

    Without `folder`: the images that such a preset would read, from `VAEKIT_DATA` or the bundle.
    FileNotFoundError where there are none.
    """
    return _look(preset("chest_xray", data_path=str(folder)))[1]


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


def _look(cfg: Config) -> tuple[float, int]:
    """(median smaller side of some images that `cfg` reads, 3 if most are in colour, else 1)."""
    root = find_dataset(cfg).path
    files, _ = list_images(root)
    reader = Reader(root, channels=3)
    sides, colours = [], []
    step = max(1, len(files) // LOOKED_AT)
    for file in (file for start in range(step) for file in files[start::step]):
        with suppress(BadImage):  # load_data lists it
            pixels = reader.read(file.name).pixels
            sides.append(min(pixels.shape[:2]))
            # from the pixels: many grey images are saved as RGB
            small = fit_square(pixels, 32).astype(int)
            colours.append(np.ptp(small, axis=-1).mean() > 4)
        if len(sides) == LOOKED_AT:
            break
    if not sides:
        raise FileNotFoundError(f"{root}: not one of {len(files)} files can be read as an image")
    return np.median(sides), 3 if np.mean(colours) > 0.5 else 1
