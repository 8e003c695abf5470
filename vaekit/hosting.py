"""Kaggle, Colab or laptop: where are we, and what works here?"""

import os
import platform
import sys
from pathlib import Path

KAGGLE_INPUT = Path("/kaggle/input")  # where Kaggle mounts what is attached


def host() -> str:
    """ "kaggle", "colab" or "local"."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    colab = "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ
    return "colab" if colab else "local"


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
