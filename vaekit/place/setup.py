"""Kaggle, Colab or laptop: where are we, and what is missing?"""

import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vaekit.place.device import choose_device, choose_precision, gpu_problem

KAGGLE_INPUT = Path("/kaggle/input")  # where Kaggle mounts what is attached
KAGGLE_HOURS = 12.0  # then Kaggle ends a session, and what was not saved is gone
STARTED = time.monotonic()  # of the session, near enough: every notebook imports vaekit first
MACHINES_OWN = ("torch", "torchvision", "numpy", "cv2")  # never installed, never replaced
NEEDED = {  # import name: its name on PyPI, and what can be done without it
    "accelerate": ("accelerate", ""), "filelock": ("filelock", ""),
    "ipywidgets": ("ipywidgets", ""), "kagglehub": ("kagglehub", "downloads from Kaggle"),
    "lpips": ("lpips", "LPIPS"), "matplotlib": ("matplotlib", ""), "PIL": ("pillow", ""),
    "safetensors": ("safetensors", ""), "scipy": ("scipy", ""), "sklearn": ("scikit-learn", ""),
    "tensorboard": ("tensorboard", ""), "torchmetrics": ("torchmetrics", "FID and KID"),
    "tqdm": ("tqdm", ""),
}  # fmt: skip


def host() -> str:
    """ "kaggle", "colab" or "local"."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    colab = "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ
    return "colab" if colab else "local"


def set_up() -> str:
    """Install with pip what the notebooks need and is not there, then `report()`, one line.

    torch, torchvision, numpy and cv2 stay as they are, whatever a package asks for. Where pip
    fails (no internet) the line says what is left out; ModuleNotFoundError where that is needed.
    """
    if lacking := _absent(MACHINES_OWN):
        raise ModuleNotFoundError(f"{', '.join(lacking)}: not here, and never installed by this"
                                  f" cell; `pip install -r requirements.txt` does")  # fmt: skip
    missing = _absent(NEEDED)
    if missing:
        _pip_install([NEEDED[name][0] for name in missing])
    without = _absent(missing)
    if hard := [NEEDED[name][0] for name in without if not NEEDED[name][1]]:
        raise ModuleNotFoundError(f"pip could not install {', '.join(hard)}: is the internet on?"
                                  f" On Kaggle: Settings, Internet")  # fmt: skip
    added = [f"installed {NEEDED[name][0]}" for name in missing if name not in without]
    lost = [f"no {NEEDED[name][1]}: {NEEDED[name][0]} is missing" for name in without]
    return " · ".join([report(), *added, *lost])


def _absent(names) -> list[str]:
    importlib.invalidate_caches()
    return [name for name in names if importlib.util.find_spec(name) is None]


def _pip_install(packages: list[str]) -> None:
    """Into this Python; fails in silence, and rather than replace what is the machine's own."""
    own = [f"{name}=={importlib.metadata.version(name)}" for name in MACHINES_OWN[:3]]
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "constraints.txt"
        pinned.write_text("\n".join(own))
        command = [sys.executable, "-m", "pip", "install", "-q", "--retries=1", "-c", str(pinned)]
        subprocess.run([*command, *packages], capture_output=True, check=False)


def attached() -> list[Path]:
    """The data sets and notebook outputs attached on Kaggle: their folders, both mount layouts."""
    found = [p for g in ("*", "datasets/*/*", "notebooks/*/*") for p in KAGGLE_INPUT.glob(g)]
    return sorted(p for p in found if p.name not in ("datasets", "notebooks") and p.is_dir())


def folders_in_attached() -> list[Path]:
    """The attached folders, then theirs, two levels down; deeper a million files may wait."""
    level = attached()
    folders = list(level)
    for _ in range(2):
        level = [inner for folder in level for inner in sorted(folder.glob("*/"))]
        folders += level
    return folders


def minutes_left() -> float | None:
    """Minutes until Kaggle ends this session, with half an hour for what follows a training;
    None elsewhere."""
    if host() != "kaggle":
        return None
    return max(1.0, 60 * KAGGLE_HOURS - 30 - (time.monotonic() - STARTED) / 60)


def report() -> str:
    """One line on where we are and what will compute: the first output of every notebook."""
    import torch

    import vaekit

    device, problem = choose_device(), gpu_problem()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    if torch.cuda.is_available() and problem:
        name += f" ({problem})"
    return (
        f"vaekit {vaekit.__version__} · {host()} · Python {platform.python_version()}"
        f" · torch {torch.__version__} · {name}, {choose_precision('auto', device)}"
        f" · profile {vaekit.profile()}"
    )
