"""The same arithmetic, faster: what a CPU needs and a reader does not.

Each form names the plain one that it stands for and equals but for rounding (tests/test_fast.py).
`fast.ENABLED = False` computes the plain ones from then on. Gains are of a whole training step:
128 px, batch 32, two cores with native bf16 (benchmarks/README.md, measured one after another);
`benchmarks/fast_forms.py` measures them again, one by one, on the machine at hand.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENABLED = True


def free_down(x: Tensor, c_out: int) -> Tensor:
    """model.FreeDown: (B, C, 2H, 2W) -> (B, out, H, W). 496 to 419 ms, together with free_up.

    A group of two is a pixel and its neighbour to the right, a group of four all four pixels: those
    are averaged first, and fewer move. And channels_last stays, where pixel_unshuffle answers in
    NCHW and every neighbour then copies.
    """
    b, c, h, w = x.shape
    tall, wide = quarters(4 * c // c_out)
    x = F.avg_pool2d(x, (2 // tall, 2 // wide)).permute(0, 2, 3, 1)
    x = x.reshape(b, h // 2, tall, w // 2, wide, c).permute(0, 1, 3, 5, 2, 4)
    x = x.reshape(b, h // 2, w // 2, c * tall * wide).permute(0, 3, 1, 2)
    if x.shape[1] == c_out:
        return x
    return x.unflatten(1, (c_out, -1)).mean(2)


def free_up(x: Tensor, repeats: int) -> Tensor:
    """model.FreeUp: (B, C, H, W) -> (B, C * repeats / 4, 2H, 2W). Its gain: see free_down.

    Pixels that will be equal are not shuffled but expanded at the end.
    """
    b, c, h, w = x.shape
    tall, wide = quarters(repeats)
    c_out = c * repeats // 4
    if c_out * tall * wide > c:
        x = x.repeat_interleave(c_out * tall * wide // c, 1)
    x = x.permute(0, 2, 3, 1).reshape(b, h, w, c_out, tall, wide)
    x = x.permute(0, 1, 4, 2, 5, 3).contiguous()  # (B, H, tall, W, wide, out)
    x = x.expand(b, h, 2, w, 2, c_out).reshape(b, 2 * h, 2 * w, c_out)
    return x.permute(0, 3, 1, 2)


def quarters(group: int) -> tuple[int, int]:
    """Rows and columns of each 2x2 pixels that differ, where `group` channels of the unshuffled
    ones are one: a pair is a row, four or a multiple all of them."""
    if group == 2:
        return 2, 1
    return (1, 1) if group % 4 == 0 else (2, 2)


def flatten(x: Tensor) -> Tensor:
    """x.flatten(1), but in the order in which channels_last lies in memory: 419 to 393 ms, for
    features.FeatureLoss. The gradient then comes in channels_last too, and nobody copies."""
    return x.permute(0, 2, 3, 1).flatten(1) if ENABLED else x.flatten(1)


class Upsample(nn.Upsample):
    """nn.Upsample that stays in bf16: autocast would go through fp32 and back."""

    def forward(self, x: Tensor) -> Tensor:
        if not ENABLED:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)


class PointwiseConv(nn.Conv2d):
    """nn.Conv2d(c_in, c_out, 1, stride): what a stride would skip is left out before it.

    Not for speed, and so not switched off: oneDNN (torch 2.15) writes beyond its memory in the
    weights' gradient of a strided one over few channels, channels_last, from 128 pixels up: at 256
    the process dies.
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__(c_in, c_out, 1)
        self.every = stride

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., :: self.every, :: self.every])


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm (Wu and He 2018), its gradient in channels_last on a CPU.

    PyTorch's takes 46 ms at 32x32x128x128; in NCHW it is 2.7, and 14 for the copies there and back.
    With 16 channels a group or more, its own is as fast. In evaluation it is PyTorch's own, which
    every exporter knows.
    """

    def forward(self, x: Tensor) -> Tensor:
        last = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
        wide = self.num_channels // self.num_groups >= 16
        if not ENABLED or not self.training or not last or wide:
            return super().forward(x)
        return GroupNormChannelsLast.apply(x, self.weight, self.bias, self.num_groups, self.eps)


class GroupNormChannelsLast(torch.autograd.Function):
    """PyTorch's own passes: forwards in channels_last, backwards over copies in NCHW."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        b, c, h, w = x.shape
        y, mean, rstd = torch.native_group_norm(x, weight, bias, b, c, h * w, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, mean, rstd = ctx.saved_tensors
        b, c, h, w = x.shape
        sizes = b, c, h * w, mean.shape[1], [True, True, True]
        dx, d_weight, d_bias = torch.ops.aten.native_group_norm_backward(
            dy.contiguous(), x.contiguous(), mean, rstd, weight, *sizes
        )
        dx = dx.contiguous(memory_format=torch.channels_last)
        return dx, d_weight, d_bias, None, None


def keep_freed_memory() -> bool:
    """Make glibc keep what is freed rather than give it back: True where it could be done.

    On a CPU every large tensor is otherwise fetched from the kernel anew, page by page, at every
    step: a sixth of its time. The process stays as large as it ever was, and there is no way back.
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):  # macOS, Windows, musl
        return False
