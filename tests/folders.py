"""Random trees of folders, and checks that hold for every one of them."""

import os
import random
import re
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from unittest import mock

from films import assert_apart, film, load, splits, write

import vaekit
from vaekit.files.sources import SUFFIXES

SPLIT_NAMES = "train Train Training train_set valid validation val VAL test Test Testing".split()
LEFT_OUT = "masks mask labels Segmentation lung_masks __MACOSX .git".split()
FOLDERS = "NORMAL|PNEUMONIA|a|images|images_001|files|p1|p2|p11|patient0001|patient0002|study1|"
FOLDERS += "0|00012345|chest_xray|img_align_celeba|ünï cödé|x.png|cache"
FOLDERS = FOLDERS.split("|")
KEYS = ["subtype", "number", "folder", "none", r"(\d+)", r"^(.*)/"]
FAULTS = (
    "cut empty tiny text dicom numpy archive hidden dangling loop pipe run twin strange".split()
)


def grow(folder: Path, rng: random.Random, depth: int = 0) -> None:
    """Files, faults and folders in `folder`, which is `depth` levels below the root."""
    folder.mkdir()
    series = rng.choice(
        ["{}.png", "IM-{:04}-0001.jpeg", "{:08}_000.png", "{}.PNG", "person{}_virus_1.jpg"]
    )
    for i in range(rng.choice([0, 0, 1, 3, 12])):
        seed = rng.randrange(10**6)
        write(folder / series.format(rng.choice([i, seed])), film(seed, 12, 14))
    for fault in rng.sample(FAULTS, rng.choice([0, 0, 1, 2])):
        spoil(folder, fault, rng)
    pool = SPLIT_NAMES * 2 + LEFT_OUT + FOLDERS * 2
    for name in set(rng.choices(pool, k=rng.choice([0, 1, 2, 3]) if depth < 4 else 0)):
        if not (folder / name).exists():
            grow(folder / name, rng, depth + 1)


def spoil(folder: Path, fault: str, rng: random.Random) -> None:
    """One thing that real folders have and no program likes."""
    contents = {
        "cut": ("cut.png", b"\x89PNG\r\n\x1a\n" + bytes(20)),
        "empty": ("empty.jpg", b""),
        "text": ("notes.txt", b"hello"),
        "dicom": ("scan.dcm", bytes(128) + b"DICM"),
        "numpy": ("array.npy", b"\x93NUMPY"),
        "archive": ("images.zip", b"PK"),
        "hidden": ("._a.png", b"Mac OS X"),
        "strange": ("a\nb\udcff.png", b"no image"),
    }
    if fault in contents:
        name, content = contents[fault]
        (folder / name).write_bytes(content)
    elif fault == "tiny":
        write(folder / "tiny.png", film(1, 4, 4))
    elif fault == "dangling":
        (folder / "gone.png").symlink_to("nowhere")
    elif fault == "loop":
        (folder / "loop").symlink_to(folder)
        (folder / "self").symlink_to("self")
    elif fault == "pipe":
        os.mkfifo(folder / "pipe.png")
    elif fault == "run":
        for name in ("config.json", "run.json"):
            (folder / name).write_text("{}")
    else:  # the same image as in other folders
        write(folder / f"twin{rng.randrange(99)}.png", film(0, 12, 14))


def images_in(root: Path) -> set[str]:
    """All files that look like images, wherever they lie."""
    found = set()
    for folder, _, names in os.walk(root):
        for name in names:
            if name.lower().endswith(SUFFIXES):
                found.add((Path(folder) / name).relative_to(root).as_posix())
    return found


def check(root: Path, **changes) -> str:
    """Load `root`: what came of it. AssertionError where something is untrue or unsaid."""
    there = images_in(root)
    try:
        data = load(root, **changes)
    except (ValueError, FileNotFoundError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        assert Path(last.filename).is_relative_to(Path(vaekit.__file__).parent), last
        text = str(error)
        kinds = ("has no images", "is empty: ", "none of", "cannot be read")
        kind = next(kind for kind in kinds if kind in text)
        if kind == "has no images":
            said = "nothing that is read; " in text or "left out" in text
            assert said or "img_align_celeba" in text or not there, text
        return kind
    there = images_in(Path(data.path))  # the summary's place: Kermany's set in it is entered
    cache = "cache/" if Path(data.path) == root else "never/"
    used = {name for split in splits(data) for name in split.names}
    dropped = {name for name, _ in data.dropped}
    assert len(assert_apart(data)) == len(used | dropped)
    unused = [name for name, _ in data.skipped]
    unread = (cache, *(n.removesuffix("*") for n in unused if n.endswith(("/", ".*"))))
    lost = there - used - dropped - set(unused)
    assert all(name.startswith(unread) for name in lost), lost
    assert not any(name.startswith(unread) or name in unused for name in used | dropped)
    for name in used - set(data.test.names):
        assert not re.match(r"test", name.split("/")[0], re.I), name
    for name in used:
        assert not set(name.split("/")[:-1]) & set(LEFT_OUT), name
        assert not name.startswith(cache), name
    summary = data.summary()
    summary.encode()  # it can be printed
    for split, name in zip(splits(data), ("train", "val", "test"), strict=True):
        (row,) = re.findall(rf"^{name} +(\d+) +(\d+)([\d ]*)$", summary, re.M)
        assert int(row[0]) == len(split) == sum(map(int, row[2].split()))
    return "loaded"


def fuzz(count: int, seed: int = 0) -> dict:
    """`count` random trees from `seed` on: how many were loaded, and refused with which reason."""
    found: Counter = Counter()
    for number in range(seed, seed + count):
        rng = random.Random(number)
        changes = {"dataset": rng.choice(["chest_xray", "images"]), "patient_key": rng.choice(KEYS)}
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "set"
            with mock.patch.dict(os.environ, {"VAEKIT_CACHE": str(root / "cache")}):
                grow(root, rng)
                found[check(root, **changes)] += 1
    return {"trees": count, "first seed": seed, **found}
