"""One flat Config, the rule of each field beside it; presets; profiles (quick, smoke, full)."""

import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from vaekit import checks
from vaekit.place.device import usable_gpu
from vaekit.presets import AT_MOST, DURATIONS, OTHER_SETS, PRESET_CHANGES, PRESETS, PROFILE_CHANGES

Profile = Literal["smoke", "quick", "full"]
Activation = Literal["silu", "leaky_relu", "relu"]
Reduction = Literal["mean", "sum"]
LrSchedule = Literal["constant", "cosine", "cosine_restarts", "plateau"]
BetaSchedule = Literal["constant", "warmup", "cyclical", "adaptive", "adaptive_cyclical"]
TrunkName = Literal["auto", "none", "vgg16", "vgg19", "squeezenet", "alexnet"]
Epochs = Annotated[int, 0, 100_000]
Share = Annotated[float, 0.0, 1.0]
Band = Annotated[float, 1e-6, 1.0]


@dataclass(frozen=True)
class Config:
    """Every value that shapes a run. Flat, so that two runs can be compared field by field.

    Build one with `preset(name, **changes)`; change one with `cfg.replace(beta=0.01)`.
    Sizes are in pixels and durations in epochs, unless the comment says otherwise.
    The annotation says what a field may hold: `Literal` lists the values, `Annotated` gives the
    smallest and the largest; any other number may be 0 or more. Errors are ValueErrors that name
    the field and what it accepts.
    """

    # only a label: preset(name) sets the fields, Config(preset=name) does not
    preset: str = "chest_xray"
    profile: Profile = "full"
    seed: Annotated[int, 0, 2**31 - 1] = 0

    # data
    dataset: Literal["chest_xray", "fashion_mnist", "cifar10", "celeba", "images"] = "chest_xray"
    data_path: str = ""  # "": look in the usual places (files.sources)
    image_size: Annotated[int, 8, 2048] = 128  # pixels, square
    in_channels: Literal[1, 3] = 1  # grey, RGB
    # in this order: CLAHE at the file's own size, then a square, then image_size
    fit: Literal["squash", "pad", "frame", "crop"] = "squash"  # how an image becomes square
    crop: Annotated[float, 0.05, 1.0] = 1.0  # fit="crop" keeps this share of the shorter side
    clahe_clip: Annotated[float, 0.0, 100.0] = 2.0  # 0 switches CLAHE off
    clahe_tiles: Annotated[int, 1, 64] = 8  # per side
    flip: bool = True  # mirror half of the training images
    shift: Annotated[int, 0, 64] = 0  # move each at random, by up to this many pixels
    max_images: int = 0  # limit on the images of each split (val, test: 8 or more); 0: all
    # of the training patients, for a val that is missing or small; as many for a missing test
    val_fraction: Annotated[float, 0.01, 0.5] = 0.1
    # What counts as one patient. "number": the number in the file name, whatever the subtype (the
    # cautious choice); "folder": a folder; "none": an image, and copies are not looked for. Or a
    # regular expression with one group, for the path below the data set's folder; or a file.csv
    # of file names and patients. See files.patients.
    patient_key: str = "subtype"

    # model
    start: Literal["random", "linear"] = "random"  # "linear": from the best linear VAE
    # a map, or a flat vector; "fsq", "vq": a map of quantised codes, see `quantise`
    latent: Literal["spatial", "vector", "fsq", "vq"] = "spatial"
    latent_channels: Annotated[int, 1, 65536] = 64  # of the map, or length of the vector
    levels: Annotated[tuple, 2, 256] = (8, 5, 5, 5)  # "fsq": values that each channel can have
    codebook_size: Annotated[int, 2, 65536] = 512  # "vq": codes to choose from
    commitment: Annotated[float, 0.0, 100.0] = 0.25  # "vq": pull of the codes on the encoder
    widths: Annotated[tuple, 1, 8192] = (32, 64, 128, 256, 512)  # channels after each halving
    stem_kernel: Literal[0, 1, 3, 5, 7, 9, 11, 13, 15] = 7  # 0: the first halving is a block
    block: Literal["residual", "plain"] = "residual"
    shortcut: Literal["conv", "free"] = "free"  # "free" has no parameters
    norm: Literal["group", "batch", "none"] = "group"
    norm_skip: bool = False  # normalise the skip branch as well
    act_encoder: Activation = "silu"
    act_decoder: Activation = "silu"
    upsample: Literal["bilinear", "nearest", "transposed"] = "bilinear"
    convs_per_up: Literal[1, 2] = 2
    attention: Annotated[tuple, 1, 2048] = (16,)  # at these resolutions, in encoder and decoder
    init: Literal["default", "kaiming", "kaiming_out"] = "default"
    zero_init_residual: bool = True  # every residual block starts as its skip
    latent_init_gain: Annotated[float, 0.0, 10.0] = 0.0  # Xavier gain of mu, logvar; 0: not
    logvar_clamp: Annotated[float, 0.0, 80.0] = 15.0  # to [-c, c]; 0: no clamp

    # loss
    l1_weight: float = 1.0
    mse_weight: float = 0.0
    ssim_weight: float = 0.5
    perceptual_weight: float = 0.1
    perceptual_distance: Literal["l1", "squared"] = "l1"
    lpips_weight: float = 0.0
    spectral_weight: float = 0.0
    band_weight: float = 0.0  # energy of three bands of detail, window by window
    # length of the critic's gradient relative to the other terms'; 0: no critic
    critic_share: Annotated[float, 0.0, 10.0] = 0.0
    # with a critic: after this share of all epochs the encoder is frozen and the critic starts
    critic_from: Share = 0.6
    num_scales: Annotated[int, 1, 5] = 1  # resolutions of the pixel terms: 1x, 1/2x, ...
    features: TrunkName = "auto"  # "auto": the profile's, or none with a notice; stored
    recon_weight: float = 1.0
    recon_reduction: Reduction = "mean"
    kl_reduction: Reduction = "mean"
    calibrated: bool = False  # pixel terms as likelihoods, at their best scale
    free_bits: float = 0.0  # nats per latent element
    free_bits_kind: Literal["element", "batch"] = "element"
    beta: float = 0.001  # weight of the KL; losses.beta_elbo compares it with the ELBO's
    beta_start: float = 0.0001
    beta_schedule: BetaSchedule = "warmup"
    beta_warmup: Epochs = 50  # of phase 2, from beta_start to beta
    cycle_epochs: Annotated[int, 2, 100_000] = 8  # length of a cycle
    cycle_cooldown: Annotated[int, 1, 100_000] = 2  # epochs at its start with a lower beta
    cycle_reduction: Share = 0.25  # that lower beta, as a share of beta
    beta_floor: float = 5e-5  # least value of that lower beta,
    beta_floor_growth: float = 1.02  # times this after every cycle
    kl_share_low: Band = 0.02  # "adaptive" holds the KL's share of the loss
    kl_share_high: Band = 0.10  # between these two

    # training
    # phase 1, an autoencoder: z is the mean, beta is 0; with 0 epochs there is only phase 2
    epochs_phase1: Epochs = 50
    # phase 2, the VAE: z is sampled, beta as scheduled
    epochs_phase2: Epochs = 100
    rescale_latents: bool = True  # when phase 2 begins, scale mu as the prior
    epoch_images: int = 0  # a random part of the training images each epoch; 0: all
    batch_size: Annotated[int, 1, 65536] = 32
    optimizer: Literal["adamw", "adam"] = "adamw"
    lr_phase1: Share = 1e-4
    lr_phase2: Share = 5e-5
    lr_schedule_phase1: LrSchedule = "cosine_restarts"
    lr_schedule_phase2: LrSchedule = "plateau"
    lr_warmup: Annotated[float, 0.0, 0.9] = 0.0  # share of a phase
    plateau_patience: Epochs = 5  # without progress, then "plateau" halves lr
    weight_decay: float = 1e-5
    grad_clip: float = 1.0  # largest gradient norm; 0: no clipping
    ema: Annotated[float, 0.0, 0.99999] = 0.999  # decay per step
    early_stop: Epochs = 0  # epochs without improvement; 0: never
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    sample_every: Annotated[int, 1, 100_000] = 10

    def __post_init__(self):
        for name, rule in RULES.items():
            object.__setattr__(self, name, rule.checked(name, getattr(self, name)))
        checks.check_together(self)

    def replace(self, **changes) -> "Config":
        """A copy with `changes`. ValueError for an unknown field (it lists the fields), and for
        `attention` at a size that the network does not have.

        Where `image_size` or `widths` change and `attention` is not given, it moves to the nearest
        size, with a warning.
        """
        checks.check_fields(changes, RULES)
        changed = replace(self, **changes)
        if changes.keys().isdisjoint({"attention", "image_size", "widths"}):
            return changed
        found = stage_sizes(changed)[1:]
        attention = checks.occurring(changed.attention, found, given="attention" in changes)
        return replace(changed, attention=attention)

    @property
    def num_epochs(self) -> int:
        return self.epochs_phase1 + self.epochs_phase2

    @property
    def num_codes(self) -> int:
        """Codes to choose from at each place of the map; 0 where codes are not quantised."""
        return {"fsq": math.prod(self.levels), "vq": self.codebook_size}.get(self.latent, 0)

    @property
    def code_channels(self) -> int:
        """Numbers at each place of the code: `latent_channels`, except for "fsq"."""
        return len(self.levels) if self.latent == "fsq" else self.latent_channels

    def to_dict(self) -> dict:
        """Plain numbers, strings, booleans and lists: what JSON and a safe load accept."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """The inverse of `to_dict`. ValueError for an unknown field or a value out of range."""
        checks.check_fields(values, RULES)
        return cls(**values)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Config":
        return cls.from_dict(json.loads(Path(path).read_text()))

    def differences(self, other: "Config") -> dict:
        """{field: (mine, theirs)} for the fields that differ."""
        mine, theirs = self.to_dict(), other.to_dict()
        return {k: (mine[k], theirs[k]) for k in mine if mine[k] != theirs[k]}


def stage_sizes(cfg: Config) -> list[int]:
    """Resolution at the input and after each halving, rounded up: 128 -> 64, 32, 16, 8, 4."""
    sizes = [cfg.image_size]
    for _ in cfg.widths:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


RULES = checks.rules_of(Config) | {"preset": checks.Rule(str, PRESETS)}


def profile() -> str:
    """`VAEKIT_PROFILE`, else "full" where a GPU works, else "quick".

    Raises ValueError for a name that is not a profile.
    """
    name = os.environ.get("VAEKIT_PROFILE", "").strip().lower()
    if not name:
        return "full" if usable_gpu() else "quick"
    return RULES["profile"].checked("VAEKIT_PROFILE", name)


def preset(name: str = "chest_xray", **changes) -> Config:
    """The named preset under the current profile; `changes` override both.

    `None` means "not given". Durations in epochs (the beta warm-up, the sample interval) scale
    with `epochs_phase2`. ValueError for an unknown
    preset, field or value; it lists the choices.
    """
    checks.check_fields(changes, RULES)
    given = {"preset": name} | {k: v for k, v in changes.items() if v is not None}
    # checked here, so that an error names what the caller gave and not what follows from it
    given = {field: RULES[field].checked(field, value) for field, value in given.items()}
    base = Config(preset=given["preset"], **PRESETS[given["preset"]])
    chosen = given.get("profile") or profile()
    # the preset, then what the profile changes, then the caller: the later one wins
    values = {"profile": chosen} | profile_changes(base, chosen, given) | given
    if "widths" not in given:
        # one for each halving of the side; a single pixel is not halved
        size = values.get("image_size", base.image_size)
        values["widths"] = values["widths"][: max(1, size.bit_length() - 1)]
    # what follows from the number of epochs, where nobody has said otherwise
    values = durations(base, values) | values
    return base.replace(**values)


def profile_changes(base: Config, profile_name: str, given: dict) -> dict:
    """The fields that the profile changes to make a run shorter, with rates to match.

    Every profile's own, those for large data sets, limits that only lower the preset's values, and
    last what suits this preset: the later one wins.
    """
    limits = dict(PROFILE_CHANGES[profile_name])
    if given.get("dataset", base.dataset) != "chest_xray":
        limits |= OTHER_SETS[profile_name]
    # never more than the preset has
    for field in AT_MOST & limits.keys():
        limits[field] = min(limits[field], getattr(base, field))
    max_width = limits.pop("max_width", math.inf)
    limits["widths"] = tuple(min(width, max_width) for width in base.widths)
    return limits | PRESET_CHANGES.get((base.preset, profile_name), {})


def durations(base: Config, values: dict) -> dict:
    """Durations in epochs; each keeps its share of the preset's phase 2."""
    share = values.get("epochs_phase2", base.epochs_phase2) / max(base.epochs_phase2, 1)
    return {k: max(least, round(getattr(base, k) * share)) for k, least in DURATIONS.items()}
