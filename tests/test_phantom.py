"""Phantoms: films repeat, anatomy is in place, the bundle reads like Kermany's set."""

import hashlib
import time

import cv2
import numpy as np
import pytest

from vaekit.files import phantom
from vaekit.files.sources import BUNDLE


def unit(image):
    """Mean-removed, unit-norm 32x32 thumbnail, flat: its dot product is a correlation."""
    small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).astype(float).ravel()
    small -= small.mean()
    return small / np.linalg.norm(small)


def test_same_seed_same_pixels_other_seed_other_patient():
    film = phantom.draw_film(3, 1, "virus", seed=5)
    np.testing.assert_array_equal(film, phantom.draw_film(3, 1, "virus", seed=5))
    for patient, seed in ((3, 6), (4, 5)):
        assert unit(film) @ unit(phantom.draw_film(patient, 1, "virus", seed=seed)) < 0.98


def test_shape_type_and_use_of_the_grey_scale():
    films = [phantom.draw_film(patient) for patient in range(8)]
    for film in films:
        assert film.dtype == np.uint8 and film.shape[0] == 256
        assert 0.75 < film.shape[1] / 256 < 2.6
        assert film.std() > 25 and film.min() < 40 and film.max() > 150
    assert len({film.shape for film in films}) > 4  # the field of view is the film's own


@pytest.mark.parametrize("kind", ["bacteria", "virus"])
def test_pneumonia_whitens_the_lungs_and_nothing_else(kind):
    for patient in range(4):
        lung = phantom._air(phantom._scene(patient, film=0, seed=0)) > 0.35
        well, ill = (phantom.draw_film(patient, 0, k).astype(float) for k in (None, kind))
        assert (ill - well)[lung].mean() > 2
        assert (ill - well)[lung].max() > 25  # a focus that can be seen, not a new exposure
        far = cv2.dilate(lung.astype(np.uint8), np.ones((41, 41))) == 0
        assert np.abs(ill - well)[far].mean() < 1.5


@pytest.mark.parametrize("kind", ["fungus", "", "NORMAL"])
def test_unknown_pneumonia_lists_the_choices(kind):
    with pytest.raises(ValueError, match="bacteria.*virus"):
        phantom.draw_film(0, pneumonia=kind)


def test_the_plan_is_stable():
    """Every name, folder, patient, film and kind: a change is another data set."""
    rows = [(p.path.as_posix(), p.patient, p.film, p.pneumonia) for p in phantom.plan()]
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == "296d7c880d5e863a"


@pytest.mark.parametrize("films", [10, 50, phantom.SAMPLE])
def test_a_smaller_plan_is_the_beginning_of_every_folder(films):
    few, all_films = list(phantom.plan(films)), list(phantom.plan())
    assert set(few) < set(all_films) and films <= len(few) <= films + 6
    folders = {planned.path.parent for planned in few}
    assert len(folders) == 6
    for folder in folders:
        mine = [planned for planned in few if planned.path.parent == folder]
        assert mine == [p for p in all_films if p.path.parent == folder][: len(mine)]


def test_files_do_not_depend_on_the_number_of_threads(tmp_path, monkeypatch):
    contents = []
    for threads in (1, 3):
        monkeypatch.setattr(phantom.os, "cpu_count", lambda: threads)  # noqa: B023
        count = phantom.write_bundle(tmp_path / str(threads), films=10)
        files = (tmp_path / str(threads)).rglob("*.jpeg")
        contents.append({f.relative_to(tmp_path / str(threads)): f.read_bytes() for f in files})
        assert len(contents[-1]) == count
    assert contents[0] == contents[1]
    stored = cv2.imread(str(tmp_path / "1/train/NORMAL/IM-0115-0001.jpeg"), cv2.IMREAD_UNCHANGED)
    drawn = phantom.draw_film(0, seed=1)
    assert stored.shape == drawn.shape  # one channel
    assert np.abs(stored.astype(float) - drawn).mean() < 4


def test_the_committed_sample_is_part_of_the_drawn_set(tmp_path):
    """Names exactly; pixels to a grey level or so: OpenCV rounds as the processor's units do."""
    planned = {film.path for film in phantom.plan(phantom.SAMPLE)}
    committed = {path.relative_to(BUNDLE) for path in BUNDLE.rglob("*.jpeg")}
    assert committed == planned
    phantom.write_bundle(tmp_path, films=10)
    for path in tmp_path.rglob("*.jpeg"):
        again, kept = (
            cv2.imread(str(root / path.relative_to(tmp_path)), cv2.IMREAD_UNCHANGED).astype(float)
            for root in (tmp_path, BUNDLE)
        )
        assert np.abs(again - kept).mean() < 0.05


def test_a_disk_that_refuses_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom, "draw_film", lambda *_, **__: np.zeros((8, 8), np.uint8))
    (tmp_path / "test").write_text("")  # no folder
    with pytest.raises(OSError):
        phantom.write_bundle(tmp_path, films=10)


def test_stopping_a_drawing_begins_no_film_more(tmp_path, monkeypatch):
    drawn = []

    def stop(folder, planned):
        drawn.append(planned)
        time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(phantom, "write_film", stop)
    monkeypatch.setattr(phantom.os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        phantom.write_bundle(tmp_path)
    assert len(drawn) < 0.5 * phantom.FILMS
