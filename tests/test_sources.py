"""Finding data sets in each real format, and listing their images."""

import gzip
import hashlib
import pickle
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import folders
import numpy as np
import pytest
from conftest import need_pack
from films import assert_apart, config, film, joined, load, make, splits, write, write_faces

import vaekit
from vaekit.data import load_data
from vaekit.files import images, phantom, sources

SAMPLE = "sample of the bundled phantoms"
pytestmark = pytest.mark.usefixtures("tiny_sets")


def test_the_order_of_places(tmp_path, monkeypatch, capsys):
    hub = tmp_path / "hub/datasets" / sources.KAGGLE["chest_xray"]
    bundle = make(tmp_path / "bundle")
    monkeypatch.setattr(sources, "BUNDLE", bundle)
    assert sources.find_dataset(config()) == sources.Found(bundle, SAMPLE)
    for version in (2, 9, 10):
        make(hub / f"versions/{version}/chest_xray")
    newest = hub / "versions/10/chest_xray"
    assert sources.find_dataset(config()) == sources.Found(newest, "kagglehub cache")
    (hub / "9.complete").touch()  # an unfinished download comes after a finished one
    assert sources.find_dataset(config()).path == hub / "versions/9/chest_xray"
    kaggle = make(tmp_path / "input/chest-xray-pneumonia/chest_xray")
    assert sources.find_dataset(config()) == sources.Found(kaggle, "kaggle input")
    monkeypatch.setenv("VAEKIT_DATA", str(make(tmp_path / "mine")))
    assert sources.find_dataset(config()) == sources.Found(tmp_path / "mine", "VAEKIT_DATA")
    given = make(tmp_path / "given")
    assert sources.find_dataset(config(given)) == sources.Found(given, "data_path")
    load_data(config(given))
    assert capsys.readouterr().out.splitlines() == [f"data: data_path, {given}"]


@pytest.mark.parametrize("mount", ["chest-xray-pneumonia", "datasets/someone/chest-xray-pneumonia"])
def test_both_kaggle_mounts(tmp_path, mount):
    root = make(tmp_path / "input" / mount / "chest_xray")
    make(root / "chest_xray", train=2)  # the zip's second copy
    make(tmp_path / "input/another-set")
    assert sources.find_dataset(config()) == sources.Found(root, "kaggle input")


@pytest.mark.parametrize("mount", ["input", "input/datasets/someone"])
def test_the_only_attached_images_are_taken_and_of_several_none(tmp_path, monkeypatch, mount):
    cfg = config(dataset="images")
    (tmp_path / mount / "weights").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="Looked at /kaggle/input$"):
        sources.find_dataset(cfg)
    write(tmp_path / mount / "my-photos/Family/a.png", film(0))
    write(tmp_path / mount / "my-photos/Holiday 2023/b.png", film(1))
    output = tmp_path / mount / "earlier/runs/one-file-1"  # of this notebook
    write(output / "generated.png", film(2))
    for name in ("config.json", "run.json"):
        (output / name).write_text("{}")
    found = sources.Found(tmp_path / mount / "my-photos", "kaggle input")
    assert sources.find_dataset(cfg) == found
    write(tmp_path / mount / "more/c.png", film(3))
    with pytest.raises(FileNotFoundError, match="set data_path to one of .*more, .*my-photos$"):
        sources.find_dataset(cfg)
    path = str(tmp_path / mount / "more")
    assert sources.find_dataset(cfg.replace(data_path=path)).source == "data_path"


def test_kaggle_is_not_searched_deeper_than_five(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BUNDLE", make(tmp_path / "bundle"))
    make(tmp_path / "input/slug/a/b/c/d/e")
    assert sources.find_dataset(config()).source == SAMPLE
    make(tmp_path / "input/notebooks/someone/slug/a/b")
    assert sources.find_dataset(config()).source == "kaggle input"


def test_nothing_anywhere_is_one_error_that_lists_the_places(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BUNDLE", tmp_path / "no-bundle")
    (tmp_path / "cache").write_text("")  # no folder: nothing can be drawn into it
    with pytest.raises(FileNotFoundError) as error:
        sources.find_dataset(config())
    for part in (
        "data_path",
        "VAEKIT_DATA",
        "input",
        "kagglehub",
        "no-bundle",
        "<class>/*.jpeg",
        "File exists",
    ):
        assert part in str(error.value)


@pytest.fixture
def draw(monkeypatch):
    """Instead of drawing, a few images; the list of how many films were asked for."""
    calls = []

    def write_bundle(folder, films):
        calls.append(films)
        make(folder)

    monkeypatch.setattr(sources, "write_bundle", write_bundle)
    return calls


def test_phantoms_are_drawn_once_and_a_sample_in_smoke(tmp_path, monkeypatch, draw, capsys):
    monkeypatch.setattr(sources, "BUNDLE", make(tmp_path / "bundle"))
    for _ in range(2):
        found = sources.find_dataset(config(profile="quick"))
        name = f"bundled phantoms, {phantom.FILMS:,} films"
        assert found == sources.Found(tmp_path / f"cache/bundle_{phantom.FILMS}", name)
        assert str(tmp_path) not in str(found)  # this line is stored in notebooks
    assert draw == [phantom.FILMS]
    (line,) = capsys.readouterr().out.splitlines()
    assert re.match(r"drawing 2,180 films once into .*cache; it takes a few minutes", line)
    assert sources.find_dataset(config()) == sources.Found(tmp_path / "bundle", SAMPLE)
    assert len(draw) == 1
    monkeypatch.setattr(sources, "BUNDLE", tmp_path / "no-bundle")  # without a checkout
    for _ in range(2):
        found = sources.find_dataset(config())
        assert found == sources.Found(tmp_path / f"cache/no-bundle_{phantom.SAMPLE}", SAMPLE)
    assert draw == [phantom.FILMS, phantom.SAMPLE]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_broken_drawing_is_never_taken_for_whole(tmp_path, monkeypatch, error, capsys):
    monkeypatch.setattr(sources, "BUNDLE", make(tmp_path / "bundle"))

    def broken(folder, films):
        assert folder.parent.name.startswith(".")  # what a killed process leaves is never found
        make(folder)
        raise error

    monkeypatch.setattr(sources, "write_bundle", broken)
    with suppress(KeyboardInterrupt):
        assert sources.find_dataset(config(profile="quick")).source == SAMPLE
    assert not list((tmp_path / "cache").glob("**/*.jpeg"))
    said = capsys.readouterr().out
    assert ("cannot be drawn ([Errno 28] No space" in said) == isinstance(error, OSError)


def test_while_one_draws_another_waits(draw, monkeypatch):
    draws = sources.write_bundle
    monkeypatch.setattr(sources, "write_bundle", lambda *a, **k: (time.sleep(0.3), draws(*a, **k)))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(sources.find_dataset, 2 * [config(profile="quick")]))
    assert draw == [phantom.FILMS] and found[0] == found[1]


def test_sample_of_the_phantoms_has_what_a_first_look_needs():
    data = load(sources.BUNDLE, val_fraction=0.1)
    assert joined(data) == 0 and data.classes == ["NORMAL", "PNEUMONIA"] and not data.skipped
    assert len(data.train) >= 60 and len(data.val) >= 5 and len(data.test) >= 18
    assert len(set(data.train.groups)) < len(data.train)
    assert_apart(data)


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
    assert skipped["__MACOSX/"] == "no images by its name: 1"
    assert skipped["train/NORMAL/.*"] == "hidden or macOS files: 1"
    assert skipped["test/NORMAL/notes.txt"] == "not an image by its name"
    assert "manifest.csv" in skipped and "notes.txt" in after.summary()


LAYOUTS = {  # of real sets: (paths, images, classes, images in an own test)
    "NIH": (["images_{a:03}/images/{b:08}_000.png"], 18, ["set"], 0),
    "CheXpert": (
        ["train/patient{b:05}/study1/v.jpg", "valid/patient6454{a}/study1/v.jpg"],
        21,
        ["set"],
        0,
    ),
    "MIMIC": (["files/p1{a}/p1{a}00{b:04}/s5{b:07}/{b:08x}.jpg"], 18, ["set"], 0),
    "COVID": (
        ["COVID/images/{b}.png", "COVID/masks/{b}.png", "Normal/images/N{b}.png"],
        36,
        ["COVID", "Normal"],
        0,
    ),
    "COVID, one class": (["images/{b}.png", "masks/{b}.png"], 18, ["set"], 0),
    "mnist_png": (["training/{a}/{b}.png", "testing/{a}/t{b}.png"], 36, ["1", "2", "3"], 18),
    "capitals": (["Train/A/{b}.jpg", "Test/A/t{b}.jpg"], 36, ["A"], 18),
    "an unlabelled test": (
        ["train/A/{b}.jpg", "train/B/b{b}.jpg", "test/t{b}.jpg"],
        54,
        ["A", "B", "set"],
        18,
    ),
    "patients in classes": (["train/A/p{a}/{b}.jpg", "test/A/p{a}/{b}.jpg"], 36, ["A"], 18),
    "flat, and a folder": (["{b}.png", "more/m{b}.png"], 36, ["more", "set"], 0),
    "deeper images": (["a/{b}.png", "a/batch2/{b}.png", "b/{b}.png"], 54, ["a", "b"], 0),
    "a class of this name": (["chest_xray/{b}.png", "hand/{b}.png"], 36, ["chest_xray", "hand"], 0),
    "a wrapper": (["data set/a/{b}.png", "data set/b/{b}.png"], 36, ["a", "b"], 0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_sets_are_read_as_they_unpack(tmp_path, layout):
    patterns, count, classes, held_out = LAYOUTS[layout]
    for a in range(1, 4):
        for b in range(6 * a, 6 * a + 6):
            for k, pattern in enumerate(patterns):
                write(tmp_path / "set" / pattern.format(a=a, b=b), film((k, b)))
    data = load(tmp_path / "set")
    names = [name for split in splits(data) for name in split.names]
    assert len(names) == count and data.classes == classes and not data.dropped
    assert not [name for name in names if "masks/" in name]
    assert [pair for pair in data.skipped if "masks" in pair[0]] == data.skipped
    own = [name for name in names if name.lower().startswith("test")]
    assert sorted(own) == sorted(data.test.names) if held_out else not own
    assert len(own) == held_out


def test_own_runs_and_caches_are_no_images(tmp_path, monkeypatch):
    for i in range(5):
        write(tmp_path / f"set/{i}.png", film(i))
    before = load(tmp_path / "set")
    for name in ("cache/bundle/a.png", "runs/2/samples/a.png"):
        write(tmp_path / "set" / name, film(1))
    for name in ("config.json", "run.json"):
        (tmp_path / "set/runs/2" / name).write_text("{}")
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "set/cache"))
    data = load(tmp_path / "set")
    assert data.hash == before.hash and "runs/2/" in dict(data.skipped)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("scans/a.nii", "scans/a.nii: not an image"),
        ("images.zip", "images.zip: an archive"),
        ("masks/a.png", "masks/: no images by its name: 1"),
        ("", "nothing"),
    ],
)
def test_what_is_there_instead_of_images_is_said(tmp_path, name, reason):
    place = tmp_path / "set"
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    place.mkdir(exist_ok=True)
    if name:
        (place / name).write_bytes(b"x")
    for path, why in ((place, reason), (place / "typo/set", f"{place} does")):
        with pytest.raises(FileNotFoundError, match="expected images, <class>") as error:
            sources.find_dataset(config(path))
        assert why in str(error.value)
    (tmp_path / "a.tar").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="archive"):
        sources.find_dataset(config(tmp_path / "a.tar"))


@pytest.mark.parametrize("seed", range(30))
def test_any_tree_is_loaded_or_refused_with_a_reason(seed):
    assert folders.fuzz(1, seed)["trees"] == 1


def pictures(n, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def load_preset(name, root="", **changes):
    cfg = vaekit.preset(name, **{"data_path": str(root), "max_images": 0, **changes})
    return load_data(cfg, verbose=False)


def idx(array):
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_fashion(folder, zipped=True, train=60, test=20):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"train": pictures(train, (28, 28)), "t10k": pictures(test, (28, 28), 1)}
    for part, x in arrays.items():
        for kind, array in (("images-idx3", x), ("labels-idx1", np.arange(len(x)) % 10)):
            data, name = idx(array), f"{part}-{kind}-ubyte"
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)
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


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_is_padded_and_keeps_its_own_test(tmp_path, zipped):
    arrays = write_fashion(tmp_path / "FashionMNIST/raw", zipped)
    data = load_preset("fashion_mnist", tmp_path)
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
    data = load_preset("cifar10", tmp_path)
    assert len(data.test) == 8 and len(data.train) + len(data.val) == 40
    assert np.array_equal(data.test.images, x[40:])
    for image, name, label in zip(
        data.train.images, data.train.names, data.train.labels, strict=True
    ):
        row = int(name.split("/")[1])
        assert np.array_equal(image, x[row])
        assert data.classes[label] == "abcdefghij"[9 if row % 2 else row // 8]
    with open(tmp_path / "cifar10/cifar-10-batches-py/data_batch_3", "ab") as file:
        file.write(b"x")
    with pytest.raises(images.BadImage, match="corrupted"):  # never unpickled
        load_preset("cifar10", tmp_path)


def test_npz_with_and_without_a_test_set(tmp_path):
    x, y, classes = pictures(30, (32, 32, 3)), np.arange(30) % 3, np.array(["a", "b", "c"])
    folder = tmp_path / "cifar10"
    folder.mkdir()
    np.savez(folder / "cifar10_b.npz", x=x, y=y, classes=classes)
    np.savez(
        folder / "cifar10_a.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6], classes=classes
    )
    data = load_preset("cifar10", tmp_path)  # the last by name
    assert sources.find_dataset(vaekit.preset("cifar10", data_path=str(tmp_path))).path == (
        folder / "cifar10_b.npz"
    )
    assert sum(map(len, splits(data))) == 30 and data.classes == ["a", "b", "c"]
    for split in splits(data):
        rows = [int(name.split("/")[1]) for name in split.names]
        assert np.array_equal(split.images, x[rows].transpose(0, 3, 1, 2))
        assert split.labels.tolist() == [row % 3 for row in rows]
    other = load_preset("cifar10", folder / "cifar10_a.npz", in_channels=1)
    assert len(other.test) == 6 and other.test.images.shape[1] == 1


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3)])
@pytest.mark.parametrize("name", ["chest_xray", "images"])
def test_medmnist_keeps_its_splits_and_labels(tmp_path, monkeypatch, shape, name):
    parts = {"train": 60, "val": 50, "test": 9}
    x = np.split(pictures(119, shape), [60, 110])
    arrays = dict(zip(["train_images", "val_images", "test_images"], x, strict=True))
    arrays |= {f"{part}_labels": np.arange(n)[:, None] % 2 for part, n in parts.items()}
    np.savez(tmp_path / "own.npz", **arrays)
    monkeypatch.setenv("VAEKIT_DATA", str(tmp_path))  # it lies alone there
    channels = vaekit.count_channels()
    assert channels == (3 if len(shape) == 3 else 1)
    data = load_preset("chest_xray", tmp_path / "own.npz", dataset=name, in_channels=channels)
    assert [len(split) for split in splits(data)] == [60, 50, 9] and data.classes == ["0", "1"]
    for split in splits(data):
        rows = [int(row.split("/")[1]) for row in split.names]
        assert split.labels.tolist() == [row % 2 for row in rows]


@pytest.mark.parametrize(
    "arrays, reason",
    [
        ({"pixels": np.zeros((3, 9, 9))}, "pixels"),
        ({"train_images": np.zeros((3, 9, 9)), "train_labels": np.zeros((3, 14))}, "14"),
    ],
    ids=["names", "labels"],
)
def test_other_npz_are_refused(tmp_path, arrays, reason):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(images.BadImage, match=reason):
        load_preset("chest_xray", tmp_path / "own.npz")


@pytest.mark.parametrize(
    "layout", ["", "celeba/img_align_celeba", "img_align_celeba/img_align_celeba"]
)
def test_celeba_layouts(tmp_path, layout):
    write_faces(tmp_path / "set" / layout)
    data = load_preset("celeba64", tmp_path / "set", image_size=64)
    assert [len(split) for split in splits(data)] == [32, 4, 4]
    assert data.train.images.shape[1:] == (3, 64, 64)


@pytest.mark.parametrize("suffix", ["csv", "txt"])
def test_celebas_own_split_is_kept(tmp_path, suffix):
    write_faces(tmp_path / "img_align_celeba/img_align_celeba")
    comma = "," if suffix == "csv" else " "
    lines = ["image_id,partition"] if suffix == "csv" else []
    lines += [f"{i:06}.jpg{comma}{(i > 20) + (i > 30)}" for i in range(1, 41)]
    (tmp_path / f"list_eval_partition.{suffix}").write_text("\n".join(lines) + "\n")
    data = load_preset("celeba64", tmp_path)
    numbers = [sorted(int(name[:6]) for name in split.names) for split in splits(data)]
    assert numbers == [list(range(1, 21)), list(range(21, 31)), list(range(31, 41))]


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_arrays_are_named(tmp_path, damage):
    write_fashion(tmp_path)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:500]) if damage == "cut" else file.unlink()
    with pytest.raises(images.BadImage, match=f"{tmp_path.name} cannot be read"):
        load_preset("fashion_mnist", tmp_path)


def test_the_order_of_places_where_there_is_no_bundle(tmp_path, monkeypatch):
    cfg, known = vaekit.preset("fashion_mnist"), sources.KAGGLE["fashion_mnist"]
    with pytest.raises(FileNotFoundError) as error:
        sources.find_dataset(cfg)
    for part in ("fashion_mnist", "train-images-idx3-ubyte", known, "download=True", "torchvision"):
        assert part in str(error.value)
    for source, folder in (
        ("torchvision cache", "cache/torchvision/FashionMNIST/raw"),
        ("kaggle input", "input/datasets/someone/clothes"),
        ("kaggle input", "input/fashionmnist"),
    ):
        write_fashion(tmp_path / folder)
        assert sources.find_dataset(cfg) == sources.Found(tmp_path / folder, source)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "celeba64", "chest_xray"])
def test_one_data_set_never_stands_in_for_another(tmp_path, monkeypatch, name):
    write_fashion(tmp_path / "root/FashionMNIST/raw")
    np.savez(tmp_path / "root/cifar10.npz", x=pictures(9, (32, 32, 3)), y=[0] * 9, classes=["a"])
    write_faces(tmp_path / "root/celeba/img_align_celeba", 3)
    write(tmp_path / "root/chest_xray/train/NORMAL/IM-0001-0001.jpeg", film(0))
    own = {
        "fashion_mnist": "FashionMNIST/raw",
        "cifar10": "cifar10.npz",
        "celeba64": "celeba/img_align_celeba",
        "chest_xray": "chest_xray",
    }
    for place in ("root", f"root/{own[name]}"):  # the folder above several, or its own
        monkeypatch.setenv("VAEKIT_DATA", str(tmp_path / place))
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
        write_fashion(sources.cache_dir() / "torchvision/FashionMNIST/raw")

    monkeypatch.setattr(sources, "_download", fetch)
    for profile, download in (("quick", False), ("smoke", True)):
        with pytest.raises(FileNotFoundError):
            sources.find_dataset(vaekit.preset("fashion_mnist", profile=profile), download=download)
    assert not calls
    cfg = vaekit.preset("fashion_mnist", profile="quick")
    for _ in range(2):  # the second time it is there
        assert sources.find_dataset(cfg, download=True).source == "torchvision cache"
    assert calls == ["fashion_mnist"]


@pytest.mark.parametrize(
    "name, pack, classes, shape, mean",
    [
        ("fashion_mnist", "FashionMNIST", 10, (1, 32, 32), (0.18, 0.26)),
        ("cifar10", "cifar10", 10, (3, 32, 32), (0.44, 0.50)),
        ("celeba64", "celeba", 1, (3, 64, 64), (0.38, 0.48)),
    ],
)
def test_real_packs(name, pack, classes, shape, mean):
    data = load_preset(name, need_pack(pack).parent, profile="full", max_images=400)
    assert len(data.train) == 400 and len(data.test) >= 390 and len(data.classes) == classes
    assert data.train.images.shape[1:] == shape and not data.skipped
    assert mean[0] < data.train.images.float().mean() / 255 < mean[1]
