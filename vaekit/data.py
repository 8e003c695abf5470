"""Data in memory: three splits of uint8 images, and batches cut from them."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from vaekit import checks
from vaekit.config import Config

SPLITS = ("train", "val", "test")
# largest share of the free CUDA memory that a split may take
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
    """Three splits that share no patient, with their source and what was left out, and why."""

    train: Split
    val: Split
    test: Split
    classes: list[str]
    source: str
    path: str
    # of pixels, labels and splits: the same for the same files on another machine
    hash: str
    # (name, why the file cannot be read or used)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    # (name, why a usable image is in no split)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    # {remark: {image: detail}}
    remarks: dict[str, dict[str, str]] = field(default_factory=dict)
    # what the splits keep apart: "patients" where names or files identify them
    who: str = "groups"
    # lines of the summary
    notes: list[str] = field(default_factory=list)
    # the cache file that holds the three splits, which other processes read (`keep.launch`); ""
    # where they are only in memory
    file: str = ""

    def summary(self) -> str:
        """A table of images and patients per split and class, and what was left out."""
        from vaekit.files.summary import table

        return table(self)

    # a notebook then shows the table, not thousands of names
    __repr__ = summary

    @classmethod
    def from_tensors(cls, train, val, test, labels=None, classes=None) -> "Data":
        """The caller's own uint8 (N, C, H, W) tensors; every image is its own patient.

        `labels`: three int sequences, one per split; `classes`: their names. ValueError for floats,
        a wrong number of dimensions, images that are not square, shapes that differ, or labels
        that do not fit.
        """
        images = [torch.as_tensor(x).cpu().contiguous() for x in (train, val, test)]
        lengths = [len(x) for x in images]
        labels = [[0] * n for n in lengths] if labels is None else labels
        labels = [torch.as_tensor(values, dtype=torch.int64) for values in labels]
        flat = torch.cat(labels).tolist()
        classes = list(classes or map(str, range(max(flat, default=0) + 1)))
        checks.check_tensors(images, labels, classes)
        splits = []
        for split, x, values in zip(SPLITS, images, labels, strict=True):
            names = [f"{split}/{i}" for i in range(len(x))]
            splits.append(Split(x, values, names, names, classes))
        facts = (sum(lengths), *images[0].shape[1:]), flat, lengths, classes
        digest = content_hash((x.numpy() for x in images), facts)
        return cls(*splits, classes, source="tensors", path="", hash=digest)


def content_hash(parts: Iterable, facts: tuple) -> str:
    """SHA-256 of the images, in contiguous parts, and `facts`: shape, labels, lengths, classes."""
    digest = hashlib.sha256(repr(facts).encode())
    for images in parts:
        digest.update(images)
    return digest.hexdigest()


def load_data(cfg: Config, verbose: bool = True, download: bool = False) -> Data:
    """Find, decode, prepare (CLAHE, square, size) images; group them by patient (near-duplicates
    together) and split them. The second time they come from the cache.

    Prints what it found. `download` fetches a known data set that is not on this machine.
    FileNotFoundError where there are no images, ValueError for too few patients for three splits.
    """
    from vaekit.files.cache import PixelCache, unpack
    from vaekit.files.sources import find_dataset, list_images

    found = find_dataset(cfg, download)
    if verbose:
        print(found)
    files, skipped = list_images(found.path)
    kept = PixelCache(found.path, files, cfg, verbose).load()
    data = unpack(*kept, found.source, str(found.path))
    data.skipped = skipped + data.skipped
    return data


def load_kept(file: str, source: str, path: str) -> Data:
    """The data that `load_data` stored in `file` of the cache, read in another process."""
    from vaekit.files.cache import read_kept, unpack

    return unpack(*read_kept(file), source, path)


def batches(
    split: Split,
    batch_size: int,
    device: str | torch.device = "cpu",
    order: Tensor | None = None,
    flip: Tensor | None = None,
    channels_last: bool = False,
    shift: Tensor | None = None,
) -> Iterator[Tensor]:
    """(B, C, H, W) in [0, 1] on `device`: the images that `order` (int64) lists, or all of them.

    `flip`: bool, one per entry of `order`, mirrors that image. `shift`: int64 (N, 2), moves it down
    and to the right by so many pixels; the border is repeated. Images are kept on the device where
    they fit (`Split.to_device`), else they pass through pinned memory. ValueError without images.
    """
    order = torch.arange(len(split)) if order is None else order
    checks.check_batches(len(split), order)
    device = torch.device(device)
    images = split.to_device(device)
    order = order.to(images.device)  # once, not once a batch
    flip, shift = (None if plan is None else plan.to(device) for plan in (flip, shift))
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
    at = torch.arange(x.shape[-1], device=x.device)
    rows, columns = ((at - by[:, None]).clamp(0, len(at) - 1) for by in shift.T)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    # (B, S, S, C)
    picked = x.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def pixels_of(images) -> Tensor:
    """The (N, C, H, W) tensor of a Split, or the tensor itself.

    ValueError for another shape or N = 0.
    """
    images = getattr(images, "images", images)
    checks.check_shape("images", images, ("C", "H", "W"))
    return images


def model_input(model, images) -> Tensor:
    """Images (N, *model.image_shape) in [0, 1], floats as the weights are; ValueError for others.

    While a model trains on a GPU the range is not checked: each step would wait for the result.
    """
    weight = next(model.parameters())
    images = getattr(images, "images", images)
    checks.check_shape("images", images, model.image_shape)
    if not model.training or weight.is_cpu:
        checks.check_range(images)
    return as_float(images).to(weight.dtype)


def as_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [0, 1]; floats are only converted to float32."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def chunks(images, batch_size: int = 64, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Float batches (B, C, H, W) in [0, 1] of a Split or a uint8 or float tensor, in order."""
    for part in pixels_of(images).split(batch_size):
        yield as_float(part.to(device))
