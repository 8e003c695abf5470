"""Judges: images in batches -> feature vectors, by a network that is named. FID and KID."""

import time
import warnings
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaekit.config import profile
from vaekit.data import as_float, chunks
from vaekit.features import FeatureLoss, Trunk, WeightsMissing, load_trunk
from vaekit.files.weights import weight_places
from vaekit.metrics import at_least

PIXELS = "pixels 32x32"  # the judge where no network is to be had
INCEPTION_FILE = "*inception-2015-12-05-6726825d.pth"
_told: set[str] = set()  # a notice is given once a session


def _trunk_or_notice(name: str, so: str, download: bool | None, make=lambda trunk: trunk):
    """`make` of the trunk `name`; None, with a notice, where weights for either are missing."""
    try:
        download = profile() != "smoke" if download is None else download
        return make(load_trunk(name, download=download))
    except WeightsMissing as missing:
        if name not in _told:
            print(f"{so}: {missing}")
        _told.add(name)


def load_judge(device="cpu", download: bool | None = None) -> FeatureLoss | None:
    """The network that judges: SqueezeNet with LPIPS's linear layers, whatever the trainer used.

    None, with a notice (once a session) that says how to get them, where its weights are nowhere
    to be had. download: None means in every profile but smoke.
    """
    so = f"no LPIPS, and distances on {PIXELS}"
    judge = _trunk_or_notice("squeezenet", so, download, partial(FeatureLoss, perceptual=False,
                                                                 lpips=True))  # fmt: skip
    return judge and judge.to(device)


def load_judges(judges: Iterable, device="cpu", download: bool | None = None) -> list:
    """What `feature_vectors` takes, for each name: a trunk of `features.TRUNKS`, or "pixels".

    A module with `name` and `pooled`, as `train_judge` gives, stays what it is. A trunk without
    weights is left out with a notice; where none is left, pixels judge. ValueError for an unknown
    name.
    """
    found: list = []
    for judge in judges:
        named = isinstance(judge, str) and judge != "pixels"
        module = _trunk_or_notice(judge, f"{judge} cannot judge", download) if named else judge
        if module is not None:
            found.append(None if judge == "pixels" else module.to(device))
    return found or [None]


class LabelJudge(nn.Module):
    """A small CNN that tells the data's own classes apart.

    x (B, C, H, W) in [0, 1] -> logits (B, classes); `pooled(x)`: its last features, (B, 128).
    """

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.name = f"CNN on {classes} labels"
        layers: list[nn.Module] = [nn.BatchNorm2d(channels)]
        for width in (32, 64, 128, 128):
            layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.pooled = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pooled(x))


def train_judge(split, seed: int = 0, epochs: int = 15, max_seconds: float = 60.0,
                device: torch.device | str = "cpu") -> LabelJudge:  # fmt: skip
    """A LabelJudge of `split.images` and `split.labels` (training films), frozen, on `device`.

    Cross-entropy with balanced classes, AdamW. The same for the same seed, unless `max_seconds`
    end it first. ValueError below two classes.
    """
    counts, start = split.labels.bincount(), time.perf_counter()
    if (counts > 0).sum() < 2:
        raise ValueError("a judge needs films of two classes at least")
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        judge = LabelJudge(split.images.shape[1], len(counts)).to(device).train()
        optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3)
        loss = nn.CrossEntropyLoss(1 / counts.clamp(min=1).float()).to(device)
        steps = (i for _ in range(epochs) for i in torch.randperm(len(split.labels)).split(64))
        for i in steps:
            if time.perf_counter() - start > max_seconds:
                break
            if len(i) == 1:  # nothing to normalise by
                continue
            x, y = as_float(split.images[i].to(device)), split.labels[i].to(device)
            optimiser.zero_grad()
            loss(judge(x), y).backward()
            optimiser.step()
    return judge.eval().requires_grad_(False)


def network_name(judge: nn.Module | None) -> str:
    """What a row says of its judge: a VGG that is cut early says where."""
    if not isinstance(judge, Trunk):
        return PIXELS if judge is None else judge.name
    cut = "" if judge.name == "squeezenet" else f" to layer {max(judge.taps)}"
    return f"{judge.name}{cut} (ImageNet)"


def _seen_by(judge: nn.Module | None, x: Tensor) -> Tensor:
    """(B, D) of a batch."""
    if judge is None:
        return F.interpolate(x.cpu(), (32, 32), mode="bilinear", antialias=True).flatten(1)
    x = x.to(next(judge.parameters()).device)
    return judge.pooled(at_least(x, 64) if isinstance(judge, Trunk) else x)


@torch.no_grad()
def features_by(judges: list, batches: Iterable[Tensor]) -> list[np.ndarray]:
    """(N, D) float64 of each judge, from one pass over the batches; see `feature_vectors`."""
    seen = [[_seen_by(judge, x).cpu().double().numpy() for judge in judges] for x in batches]
    return [np.concatenate(parts) for parts in zip(*seen, strict=True)]


def feature_vectors(images, trunk: nn.Module | None = None, batch_size: int = 64) -> np.ndarray:
    """(N, D) float64: the trunk's last layer averaged over space, SqueezeNet's D = 512.

    Images at their own size, at least 64 px (smaller ones enlarged bilinearly), streamed from
    uint8. trunk: one of `load_judges`; None: the pixels themselves at 32x32, no network.
    """
    return features_by([trunk], chunks(images, batch_size))[0]


def load_inception(device: torch.device | str = "cpu") -> nn.Module:
    """torch-fidelity's Inception: uint8 (B, 3, H, W) -> (B, 2048).

    Weights from VAEKIT_WEIGHTS, attached inputs, the hub cache or a download; WeightsMissing
    where they or the package torch-fidelity are not there.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    found = [str(f) for place in weight_places() for f in sorted(place.glob(INCEPTION_FILE))]
    try:
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], found[0] if found else None)
        return network.to(device)
    except (ImportError, OSError) as error:
        raise WeightsMissing(
            f"FID needs Inception: `pip install torch-fidelity`, and {INCEPTION_FILE} from a"
            f" download or in a folder that VAEKIT_WEIGHTS names ({error})"
        ) from error


@torch.no_grad()
def inception_vectors(images, network: nn.Module | None = None) -> Tensor:
    """(N, 2048) float64 of images (N, C, H, W), grey repeated; vectors stay what they are.

    network: of `load_inception`, which is called without it.
    """
    if isinstance(images, Tensor) and images.dim() == 2:
        return images
    network = network or load_inception()
    batches = chunks(images, device=next(network.parameters()).device)
    rgb = ((255 * x).round().byte().expand(-1, 3, -1, -1) for x in batches)
    return torch.cat([network(x).cpu().double() for x in rgb])


def _by_torchmetrics(metric, real: Tensor, fake: Tensor):
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric.compute()


def fid(real, fake) -> float:
    """FID: Fréchet distance on all 2,048 Inception features, by torchmetrics.

    Of images or of their `inception_vectors`; WeightsMissing: see `load_inception`.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, fake = inception_vectors(real), inception_vectors(fake)
    given = nn.Identity()  # the metric gets vectors, made once for all that is asked of them
    given.num_features = real.shape[1]
    return _by_torchmetrics(FrechetInceptionDistance(given), real, fake).item()


def kid(real, fake, subset_size: int = 1000) -> tuple[float, float]:
    """KID and its standard error, from 100 subsets of Inception features, by torchmetrics.

    Of images or of their `inception_vectors`. A subset has at most half of the smaller set: the
    spread over them, scaled as in `jackknife_error`, is the error. ValueError below 4 images,
    WeightsMissing: see `load_inception`.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    n = min(len(real), len(fake))
    m = min(subset_size, n // 2)
    if m < 2:
        raise ValueError(f"a KID of {n} images says nothing")
    real, fake = inception_vectors(real), inception_vectors(fake)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it keeps all vectors
        torch.manual_seed(0)
        metric = KernelInceptionDistance(nn.Identity(), subset_size=m)
        mean, std = _by_torchmetrics(metric, real, fake)
    return mean.item(), std.item() * (m / (n - m)) ** 0.5


def find_trunk(trunk: Trunk | str | None, download: bool = True) -> Trunk | None:
    """The judge's SqueezeNet for "auto", None where its weights are not to be had; else `trunk`."""
    if trunk != "auto":
        return trunk
    judge = load_judge(download=download)
    return judge.trunk if judge is not None else None


class Neighbours(NamedTuple):
    indices: Tensor  # (n, k) into the split, nearest first
    distances: Tensor  # (n, k), Euclidean
    network: str  # what they are distances of


def nearest_neighbours(images, split, k: int = 1, trunk: Trunk | str | None = "auto",
                       batch_size: int = 64, download: bool = True) -> Neighbours:  # fmt: skip
    """The k films of `split` nearest to each of `images`, by feature vector.

    trunk: one from `load_trunk`; "auto": the judge's SqueezeNet if its weights are there, or may
    be downloaded; otherwise, or None, the distance is of pixels at 32x32.
    """
    from sklearn.neighbors import NearestNeighbors

    trunk = find_trunk(trunk, download)
    there, here = (feature_vectors(s, trunk, batch_size) for s in (split, images))
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(there)
    distances, indices = search.kneighbors(here)
    return Neighbours(torch.from_numpy(indices), torch.from_numpy(distances).float(),
                      network_name(trunk))  # fmt: skip
