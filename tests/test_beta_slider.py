"""The slider for beta: its models, what it shows, and what a reader adds to it."""

import pytest
import torch

from vaekit.data import Data
from vaekit.keep.run import fit
from vaekit.lessons.beta_slider import BetaSlider, SliderModels, slider_config
from vaekit.lessons.sweeps import bundled_data


@pytest.fixture(scope="module")
def data():
    """The sample of the bundled images: the pictures need no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAEKIT_PROFILE", "smoke")
        sample = bundled_data()
    parts = sample.train.images[:16], sample.val.images, sample.test.images
    return Data.from_tensors(*parts)


@pytest.fixture
def models(data, monkeypatch):
    monkeypatch.setenv("VAEKIT_PROFILE", "smoke")
    return SliderModels(data)


def test_a_model_is_what_fit_makes_and_the_shared_start_stays_as_it_was(models, data, tmp_path):
    models.train(100.0)
    made = models.train(0.1)
    run = fit(slider_config(0.1), data, tmp_path, resume="never", verbose=False)
    assert run.history[-1]["beta"] == 0.1
    x = data.test.images[:2].float() / 255
    torch.testing.assert_close(made.reconstruct(x), run.model.reconstruct(x), atol=0.02, rtol=0)


def test_dragging_changes_the_picture_and_another_joins_in_its_place(models, data):
    slider = BetaSlider([models.train(beta) for beta in (0.1, 0.001)], data)
    pictures = []
    for option in slider.slider.options:
        slider.slider.value = option
        pictures.append(bytes(slider.picture.value))
    assert len(set(pictures)) == 2 and all(p.startswith(b"\x89PNG") for p in pictures)
    own = models.train(0.02)
    assert slider.add(own).beta == 0.02
    assert slider.slider.options == ("0.001", "0.02", "0.1") and slider.slider.value == "0.02"
    assert bytes(slider.picture.value) not in pictures
    slider.add(own)  # once more: in the place of itself
    assert len(slider.portraits) == 3
    assert len(slider.strip().axes) == 1 and "0.02" in str(slider.portraits[1])


def test_recipe_is_quick_unless_smoke_is_asked(monkeypatch):
    for asked, wanted in (("smoke", "smoke"), ("quick", "quick"), ("full", "quick")):
        monkeypatch.setenv("VAEKIT_PROFILE", asked)
        assert slider_config(0.01).profile == wanted and slider_config(0.01).image_size == 64
