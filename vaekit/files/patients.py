"""Who is on which film, and which side of the split that puts it on."""

import hashlib
import re
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

from vaekit.config import Config
from vaekit.data import SPLITS
from vaekit.files.images import fit_square

# The patient in Kermany's names, and within it the number.
PATIENT = re.compile(r"(person\d+)_(?:bacteria|virus)|(?:NORMAL2-)?(IM-\d+)")
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
    match = PATIENT.match(stem)
    if how == "none" or not match:
        return stem
    return match[0] if how == "subtype" else match[match.lastindex]


def has_patient(name: str) -> bool:
    """Whether the file name tells of a patient, as Kermany's do."""
    return PATIENT.match(Path(name).stem) is not None


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(32, 32) grey of a decoded image: of the file, so that the split is of every image_size."""
    small = fit_square(image, THUMB, "squash")
    return small if small.ndim == 2 else cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)


def near_duplicates(thumbs: np.ndarray) -> list[tuple[int, int]]:
    """Pairs i < j of (N, 32, 32) uint8 thumbnails that show the same film; see NEAR_DUPLICATE.

    Blank thumbnails pair with nothing. Above MOST_COMPARED images only identical ones pair.
    """
    blank = thumbs.min((1, 2)) == thumbs.max((1, 2))
    if len(thumbs) > MOST_COMPARED:
        return _identical(thumbs, blank)
    blurred = np.stack([cv2.GaussianBlur(x, (0, 0), THUMB_BLUR) for x in thumbs.astype("f4")])
    detail = (thumbs - blurred).reshape(len(thumbs), -1)
    detail -= detail.mean(1, keepdims=True)
    detail /= np.linalg.norm(detail, axis=1, keepdims=True).clip(1e-6)
    detail[blank] = 0
    pairs = []
    for start in range(0, len(detail), 1024):  # blocks: never an N x N matrix
        correlation = detail[start : start + 1024] @ detail[start:].T
        rows, columns = np.nonzero(np.triu(correlation > NEAR_DUPLICATE, 1))
        pairs += zip((rows + start).tolist(), (columns + start).tolist(), strict=True)
    return pairs


def _identical(thumbs: np.ndarray, blank: np.ndarray) -> list[tuple[int, int]]:
    first: dict[bytes, int] = {}  # where each thumbnail was seen first
    pairs = []
    for i in np.flatnonzero(~blank).tolist():
        j = first.setdefault(thumbs[i].tobytes(), i)
        if j < i:
            pairs.append((j, i))
    return pairs


def group_patients(
    names: list[str],
    pairs: list[tuple[int, int]] = (),
    how: str = "subtype",
    known: dict[str, str] | None = None,
) -> list[str]:
    """The group of each image: those with one patient key, joined where `pairs` of images meet.

    `known`: {name: patient} where the file itself tells, as DICOM does; this beats the name.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    keys = [patient_key(name, how) for name in names]
    # no patient in the name: 1.png of two folders are two patients
    keys = [name if key == Path(name).stem else key for name, key in zip(names, keys, strict=True)]
    keys = [(known or {}).get(name, key) for name, key in zip(names, keys, strict=True)]
    first: dict[str, int] = {}  # the first image of each key
    links = [(first.setdefault(key, i), i) for i, key in enumerate(keys)]
    i, j = np.array([*links, *pairs]).T
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(len(names), len(names)))
    _, numbers = connected_components(graph, directed=False)
    called: dict[int, str] = {}  # a group is called after its first image
    return [called.setdefault(n, key) for n, key in zip(numbers.tolist(), keys, strict=True)]


def split_by_patient(
    names: list[str], own: list[str], labels: list[int], groups: list[str], cfg: Config
) -> tuple[dict[str, list[int]], dict[int, str]]:
    """Row numbers of train, val and test, and {row: reason} of those in none; no group in two.

    `own` is the split the folder gives an image, "" for none. Its test stays; so does its val
    where OWN_VAL allows (Kermany's has 16 images, too few to choose by). What is missing is
    carved from train by group, stratified by class.
    """
    train = [i for i, split in enumerate(own) if split in ("", "train")]
    val = [i for i, split in enumerate(own) if split == "val"]
    test = [i for i, split in enumerate(own) if split == "test"]
    dropped: dict[int, str] = {}
    if not test:
        train, test = _carve(train, labels, groups, cfg)
    train, train_in_test = _apart(train, test, groups)
    val, val_in_test = _apart(val, test, groups)
    dropped |= dict.fromkeys(train_in_test + val_in_test, "shares a patient with test")
    share, size = OWN_VAL
    if len(val) < max(size, share * len(train + val)):
        train, val = _carve(sorted(train + val), labels, groups, cfg)
    train, train_in_val = _apart(train, val, groups)
    dropped |= dict.fromkeys(train_in_val, "shares a patient with val")
    rows = {"train": train, "val": val, "test": test}
    for split in SPLITS:
        if not rows[split]:
            raise ValueError(
                f"{split} is empty: {len(names)} images of {len(set(groups))} patients cannot be"
                " split by patient; at least three patients of one class are needed"
            )
        if cfg.max_images:
            most = cfg.max_images if split == "train" else max(cfg.max_images, 8)
            rows[split], rest = _cap(rows[split], most, labels, names, cfg.seed)
            dropped |= dict.fromkeys(rest, f"over max_images={cfg.max_images}")
    return rows, dropped


def _apart(rows: list[int], others: list[int], groups: list[str]) -> tuple[list, list]:
    """`rows` that share no group with `others`, and those that do."""
    theirs = {groups[i] for i in others}
    shared = [i for i in rows if groups[i] in theirs]
    return [i for i in rows if groups[i] not in theirs], shared


def _carve(pool: list[int], labels: list, groups: list, cfg: Config) -> tuple[list, list]:
    """What stays of `pool`, and about `val_fraction` of it: whole groups, alike in each class."""
    members = defaultdict(list)
    for i in pool:
        members[groups[i]].append(i)
    by_class = defaultdict(list)  # a group of two classes counts as its first image's
    for group in sorted(members, key=lambda group: _rank(cfg.seed, group)):
        by_class[labels[members[group][0]]].append(members[group])
    taken: set[int] = set()
    for parts in by_class.values():
        lengths = [len(part) for part in parts]
        room = max(min(lengths), round(cfg.val_fraction * sum(lengths)))
        if len(parts) == 1:
            room = 0  # the only patient of a class stays
        for part in parts:
            if len(part) <= room:
                taken.update(part)
                room -= len(part)
    return [i for i in pool if i not in taken], sorted(taken)


def _cap(rows: list[int], most: int, labels: list, names: list, seed: int) -> tuple[list, list]:
    """At most `most` of `rows`, each class in its share, and the rest; less of it is a subset."""
    by_class = defaultdict(list)
    for i in sorted(rows, key=lambda i: _rank(seed, names[i])):
        by_class[labels[i]].append(i)
    quantile = {}
    for members in by_class.values():
        quantile |= {i: (k + 0.5) / len(members) for k, i in enumerate(members)}
    ranked = sorted(rows, key=lambda i: (quantile[i], i))
    return sorted(ranked[:most]), ranked[most:]


def _rank(seed: int, name: str) -> str:
    # A hash, not a shuffle: one more file in the folder leaves the others where they were.
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
