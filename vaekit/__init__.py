"""vaekit: from a folder of images to a VAE with sharp reconstructions and believable samples."""

from vaekit.config import PRESETS, Config, preset, profile, runs_dir

__version__ = "0.1.0"
__all__ = ["PRESETS", "Config", "preset", "profile", "runs_dir"]
