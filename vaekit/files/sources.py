"""Where the images are: find a data set, list what is in it. Reads names and labels."""

import os
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vaekit.config import Config
from vaekit.data import SPLITS
from vaekit.files.images import read_arrays
from vaekit.files.phantom import FILMS, SAMPLE, plan, write_bundle
from vaekit.files.weights import downloads_allowed
from vaekit.place.setup import attached

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm")
EXPECTED = "train/<class>/*.jpeg with test/ beside it, or <class>/*.jpeg, or images directly"
BUNDLE = Path(__file__).parents[2] / "data" / "chest_xray_phantom"  # a sample


FACES = "img_align_celeba"
KAGGLE = {  # the known data sets, and their names there
    "chest_xray": "paultimothymooney/chest-xray-pneumonia",
    "fashion_mnist": "zalando-research/fashionmnist",
    "cifar10": "pankrzysiu/cifar10-python",
    "celeba": "jessicali9530/celeba-dataset",
}
TORCHVISION = {"fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}  # whence it downloads these
MARKS = {  # how a data set is recognised: one of these lies
    "chest_xray": ("train/NORMAL",),
    "fashion_mnist": ("train-images-idx3-ubyte*",),
    "cifar10": ("data_batch_1", "cifar10*.npz"),
    "celeba": ("000001.jpg",),
}
INSIDE = {  # in one of these, nearest first
    "chest_xray": ("", "chest_xray"),
    "fashion_mnist": ("", "raw", "FashionMNIST/raw"),
    "cifar10": ("", "cifar-10-batches-py", "cifar10/cifar-10-batches-py", "cifar10"),
    # Kaggle's zip has the folder twice
    "celeba": ("", f"{FACES}/{FACES}", FACES, f"celeba/{FACES}/{FACES}", f"celeba/{FACES}"),
}


@dataclass(frozen=True)
class Found:
    """Where the images are, and by which rule; `str()` of it is one line."""

    path: Path
    source: str  # "given", "VAEKIT_DATA", "kaggle input", "bundled phantoms, 2,180 films", ...

    def __str__(self) -> str:
        if "bundled phantoms" in self.source:  # no machine's path: this line is stored in notebooks
            return f"data: {self.source} (synthetic)"
        return f"data: {self.source}, {self.path}"


def find_dataset(cfg: Config, download: bool = False) -> Found:
    """What to read for `cfg.dataset`: data_path, VAEKIT_DATA, Kaggle inputs, earlier downloads.

    The first two are orders: FileNotFoundError where they do not hold it, never a replacement.
    Found nowhere, it is downloaded if `download` says so (never in the smoke profile); without,
    chest_xray means the bundled phantoms and every other set FileNotFoundError.
    """
    name = cfg.dataset
    for asked, place in (("data_path", cfg.data_path), ("VAEKIT_DATA", _env("VAEKIT_DATA"))):
        if place:
            path = _enter(Path(place).expanduser(), name)
            if path is None:
                what = f"{asked}={place} has no images for dataset={name}"
                raise FileNotFoundError(f"{what}; expected {_expected(name)}")
            return Found(path, "given" if asked == "data_path" else asked)
    found = _search(name)
    if not found and download and name in KAGGLE and downloads_allowed(cfg.profile):
        _download(name)
        found = _search(name)
    if not found and name != "chest_xray":
        raise FileNotFoundError(_nowhere(name))
    return found or bundled(cfg.profile)


def _search(name: str) -> Found | None:
    if name not in KAGGLE:
        return None
    places = [("kaggle input", folder) for folder in _attached_with(name)]
    places += [("kagglehub cache", folder) for folder in _kagglehub_versions(name)]
    places += [("torchvision cache", _torchvision_cache())]
    for source, place in places:
        path = _enter(place, name)
        if path:
            return Found(path, source)
    return None


def _attached_with(name: str) -> list[Path]:
    """Folders with the data set in what is attached on Kaggle, those of its usual name first."""
    found = [folder for folder in attached() if _marked(folder, name)]
    slug = KAGGLE[name].split("/")[1]
    return sorted(found, key=lambda folder: slug not in folder.parts)  # stable: nearest first


def _kagglehub_versions(name: str) -> list[Path]:
    """kagglehub's copies on disk: finished downloads first, newest first."""
    root = Path(_env("KAGGLEHUB_CACHE") or "~/.cache/kagglehub").expanduser()
    root = root / "datasets" / KAGGLE[name]
    versions = [folder for folder in root.glob("versions/*") if folder.name.isdigit()]

    def rank(folder: Path) -> tuple[bool, int]:
        return (root / f"{folder.name}.complete").exists(), int(folder.name)

    return sorted(versions, key=rank, reverse=True)


def cache_dir() -> Path:
    """Where decoded and drawn images stay: `VAEKIT_CACHE`, else ~/.cache/vaekit. Safe to delete."""
    return Path(_env("VAEKIT_CACHE") or "~/.cache/vaekit").expanduser()


def _torchvision_cache() -> Path:
    return cache_dir() / "torchvision"


def _env(name: str) -> str:
    return os.environ.get(name, "").strip()


def _download(name: str) -> None:
    """From torchvision's servers, or from Kaggle (which needs `pip install kagglehub`)."""
    if name in TORCHVISION:
        from torchvision import datasets

        getattr(datasets, TORCHVISION[name])(_torchvision_cache(), download=True)
    else:
        import kagglehub

        kagglehub.dataset_download(KAGGLE[name])


def _expected(name: str) -> str:
    if name in ("chest_xray", "images"):
        return EXPECTED
    places = [f"{inside}/" if inside else "this folder" for inside in INSIDE[name]]
    return f"{' or '.join(MARKS[name])} in {' or '.join(places)}"


def _nowhere(name: str, *more: Path | str) -> str:
    """The message where a data set is missing: what, how to get it, where it was looked for."""
    places = ["data_path (empty)", "VAEKIT_DATA (not set)"]
    ways = "set VAEKIT_DATA or data_path to its folder"
    if name in KAGGLE:
        ways += f"; attach {KAGGLE[name]} on Kaggle; or vaekit.load_data(cfg, download=True)"
        places += ["/kaggle/input", f"kagglehub's cache of {KAGGLE[name]}", _torchvision_cache()]
    looked = "".join(f"\n  {place}" for place in (*places, *more))
    what = f"no images for dataset={name}; expected {_expected(name)}"
    return f"{what}.\nTo get them: {ways}.\nLooked at{looked}"


def bundled(profile: str) -> Found:
    """All bundled phantoms, drawn once into the cache; in the smoke profile their sample.

    The sample also where nothing can be drawn, with a notice. It lies in the checkout; without
    one it is drawn as well, and FileNotFoundError says where that failed."""
    if profile != "smoke":
        try:
            return Found(_drawn(FILMS), f"bundled phantoms, {FILMS:,} films")
        except OSError as error:
            print(f"the bundled phantoms cannot be drawn ({error}): a sample of them instead")
    if _enter(BUNDLE, "chest_xray"):
        return Found(BUNDLE, "sample of the bundled phantoms")
    try:
        return Found(_drawn(SAMPLE), "sample of the bundled phantoms")
    except OSError as error:
        raise FileNotFoundError(_nowhere("chest_xray", BUNDLE, str(error))) from error


def _drawn(films: int) -> Path:
    """The folder of so many phantoms in the cache; they are drawn where it is missing.

    Under another name until all are there. OSError where the disk refuses."""
    folder = cache_dir() / f"{BUNDLE.name}_{films}"
    if folder.is_dir():
        return folder
    cache_dir().mkdir(parents=True, exist_ok=True)
    count = len(list(plan(films)))
    where = str(cache_dir()).replace(str(Path.home()), "~", 1)
    long = "a minute or two" if films == FILMS else "seconds"
    with tempfile.TemporaryDirectory(prefix=".", dir=cache_dir()) as draft:
        print(f"drawing {count:,} films once into {where}; it takes {long}")
        write_bundle(Path(draft) / folder.name, films=films)
        try:
            os.replace(Path(draft) / folder.name, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    return folder


def _marked(folder: Path, name: str) -> Path | None:
    """The folder, at or below `folder`, that has the marks of the known data set; or the .npz."""
    for inside in INSIDE[name]:
        for mark in MARKS[name]:
            hits = sorted((folder / inside).glob(mark))
            if hits:  # of several .npz the last by name
                return hits[-1] if hits[-1].suffix == ".npz" else folder / inside
    return None


def _enter(folder: Path, name: str) -> Path | None:
    """What to read in `folder` for the data set `name`; None if it is not there."""
    if name == "cifar10" and folder.suffix == ".npz" and folder.is_file():
        return folder
    if name in KAGGLE:
        found = _marked(folder, name)
        if found or name != "chest_xray":
            return found
        if folder.name == FACES or (folder / FACES).is_dir():
            return None  # one data set does not stand in for another
        if not (folder / "train").is_dir() and (folder / "chest_xray").is_dir():
            folder = folder / "chest_xray"
    with suppress(OSError):
        names = (name for *_, leaf in _class_folders(folder) for name in os.listdir(leaf))
        if any(name.lower().endswith(SUFFIXES) and not name.startswith(".") for name in names):
            return folder
    return None


class ImageFile(NamedTuple):
    """One image: where it is, what it is, and what changes when the file does."""

    name: str  # relative to the root; "train/00012" for a row of an array
    split: str  # the folder's own, or ""
    label: str
    size: int  # bytes
    mtime: int  # nanoseconds


def list_images(root: Path) -> tuple[list[ImageFile], list[tuple[str, str]]]:
    """The images in `root`, sorted, and (name, reason) of what is skipped.

    A nested second copy and macOS files are skipped, one line per folder. CelebA's own split is
    read from list_eval_partition, .csv or .txt, beside or above its images.
    """
    arrays = read_arrays(root)
    if arrays:
        return _rows_of(arrays, root), []
    folders = _class_folders(root)
    official = _official_split(root)
    files = []
    skipped = _strays(root, {folder for *_, folder in folders})
    for split, label, folder in folders:
        relative = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
        hidden = 0
        with os.scandir(folder) as entries:
            for entry in entries:
                name = relative + entry.name
                if entry.name.startswith("."):
                    hidden += 1
                elif not entry.name.lower().endswith(SUFFIXES):
                    skipped.append((name, "not an image by its name"))
                elif not entry.is_file():  # a folder or a broken link
                    skipped.append((name, "not a file"))
                else:
                    stat = entry.stat()
                    own = split or official.get(name, "")
                    files.append(ImageFile(name, own, label, stat.st_size, stat.st_mtime_ns))
        if hidden:
            skipped.append((f"{relative}.*", f"hidden or macOS files: {hidden}"))
    return sorted(files), sorted(skipped)


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


def _class_folders(root: Path) -> list[tuple[str, str, Path]]:
    """(the folder's own split or "", class, folder) for <split>/<class>, <class> or flat."""
    tops = [(split, root / split) for split in SPLITS if (root / split).is_dir()] or [("", root)]
    found = []
    for split, top in tops:
        # [] where `top` is not there, not a folder or not ours to read
        inner = [
            sub for sub in sorted(top.glob("*/")) if not sub.name.startswith((".", "__MACOSX"))
        ]
        found += [(split, sub.name, sub) for sub in inner] or [(split, root.name, top)]
    return found


def _strays(root: Path, leaves: set[Path]) -> list[tuple[str, str]]:
    """What lies beside the class folders `leaves`, with a reason and a count."""
    tops = {leaf.parent for leaf in leaves if leaf != root} | {root} - leaves
    strays = {entry for top in tops for entry in top.iterdir()} - leaves - tops
    skipped = []
    for entry in strays:
        name, reason, count = entry.relative_to(root).as_posix(), "beside the class folders", 1
        if entry.is_dir():
            name = f"{name}/"
            count = sum(len(inside) for *_, inside in os.walk(entry))
            if entry.name == "__MACOSX":
                reason = "macOS files"
            elif (entry / "train").is_dir():
                reason = "nested second copy"
        skipped.append((name, f"{reason}: {count}"))
    return skipped


def _official_split(root: Path) -> dict[str, str]:
    """CelebA's own: {file name: split}."""
    for folder in (root, *root.parents[:2]) if root.name == FACES else ():
        for suffix in ("csv", "txt"):
            with suppress(OSError):
                text = (folder / f"list_eval_partition.{suffix}").read_text()
                rows = re.findall(r"^([^,\s]+)[, ]+([012])\s*$", text, re.MULTILINE)
                return {name: SPLITS[int(number)] for name, number in rows}
    return {}
