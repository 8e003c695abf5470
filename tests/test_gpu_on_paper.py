"""Without a GPU: fake CUDA tensors, which have shapes and a device but no numbers, go through what
a training and an evaluation do. A tensor that was left on the CPU raises, as it would there."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from tiny import shapes, small
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models import squeezenet1_1

import vaekit
from vaekit import data, features, losses, metrics, sample, train
from vaekit.critic import Critic, add_share
from vaekit.keep.guards import GuardedTrainer

CUDA = torch.device("cuda", 0)
SMALL = dict(image_size=32, widths=(8, 16), latent_channels=4, stem_kernel=3, attention=(16,))
IMAGES = shapes()  # real ones: what is read from files is
VARIANTS = {
    "as published": {},
    "convolutional": dict(shortcut="conv", norm="batch", norm_skip=True, upsample="nearest"),
    "plain, flat": dict(latent="vector", block="plain", upsample="transposed", in_channels=3),
    "every term": dict(num_scales=2, spectral_weight=0.1, band_weight=0.1, mse_weight=1.0),
    "calibrated": dict(calibrated=True, free_bits=0.1, free_bits_kind="batch"),
}
# what a training takes of several of these together
TRAINED = {
    "as published": dict(attention=(8,)),
    "sharp": dict(epochs_phase1=0, latent="vector", critic_share=0.5, band_weight=1.0),
}


def backward(loss: torch.Tensor, gradient: torch.Tensor | None = None) -> None:
    """Gradients of zeros for all that `loss` depends on: without a GPU there is no pass back."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)


def replaced(module: torch.nn.Module, move) -> torch.nn.Module:
    """What `Module.to` does, with new parameters: fake ones cannot be moved in place."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                moved = move(weight.detach())
                part._parameters[name] = torch.nn.Parameter(moved, weight.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else move(buffer)
    return module


@pytest.fixture
def cuda(monkeypatch):
    """A GPU of fake tensors: numbers that are read from them are 1, or 0 as an index.

    Tensors are made on the CPU, as everywhere, until somebody moves them.
    """
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", lambda y, x: (torch.zeros_like(x),))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 1)
    monkeypatch.setattr(torch.Tensor, "__int__", lambda self: 0)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    monkeypatch.setattr(torch.nn.Module, "_apply", replaced)
    # autocast and the scaler, too, go by whether there is a GPU
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield CUDA


def on(device: torch.device, *values) -> bool:
    return {value.device for value in values} == {device}


@pytest.mark.parametrize("variant", VARIANTS)
def test_model_and_loss(variant, cuda):
    cfg = vaekit.preset("chest_xray", **SMALL, **VARIANTS[variant])
    model = vaekit.VAE(cfg).to(cuda)
    x = torch.rand(4, cfg.in_channels, 32, 32, device=cuda)
    x_hat, mu, logvar = model(x)
    loss = losses.vae_loss(x_hat, x, mu, logvar, cfg, 0.1)
    assert x_hat.shape == x.shape and on(cuda, x_hat, mu, logvar, loss.total)
    assert on(cuda, *loss.terms.values())
    model.rescale_latents(torch.ones(4, device=cuda))
    assert on(cuda, model.eval().reconstruct(x))


def trunk() -> features.Trunk:
    return features.Trunk("squeezenet", squeezenet1_1(weights=None).features, (1, 4, 7))


def test_features_and_metrics(cuda):
    x, x_hat = torch.rand(2, 4, 1, 32, 32, device=cuda)
    distance = features.FeatureLoss(trunk()).to(cuda)
    found = distance(x_hat, x) | metrics.appearance(x)
    found |= {"psnr": metrics.psnr(x_hat, x), "ssim": metrics.ssim(x_hat, x)}
    assert on(cuda, *found.values())


def test_critic(cuda):
    with cuda:
        critic = Critic(1)  # with its optimiser
    x, x_hat = torch.rand(2, 4, 1, 30, 30, device=cuda)
    loss = critic.loss(x, x_hat)
    loss.backward()
    critic.step(SimpleNamespace(reduce=lambda x, how: x))
    assert on(cuda, loss, add_share(x_hat, critic.gradient(x_hat), 0.5))


def test_samplers_fit_on_the_cpu_and_give_codes_to_the_gpu(cuda, monkeypatch):
    model = vaekit.VAE(vaekit.preset("chest_xray", **SMALL)).to(cuda)
    images = torch.zeros(5, 1, 32, 32, dtype=torch.uint8)
    seen = []

    def fit(mu, logvar, kind, seed):
        seen.extend((mu, logvar))
        return sample.Prior(model.latent_shape)

    monkeypatch.setattr(sample, "fit_sampler", fit)
    for kind in sample.SAMPLERS:
        z = vaekit.sample_latents(model, 3, kind, fit_on=images)
        assert z.shape == (3, *model.latent_shape) and on(cuda, z)
    assert len(seen) == 6 and on(torch.device("cpu"), *seen, sample.decode_all(model, z))


class OneGPU(SimpleNamespace):
    """What a Trainer asks of accelerate, for one process on a GPU."""

    def __init__(self, **options):
        super().__init__(device=CUDA, process_index=0, num_processes=1)

    def prepare(self, model):
        return model

    def reduce(self, x, how):
        return x


@pytest.mark.parametrize("system", TRAINED)
def test_a_step_and_a_validation(system, cuda, monkeypatch):
    """In fp16 with its scaler, as on a T4, when all terms and a critic have come in."""
    monkeypatch.setattr(train, "choose_device", lambda: cuda)
    monkeypatch.setattr(train, "Accelerator", OneGPU)
    changes = dict(epochs_phase1=1, epochs_phase2=1, batch_size=20) | TRAINED[system]
    cfg = small(precision="fp16", channels_last=True, **changes)
    trainer = GuardedTrainer(cfg, IMAGES, features.FeatureLoss(trunk()))
    terms = trainer.step(torch.rand(4, 1, 16, 16, device=cuda), cfg.num_epochs - 0.1)
    assert trainer.scaler.is_enabled() and on(cuda, *terms.values())
    assert trainer.validate().keys() >= {"loss", "kl", "psnr"}
    assert on(cuda, *trainer.raw.parameters(), *trainer.ema.parameters())
    state = trainer.optimizer.state
    assert on(cuda, *(v for values in state.values() for v in values.values()))


@pytest.mark.parametrize("room", [10**9, 0], ids=["they fit", "no room"])
def test_images_that_do_not_fit_go_through_pinned_memory(room, cuda, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (room, 10**9))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    flip = torch.ones(40, dtype=torch.bool)
    shift = torch.zeros(40, 2, dtype=torch.int64)
    split = dataclasses.replace(IMAGES.train, _copies={})
    order = torch.arange(40)
    found = list(data.batches(split, 16, cuda, order, flip, channels_last=True, shift=shift))
    assert on(cuda, *found) and [len(x) for x in found] == [16, 16, 8]
    assert len(pinned) == (0 if room else 3)
    assert all(x.dtype == torch.uint8 and x.device.type == "cpu" for x in pinned)
    assert split.to_device(cuda).is_cuda == bool(room)
