"""The cache: decoded once, complete or absent, and at most a chunk of it in memory."""

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from films import config, film, joined, load, make, same, splits, write, write_faces

import vaekit
from vaekit.data import load_data
from vaekit.files import cache, images, patients
from vaekit.files.sources import ImageFile

pytestmark = pytest.mark.usefixtures("tiny_sets")


@pytest.mark.parametrize("key", ["subtype", "none"])
def test_the_second_load_decodes_nothing_and_is_the_same(tmp_path, monkeypatch, key):
    root = make(tmp_path / "set")
    (root / "train/NORMAL/bad.png").write_bytes(b"no image")
    first = load(root, patient_key=key)
    monkeypatch.setattr(cache, "Reader", None)
    assert same(load(root, patient_key=key), first)


def test_the_cache_knows_what_made_it(tmp_path):
    root = make(tmp_path / "set")
    base = load(root)
    hashes = {base.hash}
    changes = [{"clahe_clip": 0.0}, {"fit": "crop"}, {"image_size": 24}, {"clahe_tiles": 2}]
    for change in (*changes, {"fit": "crop", "crop": 0.5}):
        hashes.add(load(root, **change).hash)
    write(root / "train/NORMAL/IM-0000-0000.jpeg", film(12345))
    hashes.add(load(root).hash)
    assert len(hashes) == 7


@pytest.mark.parametrize("change", [{"seed": 1}, {"val_fraction": 0.4}, {"max_images": 9}], ids=str)
def test_the_cache_knows_what_split_it(tmp_path, monkeypatch, change):
    root = make(tmp_path / "set")
    shutil.rmtree(root / "val")  # so that one is carved
    base = load(root)
    monkeypatch.setattr(cache, "Reader", None)  # the pixels are there: nothing is decoded
    assert load(root, **change).train.names != base.train.names


def test_hash_is_of_content_not_of_place_or_time(tmp_path):
    root = make(tmp_path / "set")
    before = load(root)
    shutil.move(root, tmp_path / "elsewhere")
    for path in (tmp_path / "elsewhere").rglob("*.jpeg"):
        os.utime(path, (1, 1))
    assert load(tmp_path / "elsewhere").hash == before.hash


def test_folders_alike_but_for_their_pixels_share_none(tmp_path):
    """Equal names, sizes and times: beside each other, or one after the other in one place."""
    cfg, found = config(tmp_path / "new"), []
    for seed, name in enumerate(("old", "new", "new")):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        for i in range(8):
            path = tmp_path / name / f"{i}.bmp"
            write(path, film(100 * seed + i))
            os.utime(path, (1, 1))
        data = load(tmp_path / name)
        for image, file in zip(data.train.images, data.train.names, strict=True):
            want = images.prepare(images.decode(tmp_path / name / file), cfg)
            assert np.array_equal(image, want)
        found.append(data.hash)
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    "damage", ["half written", "no index", "short images", "bad index", "empty"]
)
def test_a_damaged_cache_is_made_again(tmp_path, monkeypatch, damage):
    root = make(tmp_path / "set")
    before = load(root)
    pixels = before.train.images.clone()  # a map of a file that is cut short cannot be read
    for path in (tmp_path / "cache").iterdir():
        images = np.load(path, mmap_mode="r")
        end = images.offset + images.nbytes  # where the index begins
        cut = {"no index": end, "short images": 500, "bad index": end + 20, "empty": 0}
        if damage == "half written":  # killed while writing: only the temporary name is there
            path.rename(path.with_name(f".{path.name}-x"))
        else:
            os.truncate(path, cut[damage])
    after = load(root)
    assert after.hash == before.hash
    assert torch.equal(after.train.images, pixels)
    monkeypatch.setattr(cache, "Reader", None)
    assert load(root).hash == before.hash  # and it was kept


REFUSED = {"disk full": (os, "posix_fallocate"), "read-only": (tempfile, "mkdtemp")}


@pytest.mark.parametrize("kind", ["a file is there", *REFUSED])
@pytest.mark.parametrize("key", ["subtype", "none"])
def test_without_a_cache_images_stay_in_ram(tmp_path, monkeypatch, kind, key):
    root = make(tmp_path / "set")
    want = load(root, patient_key=key)
    place = tmp_path / "place"
    monkeypatch.setenv("VAEKIT_CACHE", str(place))

    def refuse(*_, **__):
        raise OSError(kind)

    if kind in REFUSED:
        monkeypatch.setattr(*REFUSED[kind], refuse)
    else:
        place.write_text("")
    with pytest.warns(UserWarning, match="images stay in RAM") as notices:
        data = load(root, patient_key=key)
    assert len(notices) == 1 and same(data, want)
    assert not list(place.glob("*"))  # nothing is left behind


def test_several_at_once(tmp_path):
    root = make(tmp_path / "set")
    with ThreadPoolExecutor(4) as pool:  # what ranks of torchrun do, without their start-up time
        loaded = list(pool.map(lambda _: load(root), range(4)))
    assert {data.hash for data in loaded} == {load(root).hash}
    assert not list((tmp_path / "cache").glob(".*"))


def test_images_are_writable_and_writing_leaves_the_cache_alone(tmp_path, recwarn):
    root = make(tmp_path / "set")
    data = load(root)
    before = data.train.images.clone()
    data.train.images[:] = 0
    assert torch.equal(load(root).train.images, before)
    assert not [w for w in recwarn if "writable" in str(w.message)]


def faces(root, **changes):
    cfg = vaekit.preset("celeba64", **{"data_path": str(root), "max_images": 0, **changes})
    return load_data(cfg, verbose=False)


def test_without_patients_only_what_is_used_is_decoded_and_nothing_compared(tmp_path, monkeypatch):
    write_faces(tmp_path / "set", 60, (60, 50))
    os.link(tmp_path / "set/000001.jpg", tmp_path / "set/000002_copy.jpg")
    (tmp_path / "set/000003.jpg").write_bytes(b"")
    (tmp_path / "set/000004.jpg").write_bytes(b"not an image")
    decoded, real = [], images.read_image

    def counted(path, channels):
        decoded.append(path.name)
        return real(path, channels)

    monkeypatch.setattr(patients, "near_duplicates", None)  # would fail if it were called
    monkeypatch.setattr(images, "read_image", counted)
    data = faces(tmp_path / "set")
    assert sum(map(len, splits(data))) == 59 and joined(data) == 0
    assert sorted(name for name, _ in data.skipped) == ["000003.jpg", "000004.jpg"]
    for image, name in zip(data.train.images, data.train.names, strict=True):
        want = images.prepare(real(tmp_path / "set" / name, 3).pixels, vaekit.preset("celeba64"))
        assert np.array_equal(image, want)
    decoded.clear()
    for number in (3, 4):
        (tmp_path / f"set/{number:06}.jpg").unlink()
    few = faces(tmp_path / "set", max_images=8)
    assert [len(split) for split in splits(few)] == [8, 5, 6] and len(decoded) == 19


@pytest.mark.parametrize("key", ["none", "subtype"])
def test_small_chunks_give_the_same_data(tmp_path, monkeypatch, key):
    write_faces(tmp_path / "set", 30, (40, 40))
    before = faces(tmp_path / "set", patient_key=key)
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "cache2"))
    monkeypatch.setattr(cache, "CHUNK", 7000)  # two images of 3 x 32 x 32
    assert same(faces(tmp_path / "set", patient_key=key), before)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("key, room", [("none", 30e6), ("subtype", 150e6)])
def test_memory_does_not_grow_with_the_set(tmp_path, monkeypatch, key, room):
    """300 MB of pixels in a tenth of that; taken from all over a file, a kernel maps more of it."""
    face = np.stack([film(c, 160, 160) for c in range(3)], -1)
    monkeypatch.setattr(cache.Reader, "read", lambda *_: images.Decoded(face, {}))
    monkeypatch.setattr(patients, "near_duplicates", lambda thumbs: [])  # small, and not the matter
    monkeypatch.setattr(cache, "CHUNK", 8 * 2**20)
    files = [ImageFile(f"{i:06}.jpg", "", "faces", 1, 1) for i in range(4000)]
    cfg = vaekit.preset("celeba256", image_size=160, max_images=0, patient_key=key)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = peak()
    pixels, index = cache.PixelCache(tmp_path, files, cfg, verbose=False).load()
    assert pixels.nbytes > 300e6 and index["lengths"] == [3240, 360, 400]
    assert peak() - before < room
    assert len(list((tmp_path / "cache").iterdir())) == (1 if key == "none" else 2)


def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
