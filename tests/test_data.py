"""vaekit.data, vaekit.images and vaekit.patients: one test per promise."""

import os
import shutil
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from vaekit import Config, data
from vaekit import data as data_module
from vaekit.files import cache, images, patients, sources

SHARED = Path(os.environ.get("VAEKIT_DATA") or "/nowhere")  # before the fixture hides it


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Nothing of this machine: own cache, no data set, no Kaggle, no home."""
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VAEKIT_DATA", raising=False)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(patients, "OWN_VAL", (0.05, 5))  # the sets in here are tiny
    monkeypatch.setattr("vaekit.place.setup.KAGGLE_INPUT", tmp_path / "input")


def film(seed, height=40, width=48):
    """A picture that correlates with no other: smooth noise with detail."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype("f4")
    noise = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


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


def config(root="", **changes):
    small = {"image_size": 16, "widths": (8, 16), "clahe_tiles": 4}
    return Config(**{"data_path": str(root), **small, **changes})


def load(root="", **changes):
    return data_module.load_data(config(root, **changes), verbose=False)


def splits(data):
    return data.train, data.val, data.test


def assert_apart(data):
    """No patient on two sides; every image once; lengths agree."""
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


# ------------------------------------------------------------------------------------- find


def test_the_order_of_places(tmp_path, monkeypatch, capsys):
    hub = tmp_path / "hub/datasets" / sources.KNOWN["chest_xray"].kaggle
    bundle = make(tmp_path / "bundle")
    monkeypatch.setattr("vaekit.files.sources.BUNDLE", bundle)
    assert sources.find_dataset(config()) == sources.Found(bundle, "bundled phantoms")
    for version in (2, 9, 10):
        make(hub / f"versions/{version}/chest_xray")
    newest = hub / "versions/10/chest_xray"
    assert sources.find_dataset(config()) == sources.Found(newest, "kagglehub cache")
    kaggle = make(tmp_path / "input/chest-xray-pneumonia/chest_xray")
    assert sources.find_dataset(config()) == sources.Found(kaggle, "kaggle input")
    monkeypatch.setenv("VAEKIT_DATA", str(make(tmp_path / "mine")))
    assert sources.find_dataset(config()) == sources.Found(tmp_path / "mine", "VAEKIT_DATA")
    given = make(tmp_path / "given")
    assert sources.find_dataset(config(given)) == sources.Found(given, "given")
    data_module.load_data(config(given))
    assert capsys.readouterr().out.splitlines() == [f"data: given, {given}"]


def test_an_unfinished_download_comes_after_a_finished_one(tmp_path):
    hub = tmp_path / "hub/datasets" / sources.KNOWN["chest_xray"].kaggle
    for version in (1, 2):
        make(hub / f"versions/{version}/chest_xray")
    (hub / "1.complete").touch()
    assert sources.find_dataset(config()).path == hub / "versions/1/chest_xray"


@pytest.mark.parametrize("mount", ["chest-xray-pneumonia", "datasets/someone/chest-xray-pneumonia"])
def test_both_kaggle_mounts(tmp_path, mount):
    root = make(tmp_path / "input" / mount / "chest_xray")
    make(root / "chest_xray", train=2)  # the zip's second copy
    make(tmp_path / "input/another-set")
    assert sources.find_dataset(config()) == sources.Found(root, "kaggle input")


def test_kaggle_is_not_searched_deeper_than_three(tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.files.sources.BUNDLE", make(tmp_path / "bundle"))
    make(tmp_path / "input/slug/a/b/c")
    assert sources.find_dataset(config()).source == "bundled phantoms"
    assert sources._kaggle_inputs("chest_xray") == []


def test_vaekit_data_is_the_folder_or_a_root(tmp_path, monkeypatch):
    folder = make(tmp_path / "root/chest_xray")
    (tmp_path / "root/FashionMNIST/raw").mkdir(parents=True)
    for value in (folder, tmp_path / "root"):
        monkeypatch.setenv("VAEKIT_DATA", str(value))
        assert sources.find_dataset(config()) == sources.Found(folder, "VAEKIT_DATA")


@pytest.mark.parametrize("kind", ["missing", "empty", "other data"])
def test_an_order_that_cannot_be_followed_is_an_error(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("vaekit.files.sources.BUNDLE", make(tmp_path / "bundle"))
    place = tmp_path / "place"
    if kind != "missing":
        place.mkdir()
    if kind == "other data":
        (place / "FashionMNIST/raw").mkdir(parents=True)
        (place / "FashionMNIST/raw/images.gz").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="data_path=.*expected train/<class>"):
        sources.find_dataset(config(place))
    monkeypatch.setenv("VAEKIT_DATA", str(place))
    with pytest.raises(FileNotFoundError, match="VAEKIT_DATA=.*expected train/<class>"):
        sources.find_dataset(config())


def test_nothing_anywhere_is_one_error_that_lists_the_places(tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.files.sources.BUNDLE", tmp_path / "no-bundle")
    (tmp_path / "cache").write_text("")  # no folder: nothing can be drawn into it
    with pytest.raises(FileNotFoundError) as error:
        sources.find_dataset(config())
    for part in ("data_path", "VAEKIT_DATA", "input", "kagglehub", "no-bundle", "<class>/*.jpeg",
                 "File exists"):  # fmt: skip
        assert part in str(error.value)


def test_phantoms_are_drawn_once_without_a_checkout(tmp_path, monkeypatch):
    phantom = pytest.importorskip("vaekit.phantom")
    calls = []
    monkeypatch.setattr(phantom, "write_bundle", lambda to: calls.append(make(Path(to))))
    monkeypatch.setattr("vaekit.files.sources.BUNDLE", tmp_path / "no-bundle")
    for _ in range(2):
        found = sources.find_dataset(config())
        assert found == sources.Found(tmp_path / "cache/no-bundle", "bundled phantoms")
        assert str(tmp_path) not in str(found)  # this line is stored in notebooks
    assert len(calls) == 1


# ------------------------------------------------------------------------------------- list


def test_layouts(tmp_path):
    for i in range(12):
        write(tmp_path / "classes" / "ab"[i % 2] / f"{i}.png", film(i))
        write(tmp_path / "flat" / f"{i}.png", film(i))
    (tmp_path / "wrapped").mkdir()
    make(tmp_path / "wrapped/chest_xray")
    for root, classes, count in (("classes", ["a", "b"], 12), ("flat", ["flat"], 12),
                                 ("wrapped", ["NORMAL", "PNEUMONIA"], 60)):  # fmt: skip
        data = load(tmp_path / root, val_fraction=0.2)
        assert data.classes == classes and len(assert_apart(data)) == count


def test_junk_is_counted_never_loaded(tmp_path):
    root = make(tmp_path / "chest_xray")
    before = load(root)
    make(root / "chest_xray", train=3, val=0, test=0)
    junk = root / "__MACOSX/train/NORMAL"
    junk.mkdir(parents=True)
    for name in (junk / "._a.jpeg", root / "train/NORMAL/._a.jpeg", root / "train/.DS_Store"):
        name.write_bytes(b"Mac OS X")
    (root / "test/NORMAL/notes.txt").write_text("hello")
    (root / "manifest.csv").write_text("a,b")
    after = load(root)
    assert after.hash == before.hash
    skipped = dict(after.skipped)
    assert skipped["chest_xray/"] == "nested second copy: 6"
    assert skipped["__MACOSX/"] == "macOS files: 1"
    assert skipped["train/NORMAL/.*"] == "hidden or macOS files: 1"
    assert skipped["test/NORMAL/notes.txt"] == "not an image by its name"
    assert "manifest.csv" in skipped and "notes.txt" in after.summary()


# ----------------------------------------------------------------------------------- decode


def bad_files(folder):
    whole = folder / "whole.jpeg"
    write(whole, film(1, 200, 200))
    data = whole.read_bytes()
    png = folder / "whole.png"
    write(png, film(1, 200, 200))
    huge = bytearray(png.read_bytes()[:100])
    huge[16:24] = (20_000).to_bytes(4, "big") * 2  # the header alone says so
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    kinds = {
        "truncated.jpeg": data[: len(data) // 2],
        "cut_tail.jpeg": data[:-40],
        "truncated.png": png.read_bytes()[:-3000],
        "zero.jpeg": b"",
        "text.jpeg": b"not an image at all",
        "huge.png": bytes(huge),
    }
    for name, content in kinds.items():
        (folder / name).write_bytes(content)
    write(folder / "tiny.png", film(1, 7, 40))
    whole.unlink(), png.unlink()
    return [*kinds, "tiny.png"]


def test_bad_files_are_refused_with_a_reason(tmp_path):
    reasons = {}
    for name in bad_files(tmp_path):
        with pytest.raises(images.BadImage) as error:
            images.decode(tmp_path / name, 1)
        reasons[name] = str(error.value)
        assert str(tmp_path) not in reasons[name]
    assert "truncated" in reasons["truncated.jpeg"] and "0 bytes" in reasons["zero.jpeg"]
    assert "100,000,000" in reasons["huge.png"] and "smaller than 8" in reasons["tiny.png"]
    assert reasons["text.jpeg"] == "not an image"


def test_bad_files_are_skipped_by_name(tmp_path):
    root = make(tmp_path / "set")
    before = load(root)
    names = bad_files(root / "train/NORMAL")
    data = load(root)
    assert [name for name, _ in data.skipped] == sorted(f"train/NORMAL/{name}" for name in names)
    assert all(f"skipped train/NORMAL/{name}: " in data.summary() for name in names)
    assert data.hash == before.hash


def test_nothing_usable_is_one_error(tmp_path):
    bad_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="none of 7 files .* expected") as error:
        load(tmp_path)
    assert "zero.jpeg: empty file" in str(error.value)


def test_odd_files_are_read_by_content(tmp_path):
    grey = film(3, 30, 34)
    rgb = np.stack([grey, grey // 2, 255 - grey], axis=-1)
    luma = np.asarray(Image.fromarray(rgb).convert("L"))
    alpha = np.full(grey.shape, 255, np.uint8)
    alpha[:, :10] = 0
    sixteen = 1000 + 20 * grey.astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "png_called.jpeg", "PNG")
    Image.fromarray(sixteen).save(tmp_path / "sixteen.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.jpeg", quality=100)
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "alpha.png")
    Image.fromarray(np.dstack([grey, alpha])).save(tmp_path / "grey_alpha.png")
    Image.fromarray(grey > 127).save(tmp_path / "bit.png")
    Image.fromarray(grey / 7.0).save(tmp_path / "float.tif")
    Image.fromarray(grey).save(tmp_path / "Füße 肺.png")
    stretched = images._stretch(grey)
    expected = {
        "png_called.jpeg": (grey, 0), "sixteen.png": (stretched, 0), "palette.png": (grey, 0),
        "cmyk.tif": (luma, 2), "cmyk.jpeg": (luma, 6), "alpha.png": (luma * (alpha > 0), 1),
        "grey_alpha.png": (grey * (alpha > 0), 1), "bit.png": (255 * (grey > 127), 0),
        "float.tif": (stretched, 1), "Füße 肺.png": (grey, 0),
    }  # fmt: skip
    for name, (want, tolerance) in expected.items():
        got = images.decode(tmp_path / name, 1)
        assert got.dtype == np.uint8 and got.shape == grey.shape, name
        assert np.abs(got.astype(int) - want).max() <= tolerance, name
        assert images.decode(tmp_path / name, 3).shape == (*grey.shape, 3), name
    colour = images.decode(tmp_path / "alpha.png", 3)
    np.testing.assert_array_equal(colour[:, 10:], rgb[:, 10:])  # RGB, not BGR
    assert not colour[:, :10].any()


def test_exif_orientation(tmp_path):
    grey = film(2, 24, 40)
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: rotate by 270 degrees to show it
    Image.fromarray(grey).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(images.decode(tmp_path / "turned.png"), np.rot90(grey, 3))


# ---------------------------------------------------------------------------- CLAHE and fit


def test_clahe(tmp_path):
    dull = film(1, 64, 64) // 8 + 100
    assert images.apply_clahe(dull, 0) is dull
    np.testing.assert_array_equal(
        images.apply_clahe(dull, 3.0, 4), cv2.createCLAHE(3.0, (4, 4)).apply(dull)
    )
    assert images.apply_clahe(dull, 40.0).std() > dull.std()
    colour = images.apply_clahe(np.stack([dull] * 3, axis=-1), 2.0)
    assert colour.shape == (64, 64, 3) and colour.dtype == np.uint8
    assert np.abs(np.ptp(colour.astype(int), axis=-1)).max() <= 2  # grey stays grey
    assert images.apply_clahe(film(1, 8, 9), 2.0, 64).shape == (8, 9)


@pytest.mark.parametrize("shape", [(40, 32), (30, 100), (8, 500), (9, 10), (300, 20), (300, 280)])
@pytest.mark.parametrize("size", [16, 64])
def test_fit(shape, size):
    white = np.full(shape, 200, np.uint8)
    for how in ("squash", "crop"):
        assert (images.fit_square(white, size, how) == 200).all()
    padded = images.fit_square(white, size, "pad")
    assert padded.shape == (size, size) and set(np.unique(padded)) <= {0, 200}
    share = min(shape) / max(shape)
    assert abs((padded > 0).mean() - share) <= 1 / size
    assert images.fit_square(np.dstack([white] * 3), size, "pad").shape == (size, size, 3)
    with pytest.raises(ValueError, match="squash, pad, frame, crop"):
        images.fit_square(white, size, "stretch")


def test_crop_keeps_the_middle_and_down_is_area():
    image = np.zeros((32, 96), np.uint8)
    image[:, 32:64] = film(1, 32, 32)
    middle = image[:, 32:64]
    np.testing.assert_array_equal(images.fit_square(image, 32, "crop"), middle)
    means = middle.reshape(16, 2, 16, 2).mean((1, 3))
    assert np.abs(images.fit_square(image, 16, "crop") - means).max() <= 1


def test_prepare_is_clahe_then_resize():
    image, cfg = film(1, 64, 80), config(fit="pad", image_size=32)
    want = images.fit_square(images.apply_clahe(image, 2.0, 4), 32, "pad")
    np.testing.assert_array_equal(images.prepare(image, cfg), want[None])
    assert images.prepare(np.dstack([image] * 3), cfg).shape == (3, 32, 32)


def test_rgb_load(tmp_path):
    data = load(make(tmp_path / "set"), in_channels=3)
    assert data.train.images.shape[1:] == (3, 16, 16)
    grey = load(tmp_path / "set")
    assert data.train.names == grey.train.names  # the split does not depend on the pixels asked for


# ------------------------------------------------------------------------- group and split


@pytest.mark.parametrize(
    "name, subtype, number",
    [
        ("person12_bacteria_47.jpeg", "person12_bacteria", "person12"),
        ("train/PNEUMONIA/person12_virus_48.jpeg", "person12_virus", "person12"),
        ("person1_virus_4_2.jpeg", "person1_virus", "person1"),
        ("IM-0115-0001.jpeg", "IM-0115", "IM-0115"),
        ("NORMAL2-IM-0501-0001-0002.jpeg", "NORMAL2-IM-0501", "IM-0501"),
        ("holiday.jpeg", "holiday", "holiday"),
    ],
)
def test_patient_key(name, subtype, number):
    assert patients.patient_key(name) == subtype
    assert patients.patient_key(name, "number") == number


def test_same_names_without_patients_stay_apart():
    groups = patients.group_patients(["a/1.png", "b/1.png", "a/IM-0001-1.png", "b/IM-0001-2.png"])
    assert groups == ["a/1.png", "b/1.png", "IM-0001", "IM-0001"]


def thumbs(films):
    return np.stack([images.fit_square(image, 32) for image in films])


def test_near_duplicates():
    image = film(1, 200, 200)
    copy = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 0)
    brighter = (255 * (image / 255) ** 0.8).astype(np.uint8)
    blank = np.zeros((50, 50), np.uint8)
    films = [film(2, 200, 200), image, blank, copy, cv2.resize(image, (90, 70)), brighter, blank]
    assert set(patients.near_duplicates(thumbs(films))) == {
        (i, j) for i in (1, 3, 4, 5) for j in (1, 3, 4, 5) if i < j
    }


def test_near_duplicates_in_blocks_and_beyond_the_cap(monkeypatch):
    films = [film(i, 32, 32) for i in range(1500)]
    films[1400] = films[3]
    assert patients.near_duplicates(np.stack(films)) == [(3, 1400)]
    monkeypatch.setattr(patients, "MOST_COMPARED", 100)
    assert patients.near_duplicates(np.stack(films)) == [(3, 1400)]


def test_a_copy_under_another_patients_name_joins_the_groups(tmp_path):
    root = make(tmp_path / "set")
    twin = root / "test/PNEUMONIA/person200_bacteria_0.jpeg"
    shutil.copy(twin, root / "train/PNEUMONIA/person7_bacteria_99.jpeg")
    data = load(root)
    assert data.merged == 1
    assert_apart(data)
    lost = [name for name, reason in data.dropped if reason == "shares a patient with test"]
    assert "train/PNEUMONIA/person7_bacteria_99.jpeg" in lost and len(lost) == 3


def test_a_val_as_small_as_kermanys_is_pooled_and_carved_anew(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "cache"))
    data = load(make(tmp_path / "set"))  # 8 films in its own val
    assert len(data.train) == 44 and len(data.val) == 4
    assert not all(name.startswith("val/") for name in data.val.names)
    assert_apart(data)


def test_own_test_stays_and_train_gives_way(tmp_path):
    root = make(tmp_path / "set")
    write(root / "train/NORMAL/IM-0200-0099.jpeg", film(77))  # patient 200 is in test
    write(root / "train/NORMAL/IM-0100-0099.jpeg", film(78))  # patient 100 is in val
    data = load(root)
    assert len(data.test) == 12 and len(data.val) == 8 and len(data.train) == 40
    assert dict(data.dropped) == {
        "train/NORMAL/IM-0200-0099.jpeg": "shares a patient with test",
        "train/NORMAL/IM-0100-0099.jpeg": "shares a patient with val",
    }
    assert len(assert_apart(data)) == 62


def test_a_small_val_is_pooled_and_carved_anew(tmp_path):
    data = load(make(tmp_path / "set", train=40, val=1), val_fraction=0.25)
    assert_apart(data)
    assert len(data.train) + len(data.val) == 82
    counts = torch.bincount(data.val.labels).tolist()
    assert all(8 <= count <= 10 for count in counts)  # a quarter of 41 of each class


def test_test_is_carved_where_there_is_none(tmp_path):
    data = load(make(tmp_path / "set", train=40, val=0, test=0), val_fraction=0.2)
    names = assert_apart(data)
    assert len(names) == 80 and not data.dropped
    assert torch.bincount(data.test.labels).tolist() == [8, 8]


def test_cautious_key_joins_subtypes(tmp_path):
    root = make(tmp_path / "set")
    for patient in range(10):
        write(root / f"train/PNEUMONIA/person{patient}_virus_500.jpeg", film(500 + patient))
    write(root / "train/PNEUMONIA/person200_virus_500.jpeg", film(600))
    assert not load(root).dropped
    data = load(root, patient_key="number")
    assert [name for name, _ in data.dropped] == ["train/PNEUMONIA/person200_virus_500.jpeg"]
    assert_apart(data)


def test_the_split_does_not_depend_on_listing_order(tmp_path, monkeypatch):
    root = make(tmp_path / "set", val=0)
    before = load(root)
    real, rng = os.scandir, np.random.default_rng(0)

    class Shuffled:
        def __init__(self, path):
            with real(path) as entries:
                self.entries = list(entries)
            rng.shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "cache2"))
    after = load(root)
    assert after.hash == before.hash
    assert [s.names for s in splits(after)] == [s.names for s in splits(before)]


def test_seed_changes_val_only(tmp_path):
    root = make(tmp_path / "set", train=40, val=0)
    a, b = load(root, seed=1), load(root, seed=2)
    assert a.val.names != b.val.names and a.test.names == b.test.names and a.hash != b.hash
    assert len(list((tmp_path / "cache").glob("pixels-*"))) == 1  # decoded once for both


def test_a_new_file_moves_few_others(tmp_path):
    root = make(tmp_path / "set", train=40, val=0)
    before = set(load(root).val.names)
    write(root / "train/NORMAL/IM-0900-0001.jpeg", film(900))
    assert len(before - set(load(root).val.names)) <= 2


def test_max_images(tmp_path):
    root = make(tmp_path / "set", train=40, val=20, test=20)
    data = load(root, max_images=10)
    assert [len(split) for split in splits(data)] == [10, 10, 10]
    assert torch.bincount(data.train.labels).tolist() == [5, 5]
    assert len(assert_apart(data)) == 160
    assert {reason for _, reason in data.dropped} == {"over max_images=10"}
    assert set(load(root, max_images=6).train.names) < set(data.train.names)
    assert [len(s) for s in splits(load(root, max_images=4))] == [4, 8, 8]


def test_too_few_patients_is_a_clear_error(tmp_path):
    write(tmp_path / "set/a.png", film(1))
    write(tmp_path / "set/b.png", film(2))
    with pytest.raises(ValueError, match="is empty: 2 images of 2 patients"):
        load(tmp_path / "set")


# ------------------------------------------------------------------------------------ cache


def test_second_load_is_fast_and_the_same(tmp_path, monkeypatch):
    root = make(tmp_path / "set", train=60)
    start = time.perf_counter()
    first = load(root)
    cold = time.perf_counter() - start
    monkeypatch.setattr(images, "reader", None)  # any decoding would fail
    warm = []
    for _ in range(5):
        start = time.perf_counter()
        second = load(root)
        warm.append(time.perf_counter() - start)
    assert min(warm) < 0.2 * cold  # generous: these films are tiny
    assert first.hash == second.hash and first.skipped == second.skipped
    for a, b in zip(splits(first), splits(second), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        assert (a.names, a.groups, a.classes) == (b.names, b.groups, b.classes)


def test_pixels_are_what_prepare_gives(tmp_path):
    root = make(tmp_path / "set")
    cfg = config(root, fit="pad")
    data = data_module.load_data(cfg, verbose=False)
    for split in splits(data):
        for image, name in zip(split.images, split.names, strict=True):
            want = images.prepare(images.decode(root / name, 1), cfg)
            np.testing.assert_array_equal(image.numpy(), want)


def test_the_cache_knows_what_made_it(tmp_path):
    root = make(tmp_path / "set")
    base = load(root)
    hashes = {base.hash}
    for change in ({"clahe_clip": 0.0}, {"fit": "crop"}, {"image_size": 24}, {"clahe_tiles": 2}):
        hashes.add(load(root, **change).hash)
    write(root / "train/NORMAL/IM-0000-0000.jpeg", film(12345))
    hashes.add(load(root).hash)
    assert len(hashes) == 6


def test_hash_is_of_content_not_of_place_or_time(tmp_path):
    root = make(tmp_path / "set")
    before = load(root)
    shutil.move(root, tmp_path / "elsewhere")
    for path in (tmp_path / "elsewhere").rglob("*.jpeg"):
        os.utime(path, (1, 1))
    assert load(tmp_path / "elsewhere").hash == before.hash


@pytest.mark.parametrize(
    "damage", ["half written", "no index", "short images", "bad index", "empty"]
)
def test_a_damaged_cache_is_made_again(tmp_path, damage):
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
    _, index = cache._open(next((tmp_path / "cache").glob("split-*")))
    assert index["hash"] == before.hash  # and it was kept


@pytest.mark.parametrize("kind", ["a file is there", "disk full"])
def test_without_a_cache_images_stay_in_ram(tmp_path, monkeypatch, kind):
    root = make(tmp_path / "set")
    want = load(root)
    if kind == "a file is there":
        (tmp_path / "blocked").write_text("")
        monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "blocked"))
    else:
        monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "full"))

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(cache, "_on_disk", full)
    with pytest.warns(UserWarning, match="images stay in RAM") as notices:
        data = load(root)
    assert len(notices) == 1 and data.hash == want.hash
    assert torch.equal(data.train.images, want.train.images)
    assert not list((tmp_path / "full").glob(".*"))  # nothing is left behind


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root writes everywhere")
def test_a_read_only_cache_folder(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir(mode=0o500)
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "locked"))
    with pytest.warns(UserWarning, match="images stay in RAM"):
        assert len(load(make(tmp_path / "set")).train) == 40


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


# ----------------------------------------------------------------------- Data and its tables


def test_summary(tmp_path):
    text = load(make(tmp_path / "set")).summary()
    assert [line.split() for line in text.splitlines()[1:5]] == [
        ["images", "patients", "NORMAL", "PNEUMONIA"],
        ["train", "40", "20", "20", "20"],
        ["val", "8", "4", "4", "4"],
        ["test", "12", "6", "6", "6"],
    ]
    assert str(tmp_path) not in text
    assert repr(load(tmp_path / "set")) == text


def tensors(n=6, shape=(1, 16, 16)):
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)


def test_from_tensors():
    parts = tensors(6), tensors(3), tensors(4)
    data = data_module.Data.from_tensors(*parts)
    assert [len(split) for split in splits(data)] == [6, 3, 4]
    assert torch.equal(data.train.images, parts[0]) and data.source == "tensors"
    assert_apart(data)
    assert data.hash == data_module.Data.from_tensors(*parts).hash
    labels = [[0, 1] * 3, [0] * 3, [1] * 4]
    named = data_module.Data.from_tensors(*parts, labels=labels, classes=["a", "b"])
    assert named.hash != data.hash and named.classes == ["a", "b"]
    assert named.train.labels.tolist() == [0, 1] * 3
    other = data_module.Data.from_tensors(tensors(6), tensors(4), tensors(3))
    assert other.hash != data.hash


@pytest.mark.parametrize(
    "train, extra, message",
    [
        (tensors().float(), {}, "uint8"),
        (tensors()[0], {}, "uint8"),
        (tensors()[:0], {}, "N > 0"),
        (tensors(6, (1, 8, 8)), {}, "the same in all three"),
        (tensors(), {"labels": [[0], [0], [0]]}, "lengths"),
        (tensors(), {"labels": [[0] * 6, [1] * 3, [2] * 3], "classes": ["a"]}, "labels run"),
    ],
)
def test_from_tensors_refuses(train, extra, message):
    with pytest.raises(ValueError, match=message):
        data_module.Data.from_tensors(train, tensors(3), tensors(3), **extra)


def test_check():
    data = data_module.Data.from_tensors(tensors(), tensors(), tensors())
    data.check(config())
    with pytest.raises(ValueError, match="image_size"):
        data.check(config(image_size=32))
    with pytest.raises(ValueError, match="in_channels"):
        data.check(config(in_channels=3))


# ---------------------------------------------------------------------------------- batches


@pytest.fixture
def split():
    return data_module.Data.from_tensors(tensors(10), tensors(3), tensors(3)).train


def test_batches(split):
    got = list(data_module.batches(split, 4))
    assert [len(x) for x in got] == [4, 4, 2]
    assert all(x.dtype == torch.float32 for x in got)
    torch.testing.assert_close(torch.cat(got), split.images / 255)
    rgb = data_module.Data.from_tensors(*[tensors(4, (3, 16, 16))] * 3).train
    x = next(data_module.batches(rgb, 4, channels_last=True))
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x, rgb.images / 255)


def test_order_and_flip_stay_aligned(split):
    order = torch.tensor([7, 2, 2, 9, 0])
    flip = torch.tensor([True, False, True, False, True])
    got = torch.cat(list(data_module.batches(split, 2, order=order, flip=flip)))
    want = split.images[order] / 255
    want[flip] = want[flip].flip(-1)
    torch.testing.assert_close(got, want)
    assert torch.equal(split.images, tensors(10))  # nothing was mirrored in place


def test_batches_refuses_at_the_call(split):
    empty = data_module.Split(split.images[:0], split.labels[:0], [], [], [])
    with pytest.raises(ValueError, match="no images"):
        data_module.batches(empty, 4)
    with pytest.raises(ValueError, match="batch_size"):
        data_module.batches(split, 0)
    for order in ([0, 10], [-1]):
        with pytest.raises(ValueError, match="order"):
            data_module.batches(split, 4, order=torch.tensor(order))
    with pytest.raises(ValueError, match="flip"):
        data_module.batches(split, 4, flip=torch.tensor([True]))


def test_cpu_batches_are_cut_from_the_map_itself(tmp_path):
    data = load(make(tmp_path / "set"))
    assert data.train.to_device("cpu") is data.train.images


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("resident", [True, False])
def test_cuda_batches(split, monkeypatch, resident):
    if not resident:
        monkeypatch.setattr(data, "ON_DEVICE", 0.0)
    order, flip = torch.arange(10).flip(0), torch.arange(10) % 2 == 0
    got = torch.cat(list(data_module.batches(split, 4, "cuda", order=order, flip=flip)))
    want = torch.cat(list(data_module.batches(split, 4, "cpu", order=order, flip=flip)))
    assert got.device.type == "cuda" and split.to_device("cuda") is split.to_device("cuda")
    assert split.to_device("cuda").is_cuda == resident
    torch.testing.assert_close(got.cpu(), want)


def test_import_is_light():
    code = "import sys, vaekit.data; print([m for m in ('torchvision', 'kagglehub', 'scipy') if m in sys.modules])"  # noqa: E501
    here = Path(cache.__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr


# ------------------------------------------------------------------------------- real packs


def number(name):
    """The digits of a name's patient, read without vaekit's patterns."""
    head = name.rsplit("/", 1)[-1].split("_")[0]
    parts = head.removesuffix(".jpeg").split("-")
    return head if head.startswith("person") else "i" + parts[parts.index("IM") + 1]


@pytest.mark.parametrize("pack, images_in_it", [("chest_xray", 1360), ("chest_xray_224", 5535)])
def test_real_packs(pack, images_in_it):
    root = SHARED / pack
    if not root.is_dir():
        pytest.skip(f"VAEKIT_DATA has no {pack}/")
    for how in ("subtype", "number"):
        data = load(root, patient_key=how)
        assert len(assert_apart(data)) == images_in_it
        if how == "number":
            sides = [{number(name) for name in split.names} for split in splits(data)]
            assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert data.merged <= 5  # a threshold that merged strangers would show here
    assert max(map(data.train.groups.count, set(data.train.groups))) <= 40
    assert data.hash == load(root, patient_key="number").hash  # from the cache
