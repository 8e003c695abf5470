"""The image cache: decode once, split by patient, store in one memory-mapped file."""

import hashlib
import json
import mmap
import os
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from vaekit.config import Config
from vaekit.data import SPLITS, Data, Split, content_hash
from vaekit.files import patients
from vaekit.files.images import BadImage, Reader, prepare
from vaekit.files.own_images import say_what_is_lost
from vaekit.files.sources import EXPECTED, ImageFile, cache_dir

CACHE_VERSION = 5  # raise it when the same files and Config would give other pixels or splits
PIXEL_FIELDS = ("image_size", "in_channels", "fit", "crop", "clahe_clip", "clahe_tiles")
SPLIT_FIELDS = ("dataset", "val_fraction", "patient_key", "seed", "max_images")
SAMPLED = 100, 4096  # files whose bytes are part of the key, and how many bytes of each
Kept = tuple[np.ndarray, dict]  # images and their index
CHUNK = 64 * 2**20  # bytes of pixels that are held at a time, however large the set


class PixelCache:
    """The images of `files` in `root`, prepared as `cfg` asks on first use and stored on disk.

    Two files: all images in the order of the files, so that another seed decodes nothing; and
    train, val and test one after the other. Where patients need not be told apart there is only the
    second. The first is named after the files (with bytes of a hundred) and PIXEL_FIELDS, the
    second also after SPLIT_FIELDS and a CSV of patients; `flip` and `shift` come in training.
    """

    def __init__(self, root: Path, files: list[ImageFile], cfg: Config, verbose: bool = True):
        self.root, self.files, self.cfg, self.verbose = root, files, cfg, verbose
        pixels = [getattr(cfg, name) for name in PIXEL_FIELDS]
        split = [getattr(cfg, name) for name in SPLIT_FIELDS]
        split.append(patients.read_table(cfg.patient_key))
        sample = _sample(root, files)
        pixel_key = _key(CACHE_VERSION, cv2.__version__, root.resolve(), files, sample, pixels)
        self.pixel_file = cache_dir() / f"pixels-{pixel_key}.npy"
        self.split_file = cache_dir() / f"split-{_key(pixel_key, split)}.npy"

    def load(self) -> Kept:
        """Images uint8 (N, C, S, S), train, val and test one after the other, and their index.

        Where the disk refuses they stay in RAM, with a warning. FileNotFoundError: no usable file.
        """
        kept = read_kept(self.split_file)
        if kept:
            return kept
        try:
            cache_dir().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=cache_dir()) as drafts:
                return self.make(Path(drafts))
        except FileNotFoundError:  # not the cache's fault: no image is usable
            raise
        except OSError as error:
            where = f"no cache in {cache_dir()} ({error})"
            warnings.warn(f"{where}: images stay in RAM", stacklevel=2)
            return self.make(None)

    def make(self, drafts: Path | None) -> Kept:
        """Images and index as `load` returns them, in new files in the folder `drafts`; None: in
        RAM."""
        if self.cfg.patient_key == "none":
            return self.decode_in_order(drafts)
        pixels, facts = read_kept(self.pixel_file) or self.decode_all(drafts)
        order, index = self.plan(facts["found"], facts["pairs"])
        images = _empty(drafts, (len(order), *pixels.shape[1:]))
        for part in _parts(images, pixels):
            images[part] = pixels[order[part]]
        return self.keep(images, index, facts["found"])

    def decode_all(self, drafts: Path | None) -> Kept:
        """All images in the order of the files; reads remarks and patients, and finds
        duplicates."""
        images, thumbs, found = self.decode(self.files, drafts)
        facts = {"found": found, "pairs": patients.near_duplicates(thumbs)}
        return _keep(images, facts, self.pixel_file)

    def decode_in_order(self, drafts: Path | None) -> Kept:
        """For splits that need no pixels: one copy on disk, of the images in the splits only."""
        found: dict[str, dict] = {}
        while True:
            order, index = self.plan(found, pairs=[])
            images, _, new = self.decode([self.files[row] for row in order], drafts)
            found |= new
            if not any("bad" in facts for facts in new.values()):
                return self.keep(images, index, found)  # else again: this changes the split

    def keep(self, images: np.ndarray, index: dict, found: dict) -> Kept:
        """Store images and index in the split's file, with the remarks of `found` on these
        images."""
        remarks: dict[str, dict[str, str]] = {}
        for name in index["names"]:
            for what, detail in found.get(name, {}).get("remarks", {}).items():
                remarks.setdefault(what, {})[name] = detail
        facts = images.shape, index["labels"], index["lengths"], index["classes"]
        if self.verbose:
            say_what_is_lost(self.root, self.cfg)
        digest = content_hash((images[part] for part in _parts(images)), facts)
        return _keep(images, index | {"remarks": remarks, "hash": digest}, self.split_file)

    def decode(self, files: list, drafts: Path | None) -> tuple[np.ndarray, np.ndarray, dict]:
        """The images of `files`, their thumbnails, and {name: result of `fill`}."""
        size = self.cfg.image_size
        images = _empty(drafts, (len(files), self.cfg.in_channels, size, size))
        if self.verbose and len(files) >= 1000:
            print(f"decoding {len(files):,} images once; after that they come from the cache")
        fill = partial(self.fill, Reader(self.root, self.cfg.in_channels))
        names = [file.name for file in files]
        thumbs = np.zeros((len(files), patients.THUMB, patients.THUMB), np.uint8)
        found: dict[str, dict] = {}
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 32)) as pool:
            for part in _parts(images):
                facts = pool.map(fill, names[part], images[part], thumbs[part])
                found |= zip(names[part], facts, strict=True)
        return images, thumbs, {name: facts for name, facts in found.items() if any(facts.values())}

    def fill(self, reader: Reader, name: str, image: np.ndarray, thumb: np.ndarray) -> dict:
        """Read the file `name` into `image` and `thumb`.

        Returns {"bad": the reason} for a file that cannot be used, else its "remarks" and
        "patient".
        """
        try:
            pixels, remarks, patient = reader.read(name)
        except BadImage as error:
            return {"bad": str(error)}
        image[:] = prepare(pixels, self.cfg)
        if self.cfg.patient_key == "none":
            return {"remarks": remarks}
        thumb[:] = patients.thumbnail(pixels)
        return {"remarks": remarks, "patient": patient}

    def plan(self, found: dict[str, dict], pairs: list) -> tuple[list[int], dict]:
        """The rows of `files` in train, then val, then test, and the index that describes them."""
        bad = {name: facts["bad"] for name, facts in sorted(found.items()) if "bad" in facts}
        known = {name: facts["patient"] for name, facts in found.items() if facts.get("patient")}
        good = [row for row, file in enumerate(self.files) if file.name not in bad]
        if not good:
            why = "".join(f"\n  {name}: {reason}" for name, reason in list(bad.items())[:20])
            what = f"none of {len(self.files)} files in {self.root} is a usable image"
            raise FileNotFoundError(f"{what}; expected {EXPECTED}{why}")
        key = self.cfg.patient_key
        groups = patients.group_patients([file.name for file in self.files], pairs, key, known)
        groups = [groups[row] for row in good]
        names, own, given, *_ = zip(*(self.files[row] for row in good), strict=True)
        keys, rules = zip(*patients.find_patients(names, key, known), strict=True)
        given = patients.classes_of(given, own, keys, self.root.resolve().name)
        classes, labels = np.unique(given, return_inverse=True)
        merged = len(set(keys)) - len(set(groups))
        who = "patients" if any(rules) else "groups"
        notes = patients.say_who(rules, self.cfg)
        if merged:
            notes.append(f"{who} joined by near-duplicate images: {merged}")
        rows, dropped = patients.split_by_patient(names, own, labels.tolist(), groups, self.cfg)
        order = sum((rows[split] for split in SPLITS), [])
        return [good[i] for i in order], {
            "lengths": [len(rows[split]) for split in SPLITS],
            "names": [names[i] for i in order],
            "groups": [groups[i] for i in order],
            "labels": labels[order].tolist(),
            "classes": classes.tolist(),
            "bad": list(bad.items()),
            "dropped": [(names[i], reason) for i, reason in sorted(dropped.items())],
            "who": who,
            "notes": notes,
        }


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
    facts = {name: index[name] for name in ("hash", "remarks", "who", "notes")}
    for name, pairs in (("skipped", index["bad"]), ("dropped", index["dropped"])):
        facts[name] = [tuple(pair) for pair in pairs]
    return Data(*splits, index["classes"], source, path, file=file, **facts)


def _key(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _sample(root: Path, files: list[ImageFile]) -> list[bytes]:
    """Bytes from the middle of some files: after `cp -p`, names, sizes and times can be equal."""
    number, length = SAMPLED
    some = [root / file.name for file in files[:: max(1, len(files) // number)]]
    found = []
    for path in (root, *some):  # root: an .npz
        with suppress(OSError), open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size // 2 - length // 2))
            found.append(file.read(length))
    return found


def _empty(drafts: Path | None, shape: tuple) -> np.ndarray:
    """An empty array to fill: a memory-mapped new file in the folder `drafts`, or in RAM."""
    if drafts is None:
        return np.zeros(shape, np.uint8)
    path = drafts / f"{len(os.listdir(drafts))}.npy"
    images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):  # a mapped write to a full disk would kill the process
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


def _keep(images: np.ndarray, index: dict, file: Path) -> Kept:
    """Write the index after the pixels, then rename the draft: nobody sees an incomplete file."""
    if not isinstance(images, np.memmap):
        return images, index
    images.flush()
    with open(images.filename, "ab") as end:
        end.write(json.dumps(index).encode())
    os.replace(images.filename, file)
    return np.load(file, mmap_mode="c"), index  # "c": torch wants it writable


def read_kept(file: str | Path) -> Kept | None:
    """(images, index) as `_keep` wrote them; None where they are missing or damaged."""
    with suppress(OSError, ValueError, EOFError):
        images = np.load(file, mmap_mode="c")
        with open(file, "rb") as rest:
            rest.seek(images.offset + images.nbytes)
            return images, json.loads(rest.read())
    return None


def _parts(images: np.ndarray, *others: np.ndarray) -> Iterator[slice]:
    """Rows of `images`, CHUNK bytes at a time; after each, the map's pages are released.

    The pages belong to the file, but would count as this process's memory until RAM is full.
    """
    step = max(1, CHUNK * len(images) // images.nbytes)
    for start in range(0, len(images), step):
        yield slice(start, min(start + step, len(images)))
        for array in (images, *others):
            if isinstance(array, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
                array._mmap.madvise(mmap.MADV_DONTNEED)
