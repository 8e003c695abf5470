"""From a file to square images: read by content, even out the contrast, make it square."""

import gzip
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # a file that claims more is refused before it is decoded
MIN_SIDE = 8  # pixels


class BadImage(ValueError):
    """A file that cannot be used. The message is the reason, without the file's name."""


def decode(path: str | Path, channels: int = 1) -> np.ndarray:
    """The image in a file: uint8, (H, W) for one channel, (H, W, 3) RGB for three.

    What the file is, its content decides, not its name. EXIF orientation is honoured, alpha is
    laid over black, 16-bit and float greys are scaled from the file's own minimum and maximum to
    0..255. Raises BadImage with the reason for everything that is not a whole image.
    """
    # Pillow, not cv2.imdecode: the same pixels at 1.1 times the time for a full-size film, and it
    # alone refuses truncated files in every version and knows palettes, alpha and CMYK.
    try:
        if os.path.getsize(path) == 0:
            raise BadImage("empty file, 0 bytes")
        with Image.open(path) as image:
            width, height = image.size
            if min(width, height) < MIN_SIDE:
                raise BadImage(f"{width} x {height} is smaller than {MIN_SIDE} pixels")
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError
            ImageOps.exif_transpose(image, in_place=True)
            return _to_uint8(image, channels)
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImage("not an image") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"claims more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # what a decoder throws at a damaged file is of many kinds
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadImage(f"cannot be read: {reason}") from error


def _to_uint8(image: Image.Image, channels: int) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits, one channel
        image = Image.fromarray(_stretch(np.asarray(image)))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(black, image)
    if image.mode not in ("L", "RGB"):  # palette, CMYK, 1 bit, YCbCr, ...
        image = image.convert("RGB")
    return np.asarray(image.convert("L" if channels == 1 else "RGB"))


def _stretch(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
        raise BadImage("has values that are not finite")
    scale = 255 / max(high - low, 1e-12)
    return np.rint((values - low) * scale).astype(np.uint8)


def apply_clahe(image: np.ndarray, clip: float = 2.0, tiles: int = 8) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of a uint8 image.

    (H, W) is done directly, (H, W, 3) RGB on the lightness of LAB; same shape back. `clip` is
    cv2's clip limit, 0 gives the image back; `tiles` is per side.
    """
    if clip == 0:
        return image
    height, width = image.shape[:2]
    clahe = cv2.createCLAHE(clip, (min(tiles, width), min(tiles, height)))
    if image.ndim == 2:
        return clahe.apply(image)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[..., 0] = clahe.apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def fit_square(image: np.ndarray, size: int, how: str = "squash", crop: float = 1.0) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 to (size, size) or (size, size, 3).

    "squash" resizes each side on its own; "crop" keeps the central square, `crop` of the shorter
    side wide; "pad" adds black bars; "frame" is "pad" without ever enlarging (28x28 -> 32x32).
    """
    height, width = image.shape[:2]
    if how == "squash":
        return _resize(image, size, size)
    if how == "crop":
        side = max(1, round(crop * min(height, width)))
        top, left = (height - side) // 2, (width - side) // 2
        return _resize(image[top : top + side, left : left + side], size, size)
    if how not in ("pad", "frame"):
        raise ValueError(f"fit={how!r} is not one of squash, pad, frame, crop")
    scale = size / max(height, width)
    if how == "frame":
        scale = min(scale, 1.0)
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    image = _resize(image, height, width)  # the bars last: a strip of film would make a huge square
    top, left = (size - height) // 2, (size - width) // 2
    bottom, right = size - height - top, size - width - left
    return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=0)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    old_height, old_width = image.shape[:2]
    smaller = min(old_width, width), min(old_height, height)
    if smaller != (old_width, old_height):
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    if smaller != (width, height):  # a wide, low film may need both steps
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image


def prepare(image: np.ndarray, cfg) -> np.ndarray:
    """A decoded image to (C, S, S) uint8: CLAHE at the file's own resolution, then the square."""
    image = apply_clahe(image, cfg.clahe_clip, cfg.clahe_tiles)
    image = fit_square(image, cfg.image_size, cfg.fit, cfg.crop)
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


class Reader:
    """The images that `sources.list_images(path)` names: decoded files, or rows of arrays."""

    def __init__(self, path: Path, channels: int):
        self.path, self.channels = path, channels
        self.arrays = read_arrays(path)

    def read(self, name: str) -> np.ndarray:
        """uint8 (H, W) or (H, W, 3); BadImage as `decode` raises it."""
        if not self.arrays:
            return decode(self.path / name, self.channels)
        part, row = name.split("/")
        images, _ = self.arrays[part]
        return _to_uint8(Image.fromarray(images[int(row)]), self.channels)


def read_arrays(path: Path) -> dict[str, tuple[np.ndarray, list[str]]]:
    """A data set that comes as arrays: {part: (uint8 (N, H, W) or (N, H, W, 3), N class names)}.

    `path` is a folder with Fashion-MNIST's idx files, gzipped or not, or with CIFAR-10's python
    batches, or an .npz with x and y, or x_train, y_train, x_test, y_test (names in `classes`). The
    parts are "train" and "test", or "all". {} for any other path, BadImage for damaged files.
    """
    try:
        if path.suffix == ".npz":
            parts, classes = _read_npz(path)
        elif any(path.glob("train-images-idx3-ubyte*")):
            parts, classes = _read_fashion(path)
        elif (path / "data_batch_1").is_file():
            parts, classes = _read_cifar(path)
        else:
            return {}
        return {part: (x, [classes[i] for i in y]) for part, (x, y) in parts.items()}
    except Exception as error:  # what damaged files make readers throw is of many kinds
        raise BadImage(f"{path} cannot be read: {error}") from error


def _read_npz(path: Path) -> tuple[dict, list[str]]:
    with np.load(path) as file:
        classes = [str(name) for name in file["classes"]]
        if "x" in file:
            return {"all": (file["x"], file["y"])}, classes
        return {part: (file[f"x_{part}"], file[f"y_{part}"]) for part in ("train", "test")}, classes


def _read_fashion(folder: Path) -> tuple[dict, list[str]]:
    from torchvision.datasets import FashionMNIST

    parts = {}
    for part, start in (("train", "train"), ("test", "t10k")):
        x = _read_idx(folder, f"{start}-images-idx3-ubyte")
        parts[part] = x, _read_idx(folder, f"{start}-labels-idx1-ubyte")
    return parts, FashionMNIST.classes


def _read_cifar(folder: Path) -> tuple[dict, list[str]]:
    from torchvision.datasets import CIFAR10

    train = CIFAR10(folder.parent, train=True)  # checks MD5 sums before it unpickles
    test = CIFAR10(folder.parent, train=False)
    parts = {"train": (train.data, train.targets), "test": (test.data, test.targets)}
    return parts, train.classes


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """LeCun's format: two zeros, the type, the rank, big-endian sizes, then the numbers."""
    zipped = not (folder / name).is_file()
    with gzip.open(folder / f"{name}.gz") if zipped else open(folder / name, "rb") as file:
        data = file.read()
    rank = data[3]
    sizes = np.frombuffer(data, ">i4", count=rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sizes)
