"""A slider for beta: small models trained at five values, and the reader's own beside them."""

import io
from dataclasses import dataclass

import ipywidgets as widgets
import numpy as np
import torch
from IPython.display import display
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from vaekit import metrics, plots
from vaekit.config import Config, preset, profile
from vaekit.data import Data, as_float
from vaekit.judge.health import diagnose
from vaekit.losses import beta_elbo
from vaekit.model import VAE
from vaekit.sample import decode_all, encode_all, sample_latents
from vaekit.train import Trainer, train

BETAS = (0.001, 0.1, 1.0, 10.0, 100.0)
WIDTHS = (12, 24, 48, 96)  # three eighths of the channels, one halving fewer: 0.4 million weights
LENGTHS = dict(epochs_phase1=4, epochs_phase2=4, beta_warmup=1)
JUDGED = 200  # films, at most, that a model is judged by
COLUMNS = 6  # films, and as many samples of each kind, in a picture


def slider_config(beta: float, seed: int = 0) -> Config:
    """The config of the models, for `sweeps.bundled_data()`: profile quick, or smoke if that is
    set; without features, which take half of the time."""
    cost = "smoke" if profile() == "smoke" else "quick"
    values = {"profile": cost, "seed": seed, "image_size": 64, "widths": WIDTHS, "beta": beta}
    if cost == "quick":
        values |= LENGTHS
    return preset("chest_xray", perceptual_weight=0.0, **values)


class SliderModels:
    """Models that differ only in beta: one network is trained in phase 1, and each model is a copy
    of it that goes through phase 2 at its own beta."""

    def __init__(self, data: Data):
        self.data = data
        copying = Trainer(slider_config(beta=0.0), data)
        while copying.phase == 1:
            copying.run_epoch()
        self.copying = copying.state_dict()

    def train(self, beta: float) -> VAE:
        trainer = Trainer(slider_config(beta), self.data)
        own_level = {"band": trainer.band.state_dict()}  # its own beta: phase 1 had 0
        trainer.load_state_dict(self.copying | own_level)
        train(trainer)
        return trainer.ema


@dataclass
class Portrait:
    """One model's results on films it was not trained on: pictures, spectra, numbers."""

    beta: float
    verdict: str
    numbers: dict[str, float]  # beta_elbo, psnr, ssim, sharpness (ratio), kl (nats), active (share)
    pictures: dict[str, Tensor]  # {name: (COLUMNS, C, S, S)}, from the same noise for every model
    spectra: dict[str, np.ndarray]  # of these, power over that of the films

    @classmethod
    def of(cls, model: VAE, data: Data) -> "Portrait":
        """Films are the first of data.test; the Gaussian is fitted to the codes of data.train."""
        cfg, films = model.cfg, as_float(data.test.images[:JUDGED])
        mu, _ = encode_all(model, films)
        codes = {
            "reconstruction": mu,
            "sample, prior": sample_latents(model, len(films)),
            "sample, Gaussian": sample_latents(model, len(films), "gaussian", data.train),
        }
        pictures = {name: decode_all(model, z) for name, z in codes.items()}
        x_hat = pictures["reconstruction"]
        gap = x_hat - films
        l1, mse = gap.abs().mean().item(), gap.square().mean().item()
        found = diagnose(model, films)
        numbers = {
            "beta_elbo": beta_elbo(cfg, cfg.beta, l1, mse, films[0].numel(), mu[0].numel()),
            "psnr": metrics.psnr(x_hat, films).mean().item(),
            "ssim": metrics.ssim(x_hat, films).mean().item(),
            "sharpness": metrics.sharpness_ratio(x_hat, films),
            "kl": found.numbers["kl"],
            "active": found.numbers["active_share"],
        }
        _, real = metrics.radial_power_spectrum(films)
        spectra, shown = {}, {}
        for name, x in pictures.items():
            spectra[name] = metrics.radial_power_spectrum(x)[1] / real
            shown[name] = x[:COLUMNS]
        return cls(cfg.beta, found.verdict, numbers, shown, spectra)

    def __str__(self) -> str:
        n = self.numbers
        return (
            f"β {self.beta:g} = {n['beta_elbo']:.3g} × the ELBO's: {self.verdict}.  "
            f"PSNR {n['psnr']:.1f} dB, SSIM {n['ssim']:.2f}, sharpness {n['sharpness']:.2f}, "
            f"KL {n['kl']:.0f} nats, {n['active']:.0%} of the units active"
        )


class BetaSlider:
    """Drag beta: reconstructions, samples, spectrum, numbers and the point on the rate-distortion
    curve change together. At the end of a cell it shows `strip()`, then the slider.

    models: VAEs trained on data.train at different beta. `add` adds another. title: of `strip()`.
    """

    def __init__(self, models: list[VAE], data: Data, title: str = ""):
        self.data, self.title = data, title
        self.films = as_float(data.test.images[:COLUMNS])
        self.portraits = [Portrait.of(model, data) for model in models]
        self.drawn: dict[str, bytes] = {}  # PNG files, by the slider's value
        self.slider = widgets.SelectionSlider(options=["-"], description="β")
        self.slider.observe(self.redraw, names="value")
        self.picture = widgets.Image(format="png")
        self.box = widgets.VBox([self.slider, self.picture])
        self.show(self.portraits[-1])

    def add(self, model: VAE) -> Portrait:
        """Add a model, or replace the one with the same beta; the slider moves to it."""
        made = Portrait.of(model, self.data)
        self.portraits = [p for p in self.portraits if p.beta != made.beta] + [made]
        self.show(made)
        return made

    def show(self, portrait: Portrait) -> None:
        """Move the slider to one of `portraits`, and draw again: each picture has the curve of
        all."""
        self.portraits.sort(key=lambda p: p.beta)
        self.drawn.clear()
        self.slider.options = [f"{p.beta:g}" for p in self.portraits]
        self.slider.value = f"{portrait.beta:g}"
        self.redraw()

    def redraw(self, change=None) -> None:
        """The picture of the slider's value: drawn on first use, then kept."""
        beta = self.slider.value
        if beta not in self.drawn:
            file = io.BytesIO()
            self.figure(self.portraits[self.slider.index]).savefig(file, format="png", dpi=80)
            self.drawn[beta] = file.getvalue()
        self.picture.value = self.drawn[beta]

    def figure(self, shown: Portrait) -> Figure:
        """One beta: pictures on the left; on the right the power at every frequency divided by that
        of the films (1 is as sharp as they are), and the rate-distortion curve."""
        figure = Figure(figsize=(11, 5), layout="constrained")
        figure.suptitle(str(shown), fontsize=9)
        parts = [["pictures", "spectrum"], ["pictures", "curve"]]
        axes = figure.subplot_mosaic(parts, width_ratios=(2, 1))
        rows = {"film": self.films, **shown.pictures}
        sheet = make_grid(torch.cat([*rows.values()]), nrow=len(self.films))  # (3, H, W)
        side = sheet.shape[1] / len(rows)
        axes["pictures"].imshow(sheet.permute(1, 2, 0))
        axes["pictures"].set_yticks([side * (i + 0.5) for i in range(len(rows))], rows, fontsize=8)
        axes["pictures"].set_xticks([])
        for name, ratio in shown.spectra.items():
            frequencies = np.linspace(0, 0.5, len(ratio) + 1)[1:]
            axes["spectrum"].semilogy(frequencies, ratio, label=name)
        axes["spectrum"].axhline(1, color="grey", lw=0.8)
        axes["spectrum"].set(xlabel="cycles per pixel", ylabel="power over films'", ylim=(1e-3, 10))
        axes["spectrum"].legend(fontsize=7)
        self.draw_curve(axes["curve"], shown)
        return figure

    def draw_curve(self, axis, shown: Portrait | None = None) -> None:
        """Rate (KL) against distortion (PSNR) of all the models, a point each."""
        points = {p.beta: (max(p.numbers["kl"], 0.1), p.numbers["psnr"]) for p in self.portraits}
        axis.semilogx(*zip(*points.values(), strict=True), "o-", color="grey", ms=4)
        for (beta, at), by in zip(points.items(), [(4, -11), (-13, 5)] * len(points), strict=False):
            axis.annotate(f"{beta:g}", at, by, textcoords="offset points", fontsize=9)
        if shown is not None:
            axis.plot(*points[shown.beta], "o", ms=9, color="C3")
        axis.set(xlabel="KL (nats)", ylabel="PSNR (dB)")

    def strip(self) -> Figure:
        """All models without a slider: images, and one row per beta, whose reconstructions are of
        the first images."""
        few = len(self.films[: COLUMNS // 3])
        films = self.films.repeat(3, 1, 1, 1)[: 3 * few].split(few)
        heads = ["reconstructed below", "other images", "other images", *self.portraits[0].pictures]
        rows = {"images": films}
        for p in self.portraits:
            found = "{kl:.0f} nats, {psnr:.1f} dB".format(**p.numbers)
            rows[f"β {p.beta:g}\n{found}"] = [x[:few] for x in p.pictures.values()]
        for name, groups in rows.items():
            rows[name] = torch.stack([make_grid(x, padding=1, pad_value=1) for x in groups])
        return plots.show_rows(rows, self.title, titles=heads, size=1.3 * few)

    def _ipython_display_(self) -> None:
        display(self.strip(), self.box)  # the figure first: it needs no kernel to be seen
