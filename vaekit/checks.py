"""Checks of what comes from outside. An error names the value, and says what is allowed.

The core calls them on configs, images and codes. Valid values pass; fields of a Config are
converted to their own type.
"""

import math
import os
import re
import warnings
from contextlib import suppress
from dataclasses import fields
from typing import Annotated, Literal, NamedTuple, get_args, get_origin, get_type_hints

PATIENT_KEYS = ("subtype", "number", "folder", "none")
# how far pixels may lie outside [0, 1]
ROUNDING = 1e-3

# ---- a Config ------------------------------------------------------------------------------------


def plain(value):
    """NumPy's and torch's numbers as Python's, paths as text; anything else unchanged."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if hasattr(value, "tolist") else value


class Rule(NamedTuple):
    """What a field may hold: its type, and one of `choices` or a number from low to high."""

    kind: type
    choices: tuple = ()
    low: float = 0
    high: float = 1e30

    @classmethod
    def of(cls, hint, default) -> "Rule":
        if get_origin(hint) is Literal:
            return cls(type(default), get_args(hint))
        if get_origin(hint) is Annotated:
            return cls(*get_args(hint)[:1], (), *get_args(hint)[1:])
        return cls(hint)

    def checked(self, name: str, value):
        """`value` in the field's own type (a list as a tuple, 1 as 1.0), or ValueError."""
        value = plain(value)
        if self.kind is tuple and isinstance(value, (list, tuple)):
            value = tuple(map(plain, value))
        if self.kind is float and type(value) is int and abs(value) < 1e300:
            value = float(value)  # larger integers overflow a float
        said = f"{name}={value!r:.60}"
        items = value if type(value) is tuple else (value,)
        kind = int if self.kind is tuple else self.kind
        if type(value) is not self.kind or any(type(item) is not kind for item in items):
            wanted = "tuple of int" if self.kind is tuple else kind.__name__
            raise ValueError(f"{said} should be {wanted}")
        if self.choices and value not in self.choices:
            raise ValueError(f"{said} is not one of {', '.join(map(str, self.choices))}")
        limited = not self.choices and kind is not str
        if limited and not all(self.low <= item <= self.high for item in items):
            raise ValueError(f"{said} is outside [{self.low}, {self.high}]")
        return value


def rules_of(kind: type) -> dict[str, Rule]:
    """{field: its Rule} of a dataclass, from its annotations."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: Rule.of(hints[field.name], field.default) for field in fields(kind)}


def check_fields(changes: dict, known: dict) -> None:
    """ValueError where `changes` has a name that is not among the `known` fields."""
    if not isinstance(changes, dict):
        raise ValueError(f"a config is a JSON object, not {type(changes).__name__}")
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise ValueError(f"unknown config field {unknown}; the fields are {', '.join(known)}")


def check_together(cfg) -> None:
    """ValueError where fields of a Config contradict one another, though each is valid alone."""
    check_patient_key(cfg.patient_key)
    if cfg.start == "linear" and cfg.latent != "vector":
        raise ValueError("start='linear' needs latent='vector': PCA has no map")
    if cfg.start == "linear" and cfg.epochs_phase1 and cfg.rescale_latents:
        raise ValueError("rescale_latents undoes start='linear', whose code has the prior's scale")
    if not 2 <= math.prod(cfg.levels) <= 65536:
        raise ValueError(f"levels={cfg.levels} should have a product from 2 to 65536")
    if cfg.num_codes and "adaptive" in cfg.beta_schedule:
        raise ValueError("quantised codes have a fixed KL: no adaptive beta can move it")
    pairs = [("cycle_cooldown", "cycle_epochs"), ("kl_share_low", "kl_share_high")]
    if cfg.beta_schedule == "warmup" and cfg.epochs_phase2:
        pairs.append(("beta_warmup", "epochs_phase2"))
    for field, limit in pairs:
        value, most = getattr(cfg, field), getattr(cfg, limit)
        if value >= most:
            raise ValueError(f"{field}={value} should be below {limit}={most}")
    most = (cfg.image_size - 1).bit_length()
    if not 0 < len(cfg.widths) <= most:
        raise ValueError(f"widths={cfg.widths} should be 1 to {most} numbers, one a halving")
    terms = [cfg.l1_weight, cfg.mse_weight]
    if not cfg.calibrated:
        terms += [cfg.ssim_weight, cfg.spectral_weight]
    if not any(terms):
        raise ValueError("the reconstruction needs l1_weight or mse_weight above 0")


def occurring(attention: tuple, sizes: list, given: bool) -> tuple:
    """`attention`, if the network has all of these `sizes`. If not: ValueError where the user gave
    it, and the nearest sizes with a warning where it comes from a preset."""
    if set(attention) <= set(sizes):
        return attention
    said = f"attention={attention}: the maps have {', '.join(map(str, sizes))} pixels a side"
    if given:
        raise ValueError(said)
    nearest = {min(sizes, key=lambda size: abs(size - wanted)) for wanted in attention}
    moved = sorted(nearest, reverse=True)
    warnings.warn(f"{said}; it moves to {moved}", stacklevel=4)
    return tuple(moved)


def check_patient_key(key: str) -> None:
    """ValueError unless it is one of PATIENT_KEYS, a .csv, or an expression with one group."""
    groups = 0
    with suppress(re.error, OverflowError, RecursionError):
        groups = re.compile(key).groups
    if key not in PATIENT_KEYS and not key.endswith(".csv") and groups != 1:
        ways = f"{', '.join(PATIENT_KEYS)}, a .csv, a pattern with one group"
        raise ValueError(f"patient_key={key!r:.60} is not one of {ways}")


# ---- images and codes ----------------------------------------------------------------------------


def being_traced() -> bool:
    """Whether torch is recording a graph (TorchScript, compile, export): no checks then."""
    import torch
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()
    # a dispatch mode: tensors without values, for example
    return recorded or _get_current_dispatch_mode() is not None


def check_shape(name: str, x, shape: tuple) -> None:
    """ValueError, with the shape, unless x is a tensor (N, *shape), N > 0; "C" is any number."""
    from torch import Tensor

    if being_traced():
        return
    found = tuple(x.shape) if isinstance(x, Tensor) else ()
    fits = len(found) == len(shape) + 1 and found[0] > 0
    pairs = zip(shape, found[1:], strict=False)
    if not fits or any(isinstance(side, int) and side != have for side, have in pairs):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} should be a tensor (N, {wanted}), N > 0, not {found or type(x)}")


def check_range(images) -> None:
    """ValueError for pixels that are neither uint8 nor between 0 and 1, or NaN."""
    import torch

    if images.dtype == torch.uint8 or being_traced():
        return
    low, high = images.aminmax()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # false for NaN too
        found = f"{images.dtype} from {low:.4g} to {high:.4g}"
        raise ValueError(f"images should be uint8, or floats from 0 to 1, not {found}")


def check_indices(indices, shape: tuple, num_codes: int) -> None:
    """ValueError unless this is a tensor (N, *shape) of code numbers, 0 to num_codes - 1."""
    check_shape("indices", indices, shape)
    if not ((indices >= 0) & (indices < num_codes)).all():
        raise ValueError(f"indices should be from 0 to {num_codes - 1}")


def check_tensors(images: list, labels: list, classes: list) -> None:
    """ValueError unless images are square, uint8 and of one shape, and labels index `classes`."""
    import torch

    channels, side = images[0].shape[1:3] if images[0].dim() == 4 else ("C", "S")
    for x in images:
        check_shape("images", x, (channels, side, side))
        if x.dtype != torch.uint8:
            raise ValueError(f"images should be uint8, not {x.dtype}")
    lengths = [len(x) for x in images]
    if [len(values) for values in labels] != lengths:
        raise ValueError(f"labels should be three sequences of lengths {lengths}")
    low, high = torch.cat(labels).aminmax()
    if low < 0 or high >= len(classes):
        raise ValueError(f"labels run from {low} to {high}, classes are {classes}")


def check_batches(n: int, order) -> None:
    """ValueError where there are no images, or `order` names one that does not exist: on CUDA that
    would end the process."""
    if not n:
        raise ValueError("the split has no images")
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < n:
        raise ValueError(f"order should lie in 0..{n - 1}")


def check_sampler(kind: str, known: tuple, quantiser=None, fit_on=()) -> None:
    """ValueError for an unknown kind, one that this latent does not have, or no `fit_on` (None)."""
    if kind == "codes" and quantiser is None:
        raise ValueError("sampler='codes' needs quantised codes: latent='fsq' or 'vq'")
    if kind not in (*known, "codes"):
        raise ValueError(f"sampler={kind!r} is not one of {', '.join(known)}")
    if kind != "prior" and fit_on is None:
        raise ValueError(f"sampler={kind!r} is fitted to latents: give fit_on=data.train")


def check_directions(n: int, num_latents: int) -> None:
    """ValueError for fewer than two images; a warning for no more images than directions."""
    if n < 2:
        raise ValueError("1 image has no covariance: give 2 or more")
    if n <= num_latents:
        said = f"{n} images, {num_latents} directions: the basis holds the images themselves"
        warnings.warn(said, stacklevel=3)


def check_data(data, cfg) -> None:
    """ValueError unless the images have cfg.image_size and cfg.in_channels; a warning where an
    epoch has fewer places than the codebook has codes."""
    shape = tuple(data.train.images.shape[1:])
    wanted = (cfg.in_channels, cfg.image_size, cfg.image_size)
    if shape != wanted:
        raise ValueError(f"images are {shape}, in_channels and image_size ask for {wanted}")
    n = min(len(data.train), cfg.epoch_images or len(data.train))
    shown = n * math.ceil(cfg.image_size / 2 ** len(cfg.widths)) ** 2
    if cfg.num_codes > shown:
        said = f"{cfg.num_codes} codes, and an epoch of {n} images has only {shown} places"
        warnings.warn(f"{said}: take fewer, most would never be used", stacklevel=3)
