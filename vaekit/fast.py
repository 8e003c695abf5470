"""The same arithmetic, faster: what a CPU needs and a reader does not."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FreeDown(nn.Module):
    """Parameter-free shortcut down: pixel-unshuffle, then the mean over groups of channels.
    (B, C, 2H, 2W) -> (B, out, H, W). Source: DC-AE, arXiv 2410.10733.

    A group of two is a pixel and its neighbour to the right, a group of four all four pixels:
    those are averaged first, and fewer move. channels_last stays, which saves half the time.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        if in_channels * 4 % out_channels:
            raise ValueError(f"shortcut='free' needs 4 x {in_channels} divisible by {out_channels}")
        self.out_channels = out_channels
        self.rows, self.columns = _quarters(4 * in_channels // out_channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2 or x.shape[-2] % 2:
            x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        (b, c, h, w), tall, wide = x.shape, self.rows, self.columns
        x = F.avg_pool2d(x, (2 // tall, 2 // wide)).permute(0, 2, 3, 1)
        x = x.reshape(b, h // 2, tall, w // 2, wide, c).permute(0, 1, 3, 5, 2, 4)
        x = x.reshape(b, h // 2, w // 2, -1).permute(0, 3, 1, 2)
        group = x.shape[1] // self.out_channels
        return x if group == 1 else x.unflatten(1, (-1, group)).mean(2)


class FreeUp(nn.Module):
    """Parameter-free shortcut up: repeat channels, then pixel-shuffle: the mirror of FreeDown.
    (B, C, H, W) -> (B, out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        if out_channels * 4 % in_channels:
            raise ValueError(f"shortcut='free' needs 4 x {out_channels} divisible by {in_channels}")
        self.out_channels = out_channels
        self.rows, self.columns = _quarters(4 * out_channels // in_channels)

    def forward(self, x: Tensor) -> Tensor:
        (b, c, h, w), tall, wide, out = x.shape, self.rows, self.columns, self.out_channels
        if (times := out * tall * wide // c) > 1:
            x = x.repeat_interleave(times, 1)
        x = x.permute(0, 2, 3, 1).reshape(b, h, w, out, tall, wide)
        x = x.permute(0, 1, 4, 2, 5, 3).contiguous()  # (B, H, tall, W, wide, out)
        x = x.expand(b, h, 2, w, 2, out).reshape(b, 2 * h, 2 * w, out)
        return x.permute(0, 3, 1, 2)


def _quarters(group: int) -> tuple[int, int]:
    """Rows and columns of each 2x2 pixels that differ, where `group` channels of the unshuffled
    are one: (2, 1) for a pair, (1, 1) for four or a multiple, else all (2, 2)."""
    return (2, 1) if group == 2 else (1, 1) if group % 4 == 0 else (2, 2)


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution; what a stride would skip is left out before it, which comes to the same.

    oneDNN (torch 2.15) writes beyond its memory in the weights' gradient of a strided one over
    few channels, channels_last, from 128 pixels up: at 256 the process dies.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(in_channels, out_channels, 1)
        self.every = stride

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., :: self.every, :: self.every])


class _ChannelsLast(torch.autograd.Function):
    """PyTorch's forward pass of GroupNorm, and a backward pass of our own.

    With x_hat = (x - mean) / std of its group and g = dy * weight:
    dx = (g - mean of g - x_hat * mean of (g * x_hat)) / std, both means over the group.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        b, c, h, w = x.shape
        y, mean, rstd = torch.native_group_norm(x, weight, bias, b, c, h * w, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, mean, rstd = ctx.saved_tensors
        (b, c, h, w), per = x.shape, x.shape[1] // mean.shape[1]
        rows = math.gcd(h * w, max(1, 512 // c))  # long rows: short ones waste a vector unit

        def flat(t):  # (B, rows of pixels, pixels of a row x C), as the memory lies
            return t.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).reshape(
                b, -1, rows * c)  # fmt: skip

        def each(t):  # a number per image and channel (B, C), or group (B, G), for all pixels
            t = t if t.shape[1] == c else t.repeat_interleave(per, 1)
            return t.to(x.dtype)[:, None].repeat(1, 1, rows)

        def total(t):  # over pixels: (B, C)
            return t.sum(1).float().view(b, rows, c).sum(1)

        mean, rstd, gain = mean.float(), rstd.float(), weight.float()
        dy = flat(dy)
        x_hat = torch.addcmul(each(-mean * rstd), flat(x), each(rstd))
        d_gain, d_bias = total(dy * x_hat), total(dy)
        n = per * h * w
        along, along_x = ((gain * d).view(b, -1, per).sum(2) / n for d in (d_bias, d_gain))
        dx = torch.addcmul(each(-rstd * along), x_hat, each(-rstd * along_x))
        dx.addcmul_(dy, each(rstd.repeat_interleave(per, 1) * gain))
        dx = dx.view(b, h, w, c).permute(0, 3, 1, 2)
        return dx, d_gain.sum(0).to(weight.dtype), d_bias.sum(0).to(weight.dtype), None, None


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm (Wu and He 2018), with a gradient of its own for channels_last on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        last = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
        if not last or self.num_channels // self.num_groups >= 16:
            return super().forward(x)
        return _ChannelsLast.apply(x, self.weight, self.bias, self.num_groups, self.eps)


def keep_freed_memory() -> bool:
    """Make glibc keep what is freed rather than give it back: True where it could be done.

    On a CPU every large tensor is otherwise fetched from the kernel anew, page by page, at every
    step: a sixth of the time of a step at 128 px. The process stays as large as it ever was.
    """
    import ctypes

    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):  # macOS, Windows, musl
        return False
