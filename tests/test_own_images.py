"""The user's own images: which preset they get, and that it trains on them."""

import numpy as np
import pytest
import torch
from PIL import Image

import vaekit


def fill(folder, size, colour, n=12, mode="RGB"):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        pixels = rng.integers(0, 255, (size, size + 7, 3 if colour else 1), np.uint8)
        pixels = np.broadcast_to(pixels, (size, size + 7, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).convert(mode).save(folder / f"{i}.png")


@pytest.mark.parametrize(
    ("size", "colour", "name"),
    [
        (28, False, "fashion_mnist"),
        (32, True, "cifar10"),
        (64, False, "celeba64"),
        (150, True, "chest_xray"),
        (300, False, "medical256"),
        (300, True, "celeba256"),
    ],
)
def test_size_and_channels_decide(tmp_path, size, colour, name):
    fill(tmp_path / "a", size, colour, n=3)
    cfg = vaekit.preset_for(tmp_path)
    assert (cfg.preset, cfg.in_channels) == (name, 3 if colour else 1)
    assert cfg.dataset == "images" and cfg.clahe_clip == 0 and cfg.patient_key == "none"


def test_grey_pictures_saved_as_rgb_are_grey_and_changes_win(tmp_path):
    fill(tmp_path, 40, colour=False, mode="RGB")
    assert vaekit.preset_for(tmp_path).in_channels == 1
    assert vaekit.preset_for(tmp_path, beta=0.5, in_channels=3).in_channels == 3


def test_it_loads_what_it_was_made_for(tmp_path):
    for name in ("cats", "dogs"):
        fill(tmp_path / name, 40, colour=True)
    (tmp_path / "cats" / "broken.png").write_bytes(b"no image")
    data = vaekit.load_data(vaekit.preset_for(tmp_path), verbose=False)
    assert data.classes == ["cats", "dogs"] and data.train.images.shape[1:] == (3, 32, 32)


def test_no_images_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        vaekit.preset_for(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(FileNotFoundError, match="not one of 1"):
        vaekit.preset_for(tmp_path)


def test_channels_are_those_of_the_images_that_would_be_read(tmp_path, monkeypatch):
    fill(tmp_path / "colour", 40, colour=True, n=4)
    fill(tmp_path / "grey", 40, colour=False, n=4)
    assert vaekit.count_channels() == 1  # the bundled films
    for name, channels in (("colour", 3), ("grey", 1)):
        monkeypatch.setenv("VAEKIT_DATA", str(tmp_path / name))
        assert vaekit.count_channels() == channels
    assert vaekit.count_channels(tmp_path / "colour") == 3
    with pytest.raises(FileNotFoundError, match="nowhere"):
        vaekit.count_channels(tmp_path / "nowhere")


def test_what_cannot_be_read_is_passed_over_until_something_can(tmp_path):
    for i in range(200):
        (tmp_path / f"{i:03}.png").write_bytes(b"")
    huge = b"P5 20000 20000 255\n" + bytes(9)
    (tmp_path / "000.pgm").write_bytes(huge)
    fill(tmp_path / "x", 60, colour=True, n=1)
    assert vaekit.count_channels(tmp_path) == 3
    assert vaekit.preset_for(tmp_path).preset == "celeba64"


@pytest.mark.parametrize("in_channels", [1, 3])
def test_load_images_is_what_load_data_makes(tmp_path, in_channels):
    fill(tmp_path, 40, colour=True)
    cfg = vaekit.preset("chest_xray", data_path=str(tmp_path), in_channels=in_channels)
    train = vaekit.load_data(cfg, verbose=False).train
    paths = [tmp_path / name for name in train.names]
    images = vaekit.load_images(paths, cfg)
    assert images.dtype == torch.float32 and torch.equal(images, train.images / 255)
    assert torch.equal(vaekit.load_images(str(paths[0]), cfg), images[:1])
    with pytest.raises(ValueError, match="at least one"):
        vaekit.load_images([], cfg)
    (tmp_path / "02.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="02.png: not an image"):
        vaekit.load_images(tmp_path / "02.png", cfg)
