"""Metrics: values by hand, agreement with libraries, and rows with their N and network."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import need_weights

import vaekit
from vaekit import metrics
from vaekit.judge import evaluation, networks
from vaekit.judge import rows as tables
from vaekit.model import VAE

CFG = dict(profile="smoke", widths=[8, 16], attention=[], latent_channels=4)


def films(n: int, side: int = 32, channels: int = 1, seed: int = 0) -> torch.Tensor:
    """Smooth uint8 images (n, C, side, side) that differ from one another."""
    noise = torch.rand(n, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, (side, side), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8)


@pytest.fixture
def pair():
    x = films(3, 40).float() / 255
    return (x + 0.05 * torch.randn_like(x)).clamp(0, 1), x


def test_psnr_by_hand():
    x = torch.zeros(2, 1, 8, 8)
    x_hat = x + torch.tensor([0.1, 0]).view(2, 1, 1, 1)
    assert metrics.psnr(x_hat, x).tolist() == pytest.approx([20, 100], abs=1e-4)


def test_sharpness_agrees_with_cv2():
    import cv2

    x = films(3, 24)
    by_cv2 = [cv2.Laplacian(f[0].numpy(), cv2.CV_64F)[1:-1, 1:-1].var() for f in x]
    ours = metrics.sharpness(x.float() / 255) * 255**2
    assert ours.tolist() == pytest.approx(by_cv2, rel=1e-4)
    red_green_blue = metrics.to_grey(torch.eye(3)[..., None, None]).flatten()
    assert red_green_blue.tolist() == pytest.approx([0.299, 0.587, 0.114])


def test_appearance_by_hand():
    x = torch.zeros(1, 1, 4, 4)
    x[..., 2:] = 1
    found = {name: value.item() for name, value in metrics.appearance(x).items()}
    assert found["brightness"] == 0.5 and found["contrast"] == 0.5
    assert (found["range low"], found["range high"]) == (0, 1)
    assert found["sharpness"] == pytest.approx(1)  # the 2x2 inner pixels: 1, -1 each row


def test_sharpness_ratio_tells_blur_from_noise():
    x = films(8)
    blurred = torch.nn.functional.avg_pool2d(x.float() / 255, 5, 1)
    noisy = (x.float() / 255 + 0.1 * torch.randn(x.shape)).clamp(0, 1)
    assert metrics.sharpness_ratio(x, x) == pytest.approx(1)
    assert metrics.sharpness_ratio(blurred, x) < 0.8
    assert metrics.sharpness_ratio(noisy, x) > 1.1


def test_spectrum_of_white_noise_is_its_variance():
    noise = torch.randn(200, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    freqs, power = metrics.radial_power_spectrum(0.1 * noise)
    assert freqs[0] == 1 / 32 and freqs[-1] == 0.5
    assert power[2:] == pytest.approx(np.full(len(power) - 2, 0.01), rel=0.05)


def test_spectrum_peaks_at_the_frequency_of_a_grating():
    wave = 0.5 + 0.4 * torch.sin(2 * torch.pi * torch.arange(32) * 6 / 32)
    freqs, power = metrics.radial_power_spectrum(wave.expand(1, 1, 32, 32))
    assert freqs[power.argmax()] == 6 / 32


def test_octaves_halve_from_the_highest_frequency_down():
    assert metrics.octave_powers(films(2, 64)).shape == (2, 5)
    assert metrics.octave_powers(films(3, 33, channels=3)).shape == (3, 4)
    assert metrics.octave_powers(films(2)[:, :, :20, :27]).shape == (2, 3)
    assert [metrics.octave_name(i) for i in (0, 2)] == ["power 1/4-1/2", "power 1/16-1/8"]
    at = 2 * torch.pi * torch.arange(32) / 32
    for octave, across, down in ((0, 12, 0), (1, 6, 0), (1, 5, 4)):  # cycles, within their octave
        wave = 0.5 + 0.4 * torch.sin(across * at + down * at[:, None])
        powers = metrics.octave_powers(wave.expand(1, 1, 32, 32))[0]
        assert powers.argmax() == octave
        assert powers[octave] > 0.95 * powers.sum()
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    assert metrics.octave_powers(ramp)[0, 0] < 1e-4  # that its edges do not meet leaks nowhere


@pytest.mark.parametrize(("side", "channels"), [(32, 1), (33, 1), (64, 3)])
def test_white_noise_adds_its_variance_to_the_highest_octave(side, channels):
    x = films(80, side, channels).float() / 255
    noise = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    variance = 0.01
    if channels == 3:  # grey is a weighted sum of the three
        variance *= 0.299**2 + 0.587**2 + 0.114**2
    more = (metrics.octave_powers(x + noise) - metrics.octave_powers(x)).mean(0)
    assert more[0] == pytest.approx(variance, rel=0.03)
    alone = metrics.octave_powers(noise).mean(0)
    assert alone[:3].tolist() == pytest.approx([variance] * 3, rel=0.1)


def test_lpips_agrees_with_the_package(pair):
    need_weights("squeezenet")
    import lpips

    judge = networks.load_judge(download=False)
    package = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).eval()
    pairs = zip(package.net.parameters(), judge.trunk.layers.parameters(), strict=True)
    for theirs, ours in pairs:
        theirs.data.copy_(ours)
    a, b = (metrics.at_least(t, 128).expand(-1, 3, -1, -1) for t in pair)
    with torch.no_grad():
        theirs = package(a, b, normalize=True).flatten()
    ours = metrics.lpips_squeeze(*pair, judge)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert metrics.lpips_squeeze(pair[1], pair[1], judge).abs().max() == 0


def test_distance_rows_are_at_one_n_with_one_floor():
    rng = np.random.default_rng(0)
    real, others, same, far = (rng.standard_normal((n, 8)) for n in (200, 300, 120, 150))
    rows = tables.distance_rows({"near": same, "far": far + 2}, real, others, "net")
    found = {(r["metric"], r["subject"]): r for r in rows}
    assert len(found) == len(rows) == 14 and {r["n"] for r in rows} == {120}
    assert [r["subject"] for r in rows[:4]] == ["near", "far"] * 2  # metric by metric
    for (metric, _), r in found.items():
        assert r["low"] <= r["value"] <= r["high"] and r["low"] < r["high"]
        assert r["floor"] == found[metric, "near"]["floor"]
        assert all(type(r[key]) is float for key in ("value", "low", "high", "floor"))
        assert tuple(r) == tables.COLUMNS
    excess, frechet = (found[metric, "far"] for metric in ("frechet excess", "frechet"))
    assert frechet["low"] <= 32 <= frechet["high"]  # |shift|^2 = 8 * 2^2
    assert frechet["floor"] < 2 and frechet["network"] == "net, 8 PCs"
    assert excess["value"] == frechet["value"] - frechet["floor"] and excess["floor"] == 0
    assert excess["low"] > 20 and found["frechet excess", "near"]["low"] < 0
    assert found["kernel", "far"]["low"] > 0 > found["kernel", "near"]["low"]
    for metric in ("precision", "recall", "density", "coverage"):
        near = found[metric, "near"]
        assert near["low"] <= near["floor"] <= near["high"]
        assert found[metric, "far"]["high"] < found[metric, "far"]["floor"]
        assert found[metric, "far"]["network"] == "net, k=5"


def test_distance_rows_of_a_handful_of_images():
    rng = np.random.default_rng(0)
    rows = tables.distance_rows({"s": rng.random((4, 6))}, *rng.random((2, 4, 6)), "net")
    assert all(np.isfinite(r["value"]) for r in rows)
    assert {r["network"] for r in rows} == {"net", "net, 1 PCs", "net, k=1"}
    few = tables.distance_rows({"s": rng.random((4, 6))}, *rng.random((2, 3, 6)), "net")
    assert len(few) == len(rows) and all(np.isnan(r["value"]) for r in few)


def test_mean_and_ratio_rows():
    values = torch.tensor([1.0, 2.0, 3.0])
    found = tables.mean_row("m", "s", values)
    assert found["value"] == 2 and found["high"] == pytest.approx(2 + 1.96 / 3**0.5)
    ratio = tables.ratio_row("m", "s", 2 * values, values, paired=True)
    assert (ratio["value"], ratio["low"], ratio["high"]) == pytest.approx((2, 2, 2))
    apart = tables.ratio_row("m", "s", 2 * values, values, paired=False)
    assert apart["high"] == pytest.approx(2 + 1.96 * (4 / 3 + 2**2 / 3) ** 0.5 / 2)


def test_one_image_has_no_interval(model):
    rows = evaluation.evaluate(model, films(1), model.cfg, samples={"prior": films(1, seed=1)})
    assert {"psnr", "sharpness ratio"} < {r["metric"] for r in rows}
    assert {(r["low"], r["high"]) for r in rows} == {(None, None)}
    with pytest.raises(ValueError, match="N > 0"):
        evaluation.evaluate(model, films(4)[:0], model.cfg)


def test_a_share_of_few_images_is_never_certain():
    """No sample of 20 lies among the films: up to 16% could, by Wilson's interval of 0 of 20."""
    real, others, far = np.random.default_rng(0).standard_normal((3, 20, 4))
    rows = tables.distance_rows({"far": far + 100}, real, others, "net")
    for r in rows:
        if r["metric"] in ("precision", "recall", "coverage"):
            assert (r["value"], r["low"]) == (0, 0) and r["high"] == pytest.approx(0.161, abs=1e-3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VAE(vaekit.preset(**CFG)).train()


def test_evaluate_without_weights(model, no_weights, capsys):
    test, val = films(20), SimpleNamespace(images=films(30, seed=1))
    samples = {"prior": torch.rand(12, 1, 32, 32), "copy": films(16, seed=2), "few": films(3)}
    rows = evaluation.evaluate(model, test, model.cfg, val, samples)
    printed = capsys.readouterr().out
    assert printed.count("no LPIPS") == 1 and "VAEKIT_WEIGHTS" in printed
    assert "no distances of few: below 4 images" in printed
    assert all(tuple(row) == tables.COLUMNS for row in rows) and model.training
    found = {(r["metric"], r["subject"]): r for r in rows}
    assert not any(metric == "lpips" for metric, _ in found)
    with torch.no_grad():
        x = test.float() / 255
        expected = metrics.psnr(model.eval().reconstruct(x), x).mean().item()
    assert found["psnr", "reconstruction"]["value"] == pytest.approx(expected, abs=1e-4)
    assert found["sharpness ratio", "prior"]["value"] > 1.1
    distances = {s: r for (metric, s), r in found.items() if metric == "frechet"}
    assert {s: r["n"] for s, r in distances.items()} == dict.fromkeys(
        ["reconstruction", "prior", "copy"], 12)  # fmt: skip
    assert distances["copy"]["value"] < distances["prior"]["value"]
    assert all("pixels 32x32" in r["network"] and r["floor"] > 0 for r in distances.values())
    assert all("; model trained with" in r["network"] for r in distances.values())


def test_evaluate_halves_the_test_films_when_there_are_no_others(model, no_weights):
    rows = evaluation.evaluate(model, films(21), model.cfg)
    assert [r["n"] for r in rows if r["metric"] == "frechet"] == [10]
    few = evaluation.evaluate(model, films(6), model.cfg)
    assert [np.isnan(r["value"]).item() for r in few if r["metric"] == "frechet"] == [True]


def test_evaluate_goes_on_in_smaller_batches_where_memory_runs_out(model, monkeypatch, no_weights):
    cfg = model.cfg.replace(batch_size=5)
    expected = evaluation.evaluate(model, films(20), cfg)
    encode = VAE.encode

    def small(self, x):
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return encode(self, x)

    monkeypatch.setattr(VAE, "encode", small)
    found = evaluation.evaluate(model, films(20), cfg)
    for a, b in zip(expected, found, strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-3, abs=1e-5)
    monkeypatch.setattr(VAE, "encode", lambda self, x: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent|size"):
        evaluation.evaluate(model, films(20), model.cfg)
    real, others = evaluation._reference(films(21), None, seed=0)
    assert not {t.numpy().tobytes() for t in real} & {t.numpy().tobytes() for t in others}


def test_evaluate_with_weights(model):
    need_weights("squeezenet")
    rows = evaluation.evaluate(model, films(10), model.cfg, films(10, seed=1))
    networks = {}
    for r in rows:
        if r["network"]:
            networks.setdefault(r["metric"], r["network"])
    assert networks["lpips"].startswith("squeezenet, LPIPS v0.1")
    assert networks["frechet"].startswith("squeezenet (ImageNet), 2 PCs; model trained with")


def test_vgg_judges_beside_squeezenet_where_its_weights_are(model, monkeypatch):
    need_weights("squeezenet", "vgg19")
    monkeypatch.setattr(evaluation, "SECOND_IMAGES", 8)
    test, val = films(12), films(10, seed=1)
    rows = evaluation.evaluate(model, test, model.cfg, val, {"copy": films(9, seed=2)})
    found = [r for r in rows if r["network"].startswith("vgg19 to layer 17 (ImageNet)")]
    assert all(r["n"] == 8 and r["network"].endswith("trained with squeezenet") for r in found)
    assert {r["subject"] for r in found if r["metric"] == "frechet"} == {"reconstruction", "copy"}
    (distance,) = [r for r in rows if r["metric"] == "feature distance"]
    assert distance in found and distance["low"] < distance["value"] < distance["high"]
    firsts = [r for r in rows if r["metric"] == "frechet"]
    assert firsts[0]["network"].startswith("squeezenet") and firsts[0]["n"] == 9
    rows = evaluation.evaluate(model, test, model.cfg, val, judges=("squeezenet",))
    assert not any("vgg19" in r["network"] for r in rows)


def test_the_feature_distance_of_an_image_from_itself_is_0(model, monkeypatch):
    need_weights("vgg19")
    second = networks.second_judge()
    monkeypatch.setattr(model, "reconstruct", lambda x: x)
    row = evaluation._feature_row(model, films(5), second, 2)
    assert (row["value"], row["high"], row["n"]) == (0, 0, 5)


def test_the_power_of_each_octave_is_a_score(model, no_weights):
    test = films(20) // 2 + 64  # noise keeps it in [0, 1]
    noise = 0.05 * torch.randn(test.shape, generator=torch.Generator().manual_seed(0))
    samples = {"same": test, "noisy": test / 255 + noise, "small": films(5, 16)}
    rows = evaluation.evaluate(model, test, model.cfg, films(9, seed=1), samples)
    found = {(r["metric"], r["subject"]): r for r in rows if r["metric"].startswith("power")}
    names = ["power 1/4-1/2", "power 1/8-1/4", "power 1/16-1/8", "power 1/32-1/16"]
    assert [metric for metric, subject in found if subject == "noisy"] == names
    assert len([subject for _, subject in found if subject == "small"]) == 3
    assert not any(subject == "real" for _, subject in found)
    for name in names:
        same, own = found[name, "same"], found[name, "reconstruction"]
        assert same["value"] == 1 and same["low"] < 1 < same["high"] and same["network"] == ""
        assert own["low"] < own["value"] < own["high"] and own["n"] == 20
    real = metrics.octave_powers(test).mean(0)[0].item()
    expected = (metrics.octave_powers(noise).mean(0)[0].item() + real) / real
    assert found[names[0], "noisy"]["value"] == pytest.approx(expected, rel=0.05)


def test_identical_reconstructions_have_all_the_power_and_no_interval(model, monkeypatch):
    monkeypatch.setattr(model, "reconstruct", lambda x: x)
    for channels, side in ((1, 33), (3, 32)):
        test = films(6, side, channels)
        rows = evaluation._image_rows(model, test, {}, None, 4)
        ratios = [r for r in rows if r["metric"].startswith("power")]
        assert len(ratios) == 4
        for r in ratios:
            assert (r["value"], r["low"], r["high"]) == pytest.approx((1, 1, 1), abs=1e-6)
    # distances are from other images: such reconstructions are no nearer than the floor
    pair = films(8), films(8, seed=1)
    for r in evaluation._judged_rows(model, {}, *pair, None, model.cfg):
        assert r["value"] == pytest.approx(r["floor"], abs=1e-9)


def test_images_are_judged_as_their_vectors_are():
    fakes, real, others = {"fake": films(9)}, films(12, seed=1), films(11, seed=2)
    vectors = [networks.feature_vectors(x) for x in (films(9), real, others)]
    expected = tables.distance_rows({"fake": vectors[0]}, *vectors[1:], networks.PIXELS, seed=3)
    assert evaluation.judge_images(fakes, real, others, seed=3) == expected


def test_a_linear_vae_listened_to_no_network():
    pca, test = vaekit.linear_vae(films(40), 8), films(12, seed=1)
    rows = evaluation.evaluate(pca, test, vaekit.preset(**CFG), judges=("pixels",))
    networks = {r["network"] for r in rows if r["metric"] == "kernel"}
    assert networks == {"pixels 32x32; model trained with none"}
    assert {"psnr", "power 1/4-1/2", "frechet"} <= {r["metric"] for r in rows}
    short = evaluation.evaluate(pca, test, vaekit.preset(**CFG), judges=[])
    by_image = [r for r in rows if r["metric"] not in tables.METRICS]
    assert short == by_image and len(short) < len(rows)


def test_format_table_is_aligned_markdown():
    rows = [tables.row("psnr", "reconstruction", 20.123, 19.0, 21.0, 7),
            tables.row("frechet", "prior", 12345.6, n=5, network="net", floor=3.0)]  # fmt: skip
    lines = tables.format_table(rows).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert "20.1" in lines[2] and "12346" in lines[3] and "None" not in lines[3]


def test_rank_cases(model):
    split = SimpleNamespace(images=films(9))
    x_hat = model.reconstruct(films(9))
    best, worst, values = evaluation.rank_cases(x_hat, split, k=3)
    torch.testing.assert_close(values, metrics.ssim(x_hat, films(9) / 255))
    assert best[0] == values.argmax() and worst[0] == values.argmin()
    assert values[best].tolist() == sorted(values.tolist(), reverse=True)[:3]
