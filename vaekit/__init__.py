"""vaekit: from a folder of images to a VAE with sharp reconstructions and believable samples."""

import sys
from importlib import import_module
from types import ModuleType

from vaekit import hosting
from vaekit.config import PRESETS, Config, preset, profile, runs_dir

__version__ = "0.1.0"

# Loaded on first use: importing vaekit costs next to nothing, also where torch is not needed.
_WHERE = {
    "VAE": "model", "Data": "data", "load_data": "data", "fit": "train", "Run": "runs",
    "load_run": "runs", "evaluate": "metrics", "sample_latents": "sample", "explore": "explore",
    "diagnose": "diagnose", "compare": "compare", "preset_for": "own",
    "count_channels": "own",
}  # fmt: skip
__all__ = ["PRESETS", "Config", "hosting", "preset", "profile", "runs_dir", *_WHERE]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'vaekit' has no attribute {name!r}")
    value = getattr(import_module(f"vaekit.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    def __setattr__(self, name: str, value) -> None:
        """`vaekit.explore` is the function, also after an import of the module of that name."""
        if name in _WHERE and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
