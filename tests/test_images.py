"""From a file to a square image: what can be read is read, what cannot says why."""

import sys

import cv2
import numpy as np
import pytest
import tifffile
import torch
from films import assert_apart, config, film, huge, load, make, splits, write
from PIL import Image

import vaekit
from vaekit.files import images


def bad_files(folder):
    whole = folder / "whole.jpeg"
    write(whole, film(1, 200, 200))
    data = whole.read_bytes()
    png = folder / "whole.png"
    write(png, film(1, 200, 200))
    kinds = {
        "truncated.jpeg": data[: len(data) // 2],
        "cut_tail.jpeg": data[:-40],
        "truncated.png": png.read_bytes()[:-3000],
        "zero.jpeg": b"",
        "text.jpeg": b"not an image at all",
        "huge.png": huge(20_000, 20_000),
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
    assert "400000000 pixels" in reasons["huge.png"] and "smaller than 8" in reasons["tiny.png"]
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
    low, high = np.percentile(grey, images.PERCENTILES)
    stretched = np.rint(((grey - low) * 255 / (high - low)).clip(0, 255))
    expected = {
        "png_called.jpeg": (grey, 0),
        "sixteen.png": (stretched, 1),
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
    tifffile.imwrite(tmp_path / "turned.tif", deep(grey), extratags=[(274, "H", 1, 6)])
    tifffile.imwrite(tmp_path / "straight.tif", deep(grey))
    straight = images.decode(tmp_path / "straight.tif", 3)
    np.testing.assert_array_equal(images.decode(tmp_path / "turned.tif", 3), np.rot90(straight, 3))


def deep(grey):
    """A 12-bit film in 48-bit colour."""
    return np.stack([grey.astype("u2") * 16] * 3, -1)


DEEP = cv2.equalizeHist(film(1, 100, 90)).astype("u2") * 16
PADDED = {  # where, and the value there
    "as it is": (np.s_[:0], 0),
    "dead pixel": (np.s_[0, 0], 65535),
    "marker": (np.s_[5:20, 5:40], 65535),
    "border": (np.s_[:4], 65535),
    "dark border": (np.s_[:20], -32768),
}


@pytest.mark.parametrize("padding", PADDED)
@pytest.mark.parametrize("kind", ["png", "tif", "npy", "colour.png", "colour.tif", "alpha.png"])
def test_more_than_8_bits_keep_their_contrast(tmp_path, kind, padding):
    where, value = PADDED[padding]
    values = DEEP.astype("f4" if value < 0 else "u2")
    values[where] = value
    path = tmp_path / f"a.{kind}"
    if kind == "npy":
        np.save(path, values)
    elif "." not in kind:
        kind = "tif" if value < 0 else kind  # PNG has no floats
        Image.fromarray(values).save(path, kind.replace("tif", "tiff"))
    elif value < 0:
        pytest.skip("colour has no floats")
    else:
        planes = [values] * 3 + [np.full_like(values, 65535)] * (kind == "alpha.png")
        cv2.imwrite(str(path), np.dstack(planes))
    pixels, remarks, _ = images.read_image(path)
    rest = np.ones(DEEP.shape, bool)
    rest[where] = False
    assert np.abs(pixels.astype(float) - DEEP / 16)[rest].max() <= 8
    assert len(np.unique(pixels)) > 100
    assert remarks == {images.SCALED: remarks[images.SCALED]} and "from" in remarks[images.SCALED]


def ink(shade, ground=0):
    """A square on a transparent ground."""
    image = np.full((64, 64, 4), ground, "u1")
    image[20:44, 20:44] = (shade, shade, shade, 255)
    image[0, 0, 3] = 0
    return image


@pytest.mark.parametrize(
    "array, what, detail",
    [
        (ink(0), "transparent", "white"),
        (ink(255), "transparent", "black"),
        (np.zeros((9, 9, 4), "u1"), "constant", "0"),
        (np.full((9, 9), 7, "u1"), "constant", "7"),
        (film(3) > 120, "fewer than 32 grey levels", "2"),
        (np.dstack([film(3) // 200] * 3), "fewer than 32 grey levels", "2"),
        (film(3), "", ""),
        (np.dstack([film(3)] * 3 + [np.full_like(film(3), 255)]), "", ""),  # nothing shines through
    ],
)
def test_what_is_odd_is_remarked(tmp_path, array, what, detail):
    write(tmp_path / "a.png", array)
    remarks = images.read_image(tmp_path / "a.png").remarks
    assert detail in remarks[what] if what else not remarks


@pytest.mark.parametrize("shade", [0, 255])
def test_ink_on_a_transparent_ground_is_seen(tmp_path, shade):
    write(tmp_path / "a.png", ink(shade))
    pixels = images.decode(tmp_path / "a.png")
    assert (pixels[20:44, 20:44] == shade).all() and pixels[10, 10] == 255 - shade


@pytest.mark.parametrize("kind", ["tiff", "gif"])
def test_later_pages_are_remarked(tmp_path, kind):
    pages = [Image.fromarray(film(i)) for i in range(3)]
    pages[0].save(tmp_path / "a", kind, save_all=True, append_images=pages[1:])
    pixels, remarks, _ = images.read_image(tmp_path / "a")
    assert np.array_equal(pixels, film(0)) and "3" in remarks[images.PAGES]


@pytest.mark.parametrize("key", ["subtype", "none"])
def test_the_summary_says_it_the_second_time_too(tmp_path, key):
    for i in range(12):
        write(tmp_path / "set" / f"{i}.png", film(i).astype("u2") * 16 + i)
    write(tmp_path / "set/flat.png", film(1) * 0)
    for _ in range(2):
        data = load(tmp_path / "set", patient_key=key)
        assert f"{images.SCALED}: 12 images, such as" in data.summary()
        assert data.remarks["constant"] == {"flat.png": "0 everywhere"}
        low, high = np.percentile(film(5).astype("u2") * 16 + 5, images.PERCENTILES)
        assert data.remarks[images.SCALED]["5.png"] == f"from {low:.6g} to {high:.6g}"


@pytest.mark.parametrize(
    "array, reason",
    [
        (np.zeros((3, 20, 20), "u1"), r"\(3, 20, 20\)"),
        (np.zeros((20, 20), "c8"), "complex"),
        (np.array([{}]), "Python objects"),
        (np.full((20, 20), np.nan), "finite"),
        (np.zeros((20, 4)), "smaller"),
    ],
    ids=str,
)
def test_arrays_that_are_no_image_are_refused(tmp_path, array, reason):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(images.BadImage, match=reason):
        images.decode(tmp_path / "a.npy")


def test_a_folder_of_arrays(tmp_path):
    for i in range(12):
        pixels = film(i) if i % 2 else np.dstack([film(i)] * 3)
        np.save(tmp_path / f"{i}.npy", pixels)
    data = load(tmp_path, in_channels=3)
    assert sum(map(len, splits(data))) == 12 and not data.skipped
    for image, name in zip(data.train.images, data.train.names, strict=True):
        want = images.prepare(np.dstack([film(int(name[:-4]))] * 3), config())
        assert np.array_equal(image, want)


def dicom(path, values, patient="", **tags):
    """A DICOM file of these 12-bit values, as scanners write it."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    bits = 8 * values.dtype.itemsize
    stored = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1, "SamplesPerPixel": 1}
    stored |= {"Rows": values.shape[-2], "Columns": values.shape[-1], "PatientID": patient}
    stored |= {"PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0}
    for name, value in (stored | tags).items():
        setattr(file, name, value)
    file.PixelData = values.tobytes()
    file.save_as(path)


@pytest.mark.parametrize(
    "tags, low, high",
    [
        ({}, 0, 4080),
        ({"WindowCenter": 2000, "WindowWidth": 1000}, 1500, 2500),
        ({"WindowCenter": [2000, 9], "WindowWidth": [1000, 9]}, 1500, 2500),
        (
            {"WindowCenter": 0, "WindowWidth": 1000, "RescaleSlope": 1, "RescaleIntercept": -2000},
            1500,
            2500,
        ),
        ({"PixelPaddingValue": 5000}, 0, 4080),
    ],
    ids=str,
)
@pytest.mark.parametrize("negative", [False, True])
def test_dicom(tmp_path, tags, low, high, negative):
    pytest.importorskip("pydicom")
    values = DEEP.copy()
    values[:10] = tags.get("PixelPaddingValue", 0)
    tags = tags | {"PhotometricInterpretation": "MONOCHROME1"} if negative else tags
    dicom(tmp_path / "a.dcm", values, "somebody", **tags)
    pixels, remarks, patient = images.read_image(tmp_path / "a.dcm")
    want = ((values.astype(float) - low) * 255 / (high - low)).clip(0, 255)
    want = 255 - want if negative else want
    assert np.abs(pixels - want)[10:].max() <= 4
    assert patient == "somebody" and images.SCALED in remarks


def test_dicom_of_8_bits_and_several_frames(tmp_path):
    pytest.importorskip("pydicom")
    frames = np.stack([film(1), film(2)])
    dicom(tmp_path / "a", frames, NumberOfFrames=2)
    pixels, remarks, _ = images.read_image(tmp_path / "a")
    assert np.array_equal(pixels, film(1)) and list(remarks) == [images.PAGES]


@pytest.mark.parametrize(
    "folder, classes", [("set", ["set"]), ("set/Name{}", ["set"]), ("set/a/Name{}", ["set"])]
)
def test_the_patient_in_dicom_is_the_group(tmp_path, folder, classes):
    """The names, as OsiriX gives them, would make all one patient."""
    pytest.importorskip("pydicom")
    for i in range(24):
        path = tmp_path / folder.format(i // 2) / f"IM-0001-{i:04}.dcm"
        dicom(path, film(i).astype("u2") * 16, f"ID{i // 2}")
    data = load(tmp_path / "set")
    assert_apart(data)
    assert data.classes == classes
    groups = [group for split in splits(data) for group in split.groups]
    assert len(groups) == 24 and set(groups) == {f"ID{i}" for i in range(12)}
    assert data.who == "patients"


def test_without_pydicom_the_message_names_the_command(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(FileNotFoundError, match="a.dcm: is DICOM: `pip install pydicom`"):
        load(tmp_path)


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
