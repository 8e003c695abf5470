"""The slider for beta: its models, what it shows, and a model that the reader adds."""

import pytest
import torch

from vaekit.data import Data
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


def test_every_model_begins_at_the_same_copier(models, data):
    x = data.test.images[:2].float() / 255
    first, other, again = (models.train(beta).reconstruct(x) for beta in (0.1, 100.0, 0.1))
    torch.testing.assert_close(again, first)
    assert not torch.allclose(other, first, atol=1e-3)


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
