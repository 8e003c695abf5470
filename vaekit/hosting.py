"""Kaggle, Colab or laptop: where are we, and what works here?"""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def minutes_left() -> float | None:
    """Minutes until Kaggle ends this session, with half an hour for what follows a training;
    None elsewhere."""
    if host() != "kaggle":
        return None
    return max(1.0, 60 * KAGGLE_HOURS - 30 - (time.monotonic() - STARTED) / 60)


def gpu_problem() -> str:
    """ "" where the GPU runs this torch's kernels, else why not.

    `torch.cuda.is_available()` says True on a P100 whose kernels recent builds leave out, and
    the failure comes at the first kernel: so one is tried.
    """
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        torch.ones(8, device="cuda").mul_(2).sum().item()
        return ""
    except Exception as error:  # whatever the driver says: the message is what matters
        name = torch.cuda.get_device_name(0)
        return f"{name} has no kernels in this torch {torch.__version__}: {error}".splitlines()[0]


def usable_gpu() -> bool:
    return gpu_problem() == ""


def choose_device():
    """The GPU if this torch has kernels for it, Apple's MPS, else the CPU."""
    import torch

    if usable_gpu():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively (AVX512-bf16 or AMX), by Linux's own word."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def choose_precision(wanted: str, device) -> str:
    """ "auto" -> "bf16" where the hardware has it natively, "fp16" on older GPUs, else "fp32"."""
    import torch

    if wanted != "auto":
        return wanted
    if device.type == "cuda":  # is_bf16_supported() says True on a T4, where it is emulated
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def keep_freed_memory() -> bool:
    """Make glibc keep what is freed rather than give it back: True where it could be done.

    On a CPU every large tensor is otherwise fetched from the kernel anew, page by page, at every
    step: a sixth of the time of a step at 128 px. The process stays as large as it ever was.
    """
    import ctypes

    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):  # macOS, Windows, musl
        return False


def watched() -> bool:
    """Whether someone watches the output live: a terminal or an interactive notebook.

    `VAEKIT_PROGRESS=bar|lines` decides where it is set (a notebook executed by a script looks
    like any other from within).
    """
    wanted = os.environ.get("VAEKIT_PROGRESS", "")
    if wanted:
        return wanted == "bar"
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch":
        return False
    interactive = "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None
    return interactive or sys.stderr.isatty()


class Progress:
    """A tqdm bar over epochs when someone watches, a line an epoch when nobody does
    (thinned out to about 25 lines in long runs)."""

    def __init__(self, total: int, done: int, visible: bool):
        self.total, self.visible, self.bar = total, visible, None
        self.every = max(1, round(total / 25))
        if visible and watched():
            from tqdm.auto import tqdm

            self.bar = tqdm(total=total, initial=done, unit="epoch")

    def show(self, row: dict) -> None:
        text = (
            f"phase {row['phase']}  beta {row['beta']:.2g} (beta_elbo {row['beta_elbo']:.2g})"
            f"  train {row['train_loss']:.4f}  val {row['val_loss']:.4f}"
            f"  KL {row['val_kl']:.0f} nats  PSNR {row['val_psnr']:.1f} dB"
        )
        if self.bar is not None:
            self.bar.set_description_str(text, refresh=False)
            self.bar.update()
        elif self.visible and (row["epoch"] % self.every == 0 or row["epoch"] in (1, self.total)):
            print(f"epoch {row['epoch']:>3}/{self.total}  {text}  {row['seconds']:.1f} s")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


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
