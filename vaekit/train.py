"""fit(): two phases, one readable loop. `python -m vaekit.train chest_xray beta=0.01` runs it."""

import copy
import math
import time

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from vaekit import fast
from vaekit.config import Config
from vaekit.data import Data, batches
from vaekit.features import FeatureLoss
from vaekit.keep import guards
from vaekit.losses import beta_elbo, kl_share, reduction_factors, vae_loss
from vaekit.model import VAE
from vaekit.place.device import choose_device, choose_precision
from vaekit.schedules import BetaBand, Plateau, annealed, beta_at, ema_decay, lr_factor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
        device = choose_device()
        if device.type == "cpu":
            fast.keep_freed_memory()
        # Accelerator brings device, processes and DDP. Precision stays here: a second Accelerator
        # with another `mixed_precision` raises, and one notebook holds many fits.
        self.accelerator = Accelerator(cpu=device.type == "cpu")
        self.device, self.cfg, self.data = self.accelerator.device, cfg, data
        self.precision = choose_precision(cfg.precision, self.device)
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
        self.best, self.best_loss, self.bad_epochs = None, math.inf, 0
        self.epoch, self.step, self.history = 0, 0, []
        # of guards: what may stop it, times gone back, parts of a batch, skipped steps in a row,
        # and of an epoch that was stopped, how far it had come
        self.stop, self.setbacks, self.parts, self.streak = guards.Stop(), 0, 1, 0
        self.partial = None

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
        half = DTYPES.get(self.precision)
        return torch.autocast(self.device.type, dtype=half, enabled=half is not None)

    def learning_rate(self, epoch: float) -> float:
        """Rate at a fractional epoch: the phase's own, times its schedule."""
        cfg, phase = self.cfg, 1 + (epoch >= self.cfg.epochs_phase1)
        names = (f"{name}_phase{phase}" for name in ("lr", "lr_schedule", "epochs"))
        lr, kind, length = (getattr(cfg, name) for name in names)
        progress = (epoch - (phase - 1) * cfg.epochs_phase1) / length
        return lr * lr_factor(kind, progress, cfg.lr_warmup) * self.plateau.scale / 2**self.setbacks

    def train_step(self, x: Tensor, epoch: float) -> dict[str, Tensor]:
        """One optimiser step on a batch x (B, C, H, W) in [0, 1]; the detached loss terms.

        Where the loss or a gradient is not finite, the step is skipped: `grad_norm` says so.
        """
        self.beta = beta_at(self.cfg, epoch, self.band.level)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch)
        buffers = [(b, b.clone()) for b in self.raw.buffers()]  # BatchNorm's; most have none
        while (terms := self.backward(x, epoch)) is None:
            clear_device_cache(garbage_collection=True)
            for now, before in buffers:
                now.copy_(before)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(
            self.raw.parameters(), self.cfg.grad_clip or math.inf, foreach=True
        )
        guards.step_if(norm.isfinite(), self.optimizer, self.scaler, buffers)
        self.step += 1
        update_ema(self.ema, self.raw, ema_decay(self.cfg, self.step))
        return terms | {"grad_norm": norm}

    def backward(self, x: Tensor, epoch: float) -> dict[str, Tensor] | None:
        """Gradients of the batch's mean loss, summed over `parts` of it; None, and twice the
        parts, where memory ran out. BatchNorm then sees the parts, not the batch."""
        cfg, means = self.cfg, {}
        self.optimizer.zero_grad(set_to_none=True)
        try:
            for part in x.tensor_split(self.parts):
                with self.autocast():
                    # phase 1 decodes the mean: a plain autoencoder, no noise to average over
                    x_hat, mu, logvar = self.model(part, sample=epoch >= cfg.epochs_phase1)
                    loss = vae_loss(x_hat, part, mu, logvar, cfg, self.beta, self.features)
                share = len(part) / len(x)
                total = loss.total * guards.poison(loss.total) * share
                self.accelerator.backward(self.scaler.scale(total))
                means = {k: means.get(k, 0) + v * share for k, v in loss.terms.items()}
            return means
        except RuntimeError as error:
            processes = self.accelerator.num_processes
            self.parts = guards.more_parts(error, self.parts, len(x), processes)
        return None  # only now, without the error, is what it held let go

    def train_epoch(self) -> dict[str, float] | None:
        """Every training image once; means of the loss terms over the epoch. None where a stop
        was asked for: `partial` then remembers how far it came."""
        cfg, acc, split = self.cfg, self.accelerator, self.data.train
        rank, world = acc.process_index, acc.num_processes
        order, flip = epoch_order(cfg, len(split), self.epoch, rank, world)
        size = min(cfg.batch_size, len(split)) // world
        steps, done, tally = len(order) // size, 0, guards.Tally(self.streak)
        generators = [torch, torch.cuda][: 1 + (self.device.type == "cuda")]
        self.model.train()
        with torch.random.fork_rng(devices=[self.device] if len(generators) > 1 else []):
            # the noise of an epoch depends on seed and epoch alone: a resumed run repeats it
            torch.manual_seed((cfg.seed * 1_000_003 + self.epoch) * 64 + rank)
            if self.partial:
                done, rng, sums = self.partial.values()
                tally, self.partial = guards.Tally(*send_to_device(sums, self.device)), None
                for generator, state in zip(generators, rng, strict=False):
                    generator.set_rng_state(state)
            order, flip = order[done * size :], flip[done * size :]
            stream = batches(split, size, self.device, order, flip, channels_last=cfg.channels_last)
            for x in stream:
                terms = self.train_step(x, self.epoch + done / steps)
                tally.add(terms)
                done += 1
                if done % guards.LOOK_EVERY == 0 or done == steps:
                    tally.check()
                if done < steps and world == 1 and self.stop.now():
                    rng = [generator.get_rng_state() for generator in generators]
                    self.partial = {"steps": done, "rng": rng, "sums": list(vars(tally).values())}
                    return None
        self.streak, skipped = tally.streak, steps - int(tally.finite[-1])
        means = acc.reduce(tally.sums / tally.finite, "mean").tolist()  # NaN if never finite
        means = dict(zip(terms, means, strict=True))
        return means | ({"skipped": skipped} if skipped else {})

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss terms on the validation films at the `final_beta`, averaged weights, z sampled
        with fixed noise (phase 1: the mean, as it trains). `loss` is the negative ELBO that "best"
        and the plateau watch."""
        cfg, acc, split, sums = self.cfg, self.accelerator, self.data.val, 0
        generator = torch.Generator().manual_seed(cfg.seed)
        no_floor, noise = cfg.replace(free_bits=0.0), float(self.epoch >= cfg.epochs_phase1)
        for x in batches(split, cfg.batch_size, self.device, channels_last=cfg.channels_last):
            eps = noise * torch.randn(len(x), *self.raw.latent_shape, generator=generator)
            with self.autocast():
                mu, logvar = self.ema.encode(x)
                x_hat = self.ema.decode(mu + (0.5 * logvar).exp() * eps.to(self.device))
                loss = vae_loss(x_hat, x, mu, logvar, no_floor, self.final_beta, self.features)
            sums = sums + torch.stack(list(loss.terms.values())) * len(x)
        # every process has measured all of it; a mean, so that none decides for itself
        totals = [total / len(split) for total in acc.reduce(sums, "mean").tolist()]
        totals = dict(zip(loss.terms, totals, strict=True))
        return totals | {"psnr": -10 * math.log10(max(totals["mse"], 1e-10))}

    def run_epoch(self) -> dict[str, float] | None:
        """Train, validate, remember the best; the epoch's row of the history. None where a stop
        was asked for within it. Raises NotFinite where there is no going on."""
        cfg, start, epoch = self.cfg, time.perf_counter(), self.epoch
        phase = 1 + (epoch >= cfg.epochs_phase1)
        if cfg.rescale_latents and epoch == cfg.epochs_phase1 > 0 and not self.partial:
            self.begin_phase2()
        if (train := self.train_epoch()) is None:
            return None
        val = self.validate()
        if not math.isfinite(train["loss"] + val["loss"]):
            raise guards.NotFinite("the loss is not finite")
        sizes = self.data.train.images[0].numel(), math.prod(self.raw.latent_shape)
        row = {
            "epoch": epoch + 1, "phase": phase, "beta": self.beta,
            "beta_elbo": beta_elbo(cfg, self.beta, train["l1"], train["mse"], *sizes),
            "kl_share": kl_share(cfg, self.beta, train["recon"], train["kl"], *sizes),
            "lr": self.learning_rate(epoch),
        }  # fmt: skip
        row |= {f"train_{k}": v for k, v in train.items()} | {f"val_{k}": v for k, v in val.items()}
        row["seconds"] = round(time.perf_counter() - start, 3)
        plateau = getattr(cfg, f"lr_schedule_phase{phase}") == "plateau"
        if plateau and (phase == 1 or annealed(cfg, epoch)):
            self.plateau.step(val["loss"])
        self._remember_best(epoch, val)
        if "adaptive" in cfg.beta_schedule and phase == 2:
            level = self.band.level  # in a cooldown too, the share that the full level would have
            share = kl_share(cfg, level, train["recon"], train["kl"], *sizes)
            elbo = beta_elbo(cfg, level, train["l1"], train["mse"], *sizes)
            self.band.step(share, ceiling=level / max(elbo, 1e-30))
            self.best_loss = self.best_now()
        self.history.append(row)
        self.epoch += 1
        if self.epoch == cfg.epochs_phase1:
            self.plateau = Plateau(cfg.plateau_patience)
        return row

    @property
    def final_beta(self) -> float:
        """The beta that epochs are compared at; an adaptive one moves, and they with it."""
        return self.band.level if "adaptive" in self.cfg.beta_schedule else self.cfg.beta

    def best_now(self) -> float:
        """The best epoch's validation loss, its KL priced at the `final_beta` of now."""
        if not (best := self.best):
            return math.inf
        return best["loss"] + (self.final_beta - best.get("beta", self.final_beta)) * best.get(
            "rate", 0.0)  # fmt: skip

    def _remember_best(self, epoch: int, val: dict[str, float]) -> None:
        if not annealed(self.cfg, epoch):
            return
        self.bad_epochs += 1
        if val["loss"] < self.best_loss:
            self.best_loss, self.bad_epochs = val["loss"], 0
            weights = {k: v.detach().cpu().clone() for k, v in self.ema.state_dict().items()}
            _, k_kl = reduction_factors(1, math.prod(self.raw.latent_shape), self.cfg)
            self.best = {"model": weights, "epoch": epoch + 1, "loss": val["loss"],
                         "beta": self.final_beta, "rate": k_kl * val["kl"],
                         "config": self.cfg.to_dict()}  # fmt: skip

    def any_process(self, yes: bool) -> bool:
        """Whether it is so for one of them: all have to leave the loop together."""
        return self.accelerator.reduce(torch.tensor(float(yes), device=self.device)).item() > 0

    @property
    def done(self) -> bool:
        stopped = self.cfg.early_stop and self.bad_epochs >= self.cfg.early_stop
        return self.epoch >= self.cfg.num_epochs or bool(stopped)

    def result(self) -> VAE:
        """The averaged weights of the best epoch, or of the last before annealing has ended."""
        model = copy.deepcopy(self.ema)
        if self.best:
            model.load_state_dict(self.best["model"])
        return model
