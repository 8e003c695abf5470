"""The notebooks of the main line on a user's own few images."""

import os
import tempfile
from pathlib import Path
from unittest import mock

import execute  # notebooks/
from films import film, write

SIZES = (3, 8, 20, 44)


def on_few_images(sizes: tuple[int, ...] = SIZES) -> dict:
    """Notebooks 00 to 06 and 10 on so many images: every cell runs, and what they judge is called
    too few by 05, 06 and 10."""
    notebooks = told = 0
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            places = {name: f"{folder}/{name}" for name in ("DATA", "CACHE", "RUNS")}
            for i in range(n):
                write(Path(places["DATA"]) / f"{i}.png", film(i, 96, 80))
            changes = {f"VAEKIT_{name}": place for name, place in places.items()}
            with mock.patch.dict(os.environ, changes):
                for path in sorted(execute.HERE.glob("[01][0-6]*.ipynb")):
                    printed = [str(c.get("outputs")) for c in execute.execute(path).cells]
                    cells = sum("too few" in text for text in printed)
                    assert cells or path.name < "05", f"{path.name} of {n} images"
                    told += cells
                    notebooks += 1
    return {"notebooks": notebooks, "of images": sizes, "cells that say too few": told}
