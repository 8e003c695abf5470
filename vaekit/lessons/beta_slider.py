"""One slider for beta: small models trained at five values, and a reader's own beside them.

`benchmarks/beta_slider.py` trains the five on the bundled films and writes
vaekit/results/slider_<beta>.safetensors: weights in half precision, the config in the header.
"""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import torch
from IPython.display import display
from matplotlib.figure import Figure
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vaekit import losses, metrics, plots
from vaekit.config import Config, preset, profile
from vaekit.data import Data, as_float
from vaekit.judge.health import diagnose
from vaekit.lessons.sweeps import RESULTS
from vaekit.losses import beta_elbo
from vaekit.model import VAE
from vaekit.sample import decode_all, encode_all, sample_latents

WIDTHS = (12, 24, 48, 96)  # three eighths of the channels, one halving fewer: 0.8 MB a model
COLUMNS = 6  # films, and as many samples of each kind, in a picture


def small(beta: float, seed: int = 0) -> Config:
    """The recipe of the five, for `sweeps.bundled_data()`: quick, but smoke where that is asked."""
    return preset("chest_xray", profile="smoke" if profile() == "smoke" else "quick", seed=seed,
                  image_size=64, widths=WIDTHS, beta=beta)  # fmt: skip


def save_small(model: VAE, path: Path) -> None:
    """Weights as float16, half of their usual size, with the config beside them."""
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, path, {"config": json.dumps(model.cfg.to_dict())})


def load_small(path: Path) -> VAE:
    """What `save_small` wrote, in float32 and evaluation mode; no code in the file can run."""
    with safe_open(path, "pt") as file:
        model = VAE(Config.from_dict(json.loads(file.metadata()["config"])))
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    return model.eval()


def five() -> list[VAE]:
    """The committed models, from the lowest beta to the highest."""
    return sorted(map(load_small, RESULTS.glob("slider_*.safetensors")), key=lambda m: m.cfg.beta)


@dataclass
class Portrait:
    """What one model makes of films it was not trained on: pictures, spectra, numbers."""

    beta: float
    reconstructions: Tensor  # (COLUMNS, C, S, S), from the mean
    samples: dict[str, Tensor]  # "prior", "gaussian": as many each, the same noise for every model
    spectra: dict[str, np.ndarray]  # power of reconstructions and samples over that of the films
    numbers: dict[str, float]  # beta_elbo, psnr, ssim, sharpness (ratio), kl (nats), active (share)
    verdict: str

    @classmethod
    def of(cls, model: VAE, data: Data) -> "Portrait":
        """Films are data.test, the Gaussian is fitted to the codes of data.train."""
        films = as_float(data.test.images)
        x_hat = decode_all(model, encode_all(model, films)[0])
        samples = {kind: decode_all(model, sample_latents(
            model, len(films), kind, fit_on=data.train, seed=0)) for kind in ("prior", "gaussian")
        }  # fmt: skip
        pictures = {"reconstructions": x_hat, "samples, prior": samples["prior"],
                    "samples, Gaussian": samples["gaussian"]}  # fmt: skip
        power = {name: metrics.radial_power_spectrum(x)[1] for name, x in pictures.items()}
        real = metrics.radial_power_spectrum(films)[1]
        found, cfg, gap = diagnose(model, films), model.cfg, x_hat - films
        error = gap.abs().mean().item(), gap.square().mean().item()
        numbers = {
            "beta_elbo": beta_elbo(cfg, cfg.beta, *error, films[0].numel(),
                                   math.prod(model.latent_shape)),
            "psnr": metrics.psnr(x_hat, films).mean().item(),
            "ssim": losses.ssim_per_image(x_hat, films).mean().item(),
            "sharpness": metrics.sharpness_ratio(x_hat, films),
            "kl": found.numbers["kl"], "active": found.numbers["active_share"],
        }  # fmt: skip
        return cls(cfg.beta, x_hat[:COLUMNS], {k: x[:COLUMNS] for k, x in samples.items()},
                   {k: np.asarray(p / real) for k, p in power.items()}, numbers,
                   found.verdict)  # fmt: skip

    def __str__(self) -> str:
        n = self.numbers
        return (f"β {self.beta:g} = {n['beta_elbo']:.3g} × the ELBO's: {self.verdict}.  "
                f"PSNR {n['psnr']:.1f} dB, SSIM {n['ssim']:.2f}, sharpness {n['sharpness']:.2f}, "
                f"KL {n['kl']:.0f} nats, {n['active']:.0%} of the units active")  # fmt: skip


class BetaSlider:
    """Drag beta: reconstructions, samples, spectrum, numbers and the place on the rate-distortion
    curve change at once. Where it ends a cell it shows `strip()`, then the slider.

    models: VAEs trained on data.train at different beta, such as `five()`. `add` puts in another.
    """

    def __init__(self, models: list[VAE], data: Data):
        self.data, self.portraits, self._drawn = data, [], {}
        self.films = as_float(data.test.images[:COLUMNS])
        self.slider = widgets.SelectionSlider(options=["-"], description="β")
        self.picture = widgets.Image(format="png")
        self.box = widgets.VBox([self.slider, self.picture])
        self.slider.observe(self.redraw, names="value")
        for model in models:
            self.add(model)

    def add(self, model: VAE) -> Portrait:
        """A model more, in the place of one with the same beta; the slider moves to it."""
        made = Portrait.of(model, self.data)
        others = [p for p in self.portraits if p.beta != made.beta]
        self.portraits, self._drawn = sorted([*others, made], key=lambda p: p.beta), {}
        self.slider.options = [f"{p.beta:g}" for p in self.portraits]
        self.slider.value = f"{made.beta:g}"
        self.redraw()
        return made

    def redraw(self, change=None) -> None:
        """The picture of the value under the slider: drawn at its first use, then kept."""
        index = self.slider.index
        if index is not None and index < len(self.portraits):
            if index not in self._drawn:
                file = io.BytesIO()
                self.figure(index).savefig(file, format="png", dpi=80)
                self._drawn[index] = file.getvalue()
            self.picture.value = self._drawn[index]

    def figure(self, index: int) -> Figure:
        """One beta: pictures on the left; spectrum and rate-distortion curve on the right."""
        shown = self.portraits[index]
        figure = Figure(figsize=(11, 5), layout="constrained")
        figure.suptitle(str(shown), fontsize=9)
        pictures, curves = figure.subfigures(1, 2, width_ratios=(2, 1))
        rows = {"film": self.films, "recon-\nstruction": shown.reconstructions,
                "sample,\nprior": shown.samples["prior"],
                "sample,\nGaussian": shown.samples["gaussian"]}  # fmt: skip
        axes = pictures.subplots(len(rows), COLUMNS, squeeze=False)
        for (name, images), line in zip(rows.items(), axes, strict=True):
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
            for image, axis in zip(images, line, strict=False):
                axis.imshow(image.permute(1, 2, 0), cmap="gray", vmin=0, vmax=1)
            for axis in line:
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
        upper, lower = curves.subplots(2, 1)
        draw_spectra(upper, shown)
        self.draw_curve(lower, shown)
        return figure

    def draw_curve(self, axis, shown: Portrait | None = None) -> None:
        """Rate (KL) against distortion (PSNR) of all the models, a point each."""
        rate, quality = ([p.numbers[k] for p in self.portraits] for k in ("kl", "psnr"))
        axis.semilogx(np.maximum(rate, 0.1), quality, "o-", color="grey", ms=4)
        for p in self.portraits:
            axis.annotate(f"{p.beta:g}", (max(p.numbers["kl"], 0.1), p.numbers["psnr"]),
                          textcoords="offset points", xytext=(4, -9), fontsize=7)  # fmt: skip
        if shown is not None:
            axis.plot(max(shown.numbers["kl"], 0.1), shown.numbers["psnr"], "o", ms=9, color="C3")
        axis.set(xlabel="KL (nats)", ylabel="PSNR (dB)")

    def strip(self) -> Figure:
        """All of them without a slider: a row a beta, reconstructions then prior samples."""
        third = COLUMNS // 3
        rows = {"film": self.films} | {
            f"β {p.beta:g}\n{p.verdict}": torch.cat([p.reconstructions[:third], *(
                x[:third] for x in p.samples.values())])
            for p in self.portraits}  # fmt: skip
        title = "reconstructions · prior samples · Gaussian samples"
        return plots.show_rows(rows, title, size=0.9)

    def _ipython_display_(self) -> None:
        display(self.strip(), self.box)  # the figure first: it needs no kernel to be seen


def draw_spectra(axis, shown: Portrait) -> None:
    """Power at every frequency over that of the films: 1 is as sharp as they are."""
    for name, ratio in shown.spectra.items():
        axis.semilogy(np.arange(1, len(ratio) + 1) / (2 * len(ratio)), ratio, label=name)
    axis.axhline(1, color="grey", lw=0.8)
    axis.set(xlabel="cycles per pixel", ylabel="power over films'", ylim=(1e-3, 10))
    axis.legend(fontsize=7)
