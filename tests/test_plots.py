"""Figures: the right number of axes, what they say, small on disk, nothing left open."""

import io
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from test_metrics import CFG, films

import vaekit
from vaekit import metrics, plots
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


def test_show_images():
    x = films(10, 64)
    figure = plots.show_images(x, titles=range(10), columns=4, title="films", row_labels="abc")
    assert len(figure.axes) == 10
    assert [axis.get_title() for axis in figure.axes] == [str(i) for i in range(10)]
    image = figure.axes[0].images[0]
    assert image.get_clim() == (0, 1) and image.get_cmap().name == "gray"
    assert figure.axes[0].get_window_extent().width == pytest.approx(128)  # 64 px, doubled
    assert kilobytes(figure) < 100


@pytest.mark.parametrize("channels,side", [(1, 28), (3, 32), (1, 128), (1, 300)])
def test_show_images_sizes_and_colours(channels, side):
    split = SimpleNamespace(images=films(3, side, channels))
    figure = plots.show_images(split)
    assert len(figure.axes) == 3 and figure.dpi == 100
    assert 80 <= figure.axes[0].get_window_extent().width <= 140
    assert figure.axes[0].images[0].get_array().shape == (side, side, 3)[: 2 + (channels == 3)]
    assert kilobytes(figure) < 100


def test_films_keep_their_pixels_on_disk():
    from PIL import Image

    x, buffer = films(1, 64), io.BytesIO()
    plots.show_images(x).savefig(buffer)
    stored = torch.tensor(list(Image.open(buffer).convert("L").tobytes())).view(128, 128)
    torch.testing.assert_close(stored[::2, ::2].float(), x[0, 0].float(), atol=1, rtol=0)


def test_show_rows_compares_column_by_column():
    figure = plots.show_rows({"real": films(9), "noise": torch.rand(5, 1, 32, 32)}, "pairs")
    assert len(figure.axes) == 10  # as many columns as the shortest
    texts = [axis.texts[0].get_text() for axis in figure.axes]
    assert texts[0] == "real" and texts[5] == "noise" and not any(texts[1:5])


def test_show_cases():
    model, split = VAE(vaekit.preset(**CFG)).eval(), SimpleNamespace(images=films(8))
    cases = metrics.rank_cases(model, split, k=2)
    figure = plots.show_cases(model, split, cases)
    assert len(figure.axes) == 12
    heads = [axis.get_title() for axis in figure.axes[:4]]
    assert heads[0] == f"best\nSSIM {cases.values.max():.3f}" and heads[2].startswith("worst")
    assert kilobytes(figure) < 150


def test_plot_history():
    figure = plots.plot_history(history(), "run")
    assert figure.axes[1].get_yscale() == "log"
    assert len(figure.axes) == 6  # four panels, two of them with a second scale
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels == ["L1", "1 - SSIM"]
    assert kilobytes(figure) < 100
    assert len(plots.plot_history([{"epoch": 1, "phase": 2, "beta": 0.1, "lr": 1e-3}]).axes) == 6


def test_live_history_redraws_one_figure_in_a_watched_notebook(monkeypatch):
    import IPython.display

    shown = []

    class Handle:
        def update(self, figure):
            shown.append(figure)

    def display(figure, display_id):
        shown.append(figure)
        return Handle()

    run = SimpleNamespace(history=history(), cfg=SimpleNamespace(num_epochs=4))
    live = plots.LiveHistory()
    live(run)
    assert shown == []  # no notebook
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setenv("VAEKIT_PROGRESS", "lines")
    live(run)
    assert shown == []  # nobody watches
    monkeypatch.setenv("VAEKIT_PROGRESS", "bar")
    live(run)
    live(run)
    assert len(shown) == 2


def test_plot_histogram():
    sets = {"real": films(6), "noise": torch.rand(4, 1, 32, 32)}
    figure = plots.plot_histogram(sets)
    assert len(figure.axes) == 1
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["real, N=6", "noise, N=4"]
    assert kilobytes(figure) < 60


def test_plot_rows():
    rows = [metrics.row("frechet", "prior", 9.0, 8.0, 10.0, 50, "net, 12 PCs", 1.0),
            metrics.row("frechet", "gmm", 5.0, 4.0, 6.0, 50, "net, 12 PCs", 1.0),
            metrics.row("sharpness ratio", "prior", 0.5, 0.4, 0.6, 50),
            metrics.row("psnr", "reconstruction", 20.0, 19.0, 21.0, 50)]  # fmt: skip
    figure = plots.plot_rows(rows)
    left, right = figure.axes
    assert "net, 12 PCs" in left.get_title()
    assert [t.get_text() for t in left.get_yticklabels()] == ["prior\nN=50", "gmm\nN=50"]
    assert len(right.get_yticklabels()) == 1 and kilobytes(figure) < 60
    assert len(plots.plot_rows([]).axes) == 2
