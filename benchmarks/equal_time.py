"""PCA, ours and three libraries on real films, each after the same seconds of one core.

    python benchmarks/equal_time.py                    # every case that is not measured yet
    python benchmarks/equal_time.py sharp/1 monai/0    # these, even if they are
    python benchmarks/equal_time.py --show             # the table of README.md

64 pixels, 256 numbers, the split and the scorer of `start.py`, batches of 8, float32, one thread.
`published` is S1 with its own widths; the libraries' networks have its size (`peers.py`). All but
pythae train in our loop, at the rates of the profile quick and with averaged weights, and their
schedules last exactly the seconds. PCA's fit counts as training, imports do not.

"As it comes" is a library's network with the loss of its own script:

monai      L1, mean, + 1e-6 x KL, summed: tutorials, 2d_autoencoderkl. Left out: its perceptual
           term (weight 0.001) and its adversarial one (0.01).
diffusers  squared errors of pixels in [-1, 1] + 1e-6 x KL, both summed: examples,
           train_autoencoderkl. Its LPIPS has no gradient there; its adversarial term begins with
           step 50,001, which nobody reaches.
pythae     its VAE's half squared error + KL, both summed, in its own trainer, around our encoder
           and decoder: those that it brings are for 28 pixels. No averaged weights, no mirroring.

At such weights the KL of the first two has no price: see the column KL. "Our loss" is that of
`published`, in one phase.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from fast_forms import processor
from films128 import COLUMNS, ONE_PHASE, few, scores, with_network
from peers import Diffusers, Monai, PlainLoss, Pythae
from start import CHEST

import vaekit
from vaekit import preset
from vaekit.features import feature_loss
from vaekit.losses import kl_per_image
from vaekit.sample import decode_all, encode_all, sample_latents
from vaekit.train import Trainer

RESULTS = Path(__file__).with_suffix(".json")
COMMON = CHEST | {"profile": "quick", "precision": "fp32", "features": "squeezenet"}
PUBLISHED = {"name": "chest_xray", "widths": vaekit.Config().widths}
BARE = ONE_PHASE | {"l1_weight": 0.0, "ssim_weight": 0.0, "perceptual_weight": 0.0}
BARE |= {"beta_schedule": "constant", "kl_reduction": "sum"}
MODELS = {  # what is added to COMMON
    "pca": {"name": "sharp"},
    "sharp": {"name": "sharp"},
    "published": PUBLISHED,
    "monai": PUBLISHED | BARE | {"l1_weight": 1.0, "beta": 1e-6},
    "monai, our loss": PUBLISHED | ONE_PHASE,
    # pixels in [0, 1], and their mean
    "diffusers": PUBLISHED | BARE | {"mse_weight": 4.0, "beta": 1e-6 / 64**2},
    "diffusers, our loss": PUBLISHED | ONE_PHASE,
    "pythae": PUBLISHED,
    "pythae, our loss": PUBLISHED,
}
PYTHAE_RATE = 1e-3  # constant; its own default is 1e-4
CASES = [f"{model}/0" for model in MODELS]
NOT_SHOWN = "mixture samples", "precision", "coverage"


def train_for(trainer: Trainer, start: float, seconds: float) -> None:
    """Train until this process has computed for `seconds` since `start`; schedules follow the
    clock, not the steps."""
    cfg = trainer.cfg
    rescales = cfg.rescale_latents and cfg.epochs_phase1 > 0
    torch.manual_seed(cfg.seed)
    trainer.model.train()
    while True:
        for x, _ in trainer.epoch_batches():
            at = (time.process_time() - start) / seconds * cfg.num_epochs
            if at >= cfg.num_epochs:
                return
            if rescales and at >= cfg.epochs_phase1:
                rescales = False
                trainer.begin_phase2()
                trainer.model.train()
            trainer.step(x, at)
        trainer.epoch += 1


def trained(model: str, cfg: vaekit.Config, data, seconds: float):
    """(network, core seconds, images seen)."""
    library, _, loss = model.partition(", ")
    torch.manual_seed(cfg.seed)
    if library == "pca":
        start = time.process_time()
        network = vaekit.linear_vae(data.train, 256, mirror=cfg.flip)
        return network, time.process_time() - start, 0
    if library == "pythae":
        cfg = cfg.replace(lr_phase2=PYTHAE_RATE)
        engine = Pythae(cfg, data, PlainLoss(cfg) if loss else None)
        steps, start = 0, time.process_time()
        while (spent := time.process_time() - start) < seconds:
            engine.run(10)
            steps += 10
        return engine.network, spent, steps * cfg.batch_size
    kind = {"monai": Monai, "diffusers": Diffusers}.get(library)
    network = kind(cfg).to(memory_format=torch.channels_last) if kind else None
    features, start = feature_loss(cfg, verbose=False), time.process_time()
    trainer = Trainer(cfg, data, features)
    if network:
        with_network(trainer, network)
    train_for(trainer, start, seconds)
    return trainer.ema, time.process_time() - start, trainer.num_steps * cfg.batch_size


def measure(model: str, seed: int, seconds: float) -> dict:
    cfg = preset(**COMMON | MODELS[model], seed=seed)
    data = vaekit.load_data(cfg, verbose=False)
    network, spent, images = trained(model, cfg, data, seconds)
    test = data.test.images
    samples = {"prior": decode_all(network, sample_latents(network, len(test), seed=seed))}
    found = scores(network, test, few(data.train, len(test)), cfg, samples)
    mu, logvar = encode_all(network, test)
    facts = {"core_seconds": round(spent, 1), "images_seen": images}
    facts |= {"parameters": sum(p.numel() for p in network.parameters()), "train": len(data.train)}
    facts |= {"kl": round(kl_per_image(mu, logvar).mean().item(), 1), "test": len(test)}
    facts |= {"processor": processor(), "torch": torch.__version__, "seed": seed}
    return facts | {"scores": found}


def show(done: dict) -> None:
    shown = {name: how for name, how in COLUMNS.items() if name not in NOT_SHOWN}
    print("| | core s | images | " + " | ".join(shown) + " | KL, nats |")
    print("|---" * (len(shown) + 4) + "|")
    for case, found in done.items():
        cells = [case, f"{found['core_seconds']:.0f}", f"{found['images_seen']:,}"]
        cells += [f"{found['scores'][name][0]:,.{n}f}" for name, n in shown.values()]
        print("| " + " | ".join([*cells, f"{found['kl']:,.0f}"]) + " |")
    for name in ("processor", "train", "test"):
        print(f"{name}:", *{found[name] for found in done.values()})
    print("real films:", *{r["scores"]["frechet prior vgg19"][-1] for r in done.values()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("cases", nargs="*")
    given = parser.parse_args()
    done = json.loads(given.out.read_text()) if given.out.exists() else {}
    if given.show:
        show(done)
        return
    torch.set_num_threads(1)
    for case in given.cases or [case for case in CASES if case not in done]:
        model, seed = case.split("/")
        done[case] = measure(model, int(seed), given.seconds)
        print(case, {k: v for k, v in done[case].items() if k != "scores"}, flush=True)
        draft = given.out.with_suffix(".tmp")
        draft.write_text(json.dumps(done, indent=1) + "\n")
        os.replace(draft, given.out)


if __name__ == "__main__":
    main()
