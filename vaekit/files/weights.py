"""Weights of the pretrained networks: find the files, and load them."""

import importlib.util
import os
import socket
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from vaekit.features import IMAGENET_STD, TRUNKS, Trunk, WeightsMissing
from vaekit.place import setup

URL = "https://download.pytorch.org/models/"


def downloads_allowed(profile: str) -> bool:
    """Whether this profile may download weights and data sets: all but "smoke"."""
    return profile != "smoke"


def weight_places() -> list[Path]:
    """Folders in which weight files are looked for, in order; only those that exist."""
    given = os.environ.get("VAEKIT_WEIGHTS")
    places = [Path(given)] if given else []
    places += [*setup.attached(), hub_folder()]
    return [place for place in places if place.is_dir()]


def hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def find_weights(name: str, path: str | Path | None = None, download: bool = True) -> Path:
    """The file with the weights of trunk `name`; `path` (file or folder) has priority.

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
    where = path or "VAEKIT_WEIGHTS, /kaggle/input and torch's cache"
    if download and not path:
        if _download(spec.url_file):
            return hub_folder() / spec.url_file
        where += ", and tried to download it"
    raise WeightsMissing(
        f"no weights for {name}: looked for {spec.url_file} in {where}. With internet it downloads"
        " itself; without, put the file into a folder and set VAEKIT_WEIGHTS to it."
    )


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


def load_trunk(name: str, path: str | Path = "", download=True, taps: tuple = ()) -> Trunk:
    """The frozen trunk `name` on the CPU in fp32, cut after its last tap.

    `taps` default to all layers of the perceptual loss and LPIPS that the file reaches. Raises
    WeightsMissing, or ValueError where the file holds something else.
    """
    from torchvision import models

    file = find_weights(name, path, download)
    spec = TRUNKS[name]
    layers = getattr(models, spec.builder)(weights=None).features
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        prefix = "features."
        state = {k.removeprefix(prefix): v.float() for k, v in state.items() if prefix in k}
        # files of Oxford's VGG-19 are named by their layers, torchvision's are not
        if name == "vgg19" and "conv1_1" in file.name:
            state = as_torchvisions(state)
        # the file may have fewer layers: keep its last convolution, and the ReLU after it
        num_layers = max((int(k.split(".")[0]) for k in state), default=0) + 2
        layers = layers[:num_layers]
        layers.load_state_dict(state, strict=True)
    except (RuntimeError, UnpicklingError) as error:
        raise ValueError(f"{file} does not hold torchvision's {spec.builder}") from error
    taps = taps or sorted({*spec.perceptual_taps, *spec.lpips_taps})
    taps = tuple(tap for tap in taps if tap < num_layers)
    # channels_last: LPIPS takes a third less time on AVX2, VGG-19 a fifth
    return Trunk(name, layers, taps).to(memory_format=torch.channels_last)


def as_torchvisions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Oxford's weights, which expect 0..255 minus the mean, for images in units of IMAGENET_STD.

    Their features are larger by 255 times IMAGENET_STD's mean; here they get torchvision's scale.
    """
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    state = {k: v / (255 * std.mean()) if "bias" in k else v for k, v in state.items()}
    first = state["0.weight"] * std / std.mean()
    return state | {"0.weight": first}


def lpips_head(name: str) -> list[Tensor]:
    """LPIPS v0.1's linear weights, one (C,) per tap, from the `lpips` package's own file, or from
    lpips*<head>*.pth in the places of weights.

    Source: Zhang et al. 2018, arXiv 1801.03924. ValueError for a trunk without a head,
    WeightsMissing where neither file is there.
    """
    head = TRUNKS[name].lpips_head
    if not head:
        have = ", ".join(name for name in TRUNKS if TRUNKS[name].lpips_head)
        raise ValueError(f"LPIPS has no linear layers for {name}; it has for {have}")
    files = []
    package = importlib.util.find_spec("lpips")
    if package:
        files.append(Path(package.origin).parent / "weights/v0.1" / f"{head}.pth")
    for place in weight_places():
        files += sorted(place.glob(f"lpips*{head}*.pth"))
    if not files:
        raise WeightsMissing(
            f"LPIPS needs its linear layers: `pip install lpips`, or its file {head}.pth,"
            f" as lpips_{head}.pth, in VAEKIT_WEIGHTS"
        )
    state = torch.load(files[0], map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"].flatten() for i in range(len(state))]
