"""Which patient each film belongs to, and the split by patient."""

import os
import shutil
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from conftest import need_pack
from films import assert_apart, config, film, joined, load, make, splits, write

from vaekit.files import images, patients

OWN_VAL = patients.OWN_VAL  # before the fixture makes it tiny
pytestmark = pytest.mark.usefixtures("tiny_sets")


@pytest.mark.parametrize(
    "name, subtype, number",
    [
        ("person12_bacteria_47.jpeg", "person12_bacteria", "person12"),
        ("train/PNEUMONIA/person12_virus_48.jpeg", "person12_virus", "person12"),
        ("person1_virus_4_2.jpeg", "person1_virus", "person1"),
        ("IM-0115-0001.jpeg", "IM-0115", "IM-0115"),
        ("NORMAL2-IM-0501-0001-0002.jpeg", "NORMAL2-IM-0501", "IM-0501"),
        ("a/holiday.jpeg", "a/holiday.jpeg", "a/holiday.jpeg"),
    ],
)
def test_kermanys_patients(name, subtype, number):
    for how, patient in (("subtype", subtype), ("number", number), ("none", name)):
        assert patients.find_patients([name], how)[0][0] == patient


SCHEMES = [  # (name of film i of patient p, patient_key, a word of the summary)
    ("images/{p:08}_{i:03}.png", "subtype", "NIH"),
    ("patient{p:05}_study{i}_view1.jpg", "number", "CheXpert"),
    ("patient{p:05}/study{i}/view1.jpg", "subtype", "CheXpert"),
    ("files/p1{i}/p1000{p:04}/s5000000{i}/a.jpg", "subtype", "MIMIC"),
    ("patient{p:04}/{i}.png", "subtype", "one folder"),
    ("p{p}/{i}.png", "subtype", "numbered folder"),
    ("case of {p}/{i}.png", "folder", "'folder'"),
    ("x{p}y{i}.png", r"x(\d+)y", r"x(\\d+)y"),
    ("who{p}/{i}.png", "table.csv", "table.csv"),
    ("x{p}y{i}.png", "subtype", "WARNING"),
    ("x{p}y{i}.png", "none", "hash"),
]


@pytest.mark.parametrize("pattern, key, word", SCHEMES)
def test_patients_of_any_scheme_stay_apart(tmp_path, monkeypatch, pattern, key, word):
    monkeypatch.chdir(tmp_path)
    names = {pattern.format(p=p, i=i): p for p in range(1, 13) for i in range(4)}
    for i, name in enumerate(names):
        write(tmp_path / "set" / name, film(i))
    rows = [f"{name},Miller {patient}" for name, patient in names.items()]
    (tmp_path / "table.csv").write_text("\n".join(["\ufefffile,patient", *rows]))
    data = load("set", patient_key=key)
    assert word in data.summary() and len(assert_apart(data)) == 48
    sides = [{names[name] for name in split.names} for split in splits(data)]
    known = key != "none" and word != "WARNING"
    assert bool(sides[0] & (sides[1] | sides[2])) != known
    assert data.classes == ["set"] or not known
    assert data.who == ("patients" if known else "groups")
    (tmp_path / "table.csv").write_text("\n".join(f"{name},{name}" for name in names))
    again = load("set", patient_key=key)  # another table is another split
    assert (again.train.groups == data.train.groups) == (key != "table.csv")


@pytest.mark.parametrize("key", ["folder", r"q(\d+)", "none.csv", "three.csv", "other.csv"])
def test_a_key_that_tells_nothing_is_refused_by_name(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        write(tmp_path / f"set/{i}.png", film(i))
    (tmp_path / "three.csv").write_text("0.png,a,b\n")
    (tmp_path / "other.csv").write_text("7.png,a\n")
    with pytest.raises(ValueError, match="patient_key="):
        load("set", patient_key=key)
    with pytest.raises(ValueError, match="patient_key=.*one group"):
        config(patient_key="(a)(b" if key == "folder" else "(a)|(b)")


def test_frames_of_a_video_are_refused_with_the_way_out(tmp_path):
    frame = film(7, 80, 80)
    for i in range(20):
        frame[20:24, 2 * i : 2 * i + 4] = 255
        write(tmp_path / f"set/frame_{i:05}.png", frame)
    with pytest.raises(ValueError, match='1 patients.* 20: near-duplicate.*"none"'):
        load(tmp_path / "set")
    assert len(load(tmp_path / "set", patient_key="none").train) == 16


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
    assert patients.near_duplicates(thumbs(films)) == [(1, 3), (1, 4), (1, 5)]


def test_a_chain_of_near_duplicates_is_one_and_never_n_by_n_pairs():
    start, end = film(1, 32, 32).astype(float), film(2, 32, 32)
    frames = [(start + (end - start) * i / 1999).astype(np.uint8) for i in range(2000)]
    alone = film(3, 32, 32)
    pairs = patients.near_duplicates(np.stack([alone, *frames[::2], *frames[1::2]]))
    assert pairs == [(1, i) for i in range(2, 2001)]
    # also where each is like its neighbours alone, and the links come in an awkward order
    turns = np.radians(15) * np.array([0, 4, 3, 2, 1])[:, None, None]
    steps = 128 + np.cos(turns) * (start - 128) + np.sin(turns) * (end.astype(float) - 128)
    pairs = patients.near_duplicates(steps.clip(0, 255).astype(np.uint8))
    assert pairs == [(0, i) for i in (1, 2, 3, 4)]


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
    assert joined(data) == 1
    assert_apart(data)
    lost = [name for name, reason in data.dropped if reason == "shares a patient with test"]
    assert "train/PNEUMONIA/person7_bacteria_99.jpeg" in lost and len(lost) == 3


def test_a_val_as_small_as_kermanys_is_pooled_and_carved_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(patients, "OWN_VAL", OWN_VAL)
    data = load(make(tmp_path / "set", train=40, val=5), val_fraction=0.25)  # 10 of its own
    assert_apart(data)
    assert len(data.train) + len(data.val) == 90
    assert not all(name.startswith("val/") for name in data.val.names)
    counts = torch.bincount(data.val.labels).tolist()
    assert all(9 <= count <= 12 for count in counts)  # a quarter of 45 of each class


def test_own_test_stays_and_train_gives_way(tmp_path):
    root = make(tmp_path / "set")
    write(root / "train/NORMAL/IM-0200-0099.jpeg", film(77))  # patient 200 is in test
    write(root / "train/NORMAL/IM-0100-0099.jpeg", film(78))  # patient 100 is in val
    write(root / "val/NORMAL/IM-0201-0099.jpeg", film(79))  # patient 201 is in test
    data = load(root)
    assert len(data.test) == 12 and len(data.val) == 8 and len(data.train) == 40
    assert dict(data.dropped) == {
        "train/NORMAL/IM-0200-0099.jpeg": "shares a patient with test",
        "train/NORMAL/IM-0100-0099.jpeg": "shares a patient with val",
        "val/NORMAL/IM-0201-0099.jpeg": "shares a patient with test",
    }
    assert len(assert_apart(data)) == 63


def test_the_only_patient_of_a_class_stays_in_train():
    groups = [*"abcdefgh", "rare", "rare"]
    own, labels = [""] * 10, [0] * 8 + [1] * 2
    rows, dropped = patients.split_by_patient(groups, own, labels, groups, config())
    assert {8, 9} < set(rows["train"]) and not dropped
    assert [len(rows[split]) for split in ("train", "val", "test")] == [8, 1, 1]


def test_test_is_carved_where_there_is_none(tmp_path):
    data = load(make(tmp_path / "set", train=40, val=0, test=0), val_fraction=0.2)
    names = assert_apart(data)
    assert len(names) == 80 and not data.dropped
    assert torch.bincount(data.test.labels).tolist() == [8, 8]


def test_the_split_does_not_depend_on_listing_order(tmp_path, monkeypatch):
    root = make(tmp_path / "set", val=0)
    before = load(root)
    real, rng = os.listdir, np.random.default_rng(0)
    monkeypatch.setattr(os, "listdir", lambda path: rng.permutation(real(path)).tolist())
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


def number(name):
    """The digits of a name's patient, read without vaekit's patterns."""
    head = name.rsplit("/", 1)[-1].split("_")[0]
    parts = head.removesuffix(".jpeg").split("-")
    return head if head.startswith("person") else "i" + parts[parts.index("IM") + 1]


@pytest.mark.parametrize("pack, images_in_it", [("chest_xray", 1360), ("chest_xray_224", 5535)])
def test_kermanys_images_are_split_by_patient(monkeypatch, pack, images_in_it):
    monkeypatch.setattr(patients, "OWN_VAL", OWN_VAL)
    root = need_pack(pack)
    for how in ("subtype", "number"):
        data = load(root, patient_key=how)
        assert len(assert_apart(data)) == images_in_it and data.who == "patients"
        assert joined(data) <= 5  # a threshold that merged strangers would show here
        assert max(Counter(data.train.groups).values()) <= 40
    sides = [{number(name) for name in split.names} for split in splits(data)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
