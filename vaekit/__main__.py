"""`python -m vaekit chest_xray beta=0.01` trains from a shell."""

import contextlib
import json
import os
import sys

from vaekit.config import preset
from vaekit.data import load_data
from vaekit.keep.launch import leave_group
from vaekit.keep.run import Run, fit


def parse_changes(arguments: list[str]) -> dict:
    """["beta=0.01", "widths=[32,64]", "norm=batch"] -> {"beta": 0.01, ...}."""
    changes = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r} is not key=value")
        changes[key] = text
        with contextlib.suppress(json.JSONDecodeError):
            changes[key] = json.loads(text)
    return changes


def main(arguments: list[str]) -> Run:
    """`python -m vaekit PRESET key=value ... [out=DIR] [max_minutes=M] [processes=N]`: train, and
    print where the run is."""
    name, *rest = arguments or ["chest_xray"]
    changes = parse_changes(rest)
    options = {k: changes.pop(k) for k in ("out", "max_minutes", "processes") if k in changes}
    cfg = preset(name, **changes)
    speaks = os.environ.get("RANK", "0") == "0"  # torchrun's rank
    run = fit(cfg, load_data(cfg, verbose=speaks), **options)
    if speaks:
        state = "finished" if run.finished else "unfinished"
        print(f"{run.path}: {len(run.history)} epochs, {state}")
    leave_group()
    return run


if __name__ == "__main__":
    main(sys.argv[1:])
