"""The user's own images: the preset that they get, and how they are read."""

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
    ("profile", "side", "colour", "size"),
    [
        ("full", 300, True, 128),
        ("quick", 300, False, 64),
        ("smoke", 300, True, 32),
        ("full", 60, False, 64),
        ("quick", 28, True, 32),
        ("full", 9, True, 8),
    ],
)
def test_sharp_in_the_size_of_the_images_or_the_profiles(tmp_path, profile, side, colour, size):
    fill(tmp_path / "a", side, colour, n=10)
    cfg = vaekit.preset_for(tmp_path, profile=profile)
    assert (cfg.preset, cfg.image_size, cfg.in_channels) == ("sharp", size, 3 if colour else 1)
    assert cfg.dataset == "images" and cfg.clahe_clip == 0 and cfg.patient_key == "none"
    assert cfg.latent_channels == min(size**2 // 16, 8) and vaekit.VAE(cfg)


def test_there_are_no_more_numbers_than_training_images(tmp_path):
    fill(tmp_path, 64, True, n=40)
    cfg = vaekit.preset_for(tmp_path, profile="quick")
    assert cfg.latent_channels == len(vaekit.load_data(cfg, verbose=False).train) == 32
    assert vaekit.preset_for(tmp_path, profile="quick", max_images=10).latent_channels == 8
    assert vaekit.preset_for(tmp_path, profile="quick", latent_channels=99).latent_channels == 99


def test_another_preset_keeps_its_own_size_and_code(tmp_path):
    fill(tmp_path, 300, True, n=3)
    cfg, own = vaekit.preset_for(tmp_path, "celeba64"), vaekit.preset("celeba64")
    assert cfg == vaekit.preset_for(tmp_path, preset="celeba64") and cfg.fit == "crop"
    assert (cfg.preset, cfg.image_size, cfg.in_channels) == ("celeba64", own.image_size, 3)
    assert cfg.latent_channels == own.latent_channels


def test_without_a_folder_the_attached_images_are_looked_at(tmp_path):
    fill(tmp_path / "input/my-photos", 40, colour=True, n=4)
    assert vaekit.preset_for().in_channels == 3
    data = vaekit.load_data(vaekit.preset_for(), verbose=False)
    assert data.path == str(tmp_path / "input/my-photos")


def test_what_a_preset_of_films_makes_of_photographs_is_said(tmp_path, capsys):
    fill(tmp_path, 40, colour=True, n=12)
    wide = np.zeros((40, 80, 3), np.uint8)
    for i in range(14):
        Image.fromarray(wide + np.uint8([200, 9 * i, 0])).save(tmp_path / f"wide{i}.png")
    vaekit.load_data(vaekit.preset("sharp", data_path=str(tmp_path), val_fraction=0.2))
    grey, squashed = capsys.readouterr().out.splitlines()[1:]
    assert "in colour: in_channels=1" in grey and "2.0 to 1: fit='squash'" in squashed
    vaekit.load_data(vaekit.preset_for(tmp_path))
    assert len(capsys.readouterr().out.splitlines()) == 1
    vaekit.load_data(vaekit.preset("sharp"))  # wide films are usual
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_grey_pictures_saved_as_rgb_are_grey_and_changes_win(tmp_path):
    fill(tmp_path, 40, colour=False, mode="RGB")
    assert vaekit.preset_for(tmp_path).in_channels == 1
    assert vaekit.preset_for(tmp_path, beta=0.5, in_channels=3).in_channels == 3


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
    assert vaekit.preset_for(tmp_path, profile="full").image_size == 64


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
