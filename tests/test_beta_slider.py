"""The slider for beta: what is committed, what it shows, and what a reader adds to it."""

import pytest
import torch

from vaekit.data import Data
from vaekit.lessons.beta_slider import (
    BetaSlider,
    Portrait,
    load_model,
    save_model,
    slider_config,
    stored_models,
)
from vaekit.lessons.sweeps import RESULTS, bundled_data
from vaekit.model import VAE


@pytest.fixture(scope="module")
def data():
    """The sample of the bundled images: the pictures need no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAEKIT_PROFILE", "smoke")
        sample = bundled_data()
    parts = sample.train.images, sample.val.images, sample.test.images
    return Data.from_tensors(*parts)


# The committed models were trained when quick had 20 + 60 epochs of a smaller set of films.
LENGTHS = {"epochs_phase1", "epochs_phase2", "epoch_images", "beta_warmup", "sample_every"}
LENGTHS |= {"plateau_patience", "cycle_epochs", "features"}  # features: "auto", and what it found


def test_the_committed_models_are_five_small_and_of_the_recipe(monkeypatch):
    monkeypatch.setenv("VAEKIT_PROFILE", "quick")
    models = stored_models()
    assert len(models) == 5 and [m.cfg.beta for m in models] == sorted(m.cfg.beta for m in models)
    for model in models:
        recipe = slider_config(model.cfg.beta)
        assert set(recipe.differences(model.cfg)) <= LENGTHS
    sizes = [file.stat().st_size for file in RESULTS.glob("slider_*")]
    assert max(sizes) < 1.5e6


def test_beta_does_to_the_committed_models_what_the_notebook_says(data):
    portraits = [Portrait.of(model, data) for model in stored_models()]
    first, *_, last = portraits
    kl = [p.numbers["kl"] for p in portraits]
    assert kl == sorted(kl, reverse=True)
    assert first.numbers["psnr"] > last.numbers["psnr"] + 2
    assert first.numbers["active"] == 1 and last.verdict == "collapsed"


def test_half_precision_is_kept_with_its_config_and_no_other_file_is_taken(tmp_path):
    model = VAE(slider_config(0.01)).eval()
    save_model(model, tmp_path / "a.safetensors")
    again = load_model(tmp_path / "a.safetensors")
    assert again.cfg == model.cfg
    x = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(again.reconstruct(x), model.reconstruct(x), atol=5e-3, rtol=0)
    (tmp_path / "b.safetensors").write_bytes(b"not a file of weights")
    with pytest.raises(Exception, match="(?i)header|safetensor"):
        load_model(tmp_path / "b.safetensors")


def test_dragging_changes_the_picture_and_a_sixth_joins_in_its_place(data):
    slider = BetaSlider(stored_models()[:2], data)
    pictures = []
    for option in slider.slider.options:
        slider.slider.value = option
        pictures.append(bytes(slider.picture.value))
    assert len(set(pictures)) == 2 and all(p.startswith(b"\x89PNG") for p in pictures)
    own = VAE(slider_config(0.02)).eval()
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
