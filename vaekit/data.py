"""From files to batches: decode once, split by patient, keep in a cache, cut batches.

find and list (vaekit.sources) -> decode (vaekit.images) -> split (vaekit.patients) -> batches
"""

import hashlib
import json
import mmap
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path

import cv2
import numpy as np
import torch

from vaekit.config import Config
from vaekit.images import BadImage, fit_square, prepare, reader
from vaekit.patients import (
    SPLITS,
    THUMB,
    group_patients,
    has_patient,
    near_duplicates,
    split_by_patient,
)
from vaekit.sources import EXPECTED, cache_dir, find_dataset, list_images

CACHE_VERSION = 3  # raise it when the same files and Config would give other pixels or splits
PIXEL_FIELDS = ("image_size", "in_channels", "fit", "crop", "clahe_clip", "clahe_tiles")
SPLIT_FIELDS = ("val_fraction", "patient_key", "seed", "max_images")
CHUNK = 64 * 2**20  # bytes of pixels that are held at a time, however large the set
ON_DEVICE = 0.4  # share of the free CUDA memory that a resident split may take


def _key(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _in_memory(shape: tuple) -> np.ndarray:
    return np.zeros(shape, np.uint8)


def _on_disk(path: Path, shape: tuple) -> np.ndarray:
    images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):  # a mapped write to a full disk would kill the process
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


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


def _open(file: Path) -> tuple[np.ndarray, dict] | None:
    """(images, index) as `_cached` wrote them, None where they are missing or damaged."""
    with suppress(OSError, ValueError, EOFError):
        images = np.load(file, mmap_mode="c")  # "c": torch wants it writable
        with open(file, "rb") as rest:
            rest.seek(images.offset + images.nbytes)
            return images, json.loads(rest.read())
    return None


def _cached(file: Path, build: Callable) -> tuple[np.ndarray, dict]:
    """(images, index) from `file`; where it is missing or damaged, from `build(new_array)`.

    One file, the index after the pixels: written beside its place and renamed, so that nobody
    sees half of it. In RAM where that is impossible.
    """
    if kept := _open(file):
        return kept
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as temporary:
            written = Path(temporary) / file.name
            images, index = build(partial(_on_disk, written))
            images.flush()
            with open(written, "ab") as end:
                end.write(json.dumps(index).encode())
            os.replace(written, file)
        return np.load(file, mmap_mode="c"), index
    except FileNotFoundError:  # not the cache's fault: no image is usable
        raise
    except OSError as error:
        warnings.warn(f"no cache in {file.parent} ({error}): images stay in RAM", stacklevel=3)
        return build(_in_memory)


def _decode_all(root: Path, names: list, cfg: Config, verbose: bool, new: Callable) -> tuple:
    """Images (N, C, S, S) in the order of `names`, {"bad": [(row, reason)], "pairs": [(i, j)]}."""
    images = new((len(names), cfg.in_channels, cfg.image_size, cfg.image_size))
    if verbose and len(names) >= 1000:
        print(f"decoding {len(names):,} images once; after that they come from the cache")
    read, merge = reader(root, cfg.in_channels), cfg.patient_key != "none"
    thumbs, bad = _in_memory((len(names) * merge, THUMB, THUMB)), []

    def one(row: int) -> None:
        try:
            image = read(names[row])
        except BadImage as error:
            bad.append((row, str(error)))
            return
        images[row] = prepare(image, cfg)
        if merge:  # from the file, not from what was prepared: the split is of every image_size
            thumb = fit_square(image, THUMB, "squash")
            thumbs[row] = thumb if thumb.ndim == 2 else cv2.cvtColor(thumb, cv2.COLOR_RGB2GRAY)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 32)) as pool:
        for part in _chunks(images):
            list(pool.map(one, range(part.start, part.stop)))  # a list, to raise what they raise
    return images, {"bad": sorted(bad), "pairs": near_duplicates(thumbs) if merge else []}


def _plan(root: Path, files: list[tuple], facts: dict, cfg: Config) -> tuple[list[int], dict]:
    """The rows of `files` that are train, then val, then test, and the index that goes with them.

    FileNotFoundError where no file is usable.
    """
    bad = dict(facts["bad"])
    good = [row for row in range(len(files)) if row not in bad]
    if not good:
        why = "".join(f"\n  {files[row][0]}: {reason}" for row, reason in facts["bad"][:20])
        what = f"none of {len(files)} files in {root} is a usable image"
        raise FileNotFoundError(f"{what}; expected {EXPECTED}{why}")
    groups = group_patients([file[0] for file in files], facts["pairs"], cfg.patient_key)
    groups = [groups[row] for row in good]
    names, own, given = zip(*(files[row][:3] for row in good), strict=True)
    classes, labels = (array.tolist() for array in np.unique(given, return_inverse=True))
    rows, dropped = split_by_patient(names, own, labels, groups, cfg)
    order = [i for split in SPLITS for i in rows[split]]
    return [good[i] for i in order], {
        "lengths": [len(rows[split]) for split in SPLITS],
        "names": [names[i] for i in order],
        "groups": [groups[i] for i in order],
        "labels": [labels[i] for i in order],
        "classes": classes,
        "bad": [(files[row][0], reason) for row, reason in bad.items()],
        "dropped": [(names[i], reason) for i, reason in sorted(dropped.items())],
        "merged": len(set(group_patients(names, how=cfg.patient_key))) - len(set(groups)),
    }


def _arrange(pixels: np.ndarray, order: list[int], index: dict, new: Callable) -> tuple:
    """Images with train, val and test one after the other, and their index."""
    images = new((len(order), *pixels.shape[1:]))
    for part in _chunks(images, pixels):
        images[part] = pixels[order[part]]
    return images, index | {"hash": _content_hash([images], index)}


def _decode_in_order(root: Path, files: list, cfg: Config, verbose: bool, new: Callable) -> tuple:
    """`_arrange` where the split needs no pixels: one copy on disk, and only what is asked for."""
    bad: list[tuple[int, str]] = []
    while True:  # a damaged file changes the split: again, without it
        order, index = _plan(root, files, {"bad": bad, "pairs": []}, cfg)
        images, facts = _decode_all(root, [files[row][0] for row in order], cfg, verbose, new)
        if not facts["bad"]:
            return images, index | {"hash": _content_hash([images], index)}
        bad = sorted(bad + [(order[i], reason) for i, reason in facts["bad"]])


def _content_hash(parts: list, index: dict) -> str:
    shape = sum(map(len, parts)), *parts[0].shape[1:]
    facts = shape, index["labels"], index["lengths"], index["classes"]
    digest = hashlib.sha256(repr(facts).encode())
    for images in parts:
        for part in _chunks(images):
            digest.update(np.ascontiguousarray(images[part]))
    return digest.hexdigest()


def _load_arrays(root: Path, files: list[tuple], cfg: Config, verbose: bool) -> tuple:
    """(images, index) of _arrange. Pixels have a key of their own: a new seed decodes nothing."""
    pixels, split = ([getattr(cfg, name) for name in x] for x in (PIXEL_FIELDS, SPLIT_FIELDS))
    pixel_key = _key(CACHE_VERSION, cv2.__version__, files, pixels)
    file = cache_dir() / f"split-{_key(pixel_key, split)}.npy"
    if kept := _open(file):
        return kept
    if cfg.patient_key == "none":
        return _cached(file, partial(_decode_in_order, root, files, cfg, verbose))
    decode = partial(_decode_all, root, [file[0] for file in files], cfg, verbose)
    pixels, facts = _cached(cache_dir() / f"pixels-{pixel_key}.npy", decode)
    arrange = partial(_arrange, pixels, *_plan(root, files, facts, cfg))
    return _cached(file, arrange) if isinstance(pixels, np.memmap) else arrange(_in_memory)


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
