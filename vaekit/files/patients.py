"""Which patient each image belongs to, and the split of the images by patient."""

import csv
import hashlib
import os
import re
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from vaekit.config import Config
from vaekit.data import SPLITS
from vaekit.files.images import fit_square

KERMANY = "Kermany's names"
NUMBERED = "(?i:patient|subject|person|case|pat|sub|p)[ _-]?"
SCHEMES = {  # how other data sets name patients: group 1 of the path below their folder
    "NIH ChestX-ray14's names (00000013_004)": r"(?:^|/)(\d{8})_\d{3}\.\w+$",
    "CheXpert's names (patient00001, study1)": r"(?:^|/)(patient\d+)[/_]study\d",
    "MIMIC-CXR's folders (p10000032/s50414267)": r"(?:^|/)(p\d{8})/s\d{8}",
    "one folder a patient": rf"(?:^|/)({NUMBERED}\d{{3,}}|\d{{5,}})/",
    # a number this short can mean another patient in another folder
    "one numbered folder a patient": rf"^((?:.*/)?{NUMBERED}\d{{1,2}})/",
}
SUBTYPE = r"(?:^|/)(person\d+_(?:bacteria|virus)|(?:NORMAL2-)?IM-\d+)[^/]*$"
NUMBER = r"(?:^|/)(?:NORMAL2-)?(person\d+(?=_bacteria|_virus)|IM-\d+)[^/]*$"
PATTERNS = {  # for values of patient_key that are not a pattern
    "subtype": {KERMANY: SUBTYPE} | SCHEMES,
    "number": {KERMANY: NUMBER} | SCHEMES,
    "folder": {"patient_key='folder'": r"(?:^|/)([^/]+)/[^/]+$"},
    "none": {},
}
UNKNOWN = """WARNING: no name tells whose image it is: the split is by image, and one patient can be
on two sides. patient_key takes a regular expression with one group, "folder", or a CSV"""
# Two films are the same if their 32x32 thumbnails, minus a blur of THUMB_BLUR pixels, correlate
# above this. Copies that were recompressed, resized, brightened, turned by 1 degree or trimmed by
# 1% of a side score 0.93 to 1.00; the closest different patients in Kermany's set score 0.925. If
# the blur were not subtracted, even 0.97 would merge a dozen pairs of clearly different children.
NEAR_DUPLICATE = 0.94
THUMB, THUMB_BLUR = 32, 3.0
MOST_COMPARED = 20_000  # images; beyond it N^2 products take minutes and only exact copies merge
OWN_VAL = 0.05, 50  # a folder's own val is kept from this share of train + val, and this size


def find_patients(
    names: list[str], how: str = "subtype", known: dict[str, str] | None = None
) -> list[tuple[str, str]]:
    """(patient, the rule that found it) for each path; (the path itself, "") where no rule applies.

    `how` is `Config.patient_key`. "subtype": person12_bacteria, IM-0115, NORMAL2-IM-0501, then
    SCHEMES. "number", the cautious choice: person12, IM-0501, whatever the subtype or prefix.
    "folder": the name of the folder that holds the file. "none": no rule. A file.csv: rows of file
    (path, name or stem) and patient. Anything else is a regular expression with one group.
    `known`: {path: patient} from the files themselves (DICOM); this comes first. ValueError where
    the user's rule applies to no image.
    """
    table, known = read_table(how), known or {}
    given = f"patient_key={how!r}"
    patterns = PATTERNS.get(how, {} if table else {given: how})
    found = []
    for name in names:
        path = PurePosixPath(name)
        told = [(known.get(name), "the files themselves")]
        told += [(table.get(key), given) for key in (name, path.name, path.stem)]
        for rule, pattern in patterns.items():
            told += [(patient, rule) for patient in re.findall(pattern, name)[:1]]
        found.append(next((pair for pair in told if pair[0]), (name, "")))
    if not any(rule for _, rule in found) and how not in ("subtype", "number", "none"):
        raise ValueError(f"{given} tells of none of {len(names)} images, such as {names[0]!r}")
    return found


def read_table(how: str) -> dict[str, str]:
    """{file: patient} where patient_key is a CSV of these two columns, else {}.

    ValueError where it cannot be read, or has another number of columns.
    """
    if not how.endswith(".csv"):
        return {}
    try:
        text = Path(how).expanduser().read_text(encoding="utf-8-sig", errors="replace")
        rows = filter(None, csv.reader(text.splitlines()))
        return {name.strip(): patient.strip() for name, patient in rows}
    except (OSError, ValueError, csv.Error) as error:
        what = "is not a file of two columns, file name and patient"
        raise ValueError(f"patient_key={how!r} {what}: {error}") from error


def say_who(rules: list[str], cfg: Config) -> list[str]:
    """Lines for the summary: the rules by which patients were found, or a warning."""
    counts = Counter(rules)
    unknown = counts.pop("", 0)
    lines = [f"patients by {rule}: {n} images" for rule, n in counts.items() if rule != KERMANY]
    if counts and unknown:
        lines.append(f"without a rule, each image a patient: {unknown}")
    elif unknown and cfg.dataset == "chest_xray" and cfg.patient_key != "none":
        lines.append(UNKNOWN)
    return lines


def classes_of(labels: list[str], own: list[str], keys: list[str], name: str) -> list[str]:
    """`labels`, but `name` for folders that hold one patient each, where most folders do."""
    owners = defaultdict(set)
    for label, split, key in zip(labels, own, keys, strict=True):
        owners[label, split].add(key)
    single = set(labels) - {label for (label, _), found in owners.items() if len(found) > 1}
    if len(single) < 2 or 2 * len(single) <= len(set(labels)):
        return labels
    return [name if label in single else label for label in labels]


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(32, 32) grey, from the decoded file: the split is then the same at every image_size."""
    small = fit_square(image, THUMB, "squash")
    return small if small.ndim == 2 else cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)


def near_duplicates(thumbs: np.ndarray) -> list[tuple[int, int]]:
    """(first, other) of (N, 32, 32) uint8 thumbnails that show the same film; see NEAR_DUPLICATE.

    Similar directly or through others: at most N - 1 pairs, however many frames a video has. Blank
    thumbnails pair with nothing. Above MOST_COMPARED images only identical ones pair.
    """
    blank = thumbs.min((1, 2)) == thumbs.max((1, 2))
    rows = np.arange(len(thumbs))
    first = np.where(blank, rows, _first([thumb.tobytes() for thumb in thumbs]))
    if len(thumbs) <= MOST_COMPARED:
        blurred = np.stack([cv2.GaussianBlur(x, (0, 0), THUMB_BLUR) for x in thumbs.astype("f4")])
        detail = (thumbs - blurred).reshape(len(thumbs), -1)
        detail -= detail.mean(1, keepdims=True)
        detail /= np.linalg.norm(detail, axis=1, keepdims=True).clip(1e-6)
        detail[blank] = 0
        for start in range(0, len(detail), 1024):  # blocks: never an N x N matrix
            for alike in detail[start : start + 1024] @ detail[start:].T > NEAR_DUPLICATE:
                met = first[start:][alike]  # itself as well
                if len(met) > 1:
                    first[np.isin(first, met)] = met.min()
    others = np.flatnonzero(first < rows)
    return list(zip(first[others].tolist(), others.tolist(), strict=True))


def _first(values: list) -> list[int]:
    """For each value, the index at which it occurs first."""
    first: dict = {}
    return [first.setdefault(value, i) for i, value in enumerate(values)]


def group_patients(
    names: list[str],
    pairs: list[tuple[int, int]] = (),
    how: str = "subtype",
    known: dict[str, str] | None = None,
) -> list[str]:
    """The group of each image: one per patient, and groups are joined by `pairs` of images.

    `known` as in `find_patients`. A group has the name of its first image.
    """
    from scipy.cluster.hierarchy import DisjointSet

    keys = [key for key, _ in find_patients(names, how, known)]
    people = DisjointSet(keys)
    for i, j in pairs:
        people.merge(keys[i], keys[j])
    return [keys[i] for i in _first([people[key] for key in keys])]


def split_by_patient(
    names: list[str], own: list[str], labels: list[int], groups: list[str], cfg: Config
) -> tuple[dict[str, list[int]], dict[int, str]]:
    """Row numbers of train, val and test, and {row: reason} of rows left out; no group in two.

    `own` is the split that the folder says, "" for none. The folder's test is kept; so is its val
    if it is as large as OWN_VAL asks (Kermany's has 16 images, too few). A missing val
    or test is `val_fraction` of train, by group, stratified by class. Then `max_images` limits each
    split, val and test to 8 or more.
    """
    sides = [[i for i, side in enumerate(own) if (side or "train") == s] for s in SPLITS]
    train, val, test = sides
    if not test:
        train, test = _carve(train, labels, groups, cfg)
    held = {groups[i] for i in test}
    shared = [i for i in train + val if groups[i] in held]
    dropped = dict.fromkeys(shared, "shares a patient with test")
    train, val = ([i for i in side if i not in dropped] for side in (train, val))
    share, size = OWN_VAL
    if len(val) < max(size, share * len(train + val)):
        train, val = _carve(sorted(train + val), labels, groups, cfg)
    held = {groups[i] for i in val}
    shared = [i for i in train if groups[i] in held]
    dropped |= dict.fromkeys(shared, "shares a patient with val")
    train = [i for i in train if i not in dropped]
    rows = {"train": train, "val": val, "test": test}
    for split in SPLITS:
        if not rows[split]:
            raise ValueError(f"{split} is empty: {_why_empty(names, own, groups, cfg)}")
        if cfg.max_images:
            most = cfg.max_images if split == "train" else max(cfg.max_images, 8)
            rows[split], rest = _cap(rows[split], most, labels, names, cfg.seed)
            dropped |= dict.fromkeys(rest, f"over max_images={cfg.max_images}")
    return rows, dropped


def _why_empty(names: list, own: list, groups: list, cfg: Config) -> str:
    """Why these images cannot be split, and what the user can do."""
    count = len(set(groups))
    by_name = len(set(group_patients(names, how=cfg.patient_key)))
    text = f"{len(names)} images of {count} patients; three of one class are needed"
    if by_name > count:
        text += f"; by name they are {by_name}: near-duplicates (frames of a video?) joined them"
    if any(own):
        text += f"; the folders' own splits have {dict(Counter(own))} images"
    return f'{text}. With patient_key="none" the split is by image, whatever their likeness'


def _carve(pool: list[int], labels: list, groups: list, cfg: Config) -> tuple[list, list]:
    """(the rest of `pool`, about `val_fraction` of it): whole groups, in equal shares by class."""
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
        for part in parts if len(parts) > 1 else ():  # the only patient of a class stays
            if len(part) <= room:
                taken.update(part)
                room -= len(part)
    return [i for i in pool if i not in taken], sorted(taken)


def _cap(rows: list[int], most: int, labels: list, names: list, seed: int) -> tuple[list, list]:
    """(`most` of `rows`, each class in its share; the rest). A smaller `most` takes a subset."""
    sizes = Counter(labels[i] for i in rows)
    seen: Counter[int] = Counter()
    quantile = {}
    for i in sorted(rows, key=lambda i: _rank(seed, names[i])):
        quantile[i] = (seen[labels[i]] + 0.5) / sizes[labels[i]]
        seen[labels[i]] += 1
    ranked = sorted(rows, key=lambda i: (quantile[i], i))
    return sorted(ranked[:most]), ranked[most:]


def _rank(seed: int, name: str) -> str:
    # a hash, not a shuffle: one more file in the folder leaves the others where they were
    return hashlib.sha256(os.fsencode(f"{seed}/{name}")).hexdigest()
