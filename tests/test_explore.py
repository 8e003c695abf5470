"""The explorer without a browser: what sliders do to a code, and what clicks do."""

import io

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from test_metrics import CFG, films

import vaekit
from vaekit import sample
from vaekit.data import Data
from vaekit.lessons import explorer as lesson
from vaekit.lessons.explorer import LatentView, magnify, png_bytes, stored_runs
from vaekit.model import VAE

TINY = CFG | dict(widths=[8], epochs_phase1=1, epochs_phase2=1, beta_warmup=0, stem_kernel=3,
                  image_size=16, perceptual_weight=0.0, precision="fp32")  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Data:
    return Data.from_tensors(films(16, 16), films(4, 16, seed=1), films(4, 16, seed=2))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """A first run, and one of another latent shape in the same folder."""
    out = tmp_path_factory.mktemp("runs")
    cfgs = (vaekit.preset(**TINY), vaekit.preset(**TINY | dict(latent_channels=2)))
    return [vaekit.fit(cfg, data, out, verbose=False) for cfg in cfgs]


@pytest.fixture
def explorer(runs, data):
    return vaekit.explore(runs[0], data.train, 3, out=runs[0].path.parent)


@pytest.fixture
def view():
    torch.manual_seed(0)
    return LatentView(VAE(vaekit.preset(**CFG)), films(12), k=4)


def shown(explorer) -> list[np.ndarray]:
    """The pictures on the screen, one a run, 256 pixels each and 8 between them."""
    image = np.asarray(Image.open(io.BytesIO(explorer.picture.value)))
    return [image[:, at : at + 256] for at in range(0, image.shape[1], 256 + 8)]


def changed(before: list, explorer) -> list[bool]:
    return [not np.array_equal(a, b) for a, b in zip(before, shown(explorer), strict=True)]


def test_a_slider_moves_the_code_by_its_standard_deviations(view):
    base = view.code([0, 0, 0, 0])
    step = view.code([0, 2, 0, 0]) - base
    torch.testing.assert_close(step, 2 * view.stds[1] * view.directions[1], atol=1e-4, rtol=1e-4)
    both = view.code([-1, 2, 0, 0]) - base
    assert both.flatten().norm().item() == pytest.approx(
        (view.stds[0] ** 2 + (2 * view.stds[1]) ** 2).sqrt().item(), rel=1e-3)  # fmt: skip
    assert torch.equal(view.code([1.0]), view.code([1.0, 0, 0, 0, 9]))  # no fifth direction


def test_temperature_scales_the_base_code_around_the_mean(view):
    mu, _ = sample.encode_all(view.model, films(12))
    torch.testing.assert_close(view.code([], 0.0, seed=5), mu.mean(0), atol=1e-5, rtol=1e-4)
    hot, half = (view.code([], t, seed=5) - view.mean for t in (1.0, 0.5))
    torch.testing.assert_close(half, hot / 2, atol=1e-5, rtol=1e-4)
    assert not torch.equal(view.code([], 1.0, seed=6), view.code([], 1.0, seed=5))


@pytest.mark.parametrize("channels,latent", [(1, "spatial"), (3, "vector")])
def test_the_image_is_the_decoded_code(channels, latent):
    model = VAE(vaekit.preset(**CFG, in_channels=channels, latent=latent)).eval()
    view = LatentView(model, films(3, channels=channels), sampler="prior")
    assert len(view.stds) == 2  # three films have no more directions
    image = view.image([1, -1], 0.7, 3)
    assert image.dtype == np.uint8 and image.shape == (32, 32, 3)[: 2 + (channels == 3)]
    expected = model.decode(view.code([1, -1], 0.7, 3)[None]).detach()[0] * 255
    planes = image if channels == 3 else image[..., None]
    assert np.abs(planes - expected.permute(1, 2, 0).numpy()).max() <= 0.501


def test_films_must_be_of_the_models_size(view):
    with pytest.raises(ValueError, match=r"\(N, 1, 32, 32\).*\(5, 1, 16, 16\)"):
        LatentView(view.model, films(5, 16))
    with pytest.raises(ValueError, match="prior, gaussian, gmm"):
        LatentView(view.model, films(5), sampler="magic")


def test_magnified_pixels_are_whole_squares():
    image = np.array([[1, 2], [3, 4]], np.uint8)
    assert magnify(image, 5).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert magnify(image, 1).shape == (2, 2)
    assert [len(magnify(np.zeros((s, s, 3), np.uint8))) for s in (28, 64, 300)] == [252, 256, 300]


@pytest.mark.parametrize("channels", [(), (3,)])
def test_png_keeps_pixels(channels):
    one, other = (np.full((256, 256, *channels), level, np.uint8) for level in (7, 9))
    pixels = np.asarray(Image.open(io.BytesIO(png_bytes([one, other]))))
    assert np.array_equal(pixels[:, :256], one) and np.array_equal(pixels[:, 264:], other)
    assert (pixels[:, 256:264] == 255).all()


def test_the_figure_comes_before_the_widgets(explorer, monkeypatch):
    displayed = []
    monkeypatch.setattr(lesson, "display", lambda *things: displayed.extend(things))
    explorer._ipython_display_()
    assert displayed == [explorer.strip, explorer.box]
    strip = np.array(explorer.strip.axes[0].images[0].get_array())
    middle = strip[26 : 26 + 80, 32 + 3 * 84 : 32 + 3 * 84 + 80][::5, ::5]  # 16 px, five times
    view = explorer.views[0]
    expected = sample.decode_all(view.model, view.mean[None])[0, 0]
    torch.testing.assert_close(torch.as_tensor(middle), expected)


def test_every_slider_redraws(explorer):
    for slider in (*explorer.sliders, explorer.temperature):
        before = shown(explorer)
        slider.value -= 1
        assert changed(before, explorer) == [True], slider.description
    view, values = explorer.views[0], [slider.value for slider in explorer.sliders]
    assert values == [-1, -1, -1] and explorer.temperature.value == 0
    assert np.array_equal(shown(explorer)[0], magnify(view.image(values, 0.0, 0)))


def test_resampling_changes_the_base_code_and_at_temperature_0_nothing(explorer):
    before = shown(explorer)
    explorer.resample_button.click()
    assert changed(before, explorer) == [True]
    explorer.temperature.value = 0
    before = shown(explorer)
    explorer.resample_button.click()
    assert changed(before, explorer) == [False]


def test_a_second_run_stands_beside_the_first_under_the_same_sliders(explorer, runs):
    explorer.sliders[0].value = 1.5
    before = shown(explorer)
    explorer.second.value = runs[1].path.name
    assert explorer.message.value == "" and len(shown(explorer)) == 2
    assert explorer.caption.value.split("   |   ") == [run.path.name for run in runs]
    assert np.array_equal(shown(explorer)[0], before[0])
    assert not np.array_equal(shown(explorer)[1], before[0])
    assert explorer.views[1].directions.shape == (3, 2, 8, 8)
    alone = LatentView(runs[1].model, explorer.images, 3).image([1.5, 0, 0])
    assert np.array_equal(shown(explorer)[1], magnify(alone))
    before = shown(explorer)
    explorer.sliders[2].value = -2
    assert changed(before, explorer) == [True, True]
    explorer.second.value = lesson.ALONE
    assert len(shown(explorer)) == len(explorer.views) == 1


def test_runs_are_listed_newest_first_without_the_one_that_is_shown(explorer, runs, tmp_path):
    assert explorer.second.options == (lesson.ALONE, runs[1].path.name)
    for name, file in {"1-old": "last.pt", "2-new": "previous.last.pt", "3-empty": "x"}.items():
        (tmp_path / "list" / name).mkdir(parents=True)
        (tmp_path / "list" / name / file).touch()
    assert [path.name for path in stored_runs(tmp_path / "list")] == ["2-new", "1-old"]
    assert stored_runs(tmp_path / "nowhere") == []


def test_a_run_that_cannot_be_shown_is_a_message_and_the_first_stays(runs, data, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "last.pt").touch()
    explorer = vaekit.explore(runs[0], data.train, 2, out=tmp_path)
    explorer.second.value = "broken"
    assert "no readable run" in explorer.message.value and len(shown(explorer)) == 1
    before = shown(explorer)
    explorer.sliders[0].value = 2
    assert changed(before, explorer) == [True]


def test_a_linear_vae_stands_in_the_runs_place(runs, data):
    pca, out = vaekit.linear_vae(data.train, 8), runs[0].path.parent
    explorer = vaekit.explore(pca, data.train, 3, out=out)
    assert explorer.caption.value == "linear VAE, 8 numbers" and len(explorer.sliders) == 3
    before = shown(explorer)
    explorer.sliders[0].value = 2
    assert changed(before, explorer) == [True]
    assert explorer.second.options == (lesson.ALONE, runs[1].path.name, runs[0].path.name)
    explorer.second.value = runs[0].path.name
    assert explorer.message.value == "" and len(shown(explorer)) == 2


def test_an_executed_notebook_keeps_a_figure_before_the_widgets(runs, monkeypatch):
    monkeypatch.delenv("MPLBACKEND")  # a notebook has its own
    code = f"""import torch, vaekit
run = vaekit.load_run({str(runs[0].path)!r})
vaekit.explore(run, torch.randint(0, 255, (9, 1, 16, 16), dtype=torch.uint8), 2)"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    figure, box = notebook.cells[0].outputs
    assert "image/png" in figure.data
    assert "application/vnd.jupyter.widget-view+json" in box.data
    assert str(runs[0].path) not in str(box.data["text/plain"])
