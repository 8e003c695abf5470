"""From files to arrays: decode once, split by patient, keep in one memory-mapped file."""

import hashlib
import json
import mmap
import os
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import repeat
from pathlib import Path

import cv2
import numpy as np

from vaekit.config import Config
from vaekit.data import SPLITS, content_hash
from vaekit.files import patients
from vaekit.files.images import BadImage, Reader, prepare
from vaekit.files.sources import EXPECTED, ImageFile, cache_dir

CACHE_VERSION = 5  # raise it when the same files and Config would give other pixels or splits
PIXEL_FIELDS = ("image_size", "in_channels", "fit", "crop", "clahe_clip", "clahe_tiles")
SPLIT_FIELDS = ("dataset", "val_fraction", "patient_key", "seed", "max_images")
CHUNK = 64 * 2**20  # bytes of pixels that are held at a time, however large the set


class PixelCache:
    """The images of `files` in `root` as `cfg` wants them, made on first use and kept on disk.

    In two files: all images as the files come, so that another seed decodes nothing; and train,
    val, test one after the other. The second alone where no patients are to be told apart.
    """

    def __init__(self, root: Path, files: list[ImageFile], cfg: Config, verbose: bool = True):
        self.root, self.files, self.cfg, self.verbose = root, files, cfg, verbose
        pixels = [getattr(cfg, name) for name in PIXEL_FIELDS]
        split = [getattr(cfg, name) for name in SPLIT_FIELDS]
        split.append(patients.read_table(cfg.patient_key))
        pixel_key = _key(CACHE_VERSION, cv2.__version__, files, pixels)
        self.pixel_file = cache_dir() / f"pixels-{pixel_key}.npy"
        self.split_file = cache_dir() / f"split-{_key(pixel_key, split)}.npy"

    def load(self) -> tuple[np.ndarray, dict]:
        """Images uint8 (N, C, S, S), train, val and test one after the other, and their index.

        In RAM, with a warning, where the disk refuses. FileNotFoundError: no file is usable.
        """
        kept = _read(self.split_file)
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

    def make(self, drafts: Path | None) -> tuple[np.ndarray, dict]:
        """What `load` gives, in files that are begun in the folder `drafts`; None: in RAM."""
        if self.cfg.patient_key == "none":
            return self.decode_in_order(drafts)
        pixels, facts = _read(self.pixel_file) or self.decode_all(drafts)
        order, index = self.plan(dict(facts["bad"]), facts["pairs"])
        images = _empty(drafts, (len(order), *pixels.shape[1:]))
        for part in _parts(images, pixels):
            images[part] = pixels[order[part]]
        return _keep(images, index | {"hash": _hash(images, index)}, self.split_file)

    def decode_all(self, drafts: Path | None) -> tuple[np.ndarray, dict]:
        """Every image as the files come; which are bad and why, and which show the same."""
        images, thumbs, bad = self.decode(list(range(len(self.files))), drafts)
        facts = {"bad": list(bad.items()), "pairs": patients.near_duplicates(thumbs)}
        return _keep(images, facts, self.pixel_file)

    def decode_in_order(self, drafts: Path | None) -> tuple[np.ndarray, dict]:
        """Where the split needs no pixels: one copy on disk, and only what is asked for."""
        bad: dict[int, str] = {}
        while True:
            order, index = self.plan(bad, pairs=[])
            images, _, found = self.decode(order, drafts)
            if not found:
                return _keep(images, index | {"hash": _hash(images, index)}, self.split_file)
            bad |= found  # a damaged file changes the split: again, without it

    def decode(self, rows: list[int], drafts: Path | None) -> tuple[np.ndarray, np.ndarray, dict]:
        """The images of the files `rows`, their thumbnails, and {row: why it is bad}."""
        size = self.cfg.image_size
        images = _empty(drafts, (len(rows), self.cfg.in_channels, size, size))
        if self.verbose and len(rows) >= 1000:
            print(f"decoding {len(rows):,} images once; after that they come from the cache")
        reader = Reader(self.root, self.cfg.in_channels)
        names = [self.files[row].name for row in rows]
        thumbs = np.zeros((len(rows), patients.THUMB, patients.THUMB), np.uint8)
        problems = []
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 32)) as pool:
            for part in _parts(images):
                targets = images[part], thumbs[part]
                problems += pool.map(self.fill, repeat(reader), names[part], *targets)
        return images, thumbs, {row: why for row, why in zip(rows, problems, strict=True) if why}

    def fill(self, reader: Reader, name: str, image: np.ndarray, thumb: np.ndarray) -> str:
        """Read the file `name` into `image` and `thumb`; "", or why that cannot be done."""
        try:
            decoded = reader.read(name)
        except BadImage as error:
            return str(error)
        image[:] = prepare(decoded, self.cfg)
        if self.cfg.patient_key != "none":
            thumb[:] = patients.thumbnail(decoded)
        return ""

    def plan(self, bad: dict[int, str], pairs: list) -> tuple[list[int], dict]:
        """The rows of `files` that are train, then val, then test, and the index with them."""
        reasons = [(self.files[row].name, bad[row]) for row in sorted(bad)]
        good = [row for row in range(len(self.files)) if row not in bad]
        if not good:
            why = "".join(f"\n  {name}: {reason}" for name, reason in reasons[:20])
            what = f"none of {len(self.files)} files in {self.root} is a usable image"
            raise FileNotFoundError(f"{what}; expected {EXPECTED}{why}")
        key = self.cfg.patient_key
        groups = patients.group_patients([file.name for file in self.files], pairs, key)
        groups = [groups[row] for row in good]
        names, own, given, *_ = zip(*(self.files[row] for row in good), strict=True)
        keys, rules = zip(*patients.find_patients(names, key), strict=True)
        given = patients.classes_of(given, own, keys, self.root.resolve().name)
        classes, labels = np.unique(given, return_inverse=True)
        merged = len(set(keys)) - len(set(groups))
        who = "patients" if any(rules) else "groups"
        notes = patients.say_who(rules, self.cfg)
        if merged:
            notes.append(f"{who} joined by near-duplicate images: {merged}")
        rows, dropped = patients.split_by_patient(names, own, labels.tolist(), groups, self.cfg)
        order = [i for split in SPLITS for i in rows[split]]
        return [good[i] for i in order], {
            "lengths": [len(rows[split]) for split in SPLITS],
            "names": [names[i] for i in order],
            "groups": [groups[i] for i in order],
            "labels": labels[order].tolist(),
            "classes": classes.tolist(),
            "bad": reasons,
            "dropped": [(names[i], dropped[i]) for i in sorted(dropped)],
            "merged": merged,
            "who": who,
            "notes": notes,
        }


def _key(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _empty(drafts: Path | None, shape: tuple) -> np.ndarray:
    """An array to fill: the map of a new file in the folder `drafts`, or in RAM."""
    if drafts is None:
        return np.zeros(shape, np.uint8)
    path = drafts / f"{len(os.listdir(drafts))}.npy"
    images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):  # a mapped write to a full disk would kill the process
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


def _keep(images: np.ndarray, index: dict, file: Path) -> tuple[np.ndarray, dict]:
    """Write the index after the pixels and rename the draft: nobody sees half of it."""
    if not isinstance(images, np.memmap):
        return images, index
    images.flush()
    with open(images.filename, "ab") as end:
        end.write(json.dumps(index).encode())
    os.replace(images.filename, file)
    return np.load(file, mmap_mode="c"), index  # "c": torch wants it writable


def _read(file: Path) -> tuple[np.ndarray, dict] | None:
    """(images, index) as `_keep` wrote them, None where they are missing or damaged."""
    with suppress(OSError, ValueError, EOFError):
        images = np.load(file, mmap_mode="c")
        with open(file, "rb") as rest:
            rest.seek(images.offset + images.nbytes)
            return images, json.loads(rest.read())
    return None


def _parts(images: np.ndarray, *others: np.ndarray) -> Iterator[slice]:
    """Rows of `images`, CHUNK bytes at a time; after each, the maps' pages are handed back.

    They are the file's, written or not, but would count as this process's until RAM is full.
    """
    step = max(1, CHUNK * len(images) // images.nbytes)
    for start in range(0, len(images), step):
        yield slice(start, min(start + step, len(images)))
        for array in (images, *others):
            if isinstance(array, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
                array._mmap.madvise(mmap.MADV_DONTNEED)


def _hash(images: np.ndarray, index: dict) -> str:
    facts = images.shape, index["labels"], index["lengths"], index["classes"]
    return content_hash((images[part] for part in _parts(images)), facts)
