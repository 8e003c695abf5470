"""The data sets beside the films: tiny files in each real format, and the real packs."""

import gzip
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from test_data import alone, film, splits, write  # noqa: F401 (`alone` is a fixture)

import vaekit
from vaekit import data
from vaekit import data as data_module
from vaekit.files import cache, images, patients, sources

SHARED = Path(os.environ.get("VAEKIT_DATA") or "/nowhere")  # before the fixture hides it


def pictures(n, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def load(name, root="", **changes):
    cfg = vaekit.preset(name, **{"data_path": str(root), "max_images": 0, **changes})
    return data_module.load_data(cfg, verbose=False)


def idx(array):
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_fashion(folder, zipped=True, train=60, test=20):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"train": pictures(train, (28, 28)), "t10k": pictures(test, (28, 28), 1)}
    for part, x in arrays.items():
        for kind, array in (("images-idx3", x), ("labels-idx1", np.arange(len(x)) % 10)):
            data, name = idx(array), f"{part}-{kind}-ubyte"
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    return arrays


def write_cifar(folder, monkeypatch):
    """Five batches of 8 and a test batch, pickled as the real ones are; their MD5 made known."""
    from torchvision.datasets import CIFAR10

    def put(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    folder.mkdir(parents=True)
    x = pictures(48, (3, 32, 32))
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    sums = [
        [name, put(name, {"data": x[8 * i : 8 * i + 8].reshape(8, -1), "labels": [i, 9] * 4})]
        for i, name in enumerate(names)
    ]
    meta = put("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": meta})
    return x


def write_faces(folder, n=40, size=(218, 178)):
    for i in range(1, n + 1):
        write(folder / f"{i:06}.jpg", np.stack([film(3 * i + c, *size) for c in range(3)], -1))


# ---------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_is_padded_and_keeps_its_own_test(tmp_path, zipped):
    arrays = write_fashion(tmp_path / "FashionMNIST/raw", zipped)
    data = load("fashion_mnist", tmp_path)
    assert [len(split) for split in splits(data)] == [50, 10, 20]
    assert len(data.classes) == 10 and "Ankle boot" in data.classes
    for split, own in ((data.train, "train"), (data.val, "train"), (data.test, "t10k")):
        rows = [int(name.split("/")[1]) for name in split.names]
        assert np.array_equal(split.images[:, 0, 2:-2, 2:-2], arrays[own][rows])
        assert split.images.shape[1:] == (1, 32, 32)
        assert not split.images[:, :, :2].any() and not split.images[..., -2:].any()
        assert split.groups == split.names  # every image stands alone


def test_cifar10_is_read_by_torchvision_after_its_md5_check(tmp_path, monkeypatch):
    x = write_cifar(tmp_path / "cifar10/cifar-10-batches-py", monkeypatch)
    data = load("cifar10", tmp_path)
    assert len(data.test) == 8 and len(data.train) + len(data.val) == 40
    assert np.array_equal(data.test.images, x[40:])
    for image, name, label in zip(data.train.images, data.train.names, data.train.labels,
                                  strict=True):  # fmt: skip
        row = int(name.split("/")[1])
        assert np.array_equal(image, x[row])
        assert data.classes[label] == "abcdefghij"[9 if row % 2 else row // 8]
    with open(tmp_path / "cifar10/cifar-10-batches-py/data_batch_3", "ab") as file:
        file.write(b"x")
    with pytest.raises(images.BadImage, match="corrupted"):  # never unpickled
        load("cifar10", tmp_path)


def test_npz_with_and_without_a_test_set(tmp_path):
    x, y, classes = pictures(30, (32, 32, 3)), np.arange(30) % 3, np.array(["a", "b", "c"])
    folder = tmp_path / "cifar10"
    folder.mkdir()
    np.savez(folder / "cifar10_b.npz", x=x, y=y, classes=classes)
    np.savez(folder / "cifar10_a.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6],
             classes=classes)  # fmt: skip
    data = load("cifar10", tmp_path)  # the last by name
    assert sources.find_dataset(vaekit.preset("cifar10", data_path=str(tmp_path))).path == (
        folder / "cifar10_b.npz"
    )
    assert sum(map(len, splits(data))) == 30 and data.classes == ["a", "b", "c"]
    for split in splits(data):
        rows = [int(name.split("/")[1]) for name in split.names]
        assert np.array_equal(split.images, x[rows].transpose(0, 3, 1, 2))
        assert split.labels.tolist() == [row % 3 for row in rows]
    other = load("cifar10", folder / "cifar10_a.npz", in_channels=1)
    assert len(other.test) == 6 and other.test.images.shape[1] == 1


@pytest.mark.parametrize("layout", ["", "celeba/img_align_celeba",
                                    "img_align_celeba/img_align_celeba"])  # fmt: skip
def test_celeba_layouts(tmp_path, layout):
    write_faces(tmp_path / "set" / layout)
    data = load("celeba64", tmp_path / "set", image_size=64)
    assert [len(split) for split in splits(data)] == [32, 4, 4]
    assert data.train.images.shape[1:] == (3, 64, 64)


@pytest.mark.parametrize("suffix", ["csv", "txt"])
def test_celebas_own_split_is_kept(tmp_path, suffix):
    write_faces(tmp_path / "img_align_celeba/img_align_celeba")
    comma = "," if suffix == "csv" else " "
    lines = ["image_id,partition"] * (suffix == "csv")
    lines += [f"{i:06}.jpg{comma}{(i > 20) + (i > 30)}" for i in range(1, 41)]
    (tmp_path / f"list_eval_partition.{suffix}").write_text("\n".join(lines) + "\n")
    data = load("celeba64", tmp_path)
    numbers = [sorted(int(name[:6]) for name in split.names) for split in splits(data)]
    assert numbers == [list(range(1, 21)), list(range(21, 31)), list(range(31, 41))]


def test_the_crop_is_center_crop_140_at_any_size():
    from torchvision.transforms.functional import center_crop

    share, size = vaekit.preset("celeba64").crop, (218, 178)
    face = np.stack([film(c, *size) for c in range(3)], -1)
    want = center_crop(torch.from_numpy(face).permute(2, 0, 1), 140).permute(1, 2, 0)
    assert np.array_equal(images.fit_square(face, 140, "crop", share), want)
    half = face[::2, ::2]  # a copy of the set at half size: the same part of the face
    assert np.array_equal(images.fit_square(half, 70, "crop", share), half[19:89, 9:79])


def test_frame_pads_and_never_enlarges():
    small, large = film(1, 28, 20), film(2, 64, 32)
    framed = images.fit_square(small, 32, "frame")
    assert np.array_equal(framed[2:30, 6:26], small) and framed.sum() == small.sum()
    assert np.array_equal(
        images.fit_square(large, 32, "frame"), images.fit_square(large, 32, "pad")
    )


def test_any_folder_of_images_flat_or_by_class_grey_or_colour(tmp_path):
    for i in range(12):
        colour = np.stack([film(i), film(i + 50), film(i + 90)], -1)
        write(tmp_path / "flat" / f"{i}.png", colour if i % 2 else film(i))
        write(tmp_path / "classes" / "ab"[i % 2] / f"{i}.png", colour)
    for root, classes, channels in (("flat", ["flat"], 3), ("classes", ["a", "b"], 1)):
        data = load("cifar10", tmp_path / root, dataset="images", in_channels=channels)
        assert data.classes == classes and sum(map(len, splits(data))) == 12
        assert data.train.images.shape[1:] == (channels, 32, 32)


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_arrays_are_named(tmp_path, damage):
    write_fashion(tmp_path)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:500]) if damage == "cut" else file.unlink()
    with pytest.raises(images.BadImage, match=f"{tmp_path.name} cannot be read"):
        load("fashion_mnist", tmp_path)


# ----------------------------------------------------------------------------------- places


def test_the_order_of_places(tmp_path, monkeypatch):
    cfg, known = vaekit.preset("fashion_mnist"), sources.KNOWN["fashion_mnist"].kaggle
    with pytest.raises(FileNotFoundError) as error:
        sources.find_dataset(cfg)
    for part in ("dataset=fashion_mnist", "train-images-idx3-ubyte", "VAEKIT_DATA", known,
                 "load_data(cfg, download=True)", "torchvision"):  # fmt: skip
        assert part in str(error.value)
    for source, folder in (
        ("torchvision cache", "cache/torchvision/FashionMNIST/raw"),
        ("kagglehub cache", f"hub/datasets/{known}/versions/3"),
        ("kaggle input", "input/datasets/someone/clothes"),
        ("kaggle input", "input/fashionmnist"),
    ):
        write_fashion(tmp_path / folder)
        assert sources.find_dataset(cfg) == sources.Found(tmp_path / folder, source)
    write_fashion(tmp_path / "root/FashionMNIST/raw")
    monkeypatch.setenv("VAEKIT_DATA", str(tmp_path / "root"))
    assert sources.find_dataset(cfg).source == "VAEKIT_DATA"
    write_fashion(tmp_path / "mine")
    given = sources.find_dataset(cfg.replace(data_path=str(tmp_path / "mine")))
    assert given == sources.Found(tmp_path / "mine", "given")


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "celeba64", "chest_xray"])
def test_one_data_set_never_stands_in_for_another(tmp_path, monkeypatch, name):
    write_fashion(tmp_path / "root/FashionMNIST/raw")
    np.savez(tmp_path / "root/cifar10.npz", x=pictures(9, (32, 32, 3)), y=[0] * 9, classes=["a"])
    write_faces(tmp_path / "root/celeba/img_align_celeba", 3)
    write(tmp_path / "root/chest_xray/train/NORMAL/IM-0001-0001.jpeg", film(0))
    own = {"fashion_mnist": "FashionMNIST/raw", "cifar10": "cifar10.npz",
           "celeba64": "celeba/img_align_celeba", "chest_xray": "chest_xray"}  # fmt: skip
    monkeypatch.setenv("VAEKIT_DATA", str(tmp_path / "root"))
    assert sources.find_dataset(vaekit.preset(name)).path == tmp_path / "root" / own[name]
    for other in ("FashionMNIST", "celeba", "celeba/img_align_celeba", "chest_xray"):
        if not own[name].startswith(other):
            monkeypatch.setenv("VAEKIT_DATA", str(tmp_path / "root" / other))
            with pytest.raises(FileNotFoundError, match="VAEKIT_DATA=.*expected"):
                sources.find_dataset(vaekit.preset(name))


def test_a_download_happens_only_when_asked_for(tmp_path, monkeypatch):
    calls = []

    def fetch(name):
        calls.append(name)
        write_fashion(sources._torchvision_cache() / "FashionMNIST/raw")

    monkeypatch.setattr(sources, "_download", fetch)
    for profile, download in (("quick", False), ("smoke", True)):
        with pytest.raises(FileNotFoundError):
            sources.find_dataset(vaekit.preset("fashion_mnist", profile=profile), download=download)
    assert not calls
    cfg = vaekit.preset("fashion_mnist", profile="quick")
    for _ in range(2):  # the second time it is there
        assert sources.find_dataset(cfg, download=True).source == "torchvision cache"
    assert calls == ["fashion_mnist"]


# -------------------------------------------------------------------------------- streaming


def test_without_patients_only_what_is_used_is_decoded_and_nothing_compared(tmp_path, monkeypatch):
    write_faces(tmp_path / "set", 60, (60, 50))
    os.link(tmp_path / "set/000001.jpg", tmp_path / "set/000002_copy.jpg")
    (tmp_path / "set/000003.jpg").write_bytes(b"")
    (tmp_path / "set/000004.jpg").write_bytes(b"not a picture")
    decoded, real = [], images.decode

    def counted(path, channels):
        decoded.append(path.name)
        return real(path, channels)

    monkeypatch.setattr(patients, "near_duplicates", None)  # would fail if it were called
    monkeypatch.setattr(
        images, "decode", lambda path, c: decoded.append(path.name) or real(path, c)
    )
    data = load("celeba64", tmp_path / "set")
    assert sum(map(len, splits(data))) == 59 and data.merged == 0
    assert sorted(name for name, _ in data.skipped) == ["000003.jpg", "000004.jpg"]
    assert all(split.images.flatten(1).any(1).all() for split in splits(data))  # no holes
    for image, name in zip(data.train.images, data.train.names, strict=True):
        want = images.prepare(real(tmp_path / "set" / name, 3), vaekit.preset("celeba64"))
        assert np.array_equal(image, want)
    decoded.clear()
    for number in (3, 4):
        (tmp_path / f"set/{number:06}.jpg").unlink()
    few = load("celeba64", tmp_path / "set", max_images=8)
    assert [len(split) for split in splits(few)] == [8, 5, 6] and len(decoded) == 19


@pytest.mark.parametrize("key", ["none", "subtype"])
def test_small_chunks_give_the_same_data(tmp_path, monkeypatch, key):
    write_faces(tmp_path / "set", 30, (40, 40))
    before = load("celeba64", tmp_path / "set", patient_key=key)
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "cache2"))
    monkeypatch.setattr(data, "CHUNK", 7000)  # two images of 3 x 32 x 32
    after = load("celeba64", tmp_path / "set", patient_key=key)
    assert after.hash == before.hash
    for a, b in zip(splits(after), splits(before), strict=True):
        assert torch.equal(a.images, b.images) and a.names == b.names


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_set(tmp_path, monkeypatch):
    """300 MB of pixels, decoded and hashed in a tenth of that."""
    face = np.stack([film(c, 160, 160) for c in range(3)], -1)
    monkeypatch.setattr(images, "reader", lambda *_: lambda name: face)
    monkeypatch.setattr(data, "CHUNK", 8 * 2**20)
    files = [(f"{i:06}.jpg", "", "faces", 1, 1) for i in range(4000)]
    cfg = vaekit.preset("celeba256", image_size=160, max_images=0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = peak()
    pixels, index = cache._load_arrays(tmp_path, files, cfg, verbose=False)
    assert pixels.nbytes > 300e6 and index["lengths"] == [3240, 360, 400]
    assert peak() - before < 30e6


def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


# ------------------------------------------------------------------------------- real packs


@pytest.mark.parametrize(
    "name, pack, classes, shape, mean",
    [
        ("fashion_mnist", "FashionMNIST", 10, (1, 32, 32), (0.18, 0.26)),
        ("cifar10", "cifar10", 10, (3, 32, 32), (0.44, 0.50)),
        ("celeba64", "celeba", 1, (3, 64, 64), (0.38, 0.48)),
    ],
)
def test_real_packs(name, pack, classes, shape, mean):
    if not (SHARED / pack).is_dir():
        pytest.skip(f"VAEKIT_DATA has no {pack}/")
    data = load(name, SHARED, profile="full", max_images=400)
    assert len(data.train) == 400 and len(data.test) >= 390 and len(data.classes) == classes
    assert data.train.images.shape[1:] == shape and not data.skipped
    assert mean[0] < data.train.images.float().mean() / 255 < mean[1]
