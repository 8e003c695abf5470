"""The networks that judge images: their feature vectors, and FID."""

import time
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaekit.config import profile
from vaekit.data import as_float, chunks
from vaekit.features import FeatureLoss, Trunk, WeightsMissing
from vaekit.files.weights import downloads_allowed, load_trunk, weight_places
from vaekit.judge.rows import mapped
from vaekit.metrics import at_least

PIXELS = "pixels 32x32"  # the judge without any network's weights
INCEPTION_FILE = "*inception-2015-12-05-6726825d.pth"
_told: set[str] = set()  # notices are printed once a session


def load_judge(device="cpu", download: bool | None = None) -> FeatureLoss | None:
    """The judging network: SqueezeNet with LPIPS's linear layers, whatever the training used.

    None without its weights; a notice (once a session) says how to get them. download: None follows
    the profile.
    """
    download = downloads_allowed(profile()) if download is None else download
    try:
        trunk = load_trunk("squeezenet", download=download)
        return FeatureLoss(trunk, perceptual=False, lpips=True).to(device)
    except WeightsMissing as missing:
        _tell_once("squeezenet", f"no LPIPS, and distances on {PIXELS}: {missing}")
        return None


def second_judge(device="cpu") -> FeatureLoss | None:
    """VGG-19 to relu3_4, which is seldom trained with: its feature distance, and its trunk.

    None, with a notice (once a session), without its weights on this machine. They are half a
    gigabyte, and are not downloaded for this.
    """
    try:
        return FeatureLoss(load_trunk("vgg19", download=False)).to(device)
    except (WeightsMissing, ValueError) as error:
        reason = str(error).partition(". ")[0]
        _tell_once("second judge", f"VGG-19 does not judge beside SqueezeNet: {reason}")
        return None


def load_judges(judges: Iterable, device="cpu", download: bool | None = None) -> list:
    """The judges for `feature_vectors`, by name: a trunk of `features.TRUNKS`, or "pixels".

    A module with `name` and `pooled`, such as `train_judge` returns, is kept as it is. A trunk
    without weights is left out with a notice; if none is left, pixels judge. ValueError for an
    unknown name.
    """
    download = downloads_allowed(profile()) if download is None else download
    found = []
    for judge in judges:
        try:
            if isinstance(judge, str) and judge != "pixels":
                judge = load_trunk(judge, download=download)
            found.append(None if judge == "pixels" else judge.to(device))
        except WeightsMissing as missing:
            _tell_once(judge, f"{judge} cannot judge: {missing}")
    return found or [None]


def _tell_once(name: str, notice: str) -> None:
    if name not in _told:
        print(notice)
    _told.add(name)


def network_name(judge: nn.Module | None) -> str:
    """The judge's name in a row; a VGG that is cut early says where."""
    if judge is None:
        return PIXELS
    if not isinstance(judge, Trunk):
        return judge.name
    cut = "" if judge.name == "squeezenet" else f" to layer {max(judge.taps)}"
    return f"{judge.name}{cut} (ImageNet)"


@torch.no_grad()
def feature_vectors(images, trunk: nn.Module | None = None, batch_size: int = 64) -> np.ndarray:
    """(N, D) float64: the trunk's last layer averaged over space, SqueezeNet's D = 512.

    Images at their own size, at least 64 px (smaller ones enlarged bilinearly), streamed from
    uint8. trunk: one of `load_judges`; None: the pixels themselves at 32x32, no network.
    """
    device = "cpu" if trunk is None else next(trunk.parameters()).device

    def seen(x: Tensor) -> np.ndarray:
        x = x.to(device)
        if trunk is None:
            small = F.interpolate(x, (32, 32), mode="bilinear", antialias=True)
            return small.flatten(1).double().numpy()
        x = at_least(x, 64) if isinstance(trunk, Trunk) else x
        return trunk.pooled(x).cpu().double().numpy()

    return np.concatenate(mapped(seen, images, batch_size))


class LabelJudge(nn.Module):
    """A small CNN that classifies the data's own classes.

    x (B, C, H, W) in [0, 1] -> logits (B, classes); `pooled(x)`: its last features, (B, 128).
    """

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.name = f"CNN on {classes} labels"
        layers = [nn.BatchNorm2d(channels)]
        for width in (32, 64, 128, 128):
            layers.append(nn.Conv2d(channels, width, 3, 2, 1))
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.pooled = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pooled(x))


@torch.inference_mode(False)  # it trains, also in a cell without gradients
def train_judge(split, seed: int = 0, epochs: int = 15, max_seconds: float = 60.0) -> LabelJudge:
    """A LabelJudge trained on `split.images` and `split.labels` (training images), frozen, on the
    CPU.

    Cross-entropy with balanced classes, AdamW. The same for the same seed, unless `max_seconds`
    ends it earlier. ValueError below two classes.
    """
    counts = split.labels.bincount()
    if (counts > 0).sum() < 2:
        raise ValueError("a judge needs images of two classes at least")
    end = time.perf_counter() + max_seconds
    loss = nn.CrossEntropyLoss(1 / counts.clamp(min=1).float())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = LabelJudge(split.images.shape[1], len(counts))
        optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3)
        for _ in range(epochs):
            for i in torch.randperm(len(split.labels)).split(64):
                if len(i) == 1 or time.perf_counter() > end:  # batch norm needs two
                    continue
                optimizer.zero_grad()
                loss(judge(as_float(split.images[i])), split.labels[i]).backward()
                optimizer.step()
    return judge.eval().requires_grad_(False)


def load_inception(device: torch.device | str = "cpu") -> nn.Module:
    """torch-fidelity's Inception: uint8 (B, 3, H, W) -> (B, 2048).

    Weights from VAEKIT_WEIGHTS, attached inputs, the hub cache or a download; WeightsMissing
    without them, or without the package torch-fidelity.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    files = [str(f) for place in weight_places() for f in sorted(place.glob(INCEPTION_FILE))]
    file = files[0] if files else None  # None: a download
    try:
        return NoTrainInceptionV3("inception-v3-compat", ["2048"], file).to(device)
    except (ImportError, OSError) as error:
        raise WeightsMissing(
            f"FID needs Inception: `pip install torch-fidelity`, and {INCEPTION_FILE} from a"
            f" download or in a folder that VAEKIT_WEIGHTS names ({error})"
        ) from error


@torch.no_grad()
def fid(real, fake) -> float:
    """FID of images, a Split or (N, C, H, W): Fréchet distance on all 2,048 Inception features, by
    torchmetrics. Grey is repeated. WeightsMissing: see `load_inception`."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(load_inception())
    for images, is_real in ((real, True), (fake, False)):
        for x in chunks(images):
            rgb = (255 * x).round().byte().expand(-1, 3, -1, -1)
            metric.update(rgb, real=is_real)
    return metric.compute().item()
