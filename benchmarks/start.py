"""What does the linear start buy? PCA, the published systems and `sharp`, on six sets of images.

    python benchmarks/start.py                       # every case that is not measured yet
    python benchmarks/start.py films/sharp/0 ...     # these, even if they are
    python benchmarks/start.py --show                # the table of README.md

A case is set/model/seed. Trained as the profile quick does, for about a minute of one core, in
float32; scored by `evaluate` on images of other patients. Resumable: results/start.json, which
notebook 09 draws, is written after each case.
"""

import json
import os
import sys
import time

import torch
from fast_forms import processor
from films128 import few, with_network
from torch import Tensor, nn

import vaekit
from vaekit.features import feature_loss
from vaekit.files.sources import bundled
from vaekit.lessons import sweeps
from vaekit.linear import shrink
from vaekit.losses import kl_per_image
from vaekit.model import VAE, Decoder, conv3x3, initialise
from vaekit.sample import decode_all, encode_all, sample_latents
from vaekit.train import Trainer, train

RESULTS = sweeps.RESULTS / "start.json"
NUM_TEST = 256  # images that are judged, at most
CHEST, COLOUR = {"dataset": "chest_xray"}, {"in_channels": 3, "clahe_clip": 0.0}
SETS = {  # what is added to a preset; "films" are real ones, "bundled" the drawn ones
    "films": CHEST,
    "bundled": CHEST | {"data_path": "bundled"},
    "cifar10": COLOUR | {"dataset": "cifar10", "image_size": 32, "max_images": 4000},
    "faces": COLOUR
    | {"dataset": "celeba", "fit": "crop", "crop": 140 / 178, "max_images": 4000, "image_size": 64},
    "fashion": {"dataset": "fashion_mnist", "clahe_clip": 0.0, "image_size": 32, "fit": "frame"}
    | {"max_images": 4000},
}
SETS["all films"] = CHEST | {"max_images": 0}  # with VAEKIT_DATA naming the whole of Kermany's set
# as large, and with as long a code, as S4's system
SETS["films at 256"] = CHEST | {"image_size": 256}
# numbers of a code: 16 pixels each, 64 at 256 pixels
NUMBERS = {"cifar10": 256, "faces": 256, "fashion": 64, "films at 256": 1024}
PUBLISHED = {"faces": "celeba64", "fashion": "fashion_mnist"}  # elsewhere chest_xray
# the channels of the profile full, which quick once had
TWICE = {"sharp": (32, 64, 128), "chest_xray": (32, 64, 128, 256, 512)}
# nothing but L1 and SSIM
TRUE = {"critic_share": 0.0, "band_weight": 0.0, "perceptual_weight": 0.0}
MODELS = {  # what is added to `sharp`
    "pca": {},
    "published": {},
    "sharp": {},
    "sharp, no critic": {"critic_share": 0.0},
    "sharp, half the critic": {"critic_share": 0.25},
    "sharp, twice the critic": {"critic_share": 1.0},
    "sharp, no bands": {"band_weight": 0.0},
    "sharp, no shifts": {"shift": 0},
    "sharp, no features": {"perceptual_weight": 0.0},
    "sharp, random start": {"start": "random"},
    "sharp, twice as wide": {"widths": TWICE["sharp"]},
    "published, twice as wide": {"widths": TWICE["chest_xray"]},
    "sharp, six minutes": {"epochs_phase2": 125},
    "true": {"epochs_phase2": 60} | TRUE,
    "sharp, adds only": {},
    "sharp, adds and sees": {},
}
FEW = ["pca", "published", "sharp", "sharp, random start"]
COMPARED = {  # everything on real films; elsewhere what the claims need
    "films": list(MODELS),
    "bundled": [*FEW, "sharp, adds only", "sharp, no critic"],
    "cifar10": [model for model in FEW if model != "published"],
    "faces": FEW,
    "fashion": FEW,
    "films at 256": ["pca", "sharp"],
    "all films": ["pca", "sharp, six minutes"],
}
ONCE = ("pca", "sharp, six minutes", "true")  # one seed, as everything at 256 pixels
COLUMNS = {
    "PSNR": ("psnr reconstruction", 2),
    "SSIM": ("ssim reconstruction", 3),
    "LPIPS": ("lpips reconstruction squeezenet", 3),
    "sharpness": ("sharpness ratio reconstruction", 2),
    "1/8-1/4": ("power 1/8-1/4 reconstruction", 2),
    "1/4-1/2": ("power 1/4-1/2 reconstruction", 2),
    "Fréchet VGG-19": ("frechet reconstruction vgg19", 0),
    "prior": ("frechet prior vgg19", 0),
    "mixture": ("frechet gmm vgg19", 0),
    "KL, nats": ("kl", 0),
}
SCORES = ("psnr", "ssim", "lpips", "sharpness ratio", "feature distance", "frechet")


class Adder(VAE):
    """`sharp` with S1's own decoder in place of the U-Net.

    What it makes of the code is added to the linear picture; the network has the picture itself at
    no place, or, if it `sees`, a convolution of it joins every stage.
    """

    def __init__(self, cfg: vaekit.Config, sees: bool):
        super().__init__(cfg)
        changes = {"image_size": cfg.image_size, "in_channels": cfg.in_channels}
        changes |= {"latent": "vector", "latent_channels": cfg.latent_channels}
        theirs = vaekit.preset("chest_xray", profile="quick", **changes)
        self.decoder = Decoder(theirs)
        narrow, *_ = widths = theirs.widths
        seen = [*reversed(widths[:-1]), narrow] if sees else []
        self.see = nn.ModuleList(conv3x3(cfg.in_channels, n) for n in seen)
        initialise(self, theirs)

    def decode(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            picture = self.linear.decode(z)
        h = self.decoder.first(z).view(-1, *self.decoder.start)
        for i, stage in enumerate(self.decoder.stages):
            h = stage(h)
            if self.see:
                h = h + self.see[i](shrink(picture, h.shape[-1]))
        return (picture + self.decoder.to_image(h)).float().clamp(0, 1)


def config(where: str, model: str, seed: int) -> vaekit.Config:
    name = PUBLISHED.get(where, "chest_xray") if model.startswith("published") else "sharp"
    values = SETS[where] | {"seed": seed, "profile": "quick", "precision": "fp32"}
    values |= {"epoch_images": 320, "batch_size": 8}
    if name == "chest_xray":
        values |= {"epochs_phase1": 4, "epochs_phase2": 10}
    else:
        values |= {"epochs_phase2": 20, "latent_channels": NUMBERS.get(where, 256)}
    if values.get("data_path") == "bundled":
        values["data_path"] = str(bundled("quick").path)
    return vaekit.preset(name, **values | MODELS[model])


def measure(where: str, model: str, seed: int) -> dict:
    cfg = config(where, model, seed)
    data = vaekit.load_data(cfg, verbose=False)
    start = time.perf_counter()
    if model == "pca":
        full = {"mirror": cfg.flip, "fit_size": cfg.image_size}
        trained = vaekit.linear_vae(data.train, cfg.latent_channels, **full)
    else:
        trainer = Trainer(cfg, data, feature_loss(cfg, verbose=False))
        if "adds" in model:
            torch.manual_seed(seed)
            network = Adder(cfg, "sees" in model).to(memory_format=torch.channels_last)
            network.start_at(trainer.raw.linear)
            with_network(trainer, network)
        train(trainer)
        trained = trainer.ema
    seconds = time.perf_counter() - start
    images = 0 if model == "pca" else trainer.num_steps * cfg.batch_size
    facts = {"seconds": round(seconds, 1), "images_seen": images}
    return facts | scores_of(trained, cfg, data, seed)


def scores_of(trained, cfg: vaekit.Config, data, seed: int) -> dict:
    test, others = few(data.test, NUM_TEST), few(data.train, NUM_TEST)
    samples = {}
    for kind in ("prior", "gmm"):
        z = sample_latents(trained, len(test), kind, fit_on=data.train, seed=seed)
        samples[kind] = decode_all(trained, z)
    rows = vaekit.evaluate(trained, test, cfg, val=others, samples=samples)
    scores = {}
    for row in rows:
        if row["metric"] in SCORES or row["metric"].startswith("power"):
            judge = row["network"].split(",")[0].split(" ")[0]
            name = " ".join(filter(None, (row["metric"], row["subject"], judge)))
            scores[name] = round(row["value"], 4)
            if row["floor"] is not None:
                scores[f"{name} floor"] = round(row["floor"], 4)
    mu, logvar = encode_all(trained, test)
    scores["kl"] = round(kl_per_image(mu, logvar).mean().item(), 1)
    facts = {"train": len(data.train), "n": len(test), "processor": processor()}
    facts |= {"threads": torch.get_num_threads(), "precision": cfg.precision}
    return facts | {"scores": scores}


def show() -> None:
    done = json.loads(RESULTS.read_text())
    print("| | seeds | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 2))
    for where, models in COMPARED.items():
        if f"{where}/pca/0" not in done:
            continue
        for model in models:
            runs = [done[key] for s in range(3) if (key := f"{where}/{model}/{s}") in done]
            cells = [f"{where}: {model}", str(len(runs))]
            for name, decimals in COLUMNS.values():
                mean = sum(run["scores"][name] for run in runs) / max(len(runs), 1)
                cells.append(f"{mean:,.{decimals}f}")
            if runs:
                print("| " + " | ".join(cells) + " |")
        floor = done[f"{where}/pca/0"]["scores"]["frechet reconstruction vgg19 floor"]
        print(f"{where}: real against real {floor:.0f}")


def main(wanted: list[str]) -> None:
    if wanted == ["--show"]:
        return show()
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    every = []
    for seed in range(3):
        for where, models in COMPARED.items():
            once = models if where.endswith("256") else ONCE
            every += [
                f"{where}/{model}/{seed}" for model in models if not seed or model not in once
            ]
    for case in wanted or [case for case in every if case not in done]:
        where, model, seed = case.split("/")
        done[case] = measure(where, model, int(seed))
        print(case, {k: v for k, v in done[case].items() if k != "scores"}, flush=True)
        draft = RESULTS.with_suffix(".tmp")
        draft.write_text(json.dumps(done, indent=1) + "\n")
        os.replace(draft, RESULTS)


if __name__ == "__main__":
    main(sys.argv[1:])
