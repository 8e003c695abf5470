"""From files to batches: decode once, split by patient, keep in a cache, cut batches.

find and list (vaekit.sources) -> decode (vaekit.images) -> split (vaekit.patients) -> batches
"""

import hashlib
import json
import mmap
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from vaekit.config import Config
from vaekit.images import BadImage, apply_clahe, decode, fit_square, prepare, reader
from vaekit.patients import (
    NEAR_DUPLICATE,
    SPLITS,
    THUMB,
    group_patients,
    near_duplicates,
    patient_key,
    split_by_patient,
)  # fmt: skip
from vaekit.sources import EXPECTED, cache_dir, find_dataset, list_images

__all__ = [
    "Data", "Split", "apply_clahe", "batches", "cache_dir", "decode", "find_dataset",
    "fit_square", "list_images", "load_data", "near_duplicates", "patient_key", "prepare",
]  # fmt: skip

CACHE_VERSION = 2  # raise it when the same files and Config would give other pixels or splits
PIXEL_FIELDS = ("image_size", "in_channels", "fit", "crop", "clahe_clip", "clahe_tiles")
SPLIT_FIELDS = ("val_fraction", "patient_key", "seed", "max_images")
CHUNK = 64 * 2**20  # bytes of pixels that are held at a time, however large the set
ON_DEVICE = 0.4  # share of the free CUDA memory that a resident split may take


def _key(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _values(cfg: Config, fields: tuple) -> list:
    return [getattr(cfg, name) for name in fields]


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


def _open(folder: Path) -> tuple[np.ndarray, dict]:
    index = json.loads((folder / "index.json").read_bytes())
    return np.load(folder / "images.npy", mmap_mode="c"), index  # "c": torch wants it writable


def _cached(folder: Path, build: Callable) -> tuple[np.ndarray, dict]:
    """(images, index) from `folder`; where it is missing or damaged, from `build(new_array)`.

    Written beside it and renamed, so that nobody sees half of it. In RAM where that is impossible.
    """
    with suppress(OSError, ValueError):
        return _open(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            temporary = Path(temporary) / folder.name
            temporary.mkdir()
            images, index = build(partial(_on_disk, temporary / "images.npy"))
            images.flush()
            (temporary / "index.json").write_text(json.dumps(index))
            try:
                os.replace(temporary, folder)
            except OSError:  # it is there: another process's, just as good, or a damaged one
                try:
                    return _open(folder)
                except (OSError, ValueError):
                    shutil.rmtree(folder)
                    os.replace(temporary, folder)
        return _open(folder)
    except FileNotFoundError:  # not the cache's fault: no image is usable
        raise
    except OSError as error:
        warnings.warn(f"no cache in {folder.parent} ({error}): images stay in RAM", stacklevel=3)
        return build(_in_memory)


def _decode_all(root: Path, names: list, cfg: Config, verbose: bool, new: Callable) -> tuple:
    """Images (N, C, S, S) in the order of `names`, {"bad": {row: reason}, "pairs": duplicates}."""
    images = new((len(names), cfg.in_channels, cfg.image_size, cfg.image_size))
    if verbose and len(names) >= 1000:
        print(f"decoding {len(names):,} images once; after that they come from the cache")
    read, merge = reader(root, cfg.in_channels), cfg.patient_key != "none"
    thumbs = _in_memory((len(names) * merge, THUMB, THUMB))

    def one(row: int) -> str:
        try:
            image = read(names[row])
        except BadImage as error:
            return str(error)
        images[row] = prepare(image, cfg)
        if merge:  # from the file, not from what was prepared: the split is of every image_size
            thumb = fit_square(image, THUMB, "squash")
            thumbs[row] = thumb if thumb.ndim == 2 else cv2.cvtColor(thumb, cv2.COLOR_RGB2GRAY)
        return ""

    bad = {}
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 32)) as pool:
        for part in _chunks(images):
            rows = range(part.start, part.stop)
            bad |= {row: why for row, why in zip(rows, pool.map(one, rows), strict=True) if why}
    return images, {"bad": bad, "pairs": near_duplicates(thumbs) if merge else []}


def _plan(root: Path, files: list[tuple], facts: dict, cfg: Config) -> tuple[list[int], dict]:
    """The rows of `files` that are train, then val, then test, and the index that goes with them.

    FileNotFoundError where no file is usable.
    """
    bad = {int(row): reason for row, reason in facts["bad"].items()}  # JSON made them strings
    good = [row for row in range(len(files)) if row not in bad]
    if not good:
        reasons = [f"\n  {files[row][0]}: {why}" for row, why in bad.items()]
        raise FileNotFoundError(
            f"none of {len(files)} files in {root} is a usable image; expected {EXPECTED}"
            + "".join(reasons[:20])
        )
    groups = group_patients([file[0] for file in files], facts["pairs"], cfg.patient_key)
    columns = [files[row][:3] for row in good]
    names, own, given = (list(column) for column in zip(*columns, strict=True))
    classes = sorted(set(given))
    number = {name: i for i, name in enumerate(classes)}
    labels = [number[label] for label in given]
    groups = [groups[row] for row in good]
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


def _arrange(root: Path, files: list[tuple], pixels: np.ndarray, facts: dict, cfg: Config,
             new: Callable) -> tuple[np.ndarray, dict]:  # fmt: skip
    """Images with train, val and test one after the other, and their index."""
    order, index = _plan(root, files, facts, cfg)
    images = new((len(order), *pixels.shape[1:]))
    for part in _chunks(images, pixels):
        images[part] = pixels[order[part]]
    return images, _hashed(images, index)


def _decode_in_order(root: Path, files: list[tuple], cfg: Config, verbose: bool,
                     new: Callable) -> tuple[np.ndarray, dict]:  # fmt: skip
    """`_arrange` where the split needs no pixels: one copy on disk, and only what is asked for."""
    bad = {}
    while True:  # a damaged file changes the split: again, without it
        order, index = _plan(root, files, {"bad": bad, "pairs": []}, cfg)
        images, facts = _decode_all(root, [files[row][0] for row in order], cfg, verbose, new)
        if not facts["bad"]:
            return images, _hashed(images, index)
        bad |= {order[i]: reason for i, reason in facts["bad"].items()}


def _hashed(images: np.ndarray, index: dict) -> dict:
    facts = index["labels"], index["lengths"], index["classes"]
    return index | {"hash": _content_hash([images], *facts)}


def _content_hash(parts: list, labels: list[int], lengths: list[int], classes: list) -> str:
    shape = sum(map(len, parts)), *parts[0].shape[1:]
    digest = hashlib.sha256(repr((shape, labels, lengths, classes)).encode())
    for images in parts:
        for part in _chunks(images):
            digest.update(np.ascontiguousarray(images[part]))
    return digest.hexdigest()


def _load_arrays(root: Path, files: list[tuple], cfg: Config, verbose: bool) -> tuple:
    """(images, index) of _arrange. Pixels have a key of their own: a new seed decodes nothing."""
    made_by = CACHE_VERSION, cv2.__version__, NEAR_DUPLICATE
    pixel_key = _key(made_by, files, _values(cfg, PIXEL_FIELDS))
    split_key = _key(pixel_key, _values(cfg, SPLIT_FIELDS))
    folder = cache_dir() / f"split-{split_key}"
    with suppress(OSError, ValueError):
        return _open(folder)
    if cfg.patient_key == "none":
        return _cached(folder, partial(_decode_in_order, root, files, cfg, verbose))
    build = partial(_decode_all, root, [file[0] for file in files], cfg, verbose)
    pixels, facts = _cached(cache_dir() / f"pixels-{pixel_key}", build)
    build = partial(_arrange, root, files, pixels, facts, cfg)
    return _cached(folder, build) if isinstance(pixels, np.memmap) else build(_in_memory)


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
            fits = True
            if device.type == "cuda":
                fits = self.images.nbytes <= ON_DEVICE * torch.cuda.mem_get_info(device)[0]
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
        """A table of images and patients per split and class, and what was left out."""
        width = max(9, *(len(name) + 2 for name in self.classes))
        heads = ("images", "patients", *self.classes)
        lines = [f"{self.source}, hash {self.hash[:12]}"]
        lines.append(" " * 7 + "".join(f"{head:>{width}}" for head in heads))
        for name in SPLITS:
            split = getattr(self, name)
            counts = torch.bincount(split.labels, minlength=len(self.classes)).tolist()
            row = (len(split), len(set(split.groups)), *counts)
            lines.append(f"{name:7}" + "".join(f"{count:>{width}}" for count in row))
        if self.merged:
            lines.append(f"patients joined by near-duplicate films: {self.merged}")
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
        tensors = dict(zip(SPLITS, map(torch.as_tensor, (train, val, test)), strict=True))
        for name, images in tensors.items():
            if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
                got = f"{images.dtype} {tuple(images.shape)}"
                raise ValueError(f"{name} should be uint8 (N, C, H, W) with N > 0, not {got}")
            if images.shape[1:] != tensors["train"].shape[1:] or images.shape[2] != images.shape[3]:
                raise ValueError(f"{name} {tuple(images.shape)}: square, and the same in all three")
        labels = labels or [[0] * len(images) for images in tensors.values()]
        labels = [torch.as_tensor(values, dtype=torch.int64) for values in labels]
        lengths = [len(images) for images in tensors.values()]
        if [tuple(values.shape) for values in labels] != [(n,) for n in lengths]:
            raise ValueError(f"labels should be three sequences of lengths {lengths}")
        flat = torch.cat(labels).tolist()
        classes = list(classes or map(str, range(max(flat) + 1)))
        if min(flat) < 0 or max(flat) >= len(classes):
            raise ValueError(f"labels run from {min(flat)} to {max(flat)}, classes are {classes}")
        splits = []
        for (name, images), values in zip(tensors.items(), labels, strict=True):
            names = [f"{name}/{i}" for i in range(len(images))]
            splits.append(Split(images.cpu().contiguous(), values, names, list(names), classes))
        digest = _content_hash([split.images.numpy() for split in splits], flat, lengths, classes)
        return cls(*splits, classes=classes, source="tensors", path="", hash=digest)


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
    images, labels = torch.from_numpy(images), torch.tensor(index["labels"])
    splits, start = [], 0
    for length in index["lengths"]:
        part = slice(start, start + length)
        lists = index["names"][part], index["groups"][part], index["classes"]
        splits.append(Split(images[part], labels[part], *lists))
        start += length
    return Data(
        *splits,
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
    drop_last: bool = False,
    dtype: torch.dtype = torch.float32,
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
    device = torch.device(device)
    stop = len(order) - batch_size + 1 if drop_last else len(order)
    starts = range(0, max(stop, 0), batch_size)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return _cut(split.to_device(device), starts, batch_size, device, order, flip, dtype, layout)


def _cut(images, starts, batch_size, device, order, flip, dtype, layout):
    order = order.to(images.device)  # once, not once a batch
    flip = None if flip is None else flip.to(device)
    for start in starts:
        x = images[order[start : start + batch_size]]
        if x.device != device and device.type == "cuda":
            x = x.pin_memory()
        x = x.to(device, non_blocking=True).to(dtype, memory_format=layout) / 255
        if flip is not None:
            mirror = flip[start : start + batch_size, None, None, None]
            x = torch.where(mirror, x.flip(-1), x)
        yield x
