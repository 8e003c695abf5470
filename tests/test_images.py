"""From a file to a square image: what can be read is read, what cannot says why."""

import zlib

import cv2
import numpy as np
import pytest
import torch
from films import config, film, load, make, write
from PIL import Image

import vaekit
from vaekit.files import images


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
    stretched = np.rint((grey - float(grey.min())) * 255 / np.ptp(grey))
    expected = {
        "png_called.jpeg": (grey, 0),
        "sixteen.png": (stretched, 0),
        "palette.png": (grey, 0),
        "cmyk.tif": (luma, 2),
        "cmyk.jpeg": (luma, 6),
        "alpha.png": (luma * (alpha > 0), 1),
        "grey_alpha.png": (grey * (alpha > 0), 1),
        "bit.png": (255 * (grey > 127), 0),
        "float.tif": (stretched, 1),
        "Füße 肺.png": (grey, 0),
    }
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


def test_frame_pads_and_never_enlarges():
    small, large = film(1, 28, 20), film(2, 64, 32)
    framed = images.fit_square(small, 32, "frame")
    assert np.array_equal(framed[2:30, 6:26], small) and framed.sum() == small.sum()
    assert np.array_equal(
        images.fit_square(large, 32, "frame"), images.fit_square(large, 32, "pad")
    )


def test_crop_keeps_the_middle_and_down_is_area():
    image = np.zeros((32, 96), np.uint8)
    image[:, 32:64] = film(1, 32, 32)
    middle = image[:, 32:64]
    np.testing.assert_array_equal(images.fit_square(image, 32, "crop"), middle)
    means = middle.reshape(16, 2, 16, 2).mean((1, 3))
    assert np.abs(images.fit_square(image, 16, "crop") - means).max() <= 1


def test_the_crop_is_center_crop_140_at_any_size():
    from torchvision.transforms.functional import center_crop

    share, size = vaekit.preset("celeba64").crop, (218, 178)
    face = np.stack([film(c, *size) for c in range(3)], -1)
    want = center_crop(torch.from_numpy(face).permute(2, 0, 1), 140).permute(1, 2, 0)
    assert np.array_equal(images.fit_square(face, 140, "crop", share), want)
    half = face[::2, ::2]  # a copy of the set at half size: the same part of the face
    assert np.array_equal(images.fit_square(half, 70, "crop", share), half[19:89, 9:79])


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
