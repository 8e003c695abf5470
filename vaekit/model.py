"""The VAE: blocks, Encoder, Decoder. Every value of Config's model section acts here."""

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaekit.config import Config
from vaekit.fast import FreeDown, FreeUp, GroupNorm, PointwiseConv

ACTIVATIONS = {"silu": nn.SiLU, "leaky_relu": lambda: nn.LeakyReLU(0.2), "relu": nn.ReLU}


def make_norm(kind: str, channels: int) -> nn.Module:
    """GroupNorm over groups of at least 4 channels (8 groups at most), BatchNorm, or nothing."""
    if kind == "group":
        return GroupNorm(math.gcd(8, max(1, channels // 4), channels), channels)
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)


class SelfAttention(nn.Module):
    """Every pixel looks at every other: (B, C, H, W) -> same. The output layer starts at zero,
    so that the block starts as the identity (Zhang et al. 2019, arXiv 1805.08318)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = make_norm("group", channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three (B, H*W, C): one token per pixel."""
        return self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)

    def attention_map(self, x: Tensor) -> Tensor:
        """(B, H*W, H*W): row i says where pixel i looks; each row sums to 1."""
        return self.weigh(*self.queries_keys_values(x)[:2])

    @staticmethod
    def weigh(q: Tensor, k: Tensor) -> Tensor:
        return (q * q.shape[-1] ** -0.5 @ k.transpose(1, 2)).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.queries_keys_values(x)
        # longhand: at 256 pixels twice as fast on a CPU as scaled_dot_product_attention
        out = self.weigh(q, k).to(v.dtype) @ v
        return x + self.project(out.transpose(1, 2).reshape(x.shape))


class Enlarge(nn.Module):
    """x2 by nearest neighbour, else bilinear (also the skip beside a transposed convolution)."""

    def __init__(self, how: str):
        super().__init__()
        self.mode = "nearest" if how == "nearest" else "bilinear"

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # it would go through fp32 and back
            return F.interpolate(x, scale_factor=2, mode=self.mode)


class Upsample(nn.Module):
    """x2: bilinear or nearest enlargement then a 3x3 convolution, or a transposed convolution."""

    def __init__(self, how: str, in_channels: int, out_channels: int):
        super().__init__()
        if how == "transposed":  # kernel 4, stride 2: 32x32 -> 64x64
            self.conv = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)
        else:
            self.conv = conv3x3(in_channels, out_channels)
        self.enlarge = nn.Identity() if how == "transposed" else Enlarge(how)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.enlarge(x))


class Block(nn.Module):
    """act(main(x) + skip(x)), the skip None in a plain block (He et al. 2016)."""

    def __init__(self, main: nn.Sequential, skip: nn.Module | None, act: nn.Module):
        super().__init__()
        self.skip, self.main, self.act = skip, main, act

    def forward(self, x: Tensor) -> Tensor:
        h = self.main(x)
        return self.act(h if self.skip is None else h + self.skip(x))


def main_branch(first: nn.Module, channels: int, convs: int, act, norm: str) -> nn.Sequential:
    """`first`, which changes resolution and channels, norm; `convs` - 1 times act, conv, norm."""
    layers = [first, make_norm(norm, channels)]
    for _ in range(convs - 1):
        layers += [act(), conv3x3(channels, channels), make_norm(norm, channels)]
    return nn.Sequential(*layers)


def conv_skip(in_channels: int, out_channels: int, cfg: Config, stride: int = 1) -> nn.Sequential:
    """shortcut="conv": a 1x1 convolution, and its norm where `norm_skip` asks for one."""
    norm = [make_norm(cfg.norm, out_channels)] if cfg.norm_skip else []
    return nn.Sequential(PointwiseConv(in_channels, out_channels, stride), *norm)


class DownBlock(Block):
    """Halves the resolution: (B, in, 2H, 2W) -> (B, out, H, W). A plain one is one strided conv.

    Never of a single pixel, which Config refuses: oneDNN's bf16 kernel (torch 2.15) leaves the
    gradient of a strided convolution unwritten where its weights only ever see padding.
    """

    def __init__(self, in_channels: int, out_channels: int, cfg: Config):
        act, residual, skip = ACTIVATIONS[cfg.act_encoder], cfg.block == "residual", None
        first = conv3x3(in_channels, out_channels, stride=2)
        main = main_branch(first, out_channels, 1 + residual, act, cfg.norm)
        if residual and cfg.shortcut == "free":
            skip = FreeDown(in_channels, out_channels)
        elif residual:
            skip = conv_skip(in_channels, out_channels, cfg, stride=2)
        super().__init__(main, skip, act())


class UpBlock(Block):
    """Doubles the resolution: (B, in, H, W) -> (B, out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int, cfg: Config):
        act, skip = ACTIVATIONS[cfg.act_decoder], None
        first = Upsample(cfg.upsample, in_channels, out_channels)
        main = main_branch(first, out_channels, cfg.convs_per_up, act, cfg.norm)
        if cfg.block == "residual" and cfg.shortcut == "free":
            skip = FreeUp(in_channels, out_channels)
        elif cfg.block == "residual":
            # 1x1 before enlarging equals 1x1 after it, at a quarter of the work
            skip = conv_skip(in_channels, out_channels, cfg).append(Enlarge(cfg.upsample))
        super().__init__(main, skip, act())


def stage_sizes(cfg: Config) -> list[int]:
    """Resolution at the input and after each halving, rounded up: 128 -> 64, 32, 16, 8, 4."""
    sizes = [cfg.image_size]
    for _ in cfg.widths:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def attention_at(size: int, channels: int, cfg: Config) -> list[nn.Module]:
    return [SelfAttention(channels)] if size in cfg.attention else []


class Encoder(nn.Module):
    """Image (B, C, S, S) -> mu, logvar, each (B, *latent_shape)."""

    def __init__(self, cfg: Config):
        super().__init__()
        sizes, channels, stages = stage_sizes(cfg), cfg.in_channels, []
        for width, size in zip(cfg.widths, sizes[1:], strict=True):
            if not stages and (k := cfg.stem_kernel):  # 128x128 => 64x64
                stem = nn.Conv2d(channels, width, k, stride=2, padding=(k - 1) // 2)
                act = ACTIVATIONS[cfg.act_encoder]()
                block = nn.Sequential(stem, make_norm(cfg.norm, width), act)
            else:
                block = DownBlock(channels, width, cfg)
            stages.append(nn.Sequential(block, *attention_at(size, width, cfg)))
            channels = width
        self.stages, self.vector = nn.Sequential(*stages), cfg.latent == "vector"
        features, head = (channels * sizes[-1] ** 2, nn.Linear) if self.vector else (
            channels, conv3x3)  # fmt: skip
        self.mu = head(features, cfg.latent_channels)
        self.logvar = head(features, cfg.latent_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.stages(x)
        h = h.flatten(1) if self.vector else h
        return self.mu(h), self.logvar(h)


class Decoder(nn.Module):
    """z (B, *latent_shape) -> image (B, C, S, S) in [0, 1]: the encoder's mirror."""

    def __init__(self, cfg: Config):
        super().__init__()
        sizes, widths = stage_sizes(cfg)[::-1], cfg.widths[::-1]
        self.size, self.start = cfg.image_size, (widths[0], sizes[0], sizes[0])
        if cfg.latent == "vector":
            self.first = nn.Linear(cfg.latent_channels, math.prod(self.start))
        else:
            self.first = conv3x3(cfg.latent_channels, widths[0])
        stages = [nn.Sequential(UpBlock(a, b, cfg), *attention_at(size, b, cfg))
                  for a, b, size in zip(widths, widths[1:], sizes[1:], strict=False)]  # fmt: skip
        # 4x4 => 8x8 => ... => 64x64, and 128x128 without a block
        stages.append(nn.Sequential(Upsample(cfg.upsample, widths[-1], widths[-1])))
        self.stages = nn.Sequential(*stages)
        act = ACTIVATIONS[cfg.act_decoder]()
        image = conv3x3(widths[-1], cfg.in_channels)
        self.to_image = nn.Sequential(make_norm(cfg.norm, widths[-1]), act, image)

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(z)
        h = self.stages(h.view(-1, *self.start) if h.dim() == 2 else h)
        if h.shape[-1] != self.size:  # odd sizes: 33 -> 17 -> 9 ... come back as 64
            h = F.interpolate(h, size=self.size, mode="bilinear", align_corners=False)
        return torch.sigmoid(self.to_image(h).float())


class VAE(nn.Module):
    """The variational autoencoder that `cfg` describes (Kingma and Welling 2014).

    `x_hat, mu, logvar = model(x)`: x, x_hat float (B, C, S, S) in [0, 1]; mu, logvar
    (B, *latent_shape) float32, logvar the natural log of the variance.
    """

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg, side = cfg, stage_sizes(cfg)[-1]
        self.latent_shape = (
            (cfg.latent_channels,) if cfg.latent == "vector" else (cfg.latent_channels, side, side)
        )
        self.encoder, self.decoder = Encoder(cfg), Decoder(cfg)
        self._initialise(cfg)

    def _initialise(self, cfg: Config) -> None:
        if cfg.init != "default":  # He et al. 2015; "kaiming_out" by the outgoing connections
            mode = "fan_out" if cfg.init == "kaiming_out" else "fan_in"
            for name, module in self.named_modules():
                if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and "project" not in name:
                    nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
                    nn.init.zeros_(module.bias)
        if cfg.zero_init_residual:  # the last scale of each main branch (Goyal et al. 2017)
            for block in self.modules():
                if isinstance(block, (DownBlock, UpBlock)) and block.skip is not None:
                    norms = [m for m in block.main if getattr(m, "weight", None) is not None]
                    if norms and not isinstance(norms[-1], nn.Conv2d):  # norm="none" has none
                        nn.init.zeros_(norms[-1].weight)
        if cfg.latent_init_gain:  # mu and logvar start near 0: the latents start at N(0, 1)
            for head in (self.encoder.mu, self.encoder.logvar):
                nn.init.xavier_uniform_(head.weight, gain=cfg.latent_init_gain)
                nn.init.zeros_(head.bias)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu, logvar of q(z|x), float32, logvar clamped to [-logvar_clamp, logvar_clamp]."""
        mu, logvar = self.encoder(x)
        c = self.cfg.logvar_clamp
        logvar = logvar.float()
        return mu.float(), logvar.clamp(-c, c) if c else logvar

    def reparameterize(self, mu: Tensor, logvar: Tensor, generator=None) -> Tensor:
        """z = mu + sigma * eps, eps ~ N(0, I): a sample that gradients pass through."""
        eps = torch.randn(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype)
        return mu + (0.5 * logvar).exp() * eps

    def decode(self, z: Tensor) -> Tensor:
        """z (B, *latent_shape) -> images float32 (B, C, S, S) in [0, 1]."""
        return self.decoder(z)

    def forward(self, x: Tensor, sample: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x)
        z = self.reparameterize(mu, logvar) if sample else mu
        return self.decode(z), mu, logvar

    @torch.no_grad()
    def rescale_latents(self, rms: Tensor, sigma: float = 0.1) -> None:
        """Change the latents' units: mu is divided by `rms` (latent_channels,), the decoder's
        first layer multiplied by it. What the mean decodes to stays the same; sigma is reset.

        Without a KL the size of mu is arbitrary. Afterwards codes spread by 1, as the prior does.
        """
        rms = rms.clamp(min=1e-6).to(self.encoder.mu.weight)
        rest = [1] * (self.encoder.mu.weight.dim() - 1)
        self.encoder.mu.weight /= rms.view(-1, *rest)
        self.encoder.mu.bias /= rms
        self.decoder.first.weight *= rms.view(1, -1, *rest[1:])
        self.encoder.logvar.weight.zero_()
        self.encoder.logvar.bias.fill_(2 * math.log(sigma))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """decode(mean of q(z|x)): the reconstruction without sampling noise."""
        return self.decode(self.encode(x)[0])


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients; gives the model's device and restores its mode."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(was)
