"""Where the pretrained networks' weights are."""

import os
import socket
from pathlib import Path

import torch

from vaekit.features import TRUNKS, WeightsMissing
from vaekit.place.setup import attached

URL = "https://download.pytorch.org/models/"


def weight_places() -> list[Path]:
    """Folders that are searched for weight files, in order; those that do not exist left out."""
    given = os.environ.get("VAEKIT_WEIGHTS")
    places = [Path(given)] if given else []
    for root in attached():
        places += [root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))]
    return [p for p in (*places, hub_folder()) if p.is_dir()]


def hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def find_weights(name: str, path: str | Path | None = None, download: bool = True) -> Path:
    """The file with the weights of trunk `name`; `path` (file or folder) beats every other place.

    Raises WeightsMissing with the list of places; ValueError for an unknown trunk.
    """
    if name not in TRUNKS:
        raise ValueError(f"unknown trunk {name!r}; there are {', '.join(TRUNKS)}")
    builder, file, *_ = TRUNKS[name]
    if path and Path(path).is_file():
        return Path(path)
    places, download = [Path(path)] if path else weight_places(), download and not path
    for place in places:
        found = [*place.glob(file), *sorted(place.glob(f"{builder}*.pth"))]
        if found := [f for f in found if "_bn" not in f.name]:  # vgg16_bn is another network
            return found[0]
    if download and _download(file):
        return hub_folder() / file
    roots = set(attached())  # in words, attached inputs by their own names only
    places = [p for p in places if not roots & set(p.parents)]
    home, tried = Path.home(), " and tried to download it" if download else ""
    places = [f"~/{p.relative_to(home)}" if p.is_relative_to(home) else str(p) for p in places]
    raise WeightsMissing(
        f"no weights for {name}: looked for {file} in"
        f" {', '.join(places) or 'no folder (none exists)'}{tried}. With internet it comes by"
        f" itself; without, put the file into a folder and set VAEKIT_WEIGHTS to it."
    )


def _download(file: str) -> bool:
    before, checksum = socket.getdefaulttimeout(), Path(file).stem.split("-")[-1]
    socket.setdefaulttimeout(15)  # a machine without internet should not wait for minutes
    try:
        hub_folder().mkdir(parents=True, exist_ok=True)
        target = str(hub_folder() / file)
        torch.hub.download_url_to_file(URL + file, target, checksum, progress=False)
        return True
    except (OSError, RuntimeError):  # no network; or a torn file, which the hub removes
        return False
    finally:
        socket.setdefaulttimeout(before)
