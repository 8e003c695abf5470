"""Models that come trained: finding the file, checking that it is the one, loading it."""

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

# of the repository; neither a wheel nor a notebook in one file has it
FOLDER = Path(__file__).parents[2] / "data" / "released"
SCALE = ":scale"  # ends the name of what the whole numbers of a matrix are multiplied by
# name: SHA-256 of NAME.safetensors, as benchmarks/release.py wrote them
RELEASED = {
    "chest_xray_128": "349eb24953fd4390aee9a640fcb388b87784f2c41fd97561a3ab39032fa5416e",
}


def released(name: str) -> VAE | None:
    """The trained model `name`, on the device at hand, in evaluation mode, without gradients; None
    where its file is not here.

    The file, NAME.safetensors, is looked for in the repository's data/released, where weights are
    (`VAEKIT_WEIGHTS`, attached inputs, torch's cache) and in `VAEKIT_CACHE`. What it prints says
    where it was found or how to get it; a file with another SHA-256 than the released one is named
    and passed over. No code of a file is ever run: it holds numbers, and a Config as JSON. Weights
    are half precision in the file and float32 here; `model.cfg` is what it was trained with.
    ValueError for a name that was not released, listing those that were.
    """
    if name not in RELEASED:
        raise ValueError(f"no model {name!r} was released; there are {', '.join(RELEASED)}")
    file = find_released(f"{name}.safetensors", RELEASED[name])
    return load_released(file) if file else None


def find_released(file: str, digest: str) -> Path | None:
    """The first file of that name whose SHA-256 is `digest`; says where, or why there is none."""
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
    """The model in a file that `benchmarks/release.py` wrote; OSError, ValueError, SafetensorError
    or RuntimeError for another."""
    with safe_open(file, framework="pt") as opened:
        cfg = Config.from_dict(json.loads(opened.metadata()["vaekit"])["config"])
        stored = {key: opened.get_tensor(key) for key in opened.keys()}
    with torch.random.fork_rng():
        model = VAE(cfg)
    model.load_state_dict(restored(stored))
    return model.to(choose_device()).eval().requires_grad_(False)


def restored(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as float32; whole numbers times the scale of their row."""
    state = {key: value.float() for key, value in stored.items() if not key.endswith(SCALE)}
    for key in state.keys() & {key.removesuffix(SCALE) for key in stored if SCALE in key}:
        state[key] *= stored[key + SCALE].float()
    return state
