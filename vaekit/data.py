"""Data in memory: three splits of uint8 images, and batches cut from them."""

import hashlib
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

import numpy as np
import torch
from torch import Tensor

from vaekit.config import Config

SPLITS = ("train", "val", "test")
CHUNK = 64 * 2**20  # bytes of pixels that are held at a time, however large the set
ON_DEVICE = 0.4  # share of the free CUDA memory that a resident split may take


def _chunks(images: np.ndarray, *others: np.ndarray) -> Iterator[slice]:
    """Rows of `images`, CHUNK bytes at a time; after each, the maps' pages are handed back.

    They are the file's, written or not, but would count as this process's until RAM is full.
    """
    step = max(1, CHUNK * len(images) // images.nbytes)
    for start in range(0, len(images), step):
        yield slice(start, min(start + step, len(images)))
        for array in (images, *others):
            if isinstance(array, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
                array._mmap.madvise(mmap.MADV_DONTNEED)


def _content_hash(parts: list, index: dict) -> str:
    shape = sum(map(len, parts)), *parts[0].shape[1:]
    facts = shape, index["labels"], index["lengths"], index["classes"]
    digest = hashlib.sha256(repr(facts).encode())
    for images in parts:
        for part in _chunks(images):
            digest.update(np.ascontiguousarray(images[part]))
    return digest.hexdigest()


@dataclass(eq=False, repr=False)
class Split:
    """One side of the data: images uint8 (N, C, H, W), labels int64 (N,) into `classes`."""

    images: torch.Tensor
    labels: torch.Tensor
    names: list[str]
    groups: list[str]  # the patient of each image
    classes: list[str]
    _resident: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {len(set(self.groups))} patients)"

    def to_device(self, device: str | torch.device) -> torch.Tensor:
        """The images on `device`, copied once; `images` itself where CUDA has too little room."""
        device = torch.device(device)
        if device.type == "cpu":
            return self.images
        if device not in self._resident:
            room = ON_DEVICE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else inf
            fits = self.images.nbytes <= room
            self._resident[device] = self.images.to(device) if fits else self.images
        return self._resident[device]


@dataclass(eq=False, repr=False)
class Data:
    """Three splits that share no patient, where they came from, and what was left out and why."""

    train: Split
    val: Split
    test: Split
    classes: list[str]
    source: str
    path: str
    hash: str  # of pixels, labels and split: the same files elsewhere have the same
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (name, why it cannot be used)
    dropped: list[tuple[str, str]] = field(default_factory=list)  # (name, why it is in no split)
    merged: int = 0  # patients by name that near-duplicate films joined to another

    def check(self, cfg: Config) -> None:
        """ValueError unless the images are of cfg.image_size and cfg.in_channels."""
        shape, wanted = tuple(self.train.images.shape[1:]), (cfg.in_channels, *[cfg.image_size] * 2)
        if shape != wanted:
            raise ValueError(f"images are {shape}, in_channels and image_size ask for {wanted}")

    def summary(self) -> str:
        """A table of images and patients per split and class, and what was left out.

        Where no file name tells of a patient, what near-duplicates form are groups.
        """
        from vaekit.files.patients import has_patient

        names = (name for split in SPLITS for name in getattr(self, split).names[:100])
        who = "patients" if any(map(has_patient, names)) else "groups"
        rows = [("", "images", who, *self.classes)]
        for name in SPLITS:
            split = getattr(self, name)
            counts = torch.bincount(split.labels, minlength=len(self.classes)).tolist()
            rows.append((name, len(split), len(set(split.groups)), *counts))
        width = max(9, *(len(name) + 2 for name in self.classes))
        lines = [f"{self.source}, hash {self.hash[:12]}"]
        lines += [f"{name:7}" + "".join(f"{x:>{width}}" for x in row) for name, *row in rows]
        if self.merged:
            lines.append(f"{who} joined by near-duplicate images: {self.merged}")
        for reason, count in Counter(reason for _, reason in self.dropped).items():
            lines.append(f"dropped, {reason}: {count}")
        lines += [f"skipped {name}: {reason}" for name, reason in self.skipped[:10]]
        if len(self.skipped) > 10:
            lines.append(f"and {len(self.skipped) - 10} more in data.skipped")
        return "\n".join(lines)

    __repr__ = summary  # what a notebook shows, rather than a thousand names

    @classmethod
    def from_tensors(cls, train, val, test, labels=None, classes=None) -> "Data":
        """The caller's own uint8 (N, C, H, W) tensors; every image is its own patient.

        `labels`: three int sequences, one per split; `classes`: their names. ValueError for floats,
        another rank, sides that are not square, shapes that differ, or labels that do not fit.
        """
        parts = [torch.as_tensor(images).cpu().contiguous() for images in (train, val, test)]
        for x in parts:
            if x.dtype != torch.uint8 or x.ndim != 4 or 0 in x.shape or x.shape[2] != x.shape[3]:
                got = f"{x.dtype} {tuple(x.shape)}"
                raise ValueError(f"images should be uint8 (N, C, S, S) with N > 0, not {got}")
        lengths, shapes = [len(x) for x in parts], [tuple(x.shape[1:]) for x in parts]
        if len(set(shapes)) > 1:
            raise ValueError(f"images are {shapes}: should be the same in all three")
        labels = labels or [[0] * length for length in lengths]
        labels = [torch.as_tensor(values, dtype=torch.int64) for values in labels]
        if [tuple(values.shape) for values in labels] != [(length,) for length in lengths]:
            raise ValueError(f"labels should be three sequences of lengths {lengths}")
        flat = torch.cat(labels).tolist()
        classes = list(classes or map(str, range(max(flat) + 1)))
        if min(flat) < 0 or max(flat) >= len(classes):
            raise ValueError(f"labels run from {min(flat)} to {max(flat)}, classes are {classes}")
        names = [f"{name}/{i}" for name, n in zip(SPLITS, lengths, strict=True) for i in range(n)]
        index = dict(labels=flat, lengths=lengths, classes=classes, names=names, groups=names)
        digest = _content_hash([images.numpy() for images in parts], index)
        return cls(*_splits(parts, index), classes, source="tensors", path="", hash=digest)


def _splits(parts: list[torch.Tensor], index: dict) -> list[Split]:
    splits, start = [], 0
    for images in parts:
        rows = slice(start, start + len(images))
        names, groups, labels = (index[key][rows] for key in ("names", "groups", "labels"))
        splits.append(Split(images, torch.tensor(labels), names, groups, index["classes"]))
        start = rows.stop
    return splits


def load_data(cfg: Config, verbose: bool = True, download: bool = False) -> Data:
    """Find, decode, group and split the images `cfg` asks for; the second time, from the cache.

    Prints what was chosen. `download` fetches a known data set that is nowhere on this machine.
    FileNotFoundError where there is nothing to read, ValueError where the patients are too few
    for three splits.
    """
    from vaekit.files.cache import _load_arrays
    from vaekit.files.sources import find_dataset, list_images

    found = find_dataset(cfg, download)
    if verbose:
        print(found)
    files, skipped = list_images(found.path)
    images, index = _load_arrays(found.path, files, cfg, verbose)
    parts = torch.from_numpy(images).split(index["lengths"])
    return Data(
        *_splits(parts, index),
        classes=index["classes"],
        source=found.source,
        path=str(found.path),
        hash=index["hash"],
        skipped=skipped + [tuple(pair) for pair in index["bad"]],
        dropped=[tuple(pair) for pair in index["dropped"]],
        merged=index["merged"],
    )


def batches(
    split: Split,
    batch_size: int,
    device: str | torch.device = "cpu",
    order: torch.Tensor | None = None,
    flip: torch.Tensor | None = None,
    channels_last: bool = False,
) -> Iterator[torch.Tensor]:
    """(B, C, H, W) in [0, 1] on `device`: the images `order` names (int64), or all of them.

    `flip`: bool, one per entry of `order`, which to mirror. Images come from the device itself
    where they fit (`Split.to_device`), else through pinned memory. ValueError for an empty split.
    """
    if not len(split):
        raise ValueError("the split has no images")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} should be at least 1")
    order = torch.arange(len(split)) if order is None else torch.as_tensor(order)
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(split):
        raise ValueError(f"order should lie in 0..{len(split) - 1}")  # CUDA would abort instead
    if flip is not None and flip.shape != order.shape:
        raise ValueError(f"flip {tuple(flip.shape)} should have the shape of order")
    images, device = split.to_device(device), torch.device(device)
    order = order.to(images.device)  # once, not once a batch
    flip = None if flip is None else flip.to(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def cut(start: int) -> torch.Tensor:
        rows = slice(start, start + batch_size)
        x = images[order[rows]]
        if device.type == "cuda" and not x.is_cuda:
            x = x.pin_memory()
        x = x.to(device, non_blocking=True).to(torch.float32, memory_format=layout) / 255
        return x if flip is None else torch.where(flip[rows, None, None, None], x.flip(-1), x)

    return map(cut, range(0, len(order), batch_size))


def pixels_of(images) -> Tensor:
    """The (N, C, H, W) tensor of a Split, or the tensor itself; ValueError for others or N=0."""
    images = getattr(images, "images", images)
    if images.dim() != 4 or not len(images):
        raise ValueError(f"images should be (N, C, H, W), N > 0, not {tuple(images.shape)}")
    return images


def as_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [0, 1]; floating images only become float32."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def chunks(images, batch_size: int = 64, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Float batches (B, C, H, W) in [0, 1] of a Split or a uint8 or float tensor, in order."""
    for part in pixels_of(images).split(batch_size):
        yield as_float(part.to(device))
