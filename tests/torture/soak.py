"""Hours of training in one process: does memory or step time grow?"""

import ctypes
import gc
import os
import tempfile
import time
import warnings

import numpy as np
import psutil
from scipy.stats import linregress

import vaekit


def in_use() -> float:
    """Resident memory once the allocator has given back what it only keeps for later, MiB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # glibc
    return psutil.Process().memory_info().rss / 2**20


def soak(minutes: float, size: str = "quick") -> dict:
    """One training of the `size` profile, stopped and resumed every so often, for `minutes`.

    Memory in use is measured after each epoch; the first fifth of the epochs is warming up.
    """
    import matplotlib.pyplot as plt

    cfg = vaekit.preset("chest_xray", profile=size, epochs_phase1=2000, epochs_phase2=2000,
                        beta_warmup=50, perceptual_weight=0.0)  # fmt: skip
    data, start, marks, pieces = vaekit.load_data(cfg, verbose=False), time.time(), [], 0

    def note(run):
        handles = len(os.listdir("/proc/self/fd"))
        marks.append((time.time() - start, in_use(), handles, len(plt.get_fignums())))

    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings():
        while time.time() - start < 60 * minutes and pieces < 1000:
            left = minutes - (time.time() - start) / 60
            run = vaekit.fit(cfg, data, out=out, on_epoch_end=note, verbose=False,
                             max_minutes=max(min(left, minutes / 10), 1e-9))  # fmt: skip
            pieces += 1
        events = sum(file.stat().st_size for file in run.path.glob("events*"))
        pictures = len(run.history) // cfg.sample_every + 1
    seconds, memory, handles, figures = np.array(marks[len(marks) // 5 :], dtype=float).T
    growth = linregress(seconds / 3600, memory)
    return {"minutes": round((time.time() - start) / 60, 1), "epochs": len(run.history),
            "stopped and resumed": pieces - 1, "MiB": round(float(memory[-1]), 1),
            "MiB per hour": round(growth.slope, 2), "standard error": round(growth.stderr, 2),
            "handles": [int(handles[0]), int(handles[-1])], "figures": int(figures.max()),
            "event bytes per epoch": events // len(run.history), "pictures": pictures}  # fmt: skip
