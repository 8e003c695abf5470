"""Anyone's images: which preset suits them, and in how many channels."""

from pathlib import Path

import numpy as np
from PIL import Image

from vaekit.config import Config, preset
from vaekit.files.sources import find_dataset, list_images

LOOKED_AT = 64  # images, spread over the folder
BY_SIZE = {  # smallest side at least, in pixels -> preset for one channel, for three
    200: ("medical256", "celeba256"),
    112: ("chest_xray", "chest_xray"),
    48: ("celeba64", "celeba64"),
    0: ("fashion_mnist", "cifar10"),
}


def preset_for(folder: str | Path, **changes) -> Config:
    """The preset whose image size and channels are nearest to the images in `folder`, for them.

    Median smaller side and the majority of colour images decide; no CLAHE, no patients, the centre
    of each image. `changes` beat all of it. FileNotFoundError where there are no images.
    """
    sides, colours = _look(preset("chest_xray", dataset="images", data_path=str(folder)))
    channels = 3 if np.mean(colours) > 0.5 else 1
    least = next(size for size in BY_SIZE if np.median(sides) >= size)
    values = {"dataset": "images", "data_path": str(folder), "in_channels": channels,
              "fit": "crop", "crop": 1.0, "clahe_clip": 0.0, "patient_key": "none"}  # fmt: skip
    return preset(BY_SIZE[least][channels == 3], **values | changes)


def count_channels(folder: str | Path = "") -> int:
    """3 where most images of `folder` are in colour, else 1: `in_channels` for a preset of X-rays.

    Default: the images that such a preset would read, as `VAEKIT_DATA` or the bundle has them.
    FileNotFoundError where there are none.
    """
    _, colours = _look(preset("chest_xray", data_path=str(folder)))
    return 3 if np.mean(colours) > 0.5 else 1


def _look(cfg: Config) -> tuple[list[int], list[bool]]:
    """Smaller side, and whether in colour, of images spread over what `cfg` reads."""
    root = find_dataset(cfg).path
    files, _ = list_images(root)
    sides, colours = [], []
    for name, *_ in files[:: max(1, len(files) // LOOKED_AT)]:
        try:
            with Image.open(root / name) as image:
                sides.append(min(image.size))
                colours.append(_is_colour(image))
        except OSError:  # load_data lists what is damaged
            continue
    if not sides:
        raise FileNotFoundError(f"{root}: not one of {len(files)} files can be opened as an image")
    return sides, colours


def _is_colour(image: Image.Image) -> bool:
    """By the pixels: many grey pictures are saved as RGB."""
    if image.mode in ("1", "L", "LA", "I", "I;16", "F"):
        return False
    small = np.asarray(image.convert("RGB").resize((32, 32)), dtype=np.int16)
    return bool((small.max(-1) - small.min(-1)).mean() > 4)
