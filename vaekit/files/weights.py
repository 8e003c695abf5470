"""Where the pretrained networks' weights are."""

import os
import socket
from pathlib import Path

import torch

from vaekit.features import TRUNKS, WeightsMissing
from vaekit.place.setup import attached, folders_in_attached

URL = "https://download.pytorch.org/models/"


def downloads_allowed(profile: str) -> bool:
    """Whether this profile may use the network, for weights and data sets: not "smoke"."""
    return profile != "smoke"


def weight_places() -> list[Path]:
    """Folders that are searched for weight files, in order; those that do not exist left out."""
    given = os.environ.get("VAEKIT_WEIGHTS")
    places = [Path(given)] if given else []
    places += [*folders_in_attached(), hub_folder()]
    return [place for place in places if place.is_dir()]


def hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def find_weights(name: str, path: str | Path | None = None, download: bool = True) -> Path:
    """The file with the weights of trunk `name`; `path` (file or folder) beats every other place.

    Raises WeightsMissing with the list of places; ValueError for an unknown trunk.
    """
    if name not in TRUNKS:
        raise ValueError(f"unknown trunk {name!r}; there are {', '.join(TRUNKS)}")
    spec = TRUNKS[name]
    if path and Path(path).is_file():
        return Path(path)
    places = [Path(path)] if path else weight_places()
    for place in places:
        for found in [*place.glob(spec.url_file), *sorted(place.glob(f"{spec.builder}*.pth"))]:
            if "_bn" not in found.name:  # vgg16_bn is another network
                return found
    tried = download and not path
    if tried and _download(spec.url_file):
        return hub_folder() / spec.url_file
    attempt = " and tried to download it" if tried else ""
    raise WeightsMissing(
        f"no weights for {name}: looked for {spec.url_file} in {_in_words(places)}{attempt}. With"
        " internet it comes by itself; without, put the file into a folder and set VAEKIT_WEIGHTS"
        " to it."
    )


def _in_words(places: list[Path]) -> str:
    """As they are below ~; of what is attached only its own folders."""
    inputs, home = set(attached()), Path.home()
    shown = [place for place in places if not inputs.intersection(place.parents)]
    names = [f"~/{p.relative_to(home)}" if p.is_relative_to(home) else str(p) for p in shown]
    return ", ".join(names) or "no folder (none exists)"


def _download(file: str) -> bool:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(15)  # a machine without internet should not wait for minutes
    try:
        hub_folder().mkdir(parents=True, exist_ok=True)
        checksum = Path(file).stem.split("-")[-1]
        target = str(hub_folder() / file)
        torch.hub.download_url_to_file(URL + file, target, checksum, progress=False)
        return True
    except (OSError, RuntimeError):  # no network; or a torn file, which the hub removes
        return False
    finally:
        socket.setdefaulttimeout(before)
