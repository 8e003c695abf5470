"""GroupNorm whose gradient is fast where a CPU trains: channels_last, few channels a group.

PyTorch's own backward pass (2.15) takes twenty times as long there as in NCHW, and copies between
the two layouts are the next most expensive: `benchmarks/README.md` has the figures. Elsewhere this
is nn.GroupNorm.
"""

import math

import torch
from torch import Tensor, nn


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
