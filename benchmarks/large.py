"""Do the presets for 256 pixels train, and how much memory do they need?

    python benchmarks/large.py medical256 --batch 8
    python benchmarks/large.py celeba256 --batch 2 --features squeezenet --data DIR
    python benchmarks/large.py celeba256 --memory

The first two take real steps of the preset at its own size, in batches that one core can handle.
The third adds up the memory of a step at the preset's own batch on a GPU, without a GPU: the step
runs on fake tensors, which have shape and type but no contents, and every storage is counted from
allocation to release. A row replaces the one of the same name in benchmarks/large.json.
"""

import argparse
import json
import resource
import statistics
import sys
import time
import weakref
from pathlib import Path

import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision import models

from vaekit.config import Config, preset
from vaekit.data import load_data
from vaekit.features import TRUNKS, FeatureLoss, Trunk, trunk_name
from vaekit.losses import vae_loss
from vaekit.model import VAE
from vaekit.train import update_ema

from throughput import Ours  # isort: skip

OUT = Path(__file__).parent / "large.json"
GB = 1e9
CARD = 24 * GB  # what an L4 or an A10 has; a 3090 has 25.8
# CUDA's context, the workspaces of cuDNN and cuBLAS, and fragmentation: assumed, not measured here
ALLOWANCE = 2 * GB


class Storages(TorchDispatchMode):
    """Bytes of all live storages that operations have made: `now`, and `peak`."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.alive = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:  # a view
            return

        def forget(_):
            self.now -= size
            del self.alive[key]

        self.alive[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)


def forward(model: VAE, x: torch.Tensor, cfg: Config, features) -> tuple[torch.Tensor, int]:
    """(loss, bytes of the storages that its gradient keeps); without weights, autocast to bf16."""
    modules = [m for m in (model, features) if m is not None]
    own = {p.untyped_storage()._cdata for m in modules for p in (*m.parameters(), *m.buffers())}
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        x_hat, mu, logvar = model(x)
        loss = vae_loss(x_hat, x, mu, logvar, cfg, cfg.beta, features)
    return loss.total, sum(size for key, size in saved.items() if key not in own)


def step_bytes(cfg: Config, batch: int, features: FeatureLoss | None) -> dict[str, int]:
    """{"fixed", "saved", "peak"} of the second of two steps, taken as `Trainer.step` does.

    fixed: weights, gradients, Adam's moments, averaged weights, the trunk; saved: tensors kept for
    the gradient (see `forward`); peak: all live memory at the worst moment, fixed included.
    """
    trunk = sum(p.nbytes for p in (*features.parameters(), *features.buffers())) if features else 0
    with FakeTensorMode(allow_non_fake_inputs=True), Storages() as storages:
        model, ema = VAE(cfg), VAE(cfg).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        shape = (batch, cfg.in_channels, cfg.image_size, cfg.image_size)
        x = torch.rand(shape).contiguous(memory_format=torch.channels_last)
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)  # before the forward pass, as the trainer does
            storages.peak = storages.now
            total, saved = forward(model, x, cfg, features)
            total.backward()
            del total
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()
            update_ema(ema, model, 0.999)
        return {"fixed": trunk + storages.now - x.nbytes, "saved": saved,
                "peak": trunk + storages.peak}  # fmt: skip


def trunk_of_shapes(cfg: Config) -> FeatureLoss | None:
    """The feature loss of `cfg` with arbitrary weights: only shapes count here."""
    if (name := trunk_name(cfg)) == "none":
        return None
    spec = TRUNKS[name]
    with torch.device("meta"):  # filling the rest of the network takes seconds
        layers = getattr(models, spec.builder)(weights=None).features.to_empty(device="cpu")
    trunk = Trunk(name, layers, tuple(sorted({*spec.perceptual_taps, *spec.lpips_taps})))
    wants = cfg.perceptual_weight > 0, cfg.lpips_weight > 0
    return FeatureLoss(trunk, *wants, cfg.perceptual_distance)


def memory(cfg: Config) -> dict:
    """Memory of a step of `cfg` on a GPU in bf16, in GB (10^9 bytes), and the largest batch."""
    features, n = trunk_of_shapes(cfg), cfg.batch_size
    one, two, half, full = (step_bytes(cfg, b, features) for b in (1, 2, n // 2, n))
    each = two["saved"] - one["saved"]
    slope = (full["peak"] - half["peak"]) / (n - n // 2)
    largest = int(n + (CARD - ALLOWANCE - full["peak"]) // slope)
    found = {
        "fixed": full["fixed"], "saved_per_image": each, "saved_once": one["saved"] - each,
        "saved": one["saved"] + (n - 1) * each, "saved_directly": full["saved"],
        "transient": full["peak"] - full["fixed"] - full["saved"], "allowance": ALLOWANCE,
        "total": full["peak"] + ALLOWANCE, "half_batch": half["peak"] + ALLOWANCE,
        "at_largest": step_bytes(cfg, largest, features)["peak"] + ALLOWANCE,
    }  # fmt: skip
    gb = {key + "_gb": round(value / GB, 4) for key, value in found.items()}
    print(f"{gb['fixed_gb']:.2f} fixed + {gb['saved_once_gb']:.2f} + {n} x"
          f" {gb['saved_per_image_gb']:.4f} saved + {gb['transient_gb']:.2f} transient +"
          f" {gb['allowance_gb']:.0f} allowance = {gb['total_gb']:.1f} GB at batch {n};"
          f" {CARD / GB:.0f} GB hold {largest}")  # fmt: skip
    return {"batch": n, **gb, "card_gb": CARD / GB, "fits": gb["total_gb"] <= CARD / GB,
            "largest_batch": largest}  # fmt: skip


def train(cfg: Config, steps: int) -> dict:
    """Real training steps from the start of phase 2; time, memory and loss."""
    data, peak = load_data(cfg), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before = psutil.Process().memory_info().rss
    ours, seconds, losses = Ours(cfg, data), [], []
    for _ in range(steps):
        start = time.perf_counter()
        terms = ours.trainer.step(next(ours.films), float(cfg.epochs_phase1))
        losses.append(terms["loss"].item())
        seconds.append(time.perf_counter() - start)
        print(f"step {len(losses)}: loss {losses[-1]:.4f}, {seconds[-1]:.1f} s", flush=True)
    found = {"peak_rss": peak(), "grown": peak() - before}  # before the estimate adds its own
    found["estimated"] = step_bytes(cfg, cfg.batch_size, ours.trainer.features)["peak"]
    return {
        "steps": steps, "batch": cfg.batch_size, "data": data.source, "n": len(data.train),
        "precision": ours.trainer.precision, "threads": torch.get_num_threads(),
        "seconds_per_step": round(statistics.median(seconds), 2),
        "seconds": round(sum(seconds), 1),
        **{key + "_gb": round(value / GB, 3) for key, value in found.items()},
        "losses": [round(loss, 5) for loss in losses],
        "loss_first": losses[0], "loss_last": losses[-1],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset")
    parser.add_argument("--memory", action="store_true", help="add up, do not train")
    parser.add_argument("--batch", type=int, help="else the preset's")
    parser.add_argument("--features", default="auto", help="the trunk; else the preset's")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--data", default="", help="the data set's folder")
    parser.add_argument("--images", type=int, default=64, help="to train on, at most")
    parser.add_argument("--size", type=int, help="else the preset's")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    noted = preset(given.preset, profile="full")
    cfg = preset(given.preset, profile="full", batch_size=given.batch, features=given.features,
                 data_path=given.data, max_images=given.images, image_size=given.size)  # fmt: skip
    words = ["DIR" if word == given.data and word else word for word in sys.argv]
    name = f"{given.preset} memory {trunk_name(cfg)}" if given.memory else given.preset
    row = {
        "name": name, "command": " ".join(["python", *words]), "torch": torch.__version__,
        "size": cfg.image_size, "features": trunk_name(cfg), "preset_features": trunk_name(noted),
        "preset_batch": noted.batch_size,
        "parameters": sum(p.numel() for p in VAE(cfg).parameters()),
        **(memory(cfg) if given.memory else train(cfg, given.steps)),
    }  # fmt: skip
    rows = json.loads(given.out.read_text()) if given.out.exists() else []
    rows = sorted([r for r in rows if r["name"] != name] + [row], key=lambda r: r["name"])
    given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
