"""The notebooks 00 to 06 on a user's own images: very few, and very many."""

import os
import resource
import tempfile
from pathlib import Path
from unittest import mock

import execute  # notebooks/
from films import film, write

SIZES = (3, 8, 20, 44)
MANY = 100_000
# read by each kernel as it starts: all images, but no more steps than the profile smoke has
ALL_OF_THEM = """
from vaekit.presets import PROFILE_CHANGES
PROFILE_CHANGES["smoke"] |= {"max_images": 0, "epoch_images": 24}
"""


def run_notebooks(folder: str):
    """(file name, cells with their outputs) of 00 to 06 and 10, on the images in folder/DATA."""
    places = {f"VAEKIT_{name}": f"{folder}/{name}" for name in ("DATA", "CACHE", "RUNS")}
    with mock.patch.dict(os.environ, places):
        for path in sorted(execute.HERE.glob("[01][0-6]*.ipynb")):
            yield path.name, execute.execute(path).cells


def on_few_images(sizes: tuple[int, ...] = SIZES) -> dict:
    """Every cell runs, and what 05, 06 and 10 judge is called too few by them."""
    notebooks = told = 0
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for i in range(n):
                write(Path(folder) / "DATA" / f"{i}.png", film(i, 96, 80))
            for name, found in run_notebooks(folder):
                cells = sum("too few" in str(cell.get("outputs")) for cell in found)
                assert cells or name < "05", f"{name} of {n} images"
                told += cells
                notebooks += 1
    return {"notebooks": notebooks, "of images": sizes, "cells that say too few": told}


def on_many_images(n: int = MANY) -> dict:
    """Every cell runs on all of so many images of 32 px, in the memory that this machine has."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            write(Path(folder) / "DATA" / f"{i // 1000:03}" / f"{i}.png", film(i, 32, 32))
        (Path(folder) / "sitecustomize.py").write_text(ALL_OF_THEM)
        paths = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
        with mock.patch.dict(os.environ, PYTHONPATH=paths):
            names = [name for name, _ in run_notebooks(folder)]
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"notebooks": len(names), "of images": n, "GiB at most": round(largest, 1)}
