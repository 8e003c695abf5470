"""The training loop on one page: a step, an epoch, a run.

It knows no disk, no clock and no signals. `keep.run.fit` adds what a long run needs: checkpoints,
resuming after a stop, steps that are not finite, memory that runs out.
"""

import copy
import math
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from vaekit import fast, schedules
from vaekit.config import Config
from vaekit.critic import Critic, add_share
from vaekit.data import Data, batches
from vaekit.features import FeatureLoss
from vaekit.linear import SMALL, linear_vae
from vaekit.losses import beta_elbo, kl_share, mse_per_image, vae_loss
from vaekit.model import VAE
from vaekit.place.device import choose_device, choose_precision
from vaekit.quantise import code_use
from vaekit.schedules import BetaBand, Plateau, final_objective

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
VALIDATED = 2000  # most images per epoch: the same ones, spread evenly over the split
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train(trainer: "Trainer", on_epoch_end: Callable | None = None) -> None:
    """Train to the end of the run; `on_epoch_end(trainer, row)` after each epoch."""
    while not trainer.done:
        row = trainer.run_epoch()
        if on_epoch_end:
            on_epoch_end(trainer, row)


class Trainer:
    """A model in training. `train(trainer)` runs it to its end.

    `raw` is the network that is trained; `model` is the same network, wrapped in DDP where there
    are several processes; `ema` has its averaged weights, is what validation measures, and is the
    result of `train`. `features` is `features.feature_loss(cfg)`; without it the feature terms are
    left out. `fit` trains a `keep.guards.GuardedTrainer`, which stops early and returns the newest
    epoch whose loss is close to the lowest.
    """

    def __init__(self, cfg: Config, data: Data, features: FeatureLoss | None = None):
        device = choose_device()
        if device.type == "cpu":
            fast.keep_freed_memory()
        # Accelerator handles device, processes and DDP. Precision is handled here: a second
        # Accelerator with another `mixed_precision` raises, and one notebook holds many fits.
        ddp = DistributedDataParallelKwargs(find_unused_parameters=cfg.critic_share > 0)
        self.accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[ddp])
        self.device = self.accelerator.device
        self.precision = choose_precision(cfg.precision, self.device)
        self.fused = self.device.type in ("cuda", "cpu")
        self.cfg = cfg
        self.data = data
        with torch.random.fork_rng():
            torch.manual_seed(cfg.seed)
            model = VAE(cfg)
            critic = Critic(cfg.in_channels, self.fused) if cfg.critic_share else None
        if cfg.start == "linear":
            linear = linear_vae(data.train, cfg.latent_channels, mirror=cfg.flip, fit_size=SMALL)
            model.start_at(linear)
        layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
        self.raw = model.to(self.device, memory_format=layout)
        self.ema = copy.deepcopy(self.raw).eval().requires_grad_(False)
        self.critic = critic.to(self.device, memory_format=layout) if critic else None
        # several processes: averages their gradients
        self.model = self.accelerator.prepare(self.raw)
        self.features = features.to(self.device, memory_format=layout) if features else None
        self.optimizer = self.new_optimizer()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.plateau = Plateau(cfg.plateau_patience)
        self.band = BetaBand(cfg)
        # that a batch is split into; `keep.guards` takes more where memory runs out
        self.parts = 1
        self.epoch = 0
        self.num_steps = 0
        self.history = []  # one row per epoch

    def new_optimizer(self) -> torch.optim.Optimizer:
        kind = OPTIMIZERS[self.cfg.optimizer]
        weights = self.raw.parameters()
        return kind(weights, lr=1.0, weight_decay=self.cfg.weight_decay, fused=self.fused)

    # ---- a step ----------------------------------------------------------------------------------

    def step(self, x: Tensor, epoch: float) -> dict[str, Tensor]:
        """One optimiser step on images x (B, C, H, W) in [0, 1], at a fractional epoch.

        Returns the loss terms, detached means over the batch, and the gradient's norm.
        """
        self.beta = schedules.beta_at(self.cfg, epoch, self.band.level)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch)
        terms = self.gradients(x, epoch)
        self.scaler.unscale_(self.optimizer)
        longest = self.cfg.grad_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.raw.parameters(), longest, foreach=True)
        terms = terms | {"grad_norm": norm}
        self.update(terms)
        self.num_steps += 1
        update_ema(self.ema, self.raw, schedules.ema_decay(self.cfg, self.num_steps))
        return terms

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.critic:
            self.critic.optimizer.zero_grad(set_to_none=True)

    def gradients(self, x: Tensor, epoch: float) -> dict[str, Tensor]:
        """Forward, loss, backward, a part of the batch after the other; the terms' means."""
        self.zero_grad()
        # phase 1 decodes the mean: a plain autoencoder, without noise
        sample = epoch >= self.cfg.epochs_phase1
        frozen = schedules.decoder_only(self.cfg, epoch)
        means = {}
        for images in x.tensor_split(self.parts):
            part = len(images) / len(x)
            with self.autocast():
                x_hat, mu, logvar = self.model(images, sample, frozen)
                networks = self.features, self.raw.quantiser
                loss = vae_loss(x_hat, images, mu, logvar, self.cfg, self.beta, *networks)
            if self.critic:
                loss.terms["critic"] = self.teach_critic(images, x_hat, frozen, part)
            self.backward(self.scaler.scale(self.objective(loss.total) * part), x_hat, epoch)
            for name, value in loss.terms.items():
                means[name] = means.get(name, 0) + value * part
        return means

    def teach_critic(self, x: Tensor, x_hat: Tensor, frozen: bool, part: float) -> Tensor:
        """Adds to the critic's own .grad; returns its hinge loss, 0 while it does not train."""
        if not frozen:
            return torch.zeros((), device=self.device)
        loss = self.critic.loss(x, x_hat)
        (loss * part).backward()
        return loss.detach()

    def backward(self, total: Tensor, x_hat: Tensor, epoch: float) -> None:
        """The gradient of `total`; a critic's pull is added to it at x_hat."""
        pull = schedules.critic_share_at(self.cfg, epoch)
        if pull:
            # only the decoder trains: every gradient passes through x_hat
            (gradient,) = torch.autograd.grad(total, x_hat)
            x_hat.backward(add_share(gradient, self.critic.gradient(x_hat), pull))
        else:
            total.backward()

    def objective(self, total: Tensor) -> Tensor:
        """What is minimised: the total loss. `keep.guards` makes it NaN where it is not finite."""
        return total

    def update(self, terms: dict[str, Tensor]) -> None:
        """The optimisers' steps. `keep.guards` skips them where the gradient is not finite."""
        self.scaler.step(self.optimizer)
        if self.critic:
            self.critic.step(self.accelerator)
        self.scaler.update()

    def autocast(self):
        half = DTYPES.get(self.precision)
        return torch.autocast(self.device.type, dtype=half, enabled=half is not None)

    def learning_rate(self, epoch: float) -> float:
        """The phase's own rate, times its schedule at this share of the phase."""
        cfg = self.cfg
        if epoch < cfg.epochs_phase1:
            lr, kind = cfg.lr_phase1, cfg.lr_schedule_phase1
            progress = epoch / cfg.epochs_phase1
        else:
            lr, kind = cfg.lr_phase2, cfg.lr_schedule_phase2
            progress = (epoch - cfg.epochs_phase1) / cfg.epochs_phase2
        return lr * schedules.lr_factor(kind, progress, cfg.lr_warmup) * self.plateau.scale

    # ---- an epoch --------------------------------------------------------------------------------

    def run_epoch(self) -> dict[str, float]:
        """Train on all whole batches, validate, adapt; returns the history's new row."""
        cfg = self.cfg
        quantised = self.raw.quantiser is not None  # its scale is fixed
        if cfg.rescale_latents and not quantised and self.epoch == cfg.epochs_phase1 > 0:
            self.begin_phase2()
        train_means = self.train_epoch()
        val_means = self.validate()
        row = self.new_row(train_means, val_means)
        self.history.append(row)
        self.adapt(row)
        self.epoch += 1
        if self.epoch == cfg.epochs_phase1:
            self.plateau = Plateau(cfg.plateau_patience)
        return row

    def train_epoch(self) -> dict[str, float]:
        """One step per batch; {term: mean of its finite values}, NaN where there are none."""
        # kept on the device, so that no step waits for another
        values = []
        self.model.train()
        rank = self.accelerator.process_index
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            # an epoch's noise depends on seed and epoch alone: a resumed run repeats it
            torch.manual_seed((self.cfg.seed * 1_000_003 + self.epoch) * 64 + rank)
            for x, epoch in self.epoch_batches():
                terms = self.step(x, epoch)
                values.append(torch.stack(list(terms.values())))
        values = torch.stack(values)  # (steps, terms)
        means = values.where(values.isfinite(), math.nan).nanmean(0)
        means = self.accelerator.reduce(means, "mean").tolist()
        return dict(zip(terms, means, strict=True))

    def epoch_batches(self) -> Iterator[tuple[Tensor, float]]:
        """(images, fractional epoch) of every batch, in the epoch's own order."""
        cfg = self.cfg
        split = self.data.train
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        order, flip = epoch_order(cfg, len(split), self.epoch, rank, world)
        shift = epoch_shifts(cfg, len(order), self.epoch, rank) if cfg.shift else None
        size = min(cfg.batch_size, len(split)) // world
        steps = len(order) // size
        images = batches(split, size, self.device, order, flip, cfg.channels_last, shift)
        for i, x in enumerate(images):
            yield x, self.epoch + i / steps

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss terms on at most `VALIDATED` validation images: averaged weights, z sampled with
        fixed noise (none in phase 1). `loss` weighs the KL by `final_beta` in every epoch, without
        free bits and critic; compare only epochs that train for it (`schedules.final_objective`).
        For quantised codes also `quantise.code_use`."""
        cfg = self.cfg.replace(free_bits=0.0)
        split = self.data.val
        order = torch.linspace(0, len(split) - 1, min(len(split), VALIDATED)).round().long()
        noise = torch.Generator().manual_seed(cfg.seed)
        scale = 0.0 if self.phase == 1 else 1.0
        sums = 0
        indices = []
        quantiser = self.ema.quantiser
        size = cfg.batch_size // self.parts
        for x in batches(split, size, self.device, order, channels_last=cfg.channels_last):
            eps = scale * torch.randn(len(x), *self.raw.latent_shape, generator=noise)
            with self.autocast():
                mu, logvar = self.ema.encode(x)
                x_hat = self.ema.decode(mu + (0.5 * logvar).exp() * eps.to(self.device))
                networks = self.features, quantiser
                loss = vae_loss(x_hat, x, mu, logvar, cfg, self.final_beta, *networks)
            loss.terms["mse"] = mse_per_image(x_hat, x).mean()  # for PSNR: at full size only
            if quantiser is not None:
                indices.append(quantiser.indices(mu).flatten())
            sums = sums + torch.stack(list(loss.terms.values())) * len(x)
        # every process has measured all images; with the mean they decide alike
        totals = self.accelerator.reduce(sums, "mean").tolist()
        means = {name: total / len(order) for name, total in zip(loss.terms, totals, strict=True)}
        means["psnr"] = -10 * math.log10(max(means["mse"], 1e-10))
        return means | (code_use(torch.cat(indices), quantiser.num_codes) if indices else {})

    @torch.no_grad()
    def begin_phase2(self) -> None:
        """Give the latents the prior's scale (see `VAE.rescale_latents`), and start Adam afresh."""
        self.raw.eval()
        squares = 0
        count = 0
        for x in batches(self.data.train, self.cfg.batch_size // self.parts, self.device):
            # (latent_channels, ...)
            mu = self.raw.encode(x)[0].transpose(0, 1).flatten(1)
            squares = squares + mu.square().sum(1)
            count += mu.shape[1]
        rms = self.accelerator.reduce((squares / count).sqrt(), "mean")
        self.raw.rescale_latents(rms)
        self.ema.rescale_latents(rms)
        self.optimizer = self.new_optimizer()

    def new_row(self, train_means: dict, val_means: dict) -> dict[str, float]:
        cfg = self.cfg
        l1, mse, recon, kl = (train_means[name] for name in ("l1", "mse", "recon", "kl"))
        row = {"epoch": self.epoch + 1, "phase": self.phase, "beta": self.beta}
        row["beta_elbo"] = beta_elbo(cfg, self.beta, l1, mse, *self.sizes)
        row["kl_share"] = kl_share(cfg, self.beta, recon, kl, *self.sizes)
        # at the epoch's start; beta is that of its last step
        row["lr"] = self.learning_rate(self.epoch)
        row |= {f"train_{name}": value for name, value in train_means.items()}
        return row | {f"val_{name}": value for name, value in val_means.items()}

    # ---- what follows the run --------------------------------------------------------------------

    def adapt(self, row: dict[str, float]) -> None:
        """After each epoch: lower the rate on a plateau, move an adaptive beta."""
        cfg = self.cfg
        schedule = cfg.lr_schedule_phase1 if self.phase == 1 else cfg.lr_schedule_phase2
        if schedule == "plateau" and (self.phase == 1 or final_objective(cfg, self.epoch)):
            self.plateau.step(row["val_recon" if self.phase == 1 else "val_loss"])
        if "adaptive" in cfg.beta_schedule and self.phase == 2:
            # at the full level, in a cooldown too; the ceiling is the beta of the ELBO
            level = self.band.level
            share = kl_share(cfg, level, row["train_recon"], row["train_kl"], *self.sizes)
            elbo = beta_elbo(cfg, level, row["train_l1"], row["train_mse"], *self.sizes)
            self.band.step(share, ceiling=level / max(elbo, 1e-30))

    @property
    def final_beta(self) -> float:
        """The beta at which epochs are compared. An adaptive one moves."""
        return self.band.level if "adaptive" in self.cfg.beta_schedule else self.cfg.beta

    @property
    def phase(self) -> int:
        return 1 if self.epoch < self.cfg.epochs_phase1 else 2

    @property
    def sizes(self) -> tuple[int, int]:
        """(pixels of an image, numbers of a latent)."""
        return self.data.train.images[0].numel(), math.prod(self.raw.latent_shape)

    @property
    def done(self) -> bool:
        return self.epoch >= self.cfg.num_epochs

    # ---- state for resuming ----------------------------------------------------------------------

    def state_dict(self) -> dict:
        """Complete between two epochs, except what `keep.guards` adds: parts, the best epoch."""
        return {
            "config": self.cfg.to_dict(),
            "model": self.raw.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "critic": self.critic.training_state() if self.critic else {},
            "plateau": self.plateau.state_dict(),
            "band": self.band.state_dict(),
            "epoch": self.epoch,
            "step": self.num_steps,
            "history": self.history,
        }

    def load_state_dict(self, state: dict) -> None:
        self.raw.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # a scaler that is off has none
            self.scaler.load_state_dict(state["scaler"])
        if self.critic:
            self.critic.load_training_state(state["critic"])
        self.plateau.load_state_dict(state["plateau"])
        self.band.load_state_dict(state["band"])
        self.epoch = state["epoch"]
        self.num_steps = state["step"]
        # in place: others hold the same list
        self.history[:] = state["history"]


def epoch_order(cfg: Config, n: int, epoch: int, rank: int = 0, world: int = 1):
    """(order, flip) of one epoch: the same on every machine, from seed and epoch alone.

    Only whole batches of `batch_size` (a smaller set is one batch), at most `epoch_images` images;
    process `rank` of `world` takes its share of every batch.
    """
    generator = torch.Generator().manual_seed(cfg.seed * 1_000_003 + epoch)
    size = min(cfg.batch_size, n) // world * world
    steps = max(min(n, cfg.epoch_images or n) // size, 1)
    order = torch.randperm(n, generator=generator)[: steps * size]
    flip = torch.rand(len(order), generator=generator) < (0.5 if cfg.flip else 0.0)
    mine = slice(rank * size // world, (rank + 1) * size // world)
    return order.view(-1, size)[:, mine].flatten(), flip.view(-1, size)[:, mine].flatten()


def epoch_shifts(cfg: Config, n: int, epoch: int, rank: int = 0) -> Tensor:
    """int64 (n, 2), each in [-shift, shift]: how far each image of an epoch is moved."""
    generator = torch.Generator().manual_seed((cfg.seed * 1_000_003 + epoch) * 64 + rank)
    return torch.randint(-cfg.shift, cfg.shift + 1, (n, 2), generator=generator)


@torch.no_grad()
def update_ema(ema: VAE, model: VAE, decay: float) -> None:
    """ema = decay * ema + (1 - decay) * model; buffers (running statistics) are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
    for mine, theirs in zip(ema.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)
