"""Two runs on the same films: paired numbers, shared noise, and what cannot be compared."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import need_weights
from test_metrics import CFG, films

import vaekit
from vaekit import metrics
from vaekit.judge import networks
from vaekit.judge import rows as tables
from vaekit.judge.comparison import finding
from vaekit.keep.run import Run
from vaekit.model import VAE
from vaekit.sample import Prior


def untrained(name: str, seed: int = 0, **changes) -> Run:
    cfg = vaekit.preset(**CFG, seed=seed, **changes)
    torch.manual_seed(seed)
    return Run(VAE(cfg).eval(), [], Path("runs") / name, cfg)


def picked(rows: list[dict], metric: str, subject: str) -> dict:
    return next(row for row in rows if (row["metric"], row["subject"]) == (metric, subject))


load_judge = networks.load_judge


@pytest.fixture(autouse=True)
def _no_judge(monkeypatch):
    monkeypatch.setattr(networks, "load_judge", lambda *_: None)


def test_rows_are_paired_film_by_film():
    a, b, test = untrained("one"), untrained("two", seed=1, beta=0.01), films(9)
    rows = vaekit.compare(a, b, test).rows
    x = test.float() / 255
    gain = metrics.psnr(b.model.reconstruct(x), x) - metrics.psnr(a.model.reconstruct(x), x)
    error = 1.96 * gain.std().item() / 3
    found = picked(rows, "psnr", "b - a")
    assert found["value"] == pytest.approx(gain.mean().item(), abs=1e-4)
    assert found["high"] - found["value"] == pytest.approx(error, rel=1e-3)
    for metric in ("psnr", "ssim", "l1", "sharpness ratio"):
        one, two, gap = (picked(rows, metric, subject) for subject in ("a", "b", "b - a"))
        assert two["value"] - one["value"] == pytest.approx(gap["value"], abs=1e-6)
        assert one["n"] == 9 and one["low"] < one["value"] < one["high"]
    assert set(rows[0]) == set(tables.COLUMNS)


def test_a_run_against_itself_does_not_differ():
    run = untrained("one")
    result = vaekit.compare(run, run, films(5))
    assert all(r["value"] == 0 == r["low"] for r in result.rows if r["subject"] == "b - a")
    assert "the configs do not differ" in str(result)
    assert str(result).count("5 images do not tell them apart") == 3
    assert torch.equal(result.images["samples of a"], result.images["samples of b"])


def test_words_and_picture_say_what_was_changed():
    a, b = untrained("one"), untrained("two", seed=1, beta=0.01)
    result = vaekit.compare(a, b, films(12))
    text = str(result)
    assert "a: one" in text and "  beta: 0.001 -> 0.01" in text and "same noise" in text
    z = Prior(a.model.latent_shape).sample(8, seed=0)
    for letter, run in (("a", a), ("b", b)):
        drawn = result.images[f"samples of {letter}"]
        torch.testing.assert_close(drawn, run.model.decode(z).detach(), atol=1e-5, rtol=1e-4)
    figure = result.plot()
    labels = [text.get_text() for text in figure.axes[0].texts if text.get_text()]
    assert labels[:3] == ["image", "a", "b"] and labels[3].startswith("|b - a|\n0 to ")
    assert labels[4:] == ["samples\nof a", "samples\nof b"] and not plt.get_fignums()


def test_other_latents_draw_for_themselves():
    a, b = untrained("one"), untrained("two", **{"latent": "vector"})
    result = vaekit.compare(a, b, films(4))
    assert "(4, 8, 8) in a and (4,) in b: their samples cannot share noise" in str(result)
    assert "same noise" not in str(result)
    b.info["data"] = {"hash": "other"}
    assert "trained on different data" in str(vaekit.compare(a, b, films(4)))


def test_a_linear_vae_stands_in_a_runs_place():
    run, test = untrained("one"), films(12)
    run.info["data"] = {"hash": "of the run"}
    pca = vaekit.linear_vae(films(20, seed=2), 16)
    result = vaekit.compare(run, pca, test)
    text = str(result)
    assert "a: one\nb: linear VAE, 16 numbers\n  not both have a config" in text
    assert "(4, 8, 8) in a and (16,) in b" in text and "different data" not in text
    assert result.changed is None and "psnr: b - a = +" in text and "b is better" in text
    x = test.float() / 255
    expected = metrics.psnr(pca.reconstruct(x), x).mean().item()
    assert picked(result.rows, "psnr", "b")["value"] == pytest.approx(expected, abs=1e-4)
    assert len(result.plot().axes) == 1
    two = vaekit.compare(pca, vaekit.linear_vae(films(20, seed=2), 4), test)
    assert "a: linear VAE, 16 numbers\nb: linear VAE, 4 numbers" in str(two)
    of_models = vaekit.compare(run.model, untrained("two", beta=0.01).model, test)
    assert of_models.names == ("VAE, 256 numbers",) * 2 and "beta" in of_models.changed
    with pytest.raises(ValueError, match="one size for all"):
        vaekit.compare(pca, run, films(4, 16))


@pytest.mark.parametrize(("changes", "test"), [
    ({"image_size": 16}, films(4)), ({"in_channels": 3}, films(4)), ({}, films(4, 16)),
    ({}, films(1))])  # fmt: skip
def test_what_cannot_be_compared_is_named(changes, test):
    with pytest.raises(ValueError, match="at least 2, and one size for all"):
        vaekit.compare(untrained("one"), untrained("two", **changes), test)


def test_finding_knows_which_way_is_better():
    def words(metric, low, high, n=7):
        return finding(tables.row(metric, "b - a", (low + high) / 2, low, high, n))

    assert words("psnr", 0.1, 0.3) == "psnr: b - a = +0.2 (+0.1 to +0.3): b is better"
    assert words("l1", 0.1, 0.3).endswith("a is better")
    assert words("lpips", -0.3, -0.1).endswith("b is better")
    assert words("ssim", -0.1, 0.3).endswith("7 images do not tell them apart")
    assert words("ssim", 0.1, 0.3, n=4).endswith("4 images do not tell them apart")


def test_the_judge_is_named_beside_what_the_runs_listened_to(monkeypatch):
    need_weights("squeezenet")
    monkeypatch.setattr(networks, "load_judge", load_judge)
    a, b = untrained("one"), untrained("two", perceptual_weight=0.0)
    found = picked(vaekit.compare(a, b, films(3)).rows, "lpips", "b - a")
    assert found["network"] == "squeezenet, LPIPS v0.1; model trained with squeezenet and none"
