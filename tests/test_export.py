"""What leaves PyTorch computes the same numbers, in evaluation and for another number of images."""

import io

import pytest
import torch
from torch import nn

import vaekit


class Part(nn.Module):
    """decode, or the whole model without its noise, as a module of one tensor. The whole also
    answers with what encode does: mu and logvar."""

    def __init__(self, model: vaekit.VAE, part: str):
        super().__init__()
        self.model = model
        self.part = part

    def forward(self, x):
        whole = self.part == "whole"
        return self.model(x, sample=False) if whole else (self.model.decode(x),)


def script(module, x):
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, x), file)
    file.seek(0)
    return torch.jit.load(file)


def exported(module, x):
    return torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)).module()


def onnx(dynamo: bool, module, x):
    for needed in ("onnx", "onnxscript"):
        pytest.importorskip(needed)
    runtime = pytest.importorskip("onnxruntime")
    file = io.BytesIO()
    if dynamo:
        shapes = ({0: torch.export.Dim("n")},)
        torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=shapes).save(file)
    else:
        axes = {"x": {0: "n"}}
        torch.onnx.export(module, (x,), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: map(torch.from_numpy, session.run(None, {name: x.numpy()}))


WAYS = {
    "TorchScript": script,
    "torch.export": exported,
    "ONNX, older": lambda *given: onnx(False, *given),
    "ONNX": lambda *given: onnx(True, *given),
}
MODELS = {
    "chest_xray": dict(widths=[8, 32, 64], attention=[8]),
    "odd": dict(widths=[8, 16], attention=[9], image_size=33, shortcut="conv", norm="batch"),
    "sharp": dict(preset="sharp"),
    "fsq": dict(widths=[8, 16], attention=[], image_size=16, latent="fsq"),
    "vq": dict(widths=[8, 16], attention=[], image_size=16, latent="vq", codebook_size=16),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_an_export_computes_the_same(name, way):
    changes = dict(MODELS[name])
    model = vaekit.VAE(vaekit.preset(changes.pop("preset", "chest_xray"), **changes))
    model = model.to(memory_format=torch.channels_last).eval()
    # ONNX is made of the graphs of torch.export, and slowly: one decoder alone
    parts = ("whole",) if way == "ONNX" and name != "vq" else ("decode", "whole")
    for part in parts:
        shape = model.latent_shape if part == "decode" else model.image_shape
        module = Part(model, part).eval()
        leaves = WAYS[way](module, torch.rand(2, *shape))
        x = torch.rand(3, *shape)
        with torch.no_grad():
            for found, expected in zip(leaves(x), module(x), strict=True):
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
