"""Frozen ImageNet networks (trunks), and the perceptual and LPIPS distances of their features."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaekit import fast
from vaekit.config import Config

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Spec(NamedTuple):
    """One trunk: `torchvision.models.<builder>`; torchvision's file of its weights (other names
    that begin with the builder's are accepted); the layers of its `features` that each distance
    compares (taps); LPIPS's name for it."""

    builder: str
    url_file: str
    perceptual_taps: tuple
    lpips_taps: tuple = ()
    lpips_head: str = ""


VGG16 = Spec("vgg16", "vgg16-397923af.pth", (3, 8, 15), (3, 8, 15, 22, 29), "vgg")
VGG19 = Spec("vgg19", "vgg19-dcbb9e9d.pth", (3, 8, 17))
ALEXNET = Spec("alexnet", "alexnet-owt-7be5be79.pth", (1, 4, 7), (1, 4, 7, 9, 11), "alex")
SQUEEZENET = Spec(
    "squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", (1, 4, 7), (1, 4, 7, 9, 10, 11, 12), "squeeze"
)
TRUNKS = {"vgg16": VGG16, "vgg19": VGG19, "squeezenet": SQUEEZENET, "alexnet": ALEXNET}
PROFILE_TRUNK = {"full": "vgg16", "quick": "squeezenet", "smoke": "squeezenet"}


class WeightsMissing(FileNotFoundError):
    """The trunk's weights were not found; the message lists the places."""


class Trunk(nn.Module):
    """A frozen ImageNet network, cut after its last tap.

    `trunk(x)`: x float (B, 1 or 3, H, W) in [0, 1] -> {tap index: activation (B, C, h, w)}.
    Grey is repeated to RGB; the network's input normalisation is applied inside.
    """

    def __init__(self, name: str, layers: nn.Sequential, taps: tuple):
        super().__init__()
        self.name = name
        self.taps = taps
        self.layers = layers[: max(taps) + 1]
        for layer in self.layers.modules():
            if isinstance(layer, nn.ReLU):
                # it would overwrite the tap before it
                layer.inplace = False
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        # broadcasts grey to three channels
        h = (x - self.mean) / self.std
        # or the deepest layers would have no pixels
        if min(h.shape[-2:]) < 32:
            h = F.interpolate(h, size=(32, 32), mode="bilinear", align_corners=False)
        out = {}
        for i, layer in enumerate(self.layers):
            h = layer(h)
            if i in self.taps:
                out[i] = h
        return out

    def pooled(self, x: Tensor) -> Tensor:
        """The last tap averaged over space: (B, C) float32, one vector an image."""
        return self(x)[max(self.taps)].float().mean(dim=(2, 3))


def perceptual_distance(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """mean |a - b| ("l1") or mean (a - b)^2 ("squared") over all activations of one tap: (B,)."""
    gap = fast.flatten(a).float() - fast.flatten(b).float()
    return (gap.abs() if kind == "l1" else gap.square()).mean(1)


def lpips_distance(a: Tensor, b: Tensor, head: Tensor) -> Tensor:
    """sum over channels of head * mean over pixels of (unit(a) - unit(b))^2: (B,)."""
    gap = (unit(a) - unit(b)).square().mean((2, 3))  # (B, C)
    # not `@`, which autocast would take to half precision
    return (gap * head).sum(1)


def unit(features: Tensor) -> Tensor:
    """Each pixel's vector of channels, scaled to length 1, in fp32: squares overflow fp16."""
    features = features.float()
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


class FeatureLoss(nn.Module):
    """Perceptual and LPIPS distance from one pass of the trunk over each image.

    `loss(x_hat, x)` -> {"perceptual": (B,), "lpips": (B,)}, those that were asked for; x and x_hat
    float (B, C, H, W) in [0, 1]. Perceptual: mean over taps of `perceptual_distance` (Johnson et
    al. 2016). LPIPS: sum over taps of `lpips_distance` (Zhang et al. 2018). x gets no gradient.
    """

    def __init__(self, trunk: Trunk, perceptual=True, lpips=False, distance="l1"):
        super().__init__()
        from vaekit.files.weights import lpips_head

        spec = TRUNKS[trunk.name]
        self.name = trunk.name
        self.distance = distance
        self.perceptual_taps = spec.perceptual_taps if perceptual else ()
        self.lpips_taps = spec.lpips_taps if lpips else ()
        heads = lpips_head(trunk.name) if lpips else []
        self.heads = nn.ParameterList(nn.Parameter(h, requires_grad=False) for h in heads)
        taps = sorted({*self.perceptual_taps, *self.lpips_taps})
        missing = set(taps) - set(trunk.taps)
        if missing:
            raise ValueError(f"this file of {trunk.name} ends before layer {min(missing)}")
        self.trunk = Trunk(trunk.name, trunk.layers, tuple(taps))

    def forward(self, x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            target = self.trunk(x)
        output = self.trunk(x_hat)
        terms = {}
        if self.perceptual_taps:
            pairs = [(output[tap], target[tap]) for tap in self.perceptual_taps]
            gaps = [perceptual_distance(*pair, self.distance) for pair in pairs]
            terms["perceptual"] = sum(gaps) / len(gaps)
        if self.lpips_taps:
            taps = zip(self.lpips_taps, self.heads, strict=True)
            gaps = [lpips_distance(output[tap], target[tap], head) for tap, head in taps]
            terms["lpips"] = sum(gaps)
        return terms


def trunk_name(cfg: Config) -> str:
    """The name of the trunk that `cfg` uses; "none" where no feature term has a weight."""
    if cfg.perceptual_weight == 0 and cfg.lpips_weight == 0:
        return "none"
    return PROFILE_TRUNK[cfg.profile] if cfg.features == "auto" else cfg.features


def feature_loss(cfg: Config, verbose: bool = True) -> FeatureLoss | None:
    """The feature terms of `cfg`, or None where it has none.

    With `features="auto"` and no weights on this machine the terms are off, and a notice says how
    to get the weights. A trunk given by name raises WeightsMissing.
    """
    from vaekit.files.weights import downloads_allowed, load_trunk

    name = trunk_name(cfg)
    if name == "none":
        return None
    wanted = cfg.perceptual_weight > 0, cfg.lpips_weight > 0
    try:
        trunk = load_trunk(name, download=downloads_allowed(cfg.profile))
        return FeatureLoss(trunk, *wanted, cfg.perceptual_distance)
    except WeightsMissing as missing:
        if cfg.features != "auto":
            raise
        if verbose:
            print(f"feature terms are off: {missing}")
        return None
