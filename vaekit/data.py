"""Data in memory: three splits of uint8 images, and batches cut from them."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from vaekit.config import Config, stage_sizes

SPLITS = ("train", "val", "test")
ROUNDING = 1e-3  # by which pixels may leave [0, 1]
# share of the free CUDA memory that a split may take
ON_DEVICE = 0.4


@dataclass(eq=False, repr=False)
class Split:
    """One side of the data: images uint8 (N, C, H, W), labels int64 (N,) into `classes`."""

    images: Tensor
    labels: Tensor
    names: list[str]
    groups: list[str]  # the patient of each image
    classes: list[str]
    # device -> the images there
    _copies: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {len(set(self.groups))} patients)"

    def to_device(self, device: str | torch.device) -> Tensor:
        """The images on `device`, copied once; `images` itself where CUDA has too little room."""
        device = torch.device(device)
        if device.type == "cpu":
            return self.images
        if device not in self._copies:
            room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else inf
            fits = self.images.nbytes <= ON_DEVICE * room
            self._copies[device] = self.images.to(device) if fits else self.images
        return self._copies[device]


@dataclass(eq=False, repr=False)
class Data:
    """Three splits that share no patient, where they came from, and what was left out and why."""

    train: Split
    val: Split
    test: Split
    classes: list[str]
    source: str
    path: str
    # of pixels, labels and split: the same files elsewhere have the same
    hash: str
    # (name, why it cannot be used)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    # (name, why it is in no split)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    # patients by name that near-duplicate images joined to another
    merged: int = 0
    # {what: {name: detail}}
    remarks: dict[str, dict[str, str]] = field(default_factory=dict)
    # what is apart: "patients" where file names tell of them
    who: str = "groups"
    # what the reader of the summary should know
    notes: list[str] = field(default_factory=list)
    # of the cache, with the three splits in it; "" where they are only in memory
    file: str = ""

    def check(self, cfg: Config) -> None:
        """ValueError unless the images are of cfg.image_size and cfg.in_channels; a warning where a
        codebook has more codes than an epoch shows it."""
        shape = tuple(self.train.images.shape[1:])
        wanted = (cfg.in_channels, cfg.image_size, cfg.image_size)
        if shape != wanted:
            raise ValueError(f"images are {shape}, in_channels and image_size ask for {wanted}")
        n = min(len(self.train), cfg.epoch_images or len(self.train))
        shown = n * stage_sizes(cfg)[-1] ** 2
        if cfg.num_codes > shown:
            said = f"{cfg.num_codes} codes, and an epoch of {n} images has only {shown} places"
            warnings.warn(f"{said}: take fewer, most would never be used", stacklevel=3)

    def summary(self) -> str:
        """A table of images and patients per split and class, and what was left out."""
        table = [("", "images", self.who, *self.classes)]
        for name in SPLITS:
            split = getattr(self, name)
            counts = torch.bincount(split.labels, minlength=len(self.classes)).tolist()
            table.append((name, len(split), len(set(split.groups)), *counts))
        width = max(9, *(len(name) + 2 for name in self.classes))
        lines = [f"{self.source}, hash {self.hash[:12]}"]
        for name, *cells in table:
            lines.append(f"{name:7}" + "".join(f"{cell:>{width}}" for cell in cells))
        lines += self.notes
        reasons = Counter(reason for _, reason in self.dropped)
        lines += [f"dropped, {reason}: {count}" for reason, count in reasons.items()]
        for what, images in self.remarks.items():
            name, detail = next(iter(images.items()))
            lines.append(f"{what}: {len(images)} images, such as {name} ({detail})")
        lines += [f"skipped {name}: {reason}" for name, reason in self.skipped[:10]]
        if len(self.skipped) > 10:
            lines.append(f"and {len(self.skipped) - 10} more in data.skipped")
        # a name of a file need not be text
        return "\n".join(lines).encode(errors="backslashreplace").decode()

    # what a notebook shows, rather than a thousand names
    __repr__ = summary

    @classmethod
    def from_tensors(cls, train, val, test, labels=None, classes=None) -> "Data":
        """The caller's own uint8 (N, C, H, W) tensors; every image is its own patient.

        `labels`: three int sequences, one per split; `classes`: their names. ValueError for floats,
        another rank, sides that are not square, shapes that differ, or labels that do not fit.
        """
        images = [torch.as_tensor(x).cpu().contiguous() for x in (train, val, test)]
        shape = tuple(images[0].shape[1:])
        for x in images:
            check_shape("images", x, (*shape[:2], *shape[1:2]))
            if x.dtype != torch.uint8:
                raise ValueError(f"images should be uint8, not {x.dtype}")
        lengths = [len(x) for x in images]
        if labels is None:
            labels = [[0] * n for n in lengths]
        labels = [torch.as_tensor(values, dtype=torch.int64) for values in labels]
        if [len(values) for values in labels] != lengths:
            raise ValueError(f"labels should be three sequences of lengths {lengths}")
        flat = torch.cat(labels).tolist()
        classes = list(classes or map(str, range(max(flat) + 1)))
        if min(flat) < 0 or max(flat) >= len(classes):
            raise ValueError(f"labels run from {min(flat)} to {max(flat)}, classes are {classes}")
        splits = []
        for split, x, values in zip(SPLITS, images, labels, strict=True):
            names = [f"{split}/{i}" for i in range(len(x))]
            splits.append(Split(x, values, names, names, classes))
        facts = (sum(lengths), *shape), flat, lengths, classes
        digest = content_hash((x.numpy() for x in images), facts)
        return cls(*splits, classes, source="tensors", path="", hash=digest)


def content_hash(parts: Iterable, facts: tuple) -> str:
    """SHA-256 of the images, in contiguous parts, and `facts`: shape, labels, lengths, classes."""
    digest = hashlib.sha256(repr(facts).encode())
    for images in parts:
        digest.update(images)
    return digest.hexdigest()


def load_data(cfg: Config, verbose: bool = True, download: bool = False) -> Data:
    """Find, decode, group and split the images `cfg` asks for; the second time, from the cache.

    Prints what was chosen. `download` fetches a known data set that is nowhere on this machine.
    FileNotFoundError where there is nothing to read, ValueError where the patients are too few
    for three splits.
    """
    from vaekit.files.cache import PixelCache
    from vaekit.files.sources import find_dataset, list_images

    found = find_dataset(cfg, download)
    if verbose:
        print(found)
    files, skipped = list_images(found.path)
    images, index = PixelCache(found.path, files, cfg, verbose).load()
    data = unpack(images, index, found.source, str(found.path))
    data.skipped = skipped + data.skipped
    return data


def load_kept(file: str, source: str, path: str) -> Data:
    """What `load_data` kept in `file` of the cache; FileNotFoundError where it is not there."""
    from vaekit.files.cache import read_kept

    kept = read_kept(Path(file))
    if kept is None:
        raise FileNotFoundError(f"{file} is not there, or damaged")
    return unpack(*kept, source, path)


def unpack(images: np.ndarray, index: dict, source: str, path: str) -> Data:
    """The three splits of one array, by the cache's index."""
    file = str(getattr(images, "filename", ""))
    # train, val, test
    images = torch.from_numpy(images).split(index["lengths"])
    labels = torch.tensor(index["labels"]).split(index["lengths"])
    splits = []
    start = 0
    for x, y in zip(images, labels, strict=True):
        rows = slice(start, start + len(x))
        start = rows.stop
        names, groups = index["names"][rows], index["groups"][rows]
        splits.append(Split(x, y, names, groups, index["classes"]))
    facts = {name: index[name] for name in ("hash", "merged", "remarks", "who", "notes")}
    for name, pairs in (("skipped", index["bad"]), ("dropped", index["dropped"])):
        facts[name] = [tuple(pair) for pair in pairs]
    return Data(*splits, index["classes"], source, path, file=file, **facts)


def batches(
    split: Split,
    batch_size: int,
    device: str | torch.device = "cpu",
    order: Tensor | None = None,
    flip: Tensor | None = None,
    channels_last: bool = False,
    shift: Tensor | None = None,
) -> Iterator[Tensor]:
    """(B, C, H, W) in [0, 1] on `device`: the images `order` names (int64), or all of them.

    `flip`: bool, one per entry of `order`, which to mirror; `shift`: int64 (N, 2), how many pixels
    to move each down and to the right (the border is repeated). Images come from the device itself
    where they fit (`Split.to_device`), else through pinned memory. ValueError for an empty split.
    """
    if not len(split):
        raise ValueError("the split has no images")
    order = torch.arange(len(split)) if order is None else order
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(split):
        # CUDA would abort instead
        raise ValueError(f"order should lie in 0..{len(split) - 1}")
    device = torch.device(device)
    images = split.to_device(device)
    order = order.to(images.device)  # once, not once a batch
    flip = None if flip is None else flip.to(device)
    shift = None if shift is None else shift.to(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def cut(start: int) -> Tensor:
        rows = slice(start, start + batch_size)
        x = images[order[rows]]
        if device.type == "cuda" and not x.is_cuda:
            x = x.pin_memory()
        x = x.to(device, non_blocking=True).to(torch.float32, memory_format=layout) / 255
        if flip is not None:
            x = torch.where(flip[rows, None, None, None], x.flip(-1), x)
        return x if shift is None else moved(x, shift[rows])

    return map(cut, range(0, len(order), batch_size))


def moved(x: Tensor, shift: Tensor) -> Tensor:
    """Each image (B, C, S, S) moved by its own (down, right) in `shift` (B, 2), in pixels."""
    last = x.shape[-1] - 1
    at = torch.arange(last + 1, device=x.device)
    rows, columns = ((at - by[:, None]).clamp(0, last) for by in shift.T)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    # (B, S, S, C)
    picked = x.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def being_traced() -> bool:
    """Whether torch records a graph (TorchScript, torch.compile, torch.export), without checks."""
    recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return recorded or _get_current_dispatch_mode() is not None  # such as tensors without values


def check_shape(name: str, x: Tensor, shape: tuple) -> None:
    """ValueError, with the numbers, unless x is a tensor (N, *shape), N > 0."""
    if being_traced():
        return
    if not isinstance(x, Tensor) or 0 in x.shape[:1] or x.shape[1:] != shape:
        wanted = ", ".join(map(str, shape))
        found = tuple(x.shape) if isinstance(x, Tensor) else type(x)
        raise ValueError(f"{name} should be a tensor (N, {wanted}), N > 0, not {found}")


def pixels_of(images, shape: tuple = ("C", "H", "W"), look: bool = False) -> Tensor:
    """The (N, C, H, W) tensor of a Split, or the tensor itself, of this `shape` an image.

    ValueError for another shape or N = 0; with `look`, for pixels that are neither uint8 nor
    between 0 and 1.
    """
    images = getattr(images, "images", images)
    if "C" in shape and isinstance(images, Tensor) and images.dim() == 4:
        shape = images.shape[1:]  # any will do
    check_shape("images", images, shape)
    if look and images.dtype != torch.uint8 and not being_traced():
        low, high = images.aminmax()
        # nor where one is NaN
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            found = f"{images.dtype} from {low:.4g} to {high:.4g}"
            raise ValueError(f"images should be uint8, or floats from 0 to 1, not {found}")
    return images


def model_input(model, images) -> Tensor:
    """Images (N, *model.image_shape) in [0, 1], floats as the weights are; ValueError for others.

    While a model trains on a GPU its pixels are not looked at: each step would wait for it.
    """
    weight = next(model.parameters())
    look = not model.training or weight.is_cpu
    images = pixels_of(images, model.image_shape, look)
    return as_float(images).to(weight.dtype)


def as_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [0, 1]; floating images only become float32."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def chunks(images, batch_size: int = 64, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Float batches (B, C, H, W) in [0, 1] of a Split or a uint8 or float tensor, in order."""
    for part in pixels_of(images).split(batch_size):
        yield as_float(part.to(device))
