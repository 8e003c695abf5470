"""What `throughput.py` and `equal_time.py` set beside vaekit: the plain way, and three libraries.

plain      this model in float32 and NCHW; films read, equalised and resized by DataLoader workers
monai      monai.networks.nets.AutoencoderKL \\ in the plain step, but on films from memory;
diffusers  diffusers.AutoencoderKL           / "... bf16" the same under autocast
pythae     pythae.models.VAE, its trainer and its loader. It leaves networks and loss terms to its
           user beyond its own small ones, so encoder, decoder and terms are this project's
"""

import tempfile
from pathlib import Path

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.flop_counter import FlopCounterMode

from vaekit.config import Config
from vaekit.data import Data, batches
from vaekit.features import TRUNKS
from vaekit.files.weights import load_trunk
from vaekit.losses import SSIM_SIGMA, SSIM_WINDOW
from vaekit.model import VAE
from vaekit.place import device
from vaekit.train import epoch_order

# One width a halving, as ours have. Of all rows of six multiples of 16 these have parameters and
# multiply-adds within 2% of chest_xray's at 64 and 128 pixels, and the most even steps between.
WIDTHS = {"monai": (16, 16, 48, 80, 176, 352), "diffusers": (16, 16, 48, 64, 160, 192)}
GROUPS = 8  # of every GroupNorm, the most that ours have
ALIKE = 0.10  # parameters and multiply-adds may differ from ours by this share


class Films(Dataset):
    """One film an item: read, equalise, resize, mirror at random, to float."""

    def __init__(self, files: list[Path], cfg: Config):
        self.files, self.cfg = files, cfg

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        cfg = self.cfg
        film = cv2.imread(str(self.files[i]), cv2.IMREAD_GRAYSCALE)
        film = cv2.createCLAHE(cfg.clahe_clip, (cfg.clahe_tiles, cfg.clahe_tiles)).apply(film)
        film = cv2.resize(film, (cfg.image_size, cfg.image_size), interpolation=cv2.INTER_AREA)
        x = torch.from_numpy(film)[None].float() / 255
        return x.flip(-1) if torch.rand(()) < 0.5 else x


def from_files(cfg: Config, data: Data, workers: int):
    """Batches without end, decoded by `workers` processes."""
    files = [Path(data.path) / name for name in data.train.names]
    # with replacement: the end of a short epoch, where workers stand idle, never comes
    sampler = RandomSampler(files, replacement=True, num_samples=2**30)
    return iter(DataLoader(Films(files, cfg), cfg.batch_size, sampler=sampler, num_workers=workers))


def from_memory(cfg: Config, data: Data, device: torch.device, channels_last: bool = False):
    """Batches without end as vaekit makes them, from bytes in memory."""
    for epoch in range(10**6):
        order, flip = epoch_order(cfg, len(data.train), epoch)
        yield from batches(data.train, cfg.batch_size, device, order, flip, channels_last)


class PlainLoss(nn.Module):
    """L1, SSIM, feature distance and KL as a notebook would write them, weighed as `cfg` says."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.trunk = load_trunk(cfg.features, taps=TRUNKS[cfg.features].perceptual_taps)
        at = torch.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
        row = torch.exp(-at.square() / (2 * SSIM_SIGMA**2))
        self.register_buffer("window", (torch.outer(row, row) / row.sum() ** 2)[None, None])

    def ssim(self, a: Tensor, b: Tensor) -> Tensor:
        blur = lambda x: F.conv2d(x, self.window)  # noqa: E731
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        covariance = blur(a * b) - mean_a * mean_b
        top = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
        return (top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))).mean()

    def forward(self, x: Tensor, x_hat: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        cfg = self.cfg
        loss = F.l1_loss(x_hat, x) + cfg.ssim_weight * (1 - self.ssim(x_hat, x))
        with torch.no_grad():
            target = self.trunk(x)
        output = self.trunk(x_hat)
        gaps = [F.l1_loss(output[t], target[t]) for t in output]
        loss = loss + cfg.perceptual_weight * sum(gaps) / len(gaps)
        return loss + cfg.beta * 0.5 * (mu**2 + logvar.exp() - 1 - logvar).mean()


class PlainStep:
    """A training step written straight down, in float32 or under bf16 autocast."""

    def __init__(self, cfg: Config, network: nn.Module, films, half: bool = False):
        self.cfg, self.films, self.half = cfg, films, half
        self.device = device.choose_device()
        self.network, self.loss = network.to(self.device), PlainLoss(cfg).to(self.device)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=cfg.lr_phase2)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            x = next(self.films).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                loss = self.loss(x, *self.network(x))
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.cfg.grad_clip)
            self.optimizer.step()


class Peer(nn.Module):
    """What our Trainer and `evaluate` ask of a network. A peer has `encode` and `pixels`."""

    reparameterize, reconstruct = VAE.reparameterize, VAE.reconstruct

    def forward(self, x: Tensor, sample=True, decoder_only=False) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x)
        return self.pixels(self.reparameterize(mu, logvar) if sample else mu), mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        return self.pixels(z).clamp(0, 1)


class Monai(Peer):
    """Attention at the resolutions where `cfg` has it."""

    def __init__(self, cfg: Config):
        super().__init__()
        from monai.networks.nets import AutoencoderKL

        levels = [cfg.image_size >> i in cfg.attention for i in range(len(WIDTHS["monai"]))]
        self.net = AutoencoderKL(
            2, cfg.in_channels, cfg.in_channels, num_res_blocks=1, channels=WIDTHS["monai"],
            attention_levels=levels, latent_channels=cfg.latent_channels, norm_num_groups=GROUPS,
            with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False)  # fmt: skip

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, sigma = self.net.encode(x)
        return mu, 2 * sigma.log()

    def pixels(self, z: Tensor) -> Tensor:
        return self.net.decode(z)


class Diffusers(Peer):
    """Attention where the library puts it, at the lowest resolution."""

    def __init__(self, cfg: Config):
        super().__init__()
        from diffusers import AutoencoderKL

        widths = WIDTHS["diffusers"]
        self.net = AutoencoderKL(
            cfg.in_channels, cfg.in_channels, ("DownEncoderBlock2D",) * len(widths),
            ("UpDecoderBlock2D",) * len(widths), widths, layers_per_block=1,
            latent_channels=cfg.latent_channels, norm_num_groups=GROUPS)  # fmt: skip

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.net.encode(x).latent_dist
        return posterior.mean, posterior.logvar

    def pixels(self, z: Tensor) -> Tensor:
        return self.net.decode(z).sample


def pythae_model(cfg: Config, network: VAE, loss: nn.Module | None):
    """pythae's VAE around the encoder and decoder of `network`; a `loss` takes its own's place."""
    from pythae.models import VAE as Theirs
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.net = network.encoder

        def forward(self, x):
            mu, logvar = self.net(x)
            return ModelOutput(embedding=mu.flatten(1), log_covariance=logvar.flatten(1))

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.net = network.decoder

        def forward(self, z):
            return ModelOutput(reconstruction=self.net(z.unflatten(1, network.latent_shape)))

    class Model(Theirs):
        def loss_function(self, recon_x, x, mu, log_var, z):
            total = loss(x, recon_x, mu, log_var)
            return total, total.detach(), total.detach()

    shape = cfg.in_channels, cfg.image_size, cfg.image_size
    latents = cfg.latent_channels * network.latent_shape[-1] ** 2
    kind = Model if loss else Theirs
    return kind(VAEConfig(input_dim=shape, latent_dim=latents), Encoder(), Decoder())


class Pythae:
    """Epochs of pythae's own trainer, each as long as is asked for; films as floats in memory."""

    def __init__(self, cfg: Config, data: Data, loss: nn.Module | None = None):
        from pythae.data.datasets import BaseDataset
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
        from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback

        self.network = VAE(cfg)
        loss = loss.to(device.choose_device()) if loss else None
        self.films = BaseDataset(data.train.images / 255, data.train.labels)
        self.folder = tempfile.TemporaryDirectory()  # its trainer insists on one
        how = BaseTrainerConfig(
            output_dir=self.folder.name, per_device_train_batch_size=cfg.batch_size,
            learning_rate=cfg.lr_phase2, optimizer_cls="AdamW",
            no_cuda=device.choose_device().type != "cuda")  # fmt: skip
        model = pythae_model(cfg, self.network, loss)
        self.trainer = BaseTrainer(model, self.films, training_config=how)
        self.trainer.prepare_training()
        self.trainer.callback_handler = CallbackHandler([TrainingCallback()], model)  # no bar

    def run(self, steps: int) -> None:
        from pythae.data.datasets import collate_dataset_output

        size = self.trainer.training_config.per_device_train_batch_size
        sampler = RandomSampler(self.films, replacement=True, num_samples=steps * size)
        self.trainer.train_loader = DataLoader(
            self.films, size, sampler=sampler, collate_fn=collate_dataset_output)  # fmt: skip
        self.trainer.train_step(epoch=1)


def size_of(network: nn.Module, cfg: Config) -> dict[str, int]:
    """Parameters, latent numbers, and the multiply-adds of one image's way through `network`."""
    device = next(network.parameters()).device
    x = torch.rand(1, cfg.in_channels, cfg.image_size, cfg.image_size, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mu = network(x)[1]
    return {"parameters": sum(p.numel() for p in network.parameters()), "latents": mu[0].numel(),
            "macs": counter.get_total_flops() // 2}  # fmt: skip


def build(name: str, cfg: Config, data: Data, workers: int):
    """The engine called `name` (all but vaekit's own): `network`, and `run(steps)`."""
    name, _, half = name.partition(" ")
    if name == "pythae":
        return Pythae(cfg, data, PlainLoss(cfg))
    if name == "plain":
        films, network = from_files(cfg, data, workers), VAE(cfg.replace(channels_last=False))
        return PlainStep(cfg, network, films)
    network = {"monai": Monai, "diffusers": Diffusers}[name](cfg)
    films = from_memory(cfg, data, device.choose_device())
    return PlainStep(cfg, network, films, bool(half))
