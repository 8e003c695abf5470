"""The pictures of the README's first screen, and the one that a shared link shows.

    python publish/pictures.py [before_after] [beta] [social] [thumbnails]

before_after  notebooks/before_after.webp: 128 px, two systems trained here on the bundled films
beta          notebooks/beta.webp: what the slider of notebook 08 shows, at eleven betas, as a loop
social        notebooks/social.jpg, 1280x640: samples of the released model, for the repository's
              settings (GitHub: Settings, Social preview)
thumbnails    notebooks/thumbnails/NN.webp: the figure of the cell that is tagged `thumbnail`

Nothing is selected: the first test films, and the first codes of seed 0. About ten minutes of two
cores; finished trainings are kept in out/pictures. Prints what the README says about them.
"""

import io
import sys
from base64 import b64decode
from pathlib import Path

import matplotlib
import nbformat
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

import vaekit
from vaekit import metrics, plots
from vaekit.data import as_float
from vaekit.lessons.beta_slider import BetaSlider, SliderModels
from vaekit.lessons.sweeps import bundled_data
from vaekit.sample import decode_all, encode_all, sample_latents

ROOT = Path(__file__).resolve().parents[1]
OUT, NOTEBOOKS = ROOT / "out" / "pictures", ROOT / "notebooks"
SIZE, NUMBERS, SHOWN = 128, 1024, 5
SHARP = {"widths": (16, 32, 64, 64), "latent_channels": NUMBERS}
PUBLISHED = {"epochs_phase1": 6}
SYSTEMS = {"published": ("chest_xray", PUBLISHED), "sharp": ("sharp", SHARP)}
CROP = (slice(40, 72), slice(28, 60))  # ribs and the border of the heart, four times enlarged
BETAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
MILLISECONDS = 700  # a picture of the loop
THUMBNAIL = (720, 480)  # pixels, at most: the opening picture of a notebook, small in README
TITLE = "Why are my VAE's images blurry?"
BELOW = "vaekit · 11 notebooks · these chest X-rays are samples, of nobody"


def with_crop(x: Tensor) -> Tensor:
    """SHOWN images (SHOWN, 1, S, S), then a part of the first one, four times enlarged."""
    part = x[:1, :, *CROP].repeat_interleave(4, 2).repeat_interleave(4, 3)
    return torch.cat([x, part])


def before_after() -> None:
    data = bundled_data(SIZE)
    films = as_float(data.test.images)
    pca = vaekit.linear_vae(data.train, NUMBERS, mirror=True)
    models = {"PCA": pca}
    for name, (preset, values) in SYSTEMS.items():
        cfg = vaekit.preset(preset, profile="quick", image_size=SIZE, data_path="bundled", **values)
        run = vaekit.fit(cfg, data, out=OUT)
        models[name] = run.model
    rows = {"X-ray": with_crop(films[:SHOWN])}
    for name, model in models.items():
        x_hat = decode_all(model, encode_all(model, films)[0])
        psnr, ssim = (f(x_hat, films).mean() for f in (metrics.psnr, metrics.ssim))
        sharpness = metrics.sharpness_ratio(x_hat, films)
        print(f"{name}: {psnr:.2f} dB, SSIM {ssim:.3f}, sharpness {sharpness:.2f}, N {len(films)}")
        rows[f"{name} {psnr:.1f} dB"] = with_crop(x_hat[:SHOWN])
    for name, model in models.items():
        samples = decode_all(model, sample_latents(model, SHOWN, seed=0))
        rows[f"{name}, new"] = with_crop(samples)
    save(plots.show_rows(rows, size=SIZE / 100), NOTEBOOKS / "before_after.webp")


def save(figure, path: Path) -> None:
    as_picture(figure).save(path, quality=88, method=6)
    print(f"{path.name}: {path.stat().st_size:,} bytes")


def as_picture(figure, dpi: int = 100) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return Image.open(file).convert("RGB")


def beta() -> None:
    data = bundled_data()
    small = SliderModels(data)
    slider = BetaSlider([small.train(b) for b in BETAS], data)
    frames = [as_picture(slider.figure(portrait), 80) for portrait in slider.portraits]
    first, *others = frames + frames[-2:0:-1]  # up, and down again
    path = NOTEBOOKS / "beta.webp"
    loop = dict(save_all=True, append_images=others, duration=MILLISECONDS, loop=0)
    first.save(path, quality=70, method=6, **loop)
    print(f"{path.name}: {path.stat().st_size:,} bytes, {len(frames)} betas")


def social() -> None:
    model = vaekit.released("chest_xray_128")
    codes = sample_latents(model, 50, seed=0)
    sheet = make_grid(decode_all(model, codes), nrow=10, padding=0)  # (3, 640, 1280)
    pixels = (255 * sheet).byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture, "RGBA")
    draw.rectangle((0, 230, 1280, 410), fill=(0, 0, 0, 215))
    for text, size, y in ((TITLE, 64, 295), (BELOW, 28, 370)):
        file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        draw.text((640, y), text, "white", ImageFont.truetype(str(file), size), anchor="mm")
    path = NOTEBOOKS / "social.jpg"
    picture.save(path, quality=85, optimize=True)
    print(f"{path.name}: {picture.size}, {path.stat().st_size:,} bytes")


def thumbnails() -> None:
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        (cell,) = (c for c in cells if "thumbnail" in c.metadata.get("tags", []))
        shown = next(o.data for o in cell.outputs if "image/png" in o.get("data", {}))
        picture = Image.open(io.BytesIO(b64decode(shown["image/png"]))).convert("RGB")
        picture.thumbnail(THUMBNAIL)
        file = NOTEBOOKS / "thumbnails" / f"{path.name[:2]}.webp"
        file.parent.mkdir(exist_ok=True)
        picture.save(file, quality=80, method=6)


PICTURES = {f.__name__: f for f in (before_after, beta, social, thumbnails)}

if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
