"""Where the images are: find a data set, list what is in it. Reads names and labels."""

import os
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vaekit.config import Config
from vaekit.data import SPLITS
from vaekit.files.images import read_arrays
from vaekit.place.setup import KAGGLE_INPUT

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm")
EXPECTED = "train/<class>/*.jpeg with test/ beside it, or <class>/*.jpeg, or images directly"
BUNDLE = Path(__file__).parents[2] / "data" / "chest_xray_phantom"


@dataclass(frozen=True)
class Known:
    """How a data set is recognised: one of `marks` lies in one of `inside`, nearest first."""

    kaggle: str
    marks: tuple[str, ...]
    inside: tuple[str, ...]
    torchvision: str = ""  # its class there, if that is where it is downloaded from


FACES = ("img_align_celeba/img_align_celeba", "img_align_celeba")  # Kaggle's zip has it twice
KNOWN = {
    "chest_xray": Known("paultimothymooney/chest-xray-pneumonia", ("train/NORMAL",),
                        ("", "chest_xray")),
    "fashion_mnist": Known("zalando-research/fashionmnist", ("train-images-idx3-ubyte*",),
                           ("", "raw", "FashionMNIST/raw"), "FashionMNIST"),
    "cifar10": Known("pankrzysiu/cifar10-python", ("data_batch_1", "cifar10*.npz"),
                     ("", "cifar-10-batches-py", "cifar10/cifar-10-batches-py", "cifar10"),
                     "CIFAR10"),
    "celeba": Known("jessicali9530/celeba-dataset", ("000001.jpg",),
                    ("", *FACES, *(f"celeba/{place}" for place in FACES))),
}  # fmt: skip


def cache_dir() -> Path:
    """Where decoded images are kept: `VAEKIT_CACHE`, else ~/.cache/vaekit. Safe to delete."""
    return Path(env("VAEKIT_CACHE") or "~/.cache/vaekit").expanduser()


@dataclass(frozen=True)
class Found:
    """Where the images are, and by which rule; `str()` of it is one line."""

    path: Path
    source: str  # "given", "VAEKIT_DATA", "kaggle input", "kagglehub cache", ...

    def __str__(self) -> str:
        if self.source == "bundled phantoms":  # no machine's path: this line is stored in notebooks
            return f"data: bundled phantoms (synthetic films), {self.path.name}"
        return f"data: {self.source}, {self.path}"


def find_dataset(cfg: Config, download: bool = False) -> Found:
    """What to read for `cfg.dataset`: data_path, VAEKIT_DATA, Kaggle inputs, earlier downloads.

    The first two are orders: FileNotFoundError where they do not hold it, never a replacement.
    Found nowhere, it is downloaded if `download` says so (never in the smoke profile); without,
    chest_xray means the bundled phantoms and every other set FileNotFoundError.
    """
    name = cfg.dataset
    for asked, place in (("data_path", cfg.data_path), ("VAEKIT_DATA", env("VAEKIT_DATA"))):
        if place:
            if path := _enter(Path(place).expanduser(), name):
                return Found(path, "given" if asked == "data_path" else asked)
            what = f"{asked}={place} has no images for dataset={name}"
            raise FileNotFoundError(f"{what}; expected {_expected(name)}")
    found = _search(name)
    if not found and download and name in KNOWN and cfg.profile != "smoke":
        _download(name)
        found = _search(name)
    if not found and name != "chest_xray":
        raise FileNotFoundError(_nowhere(name))
    return found or bundled()


def _search(name: str) -> Found | None:
    if name not in KNOWN:
        return None
    places = [("kaggle input", path) for path in _kaggle_inputs(name)]
    places += [("kagglehub cache", path) for path in _kagglehub_versions(name)]
    for source, place in [*places, ("torchvision cache", _torchvision_cache())]:
        if path := _enter(place, name):
            return Found(path, source)
    return None


def _torchvision_cache() -> Path:
    return cache_dir() / "torchvision"


def _download(name: str) -> None:
    """From torchvision's servers, or from Kaggle (which needs `pip install kagglehub`)."""
    if KNOWN[name].torchvision:
        from torchvision import datasets

        getattr(datasets, KNOWN[name].torchvision)(_torchvision_cache(), download=True)
    else:
        import kagglehub

        kagglehub.dataset_download(KNOWN[name].kaggle)


def _expected(name: str) -> str:
    if name in ("chest_xray", "images"):
        return EXPECTED
    places = [f"{inside}/" if inside else "this folder" for inside in KNOWN[name].inside]
    return f"{' or '.join(KNOWN[name].marks)} in {' or '.join(places)}"


def _nowhere(name: str, *more: Path | str) -> str:
    """The message where a data set is missing: what, how to get it, where it was looked for."""
    places = ["data_path (empty)", "VAEKIT_DATA (not set)"]
    ways = "set VAEKIT_DATA or data_path to its folder"
    if name in KNOWN:
        kaggle = KNOWN[name].kaggle
        ways += f"; attach {kaggle} on Kaggle; or vaekit.load_data(cfg, download=True)"
        places += [KAGGLE_INPUT, f"kagglehub's cache of {kaggle}", _torchvision_cache()]
    looked = "".join(f"\n  {place}" for place in (*places, *more))
    return (f"no images for dataset={name}; expected {_expected(name)}.\nTo get them: {ways}."
            f"\nLooked at{looked}")  # fmt: skip


def env(name: str) -> str:
    return os.environ.get(name, "").strip()


def _kaggle_inputs(name: str) -> list[Path]:
    """Folders with the data set, at most 3 deep in an attached input, the usual one first."""
    # never a deep search: an input may hold a million files
    depths = "*/", "*/*/", "*/*/*/", "datasets/*/*/*/", "datasets/*/*/*/*/"
    folders = (folder for depth in depths for folder in sorted(KAGGLE_INPUT.glob(depth)))
    found = [folder for folder in folders if _marked(folder, name)]
    slug = KNOWN[name].kaggle.split("/")[1]
    return sorted(found, key=lambda folder: slug not in folder.parts)  # stable: nearest first


def _kagglehub_versions(name: str) -> list[Path]:
    """kagglehub's copies on disk: finished downloads first, newest first."""
    root = Path(env("KAGGLEHUB_CACHE") or "~/.cache/kagglehub").expanduser()
    root = root / "datasets" / KNOWN[name].kaggle
    versions = [folder for folder in root.glob("versions/*") if folder.name.isdigit()]
    versions.sort(key=lambda folder: int(folder.name), reverse=True)
    return sorted(versions, key=lambda folder: not (root / f"{folder.name}.complete").exists())


def bundled() -> Found:
    """The bundle; where vaekit is installed without its checkout, drawn once into the cache."""
    from vaekit.lessons.phantom import write_bundle

    drawn = cache_dir() / BUNDLE.name
    for place in (BUNDLE, drawn):
        if path := _enter(place, "chest_xray"):
            return Found(path, "bundled phantoms")
    try:
        drawn.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=drawn.parent) as temporary:
            write_bundle(Path(temporary) / drawn.name)
            with suppress(OSError):  # another process was first
                os.replace(Path(temporary) / drawn.name, drawn)
    except OSError as error:
        raise FileNotFoundError(_nowhere("chest_xray", BUNDLE, f"{drawn}: {error}")) from error
    return Found(drawn, "bundled phantoms")


def _marked(folder: Path, name: str) -> Path | None:
    """The folder, at or below `folder`, that has the marks of the known data set; or the .npz."""
    for place in (folder / inside for inside in KNOWN[name].inside):
        for mark in KNOWN[name].marks:
            if hits := sorted(place.glob(mark)):  # of several .npz the last by name
                return hits[-1] if hits[-1].suffix == ".npz" else place
    return None


def _enter(folder: Path, name: str) -> Path | None:
    """What to read in `folder` for the data set `name`; None if it is not there."""
    if name == "cifar10" and folder.suffix == ".npz" and folder.is_file():
        return folder
    if name in KNOWN and (found := _marked(folder, name)):
        return found
    if name == "chest_xray":
        if folder.name == FACES[1] or (folder / FACES[1]).is_dir():
            return None  # one data set does not stand in for another
        if not (folder / "train").is_dir() and (folder / "chest_xray").is_dir():
            folder = folder / "chest_xray"
    elif name != "images":
        return None
    with suppress(OSError):
        names = (name for *_, leaf in _class_folders(folder) for name in os.listdir(leaf))
        if any(name.lower().endswith(SUFFIXES) and not name.startswith(".") for name in names):
            return folder
    return None


def _subfolders(folder: Path) -> list[Path]:
    """[] where `folder` is not there, not a folder or not ours to read."""
    subs = sorted(folder.glob("*/"))
    return [sub for sub in subs if sub.name != "__MACOSX" and not sub.name.startswith(".")]


def _class_folders(root: Path) -> list[tuple[str, str, Path]]:
    """(the folder's own split or "", class, folder) for <split>/<class>, <class> or flat."""
    tops = [(split, root / split) for split in SPLITS if (root / split).is_dir()] or [("", root)]
    found = []
    for split, top in tops:
        classes = [(split, folder.name, folder) for folder in _subfolders(top)]
        found += classes or [(split, root.name, top)]
    return found


def list_images(root: Path) -> tuple[list[tuple], list[tuple[str, str]]]:
    """Sorted (relative name, own split, class, bytes, mtime in ns), and (name, reason) skipped.

    A nested second copy and macOS files are skipped, one line per folder. Arrays (see
    `images.read_arrays`) give one entry a row, "train/00012". CelebA's own split is read from
    list_eval_partition, .csv or .txt, beside or above its images.
    """
    if arrays := read_arrays(root):
        stats = [file.stat() for file in ([root] if root.is_file() else root.iterdir())]
        state = sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)
        return [(f"{part}/{row:06}", part.replace("all", ""), label, *state)
                for part, (_, labels) in sorted(arrays.items())
                for row, label in enumerate(labels)], []  # fmt: skip
    folders, official = _class_folders(root), _official_split(root)
    files: list[tuple] = []
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
                    stat, side = entry.stat(), split or official.get(name, "")
                    files.append((name, side, label, stat.st_size, stat.st_mtime_ns))
        if hidden:
            skipped.append((f"{relative}.*", f"hidden or macOS files: {hidden}"))
    return sorted(files), sorted(skipped)


def _strays(root: Path, leaves: set[Path]) -> list[tuple[str, str]]:
    """What lies beside the class folders `leaves`, with a reason and a count."""
    tops = {leaf.parent for leaf in leaves if leaf != root} | {root} - leaves
    skipped = []
    for entry in (entry for top in tops for entry in top.iterdir() if entry not in leaves | tops):
        name, reason, count = entry.relative_to(root).as_posix(), "beside the class folders", 1
        if entry.is_dir():
            name, count = f"{name}/", sum(len(inside) for *_, inside in os.walk(entry))
            if entry.name == "__MACOSX":
                reason = "macOS files"
            elif (entry / "train").is_dir():
                reason = "nested second copy"
        skipped.append((name, f"{reason}: {count}"))
    return skipped


def _official_split(root: Path) -> dict[str, str]:
    for folder in (root, *root.parents[:2]) if root.name == "img_align_celeba" else ():
        for suffix in ("csv", "txt"):
            with suppress(OSError):
                text = (folder / f"list_eval_partition.{suffix}").read_text()
                rows = re.findall(r"^([^,\s]+)[, ]+([012])\s*$", text, re.MULTILINE)
                return {name: SPLITS[int(number)] for name, number in rows}
    return {}
