"""From files to arrays: decode once, split by patient, keep in one memory-mapped file."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from vaekit.config import Config
from vaekit.data import SPLITS, _chunks, _content_hash
from vaekit.files.images import BadImage, fit_square, prepare, reader
from vaekit.files.patients import THUMB, group_patients, near_duplicates, split_by_patient
from vaekit.files.sources import EXPECTED, cache_dir

CACHE_VERSION = 3  # raise it when the same files and Config would give other pixels or splits
PIXEL_FIELDS = ("image_size", "in_channels", "fit", "crop", "clahe_clip", "clahe_tiles")
SPLIT_FIELDS = ("val_fraction", "patient_key", "seed", "max_images")


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
