"""Figures: number of axes, text, file size, nothing left open."""

import io
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from test_metrics import CFG, films

import vaekit
from vaekit import plots
from vaekit.judge import evaluation, figures
from vaekit.judge import rows as tables
from vaekit.judge.networks import LabelJudge
from vaekit.lessons import curves, drawing, sweeps
from vaekit.model import VAE


def history(epochs: int = 6) -> list[dict]:
    rows = []
    for epoch in range(1, epochs + 1):
        terms = {"loss": 1 / epoch, "l1": 0.1 / epoch, "ssim": 0.5 / epoch, "kl": 10.0 * epoch}
        row = {"epoch": epoch, "phase": 1 + (epoch > 2), "beta": 1e-4 * epoch, "lr": 1e-3}
        row |= {f"{side}_{k}": v for side in ("train", "val") for k, v in terms.items()}
        rows.append(row | {"val_psnr": 20 + epoch, "train_grad_norm": 1.0, "seconds": 1.0})
    return rows


def kilobytes(figure) -> float:
    buffer = io.BytesIO()
    figure.savefig(buffer, bbox_inches="tight")
    return len(buffer.getvalue()) / 1000


@pytest.fixture(autouse=True)
def _nothing_left_open():
    yield
    assert not plt.get_fignums()


def words(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def test_show_images():
    x = films(10, 64)
    figure = plots.show_images(x, titles=range(10), columns=4, title="films", row_labels="abc")
    assert words(figure) == [*map(str, range(10)), "a", "b", "c", "films"]
    image = figure.axes[0].images[0]
    assert image.get_clim() == (0, 1) and image.get_cmap().name == "gray"
    tall = 26 + 3 * (15 + 128) + 2 * 4  # pixels: title, three rows of films with their heads, gaps
    assert image.get_array().shape == (tall, 32 + 4 * 128 + 3 * 4)  # 64 px, doubled
    assert (figure.get_size_inches() * 100).round().tolist() == [32 + 4 * 128 + 3 * 4, tall]
    assert (image.get_array()[-128:, -200:] == 1).all()  # ten films leave two places white
    assert kilobytes(figure) < 100


@pytest.mark.parametrize("channels,side,drawn", [(1, 28, 112), (3, 32, 96), (1, 300, 110)])
def test_show_images_sizes_and_colours(channels, side, drawn):
    figure = plots.show_images(SimpleNamespace(images=films(3, side, channels)))
    assert figure.axes[0].images[0].get_array().shape[:2] == (drawn, 3 * drawn + 8)
    assert figure.dpi == 100 and kilobytes(figure) < 100


def test_films_keep_their_pixels_on_disk():
    from PIL import Image

    x, buffer = films(1, 64), io.BytesIO()
    plots.show_images(x).savefig(buffer)
    stored = torch.tensor(list(Image.open(buffer).convert("L").tobytes())).view(128, 128)
    torch.testing.assert_close(stored[::2, ::2].float(), x[0, 0].float(), atol=1, rtol=0)


def test_show_rows_compares_column_by_column():
    figure = plots.show_rows({"real": films(9), "noise": torch.rand(5, 1, 32, 32)}, "pairs")
    assert figure.axes[0].images[0].get_array().shape[1] == 32 + 5 * 96 + 4 * 4  # of the shortest
    assert words(figure) == ["real", "noise", "pairs"]


def test_show_cases():
    model, split = VAE(vaekit.preset(**CFG)).eval(), SimpleNamespace(images=films(8))
    x_hat = model.reconstruct(split.images)
    cases = evaluation.rank_cases(x_hat, split, k=2)
    found = words(figures.show_cases(x_hat, split, cases))
    assert found[0] == f"best\nSSIM {cases.values.max():.3f}" and found[2].startswith("worst")
    assert found[4:6] == ["image", "reconstruction"] and found[6].startswith("|difference|\n0 to ")


def test_differences_share_one_scale_which_is_named():
    a = torch.full((2, 3, 4, 4), 0.5)
    b = a + torch.tensor([0.1, 0.2]).view(2, 1, 1, 1)
    ((name, row),) = figures.difference(a, b, "gap").items()
    assert name == "gap\n0 to 0.2" and row.shape == a.shape
    torch.testing.assert_close(row[:, 0, 0, 0], torch.tensor([0.5, 1.0]))
    assert figures.difference(a, a, "gap").popitem()[1].max() == 0


def test_plot_history():
    figure = curves.plot_history(history(), "run")
    assert all(line.get_ydata()[0] == 1 for line in figure.axes[1].lines)  # over its first epoch
    assert len(figure.axes) == 6  # four panels, two of them with a second scale
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels == ["L1", "1 - SSIM"]
    assert kilobytes(figure) < 100
    assert len(curves.plot_history([{"epoch": 1, "phase": 2, "beta": 0.1, "lr": 1e-3}]).axes) == 6


def test_plot_histogram():
    sets = {"real": films(6), "noise": torch.rand(4, 1, 32, 32)}
    figure = curves.plot_histogram(sets)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["real, N=6", "noise, N=4"]


def test_plot_rows():
    rows = [tables.row("frechet", "prior", 9.0, 8.0, 10.0, 50, "net, 12 PCs", 1.0),
            tables.row("frechet", "gmm", 5.0, 4.0, 6.0, 50, "net, 12 PCs", 1.0),
            tables.row("sharpness ratio", "prior", 0.5, 0.4, 0.6, 50),
            tables.row("psnr", "reconstruction", 20.0, 19.0, 21.0, 50)]  # fmt: skip
    left, right = figures.plot_rows(rows).axes
    assert left.get_title() == "Fréchet distance, N = 50\nnet, 12 PCs" and left.get_xlim()[0] == 0
    assert [t.get_text() for t in left.get_yticklabels()] == ["prior", "gmm"]
    assert len(right.get_yticklabels()) == 1
    with pytest.raises(ValueError, match="no row is of frechet, sharpness ratio"):
        figures.plot_rows(rows[-1:])


def test_plot_octaves():
    rows = [tables.row("power 1/4-1/2", "prior", 1.6, 1.4, 1.8, 50),
            tables.row("power 1/8-1/4", "prior", 0.5, None, None, 50),
            tables.row("power 1/4-1/2", "gmm", 1.0, 0.9, 1.1, 40),
            tables.row("psnr", "reconstruction", 20.0, 19.0, 21.0, 50)]  # fmt: skip
    (axis,) = figures.plot_octaves(rows).axes
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert names == ["prior, N=50", "gmm, N=40"]
    prior, gmm = (line for line in axis.lines if line.get_marker() == "o")
    assert list(prior.get_ydata()) == [1.6, 0.5]
    assert [round(x) for x in [*prior.get_xdata(), *gmm.get_xdata()]] == [0, 1, 0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1/4-1/2", "1/8-1/4"]
    assert axis.get_xlim()[0] > axis.get_xlim()[1]  # the highest frequency on the right
    texts = [*axis.get_xticklabels(), *axis.get_yticklabels(), axis.xaxis.label, axis.title]
    assert min(text.get_fontsize() for text in [*texts, *axis.get_legend().get_texts()]) >= 9
    with pytest.raises(ValueError, match="no row is of an octave"):
        figures.plot_octaves(rows[-1:])


def test_every_metric_of_every_judge_has_a_scale_of_its_own():
    model = VAE(vaekit.preset(**CFG))
    rows = evaluation.evaluate(model, films(8), model.cfg, films(8, seed=1), {"few": films(1)},
                            judges=("pixels", LabelJudge(1, 2).eval()))  # fmt: skip
    wanted = ("psnr", "sharpness ratio", "frechet", "frechet excess", "kernel", "precision")
    figure = figures.plot_rows(rows, metrics=wanted)
    heads = [axis.get_title().split("\nmodel trained")[0] for axis in figure.axes]
    assert heads[0] == "PSNR, dB, N = 8" and len(heads) == 10
    assert heads[2:4] == ["Fréchet distance, N = 8\npixels 32x32, 2 PCs",
                          "Fréchet distance, N = 8\nCNN on 2 labels, 2 PCs"]  # fmt: skip


def test_gaps_have_an_interval_each_and_are_hollow_where_it_holds_zero():
    from vaekit.lessons.sweeps import Difference

    clear, none = Difference(1.0, 0.5, 1.5, 5), Difference(0.1, -0.2, 0.4, 5)
    figure = sweeps.plot_gaps({"psnr": {"a": {"alone": clear, "with": none}, "b": {"alone": none}}})
    (axis,) = figure.axes
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() for dot in dots] == [plots.COLOURS[0], "white", "white"]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["a", "b"]


def test_arrows_run_between_points_and_between_boxes():
    axis = drawing.canvas("title", 4, 2)
    a = drawing.box(axis, 1, 1, "a")
    b = drawing.box(axis, 3, 1, "b")
    drawing.arrow(axis, a, b)
    drawing.arrow(axis, (1, 0), (3, 0))
    *_, between_boxes, between_points = axis.texts
    assert between_boxes.xy == (3, 1) and between_points.xy == (3, 0)
    assert between_boxes.arrow_patch.patchB is b.get_bbox_patch()
