"""Real films at 128 px: PCA, the published system, `sharp` and MONAI, on one core each.

    python benchmarks/films128.py --work DIR                    # every case in turn
    python benchmarks/films128.py --work DIR sharp/0 monai/0    # these
    python benchmarks/films128.py --work DIR --seconds 1900 monai/0

Wants `chest_xray_224` (Kermany, 4,432 films to train on) below VAEKIT_DATA, and the weights of
SqueezeNet, LPIPS and VGG-19 in VAEKIT_WEIGHTS. Every case has 1,024 numbers. DIR keeps a checkpoint
every epoch, from which a case that was stopped goes on, and samples; what was measured goes to
results/films128.json: a curve on 128 test films, and everything `evaluate` finds on all of them.
One thread a case: its hours are those of one core, whatever else the machine did. `published` and
`monai` train for as many seconds as are given: those that `sharp` takes on the same processor.
`long` is `sharp` with three times as many epochs, in bf16.

    python benchmarks/films128.py --work DIR --show             # the table, and films128.webp

films128.webp holds samples from the prior, N(0, I), a row a model: the first of seed 0, unselected.
"""

import argparse
import copy
import dataclasses
import json
import os
import time
from pathlib import Path

import torch
from fast_forms import processor
from PIL import Image

import vaekit
from vaekit.data import Split
from vaekit.features import feature_loss
from vaekit.judge import distances, networks
from vaekit.lessons import sweeps
from vaekit.losses import kl_per_image
from vaekit.sample import decode_all, encode_all, sample_latents
from vaekit.train import Trainer

RESULTS = sweeps.RESULTS / "films128.json"
EPOCH_IMAGES, BATCH = 1200, 8
WATCHED = 128  # test films of the curve
NUM_SAMPLES = 512
SHOWN = 8  # samples a row of films128.webp
COMMON = {"dataset": "chest_xray", "profile": "full", "image_size": 128, "max_images": 0}
COMMON |= {"features": "squeezenet", "epoch_images": EPOCH_IMAGES, "batch_size": BATCH}
COMMON |= {"precision": "fp32"}
SHARP = {"preset": "sharp", "widths": (32, 64, 128, 128), "epochs_phase2": 20}
LONG = {"epochs_phase2": 60, "precision": "bf16"}
TRUE = {"critic_share": 0.0, "band_weight": 0.0, "perceptual_weight": 0.0}
# the rates that suit a short run are those of the profile quick
SHORT = {"lr_phase1": 2e-3, "lr_phase2": 2e-3, "lr_warmup": 0.02, "lr_schedule_phase1": "constant"}
SHORT |= {"lr_schedule_phase2": "cosine"}
PUBLISHED = {"preset": "chest_xray"} | SHORT
ONE_PHASE = {"epochs_phase1": 0, "rescale_latents": False}
MODELS = {  # what is added to COMMON; where epochs are not given they fill the budget
    "pca": SHARP,
    "sharp": SHARP,
    "long": SHARP | LONG,
    "true": SHARP | TRUE,
    "published": PUBLISHED,
    "monai": PUBLISHED | ONE_PHASE,
}
CASES = ("pca/0", "published/0", "monai/0", "sharp/0", "sharp/1", "long/0", "true/0")


def config(model: str, seed: int) -> vaekit.Config:
    values = COMMON | MODELS[model] | {"seed": seed}
    values["data_path"] = str(Path(os.environ["VAEKIT_DATA"]) / "chest_xray_224")
    return vaekit.preset(values.pop("preset"), **values)


def with_network(trainer: Trainer, network: torch.nn.Module) -> None:
    """Train `network` in place of ours: same data, loss, rates and averaging."""
    network.latent_shape = trainer.raw.latent_shape
    network.quantiser, network.cfg = None, trainer.cfg
    trainer.raw = trainer.model = network
    trainer.ema = copy.deepcopy(network).eval().requires_grad_(False)
    trainer.optimizer = trainer.new_optimizer()


def new_trainer(cfg: vaekit.Config, data, model: str) -> Trainer:
    trainer = Trainer(cfg, data, feature_loss(cfg, verbose=False))
    if model == "monai":
        from peers import Monai

        torch.manual_seed(cfg.seed)
        with_network(trainer, Monai(cfg))
    return trainer


def filling(cfg: vaekit.Config, data, model: str, seconds: int) -> vaekit.Config:
    """`cfg` with the epochs that fill `seconds`; a third of them phase 1 where there is one."""
    if cfg.preset == "sharp":
        return cfg
    trainer = new_trainer(cfg, data, model)
    trainer.model.train()
    times = []
    for x, _ in trainer.epoch_batches():
        trainer.step(x, float(cfg.epochs_phase1))
        times.append(time.process_time())
        if len(times) == 13:
            break
    epochs = max(3, round(seconds / ((times[-1] - times[3]) / 9 * EPOCH_IMAGES / BATCH)))
    first = epochs // 3 if cfg.epochs_phase1 else 0
    changes = {"epochs_phase1": first, "epochs_phase2": epochs - first}
    return cfg.replace(**changes, beta_warmup=(epochs - first) // 2)


def few(split: Split, n: int) -> torch.Tensor:
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return split.images[order[:n]]


def scores(model, test, others, cfg, samples=None) -> dict:
    """{metric, subject, judge: [value, low, high, n, floor]}."""
    found = {}
    for row in vaekit.evaluate(model, test, cfg, val=others, samples=samples):
        judge = row["network"].split(",")[0].split(" ")[0]
        name = " ".join(filter(None, (row["metric"], row["subject"], judge)))
        values = [row["value"], row["low"], row["high"]]
        found[name] = [None if v is None else round(v, 4) for v in values] + [row["n"]]
        if row["floor"] is not None:
            found[name].append(round(row["floor"], 4))
    return found


def curve_point(model, data, cfg) -> dict:
    test, others = few(data.test, WATCHED), few(data.train, WATCHED)
    found = scores(model, test, others, cfg)
    shown = ("psnr", "ssim", "lpips", "sharpness ratio", "frechet ", "power", "feature")
    return {k: v[0] for k, v in found.items() if k.startswith(shown) and "real" not in k}


def trained(model: str, seed: int, work: Path, data, seconds: int):
    """(trainer, facts): trained to its end, from its last checkpoint where there is one."""
    file = work / f"{model}-{seed}.pt"
    state = torch.load(file, weights_only=False) if file.exists() else None
    cfg = vaekit.Config.from_dict(state["trainer"]["config"]) if state else None
    cfg = cfg or filling(config(model, seed), data, model, seconds)
    trainer = new_trainer(cfg, data, model)
    curve, spent = [], 0.0
    every = max(2, cfg.num_epochs // 4)
    if state:
        trainer.load_state_dict(state["trainer"])
        curve, spent = state["curve"], state["seconds"]
    while not trainer.done:
        start = time.process_time()
        row = trainer.run_epoch()
        spent += time.process_time() - start
        if trainer.epoch % every == 0 or trainer.done:
            point = {"images": trainer.num_steps * BATCH, "core_seconds": round(spent, 1)}
            curve.append(point | curve_point(trainer.ema, data, cfg))
        print(f"{model}/{seed} epoch {trainer.epoch} of {cfg.num_epochs}, {spent:.0f} s,"
              f" loss {row['val_loss']:.4f}, psnr {row['val_psnr']:.2f}", flush=True)  # fmt: skip
        state = {"trainer": trainer.state_dict(), "curve": curve, "seconds": spent}
        torch.save(state, file.with_suffix(".tmp"))
        os.replace(file.with_suffix(".tmp"), file)
    facts = {"core_seconds": round(spent, 1), "images_seen": trainer.num_steps * BATCH}
    return trainer.ema, facts | {"curve": curve}


def copies(samples: torch.Tensor, data) -> dict:
    """What `memorisation` finds in pixels, and in SqueezeNet's features."""
    judges = {"pixels": None, "squeezenet": networks.load_judges(["squeezenet"])[0]}
    found = {}
    for name, judge in judges.items():
        sets = (samples, data.train.images, data.test.images)
        seen = distances.memorisation(*(networks.feature_vectors(s, judge) for s in sets))
        found[name] = {k: round(getattr(seen, k), 4) for k in ("closer", "stands_out", "p")}
        found[name] |= {"authentic": round(seen.authentic, 4), "memorises": bool(seen.memorises)}
    return found


def measure(model: str, seed: int, work: Path, seconds: int) -> dict:
    cfg = config(model, seed)
    data = vaekit.load_data(cfg, verbose=False)
    # it is validated after every epoch
    val = dataclasses.replace(data.val, images=few(data.val, WATCHED), labels=torch.zeros(WATCHED))
    data = dataclasses.replace(data, val=val)
    if model == "pca":
        start = time.process_time()
        net = vaekit.linear_vae(data.train, cfg.latent_channels, mirror=cfg.flip)
        facts = {"core_seconds": round(time.process_time() - start, 1), "images_seen": 0}
        facts["curve"] = [facts | curve_point(net, data, cfg)]
    else:
        net, facts = trained(model, seed, work, data, seconds)
    samples = {}
    for kind in ("prior", "gmm"):
        z = sample_latents(net, NUM_SAMPLES, kind, fit_on=data.train, seed=seed)
        samples[kind] = decode_all(net, z)
    torch.save(samples, work / f"{model}-{seed}-samples.pt")
    found = scores(net, data.test.images, few(data.train, len(data.test)), cfg, samples)
    mu, logvar = encode_all(net, data.test)
    facts |= {"kl": round(kl_per_image(mu, logvar).mean().item(), 1)}
    facts |= {"parameters": sum(p.numel() for p in net.parameters()), "train": len(data.train)}
    facts |= {"test": len(data.test), "processor": processor(), "torch": torch.__version__}
    facts |= {"precision": cfg.precision, "threads": torch.get_num_threads(), "seed": seed}
    return facts | {"copies": copies(samples["prior"], data), "scores": found}


NAMES = {  # of the rows of the table
    "pca": "PCA (linear VAE)",
    "published": "published",
    "monai": "MONAI, `AutoencoderKL`",
    "sharp": "`sharp`",
    "long": "`sharp`, three times as long (released)",
    "true": "`sharp` without critic, bands, features",
}
COLUMNS = {  # of the table: (what `scores` calls it, decimals)
    "PSNR, dB": ("psnr reconstruction", 2),
    "SSIM": ("ssim reconstruction", 3),
    "LPIPS": ("lpips reconstruction squeezenet", 3),
    "sharpness": ("sharpness ratio reconstruction", 2),
    "octave 1/8-1/4": ("power 1/8-1/4 reconstruction", 2),
    "finest octave": ("power 1/4-1/2 reconstruction", 2),
    "Fréchet, reconstructions": ("frechet reconstruction vgg19", 0),
    "prior samples": ("frechet prior vgg19", 0),
    "mixture samples": ("frechet gmm vgg19", 0),
    "precision": ("precision prior vgg19", 2),
    "coverage": ("coverage prior vgg19", 2),
}


def show(work: Path) -> None:
    """Print the table of README.md, means over seeds; draw films128.webp from `work`."""
    done = json.loads(RESULTS.read_text())
    print("| | seeds | minutes | images seen | " + " | ".join(COLUMNS) + " | KL, nats |")
    print("|---" * (len(COLUMNS) + 5) + "|")
    for model, name in NAMES.items():
        runs = [run for case, run in done.items() if case.split("/")[0] == model]
        if not runs:
            continue
        minutes = " and ".join(f"{run['core_seconds'] / 60:.0f}" for run in runs)
        cells = [name, str(len(runs)), minutes, f"{runs[0]['images_seen']:,}"]
        for column, decimals in COLUMNS.values():
            mean = sum(run["scores"][column][0] for run in runs) / len(runs)
            cells.append(f"{mean:,.{decimals}f}")
        cells.append(f"{sum(run['kl'] for run in runs) / len(runs):,.0f}")
        print("| " + " | ".join(cells) + " |")
    for network in ("squeezenet", "vgg19"):
        score = done["pca/0"]["scores"][f"frechet prior {network}"]
        print(f"{network}: N = {score[3]}, real images against each other {score[4]}")
    rows = []
    for case in (case for case in CASES if case.endswith("/0")):
        file = work / f"{case.replace('/', '-')}-samples.pt"
        if file.exists():
            rows.append(torch.cat(list(torch.load(file)["prior"][:SHOWN, 0]), dim=1))
            print(f"row {len(rows)}: {case}")
    pixels = torch.cat(rows).mul(255).round().byte().numpy()
    Image.fromarray(pixels).save(RESULTS.with_suffix(".webp"), quality=90, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--seconds", type=int, default=3200)  # what `sharp/0` had on a Xeon
    parser.add_argument("cases", nargs="*", default=CASES)
    given = parser.parse_args()
    if given.show:
        show(given.work)
        return
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    for case in given.cases:
        model, seed = case.split("/")
        found = measure(model, int(seed), given.work, given.seconds)
        # another case may have been measured meanwhile
        done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        done[case] = found
        done = {name: done[name] for name in sorted(done, key=CASES.index)}
        draft = RESULTS.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(done, indent=1) + "\n")
        os.replace(draft, RESULTS)
        print(case, "measured", flush=True)


if __name__ == "__main__":
    main()
