"""Where the images are: find a data set, list what is in it. Reads names, never pixels."""

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vaekit import hosting
from vaekit.config import Config
from vaekit.patients import SPLITS

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm")
EXPECTED = "train/<class>/*.jpeg with test/ beside it, or <class>/*.jpeg, or images directly"
KAGGLE_DATASET = "paultimothymooney/chest-xray-pneumonia"
BUNDLE = Path(__file__).parent.parent / "data" / "chest_xray_phantom"


def cache_dir() -> Path:
    """Where decoded images are kept: `VAEKIT_CACHE`, else ~/.cache/vaekit. Safe to delete."""
    return Path(env("VAEKIT_CACHE") or "~/.cache/vaekit").expanduser()


@dataclass(frozen=True)
class Found:
    """Where the images are, and by which rule; `str()` of it is one line."""

    path: Path
    source: str  # "given", "VAEKIT_DATA", "kaggle input", "kagglehub cache", "bundled phantoms"

    def __str__(self) -> str:
        if self.source == "bundled phantoms":  # no machine's path: this line is stored in notebooks
            return f"data: bundled phantoms (synthetic films), {self.path.name}"
        return f"data: {self.source}, {self.path}"


def find_dataset(cfg: Config) -> Found:
    """The folder to read: data_path, VAEKIT_DATA, Kaggle inputs, kagglehub's cache, phantoms.

    The first two are orders: FileNotFoundError where they hold no images, never a replacement.
    """
    for source, place in (("given", cfg.data_path), ("VAEKIT_DATA", env("VAEKIT_DATA"))):
        if place:
            path = _enter(Path(place).expanduser())
            if path is None:
                asked = "data_path" if source == "given" else source
                raise FileNotFoundError(f"{asked}={place} has no images; expected {EXPECTED}")
            return Found(path, source)
    drawn = cache_dir() / BUNDLE.name
    places = [("kaggle input", path) for path in _kaggle_inputs()]
    places += [("kagglehub cache", path) for path in _kagglehub_versions()]
    places += [("bundled phantoms", BUNDLE), ("bundled phantoms", drawn)]
    for source, place in places:
        if path := _enter(place):
            return Found(path, source)
    return Found(_draw_phantoms(drawn), "bundled phantoms")


def env(name: str) -> str:
    return os.environ.get(name, "").strip()


def _kaggle_inputs() -> list[Path]:
    """Folders with train/NORMAL at most 3 deep in an attached input, the usual data set first."""
    level = [*hosting.KAGGLE_INPUT.glob("*"), *hosting.KAGGLE_INPUT.glob("datasets/*/*")]
    found: list[Path] = []
    for _ in range(3):  # never a deep search: an input may hold a million files
        hits = [folder for folder in level if (folder / "train" / "NORMAL").is_dir()]
        found += sorted(hits)
        level = [sub for folder in level if folder not in hits for sub in _subfolders(folder)]
    slug = KAGGLE_DATASET.split("/")[1]
    return sorted(found, key=lambda folder: slug not in folder.parts)  # stable: nearest first


def _kagglehub_versions() -> list[Path]:
    """kagglehub's copies on disk: finished downloads first, newest first."""
    root = Path(env("KAGGLEHUB_CACHE") or "~/.cache/kagglehub").expanduser()
    root = root / "datasets" / KAGGLE_DATASET
    versions = [folder for folder in root.glob("versions/*") if folder.name.isdigit()]
    done = {folder: (root / f"{folder.name}.complete").exists() for folder in versions}
    return sorted(versions, key=lambda folder: (done[folder], int(folder.name)), reverse=True)


def _draw_phantoms(folder: Path) -> Path:
    """The bundle, drawn once into the cache where vaekit is installed without its checkout."""
    try:
        from vaekit.phantom import write_bundle

        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            write_bundle(Path(temporary) / folder.name)
            with suppress(OSError):  # another process was first
                os.replace(Path(temporary) / folder.name, folder)
        if _enter(folder):
            return folder
        reason = "nothing was drawn"
    except (ImportError, OSError) as error:
        reason = str(error)
    looked = (
        "VAEKIT_DATA (not set)",
        hosting.KAGGLE_INPUT,
        f"kagglehub's cache of {KAGGLE_DATASET}",
    )
    looked = "".join(f"\n  {place}" for place in (*looked, BUNDLE, f"{folder}: {reason}"))
    raise FileNotFoundError(f"no images; expected {EXPECTED}; looked at data_path (empty){looked}")


def _enter(folder: Path) -> Path | None:
    """`folder`, or the chest_xray/ in it, whichever holds images; None if neither does."""
    if not (folder / "train").is_dir() and (folder / "chest_xray").is_dir():
        return _enter(folder / "chest_xray")
    with suppress(OSError):
        for _, _, leaf in _class_folders(folder):
            with os.scandir(leaf) as entries:
                if any(_is_image_name(entry.name) for entry in entries):
                    return folder
    return None


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:  # not a folder, or not ours to read
        return []
    return [folder / name for name in names if name != "__MACOSX" and not name.startswith(".")]


def _class_folders(root: Path) -> list[tuple[str, str, Path]]:
    """(the folder's own split or "", class, folder) for <split>/<class>, <class> or flat."""
    tops = [(split, root / split) for split in SPLITS if (root / split).is_dir()]
    found = []
    for split, top in tops or [("", root)]:
        classes = [(split, folder.name, folder) for folder in _subfolders(top)]
        found += classes or [(split, root.name, top)]
    return found


def list_images(root: Path) -> tuple[list[tuple], list[tuple[str, str]]]:
    """Sorted (relative name, own split, class, bytes, mtime in ns), and (name, reason) skipped.

    Reads names only. A nested second copy and macOS files are skipped, one line per folder.
    """
    folders = _class_folders(root)
    files: list[tuple] = []
    skipped = _strays(root, folders)
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
                elif entry.is_file():  # false for a folder and a broken link
                    stat = entry.stat()
                    files.append((name, split, label, stat.st_size, stat.st_mtime_ns))
                else:
                    skipped.append((name, "not a file"))
        if hidden:
            skipped.append((f"{relative}.*", f"hidden or macOS files: {hidden}"))
    return sorted(files), sorted(skipped)


def _strays(root: Path, folders: list[tuple[str, str, Path]]) -> list[tuple[str, str]]:
    """What lies beside the class folders, with a reason and a count."""
    leaves = {folder for _, _, folder in folders}
    known = leaves | {folder.parent for folder in leaves}
    skipped = []
    for top in sorted({folder.parent for folder in leaves if folder != root} | {root} - leaves):
        for entry in sorted(top.iterdir()):
            if entry in known:
                continue
            name, count = entry.relative_to(root).as_posix(), 1
            reason = "beside the class folders"
            if entry.is_dir():
                name += "/"
                count = sum(len(inside) for _, _, inside in os.walk(entry))
                if entry.name == "__MACOSX":
                    reason = "macOS files"
                elif (entry / "train").is_dir():
                    reason = "nested second copy"
            skipped.append((name, f"{reason}: {count}"))
    return skipped
