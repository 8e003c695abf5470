"""fit(): two phases, one readable loop. `python -m vaekit.train chest_xray beta=0.01` runs it."""

import contextlib
import copy
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vaekit import checkpoint, hosting
from vaekit.config import Config, preset, runs_dir
from vaekit.data import Data, batches, load_data
from vaekit.features import FeatureLoss, feature_loss
from vaekit.losses import beta_elbo, kl_share, vae_loss
from vaekit.model import VAE
from vaekit.runs import Run, RunWriter, held, load_run, open_run
from vaekit.schedules import BetaBand, Plateau, annealed, beta_at, ema_decay, lr_factor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def epoch_order(cfg: Config, n: int, epoch: int, rank: int = 0, world: int = 1):
    """(order, flip) of one epoch: the same on every machine, from seed and epoch alone.

    Whole batches of `batch_size` only (a smaller set is one batch); process `rank` of `world`
    takes its share of every batch.
    """
    generator = torch.Generator().manual_seed(cfg.seed * 1_000_003 + epoch)
    size = min(cfg.batch_size, n) // world * world
    order = torch.randperm(n, generator=generator)[: n // size * size]
    flip = torch.rand(len(order), generator=generator) < (0.5 if cfg.flip else 0.0)
    mine = slice(rank * size // world, (rank + 1) * size // world)
    return order.view(-1, size)[:, mine].flatten(), flip.view(-1, size)[:, mine].flatten()


@torch.no_grad()
def update_ema(ema: VAE, model: VAE, decay: float) -> None:
    """ema = decay * ema + (1 - decay) * model; buffers (running statistics) are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
    for mine, theirs in zip(ema.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)


class Trainer:
    """What a run needs from step to step. `fit` is the way in."""

    def __init__(self, cfg: Config, data: Data, features: FeatureLoss | None):
        from accelerate import Accelerator

        device = hosting.choose_device()
        if device.type == "cpu":
            hosting.keep_freed_memory()
        # Accelerator brings device, processes and DDP. Precision stays here: a second Accelerator
        # with another `mixed_precision` raises, and one notebook holds many fits.
        self.accelerator = Accelerator(cpu=device.type == "cpu")
        self.device, self.cfg, self.data = self.accelerator.device, cfg, data
        self.precision = hosting.choose_precision(cfg.precision, self.device)
        with torch.random.fork_rng():
            torch.manual_seed(cfg.seed)
            model = VAE(cfg)
        layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
        self.raw = model.to(self.device, memory_format=layout)
        self.ema = copy.deepcopy(self.raw).eval().requires_grad_(False)
        self.model = self.accelerator.prepare(self.raw)
        self.features = features.to(self.device, memory_format=layout) if features else None
        self.optimizer = self.make_optimizer()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.plateau, self.band = Plateau(cfg.plateau_patience), BetaBand(cfg)
        self.best, self.best_loss = None, math.inf
        self.epoch, self.step, self.history, self.bad_epochs = 0, 0, [], 0

    def make_optimizer(self) -> torch.optim.Optimizer:
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[self.cfg.optimizer]
        return kind(self.raw.parameters(), lr=1.0, weight_decay=self.cfg.weight_decay,
                    fused=self.device.type in ("cuda", "cpu"))  # fmt: skip

    @torch.no_grad()
    def begin_phase2(self) -> None:
        """Give the latents the prior's scale (see `VAE.rescale_latents`), and start Adam afresh."""
        squares, count = 0.0, 0
        self.raw.eval()
        for x in batches(self.data.train, self.cfg.batch_size, self.device):
            mu = self.raw.encode(x)[0].transpose(0, 1).flatten(1)  # (latent_channels, ...)
            squares, count = squares + mu.square().sum(1), count + mu.shape[1]
        rms = self.accelerator.reduce((squares / count).sqrt(), "mean")
        for model in (self.raw, self.ema):
            model.rescale_latents(rms)
        self.optimizer = self.make_optimizer()

    def autocast(self):
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    def learning_rate(self, epoch: float) -> float:
        """Rate at a fractional epoch: the phase's own, times its schedule."""
        cfg = self.cfg
        if epoch < cfg.epochs_phase1:
            lr, kind, progress = cfg.lr_phase1, cfg.lr_schedule_phase1, epoch / cfg.epochs_phase1
        else:
            lr, kind = cfg.lr_phase2, cfg.lr_schedule_phase2
            progress = (epoch - cfg.epochs_phase1) / cfg.epochs_phase2
        return lr * lr_factor(kind, progress, cfg.lr_warmup) * self.plateau.scale

    def train_step(self, x: Tensor, epoch: float) -> dict[str, Tensor]:
        """One optimiser step on a batch x (B, C, H, W) in [0, 1]; the detached loss terms."""
        cfg, beta = self.cfg, beta_at(self.cfg, epoch, self.band.level)
        self.beta = beta
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch)
        with self.autocast():
            # phase 1 decodes the mean: a plain autoencoder, no noise to average over
            x_hat, mu, logvar = self.model(x, sample=epoch >= cfg.epochs_phase1)
            loss = vae_loss(x_hat, x, mu, logvar, cfg, beta, self.features)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(self.scaler.scale(loss.total))
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(
            self.raw.parameters(), cfg.grad_clip or math.inf, foreach=True
        )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        update_ema(self.ema, self.raw, ema_decay(cfg, self.step))
        return loss.terms | {"grad_norm": norm}

    def train_epoch(self) -> dict[str, float]:
        """Every training image once; means of the loss terms over the epoch."""
        cfg, acc, split = self.cfg, self.accelerator, self.data.train
        rank, world = acc.process_index, acc.num_processes
        order, flip = epoch_order(cfg, len(split), self.epoch, rank, world)
        size = min(cfg.batch_size, len(split)) // world
        steps, sums = len(order) // size, {}
        self.model.train()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            # the noise of an epoch depends on seed and epoch alone: a resumed run repeats it
            torch.manual_seed((cfg.seed * 1_000_003 + self.epoch) * 64 + rank)
            stream = batches(split, size, self.device, order, flip, channels_last=cfg.channels_last)
            for i, x in enumerate(stream):
                terms = self.train_step(x, self.epoch + i / steps)
                for name, value in terms.items():  # stays on the device: no wait in the loop
                    sums[name] = sums.get(name, 0) + value
        return {name: acc.reduce(s / steps, "mean").item() for name, s in sums.items()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss terms on the validation films at the *final* beta, averaged weights, z sampled
        with fixed noise (phase 1: the mean, as it trains). `loss` is the negative ELBO that "best"
        and the plateau watch."""
        cfg, acc, split, sums = self.cfg, self.accelerator, self.data.val, {}
        generator = torch.Generator().manual_seed(cfg.seed)
        no_floor, noise = cfg.replace(free_bits=0.0), float(self.epoch >= cfg.epochs_phase1)
        for i, x in enumerate(batches(split, cfg.batch_size, self.device,
                                      channels_last=cfg.channels_last)):  # fmt: skip
            eps = noise * torch.randn(len(x), *self.raw.latent_shape, generator=generator)
            if i % acc.num_processes != acc.process_index:
                continue
            with self.autocast():
                mu, logvar = self.ema.encode(x)
                x_hat = self.ema.decode(mu + (0.5 * logvar).exp() * eps.to(self.device))
                loss = vae_loss(x_hat, x, mu, logvar, no_floor, cfg.beta, self.features)
            for name, value in loss.terms.items():
                sums[name] = sums.get(name, 0) + value * len(x)
        names = sorted(sums) if acc.num_processes == 1 else self._same_names(sums)
        zero = torch.zeros((), device=self.device)
        totals = {n: acc.reduce(sums.get(n, zero), "sum").item() / len(split) for n in names}
        return totals | {"psnr": -10 * math.log10(max(totals["mse"], 1e-10))}

    def _same_names(self, sums: dict) -> list[str]:
        """Every process must reduce the same terms in the same order, also one without a batch."""
        from accelerate.utils import gather_object

        return sorted({name for names in gather_object([list(sums)]) for name in names})

    def run_epoch(self) -> dict[str, float]:
        """Train, validate, remember the best; the epoch's row of the history."""
        cfg, start, epoch = self.cfg, time.perf_counter(), self.epoch
        if cfg.rescale_latents and epoch == cfg.epochs_phase1 > 0:
            self.begin_phase2()
        train, val = self.train_epoch(), self.validate()
        if not math.isfinite(train["loss"] + val["loss"]):
            raise FloatingPointError(
                f"epoch {epoch + 1}: the loss is not finite. The last checkpoint is good; lower"
                f" lr_phase{1 + (epoch >= cfg.epochs_phase1)}, or set grad_clip, logvar_clamp"
            )
        sizes = self.data.train.images[0].numel(), math.prod(self.raw.latent_shape)
        row = {
            "epoch": epoch + 1, "phase": 1 + (epoch >= cfg.epochs_phase1), "beta": self.beta,
            "beta_elbo": beta_elbo(cfg, self.beta, train["l1"], train["mse"], *sizes),
            "kl_share": kl_share(cfg, self.beta, train["recon"], train["kl"], *sizes),
            "lr": self.learning_rate(epoch),
        }  # fmt: skip
        row |= {f"train_{k}": v for k, v in train.items()} | {f"val_{k}": v for k, v in val.items()}
        row["seconds"] = round(time.perf_counter() - start, 3)
        kind = cfg.lr_schedule_phase1 if row["phase"] == 1 else cfg.lr_schedule_phase2
        if kind == "plateau" and (row["phase"] == 1 or annealed(cfg, epoch)):
            self.plateau.step(val["loss"])
        if "adaptive" in cfg.beta_schedule and row["phase"] == 2:
            level = self.band.level  # in a cooldown too, the share that the full level would have
            share = kl_share(cfg, level, train["recon"], train["kl"], *sizes)
            elbo = beta_elbo(cfg, level, train["l1"], train["mse"], *sizes)
            self.band.step(share, ceiling=level / max(elbo, 1e-30))
        self._remember_best(epoch, val["loss"])
        self.history.append(row)
        self.epoch += 1
        if self.epoch == cfg.epochs_phase1:
            self.plateau = Plateau(cfg.plateau_patience)
        return row

    def _remember_best(self, epoch: int, loss: float) -> None:
        if not annealed(self.cfg, epoch):
            return
        self.bad_epochs += 1
        if loss < self.best_loss:
            self.best_loss, self.bad_epochs = loss, 0
            weights = {k: v.detach().cpu().clone() for k, v in self.ema.state_dict().items()}
            self.best = {"model": weights, "epoch": epoch + 1, "loss": loss}

    @property
    def done(self) -> bool:
        stopped = self.cfg.early_stop and self.bad_epochs >= self.cfg.early_stop
        return self.epoch >= self.cfg.num_epochs or bool(stopped)

    def state(self) -> dict:
        return {
            "model": self.raw.state_dict(), "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
            "plateau": self.plateau.state(), "band": self.band.state(),
            "epoch": self.epoch, "step": self.step,
            "phase": 1 + (self.epoch >= self.cfg.epochs_phase1), "best_loss": self.best_loss,
            "bad_epochs": self.bad_epochs, "history": self.history, "config": self.cfg.to_dict(),
        }  # fmt: skip

    def restore(self, state: dict, best: dict | None) -> None:
        self.raw.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.plateau.restore(state["plateau"])
        self.band.restore(state["band"])
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]
        self.best_loss, self.bad_epochs, self.best = state["best_loss"], state["bad_epochs"], best

    def result(self) -> VAE:
        """The averaged weights of the best epoch, or of the last before annealing has ended."""
        if self.best:
            self.ema.load_state_dict(self.best["model"])
        return self.ema


def fit(cfg: Config, data: Data, out: str | Path | None = None, resume: str = "auto",
        max_minutes: float | None = None, on_epoch_end: Callable[[Run], None] | None = None,
        verbose: bool = True) -> Run:  # fmt: skip
    """Train `cfg` on `data` in two phases and return the Run.

    out: folder of runs (default `VAEKIT_RUNS` or "runs"). resume: "auto" continues an unfinished
    run of the same config and data, or loads a finished one, and says so; "never" starts anew.
    max_minutes: stop before the epoch that would not fit, saved and ready to go on; on Kaggle the
    session's end is the limit where none is given.
    on_epoch_end(run): called after every epoch with the run so far, `run.model` the averaged
    weights. Raises FloatingPointError where the loss stops being finite, ValueError where data
    and config disagree.
    """
    if resume not in ("auto", "never"):
        raise ValueError(f"resume={resume!r} is not one of auto, never")
    data.check(cfg)
    start, features = time.perf_counter(), feature_loss(cfg, verbose)
    max_minutes = hosting.minutes_left() if max_minutes is None else max_minutes
    cfg = cfg.replace(features=features.name if features else "none")
    trainer = Trainer(cfg, data, features)
    main = trainer.accelerator.is_main_process
    say = print if verbose and main else lambda *_: None
    out = Path(out) if out else runs_dir()
    path = open_run(out, cfg, data.hash, resume, say) if main else None
    path = _share(trainer.accelerator, path)
    with held(path, main):
        info = _run_info(cfg, data, trainer)
        if resume == "auto" and (state := checkpoint.newest_valid(path)):
            trainer.restore(state, checkpoint.newest_valid(path, "best.pt"))
            if trainer.done:
                say(f"finished run found: {path.name}, {trainer.epoch} epochs; loaded, not trained")
                return load_run(path)
            say(f"going on with {path.name} after epoch {trainer.epoch} of {cfg.num_epochs}")
        run = Run(trainer.ema, trainer.history, path, cfg, info)
        writer = RunWriter(run, trainer) if main else None
        _loop(trainer, run, writer, start, max_minutes, on_epoch_end, say)
        if writer:
            writer.save()  # before the best weights take the place of the last
        run.model = trainer.result()
        if writer:
            writer.close(run)
    return run


def _loop(trainer: Trainer, run: Run, writer, start: float, max_minutes: float | None,
          on_epoch_end, say) -> None:  # fmt: skip
    cfg = trainer.cfg
    bar = hosting.Progress(cfg.num_epochs, trainer.epoch, say is print)
    while not trainer.done:
        row = trainer.run_epoch()
        bar.show(row)
        run.info["finished"] = trainer.done
        if writer:
            writer.epoch(row)
        if on_epoch_end:
            on_epoch_end(run)
        longest = max(r["seconds"] for r in trainer.history[-3:])
        ahead = time.perf_counter() - start + 1.2 * longest + 2
        if max_minutes and ahead > 60 * max_minutes and not trainer.done:
            say(f"{max_minutes:.3g} minutes are up after epoch {trainer.epoch} of {cfg.num_epochs}:"
                f" saved; the same call goes on from here")  # fmt: skip
            break
    bar.close()


def _share(accelerator, path: Path | None) -> Path:
    """The main process's folder, told to the others."""
    from accelerate.utils import broadcast_object_list

    return Path(broadcast_object_list([str(path)])[0]) if accelerator.num_processes > 1 else path


def _run_info(cfg: Config, data: Data, trainer: Trainer) -> dict:
    from vaekit import __version__

    return {
        "vaekit": __version__, "torch": torch.__version__, "python": platform.python_version(),
        "command": " ".join(sys.argv[:1] and [Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": trainer.device.type, "precision": trainer.precision, "features": cfg.features,
        "processes": trainer.accelerator.num_processes, "finished": False,
        "data": {"source": data.source, "hash": data.hash, "train": len(data.train),
                 "val": len(data.val), "test": len(data.test)},
    }  # fmt: skip


def parse_changes(arguments: list[str]) -> dict:
    """["beta=0.01", "widths=[32,64]", "norm=batch"] -> {"beta": 0.01, ...}."""
    changes = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r} is not key=value")
        try:
            changes[key] = json.loads(text)
        except json.JSONDecodeError:
            changes[key] = text
    return changes


def main(arguments: list[str]) -> Run:
    """`python -m vaekit.train PRESET key=value ... [out=DIR] [max_minutes=M]`"""
    name, *rest = arguments or ["chest_xray"]
    changes = parse_changes(rest)
    out, minutes = changes.pop("out", None), changes.pop("max_minutes", None)
    cfg, speaks = preset(name, **changes), os.environ.get("RANK", "0") == "0"  # torchrun's rank
    run = fit(cfg, load_data(cfg, verbose=speaks), out=out, max_minutes=minutes)
    if speaks:
        finished = "finished" if run.finished else "unfinished"
        print(f"{run.path}: {len(run.history)} epochs, {finished}")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # nobody leaves while another still writes
        torch.distributed.destroy_process_group()
    return run


if __name__ == "__main__":
    main(sys.argv[1:])
