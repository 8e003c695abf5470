"""Find a data set on this machine, and list its images with split and label. Reads no pixels."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from vaekit.config import Config
from vaekit.data import SPLITS
from vaekit.files.images import read_arrays
from vaekit.files.phantom import FILMS, SAMPLE, write_bundle
from vaekit.files.weights import downloads_allowed
from vaekit.place import setup

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm")
SUFFIXES += (".npy", ".dcm")
EXPECTED = "images, <class>/*.jpeg, train/<class>/*.jpeg with test/ beside it, or one .npz"
# What a folder's name can mean: a split, not a class, no images.
SPLIT = re.compile(r"(train|val|test)(ing|id|idation)?([ _-]?(set|data|images?))?", re.I)
NO_CLASS = re.compile(r"(images?|imgs?|files|jpe?gs?|pngs?)([ _-]?\d+)?|p1\d", re.I)
NO_IMAGES = r"(.*[ _-])?masks|mask|labels?|segs?|segmentations?|annotations?|ground[ _-]?truth"
NO_IMAGES = re.compile(rf"__MACOSX|__results___files|{NO_IMAGES}", re.I)
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
READ_ALREADY = "read already under another name"
BUNDLE = Path(__file__).parents[2] / "data" / "chest_xray_phantom"  # a sample


FACES = "img_align_celeba"
KAGGLE = {  # the known data sets, and their names on Kaggle
    "chest_xray": "paultimothymooney/chest-xray-pneumonia",
    "fashion_mnist": "zalando-research/fashionmnist",
    "cifar10": "pankrzysiu/cifar10-python",
    "celeba": "jessicali9530/celeba-dataset",
}
TORCHVISION = {"fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}  # downloads these
MARKS = {  # a data set is recognised by one of these paths
    "chest_xray": ("train/NORMAL",),
    "fashion_mnist": ("train-images-idx3-ubyte*",),
    "cifar10": ("data_batch_1", "cifar10*.npz"),
    "celeba": ("000001.jpg",),
}
INSIDE = {  # in one of these folders, nearest first
    "chest_xray": ("", "chest_xray"),
    "fashion_mnist": ("", "raw", "FashionMNIST/raw"),
    "cifar10": ("", "cifar-10-batches-py", "cifar10/cifar-10-batches-py", "cifar10"),
    # Kaggle's zip has the folder twice
    "celeba": ("", f"{FACES}/{FACES}", FACES, f"celeba/{FACES}/{FACES}", f"celeba/{FACES}"),
}


class Found(NamedTuple):
    """The folder of the images, and the rule that found it; `str()` of it is one line."""

    path: Path
    # "data_path", "VAEKIT_DATA", "kaggle input", "bundled phantoms, 2,180 films", ...
    source: str

    def __str__(self) -> str:
        if "bundled phantoms" in self.source:  # without the path: notebooks store this line
            return f"data: {self.source} (synthetic)"
        return f"data: {self.source}, {self.path}"


def find_dataset(cfg: Config, download: bool = False) -> Found:
    """What to read for `cfg.dataset`: data_path, VAEKIT_DATA, Kaggle inputs, earlier downloads.

    If the user named one of the first two and it does not hold the data set, that is a
    FileNotFoundError; nothing replaces it. Where nothing is found, `download` downloads it (never
    in the smoke profile); without it, chest_xray means the bundled phantoms, any other set
    FileNotFoundError.
    """
    name = cfg.dataset
    for asked, place in (("data_path", cfg.data_path), ("VAEKIT_DATA", _env("VAEKIT_DATA"))):
        if place:
            folder = Path(place).expanduser()
            path = os.path.exists(folder) and _enter(folder, name)
            if path:
                return Found(path, asked)
            what = f"{asked}={place} has no images for dataset={name}: {_what_is(folder)}"
            raise FileNotFoundError(f"{what}; expected {_expected(name)}")
    found = _search(name)
    if not found and download and name in KAGGLE and downloads_allowed(cfg.profile):
        _download(name)
        found = _search(name)
    if not found and name != "chest_xray":
        raise FileNotFoundError(_nowhere(name))
    return found or bundled(cfg.profile)


def _search(name: str) -> Found | None:
    if name == "images":
        return _only_attached()
    slug = KAGGLE[name].split("/")[1]
    inputs = [folder for folder in setup.attached() if _marked(folder, name)]
    inputs.sort(key=lambda folder: slug not in folder.parts)  # the usual name first, then nearest
    hub = Path(_env("KAGGLEHUB_CACHE") or "~/.cache/kagglehub").expanduser()
    hub = hub / "datasets" / KAGGLE[name]
    versions = [folder for folder in hub.glob("versions/*") if folder.name.isdigit()]
    versions.sort(key=lambda folder: int(folder.name), reverse=True)  # newest first
    versions.sort(key=lambda folder: not (hub / f"{folder.name}.complete").exists())
    places = {"kaggle input": inputs, "kagglehub cache": versions}
    places["torchvision cache"] = [cache_dir() / "torchvision"]
    for source, folders in places.items():
        for folder in folders:
            path = _enter(folder, name)
            if path:
                return Found(path, source)
    return None


def _only_attached() -> Found | None:
    """The one attached data set that holds images; FileNotFoundError names them if several do."""
    old, new = (setup.KAGGLE_INPUT.glob(mount) for mount in ("*/", "datasets/*/*/"))
    paths = [_enter(folder, "images") for folder in (*old, *new) if folder.name != "datasets"]
    found = sorted(filter(None, paths))
    if len(found) > 1:
        raise FileNotFoundError(f"set data_path to one of {', '.join(map(str, found))}")
    return Found(found[0], "kaggle input") if found else None


def cache_dir() -> Path:
    """Folder for decoded and drawn images: `VAEKIT_CACHE`, or ~/.cache/vaekit. Safe to delete."""
    return Path(_env("VAEKIT_CACHE") or "~/.cache/vaekit").expanduser()


def _env(name: str) -> str:
    return os.environ.get(name, "").strip()


def _download(name: str) -> None:
    """From torchvision's servers, or from Kaggle (which needs `pip install kagglehub`)."""
    if name in TORCHVISION:
        from torchvision import datasets

        getattr(datasets, TORCHVISION[name])(cache_dir() / "torchvision", download=True)
    else:
        import kagglehub

        kagglehub.dataset_download(KAGGLE[name])


def _expected(name: str) -> str:
    return EXPECTED if name in ("chest_xray", "images") else " or ".join(MARKS[name])


def _nowhere(name: str, *more: Path | str) -> str:
    """The message for a missing data set: how to get it, and where it was looked for."""
    ways = "set VAEKIT_DATA or data_path to its folder"
    places = ["/kaggle/input", *map(str, more)]
    if name in KAGGLE:
        ways += f"; attach {KAGGLE[name]} on Kaggle; or vaekit.load_data(cfg, download=True)"
        places.append("the caches of kagglehub and torchvision")
    what = f"no images for dataset={name}; expected {_expected(name)}"
    return f"{what}.\nTo get them: {ways}.\nLooked at " + ", ".join(places)


def bundled(profile: str) -> Found:
    """All bundled phantoms, drawn once into the cache; in the smoke profile only their sample.

    The sample is also used, with a notice, where nothing can be drawn. It is part of the checkout;
    without a checkout it is drawn too, and FileNotFoundError says why that failed."""
    if profile != "smoke":
        try:
            return Found(_drawn(FILMS), f"bundled phantoms, {FILMS:,} films")
        except OSError as error:
            print(f"the bundled phantoms cannot be drawn ({error}): a sample of them instead")
    try:
        path = _enter(BUNDLE, "chest_xray") or _drawn(SAMPLE)
    except OSError as error:
        raise FileNotFoundError(_nowhere("chest_xray", BUNDLE, str(error))) from error
    return Found(path, "sample of the bundled phantoms")


def _drawn(films: int) -> Path:
    """The folder with this many phantoms in the cache; draws them if they are missing.

    It has another name until all are there, and one process draws at a time. OSError where the
    disk refuses."""
    folder = cache_dir() / f"{BUNDLE.name}_{films}"
    if folder.is_dir():
        return folder
    cache_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir() / f".{folder.name}.lock"):
        if not folder.is_dir():  # another process may have drawn them meanwhile
            print(f"drawing {films:,} films once into the cache; it takes a few minutes at most")
            with tempfile.TemporaryDirectory(prefix=".", dir=cache_dir()) as draft:
                write_bundle(Path(draft) / folder.name, films=films)
                os.replace(Path(draft) / folder.name, folder)
    return folder


def _marked(folder: Path, name: str) -> Path | None:
    """The folder with the marks of the known data set, `folder` or one below it; or its .npz."""
    for inside in INSIDE.get(name, ()):
        for mark in MARKS[name]:
            hits = sorted((folder / inside).glob(mark))
            if hits:  # of several .npz the last by name
                return hits[-1] if hits[-1].suffix == ".npz" else folder / inside
    return None


def _enter(folder: Path, name: str) -> Path | None:
    """The path in `folder` to read for the data set `name`; None if it is not there."""
    if name not in ("fashion_mnist", "celeba") and folder.suffix == ".npz" and folder.is_file():
        return folder
    found = _marked(folder, name)
    if found or name not in ("chest_xray", "images"):
        return found
    if name == "chest_xray" and _is_celeba(folder):
        return None  # one data set does not stand in for another
    if any(_walk(folder, [])):
        return folder
    arrays = list(folder.glob("*.npz"))
    return arrays[0] if len(arrays) == 1 else None


def _is_celeba(folder: Path) -> bool:
    return folder.name == FACES or any((folder / i).is_dir() for i in INSIDE["celeba"] if i)


def _what_is(place: Path) -> str:
    """What is at `place`, in words, where no images are found."""
    if not os.path.exists(place):
        above = next(folder for folder in place.absolute().parents if os.path.exists(folder))
        return f"it does not exist (but {above} does)"
    if not place.is_dir():
        return f"it is a file: {_unread(place) or 'give its folder'}"
    if _is_celeba(place):
        return f"{FACES} is dataset='celeba'"
    skipped: list[tuple[str, str]] = []
    any(_walk(place, skipped))
    facts = [f"{name}: {why}" for name, why in skipped]
    more = [f"and {len(facts) - 9} more"] if len(facts) > 9 else []
    return "; ".join(["nothing that is read", *facts[:9], *more])


def _unread(path: Path, trains: bool = False) -> str:
    """Why this file is not read, or ""; `trains`: a train folder lies beside it."""
    name = path.name.lower()
    if name.endswith(ARCHIVES):
        return "an archive: unpack it"
    if not name.endswith(SUFFIXES):
        return "not an image by its name"
    if not os.path.isfile(path):  # a broken link, a pipe
        return "not a file"
    return "beside the train folder" if trains else ""


class ImageFile(NamedTuple):
    """One image: its path and class, and size and time, which change with the file."""

    name: str  # relative to the root; "train/00012" for a row of an array
    split: str  # the folder's own, or ""
    label: str
    size: int  # bytes
    mtime: int  # nanoseconds


def list_images(root: Path) -> tuple[list[ImageFile], list[tuple[str, str]]]:
    """The images in `root`, sorted, and (name, reason) of what is skipped.

    Any tree. A folder called train, Training, valid, ... at any depth is the split; the first other
    folder below it (or above) is the class; `_walk` says what is left out. CelebA's own split is
    read from list_eval_partition, .csv or .txt, beside or above its images.
    """
    arrays = read_arrays(root)
    if arrays:
        return _rows_of(arrays, root), []
    official = _official_split(root)
    skipped: list[tuple[str, str]] = []
    found = sorted(_walk(root, skipped))
    folders = {os.path.dirname(name) for name, _ in found}
    places = {folder: _split_and_classes(folder) for folder in folders}
    depth = 0
    if not any(split for split, _ in places.values()):  # a class does not hold everything
        classes = [inner for _, inner in places.values()]
        shared = len(os.path.commonprefix(classes))
        depth = max(0, min([shared, *(len(inner) - 1 for inner in classes)]))
    files = []
    for name, stat in found:
        split, inner = places[os.path.dirname(name)]
        label = inner[depth] if inner else root.resolve().name
        own = split or official.get(name, "")
        files.append(ImageFile(name, own, label, stat.st_size, stat.st_mtime_ns))
    return files, sorted(skipped)


def _rows_of(arrays: dict, root: Path) -> list[ImageFile]:
    stats = [file.stat() for file in ([root] if root.is_file() else root.iterdir())]
    size = sum(stat.st_size for stat in stats)
    mtime = max(stat.st_mtime_ns for stat in stats)
    files = []
    for part, (_, labels) in sorted(arrays.items()):
        split = "" if part == "all" else part
        for row, label in enumerate(labels):
            files.append(ImageFile(f"{part}/{row:06}", split, label, size, mtime))
    return files


def _split_of(folder: str) -> str:
    """The split that a folder's name means, or ""."""
    match = SPLIT.fullmatch(folder)
    return match[1].lower() if match else ""


def _split_and_classes(path: str) -> tuple[str, list[str]]:
    """(the split that the folders in `path` mean, or ""; the folders that may be a class)."""
    split, above, below = "", [], []
    for folder in Path(path).parts:
        if _split_of(folder):
            split = split or _split_of(folder)
        elif not NO_CLASS.fullmatch(folder):
            (below if split else above).append(folder)
    return split, below or above


def _walk(root: Path, skipped: list[tuple[str, str]]) -> Iterator[tuple[str, os.stat_result]]:
    """(path below `root`, stat) of every image; what is left out is added to `skipped`.

    Left out: files that do not look like images, hidden and macOS files, runs and caches of this
    package, folders of masks or labels, and anything beside a train folder.
    """
    known = {cache_dir().resolve(): "cache of this package", root.resolve(): READ_ALREADY}
    folders = [(root, "")]
    for folder, above in folders:  # it grows
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            skipped.append((above or "./", f"cannot be read: {error.strerror}"))
            continue
        inner = {name for name in names if os.path.isdir(folder / name)}
        trains = "train" in map(_split_of, inner)
        hidden = sum(name.startswith(".") for name in names)
        if hidden:
            skipped.append((f"{above}.*", f"hidden or macOS files: {hidden}"))
        for name in names:
            path = folder / name
            below = f"{above}{name}/" if name in inner else above + name
            if name.startswith("."):
                continue
            why = _left_out(path, trains, known) if name in inner else _unread(path, trains)
            if why:
                skipped.append((below, why))
            elif name in inner:
                folders.append((path, below))
            else:
                yield below, path.stat()


def _left_out(folder: Path, trains: bool, known: dict[Path, str]) -> str:
    """Why `folder` is not searched, or ""; then it is added to `known`.

    `trains`: a train folder lies beside it. `known`: folders not to be searched, and why.
    """
    real = folder.resolve()
    why = known.get(real, "")
    if NO_IMAGES.fullmatch(folder.name):
        why = "no images by its name"
    elif trains and not why and not _split_of(folder.name):
        copy = (folder / "train").is_dir()
        why = "nested second copy" if copy else "beside the train folder"
    elif all(os.path.isfile(folder / name) for name in ("config.json", "run.json")):
        why = why or "a run of this package"
    if why:
        return f"{why}: {sum(len(files) for *_, files in os.walk(folder))}"
    known[real] = READ_ALREADY
    return ""


def _official_split(root: Path) -> dict[str, str]:
    """CelebA's own split: {file name: split}."""
    for folder in (root, *root.parents[:2]) if root.name == FACES else ():
        for suffix in ("csv", "txt"):
            with suppress(OSError):
                text = (folder / f"list_eval_partition.{suffix}").read_text()
                rows = re.findall(r"^([^,\s]+)[, ]+([012])\s*$", text, re.MULTILINE)
                return {name: SPLITS[int(number)] for name, number in rows}
    return {}
