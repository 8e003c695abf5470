"""The main line in one readable notebook: vae_chest_xray.ipynb, or one for anyone's images.

The text between the cells is here; the code is the package's own, cut out by `extract`, so that
there is one copy of every formula. Only the notebook's own parts (its configuration, which films to
show, when to save) are written here.
"""

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import extract
import nbformat
import package
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from vaekit.config import Config, Profile, preset
from vaekit.files.own_images import preset_for
from vaekit.model import VAE
from vaekit.presets import PRESETS

NAME, OWN = "vae_chest_xray", "vae_images"
FOLDED = {"jupyter": {"source_hidden": True}, "_kg_hide-input": True}
REPLACED = {  # definitions that differ in a notebook without the package
    ("files.sources", "BUNDLE"): 'BUNDLE = Path("chest_xray_phantom")  # films drawn earlier',
    ("presets", "PRESETS"): f"PRESETS = {tuple(PRESETS)!r}  # the package's; this is one of them",
}
REPLACED_OWN = REPLACED | {  # nothing stands in for anyone's own images
    ("files.sources", "bundled"): """\
def bundled(profile):
    raise FileNotFoundError("there are no images")"""
}
# fields in the configuration cell; all others keep Config's defaults
SHOWN = (
    "data_path",
    "image_size",
    "in_channels",
    "latent_channels",
    "widths",
    "attention",
    "l1_weight",
    "mse_weight",
    "ssim_weight",
    "perceptual_weight",
    "beta_start",
    "beta",
    "beta_warmup",
    "epochs_phase1",
    "epochs_phase2",
    "batch_size",
    "lr_phase1",
    "lr_phase2",
    "clahe_clip",
    "flip",
    "seed",
)
HINTS = {  # in place of Config's own comment on a field, or where it has none
    "data_path": 'folder of the images; "": VAEKIT_DATA, or what is attached on Kaggle',
    "latent_channels": "numbers of the code, or of each of its places: more carry more detail",
    "l1_weight": "pixel error",
    "mse_weight": "squared pixel error: tolerates blur",
    "ssim_weight": "local structure",
    "perceptual_weight": "features of a pretrained network",
    "beta": "KL weight at the end: lower is sharper, higher gives better samples; try a third",
    "beta_start": "KL weight at the first step of phase 2",
    "epochs_phase2": "with the KL",
    "batch_size": "images a step",
    "lr_phase1": "learning rates at the top of their schedules",
    "start": 'from random weights, or ("linear") from the best linear VAE: PCA',
    "seed": "any whole number",
}

# ---- words: {what} is "chest X-rays" or "your images" --------------------------------------------

HEADER = """\
# A VAE for {what}, in one notebook

*From a folder of images to sharp reconstructions and believable samples, with nothing but this
file.*

- **Latent space**, {shape}: {places}.
- **Loss**: {loss}; and the KL, whose weight says how close the codes must be to the prior.
{phases}{xray}
**Run all.** {data} The environment variable `VAEKIT_PROFILE`, or the first line of the cell to
change, decides how long it takes: `smoke` (seconds, to check that everything runs), `quick` (a
laptop), `full` (a GPU; the default where one works). A second run continues
where the first one stopped, also from the attached output of an earlier version. On a bare machine:
`pip install {packages}`.

Generated from the package `vaekit` by `make bundle`: change it there. Folded cells hold helper
code.\
"""
XRAY = """\
- **CLAHE** evens out the exposure of the films; the split is by *patient*, never by film. Nothing
  here is for clinical use.
"""
XRAY_DATA = """\
On Kaggle attach *Chest X-Ray Images (Pneumonia)* and choose a T4; without it the notebook draws
synthetic films.\
"""
OWN_DATA = """\
On Kaggle upload the images as a data set, attach it and choose a T4. Elsewhere write their folder
into `data_path`, in the cell to change.\
"""
PHASES = """\
- **Two phases**: first learn to copy (beta 0), then bring the codes to the prior (beta rises).
"""
LINEAR = """\
- **Start**: the best linear VAE, which is PCA. The network learns what its images lack.
"""
WORDS = {
    "Configuration": "Every value that shapes a run is a field of `Config` (folded), checked when"
    " set. The second cell is **the one to change**.",
    "Data set": "Folded: where images are looked for, which belong together, the split, the cache"
    " and the batches. Open: what happens to an image between its file and the network. Then look"
    " at some images: training cannot repair a fault here.",
    "Model architecture": "Every halving of the resolution widens the network; the decoder mirrors"
    " the encoder. Attention connects distant places of an image.",
    "Loss functions": "First the pretrained network for the feature terms, then every term, per"
    " image, and the total.",
    "Training functions": "Open: beta and the learning rate as functions of progress; a step; an"
    " epoch, which depends only on the seed and its number, so that a resumed run repeats the"
    " interrupted one; this notebook's own run. Folded: saving, and what a long run needs.",
    "Training": "Phase 1 learns to copy: beta is 0 and the decoder gets the mean. Phase 2 adds the"
    " KL; when it begins, the codes are scaled to the prior.",
    "Generate": "From the prior, from a Gaussian fitted to the codes of the training images, and"
    " from a mixture: one decoder.",
}
OTHER_WORDS = {  # start="linear", in one phase
    "Model architecture": "The encoder adds to the code that PCA gives. The decoder (`Refiner`, a"
    " small U-Net) adds detail to the image that PCA makes of the code.",
    "Training": "At first the network reconstructs as PCA does. In the last 40% of the epochs the"
    " encoder rests, and a critic, which tells images from reconstructions, joins the losses.",
}
END = """\
## What to take away

- **Blur** is an average over all images that fit the code. With a small KL weight the code carries
  more, L1 tolerates less blur than a squared error, and SSIM and features ask for structure. The
  sharpness ratio measures the result; PCA, with as many numbers, is what a network has to beat.
- **Samples** fail for another reason: the codes of images are not distributed as the prior. Compare
  the three rows of new images.
- **If it is blurry**, lower `beta`. **If samples fall apart**, raise it, or fit more than a
  Gaussian. **If it is slow**, lower `image_size`. Change one value in the configuration, and run
  again: a changed configuration starts anew.\
"""

# ---- this notebook's own code --------------------------------------------------------------------

IMPORTS = """\
{imports}

torch.manual_seed(0)
print(f"torch {{torch.__version__}}, numpy {{np.__version__}}, OpenCV {{cv2.__version__}}")\
"""

LOAD = """\
data = load_data(cfg)
print(data.summary())\
"""

SHOW = """


# ---- look before you train ----
shown = {name: data.train.images[data.train.labels == k] for k, name in enumerate(data.classes[:8])}
display(show_rows(shown, title="Training images as the network sees them", columns=6))
display(plot_histogram(shown, title="Values as the network sees them"))\
"""

INITIALISE = """\
# ---- initialise: does one batch go through, and in what sizes? ----
device = choose_device()
features = feature_loss(cfg)  # None, with a notice, where the network's weights are not to be had
cfg = cfg.replace(features=features.name if features else "none")
model = VAE(cfg)
x = next(batches(data.val, min(4, len(data.val))))
with torch.no_grad():
    x_hat, mu, logvar = model(x)
    loss = vae_loss(x_hat, x, mu, logvar, cfg, cfg.beta, features)
print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters on {device.type}")
print(f"images {tuple(x.shape)} -> mu, logvar {tuple(mu.shape)} -> {tuple(x_hat.shape)}")
print({name: round(value.item(), 4) for name, value in loss.terms.items()})\
"""

TRAIN = """


# ---- this notebook's own: a run in a folder, saved as it goes ----
key = hashlib.sha256(repr(cfg.replace(data_path="")).encode()).hexdigest()
RUN = Path("runs") / f"one-file-{data.hash[:8]}-{key[:6]}"
RUN.mkdir(parents=True, exist_ok=True)
cfg.save(RUN / "config.json")
(RUN / "run.json").write_text(json.dumps({"data": {"source": data.source, "hash": data.hash}}))
trainer = GuardedTrainer(cfg, data, features)
# attached: the output of an earlier version of this notebook
for folder in (RUN, *(place / RUN for place in attached())):
    state = newest_valid(folder)
    if state and state["config"] == cfg.to_dict():
        go_on_from(trainer, folder)
        print(f"going on after epoch {trainer.epoch} of {cfg.num_epochs}")
        break
left = minutes_left()  # None: nobody ends this session
ENDS = time.monotonic() + 60 * left if left else math.inf


def save():
    if trainer.best.state:
        save_checkpoint(RUN / "best.pt", trainer.best.state)
    save_checkpoint(RUN / "last.pt", trainer.state_dict())


def train_until(last):
    \"\"\"Train until `last` epochs are done, or the session is about to end.\"\"\"
    bar, saved = Progress(cfg.num_epochs, trainer.epoch, True), time.monotonic()
    while trainer.epoch < last and not trainer.done:
        row = trainer.run_epoch()
        bar.show(row)
        over = time.monotonic() + 1.2 * row["seconds"] > ENDS
        if over or trainer.epoch == last or trainer.done or time.monotonic() - saved > 60:
            save()
            saved = time.monotonic()
        if over:
            print(f"the session ends: saved after epoch {trainer.epoch}; run again to go on")
            break
    bar.close()\
"""

PHASE1 = """\
train_until(cfg.epochs_phase1)
row = trainer.history[min(cfg.epochs_phase1, len(trainer.history)) - 1]
print(f"phase 1 ends: PSNR {row['val_psnr']:.1f} dB, KL {row['val_kl']:.0f} nats")\
"""

PHASE2 = """\
# ---- beta rises, z is sampled ----
train_until(cfg.num_epochs)
print(f"{trainer.epoch} of {cfg.num_epochs} epochs are done")\
"""

CURVES = """


# ---- curves: solid is validation, dotted training; phase 1, if there is one, is shaded ----
display(plot_history(trainer.history))\
"""

GENERATE = """\
model = trainer.result().eval()  # averaged weights of the best epoch
mu, logvar = encode_all(model, data.train)
rebuilt = decode_all(model, encode_all(model, data.test)[0])
rows = {"test image": data.test.images, "reconstruction": rebuilt}
for name, kind in {"prior": "prior", "Gaussian": "gaussian", "mixture": "gmm"}.items():
    z = fit_sampler(mu, logvar, kind, cfg.seed).sample(16, seed=cfg.seed)
    rows[name] = decode_all(model, z)
figure = show_rows(rows, columns=8, title="Test images, reconstructions, new images")
figure.savefig(RUN / "generated.png")
display(figure)\
"""

SUMMARY = """


# ---- summary: reconstructions of test images, which the network has never seen ----
x = as_float(data.test.images)
k = min(math.prod(model.latent_shape), len(data.train) - 1)
pca = linear_vae(data.train, k).reconstruct(x)
print(f"{data.source}, {data.path}; profile {cfg.profile}; means over {len(x)} test images")
print(f"{'':28} {'network':>8} {f'PCA, {k}':>10}")
scores = {"PSNR, dB": psnr, "SSIM": ssim_per_image, "sharpness ratio (1 is best)": sharpness_ratio}
for name, score in scores.items():
    network, linear = (torch.as_tensor(score(y, x)).mean() for y in (rebuilt, pca))
    print(f"{name:28} {network:8.2f} {linear:10.2f}")
if psnr(rebuilt, x).mean() < psnr(pca, x).mean() - 1:
    print("PCA is ahead by more than 1 dB: train longer (epochs_phase2), or take preset sharp")
print(f"saved in {RUN}: {', '.join(sorted(file.name for file in RUN.iterdir()))}")\
"""


def comments() -> dict[str, str]:
    """The comment that Config has to the right of a field, for the fields that have one."""
    text = package.source("config")
    return dict(re.findall(r"^    (\w+): [^#\n]+ = [^#\n]+  # (.+)$", text, re.M))


def differences(values: dict, base: Config) -> dict:
    return {name: value for name, value in values.items() if getattr(base, name) != value}


def configuration(make: Callable[[str], Config]) -> str:
    """The configuration cell: `full` in a column, what the other profiles change below it.

    make: profile -> Config.
    """
    full, base, notes = make("full"), Config(), comments() | HINTS
    values = {name: getattr(full, name) for name in SHOWN}
    hidden = differences({k: getattr(full, k) for k in full.to_dict() if k not in SHOWN}, base)
    lines = [
        '# os.environ["VAEKIT_PROFILE"] = "quick"  # or "smoke", "full": without the first #',
        "cfg = Config(",
    ]
    for name, value in (values | hidden).items():
        lines.append(f"    {name}={value!r}," + (f"  # {notes[name]}" if name in notes else ""))
    lines += [")", "PROFILES_CHANGE = {  # what a shorter run does to the knobs that cost time"]
    for name in get_args(Profile):
        changed = make(name)
        changes = differences({k: getattr(changed, k) for k in full.to_dict()}, full)
        changes.pop("profile", None)
        pairs = ", ".join(f'"{k}": {json.dumps(v)}' for k, v in changes.items())
        lines += textwrap.wrap(
            f'"{name}": {{{pairs}}},', 98, initial_indent=" " * 4, subsequent_indent=" " * 8
        )
    lines += [
        "}",
        "cfg = cfg.replace(profile=profile(), **PROFILES_CHANGE[profile()])",
        'print(f"profile {cfg.profile}: {cfg.image_size} px, {cfg.num_epochs} epochs")',
    ]
    return "\n".join(lines)


def header(cfg: Config) -> str:
    """The title cell, true for this configuration."""
    own, spatial = cfg.dataset == "images", cfg.latent == "spatial"
    terms = {
        "L1": cfg.l1_weight,
        "squared error": cfg.mse_weight,
        "SSIM": cfg.ssim_weight,
        "the features of a pretrained network": cfg.perceptual_weight + cfg.lpips_weight,
        "the spectrum": cfg.spectral_weight,
        "bands of detail": cfg.band_weight,
        "a critic": cfg.critic_share,
    }
    with torch.device("meta"):  # shapes without memory
        shape = VAE(cfg).latent_shape
    return HEADER.format(
        what="your images" if own else "chest X-rays",
        shape="×".join(map(str, shape)),
        places="the code of an image keeps its places" if spatial else "one flat code an image",
        loss=", ".join(name for name, weight in terms.items() if weight),
        phases=(PHASES if cfg.epochs_phase1 else "") + (LINEAR if cfg.start == "linear" else ""),
        xray="" if own else XRAY,
        data=OWN_DATA if own else XRAY_DATA,
        packages="torch torchvision opencv-python scikit-learn accelerate matplotlib tqdm",
    )


def build(images: Path | None = None) -> nbformat.NotebookNode:
    """The notebook, in the order of the table of contents, without outputs.

    images: a folder of anyone's images, for which size and channels are chosen; default X-rays. Its
    path is not written into the notebook.
    """

    def make(name: str) -> Config:
        if not images:
            return preset("chest_xray", profile=name)
        return preset_for(images, profile=name).replace(data_path="")

    cut = extract.Extract(REPLACED_OWN if images else REPLACED)
    full = make("full")
    words = WORDS | OTHER_WORDS if full.start == "linear" else WORDS

    def text(heading: str):
        return new_markdown_cell(f"## {heading}\n\n{words[heading]}")

    def code(*roots: str, then: str = "", folded: bool = False):
        return new_code_cell(
            (cut.take(*roots) if roots else "") + then, metadata=FOLDED if folded else {}
        )

    cells = [
        text("Configuration"),
        code(
            "config.Config",
            "config.profile",
            "place.setup.minutes_left",
            "place.setup.attached",
            "place.device.choose_device",
            folded=True,
        ),
        new_code_cell(configuration(make)),
        text("Data set"),
        *([] if images else [code("files.phantom.write_bundle", folded=True)]),
        code(
            "files.sources.find_dataset",
            "files.sources.list_images",
            "files.patients.group_patients",
            "files.patients.split_by_patient",
            folded=True,
        ),
        code("files.images.decode", "files.images.prepare"),
        code("data.load_data", "data.batches", folded=True),
        code(then=LOAD),
        code("plots.show_rows", "lessons.curves.plot_histogram", then=SHOW),
        text("Model architecture"),
        code("model.VAE"),
        text("Loss functions"),
        code("features.feature_loss", folded=True),
        code("losses.vae_loss", "losses.beta_elbo"),
        code(then=INITIALISE),
        text("Training functions"),
        code(
            "place.device.choose_precision",
            "place.progress.Progress",
            "fast.keep_freed_memory",
            folded=True,
        ),
        code("schedules.beta_at", "schedules.lr_factor", "train.Trainer"),
        code(
            "keep.checkpoint.save_checkpoint",
            "keep.checkpoint.newest_valid",
            "keep.guards.GuardedTrainer",
            "keep.resume.go_on_from",
            folded=True,
        ),
        code(then=TRAIN),
        text("Training"),
        *([code(then=PHASE1)] if full.epochs_phase1 else []),
        code(then=PHASE2),
        code("lessons.curves.plot_history", then=CURVES),
        text("Generate"),
        code("sample.fit_sampler", "sample.encode_all", "sample.decode_all", folded=True),
        code(then=GENERATE),
        code(
            "metrics.psnr",
            "losses.ssim_per_image",
            "metrics.sharpness_ratio",
            "linear.linear_vae",
            "data.as_float",
            then=SUMMARY,
        ),
        new_markdown_cell(END),
    ]
    cut.imports |= {"from IPython.display import display"}
    cut.imports |= {f"import {name}" for name in ("hashlib", "json", "math", "time")}
    imports = IMPORTS.format(imports=extract.grouped(cut.imports))
    cells = [new_markdown_cell(header(full)), new_code_cell(imports), *cells]
    notebook = new_notebook(cells=cells)
    for i, cell in enumerate(notebook.cells):
        cell.id = f"one-{i:02}"
        cell.source = cell.source.strip("\n")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return notebook
