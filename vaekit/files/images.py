"""From a file to a square image: decode, CLAHE, resize."""

import gzip
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vaekit.data import SPLITS

MAX_PIXELS = 100_000_000  # a file that claims more is refused before it is decoded
MIN_SIDE = 8  # pixels
# Where values have more than 8 bits, these percentiles of a file become 0 and 255.
PERCENTILES = 0.1, 99.9
FEW_LEVELS = 32  # fewer grey levels than this are worth a remark
DARK = 64  # of 255; transparent images whose visible part is darker are laid over white
SCALED, PAGES = "scaled from more than 8 bits", "later pages not read"


class BadImage(ValueError):
    """A file that cannot be used. The message is the reason; it does not name the file."""


class Decoded(NamedTuple):
    """An image, and what its file says."""

    pixels: np.ndarray  # uint8 (H, W), or (H, W, 3) RGB
    remarks: dict[str, str]  # what is unusual about the file -> detail
    patient: str = ""  # DICOM's PatientID


def decode(path: str | Path, channels: int = 1) -> np.ndarray:
    """The image in a file: uint8, (H, W) for one channel, (H, W, 3) RGB for three.

    The content decides what a file is, not its name: a picture; a NumPy array (H, W) or (H, W, 3);
    or DICOM, which needs `pip install pydicom`. EXIF orientation is applied. Transparent images are
    laid over black, dark ones over white. More than 8 bits are scaled by `robust_range`, DICOM by
    its window. Raises BadImage, with the reason, for anything that is not a whole image.
    """
    return read_image(path, channels).pixels


def read_image(path: str | Path, channels: int = 1) -> Decoded:
    """As `decode`, with remarks: the range of values, later pages, few grey levels."""
    # Pillow, not cv2.imdecode: the same pixels in 1.1 times the time for a full-size film, but only
    # Pillow refuses truncated files in every version, and reads palettes, alpha and CMYK.
    try:
        with open(path, "rb") as file:
            head = file.read(132)
        if not head:
            raise BadImage("empty file, 0 bytes")
        if head.startswith(b"\x93NUMPY"):
            return from_array(np.load(path, mmap_mode="r"), channels)
        if head.endswith(b"DICM"):
            return _read_dicom(path, channels)
        with Image.open(path) as image:
            _check_size(*image.size)
            return _read_picture(image, path, channels)
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImage("not an image") from error
    except Exception as error:  # decoders raise many kinds of errors
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadImage(f"cannot be read: {reason}") from error


def from_array(values: np.ndarray, channels: int) -> Decoded:
    """An image from an array of numbers, (H, W) or (H, W, 3); BadImage for other arrays."""
    colour = values.ndim == 3 and values.shape[2] == 3
    if not (values.ndim == 2 or colour) or values.dtype.kind not in "uif":
        raise BadImage(f"is {values.dtype} {values.shape}, not numbers (H, W) or (H, W, 3)")
    _check_size(values.shape[1], values.shape[0])
    remarks = {}
    if values.dtype != np.uint8:
        values = _scale(values, remarks)
    return _finish(Image.fromarray(np.ascontiguousarray(values)), channels, remarks)


def robust_range(values: np.ndarray) -> tuple[float, float]:
    """The values (H, W) or (H, W, C) that become 0 and 255: PERCENTILES, without padding.

    The smallest or largest value is padding (a border, a burnt-in marker, a dead pixel) if its
    distance from the others is more than their range. BadImage for NaN and infinity.
    """
    pixels = values.shape[0] * values.shape[1]
    step = max(1, isqrt(pixels // 1_000_000))  # a million pixels are enough
    values = np.asarray(values[::step, ::step])
    if not np.isfinite(values).all():
        raise BadImage("has values that are not finite")
    whole = float(values.min()), float(values.max())
    for end in whole:
        others = values[values != end]
        if others.size:
            low, high = np.percentile(others, PERCENTILES)
            if low < high and not 2 * low - high <= end <= 2 * high - low:
                values = others
    low, high = np.percentile(values, PERCENTILES)
    return (low, high) if low < high else whole


def _scale(values: np.ndarray, remarks: dict, limits: tuple = ()) -> np.ndarray:
    """uint8: `limits`, or the robust range, become 0 and 255; `remarks` records them."""
    low, high = limits or robust_range(values)
    remarks[SCALED] = f"from {low:.6g} to {high:.6g}"
    scaled = (values - np.float64(low)) * (255 / max(high - low, 1e-12))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def _check_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise BadImage(f"{width} x {height} is smaller than {MIN_SIDE} pixels")
    if width * height > MAX_PIXELS:
        raise BadImage(f"claims more than {MAX_PIXELS:,} pixels")


def _page_remark(pages: int) -> dict[str, str]:
    return {PAGES: f"the first of {pages} is"} if pages > 1 else {}


def _read_picture(image: Image.Image, path: str | Path, channels: int) -> Decoded:
    remarks = _page_remark(getattr(image, "n_frames", 1))
    if image.mode in ("LA", "RGB", "RGBA") and ";16" in str(image.tile):
        image = _read_deep(path, image, remarks)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits, one channel
        image = Image.fromarray(_scale(np.asarray(image), remarks))
    return _finish(image, channels, remarks)


def _read_deep(path: str | Path, image: Image.Image, remarks: dict) -> Image.Image:
    """16 bits a channel, in colour or with alpha, of which Pillow would give the upper 8 only."""
    image.load()  # refuses a cut file, which cv2 would fill
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    eight = _scale(values[..., 2::-1], remarks)  # of BGR or BGRA
    if values.shape[2] == 4:
        eight = np.dstack([eight, (values[..., 3] // 257).astype(np.uint8)])
    deep = Image.fromarray(eight)
    deep.getexif().update(image.getexif())  # the orientation
    return deep


def _read_dicom(path: str | Path, channels: int) -> Decoded:
    """The first frame: by its window, or `robust_range` above 8 bits; bone is white."""
    try:
        from pydicom import dcmread, pixels
    except ImportError as error:
        raise BadImage("is DICOM: `pip install pydicom`, then it is read") from error
    file = dcmread(path)
    _check_size(file.Columns, file.Rows)
    values = pixels.pixel_array(file, index=0)
    if file.PhotometricInterpretation == "PALETTE COLOR":
        values = pixels.apply_color_lut(values, file)
    remarks = _page_remark(int(file.get("NumberOfFrames") or 1))
    if values.ndim == 2:
        values = _apply_window(values, file, remarks)
    pixels, more, _ = from_array(values, channels)
    return Decoded(pixels, remarks | more, str(file.get("PatientID") or "").strip())


def _apply_window(values: np.ndarray, file, remarks: dict) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut

    known = values != file.get("PixelPaddingValue")
    values = apply_modality_lut(values, file)
    if "WindowWidth" in file:
        centre = float(np.ravel(file.WindowCenter)[0])  # of several windows the first
        width = float(np.ravel(file.WindowWidth)[0])
        values = _scale(values, remarks, (centre - width / 2, centre + width / 2))
    elif values.dtype != np.uint8:
        values = _scale(values, remarks, robust_range(values[known][:, None]))
    return 255 - values if file.PhotometricInterpretation == "MONOCHROME1" else values


def _finish(image: Image.Image, channels: int, remarks: dict) -> Decoded:
    """8 bits in any mode -> L or RGB without alpha, and remarks on what is unusual."""
    if "A" in image.getbands() or "transparency" in image.info:
        image = _over_ground(image.convert("RGBA"), remarks)
    if image.mode not in ("L", "RGB"):  # palette, CMYK, 1 bit, YCbCr, ...
        image = image.convert("RGB")
    grey = np.asarray(image.convert("L"))
    levels = np.count_nonzero(cv2.calcHist([grey], [0], None, [256], [0, 256]))
    if levels == 1:
        remarks["constant"] = f"{grey[0, 0]} everywhere"
    elif levels < FEW_LEVELS:
        remarks[f"fewer than {FEW_LEVELS} grey levels"] = f"{levels}"
    return Decoded(grey if channels == 1 else np.asarray(image.convert("RGB")), remarks)


def _over_ground(image: Image.Image, remarks: dict) -> Image.Image:
    grey, alpha = np.asarray(image.convert("L")), np.asarray(image.getchannel("A"))
    if alpha.min() == 255:
        return image.convert("RGB")
    visible = grey[alpha > 0]
    ground = "white" if visible.size and visible.mean() < DARK else "black"
    remarks["transparent"] = f"laid over {ground}"
    return Image.alpha_composite(Image.new("RGBA", image.size, ground), image)


def apply_clahe(image: np.ndarray, clip: float = 2.0, tiles: int = 8) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of a uint8 image.

    Applied to (H, W) directly, to (H, W, 3) RGB on the lightness of LAB; same shape back. `clip` is
    cv2's clip limit, and 0 returns the image unchanged; `tiles` is per side.
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

    "squash" resizes each side by itself. "crop" keeps the central square, `crop` times the shorter
    side. "pad" adds black bars. "frame" is "pad" that never enlarges (28x28 -> 32x32).
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
    scale = min(scale, 1.0) if how == "frame" else scale
    height, width = (max(1, round(side * scale)) for side in (height, width))
    image = _resize(image, height, width)  # bars last: a narrow strip would make a huge square
    top, left = (size - height) // 2, (size - width) // 2
    square = np.zeros((size, size, *image.shape[2:]), np.uint8)
    square[top : top + height, left : left + width] = image
    return square


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
    """Reads the images that `sources.list_images(path)` lists: files, or rows of arrays."""

    def __init__(self, path: Path, channels: int):
        self.path, self.channels = path, channels
        self.arrays = read_arrays(path)

    def read(self, name: str) -> Decoded:
        """The image in the file or the row; BadImage as in `decode`."""
        if not self.arrays:
            return read_image(self.path / name, self.channels)
        part, row = name.split("/")
        images, _ = self.arrays[part]
        return from_array(images[int(row)], self.channels)


def read_arrays(path: Path) -> dict[str, tuple[np.ndarray, list[str]]]:
    """A data set stored as arrays: {part: (uint8 (N, H, W) or (N, H, W, 3), N class names)}.

    `path` is a folder with Fashion-MNIST's idx files, gzipped or not, or with CIFAR-10's python
    batches; or an .npz with train_images, train_labels, ... (MedMNIST), with x_train, y_train, ...
    or with x and y. Class names come from `classes`, else they are numbers. Parts are "train",
    "val" and "test" where the file has them, or "all". {} for any other path, BadImage for damaged
    files.
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
    except Exception as error:  # readers raise many kinds of errors
        raise BadImage(f"{path} cannot be read: {error}") from error


def _read_npz(path: Path) -> tuple[dict, list[str]]:
    keys = {part: (f"{part}_images", f"{part}_labels") for part in SPLITS}
    with np.load(path) as file:
        if "train_images" not in file:
            keys = {part: (f"x_{part}", f"y_{part}") for part in SPLITS} | {"all": ("x", "y")}
        parts = {part: (file[x], file[y]) for part, (x, y) in keys.items() if x in file}
        if not parts:
            raise ValueError(f"it has {file.files}, not train_images, x_train or x")
        classes = [str(name) for name in file.get("classes", ())]
    for part, (x, y) in parts.items():
        if y.size > len(x):
            raise ValueError(f"{part} has {y.shape[1:]} labels an image, not one")
        parts[part] = x, y.reshape(-1).astype(int)
    highest = max(y.max(initial=0) for _, y in parts.values())
    return parts, classes or [str(label) for label in range(highest + 1)]


def _read_fashion(folder: Path) -> tuple[dict, list[str]]:
    from torchvision.datasets import FashionMNIST

    parts = {}
    for part, start in (("train", "train"), ("test", "t10k")):
        kinds = "images-idx3-ubyte", "labels-idx1-ubyte"
        parts[part] = tuple(_read_idx(folder, f"{start}-{kind}") for kind in kinds)
    return parts, FashionMNIST.classes


def _read_cifar(folder: Path) -> tuple[dict, list[str]]:
    from torchvision.datasets import CIFAR10

    train = CIFAR10(folder.parent, train=True)  # checks MD5 sums before it unpickles
    test = CIFAR10(folder.parent, train=False)
    parts = {"train": (train.data, train.targets), "test": (test.data, test.targets)}
    return parts, train.classes


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """LeCun's format: two zeros, the type, the rank, big-endian sizes, then the numbers."""
    if (folder / name).is_file():
        data = (folder / name).read_bytes()
    else:
        data = gzip.decompress((folder / f"{name}.gz").read_bytes())
    rank = data[3]
    sizes = np.frombuffer(data, ">i4", count=rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sizes)
