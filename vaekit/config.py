"""One flat Config, checked field by field, and the profile that decides how long things take."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from vaekit.presets import AT_MOST, DURATIONS, LARGE_SETS, PRESETS, PROFILE_CHANGES

PROFILES = ("smoke", "quick", "full")
ACTIVATIONS = ("silu", "leaky_relu", "relu")
LR_SCHEDULES = ("constant", "cosine", "cosine_restarts", "plateau")
EPOCHS = (0, 100_000)
# What each field may be. Everything else is checked by its type, and numbers to be 0 or more.
CHOICES = {
    "preset": PRESETS, "profile": PROFILES,
    "dataset": ("chest_xray", "fashion_mnist", "cifar10", "celeba", "images"),
    "fit": ("squash", "pad", "frame", "crop"), "patient_key": ("subtype", "number", "none"),
    "stem_kernel": (0, *range(1, 16, 2)), "latent": ("spatial", "vector"),
    "block": ("residual", "plain"), "shortcut": ("conv", "free"),
    "norm": ("group", "batch", "none"),
    "act_encoder": ACTIVATIONS, "act_decoder": ACTIVATIONS,
    "upsample": ("bilinear", "nearest", "transposed"), "convs_per_up": (1, 2),
    "init": ("default", "kaiming", "kaiming_out"), "in_channels": (1, 3),
    "recon_reduction": ("mean", "sum"), "kl_reduction": ("mean", "sum"),
    "perceptual_distance": ("l1", "squared"),
    "free_bits_kind": ("element", "batch"),
    "beta_schedule": ("constant", "warmup", "cyclical", "adaptive", "adaptive_cyclical"),
    "optimizer": ("adamw", "adam"),
    "lr_schedule_phase1": LR_SCHEDULES, "lr_schedule_phase2": LR_SCHEDULES,
    "features": ("auto", "none", "vgg16", "vgg19", "squeezenet", "alexnet"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
}  # fmt: skip
RANGES = {  # inclusive limits; of a tuple, for each of its numbers
    "image_size": (8, 2048), "latent_channels": (1, 65536), "widths": (1, 8192),
    "attention": (1, 2048), "batch_size": (1, 65536), "epochs_phase1": EPOCHS,
    "epochs_phase2": EPOCHS, "beta_warmup": EPOCHS, "early_stop": EPOCHS,
    "plateau_patience": EPOCHS, "sample_every": (1, 100_000), "cycle_epochs": (2, 100_000),
    "cycle_cooldown": (1, 100_000), "cycle_reduction": (0.0, 1.0), "kl_share_low": (1e-6, 1.0),
    "kl_share_high": (1e-6, 1.0), "num_scales": (1, 5), "seed": (0, 2**31 - 1),
    "clahe_clip": (0.0, 100.0), "clahe_tiles": (1, 64), "crop": (0.05, 1.0),
    "latent_init_gain": (0.0, 10.0), "logvar_clamp": (0.0, 80.0),
    "val_fraction": (0.01, 0.5), "ema": (0.0, 0.99999), "lr_phase1": (0.0, 1.0),
    "lr_phase2": (0.0, 1.0), "lr_warmup": (0.0, 0.9),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Every value that shapes a run. Flat, so that two runs can be compared field by field.

    Build one with `preset(name, **changes)`; change one with `cfg.replace(beta=0.01)`.
    Weights are pure numbers; sizes are pixels; durations are epochs unless the comment says else.
    A value outside its choices or range raises ValueError that names the field and what it takes.
    """

    preset: str = "chest_xray"
    profile: str = "full"
    seed: int = 0

    # data
    dataset: str = "chest_xray"  # "images": a folder of your own, flat or one subfolder a class
    data_path: str = ""  # "": look in the places that data.find_dataset documents
    image_size: int = 128  # pixels, square
    in_channels: int = 1  # 1 grey, 3 RGB
    fit: str = "squash"  # how an image that is not square becomes square
    crop: float = 1.0  # of the shorter side, what fit="crop" keeps in the middle
    clahe_clip: float = 2.0  # 0 switches CLAHE off
    clahe_tiles: int = 8  # tiles per side
    flip: bool = True  # mirror half of the training images; not where left and right matter
    max_images: int = 0  # training images at most; 0: all
    val_fraction: float = 0.1  # of the training patients, where the folder's own val is too small
    patient_key: str = "subtype"  # "number" is the cautious one: person12 whatever the subtype;
    # "none": no patients, every image stands alone and copies are not looked for

    # model
    latent: str = "spatial"  # "vector": one flat code of `latent_channels` numbers
    latent_channels: int = 64
    widths: tuple = (32, 64, 128, 256, 512)  # one entry per halving of the resolution
    stem_kernel: int = 7  # first halving by one strided convolution, odd; 0: by a block
    block: str = "residual"
    shortcut: str = "free"  # pixel-unshuffle + mean down, repeat + pixel-shuffle up; or "conv"
    norm: str = "group"
    norm_skip: bool = False  # normalise the skip branch as well
    act_encoder: str = "silu"
    act_decoder: str = "silu"
    upsample: str = "bilinear"
    convs_per_up: int = 2
    attention: tuple = (16,)  # resolutions with self-attention, in both halves
    init: str = "default"
    zero_init_residual: bool = True  # every residual block starts as its skip
    latent_init_gain: float = 0.0  # Xavier gain of the mu and logvar layers; 0: leave as built
    logvar_clamp: float = 15.0  # logvar is kept in [-c, c]; 0: not clamped

    # loss
    l1_weight: float = 1.0
    mse_weight: float = 0.0
    ssim_weight: float = 0.5
    perceptual_weight: float = 0.1
    perceptual_distance: str = "l1"
    lpips_weight: float = 0.0
    spectral_weight: float = 0.0
    num_scales: int = 1  # pixel and SSIM terms at 1x, 1/2x, 1/4x ... averaged
    features: str = "auto"  # pretrained trunk; "auto": the profile's, or none with a notice
    recon_weight: float = 1.0
    recon_reduction: str = "mean"
    kl_reduction: str = "mean"
    calibrated: bool = False  # pixel terms as a likelihood whose scale is at its optimum
    free_bits: float = 0.0  # nats per latent element
    free_bits_kind: str = "element"
    beta: float = 0.001
    beta_start: float = 0.0001
    beta_schedule: str = "warmup"
    beta_warmup: int = 50  # epochs of phase 2 from beta_start to beta
    cycle_epochs: int = 8  # length of a cycle of the cyclical schedules
    cycle_cooldown: int = 2  # its first epochs, at
    cycle_reduction: float = 0.25  # times beta,
    beta_floor: float = 5e-5  # but not below this,
    beta_floor_growth: float = 1.02  # times this a cycle
    kl_share_low: float = 0.02  # the adaptive schedules hold the KL's share of the loss
    kl_share_high: float = 0.10  # between these two

    # training
    epochs_phase1: int = 50  # reconstruction only: beta 0, z is the mean
    epochs_phase2: int = 100
    rescale_latents: bool = True  # as phase 2 begins, give mu the prior's scale: a change of units
    batch_size: int = 32
    optimizer: str = "adamw"
    lr_phase1: float = 1e-4
    lr_phase2: float = 5e-5
    lr_schedule_phase1: str = "cosine_restarts"
    lr_schedule_phase2: str = "plateau"
    lr_warmup: float = 0.0  # share of each phase in which the rate rises from 0
    plateau_patience: int = 5  # epochs without improvement before "plateau" halves the rate
    weight_decay: float = 1e-5
    grad_clip: float = 1.0  # largest gradient norm; 0: no clipping
    ema: float = 0.999  # decay per step of the averaged weights; 0: none
    early_stop: int = 0  # epochs without improvement; 0: never
    precision: str = "auto"
    channels_last: bool = True
    sample_every: int = 10

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        pixel = self.l1_weight + self.mse_weight
        for wrong, why in (
            (self.beta_schedule == "warmup" and 0 < self.epochs_phase2 <= self.beta_warmup,
             f"beta_warmup={self.beta_warmup} leaves no epoch at the final beta: it must be below"
             f" epochs_phase2={self.epochs_phase2}"),
            (self.cycle_cooldown >= self.cycle_epochs,
             f"cycle_cooldown={self.cycle_cooldown} leaves no epoch at beta: it must be below"
             f" cycle_epochs={self.cycle_epochs}"),
            (self.kl_share_low >= self.kl_share_high, f"kl_share_low={self.kl_share_low} must be"
             f" below kl_share_high={self.kl_share_high}"),
            (not 0 < len(self.widths) <= (self.image_size - 1).bit_length(), f"widths={self.widths}"
             f" needs positive integers, one per halving of image_size={self.image_size}"),
            (pixel == 0 and (self.calibrated or self.ssim_weight + self.spectral_weight == 0),
             "the reconstruction needs l1_weight or mse_weight above 0"),
        ):  # fmt: skip
            if wrong:
                raise ValueError(why)

    def replace(self, **changes) -> "Config":
        """A copy with `changes`; an unknown field is a ValueError that lists the fields."""
        _known(changes)
        return dataclasses.replace(self, **changes)

    @property
    def num_epochs(self) -> int:
        return self.epochs_phase1 + self.epochs_phase2

    def to_dict(self) -> dict:
        """Plain numbers, strings, booleans and lists: what JSON and a safe load accept."""
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        _known(values)
        return cls(**values)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Config":
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except RecursionError as error:
            raise ValueError(f"{path} is nested too deeply") from error

    def differences(self, other: "Config") -> dict:
        """{field: (mine, theirs)} for the fields that differ."""
        a, b = self.to_dict(), other.to_dict()
        return {k: (a[k], b[k]) for k in a if a[k] != b[k]}


FIELDS = {field.name: field for field in dataclasses.fields(Config)}


def _known(changes: dict) -> None:
    if not isinstance(changes, dict):
        raise ValueError(f"a config is a JSON object, not {type(changes).__name__}")
    unknown = sorted(set(changes) - set(FIELDS))
    if unknown:
        raise ValueError(f"unknown config field {unknown}; the fields are {', '.join(FIELDS)}")


def _checked(field: dataclasses.Field, value):
    """`value` as the field's own type (lists become tuples, 1 becomes 1.0), or ValueError."""
    name, kind = field.name, type(field.default)
    if kind is tuple and isinstance(value, (list, tuple)) and all(type(v) is int for v in value):
        value = tuple(value)
    elif kind is float and type(value) is int and abs(value) < 1e300:  # larger ones have no float
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{name}={value!r:.60} should be {kind.__name__}, like {field.default!r}")
    if value not in CHOICES.get(name, (value,)):
        raise ValueError(f"{name}={value!r:.60} is not one of {', '.join(map(str, CHOICES[name]))}")
    low, high = RANGES.get(name, (0, 1e30))
    numbers = {tuple: value, int: (value,), float: (value,)}.get(kind, ())
    if not all(low <= number <= high for number in numbers):
        raise ValueError(f"{name}={value!r:.60} is outside [{low}, {high}]")
    return value


def profile() -> str:
    """`VAEKIT_PROFILE`, else "full" where a GPU works, else "quick".

    Raises ValueError for a name that is not a profile.
    """
    name = os.environ.get("VAEKIT_PROFILE", "").strip().lower()
    if not name:
        from vaekit.place.device import usable_gpu

        return "full" if usable_gpu() else "quick"
    if name not in PROFILES:
        raise ValueError(f"VAEKIT_PROFILE={name!r} is not one of {', '.join(PROFILES)}")
    return name


def preset(name: str = "chest_xray", **changes) -> Config:
    """The named preset under the current profile; what is given here beats both.

    `None` means "not given". Durations in epochs (the beta warm-up, the sample interval) keep
    their share of the run when only the number of epochs changes. Raises ValueError for an
    unknown preset, field or value, listing the choices.
    """
    _known(changes)
    given = {"preset": name} | {k: v for k, v in changes.items() if v is not None}
    for key, value in given.items():  # what was given is named, not what follows from it
        _checked(FIELDS[key], value)
    noted = Config(**{"preset": name, **PRESETS[name]})
    current = given.pop("profile", None) or profile()
    limits = dict(PROFILE_CHANGES[current])
    if given.get("dataset", noted.dataset) != "chest_xray":
        limits |= LARGE_SETS[current]
    limits |= {k: _at_most(getattr(noted, k), limits[k]) for k in AT_MOST if k in limits}
    values = {"profile": current, "widths": noted.widths, **limits, **given}
    size = values.get("image_size", noted.image_size)
    if "widths" not in given:  # no halving of a single pixel
        values["widths"] = values["widths"][: max(1, size.bit_length() - 1)]
    epochs = values.get("epochs_phase2", noted.epochs_phase2)
    share = epochs / max(noted.epochs_phase2, 1)
    for key, floor in DURATIONS.items():
        if key not in values:
            values[key] = max(floor, round(getattr(noted, key) * share))
    return noted.replace(**values)


def _at_most(own, limit: int):
    return tuple(min(v, limit) for v in own) if isinstance(own, tuple) else min(own, limit)
