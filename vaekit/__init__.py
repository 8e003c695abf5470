"""vaekit: from a folder of images to a VAE with sharp reconstructions and believable samples."""

from importlib import import_module

from vaekit.config import PRESETS, Config, preset, profile

__version__ = "0.1.0"

# Loaded on first use, so that `import vaekit` is quick and does not load torch.
_WHERE = {
    "VAE": "model",
    "Data": "data",
    "load_data": "data",
    "load_images": "files.own_images",
    "released": "files.release",
    "linear_vae": "linear",
    "sample_latents": "sample",
    "fit": "keep.run",
    "Run": "keep.run",
    "load_run": "keep.run",
    "runs_dir": "keep.folder",
    "evaluate": "judge.evaluation",
    "diagnose": "judge.health",
    "compare": "judge.comparison",
    "explore": "lessons.explorer",
    "preset_for": "files.own_images",
    "count_channels": "files.own_images",
    "set_up": "place.setup",
}
__all__ = ["PRESETS", "Config", "preset", "profile", *_WHERE]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'vaekit' has no attribute {name!r}")
    return getattr(import_module(f"vaekit.{_WHERE[name]}"), name)
