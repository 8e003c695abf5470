"""set_up() for notebooks: find out where they run, install what is missing, say so."""

import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

KAGGLE_INPUT = Path("/kaggle/input")  # where Kaggle mounts what is attached
FEW_FOLDERS = 100  # folders with more entries are not searched
KAGGLE_HOURS = 12.0  # then Kaggle ends a session; unsaved files are lost
KAGGLE_WEEK = 30  # hours of GPU that it gives in a week
STARTED = time.monotonic()  # start of the session, roughly: every notebook imports vaekit first

MACHINES_OWN = ["torch", "torchvision", "numpy", "cv2"]  # never installed, never replaced
# import name: what needs it
OPTIONAL = {"kagglehub": "downloads from Kaggle", "lpips": "LPIPS", "torchmetrics": "FID"}
NEEDED = ["accelerate", "filelock", "ipywidgets", "matplotlib", "PIL", "safetensors", "scipy"]
NEEDED += ["sklearn", "tensorboard", "tqdm", *OPTIONAL]
ON_PYPI = {"PIL": "pillow", "sklearn": "scikit-learn"}  # packages with another name there


def host() -> str:
    """ "kaggle", "colab" or "local"."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    if "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ:
        return "colab"
    return "local"


def set_up() -> str:
    """Install with pip what the notebooks need and lack, then return `report()`, one line.

    torch, torchvision, numpy and cv2 stay as they are, whatever a package asks for. Where pip fails
    (no internet) the line says what is left out; ModuleNotFoundError for packages that are needed.
    """
    missing = _absent(NEEDED)
    if missing:
        _pip_install([ON_PYPI.get(name, name) for name in missing])
    without = _absent([*MACHINES_OWN, *missing])
    hard = [ON_PYPI.get(name, name) for name in without if name not in OPTIONAL]
    if hard:
        raise ModuleNotFoundError(
            f"{', '.join(hard)} missing: with internet (on Kaggle: Settings, Internet) this cell"
            f" installs all but {', '.join(MACHINES_OWN)}; `pip install -r requirements.txt` all"
        )
    line = report()
    for name in missing:
        if name in without:
            line += f" · no {OPTIONAL[name]}: {name} is missing"
        else:
            line += f" · installed {ON_PYPI.get(name, name)}"
    return line


def _absent(names: list[str]) -> list[str]:
    importlib.invalidate_caches()
    return [name for name in names if importlib.util.find_spec(name) is None]


def _pip_install(packages: list[str]) -> None:
    """Into this Python; fails silently, and never replaces the machine's own packages."""
    own = [f"{name}=={metadata.version(name)}" for name in MACHINES_OWN if name != "cv2"]
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "constraints.txt"
        pinned.write_text("\n".join(own))
        command = [sys.executable, "-m", "pip", "install", "-q", "--retries=1", "-c", str(pinned)]
        subprocess.run(command + packages, capture_output=True, check=False)


def attached() -> list[Path]:
    """Every folder attached on Kaggle, nearest first, five levels down.

    That is two levels inside datasets/OWNER/NAME. A folder with more than FEW_FOLDERS is not
    entered: those are patients or classes, and may be tens of thousands."""
    found, level = [], [KAGGLE_INPUT]
    for _ in range(5):
        inside = [sorted(folder.glob("*/")) for folder in level]
        level = sum((folders for folders in inside if len(folders) <= FEW_FOLDERS), [])
        found += level
    return found


def minutes_left() -> float | None:
    """Minutes until Kaggle ends this session, minus half an hour for what follows a training run;
    None elsewhere."""
    if host() != "kaggle":
        return None
    gone = (time.monotonic() - STARTED) / 60
    return max(1.0, 60 * KAGGLE_HOURS - 30 - gone)


def report() -> str:
    """One line: where this runs and on what device; the first output of every notebook."""
    import torch

    import vaekit
    from vaekit.place.device import choose_device, choose_precision, count_gpus, gpu_problem

    device = choose_device()
    name = device.type.upper()
    if device.type == "cuda":
        number = count_gpus()
        name = f"{number} x " * (number > 1) + torch.cuda.get_device_name(device)
    elif torch.cuda.is_available():
        name += f" ({gpu_problem()})"
    return (
        f"vaekit {vaekit.__version__} · {host()} · Python {platform.python_version()}"
        f" · torch {torch.__version__} · {name}, {choose_precision('auto', device)}"
        f" · profile {vaekit.profile()}"
    )
