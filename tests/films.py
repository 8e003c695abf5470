"""Small folders of images laid out as data sets, and checks that hold for all loaded data."""

import struct
import zlib

import cv2
import numpy as np
import torch
from PIL import Image

from vaekit.config import Config
from vaekit.data import load_data


def film(seed, height=40, width=48):
    """An image that correlates with no other: smooth noise with detail."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype("f4")
    noise = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


def huge(width, height):
    """A PNG of a few bytes that claims to be this large."""

    def chunk(kind, content):
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def make(root, train=20, val=4, test=6, seed=0):
    """Kermany's layout; two films a patient in train, each class its own numbers."""
    for split, number, first in (("train", train, 0), ("val", val, 100), ("test", test, 200)):
        for i in range(number):
            patient = first + i // 2
            for label, name in (
                ("NORMAL", f"IM-{patient:04}-{i:04}.jpeg"),
                ("PNEUMONIA", f"person{patient}_bacteria_{i}.jpeg"),
            ):
                write(root / split / label / name, film((seed, first + i, len(label))))
    return root


def write_faces(folder, n=40, size=(218, 178)):
    for i in range(1, n + 1):
        write(folder / f"{i:06}.jpg", np.stack([film(3 * i + c, *size) for c in range(3)], -1))


def config(root="", **changes):
    small = {"profile": "smoke", "image_size": 16, "widths": (8, 16), "clahe_tiles": 4}
    return Config(**{"data_path": str(root), **small, **changes})


def load(root="", **changes):
    return load_data(config(root, **changes), verbose=False)


def splits(data):
    return data.train, data.val, data.test


def same(a, b):
    """Two loads agree in everything but where they came from."""
    facts = [(d.hash, d.classes, d.skipped, d.dropped, d.remarks, d.who, d.notes) for d in (a, b)]
    assert facts[0] == facts[1]
    for x, y in zip(splits(a), splits(b), strict=True):
        assert torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels)
        assert (x.names, x.groups, x.classes) == (y.names, y.groups, y.classes)
    return True


def joined(data):
    """How many patients by name near-duplicates have joined to another, as the summary says."""
    counts = [note.split(": ")[1] for note in data.notes if "near-duplicate" in note]
    return sum(map(int, counts))


def assert_apart(data):
    """No patient on two sides; every image once; lengths agree. All names, in a split or not."""
    sides = [set(split.groups) for split in splits(data)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    names = [name for split in splits(data) for name in split.names]
    names += [name for name, _ in data.dropped]
    assert len(names) == len(set(names))
    for split in splits(data):
        lengths = {len(split), len(split.labels), len(split.names), len(split.groups)}
        assert len(lengths) == 1 and len(split) > 0
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
    return names
