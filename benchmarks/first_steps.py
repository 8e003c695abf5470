"""The first steps of `medical256` under four ways to start mu and logvar, for notebook 07.

    python benchmarks/first_steps.py

Ranges of mu and logvar and the KL before any training, at the preset's own 256 pixels, on bundled
films; then the loss of 20 steps at 64 pixels. Writes vaekit/lessons/results/first_steps.json.
"""

import json
import math

import torch

import vaekit
from vaekit import preset
from vaekit.data import as_float
from vaekit.lessons import sweeps
from vaekit.losses import kl_elements, vae_loss
from vaekit.model import VAE

SEEDS, STEPS, BATCH = 5, 20, 8
# Kaiming everywhere, mu and logvar included, by the incoming or the outgoing connections; then gain
# 0.01 for these two. With 16 latent channels, no free bits and beta 1, as in an earlier version.
THEN = {"latent_channels": 16, "free_bits": 0.0, "beta": 1.0}
STARTS = {
    "Kaiming, fan in, no clamp": {"latent_init_gain": 0.0, "logvar_clamp": 0.0},
    "Kaiming, fan out, no clamp": {
        "latent_init_gain": 0.0, "logvar_clamp": 0.0, "init": "kaiming_out"},
    "Kaiming, fan out, clamp 15": {
        "latent_init_gain": 0.0, "logvar_clamp": 15.0, "init": "kaiming_out"},
    "Kaiming, fan out, clamp 10": {
        "latent_init_gain": 0.0, "logvar_clamp": 10.0, "init": "kaiming_out"},
    "gain 0.01, no clamp": {"logvar_clamp": 0.0, "init": "kaiming_out"},
    "gain 0.01, clamp 10": {"init": "kaiming_out"},
}  # fmt: skip


@torch.no_grad()
def ranges(cfg, films: torch.Tensor) -> dict:
    """The encoder's output before training: lowest and highest mu and logvar, and the KL."""
    mu, logvar = VAE(cfg).encode(films)
    ends = {"mu": [mu.min(), mu.max()], "logvar": [logvar.min(), logvar.max()]}
    found = {name: [round(end.item(), 3) for end in pair] for name, pair in ends.items()}
    return found | {"kl": float(f"{kl_elements(mu, logvar).mean():.4g}")}  # nats, mean of elements


def losses(cfg, films: torch.Tensor) -> list[float]:
    """The training loss of STEPS steps of Adam at the final beta; it may become NaN."""
    model = VAE(cfg).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    found = []
    for i in range(STEPS):
        x = films[i * BATCH % (len(films) - BATCH) :][:BATCH]
        x_hat, mu, logvar = model(x)
        loss = vae_loss(x_hat, x, mu, logvar, cfg, cfg.beta).total
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        optimizer.step()
    return found


def main() -> None:
    full = preset("medical256", profile="full", **THEN)
    half = full.replace(image_size=64, attention=(4,))  # the same layers on a quarter of the side
    large = as_float(vaekit.load_data(full, verbose=False).val.images[:4])
    small = as_float(vaekit.load_data(half, verbose=False).train.images)
    rows = []
    for name, start in STARTS.items():
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            found = ranges(full.replace(**start), large)
            torch.manual_seed(seed)
            curve = losses(half.replace(**start), small)
            broke = next((i for i, loss in enumerate(curve) if not math.isfinite(loss)), None)
            curve = [f"{loss:.4g}" for loss in curve]  # JSON has no NaN
            rows.append({"start": name, "seed": seed, **found, "losses": curve, "broke": broke})
            print(rows[-1], flush=True)
    result = {"command": "python benchmarks/first_steps.py", "torch": torch.__version__,
              "then": THEN, "starts": STARTS, "rows": rows}  # fmt: skip
    (sweeps.RESULTS / "first_steps.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
