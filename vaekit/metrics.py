"""How good are the images? Numbers that carry their N, their network and their floor."""

import contextlib
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaekit.config import Config, profile
from vaekit.distances import (  # noqa: F401 (frechet_distance: for those who look for it here)
    NEAREST,
    frechet_distance,
    gaussian_frechet,
    jackknife_error,
    kernel_distance,
    precision_recall,
    principal_axes,
)
from vaekit.features import (
    FeatureLoss,
    Trunk,
    WeightsMissing,
    load_trunk,
    trunk_name,
    weight_places,
)  # fmt: skip
from vaekit.losses import mse_per_image, ssim_per_image

PSNR_CAP = 100.0  # dB, for identical images
MAX_IMAGES = 2000  # of a set, for its distances: they need every pair
PIXELS = "pixels 32x32"  # the judge where no network is to be had
INCEPTION_FILE = "*inception-2015-12-05-6726825d.pth"
COLUMNS = ("metric", "subject", "value", "low", "high", "n", "network", "floor")


def pixels_of(images) -> Tensor:
    """The (N, C, H, W) tensor of a Split, or the tensor itself; ValueError for another shape."""
    images = getattr(images, "images", images)
    if images.dim() != 4:
        raise ValueError(f"images should be (N, C, H, W), not {tuple(images.shape)}")
    return images


def as_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [0, 1]; floating images only become float32."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def chunks(images, batch_size: int = 64, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Float batches (B, C, H, W) in [0, 1] of a Split or a uint8 or float tensor, in order."""
    images = pixels_of(images)
    for start in range(0, len(images), batch_size):
        yield as_float(images[start : start + batch_size].to(device))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients; gives the model's device and restores its mode."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(was)


# ---- per image: (B, C, H, W) float in [0, 1] -> (B,) float32 -------------------------------------


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,): -10 log10(mean squared error), at most 100."""
    return -10 * mse_per_image(x_hat, x).clamp(min=10 ** (-PSNR_CAP / 10)).log10()


def ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Structural similarity, (B,), 1 for identical images: `losses.ssim_per_image`."""
    return ssim_per_image(x_hat, x)


def lpips_squeeze(x_hat: Tensor, x: Tensor, judge: FeatureLoss, batch_size: int = 32) -> Tensor:
    """LPIPS v0.1 on SqueezeNet, (B,), 0 for identical images, in chunks of `batch_size`.

    `judge` comes from `load_judge`. Images below 128 px are enlarged bilinearly to 128 first.
    Source: Zhang et al. 2018, arXiv 1801.03924.
    """
    with torch.no_grad():
        pairs = zip(x_hat.split(batch_size), x.split(batch_size), strict=True)
        steps = [judge(at_least(a.float(), 128), at_least(b.float(), 128))["lpips"]
                 for a, b in pairs]  # fmt: skip
        return torch.cat(steps)


def at_least(x: Tensor, side: int) -> Tensor:
    """Enlarged bilinearly so that the shorter side has `side` pixels; larger images unchanged."""
    scale = side / min(x.shape[-2:])
    if scale <= 1:
        return x
    size = [round(s * scale) for s in x.shape[-2:]]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def to_grey(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), weights of ITU-R 601 (as cv2); grey is returned as it is."""
    if x.shape[1] != 3:
        return x
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def sharpness(x: Tensor) -> Tensor:
    """Variance over pixels of the 3x3 four-neighbour Laplacian of the grey image, (B,).

    Pixels in [0, 1]: times 255^2 it is cv2's on 0..255, but for the border, left out here.
    """
    kernel = x.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).float().view(1, 1, 3, 3)
    edges = F.conv2d(to_grey(x.float()), kernel)
    return edges.flatten(1).var(1, correction=0)


def brightness(x: Tensor) -> Tensor:
    """Mean over pixels and channels, (B,), in [0, 1]."""
    return x.float().flatten(1).mean(1)


def contrast(x: Tensor) -> Tensor:
    """Standard deviation over pixels and channels, (B,), at most 0.5."""
    return x.float().flatten(1).std(1, correction=0)


def low(x: Tensor) -> Tensor:
    """The darkest value of each image, (B,)."""
    return x.float().flatten(1).amin(1)


def high(x: Tensor) -> Tensor:
    """The brightest value of each image, (B,)."""
    return x.float().flatten(1).amax(1)


APPEARANCE = {"sharpness": sharpness, "brightness": brightness, "contrast": contrast,
              "range low": low, "range high": high}  # fmt: skip


def collect(results: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Per-image results of many batches -> {name: (N,) float32 on the CPU}."""
    parts: dict[str, list[Tensor]] = {}
    for result in results:
        for name, values in result.items():
            parts.setdefault(name, []).append(values.float().cpu())
    return {name: torch.cat(values) for name, values in parts.items()}


def appearance(x: Tensor) -> dict[str, Tensor]:
    """Sharpness, brightness, contrast and range of each image: {name: (B,)}."""
    return {name: measure(x) for name, measure in APPEARANCE.items()}


def sharpness_ratio(images, real) -> float:
    """Mean sharpness of `images` over that of `real`: below 1 is blur, above 1.1 is noise."""
    means = [collect({"s": sharpness(x)} for x in chunks(s))["s"].mean() for s in (images, real)]
    return (means[0] / means[1]).item()


@torch.no_grad()
def radial_power_spectrum(images, batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies in cycles per pixel, up to 0.5; power), averaged over images and angles.

    Grey, mean removed, Hann window (a film's edges do not wrap around) and normalised, so that
    white noise of deviation s has the power s^2 at every frequency. Rings are 1/side wide.
    """
    height, width = pixels_of(images).shape[-2:]
    window = torch.outer(*(torch.hann_window(n + 2)[1:-1] for n in (height, width)))
    total = torch.zeros(height, width, dtype=torch.float64)
    for x in chunks(images, batch_size):
        x = to_grey(x)[:, 0]
        spectrum = torch.fft.fft2((x - x.mean((1, 2), keepdim=True)) * window)
        total += spectrum.abs().square().sum(0).double()
    total /= len(pixels_of(images)) * window.square().sum()
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    ring = (radius * max(height, width)).round().long().flatten()
    power = torch.bincount(ring, total.flatten()) / torch.bincount(ring)
    last = max(height, width) // 2
    return np.arange(1, last + 1) / max(height, width), power[1 : last + 1].numpy()


# ---- judges: images -> feature vectors -----------------------------------------------------------

_told: set[str] = set()  # a notice is given once a session


def _trunk_or_notice(name: str, so: str, download: bool | None) -> Trunk | None:
    try:
        return load_trunk(name, download=profile() != "smoke" if download is None else download)
    except WeightsMissing as missing:
        if name not in _told:
            print(f"{so}: {missing}")
        _told.add(name)


def load_judge(device="cpu", download: bool | None = None) -> FeatureLoss | None:
    """The network that judges: SqueezeNet with LPIPS's linear layers, whatever the trainer used.

    None, with a notice (once a session) that says how to get them, where its weights are nowhere
    to be had. download: None means in every profile but smoke.
    """
    trunk = _trunk_or_notice("squeezenet", f"no LPIPS, and distances on {PIXELS}", download)
    return trunk and FeatureLoss(trunk, perceptual=False, lpips=True).to(device)


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
            x, y = as_float(split.images[i].to(device)), split.labels[i].to(device)
            optimiser.zero_grad()
            loss(judge(x), y).backward()
            optimiser.step()
    return judge.eval().requires_grad_(False)


def network_name(judge: nn.Module | None) -> str:
    """What a row says of its judge: a VGG that is cut early says where."""
    if judge is None or not isinstance(judge, Trunk):
        return PIXELS if judge is None else judge.name
    cut = "" if judge.name == "squeezenet" else f" to layer {max(judge.taps)}"
    return f"{judge.name}{cut} (ImageNet)"


def _features_of(batches: Iterable[Tensor], judges: list) -> list[np.ndarray]:
    """(N, D) of each judge, from one pass over the batches."""
    parts: list[list] = [[] for _ in judges]
    for x in batches:
        for judge, found in zip(judges, parts, strict=True):
            if judge is None:
                f = F.interpolate(x.cpu(), (32, 32), mode="bilinear", antialias=True).flatten(1)
            else:
                y = x.to(next(judge.parameters()).device)
                f = judge.pooled(at_least(y, 64) if isinstance(judge, Trunk) else y)
            found.append(f.cpu().double().numpy())
    return [np.concatenate(found) for found in parts]


@torch.no_grad()
def feature_vectors(images, trunk: nn.Module | None = None, batch_size: int = 64) -> np.ndarray:
    """(N, D) float64: the trunk's last layer averaged over space, SqueezeNet's D = 512.

    Images at their own size, at least 64 px (smaller ones enlarged bilinearly), streamed from
    uint8. trunk: one of `load_judges`; None: the pixels themselves at 32x32, no network.
    """
    return _features_of(chunks(images, batch_size), [trunk])[0]


# ---- FID and KID: Inception features and nothing else --------------------------------------------


def load_inception() -> nn.Module:
    """torch-fidelity's Inception: uint8 (B, 3, H, W) -> (B, 2048).

    Weights from VAEKIT_WEIGHTS, attached inputs, the hub cache or a download; WeightsMissing
    where they or the package torch-fidelity are not there.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    found = [f for place in weight_places() for f in sorted(place.glob(INCEPTION_FILE))]
    try:
        path = str(found[0]) if found else None
        return NoTrainInceptionV3("inception-v3-compat", ["2048"], path)
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
    return torch.cat([network((255 * x).round().byte().expand(-1, 3, -1, -1)).double()
                      for x in chunks(images)])  # fmt: skip


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


# ---- the evaluation ------------------------------------------------------------------------------


def row(metric: str, subject: str, value: float, low=None, high=None, n: int = 0,
        network: str = "", floor=None) -> dict[str, Any]:  # fmt: skip
    """One row of the evaluation, keys as in COLUMNS; None where there is no such number."""
    return dict(zip(COLUMNS, (metric, subject, value, low, high, n, network, floor), strict=True))


def mean_row(metric: str, subject: str, values: Tensor, network: str = "") -> dict:
    """The mean of values (N,), low and high at 1.96 standard errors of the mean either side."""
    mean, n = values.double().mean().item(), len(values)
    error = 1.96 * values.double().std().item() / n**0.5 if n > 1 else 0.0
    return row(metric, subject, mean, mean - error, mean + error, n, network)


def ratio_row(metric: str, subject: str, top: Tensor, bottom: Tensor, paired: bool) -> dict:
    """mean(top) / mean(bottom), low and high at 1.96 standard errors (delta method).

    paired: both are of the same films, whose common spread then cancels.
    """
    a, b = top.double(), bottom.double()
    ratio = (a.mean() / b.mean()).item()
    spread = (a - ratio * b).var() / len(a) if paired else (
        a.var() / len(a) + ratio**2 * b.var() / len(b))  # fmt: skip
    error = 1.96 * (spread.sqrt() / b.mean()).item()
    return row(metric, subject, ratio, ratio - error, ratio + error, len(a))


def _appearance_rows(subject: str, found: dict, real: dict, paired: bool) -> list[dict]:
    rows = [mean_row(name, subject, found[name]) for name in APPEARANCE]
    top, bottom = found["sharpness"], real["sharpness"]
    return rows + [ratio_row("sharpness ratio", subject, top, bottom, paired)]


def distance_rows(fakes: dict[str, np.ndarray], real: np.ndarray, others: np.ndarray,
                  network: str, seed: int = 0) -> list[dict]:  # fmt: skip
    """Distances of each {subject: (N, D)} from `real`; the floor: real films `others` from `real`.

    All sets are cut at random to the smallest (and to 2,000), so that every value and floor has
    the same N, directions and bias. Metrics: frechet, frechet excess (its value less its floor),
    kernel, precision, recall, density, coverage. low, high: 1.96 standard errors (jackknife)
    either side, within what the metric can be. ValueError below 4 images.
    """
    sets, rng = [real, others, *fakes.values()], np.random.default_rng(seed)
    n = min(MAX_IMAGES, *map(len, sets))
    real, others, *cut = (s[rng.permutation(len(s))[:n]] for s in sets)
    axes, k = principal_axes(real, n), min(NEAREST, n // 4)

    def measure(real, fake, others):
        value, floor = (gaussian_frechet(real @ axes, s @ axes) for s in (fake, others))
        return [value, value - floor, kernel_distance(real, fake), *precision_recall(real, fake, k)]

    pcs, near, inf = f"{network}, {axes.shape[1]} PCs", f"{network}, k={k}", np.inf
    names = [("frechet", pcs, 0, inf), ("frechet excess", pcs, -inf, inf),
             ("kernel", network, -inf, inf), ("precision", near, 0, 1), ("recall", near, 0, 1),
             ("density", near, 0, inf), ("coverage", near, 0, 1)]  # fmt: skip
    rows, floors = [], measure(real, others, others)
    for subject, fake in zip(fakes, cut, strict=True):
        values = measure(real, fake, others)
        errors = 1.96 * jackknife_error(measure, real, fake, others, rng=rng)
        for (name, judge, least, most), v, e, floor in zip(
                names, values, errors, floors, strict=True):  # fmt: skip
            ends = np.clip([v - e, v + e], least, most).tolist()
            rows.append(row(name, subject, v, *ends, n, judge, floor))
    return [r for i in range(len(names)) for r in rows[i :: len(names)]]  # metric by metric


def frechet_row(subject: str, features: np.ndarray, real: np.ndarray, others: np.ndarray,
                network: str, seed: int = 0) -> dict:  # fmt: skip
    """The Fréchet row of `distance_rows`, for one set of `features`."""
    return distance_rows({subject: features}, real, others, network, seed)[0]


def compare_images(x_hat: Tensor, x: Tensor, judge: FeatureLoss | None) -> dict[str, Tensor]:
    """PSNR, SSIM and, with a judge, LPIPS of each pair: {name: (B,)}."""
    found = {"psnr": psnr(x_hat, x), "ssim": ssim(x_hat, x)}
    return found | ({"lpips": lpips_squeeze(x_hat, x, judge)} if judge is not None else {})


def _shuffled(images: Tensor, n: int, seed: int) -> Tensor:
    order = np.random.default_rng(seed).permutation(len(images))[:n]
    return images[torch.from_numpy(order)]


def _reference(test: Tensor, val, seed: int) -> tuple[Tensor, Tensor]:
    """Disjoint (real, others), shuffled: test and val, or without val the two halves of test."""
    n = min(len(test), MAX_IMAGES)
    if val is not None:
        return _shuffled(test, n, seed), _shuffled(pixels_of(val), n, seed)
    return _shuffled(test, 2 * n, seed).tensor_split(2)


def _pair_rows(model, test: Tensor, judge, size: int, device) -> tuple[list[dict], dict]:
    """Rows of reconstructions and real films, and the appearance of every real film."""
    found, real = [], []
    for x in chunks(test, size, device):
        x_hat = model.reconstruct(x)
        found.append(compare_images(x_hat, x, judge) | appearance(x_hat))
        real.append(appearance(x))
    found, real = collect(found), collect(real)
    networks = {"lpips": "squeezenet, LPIPS v0.1"}
    rows = [mean_row(name, "reconstruction", found[name], networks.get(name, ""))
            for name in found if name not in APPEARANCE]  # fmt: skip
    rows += _appearance_rows("reconstruction", found, real, paired=True)
    return rows + [mean_row(name, "real", values) for name, values in real.items()], real


def evaluate(model, test, cfg: Config, val=None, samples: dict | None = None, fid: bool = False,
             judges: Iterable = ("squeezenet",)) -> list[dict]:  # fmt: skip
    """Rows (keys: COLUMNS) for reconstructions of `test` from the mean, real films and `samples`.

    test, val: Split or (N, C, H, W), uint8 or float; samples: {name: images}. Distances compare
    test with reconstructions of *other* films, `val` (training films do as well: more of them);
    without `val`, one half of test with reconstructions of the other half. They come once for
    each of `judges` (see `load_judges`), all at the N of the smallest set of 4 images or more,
    with their floor; see `distance_rows`. Means carry -+ 1.96 standard errors. `fid` adds FID and
    KID of `samples`.
    """
    test, samples, size = pixels_of(test), samples or {}, cfg.batch_size
    download = cfg.profile != "smoke"
    with evaluating(model) as device:
        rows, real_looks = _pair_rows(model, test, load_judge(device, download), size, device)
        for name, images in samples.items():
            looks = collect(map(appearance, chunks(images, size)))
            rows += _appearance_rows(name, looks, real_looks, paired=False)
        real, others = _reference(test, val, cfg.seed)
        few = [name for name, images in samples.items() if len(pixels_of(images)) < 4]
        sets = {name: _shuffled(pixels_of(images), MAX_IMAGES, cfg.seed)
                for name, images in samples.items() if name not in few}  # fmt: skip
        enough = min(len(real), len(others)) >= 4
        if few or not enough:
            print(f"no distances of {', '.join(few) if enough else 'anything'}: below 4 images")
        if enough:
            streams = {"reconstruction": map(model.reconstruct, chunks(others, size, device))}
            streams |= {name: chunks(images, size) for name, images in sets.items()}
            found = load_judges(judges, device, download)
            rows += _judged_rows(streams, real, others, found, size, cfg.seed)
            rows += _inception_rows(sets, real, others) if fid else []
    trained_with = trunk_name(getattr(model, "cfg", cfg))
    for r in rows:  # a judge that the trainer has listened to flatters: both are named
        r["network"] += r["network"] and f"; trained with {trained_with}"
    return rows


def _judged_rows(streams: dict, real: Tensor, others: Tensor, judges: list, size: int, seed: int):
    rows, references = [], [_features_of(chunks(s, size), judges) for s in (real, others)]
    fakes = {name: _features_of(stream, judges) for name, stream in streams.items()}
    for i, judge in enumerate(judges):
        vectors = {name: found[i] for name, found in fakes.items()}
        rows += distance_rows(vectors, *(r[i] for r in references), network_name(judge), seed)
    return rows


def _inception_rows(sets: dict, real: Tensor, others: Tensor) -> list[dict]:
    rows, network, name = [], load_inception(), "inception, all 2048"
    real, others = (inception_vectors(s, network) for s in (real, others))
    for subject, images in sets.items():
        fake = inception_vectors(images, network)
        n = min(len(real), len(others), len(fake))
        a, b, c = real[:n], fake[:n], others[:n]
        rows.append(row("fid", subject, fid(a, b), n=n, network=name, floor=fid(a, c)))
        (value, error), (floor, _) = kid(a, b), kid(a, c)
        rows.append(row("kid", subject, value, value - 1.96 * error, value + 1.96 * error, n, name,
                        floor))  # fmt: skip
    return rows


def format_table(rows: list[dict]) -> str:
    """The rows as aligned text that is also a Markdown table; None is left blank."""

    def text(value) -> str:
        if isinstance(value, float):
            return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}"
        return "" if value is None else str(value)

    table = [list(COLUMNS), *([text(r[c]) for c in COLUMNS] for r in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
             for line in table]  # fmt: skip
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


class Cases(NamedTuple):
    """Indices of the best (best first) and worst (worst first) films, and every film's value."""

    best: list[int]
    worst: list[int]
    values: Tensor  # (N,)
    metric: str


def rank_cases(model, split, k: int = 4, batch_size: int = 64) -> Cases:
    """The k best and k worst reconstructed (from the mean) films of `split`, by SSIM."""
    with evaluating(model) as device:
        found = collect({"ssim": ssim(model.reconstruct(x), x)}
                        for x in chunks(split, batch_size, device))["ssim"]  # fmt: skip
    order = found.argsort(descending=True).tolist()
    return Cases(order[:k], order[::-1][:k], found, "SSIM")
