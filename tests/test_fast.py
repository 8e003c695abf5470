"""Each fast form gives the plain one's values and gradients, and keeps channels_last."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vaekit
from vaekit import fast
from vaekit.features import perceptual_distance
from vaekit.model import VAE, FreeDown, FreeUp


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def is_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def output_and_gradients(module, x, g) -> list[torch.Tensor]:
    """y, and under g the gradients of x and of every parameter."""
    x = x.detach().requires_grad_()
    y = module(x)
    return [y, *torch.autograd.grad(y, [x, *module.parameters()], g)]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        *[(FreeDown(8, out), (2, 8, 8, 6)) for out in (32, 16, 8)],
        *[(FreeUp(c, 8), (2, c, 8, 6)) for c in (32, 16, 8)],
        *[(fast.GroupNorm(8, shape[1]), shape) for shape in [(2, 32, 40, 40), (3, 64, 5, 7)]],
        (fast.GroupNorm(2, 32), (2, 32, 6, 6)),  # 16 channels a group: PyTorch's own
    ],
    ids=str,
)
def test_the_fast_form_agrees_with_the_plain_one_and_keeps_channels_last(
    module, shape, monkeypatch
):
    for p in module.parameters():
        nn.init.normal_(p, 1, 0.3)
    x = channels_last(2 * torch.randn(shape) + 3)
    g = channels_last(torch.randn(module(x).shape))
    found = output_and_gradients(module, x, g)
    assert is_last(found[0]) and is_last(found[1])
    monkeypatch.setattr(fast, "ENABLED", False)
    for a, b in zip(found, output_and_gradients(module, x, g), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("wide", [(8, 32), (8, 16), (8, 8), (8, 4), (8, 2), (3, 4), (1, 4)])
def test_free_shortcuts_are_their_definitions(wide, enabled, monkeypatch):
    """Unshuffled and averaged, repeated and shuffled, whatever is left out on the way."""
    monkeypatch.setattr(fast, "ENABLED", enabled)
    high, low = wide
    x = torch.randn(2, high, 8, 6)
    down = F.pixel_unshuffle(x, 2).unflatten(1, (low, -1)).mean(2)
    up = F.pixel_shuffle(down.repeat_interleave(4 * high // low, 1), 2)
    for layout in (torch.Tensor.contiguous, channels_last):
        torch.testing.assert_close(FreeDown(high, low)(layout(x)), down)
        assert torch.equal(FreeUp(low, high)(layout(down)), up)


@pytest.mark.parametrize("shape", [(2, 32, 40, 40), (3, 32, 5, 7), (2, 64, 1, 1)])
def test_group_norm_in_bf16_has_the_gradients_of_fp32(shape):
    norm, plain = fast.GroupNorm(8, shape[1]), nn.GroupNorm(8, shape[1])
    nn.init.normal_(norm.weight, 1, 0.3)
    plain.load_state_dict(norm.state_dict())
    x, g = (2 * torch.randn(shape) + 3).bfloat16(), torch.randn(shape)
    found = output_and_gradients(norm, channels_last(x), g.bfloat16())
    for a, b in zip(found, output_and_gradients(plain, x.float(), g), strict=True):
        assert (a.float() - b).norm() < 0.01 * b.norm().clamp(min=1)


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_conv_is_a_strided_one(stride):
    ours, plain = fast.PointwiseConv(4, 8, stride), nn.Conv2d(4, 8, 1, stride)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 7, 6)
    g = torch.randn(plain(x).shape)
    for a, b in zip(
        output_and_gradients(ours, x, g), output_and_gradients(plain, x, g), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_distance_of_features_is_the_same_in_either_order(monkeypatch):
    a, b = (channels_last(torch.randn(2, 8, 5, 6)) for _ in range(2))
    a.requires_grad_()
    found = perceptual_distance(a, b, "squared")
    assert is_last(torch.autograd.grad(found.sum(), a)[0])
    monkeypatch.setattr(fast, "ENABLED", False)
    torch.testing.assert_close(found, perceptual_distance(a, b, "squared"))
    assert torch.equal(fast.flatten(a), a.flatten(1))


def test_channels_last_stays_through_the_network_and_back():
    """One layer that answers in the other layout costs a copy at each of its neighbours."""
    cfg = vaekit.preset(widths=[8, 16, 32], attention=[8], image_size=32, latent_channels=4)
    model = VAE(cfg).to(memory_format=torch.channels_last)
    strayed = []

    def look(name, tensor):
        if tensor.dim() == 4 and not is_last(tensor):
            strayed.append(name)

    def watch(name, module):
        def hook(_, __, out):
            look(f"{name} forwards", out)
            out.register_hook(lambda g: look(f"{name} backwards", g))

        module.register_forward_hook(hook)

    for name, module in model.decoder.named_modules():
        if name and not isinstance(module, nn.Identity):
            watch(name, module)
    model(channels_last(torch.rand(4, 1, 32, 32)))[0].sum().backward()
    assert not strayed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_kept_and_used_again():
    code = """
import resource, torch
from vaekit import fast
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    before = faults()
    for _ in range(10):
        torch.ones(64 << 20, dtype=torch.uint8)  # glibc keeps up to 32 MiB by itself
    return faults() - before
use()
given_back, kept = use(), (fast.keep_freed_memory(), use(), use())[2]
print(given_back > 10 * max(kept, 1))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"
