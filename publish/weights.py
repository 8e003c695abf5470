"""Writes the table of pretrained weights, to attach without internet, into data/README.md.

python publish/weights.py            replaces the table between its marks
"""

import hashlib
import importlib.util
import re
from pathlib import Path

import package
from torchvision import models

from vaekit.features import PROFILE_TRUNK, TRUNKS
from vaekit.judge.networks import INCEPTION_FILE

README = package.ROOT / "data" / "README.md"
INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-"


def rows() -> list[tuple[str, str, str, str, str]]:
    """(file, MB, first digits of its SHA-256, what needs it, where it is from)."""
    found = []
    for name, spec in TRUNKS.items():
        weights = models.get_model_weights(spec.builder).IMAGENET1K_V1
        (digits,) = re.findall(r"-([0-9a-f]{8})\.pth", spec.url_file)
        profiles = [profile for profile, trunk in PROFILE_TRUNK.items() if trunk == name]
        wants = f'`features="{name}"`' + f", {' and '.join(profiles)}" * bool(profiles)
        wants += ", every table's judge" * (name == "squeezenet")
        found.append(
            (
                spec.url_file,
                f"{weights.meta['_file_size']:.1f}",
                digits,
                wants,
                f"[torchvision]({weights.url})",
            )
        )
    folder = Path(importlib.util.find_spec("lpips").origin).parent / "weights" / "v0.1"
    for name, spec in TRUNKS.items():
        if spec.lpips_head:
            data = (folder / f"{spec.lpips_head}.pth").read_bytes()
            digits = hashlib.sha256(data).hexdigest()[:8]
            origin = f"`{spec.lpips_head}.pth` in the package lpips, weights/v0.1"
            found.append(
                (
                    f"lpips_{spec.lpips_head}.pth",
                    f"{len(data) / 2**20:.2f}",
                    digits,
                    f"LPIPS on {name}",
                    origin,
                )
            )
    file = INCEPTION_FILE.removeprefix("*")
    digits = re.findall(r"-([0-9a-f]{8})\.pth", file)[0]
    origin = f"[torch-fidelity]({INCEPTION_URL}{file})"
    return [*found, (f"weights-{file}", "", digits, "FID", origin)]


def table() -> str:
    heads = ("file", "MB", "SHA-256 begins", "for", "from")
    lines = [heads, ("---",) * len(heads), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    marks = "<!-- weights -->\n", "\n<!-- /weights -->"
    text = README.read_text()
    start, end = text.index(marks[0]) + len(marks[0]), text.index(marks[1])
    README.write_text(text[:start] + table() + text[end:])
    print(table())


if __name__ == "__main__":
    main()
