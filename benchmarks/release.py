"""Release a model: a checkpoint of films128.py as one small file, with its card.

    python benchmarks/release.py DIR/long-0.pt

Needs what films128.py needs, and that it has measured the case. Writes
data/released/NAME.safetensors, its SHA-256 into vaekit/files/release.py, and
data/released/README.md, with numbers measured here or taken from results/films128.json. Prints the
loss from half precision on 64 test films.
"""

import argparse
import hashlib
import json
import os
import re
from pathlib import Path

import films128
import torch
from safetensors.torch import save
from torch import Tensor

import vaekit
from vaekit.data import as_float
from vaekit.files import release
from vaekit.keep.checkpoint import write_atomic
from vaekit.metrics import psnr, ssim
from vaekit.sample import decode_all, encode_all

NAME = "chest_xray_128"
MOST = 25_000_000  # bytes
FEW = 2**14  # numbers: smaller tensors stay float32, a hundredth of the file
MANY = 2**23  # numbers: larger tensors (the encoder's last layer) become integers, -127 to 127
WATCHED, COMPARED = 64, 256  # films: for the cost of half precision; for training against test
ABOUT = {
    "licence": "CC BY 4.0; cite Kermany et al., Cell 172 (2018) 1122-1131",
    "trained on": "chest X-rays of children, Mendeley Data rscbjbr9sj (Kermany et al., CC BY 4.0)",
    "never for": "anything medical: what it draws are synthetic films of nobody",
}
# row of the card: beginning of its name in films128.json
ROWS = {
    "PSNR of reconstructions, dB": "psnr reconstruction",
    "SSIM": "ssim reconstruction",
    "LPIPS (SqueezeNet, which the loss used)": "lpips reconstruction squeezenet",
    "sharpness of reconstructions, real is 1": "sharpness ratio reconstruction",
    "sharpness of samples": "sharpness ratio prior",
    "Fréchet distance (VGG-19), reconstructions": "frechet reconstruction vgg19",
    "Fréchet distance (VGG-19), samples of the prior": "frechet prior vgg19",
    "Fréchet distance (VGG-19), samples of the mixture": "frechet gmm vgg19",
    "precision of the prior's samples (VGG-19)": "precision prior vgg19",
    "coverage by the prior's samples (VGG-19)": "coverage prior vgg19",
}
CARD = """\
# The released model `{name}`

Written by `python benchmarks/release.py`; change it there.

```python
model = vaekit.released("{name}")  # None where the file is not here; a line says so
images = model.decode(vaekit.sample_latents(model, 16, seed=0))
```

**What it is.** The preset `sharp` with `widths={widths}`: {size}×{size} pixels, grey, a code of
{numbers:,} numbers; a linear VAE with a basis at {fit}×{fit} pixels,
and a U-Net that adds detail to its reconstruction.
`{file}`: {megabytes:.1f} MB, safetensors, SHA-256
`{digest}`.
Matrices and convolutions are half precision, the encoder's last layer 8-bit integers with a scale
for each row, small tensors float32. The file holds numbers and a configuration, no code.

**Trained on** {train:,} chest X-rays of children aged one to five from one hospital in Guangzhou
(Kermany et al., *Cell* 172 (2018) 1122–1131;
[Mendeley Data rscbjbr9sj](https://data.mendeley.com/datasets/rscbjbr9sj), CC BY 4.0), from a copy
at 224×224 pixels that does not keep their aspect.
{images_seen:,} images, {hours:.2f} hours of one
core ({processor}, {precision}), seed {seed}. Judged by {test:,} films of other patients.

**Licence.** CC BY 4.0, as the data: if you pass on the file or its pictures, name Kermany et al. as
above, and this project.

## It must not be used

- for anything medical: no diagnosis, no triage, no treatment, no measurement, no advice;
- to train or test a system that is meant for that, or to add to its data;
- to teach or examine how films are read: its pictures look like films but show no real chest;
- as a real film, or without saying that it is synthetic;
- to find out who was in its data (see below).

It was trained on children of one place, two labels and one kind of film. It favours common features
of these films; rare ones are drawn wrongly or not at all.

## Numbers

From `vaekit/lessons/results/films128.json`, which `python benchmarks/films128.py` writes, with
the weights in full precision.

| | PCA, same number of latents | `{name}` | N | real against real |
| --- | --- | --- | --- | --- |
{rows}

The Fréchet distances are **not FIDs**: those need Inception. KL: {kl:,} nats an image (PCA:
{pca_kl}).

What the file costs, on {watched} test films: PSNR {full[0]:.4f} dB before and {packed[0]:.4f}
after, SSIM {full[1]:.5f} and {packed[1]:.5f}.

## Does it show its training films?

- *Samples.* {samples} from the prior: the distance of each to the nearest training film, beside
  that of test films. {copies} `closer` is 0.5 if samples are no nearer than test films, and
  larger if they are nearer. `authentic` is the share of samples farther from their nearest film
  than that film is from its own nearest neighbour. Such a check can raise an alarm; it cannot prove
  that nothing was memorised.
- *The basis* holds {numbers:,} directions fitted to {train:,} films and their mirror images. The
  largest |cosine| of a direction with a training film is {cosine_train:.3f}, with a test film
  {cosine_test:.3f} ({compared_basis} films each, less the mean; a film itself would have 1).
- *Membership.* It reconstructs training films with {seen:.2f} dB and films of other patients with
  {unseen:.2f} ({compared} each). From this difference, someone who already has a film can
  guess whether it was among them.
"""


def pack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as the file stores them: see FEW and MANY; `release.restored` reverses it."""
    packed = {}
    for key, value in state.items():
        value = value.detach().cpu().contiguous()
        if value.numel() < FEW:
            packed[key] = value.float()
        elif value.numel() < MANY:
            packed[key] = value.half()
        else:
            scale = value.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            packed[key] = (value / scale).round().to(torch.int8)
            packed[key + release.SCALE] = scale
    return packed


def write(file: Path, cfg: vaekit.Config, packed: dict[str, Tensor]) -> str:
    """Write the file; returns its SHA-256. SystemExit if it is too large to release."""
    about = {"config": cfg.replace(data_path="").to_dict()} | ABOUT
    # one entry: several come in any order, and each has its own SHA-256
    content = save(packed, {"vaekit": json.dumps(about)})
    if len(content) > MOST:
        raise SystemExit(f"{file.name} would have {len(content) / 1e6:.1f} MB, the most is 25")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, content)
    return hashlib.sha256(content).hexdigest()


def remember(name: str, digest: str, source: Path) -> None:
    """Write `digest` into the table RELEASED of `source`."""
    text, found = re.subn(rf'("{name}"): "\w*"', rf'\1: "{digest}"', source.read_text())
    if found != 1:
        raise SystemExit(f"{source} has no line for {name}")
    write_atomic(source, text.encode())


def quality(model, images: Tensor) -> tuple[float, float]:
    """Mean PSNR and SSIM of the reconstructions."""
    rebuilt = decode_all(model, encode_all(model, images)[0])
    real = as_float(images)
    return psnr(rebuilt, real).mean().item(), ssim(rebuilt, real).mean().item()


def largest_cosine(linear, images: Tensor) -> float:
    """The largest |cosine| of a direction of the basis with an image, both minus the mean."""
    along, centred = linear.coordinates(as_float(images))
    return (along.abs() / centred.norm(dim=1, keepdim=True)).max().item()


def measure(cfg: vaekit.Config, state: dict[str, Tensor], packed: dict[str, Tensor], data) -> dict:
    """What the file's precision costs, and whether basis or reconstructions show training films."""
    model = vaekit.VAE(cfg).eval().requires_grad_(False)
    watched = films128.few(data.test, WATCHED)
    model.load_state_dict(state)
    found = {"full": quality(model, watched)}
    model.load_state_dict(release.restored(packed))
    found |= {"packed": quality(model, watched), "watched": len(watched)}
    n = min(COMPARED, len(data.test), len(data.train))
    for name, split in {"seen": data.train, "unseen": data.test}.items():
        found[name] = quality(model, films128.few(split, n))[0]
    m = min(len(data.test), len(data.train))
    for name, split in {"cosine_train": data.train, "cosine_test": data.test}.items():
        found[name] = largest_cosine(model.linear, films128.few(split, m))
    return found | {"compared": n, "compared_basis": m}


def table(scores: dict, pca: dict) -> str:
    lines = []
    for title, key in ROWS.items():
        if key in scores:
            value, _, _, n, *floor = scores[key]
            digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 0
            cells = [pca.get(key, [None])[0], value]
            cells = ["" if cell is None else f"{cell:,.{digits}f}" for cell in cells]
            cells += [f"{n:,}", f"{floor[0]:,.{digits}f}" if floor else ""]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def card(file: Path, digest: str, cfg: vaekit.Config, case: dict, pca: dict, found: dict) -> str:
    said = [
        f"In {judge}: closer {m['closer']:.2f} (p {m['p']:.2g}), authentic {m['authentic']:.2f},"
        f" {'MEMORISES' if m['memorises'] else 'no alarm'}."
        for judge, m in case["copies"].items()
    ]
    named = "train test images_seen processor precision seed kl"
    known = {key: case[key] for key in named.split()}
    shape = {"size": cfg.image_size, "numbers": cfg.latent_channels, "fit": min(64, cfg.image_size)}
    shape["widths"] = cfg.widths
    return CARD.format(
        **known,
        **shape,
        **found,
        name=file.stem,
        file=file.name,
        digest=digest,
        megabytes=file.stat().st_size / 1e6,
        hours=case["core_seconds"] / 3600,
        rows=table(case["scores"], pca.get("scores", {})),
        pca_kl=f"{pca['kl']:,}" if pca else "not measured",
        samples=films128.NUM_SAMPLES,
        copies=" ".join(said),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--name", default=NAME)
    given = parser.parse_args()
    results = json.loads(films128.RESULTS.read_text()) if films128.RESULTS.exists() else {}
    case = given.checkpoint.stem.replace("-", "/")
    if case not in results:
        raise SystemExit(f"no card without numbers: {films128.RESULTS.name} has no {case}")
    saved = torch.load(given.checkpoint, weights_only=True, map_location="cpu")["trainer"]
    cfg = vaekit.Config.from_dict(saved["config"])
    packed = pack(saved["ema"])
    films = Path(os.environ["VAEKIT_DATA"]) / "chest_xray_224"
    found = measure(cfg, saved["ema"], packed, vaekit.load_data(cfg.replace(data_path=str(films))))
    file = release.FOLDER / f"{given.name}.safetensors"
    digest = write(file, cfg, packed)
    remember(given.name, digest, Path(release.__file__))
    text = card(file, digest, cfg, results[case], results.get("pca/0", {}), found)
    write_atomic(file.with_name("README.md"), text.encode())
    print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB, SHA-256 {digest}")
    print(f"PSNR on {found['watched']} test films: {found['full'][0]:.4f} dB before,"
          f" {found['packed'][0]:.4f} after; SSIM {found['full'][1]:.6f},"
          f" {found['packed'][1]:.6f}")  # fmt: skip
    print(f"training films {found['seen']:.2f} dB, test films {found['unseen']:.2f} dB;"
          f" largest |cosine| of the basis {found['cosine_train']:.3f},"
          f" {found['cosine_test']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
