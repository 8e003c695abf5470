"""Pretrained trunks: where their weights come from, and one forward pass for every loss."""

import importlib.util
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaekit.config import Config

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Spec(NamedTuple):
    """What is to be known about one trunk; indices count torchvision's `features` layers."""

    builder: str  # torchvision.models.<builder>; its weights may go by any name that begins so
    url_file: str  # torchvision's own name for them
    perceptual_taps: tuple  # where the feature loss listens
    lpips_taps: tuple = ()
    lpips_head: str = ""


TRUNKS = {
    "vgg16": Spec("vgg16", "vgg16-397923af.pth", (3, 8, 15), (3, 8, 15, 22, 29), "vgg"),
    "vgg19": Spec("vgg19", "vgg19-dcbb9e9d.pth", (3, 8, 17)),
    "squeezenet": Spec("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", (1, 4, 7),
                       (1, 4, 7, 9, 10, 11, 12), "squeeze"),
    "alexnet": Spec("alexnet", "alexnet-owt-7be5be79.pth", (1, 4, 7), (1, 4, 7, 9, 11), "alex"),
}  # fmt: skip
PROFILE_TRUNK = {"full": "vgg16", "quick": "squeezenet", "smoke": "squeezenet"}


class WeightsMissing(FileNotFoundError):
    """The trunk's weights are in none of the places; the message lists them."""


class Trunk(nn.Module):
    """A frozen ImageNet network, cut after the last layer that is listened to.

    `trunk(x)`: x float (B, 1 or 3, H, W) in [0, 1] -> {tap index: activation (B, C, h, w)}.
    Grey is repeated to RGB; the network's own input normalisation happens inside.
    """

    def __init__(self, name: str, layers: nn.Sequential, taps: tuple, oxford: bool = False):
        super().__init__()
        self.name, self.taps, self.layers = name, taps, layers[: max(taps) + 1]
        for layer in self.layers.modules():
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # an in-place ReLU would overwrite a tap before it
        # Oxford's own VGG weights want 0..255 minus the mean; its features are that much larger.
        std = (1 / 255,) * 3 if oxford else IMAGENET_STD
        self.feature_scale = 1 / (255 * sum(IMAGENET_STD) / 3) if oxford else 1.0
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        h = (x - self.mean) / self.std  # broadcasts grey to three channels
        if min(h.shape[-2:]) < 32:  # below this the deepest layers have no pixels left
            h = F.interpolate(h, size=(32, 32), mode="bilinear", align_corners=False)
        out = {}
        for i, layer in enumerate(self.layers):
            h = layer(h)
            if i in self.taps:
                out[i] = h * self.feature_scale if self.feature_scale != 1 else h
        return out

    def pooled(self, x: Tensor) -> Tensor:
        """The last tap averaged over space: (B, C) float32, one vector an image."""
        return self(x)[max(self.taps)].float().mean(dim=(2, 3))


def load_trunk(name: str, path: str | Path | None = None, download: bool = True,
               taps: tuple = ()) -> Trunk:  # fmt: skip
    """The frozen trunk `name` on the CPU in fp32, cut after its last tap.

    `taps` default to every layer that the perceptual loss or LPIPS listens to, as far as the
    file reaches. Raises WeightsMissing, or ValueError where the file holds something else.
    """
    from torchvision import models

    from vaekit.files.weights import find_weights

    file = find_weights(name, path, download)
    spec, prefix = TRUNKS[name], "features."
    layers = getattr(models, spec.builder)(weights=None).features
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        state = {k.removeprefix(prefix): v.float() for k, v in state.items() if prefix in k}
        # the last convolution in the file, and the ReLU after it
        last = max((int(k.split(".")[0]) for k in state), default=0) + 2
        layers = layers[:last]
        layers.load_state_dict(state, strict=True)
    except (RuntimeError, UnpicklingError) as error:
        raise ValueError(f"{file} does not hold torchvision's {spec.builder}") from error
    wanted = taps or sorted({*spec.perceptual_taps, *spec.lpips_taps})
    oxford = name == "vgg19" and "conv1_1" in file.name
    return Trunk(name, layers, tuple(t for t in wanted if t < last), oxford)


def lpips_head(name: str) -> list[Tensor]:
    """LPIPS v0.1's linear weights, one (C,) per tap, from the `lpips` package's own file, or from
    lpips*<head>*.pth where weights are looked for.

    Source: Zhang et al. 2018, arXiv 1801.03924. Raises ValueError for a trunk without a head,
    WeightsMissing where neither is there.
    """
    from vaekit.files.weights import weight_places

    head = TRUNKS[name].lpips_head
    if not head:
        raise ValueError(f"LPIPS has no linear layers for {name}; it has for vgg16, squeezenet,"
                         f" alexnet")  # fmt: skip
    package = importlib.util.find_spec("lpips")
    files = [Path(package.origin).parent / "weights/v0.1" / f"{head}.pth"] if package else []
    files += [f for place in weight_places() for f in sorted(place.glob(f"lpips*{head}*.pth"))]
    if not files:
        raise WeightsMissing(f"LPIPS needs its linear layers: `pip install lpips`, or its file"
                             f" {head}.pth, as lpips_{head}.pth, in VAEKIT_WEIGHTS")  # fmt: skip
    state = torch.load(files[0], map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"].flatten() for i in range(len(state))]


def _unit(features: Tensor) -> Tensor:
    # in fp32: the sum of squares over hundreds of channels overflows fp16
    features = features.float()
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _flat(features: Tensor) -> Tensor:
    # (B, H*W*C) float32, as channels_last lies in memory: a gradient of another layout is dear
    return features.permute(0, 2, 3, 1).flatten(1).float()


class FeatureLoss(nn.Module):
    """Perceptual and LPIPS distance from one pass of the trunk over each image.

    `loss(x_hat, x)` -> {"perceptual": (B,), "lpips": (B,)} (those that are asked for), x and
    x_hat float (B, C, H, W) in [0, 1]. Perceptual: mean over taps of the mean L1 (or squared)
    distance of activations (Johnson et al. 2016). The target's pass builds no graph.
    """

    def __init__(self, trunk: Trunk, perceptual: bool = True, lpips: bool = False,
                 distance: str = "l1"):  # fmt: skip
        super().__init__()
        spec = TRUNKS[trunk.name]
        self.perceptual_taps = spec.perceptual_taps if perceptual else ()
        self.lpips_taps = spec.lpips_taps if lpips else ()
        heads = lpips_head(trunk.name) if lpips else []
        missing = set(self.perceptual_taps + self.lpips_taps) - set(trunk.taps)
        if missing:
            raise ValueError(f"this file of {trunk.name} ends before layer {min(missing)}")
        for tap, head in zip(self.lpips_taps, heads, strict=True):
            self.register_buffer(f"head{tap}", head)
        self.name, self.size = trunk.name, torch.abs if distance == "l1" else torch.square
        used = tuple(sorted({*self.perceptual_taps, *self.lpips_taps}))
        self.trunk = Trunk(trunk.name, trunk.layers, used, trunk.feature_scale != 1)

    def forward(self, x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            target = self.trunk(x)
        output = self.trunk(x_hat)
        terms = {}
        if self.perceptual_taps:
            gaps = [_flat(output[t]) - _flat(target[t]) for t in self.perceptual_taps]
            terms["perceptual"] = sum(self.size(g).mean(1) for g in gaps) / len(gaps)
        if self.lpips_taps:
            gaps = [(_unit(output[t]) - _unit(target[t])).square() for t in self.lpips_taps]
            heads = [getattr(self, f"head{t}") for t in self.lpips_taps]
            # products and sums, not `@`: autocast lets them alone
            terms["lpips"] = sum((g.mean((2, 3)) * w).sum(1)
                                 for g, w in zip(gaps, heads, strict=True))  # fmt: skip
        return terms


def trunk_name(cfg: Config) -> str:
    """The trunk that `cfg` wants: "none" where no feature term has a weight."""
    if cfg.perceptual_weight == 0 and cfg.lpips_weight == 0:
        return "none"
    return PROFILE_TRUNK[cfg.profile] if cfg.features == "auto" else cfg.features


def feature_loss(cfg: Config, verbose: bool = True) -> FeatureLoss | None:
    """The feature terms of `cfg`, or None where it has none.

    With `features="auto"` and no weights to be had, the terms are off and a notice says how to
    get them; a trunk asked for by name and missing raises WeightsMissing.
    """
    name = trunk_name(cfg)
    if name == "none":
        return None
    wants = {"perceptual": cfg.perceptual_weight > 0, "lpips": cfg.lpips_weight > 0}
    try:
        trunk = load_trunk(name, download=cfg.profile != "smoke")
        return FeatureLoss(trunk, distance=cfg.perceptual_distance, **wants)
    except WeightsMissing as missing:
        if cfg.features != "auto":
            raise
        if verbose:
            print(f"feature terms are off: {missing}")
        return None
