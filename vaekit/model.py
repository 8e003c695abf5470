"""The VAE: blocks, Encoder, Decoder, Refiner. Its values are Config's model section.

The preset chest_xray, at 128 pixels:

    x      128x128x1 => 64x64x32 => 32x32x64 => 16x16x128 => 8x8x256 => 4x4x512 => mu, logvar
    z      4x4x64 = mu + exp(logvar / 2) * noise
    x_hat  4x4x64 => 4x4x512 => 8x8x256 => 16x16x128 => 32x32x64 => 64x64x32 => 128x128x1
"""

import contextlib
import math
from collections import OrderedDict
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaekit import checks, fast
from vaekit.config import Config, stage_sizes
from vaekit.data import model_input
from vaekit.linear import BaseVAE, LinearVAE
from vaekit.quantise import quantiser_for

ACTIVATIONS = {"silu": nn.SiLU, "leaky_relu": lambda: nn.LeakyReLU(0.2), "relu": nn.ReLU}


def conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1)


def make_norm(kind: str, channels: int) -> nn.Module:
    """GroupNorm over groups of at least 4 channels (8 groups at most), BatchNorm, or nothing."""
    if kind == "group":
        num_groups = math.gcd(8, max(1, channels // 4), channels)
        # nn.GroupNorm, with a faster gradient
        return fast.GroupNorm(num_groups, channels)
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


class FreeDown(nn.Module):
    """Shortcut down without parameters (DC-AE, arXiv 2410.10733): the four pixels of each 2x2
    become channels, then groups of neighbouring channels are averaged.

    (B, C, 2H, 2W) -> (B, out, H, W). ValueError where the channels cannot be grouped.
    """

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        if 4 * c_in % c_out:
            raise ValueError(f"shortcut='free' needs 4 x {c_in} divisible by {c_out}")
        self.c_out = c_out

    def forward(self, x: Tensor) -> Tensor:
        # an odd side gets one more row or column, of zeros
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1, 0, 1))
        if fast.ENABLED:
            return fast.free_down(x, self.c_out)
        x = F.pixel_unshuffle(x, 2)  # (B, 4C, H, W)
        return x.unflatten(1, (self.c_out, -1)).mean(2)


class FreeUp(nn.Module):
    """The opposite: channels are repeated, then every four become the pixels of a 2x2:
    (B, C, H, W) -> (B, out, 2H, 2W)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.repeats = 4 * c_out // c_in

    def forward(self, x: Tensor) -> Tensor:
        if fast.ENABLED:
            return fast.free_up(x, self.repeats)
        x = x.repeat_interleave(self.repeats, 1)  # (B, 4 out, H, W)
        return F.pixel_shuffle(x, 2)


class SelfAttention(nn.Module):
    """Every pixel attends to every other: (B, C, H, W) -> same. The output layer starts at zero, so
    that the block starts as the identity (Zhang et al. 2019, arXiv 1805.08318)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = make_norm("group", channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(weights (B, H*W, H*W), values (B, H*W, C)): one token a pixel."""
        tokens = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H*W, 3C)
        q, k, v = tokens.chunk(3, dim=-1)
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(1, 2)
        return scores.softmax(-1), v

    def attention_map(self, x: Tensor) -> Tensor:
        """(B, H*W, H*W): row i says how much pixel i attends to each pixel; a row sums to 1."""
        return self.attend(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        weights, v = self.attend(x)
        out = weights.to(v.dtype) @ v
        return x + self.project(out.transpose(1, 2).reshape(x.shape))


def upsample(how: str, c_in: int, c_out: int) -> nn.Sequential:
    """Doubles the resolution: bilinear or nearest, then a 3x3 convolution; or transposed."""
    if how == "transposed":
        conv = nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1)
        return nn.Sequential(OrderedDict(conv=conv))
    enlarge = nn.Upsample(scale_factor=2, mode=how)
    return nn.Sequential(OrderedDict(enlarge=enlarge, conv=conv3x3(c_in, c_out)))


def conv_skip(c_in: int, c_out: int, cfg: Config, stride: int = 1) -> nn.Sequential:
    """shortcut="conv": a 1x1 convolution, with its norm if `norm_skip`."""
    skip = nn.Sequential(fast.PointwiseConv(c_in, c_out, stride))
    if cfg.norm_skip:
        skip.append(make_norm(cfg.norm, c_out))
    return skip


class Block(nn.Module):
    """act(main(x) + skip(x)) (He et al. 2016). main: the convolution `first` and a norm; if
    `twice`, then an activation, another convolution and a norm. A plain block has no skip."""

    def __init__(self, first: nn.Module, channels: int, twice: bool, act: str, cfg: Config):
        super().__init__()
        self.register_module("skip", None)
        self.main = nn.Sequential(first, make_norm(cfg.norm, channels))
        self.act = ACTIVATIONS[act]()
        if twice:
            second = conv3x3(channels, channels)
            self.main.extend([ACTIVATIONS[act](), second, make_norm(cfg.norm, channels)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.main(x)
        if self.skip is not None:
            h = h + self.skip(x)
        return self.act(h)


class DownBlock(Block):
    """Halves the resolution: (B, in, 2H, 2W) -> (B, out, H, W). A plain one is one strided conv.

    Config never lets it halve a single pixel: where the weights only see padding, oneDNN's bf16
    kernel (torch 2.15) leaves the gradient of a strided convolution unwritten.
    """

    def __init__(self, c_in: int, c_out: int, cfg: Config):
        residual = cfg.block == "residual"
        first = conv3x3(c_in, c_out, stride=2)
        super().__init__(first, c_out, residual, cfg.act_encoder, cfg)
        if residual:
            free = cfg.shortcut == "free"
            self.skip = FreeDown(c_in, c_out) if free else conv_skip(c_in, c_out, cfg, stride=2)


class UpBlock(Block):
    """Doubles the resolution: (B, in, H, W) -> (B, out, 2H, 2W)."""

    def __init__(self, c_in: int, c_out: int, cfg: Config):
        first = upsample(cfg.upsample, c_in, c_out)
        super().__init__(first, c_out, cfg.convs_per_up == 2, cfg.act_decoder, cfg)
        if cfg.block == "residual" and cfg.shortcut == "free":
            self.skip = FreeUp(c_in, c_out)
        elif cfg.block == "residual":
            # a 1x1 convolution before enlarging equals one after it, at a quarter of the work
            mode = "nearest" if cfg.upsample == "nearest" else "bilinear"
            enlarge = nn.Upsample(scale_factor=2, mode=mode)
            self.skip = conv_skip(c_in, c_out, cfg).append(enlarge)


class SameBlock(Block):
    """Keeps resolution and channels: (B, C, H, W) -> the same."""

    def __init__(self, channels: int, cfg: Config):
        super().__init__(conv3x3(channels, channels), channels, True, cfg.act_decoder, cfg)
        self.skip = nn.Identity()


def stem(c_in: int, c_out: int, cfg: Config) -> nn.Sequential:
    """The first halving: one strided convolution with a large kernel, norm, activation."""
    k = cfg.stem_kernel
    conv = nn.Conv2d(c_in, c_out, k, stride=2, padding=(k - 1) // 2)
    return nn.Sequential(conv, make_norm(cfg.norm, c_out), ACTIVATIONS[cfg.act_encoder]())


def make_stage(block: nn.Module, channels: int, size: int, cfg: Config) -> nn.Sequential:
    """The block, followed by self-attention at the resolutions that `attention` lists."""
    stage = nn.Sequential(block)
    if size in cfg.attention:
        stage.append(SelfAttention(channels))
    return stage


class Encoder(nn.Module):
    """Image (B, C, S, S) -> mu, logvar, each (B, *latent_shape); logvar is -inf where quantised."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.stages = nn.Sequential()  # 128x128x1 => 64x64x32 => ... => 4x4x512
        c_in = cfg.in_channels
        for c_out, size in zip(cfg.widths, stage_sizes(cfg)[1:], strict=True):
            has_stem = cfg.stem_kernel and not len(self.stages)
            block = stem(c_in, c_out, cfg) if has_stem else DownBlock(c_in, c_out, cfg)
            self.stages.append(make_stage(block, c_out, size, cfg))
            c_in = c_out
        if cfg.latent == "vector":
            self.stages.append(nn.Flatten())
            self.mu = nn.Linear(c_in * size**2, cfg.latent_channels)
            self.logvar = nn.Linear(c_in * size**2, cfg.latent_channels)
        else:
            self.mu = conv3x3(c_in, cfg.code_channels)
            self.logvar = None if cfg.num_codes else conv3x3(c_in, cfg.code_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.stages(x)
        mu = self.mu(h)
        logvar = torch.full_like(mu, -math.inf) if self.logvar is None else self.logvar(h)
        return mu, logvar


class Decoder(nn.Module):
    """z (B, *latent_shape) -> image (B, C, S, S) in [0, 1]: the encoder's mirror."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.size = cfg.image_size
        side, *sizes = reversed(stage_sizes(cfg))
        c_in, *widths = reversed(cfg.widths)
        self.start = (c_in, side, side)
        if cfg.latent == "vector":
            self.first = nn.Linear(cfg.latent_channels, c_in * side**2)
        else:
            self.first = conv3x3(cfg.code_channels, c_in)
        self.stages = nn.Sequential()  # 4x4x512 => ... => 64x64x32, and 128x128x32 without a block
        for c_out, size in zip(widths, sizes, strict=False):
            self.stages.append(make_stage(UpBlock(c_in, c_out, cfg), c_out, size, cfg))
            c_in = c_out
        self.stages.append(nn.Sequential(upsample(cfg.upsample, c_in, c_in)))
        act = ACTIVATIONS[cfg.act_decoder]()
        last = conv3x3(c_in, cfg.in_channels)
        self.to_image = nn.Sequential(make_norm(cfg.norm, c_in), act, last)

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(z).view(-1, *self.start)
        h = self.stages(h)
        # odd sizes: 33 -> 17 -> 9 ... come back as 64
        if h.shape[-1] != self.size:
            h = F.interpolate(h, size=self.size, mode="bilinear", align_corners=False)
        return torch.sigmoid(self.to_image(h).float())


class Constant(nn.Module):
    """The same learned numbers for every image: h (B, ...) -> (B, n)."""

    def __init__(self, n: int):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(n))

    def forward(self, h: Tensor) -> Tensor:
        return self.value.expand(h.shape[0], -1)


class Refiner(nn.Module):
    """Adds detail to a linear reconstruction: (B, C, S, S) -> the same shape, in [0, 1].

    A U-Net (Ronneberger et al. 2015) that starts at half the resolution: every 2x2 pixels become
    four channels. It sees the code only through the linear reconstruction, after clipping.
    """

    def __init__(self, cfg: Config):
        super().__init__()
        widths = cfg.widths
        self.size = cfg.image_size
        self.first = nn.Sequential(nn.PixelUnshuffle(2), conv3x3(4 * cfg.in_channels, widths[0]))
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        self.same = nn.ModuleList()
        for wide, narrow in zip(widths[1:], widths, strict=False):
            self.down.append(DownBlock(narrow, wide, cfg))
            self.up.insert(0, UpBlock(wide, narrow, cfg))
            self.same.insert(0, SameBlock(narrow, cfg))
        act = ACTIVATIONS[cfg.act_decoder]
        self.to_image = nn.Sequential(
            make_norm(cfg.norm, widths[0]),
            act(),
            conv3x3(widths[0], 32),
            nn.PixelShuffle(2),
            act(),
            conv3x3(8, cfg.in_channels),
        )

    def forward(self, picture: Tensor) -> Tensor:
        odd = self.size % 2
        h = self.first(F.pad(picture, (0, odd, 0, odd)))
        skips = []
        for down in self.down:
            skips.append(h)
            h = down(h)
        for up, same in zip(self.up, self.same, strict=True):
            skip = skips.pop()
            # an odd side comes back larger by one
            side = skip.shape[-1]
            h = same(up(h)[..., :side, :side] + skip)
        change = self.to_image(h)[..., : self.size, : self.size]
        return (picture + change).float().clamp(0, 1)


class VAE(BaseVAE):
    """The variational autoencoder that `cfg` describes (Kingma and Welling 2014).

    `x_hat, mu, logvar = model(x)`: x, x_hat float (B, C, S, S) in [0, 1]; mu, logvar
    (B, *latent_shape) float32, logvar the natural log of the variance. `forward`, `reparameterize`
    and `reconstruct`, which join `encode` and `decode`, are in `linear.BaseVAE`. With a quantised
    latent (`quantiser` is not None) mu is not yet rounded, `decode` rounds it first; logvar is
    -inf, sigma 0. See `quantise`.
    """

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.image_shape = (cfg.in_channels, cfg.image_size, cfg.image_size)
        n, side = cfg.code_channels, stage_sizes(cfg)[-1]
        self.latent_shape = (n,) if cfg.latent == "vector" else (n, side, side)
        self.encoder = Encoder(cfg)
        self.quantiser = quantiser_for(cfg)
        self.linear = None
        if cfg.start == "linear":
            self.linear = LinearVAE.blank(n, cfg.in_channels, cfg.image_size)
            self.decoder = Refiner(cfg)
        else:
            self.decoder = Decoder(cfg)
        initialise(self, cfg)
        if self.linear is not None:
            self.encoder.logvar = Constant(n)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu, logvar of q(z|x), float32, logvar clamped to [-logvar_clamp, logvar_clamp].

        x: uint8, or floats in [0, 1], else ValueError (see `data.model_input`).
        """
        x = model_input(self, x)
        mu, logvar = self.encoder(x)
        mu, logvar = mu.float(), logvar.float()
        if self.linear is not None:
            # half precision would cost the linear reconstruction its last digits
            with torch.autocast(x.device.type, enabled=False):
                mu = mu + self.linear.encode(x)[0]
        if self.quantiser is not None:
            return self.quantiser.bound(mu), logvar
        c = self.cfg.logvar_clamp or math.inf
        return mu, logvar.clamp(-c, c)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, *latent_shape) -> images float32 (B, C, S, S) in [0, 1]. ValueError for others."""
        checks.check_shape("codes", z, self.latent_shape)
        with torch.autocast(z.device.type, enabled=False):
            if self.linear is not None:
                z = self.linear.decode(z)  # an image, to which the refiner adds
            if self.quantiser is not None:
                z = self.quantiser(z.float())
        return self.decoder(z.to(next(self.parameters()).dtype))

    @torch.no_grad()
    def code_indices(self, x: Tensor) -> Tensor:
        """The number of the code at each place: x as in `encode` -> int64 (B, H, W), from 0.
        ValueError where codes are not quantised."""
        self.check_quantised()
        return self.quantiser.indices(self.encode(x)[0])

    @torch.no_grad()
    def decode_indices(self, indices: Tensor) -> Tensor:
        """The images of code numbers int64 (B, H, W) from `code_indices`. ValueError for others."""
        self.check_quantised()
        checks.check_indices(indices, self.latent_shape[1:], self.quantiser.num_codes)
        return self.decode(self.quantiser.lookup(indices))

    def check_quantised(self) -> None:
        if self.quantiser is None:
            raise ValueError(f"latent={self.cfg.latent!r} has no codes to count: take fsq or vq")

    @torch.no_grad()
    def start_at(self, linear: LinearVAE) -> None:
        """start="linear": begin with the encoding and reconstruction of `linear`."""
        self.linear.load_state_dict(linear.state_dict())
        black = torch.zeros(1, *linear.image_shape)  # any image: all have the same logvar
        self.encoder.logvar.value.copy_(linear.encode(black)[1][0])
        for layer in (self.encoder.mu, self.decoder.to_image[-1]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def rescale_latents(self, rms: Tensor, sigma: float = 0.1) -> None:
        """Rescale the codes: divide mu by `rms` (latent_channels,), and multiply the
        decoder's first layer by it. The decoded mean stays the same; sigma is reset.

        Without a KL the size of mu is arbitrary. Afterwards its root mean square is 1 in every
        channel, as the prior's is.
        """
        mu, logvar, first = self.encoder.mu, self.encoder.logvar, self.decoder.first
        rms = rms.clamp(min=1e-6).to(mu.weight)
        # (latents, 1) or (latents, 1, 1, 1)
        by_row = rms.view(-1, *[1] * (mu.weight.dim() - 1))
        mu.weight /= by_row
        mu.bias /= rms
        first.weight *= by_row.transpose(0, 1)
        logvar.weight.zero_()
        logvar.bias.fill_(2 * math.log(sigma))


def initialise(model: VAE, cfg: Config) -> None:
    """Initial weights, where the config asks for others than PyTorch's own."""
    # He et al. 2015; "kaiming_out" counts the outgoing connections
    if cfg.init != "default":
        mode = "fan_out" if cfg.init == "kaiming_out" else "fan_in"
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and "project" not in name:
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
                nn.init.zeros_(module.bias)
    # the last scale of each block (Goyal et al. 2017)
    if cfg.zero_init_residual and cfg.norm != "none":
        for module in model.modules():
            if isinstance(module, Block) and module.skip is not None:
                nn.init.zeros_(module.main[-1].weight)
    # mu and logvar start near 0, so the latents start at N(0, 1)
    if cfg.latent_init_gain:
        heads = (model.encoder.mu, model.encoder.logvar)
        # quantised codes have no logvar
        for head in filter(None, heads):
            nn.init.xavier_uniform_(head.weight, gain=cfg.latent_init_gain)
            nn.init.zeros_(head.bias)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients; yields the model's device, restores the mode after."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(was)
