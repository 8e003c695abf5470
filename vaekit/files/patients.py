"""Who is on which film, and which side of the split that puts it on."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from vaekit.config import Config
from vaekit.data import SPLITS

PATIENTS = (re.compile(r"(person\d+)_(?:bacteria|virus)"), re.compile(r"(?:NORMAL2-)?(IM-\d+)"))
# Two films are one when their 32x32 thumbnails, less a blur of THUMB_BLUR pixels, correlate above
# this. Copies that were recompressed, resized, brightened, turned by 1 degree or trimmed by 1% of
# a side score 0.93 to 1.00; the closest different patients in Kermany's set score 0.925. Without
# the blur taken away, 0.97 would merge a dozen pairs of plainly different children.
NEAR_DUPLICATE = 0.94
THUMB, THUMB_BLUR = 32, 3.0
MOST_COMPARED = 20_000  # images; beyond it N^2 products take minutes and only exact copies merge
OWN_VAL = 0.05, 50  # a folder's own val is kept from this share of train + val, and this size


def patient_key(name: str, how: str = "subtype") -> str:
    """The patient in one of Kermany's file names; another name's stem is its own patient.

    "subtype": person12_bacteria, IM-0115, NORMAL2-IM-0501. "number", the cautious one: person12,
    IM-0501, whatever the subtype or prefix. "none": the stem of every name.
    """
    if how not in ("subtype", "number", "none"):
        raise ValueError(f"patient_key={how!r} is not one of subtype, number, none")
    stem = Path(name).stem
    for pattern in PATIENTS if how != "none" else ():
        if match := pattern.match(stem):
            return match[0] if how == "subtype" else match[1]
    return stem


def has_patient(name: str) -> bool:
    """Whether the file name tells of a patient, as Kermany's do."""
    return any(pattern.match(Path(name).stem) for pattern in PATIENTS)


def near_duplicates(thumbs: np.ndarray) -> list[tuple[int, int]]:
    """Pairs i < j of (N, 32, 32) uint8 thumbnails that show the same film; see NEAR_DUPLICATE.

    Blank thumbnails pair with nothing. Above MOST_COMPARED images only identical ones pair.
    """
    blank = thumbs.min((1, 2)) == thumbs.max((1, 2))
    if len(thumbs) > MOST_COMPARED:
        first: dict[bytes, int] = {}
        same = [(first.setdefault(thumb.tobytes(), i), i) for i, thumb in enumerate(thumbs)]
        return [(i, j) for i, j in same if i < j and not blank[j]]
    detail = np.stack([x - cv2.GaussianBlur(x, (0, 0), THUMB_BLUR) for x in thumbs.astype("f4")])
    detail = detail.reshape(len(thumbs), -1)
    detail -= detail.mean(1, keepdims=True)
    detail /= np.linalg.norm(detail, axis=1, keepdims=True).clip(1e-6)
    detail[blank] = 0
    pairs = []
    for start in range(0, len(detail), 1024):  # blocks: never an N x N matrix
        high = detail[start : start + 1024] @ detail[start:].T > NEAR_DUPLICATE
        rows, columns = np.nonzero(np.triu(high, 1))
        pairs += zip((rows + start).tolist(), (columns + start).tolist(), strict=True)
    return pairs


def group_patients(
    names: list[str], pairs: list[tuple[int, int]] = (), how: str = "subtype"
) -> list[str]:
    """The group of each image: those with one patient key, joined where `pairs` of images meet."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    keys = [patient_key(name, how) for name in names]
    # no patient in the name: 1.png of two folders are two patients
    keys = [name if key == Path(name).stem else key for name, key in zip(names, keys, strict=True)]
    first: dict[str, int] = {}
    i, j = np.array([*((first.setdefault(key, i), i) for i, key in enumerate(keys)), *pairs]).T
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(len(names),) * 2)
    groups = connected_components(graph, directed=False)[1].tolist()
    called: dict[int, str] = {}  # a group is called after its first image
    return [called.setdefault(group, key) for group, key in zip(groups, keys, strict=True)]


def _rank(seed: int, name: str) -> str:
    # A hash, not a shuffle: one more file in the folder leaves the others where they were.
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


def _carve(pool: list[int], labels: list[int], groups: list[str], cfg: Config) -> set[int]:
    """About `val_fraction` of `pool`, whole groups, the same share of each class."""
    members = defaultdict(list)
    for i in pool:
        members[groups[i]].append(i)
    by_class = defaultdict(list)  # a group of two classes counts as its first image's
    for group in sorted(members, key=partial(_rank, cfg.seed)):
        by_class[labels[members[group][0]]].append(members[group])
    taken: set[int] = set()
    for parts in by_class.values():
        room = max(min(map(len, parts)), round(cfg.val_fraction * sum(map(len, parts))))
        for part in parts if len(parts) > 1 else ():  # the only patient of a class stays in train
            if len(part) <= room:
                taken.update(part)
                room -= len(part)
    return taken


def _cap(rows: list[int], most: int, labels: list[int], names: list[str], seed: int) -> set[int]:
    """At most `most` of `rows`, each class in its share; a smaller cap keeps a subset."""
    by_class = defaultdict(list)
    for i in sorted(rows, key=lambda i: _rank(seed, names[i])):
        by_class[labels[i]].append(i)
    quantile = {i: (k + 0.5) / len(c) for c in by_class.values() for k, i in enumerate(c)}
    return set(sorted(rows, key=lambda i: (quantile[i], i))[:most])


def split_by_patient(
    names: list[str], own: list[str], labels: list[int], groups: list[str], cfg: Config
) -> tuple[dict[str, list[int]], dict[int, str]]:
    """Row numbers of train, val and test, and {row: reason} of those in none; no group in two.

    `own` is the split the folder gives an image, "" for none. Its test stays; so does its val
    where OWN_VAL allows (Kermany's has 16 images, too few to choose by). What is missing is
    carved from train by group, stratified by class.
    """
    side = [mine or "train" for mine in own]  # a split, or the reason to be in none

    def rows(split: str) -> list[int]:
        return [i for i, mine in enumerate(side) if mine == split]

    def move(moved: Iterable[int], to: str) -> None:
        for i in moved:
            side[i] = to

    def part(split: str, other: str) -> None:
        theirs = {groups[i] for i in rows(other)}
        move([i for i in rows(split) if groups[i] in theirs], f"shares a patient with {other}")

    if "test" not in side:
        move(_carve(rows("train"), labels, groups, cfg), "test")
    part("train", "test")
    part("val", "test")
    share, size = OWN_VAL
    if len(rows("val")) < max(size, share * len(rows("train") + rows("val"))):
        move(rows("val"), "train")
        move(_carve(rows("train"), labels, groups, cfg), "val")
    part("train", "val")
    for split in SPLITS:
        most = cfg.max_images if split == "train" else max(cfg.max_images, 8)
        if cfg.max_images:
            kept = _cap(rows(split), most, labels, names, cfg.seed)
            move(set(rows(split)) - kept, f"over max_images={cfg.max_images}")
        if split not in side:
            raise ValueError(
                f"{split} is empty: {len(names)} images of {len(set(groups))} patients cannot be"
                " split by patient; at least three patients of one class are needed"
            )
    dropped = {i: reason for i, reason in enumerate(side) if reason not in SPLITS}
    return {split: rows(split) for split in SPLITS}, dropped
