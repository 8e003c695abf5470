"""Which device computes, and in which precision. Does not import torch until asked."""

from pathlib import Path


def gpu_problem() -> str:
    """ "" where the GPU runs this torch's kernels, else why not.

    `torch.cuda.is_available()` is True on a P100, for which recent builds have no kernels; the
    failure comes at the first kernel, so this runs one.
    """
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        torch.ones(8, device="cuda").mul_(2).sum().item()
    except Exception as error:  # drivers raise many kinds; the message matters
        name = torch.cuda.get_device_name(0)
        return f"{name} has no kernels in this torch {torch.__version__}: {error}".splitlines()[0]
    return ""


def usable_gpu() -> bool:
    """Whether there is a GPU that runs this torch's kernels."""
    return gpu_problem() == ""


def count_gpus() -> int:
    """How many GPUs run this torch's kernels: all of them if they are of one kind, else one."""
    import torch

    if not usable_gpu():
        return 0
    number = torch.cuda.device_count()
    kinds = {torch.cuda.get_device_capability(i) for i in range(number)}
    return number if len(kinds) == 1 else 1


def choose_device():
    """The GPU if this torch has kernels for it, Apple's MPS, else the CPU."""
    import torch

    if usable_gpu():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively (AVX512-bf16 or AMX), according to Linux, and
    torch may use it (ATEN_CPU_CAPABILITY can say no)."""
    import torch

    allowed = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return allowed and ("avx512_bf16" in words or "amx_bf16" in words)


def choose_precision(wanted: str, device) -> str:
    """ "auto" -> "bf16" where the hardware has it natively, "fp16" on older GPUs, else "fp32"."""
    import torch

    if wanted != "auto":
        return wanted
    if device.type == "cuda":  # is_bf16_supported() says True on a T4, where it is emulated
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if native else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"
