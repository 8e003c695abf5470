"""Without a GPU: fake CUDA tensors, which have shapes and a device but no numbers, go through what
a training and an evaluation do. A tensor that was left on the CPU raises."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models import squeezenet1_1

import vaekit
from vaekit import data, losses, metrics
from vaekit.features import FeatureLoss, Trunk

SMALL = dict(image_size=32, widths=(8, 16), latent_channels=4, stem_kernel=3, attention=(16,))
VARIANTS = {
    "as published": {},
    "convolutional": dict(shortcut="conv", norm="batch", norm_skip=True, upsample="nearest"),
    "plain, flat": dict(latent="vector", block="plain", upsample="transposed", in_channels=3),
    "every term": dict(num_scales=2, spectral_weight=0.1, free_bits=0.1, mse_weight=1.0),
    "calibrated": dict(calibrated=True, free_bits=0.1, free_bits_kind="batch"),
}


@pytest.fixture
def cuda():
    """New tensors are fake ones on a GPU."""
    with FakeTensorMode(), torch.device("cuda"):
        yield torch.device("cuda")


@pytest.mark.parametrize("variant", VARIANTS)
def test_model_and_loss(variant, cuda):
    cfg = vaekit.preset("chest_xray", **SMALL, **VARIANTS[variant])
    model = vaekit.VAE(cfg)
    x = torch.rand(4, cfg.in_channels, 32, 32)
    x_hat, mu, logvar = model(x)
    total = losses.vae_loss(x_hat, x, mu, logvar, cfg, 0.1).total
    assert x_hat.shape == x.shape and {x_hat.device, mu.device, total.device} == {x.device}
    model.rescale_latents(torch.ones(4))
    assert model.reconstruct(x).device.type == "cuda"


def test_features_and_metrics(cuda):
    x, x_hat = torch.rand(4, 1, 32, 32), torch.rand(4, 1, 32, 32)
    trunk = Trunk("squeezenet", squeezenet1_1(weights=None).features, (1, 4, 7))
    found = FeatureLoss(trunk)(x_hat, x) | metrics.appearance(x)
    found |= {"psnr": metrics.psnr(x_hat, x), "ssim": metrics.ssim(x_hat, x)}
    assert {value.device.type for value in found.values()} == {"cuda"}


def test_batches_are_cut_where_the_images_are():
    """`order` and `flip` come from the CPU and follow the images: "meta" stands for a GPU."""
    images = torch.zeros(8, 1, 16, 16, dtype=torch.uint8)
    split = data.Split(images, torch.zeros(8, dtype=torch.int64), ["a"] * 8, ["a"] * 8, ["c"])
    flip = torch.ones(8, dtype=torch.bool)
    (x, y) = data.batches(split, 4, "meta", torch.arange(8), flip, channels_last=True)
    assert x.device.type == y.device.type == "meta" and x.shape == (4, 1, 16, 16)
