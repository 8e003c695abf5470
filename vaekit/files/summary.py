"""The table that describes loaded data: images, patients, classes, what was left out."""

from collections import Counter

import torch

from vaekit.data import SPLITS, Data


def table(data: Data) -> str:
    """Images and patients per split and class, and what was left out, as text."""
    table = [("", "images", data.who, *data.classes)]
    for name in SPLITS:
        split = getattr(data, name)
        counts = torch.bincount(split.labels, minlength=len(data.classes)).tolist()
        table.append((name, len(split), len(set(split.groups)), *counts))
    width = max(9, *(len(name) + 2 for name in data.classes))
    lines = [f"{data.source}, hash {data.hash[:12]}"]
    for name, *cells in table:
        lines.append(f"{name:7}" + "".join(f"{cell:>{width}}" for cell in cells))
    lines += data.notes
    reasons = Counter(reason for _, reason in data.dropped)
    lines += [f"dropped, {reason}: {count}" for reason, count in reasons.items()]
    for what, images in data.remarks.items():
        name, detail = next(iter(images.items()))
        lines.append(f"{what}: {len(images)} images, such as {name} ({detail})")
    lines += [f"skipped {name}: {reason}" for name, reason in data.skipped[:10]]
    if len(data.skipped) > 10:
        lines.append(f"and {len(data.skipped) - 10} more in data.skipped")
    # file names need not be valid text
    return "\n".join(lines).encode(errors="backslashreplace").decode()
