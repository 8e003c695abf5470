"""Trained models that are released: find the file, verify its SHA-256, load it."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from vaekit.config import Config
from vaekit.files.sources import cache_dir
from vaekit.files.weights import weight_places
from vaekit.model import VAE
from vaekit.place.device import choose_device

# in the repository only; a wheel or a one-file notebook does not have it
FOLDER = Path(__file__).parents[2] / "data" / "released"
SCALE = ":scale"  # ends the name of a matrix's scales, which multiply its integers
# name: SHA-256 of NAME.safetensors, as benchmarks/release.py wrote them
RELEASED = {
    "chest_xray_128": "c6e7bc9b3fba458e5bc398977adc8027037d1d30b9095910502b2da09c24c8ae",
}


def released(name: str) -> VAE | None:
    """The trained model `name`, on the device in use, in evaluation mode, without gradients; None
    where its file is not on this machine.

    NAME.safetensors is looked for in the repository's data/released, in the places of weights
    (`VAEKIT_WEIGHTS`, attached inputs, torch's cache) and in `VAEKIT_CACHE`. A printed line says
    where it was found, or how to get it; a file with another SHA-256 is named and not loaded. The
    file holds numbers and a Config as JSON; no code from it is run. Weights are half precision or
    scaled integers in the file, float32 here; `model.cfg` is the training config. ValueError for an
    unknown name; it lists those that were released.
    """
    if name not in RELEASED:
        raise ValueError(f"no model {name!r} was released; there are {', '.join(RELEASED)}")
    file = find_released(f"{name}.safetensors", RELEASED[name])
    return load_released(file) if file else None


def find_released(file: str, digest: str) -> Path | None:
    """The first file of that name with this SHA-256; prints where it is, or why there is none."""
    for folder in (FOLDER, *weight_places(), cache_dir()):
        found = folder / file
        if not found.is_file():
            continue
        where = "the repository's data/released" if folder == FOLDER else folder
        if hashlib.sha256(found.read_bytes()).hexdigest() == digest:
            print(f"released model: {file} in {where}")
            return found
        print(f"released model: {file} in {where} is NOT the released file (SHA-256): not loaded")
    print(
        f"released model: no {file} here, going on without. It lies in the repository, in"
        " data/released: attach that, or put the file into a folder and set VAEKIT_WEIGHTS to it"
    )
    return None


def load_released(file: Path) -> VAE:
    """The model in a file that `benchmarks/release.py` wrote. For other files OSError, ValueError,
    SafetensorError or RuntimeError."""
    with safe_open(file, framework="pt") as opened:
        cfg = Config.from_dict(json.loads(opened.metadata()["vaekit"])["config"])
        stored = {key: opened.get_tensor(key) for key in opened.keys()}
    with torch.random.fork_rng():
        model = VAE(cfg)
    model.load_state_dict(restored(stored))
    return model.to(choose_device()).eval().requires_grad_(False)


def restored(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as float32; integers are multiplied by the scale of their row."""
    state = {key: value.float() for key, value in stored.items() if not key.endswith(SCALE)}
    for key in state.keys() & {key.removesuffix(SCALE) for key in stored if SCALE in key}:
        state[key] *= stored[key + SCALE].float()
    return state
