"""Sliders over the latent space of one run, or of two side by side; first a static figure."""

import io
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import torch
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from vaekit.judge.comparison import title_of
from vaekit.keep.folder import runs_dir
from vaekit.keep.run import load_run
from vaekit.linear import LinearVAE, shrink
from vaekit.plots import show_rows
from vaekit.priors.directions import principal_directions, traverse
from vaekit.sample import decode_all, encode_all, fit_sampler

REACH = 3  # standard deviations that a slider goes to either side
SIDE = 256  # screen pixels of a picture, about
GAP = 8  # pixels between two pictures
ALONE = "(none)"  # the dropdown's entry for no second run
STRIP_ROWS = 3


class LatentView:
    """A decoder behind sliders: image of z = base(T) + sum_i v_i s_i d_i.

    d_i, s_i: the k leading principal directions of the images' means mu, and the deviations along
    them (fewer than k if N - 1 images or the latent have fewer). For a code that starts as the
    linear VAE's they are its first numbers, which change the image most. base(T): a draw at
    temperature T from the sampler fitted to the images, see `sample.fit_sampler`. images: a Split
    or uint8 (N, C, S, S); None: d_i are the code's first numbers, s_i and base(T) the prior's.
    ValueError for images of another size, another sampler, or N < 2.
    """

    def __init__(self, model, images=None, k: int = 6, sampler: str = "gaussian"):
        self.model = model
        if images is None:
            self.use_prior(k)
            return
        mu, logvar = encode_all(model, images)
        self.sampler = fit_sampler(mu, logvar, sampler)
        k = min(k, len(mu) - 1, mu[0].numel())
        self.mean, self.directions, self.stds = principal_directions(mu, k)
        if isinstance(model, LinearVAE) or getattr(model, "linear", None) is not None:
            self.directions = torch.eye(mu.shape[1])[:k]
            self.stds = mu.std(0)[:k]

    def use_prior(self, k: int) -> None:
        self.mean = torch.zeros(self.model.latent_shape)
        self.sampler = fit_sampler(self.mean[None], self.mean[None], "prior")
        numbers = torch.eye(self.mean.numel())[:k]
        self.directions = numbers.view(-1, *self.mean.shape)
        self.stds = torch.ones(len(numbers))

    def code(self, values, temperature: float = 1.0, seed: int = 0) -> Tensor:
        """z (*latent_shape): values in standard deviations, one per direction; extra values are
        ignored. The same seed gives the same base code; temperature 0 gives the sampler's mean."""
        values = torch.as_tensor(values, dtype=torch.float32)[: len(self.stds)]
        n = len(values)
        along = torch.tensordot(values * self.stds[:n], self.directions[:n], 1)
        return self.sampler.sample(1, temperature, seed)[0] + along

    def image(self, values, temperature: float = 1.0, seed: int = 0) -> np.ndarray:
        """The decoded code as uint8 (S, S), or (S, S, 3) where the model is in colour."""
        x = decode_all(self.model, self.code(values, temperature, seed)[None])[0]
        return (255 * x).round().byte().permute(1, 2, 0).squeeze(-1).numpy()

    def strip(self) -> Figure:
        """One row per leading direction, from -3 to +3 standard deviations around the mean code."""
        steps = np.linspace(-REACH, REACH, 5)
        walks = {}
        for i in range(min(STRIP_ROWS, len(self.stds))):
            walk = traverse(self.model, self.mean, self.directions[i], self.stds[i], steps)
            # an overview: the sliders show every pixel
            walks[f"direction {i + 1}"] = shrink(walk, min(walk.shape[-1], 64))
        title = "The largest directions, in standard deviations from the mean code"
        return show_rows(walks, title, len(steps), 1.28, [f"{step:+g}" for step in steps])


def magnify(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """uint8 (S, S) or (S, S, 3) enlarged by repeating pixels, to the whole multiple of S nearest to
    `side`; never smaller."""
    times = max(1, round(side / len(image)))
    return image.repeat(times, 0).repeat(times, 1)


def png_bytes(images: list[np.ndarray]) -> bytes:
    """uint8 images of one size, `magnify`ed, side by side with white between, as a PNG file."""
    row = []
    for image in map(magnify, images):
        row += [image, np.full_like(image[:, :GAP], 255)]
    file = io.BytesIO()
    picture = Image.fromarray(np.hstack(row[:-1]))
    picture.save(file, "PNG", compress_level=1)  # fast: the slider waits for it
    return file.getvalue()


def stored_runs(out: str | Path) -> list[Path]:
    """Folders below `out` that hold a checkpoint, newest first by their names."""
    return sorted({file.parent for file in Path(out).glob("*/*last.pt")}, reverse=True)


class Explorer:
    """The widget that `explore` returns. At the end of a cell it shows `strip`, then `box`."""

    def __init__(self, run, images, k: int, sampler: str, seed: int, out: Path):
        self.images, self.k, self.kind, self.seed = images, k, sampler, seed
        self.names = [title_of(run)]
        self.views = [LatentView(getattr(run, "model", run), images, k, sampler)]
        self.strip = self.views[0].strip()
        self.out = out

        count = len(self.views[0].stds)
        self.sliders = [slider(f"direction {i + 1}", 0, -REACH, REACH, 0.1) for i in range(count)]
        self.temperature = slider("temperature", 1, 0, 1.5, 0.05)
        for moved in (*self.sliders, self.temperature):
            moved.observe(self.redraw, names="value")
        others = [path.name for path in stored_runs(out) if path.name not in self.names]
        self.second = widgets.Dropdown(options=[ALONE, *others], description="load run")
        self.second.observe(self.load, names="value")
        self.resample_button = widgets.Button(description="resample")
        self.resample_button.on_click(self.resample)

        self.picture = widgets.Image(format="png", layout={"flex": "none"})
        self.caption, self.message = widgets.Label(), widgets.Label()
        moving = [*self.sliders, self.temperature, self.second, self.resample_button]
        pictures = widgets.VBox([self.caption, self.picture])
        parts = [widgets.VBox(moving), pictures]
        row = widgets.HBox(parts, layout={"flex_flow": "row wrap"})
        self.box = widgets.VBox([row, self.message])
        self.redraw()

    def _ipython_display_(self) -> None:
        display(self.strip, self.box)  # the figure first: it needs no kernel to be seen

    def redraw(self, change=None) -> None:
        """Draw the images again for the sliders' values, one per run."""
        values = [slider.value for slider in self.sliders]
        images = [view.image(values, self.temperature.value, self.seed) for view in self.views]
        self.picture.value = png_bytes(images)
        self.caption.value = "   |   ".join(self.names)

    def resample(self, button=None) -> None:
        """Draw another base code, at the temperature of the slider."""
        self.seed += 1
        self.redraw()

    def load(self, change=None) -> None:
        """Show the run chosen in the dropdown beside the first, under the same sliders; or none.

        Its directions come from the same images. Errors are shown below the widgets, since a click
        has no cell to raise in.
        """
        del self.names[1:], self.views[1:]
        self.message.value = ""
        name = self.second.value
        if name != ALONE:
            try:
                model = load_run(self.out / name).model
                self.views.append(LatentView(model, self.images, self.k, self.kind))
                self.names.append(name)
            except (OSError, ValueError, RuntimeError) as error:
                self.message.value = str(error).partition("\n")[0]
        self.redraw()


def slider(name: str, value: float, low: float, high: float, step: float) -> widgets.FloatSlider:
    scale = dict(value=value, min=low, max=high, step=step)
    return widgets.FloatSlider(**scale, description=name, style={"description_width": "7em"})


def explore(
    run, images=None, k: int = 6, sampler: str = "gaussian", seed: int = 0, out=None
) -> Explorer:
    """Sliders along the k leading principal directions of mu, in standard deviations, around a
    code drawn from `sampler` ("prior", "gaussian", "gmm") at a temperature that has a slider too.

    `run` can also be a model, such as `vaekit.linear_vae` returns: explore(pca, data.train).
    images: the run's training images, `data.train` or uint8 (N, C, S, S). Without them, as for
    `vaekit.released`, the sliders move the first k numbers of the code, in deviations of the prior,
    and the prior draws the base code. *resample* draws another base code. *load run* puts a run
    from `out` (default `vaekit.runs_dir()`) beside it under the same sliders, with its own
    directions from `images`. Put it at the end of a cell: first a figure, which a saved notebook
    keeps, then the widgets, which need a kernel. ValueError as `LatentView`.
    """
    return Explorer(run, images, k, sampler, seed, Path(out or runs_dir()))
