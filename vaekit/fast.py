"""Faster forms of the core's arithmetic, and a few repairs that only a CPU needs.

Each form names the plain one that it replaces; the two are equal up to rounding
(tests/test_fast.py). With `fast.ENABLED = False` the plain ones run. The gains are those of a whole
training step: 128 px, batch 32, two cores with native bf16 (benchmarks/README.md, added one after
another). `benchmarks/fast_forms.py` measures them again, each alone, on the machine at hand.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENABLED = True
# up to this many pixels or images: exact eigendecomposition; above it: subspace iteration
EXACT = 4096
# over the images, in subspace iteration
PASSES = 6


def free_down(x: Tensor, c_out: int) -> Tensor:
    """model.FreeDown: (B, C, 2H, 2W) -> (B, out, H, W). 496 to 419 ms, together with free_up.

    pixel_unshuffle makes four channels of the 2x2 pixels a b / c d of each channel, in the order a,
    b, c, d, and groups of neighbours are averaged:

        group 4 (or 8, ...)   a b / c d  =>  mean(a, b, c, d)         one channel: tall 1, wide 1
        group 2               a b / c d  =>  mean(a, b), mean(c, d)   two channels: tall 2, wide 1
        else                  a b / c d  =>  a, b, c, d               four channels: tall 2, wide 2

    Here they are averaged first, so that less data moves. The result stays channels_last;
    pixel_unshuffle would answer in NCHW, and every layer after it would copy.
    """
    b, c, h, w = x.shape
    tall, wide = quarters(4 * c // c_out)
    x = F.avg_pool2d(x, (2 // tall, 2 // wide)).permute(0, 2, 3, 1)  # (B, H * tall, W * wide, C)
    x = x.reshape(b, h // 2, tall, w // 2, wide, c).permute(0, 1, 3, 5, 2, 4)
    # (B, H, W, C, tall, wide): the pixels that are left, behind their channel
    x = x.reshape(b, h // 2, w // 2, c * tall * wide).permute(0, 3, 1, 2)
    if x.shape[1] == c_out:
        return x
    # groups that span several channels
    return x.unflatten(1, (c_out, -1)).mean(2)


def free_up(x: Tensor, repeats: int) -> Tensor:
    """model.FreeUp: (B, C, H, W) -> (B, C * repeats / 4, 2H, 2W). Its gain: see free_down.

    The pictures of `free_down`, read backwards: one channel p gives the pixels p p / p p, two
    channels p, q give p p / q q, four give p q / r s. Equal pixels are not shuffled: they are
    expanded at the end.
    """
    b, c, h, w = x.shape
    tall, wide = quarters(repeats)
    c_out = c * repeats // 4
    if c_out * tall * wide > c:
        # one channel for several of the result
        x = x.repeat_interleave(c_out * tall * wide // c, 1)  # (B, out * tall * wide, H, W)
    x = x.permute(0, 2, 3, 1).reshape(b, h, w, c_out, tall, wide)
    x = x.permute(0, 1, 4, 2, 5, 3).contiguous()  # (B, H, tall, W, wide, out)
    x = x.expand(b, h, 2, w, 2, c_out).reshape(b, 2 * h, 2 * w, c_out)
    return x.permute(0, 3, 1, 2)


def quarters(group: int) -> tuple[int, int]:
    """tall, wide: rows and columns of each 2x2 pixels that stay apart, see `free_down`."""
    if group == 2:
        return 2, 1
    return (1, 1) if group % 4 == 0 else (2, 2)


def flatten(x: Tensor) -> Tensor:
    """x.flatten(1), in the order in which channels_last lies in memory: 419 to 393 ms, in
    features.FeatureLoss. The gradient is then channels_last as well, and is not copied."""
    return x.permute(0, 2, 3, 1).flatten(1) if ENABLED else x.flatten(1)


class PointwiseConv(nn.Conv2d):
    """nn.Conv2d(c_in, c_out, 1, stride), on every `stride`-th pixel of x.

    A repair, not a speed-up, so `ENABLED` does not switch it off. In the weight gradient of a
    strided 1x1 convolution over few channels, channels_last, from 128 pixels up, oneDNN (torch
    2.15) writes beyond its memory; at 256 pixels the process dies.
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__(c_in, c_out, 1)
        self.every = stride

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., :: self.every, :: self.every])


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm (Wu and He 2018), its gradient in channels_last on a CPU.

    PyTorch's takes 46 ms at 32x32x128x128; in NCHW it takes 2.7, and the copies there and back 14.
    With 16 channels a group or more, PyTorch's own is as fast. In evaluation mode it always is
    PyTorch's own, which every exporter knows.
    """

    def forward(self, x: Tensor) -> Tensor:
        last = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
        wide = self.num_channels // self.num_groups >= 16
        if not ENABLED or not self.training or not last or wide:
            return super().forward(x)
        return GroupNormChannelsLast.apply(x, self.weight, self.bias, self.num_groups, self.eps)


class GroupNormChannelsLast(torch.autograd.Function):
    """Forward in channels_last, backward over copies in NCHW; both passes are PyTorch's."""

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


def principal_directions(source, k: int) -> tuple[Tensor, Tensor]:
    """linear.principal_directions from the smaller of two matrices: pixels x pixels or images x
    images. Where both are large, an approximation (`by_iteration`)."""
    num_pixels = len(source.mean)
    if min(source.count, num_pixels) > EXACT:
        return by_iteration(source, k)
    if num_pixels <= source.count:
        covariance = sum(rows.T @ rows for rows in map(Tensor.double, source.rows()))
        values, vectors = leading(covariance / (source.count - 1), k)
        return values, vectors.T
    # products of the images with one another, (N, N)
    rows = torch.cat(list(source.rows())).double()
    # centred images span one dimension less
    k = min(k, source.count - 1)
    values, vectors = leading(rows @ rows.T / (source.count - 1), k)
    return values.clamp(min=0), F.normalize(vectors.to(rows).T @ rows, dim=1)


def leading(matrix: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues (k,) of a symmetric (n, n), largest first, and vectors (n, k)."""
    from scipy.linalg import eigh  # slow to import

    n = len(matrix)
    # float32 is twice as fast and keeps four digits
    if n > 2048:
        matrix = matrix.float()
    values, vectors = eigh(matrix.numpy(), subset_by_index=[max(n - k, 0), n - 1])
    return torch.from_numpy(values).flip(0), torch.from_numpy(vectors).flip(1)


def by_iteration(source, k: int) -> tuple[Tensor, Tensor]:
    """Nearly the same: subspace iteration (Halko et al. 2011, arXiv 0909.4061)."""
    generator = torch.Generator().manual_seed(0)
    # extra directions, which make the last of the k more exact
    spare = 32
    subspace = torch.randn(len(source.mean), k + spare, generator=generator)
    for _ in range(PASSES):
        subspace, _ = torch.linalg.qr(subspace)
        product = torch.zeros_like(subspace)
        for rows in source.rows():
            product += rows.T @ (rows @ subspace)
        small = subspace.T @ product / (source.count - 1)
        before, subspace = subspace, product
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    return values.flip(0)[:k], (before @ vectors.flip(1)[:, :k]).T


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory instead of returning it. True where that was possible.

    On a CPU every large tensor is otherwise fetched from the kernel again at every step, page by
    page: a sixth of the step's time. The process keeps its largest size; this cannot be undone.
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):  # macOS, Windows, musl
        return False
