"""How much of the quality comes from the loop, and how much from the loss? Every peer in a 2x2.

    python benchmarks/loop_and_loss.py --train DIR --test DIR --out benchmarks/loop_and_loss.json

For each peer of `peers.py`: its loop with its loss, its loop with ours, our loop with its loss; and
once our loop with ours. All have the same minutes, films, batch, latent numbers and trunk; networks
have parameters and multiply-adds within a tenth (`throughput.py` checks it). Scored by quality.py.
Rows that the file already holds are not measured again. Nothing else should run meanwhile.

The losses are those of each project's own training script (see LOSSES). The loops are `peers.py`'s
at a constant rate, MONAI's and diffusers' under bf16 autocast. Their scripts' own rates, 1e-4 and
below, are meant for days of training; RATE favours them.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from vaekit.config import Config, preset
from vaekit.data import Data
from vaekit.features import feature_loss
from vaekit.losses import vae_loss
from vaekit.sample import SAMPLERS

from peers import build  # isort: skip
from quality import CHANGES, NUM_JUDGED, WATCHED, folders_parser, load_folder, measure, part, score  # isort: skip

PEERS = {"plain": "plain", "monai": "monai bf16", "diffusers": "diffusers bf16", "pythae": "pythae"}
RATE = 1e-3
LATENTS, PIXELS = 256, 64 * 64  # at --size 64: means over PIXELS + beta x a mean over LATENTS
BARE = {"l1_weight": 0.0, "ssim_weight": 0.0, "perceptual_weight": 0.0, "beta_start": 0.0}
LOSSES = {  # as fields of Config, beside quality.py's CHANGES
    "vaekit": {},
    # S1 as written: the preset's own weights
    "plain": {"ssim_weight": 0.5, "perceptual_weight": 0.1},
    # Project-MONAI/tutorials, 2d_autoencoderkl: mean L1 + 0.001 perceptual + 1e-6 KL, a sum over
    # the code. Its adversarial term begins later and is left out.
    "monai": BARE | {"l1_weight": 1.0, "lpips_weight": 0.001, "beta": 1e-6 * LATENTS},
    # diffusers, examples/research_projects/autoencoderkl: squared errors of pixels in [-1, 1] + 0.5
    # LPIPS, summed over pixels, + 1e-6 KL. Its LPIPS is taken without a gradient; here it has one.
    # Adversarial from step 50,001 on, which nobody reaches.
    "diffusers": BARE | {"mse_weight": 4.0, "lpips_weight": 0.5, "beta": 1e-6 * LATENTS / PIXELS},
    # pythae's VAE: half the squared error and the KL, both summed
    "pythae": BARE | {"mse_weight": 1.0, "beta": 2 * LATENTS / PIXELS},
}


class Loss(nn.Module):
    """`vae_loss` of `cfg` at its beta, with the signature that `peers.py`'s loops use."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg, self.features = cfg, feature_loss(cfg)

    def forward(self, x: Tensor, x_hat: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        return vae_loss(x_hat, x, mu, logvar, self.cfg, self.cfg.beta, self.features).total


def measure_theirs(train: Path, test: Path, size: int, minutes: float, peer: str,
                   **changes) -> dict:  # fmt: skip
    """Train in the peer's loop for the minutes, as `quality.measure` does in ours; the scores."""
    cfg = preset("chest_xray", profile="quick", image_size=size, **{**CHANGES, **changes})
    cfg = cfg.replace(lr_phase2=RATE)
    films, judged_by = load_folder(train, cfg), load_folder(test, cfg)
    data = Data(films, part(films, WATCHED), judged_by, films.classes, "folder", str(train), "")
    torch.manual_seed(cfg.seed)
    engine, steps = build(PEERS[peer], cfg, data, workers=2, loss=Loss(cfg)), 0
    engine.network.train()
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < 60 * minutes:
        engine.run(10)
        steps += 10
    found, _ = score(SimpleNamespace(model=engine.network), data, cfg)
    return {"changes": changes, "minutes": round(spent / 60, 2), "n_train": len(films),
            "n_judged": min(NUM_JUDGED, len(judged_by)), "steps": steps, "seed": cfg.seed,
            "images_per_second": round(steps * cfg.batch_size / spent, 1), **found}  # fmt: skip


def systems(peers: list[str]) -> list[tuple[str, str]]:
    """(loop, loss) of every row."""
    rows = [("vaekit", "vaekit")]
    for peer in peers:
        rows += [(peer, peer), (peer, "vaekit"), ("vaekit", peer)]
    return rows


def distances(found: dict[str, float]) -> str:
    """Distances of reconstructions, prior samples and the best sampler's, minus the floor."""
    best = min(found[kind] for kind in SAMPLERS)
    kinds = found["reconstructed"], found["prior"], best
    return ", ".join(f"{value - found['floor']:,.0f}" for value in kinds)


def table(rows: list[dict]) -> str:
    columns = ["loop", "loss", "images/s", "PSNR", "SSIM", "LPIPS", "sharpness"]
    columns += ["SqueezeNet: reconstructions, prior, best sampler", "VGG-19: the same"]
    head = f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|"
    lines = []
    for r in rows:
        cells = [r["loop"], r["loss"], f"{r['images_per_second']:.0f}", f"{r['psnr']:.2f}"]
        cells += [f"{r['ssim']:.3f}", f"{r['lpips']:.3f}", f"{r['sharpness_ratio']:.2f}"]
        for judge in ("frechet_normalised", "frechet_vgg19"):  # neither where films are few
            cells.append(distances(r[judge]) if judge in r else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([head, *lines])


def main() -> None:
    parser = folders_parser(__doc__.split("\n")[0], minutes=3.0)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    given = parser.parse_args()
    rows = json.loads(given.out.read_text()) if given.out.exists() else []
    command = " ".join(["python", *sys.argv])
    where = given.train, given.test, given.size, given.minutes
    for loop, loss in systems(given.peers):
        if (loop, loss) in [(r["loop"], r["loss"]) for r in rows]:
            continue
        if loop == "vaekit":
            with tempfile.TemporaryDirectory() as folder:
                found = measure(*where, Path(folder), command, **LOSSES[loss])
            found.pop("config")
        else:
            found = measure_theirs(*where, loop, **LOSSES[loss])
        rows.append({"loop": loop, "loss": loss, "command": command} | found)
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
