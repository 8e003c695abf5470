"""Judges: their features, their names, and FID against torchmetrics."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import need_weights
from test_metrics import films

from vaekit import metrics
from vaekit.features import WeightsMissing
from vaekit.judge import distances, networks


def test_pixel_features_and_sizes():
    vectors = networks.feature_vectors(SimpleNamespace(images=films(5, 48)), batch_size=2)
    assert vectors.shape == (5, 32 * 32) and vectors.dtype == np.float64
    flat = torch.full((1, 1, 20, 20), 51, dtype=torch.uint8)
    assert networks.feature_vectors(flat) == pytest.approx(np.full((1, 1024), 0.2), abs=1e-6)
    assert metrics.at_least(torch.zeros(1, 1, 20, 40), 64).shape[-2:] == (64, 128)
    with pytest.raises(ValueError, match="N, C, H, W"):
        networks.feature_vectors(torch.zeros(3, 3))


def test_network_features_do_not_depend_on_the_batch():
    need_weights("squeezenet")
    trunk = networks.load_judge(download=False).trunk
    one, three = (networks.feature_vectors(films(5), trunk, size) for size in (1, 3))
    assert one.shape == (5, 512) and one == pytest.approx(three, rel=1e-3, abs=1e-3)


def test_a_notice_is_given_once(no_weights, capsys):
    assert networks.load_judge() is None and networks.load_judge(download=False) is None
    assert networks.load_judges(["squeezenet", "vgg19"]) == [None]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "no LPIPS" in lines[0] and "vgg19 cannot judge" in lines[1]
    with pytest.raises(ValueError, match="unknown trunk"):
        networks.load_judges(["inceptionv9"])


def test_the_second_judge_is_never_downloaded_and_missed_once(
    no_weights, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("VAEKIT_PROFILE", "quick")
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # would fail
    assert networks.second_judge() is None and networks.second_judge() is None
    (line,) = capsys.readouterr().out.splitlines()
    assert "VGG-19 does not judge beside SqueezeNet: no weights for vgg19" in line
    torch.save({"head.weight": torch.ones(2)}, tmp_path / "vgg19_of_others.pth")
    assert networks.second_judge() is None


def test_weights_are_downloaded_in_every_profile_but_smoke(monkeypatch):
    asked = []

    def nowhere(name, download):
        asked.append(download)
        raise WeightsMissing(name)

    monkeypatch.setattr(networks, "load_trunk", nowhere)
    for profile in ("smoke", "quick"):
        monkeypatch.setenv("VAEKIT_PROFILE", profile)
        assert networks.load_judge() is None and networks.load_judges(["vgg19"]) == [None]
    assert asked == [False, False, True, True]


def labelled(n: int, seed: int) -> SimpleNamespace:
    """Two classes, as bright as each other: stripes across and stripes along."""
    labels = torch.arange(n) % 2
    noise = torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
    stripes = 0.5 + 0.3 * torch.sin(torch.arange(32.0)).expand(1, 32, 32)
    x = torch.stack([stripes.mT if label else stripes for label in labels]) + 0.4 * (noise - 0.5)
    return SimpleNamespace(images=(255 * x).byte(), labels=labels, classes=["across", "along"])


@pytest.fixture(scope="module")
def judge():
    return networks.train_judge(labelled(64, seed=0), epochs=6)


def test_the_label_judge_knows_the_classes(judge):
    test = labelled(40, seed=1)
    assert (judge(test.images / 255).argmax(1) == test.labels).float().mean() > 0.9
    vectors = networks.feature_vectors(test, judge)
    assert vectors.shape == (40, 128) and vectors == pytest.approx(
        networks.feature_vectors(test, judge, batch_size=7), abs=1e-5)  # fmt: skip
    assert not judge.training and not any(p.requires_grad for p in judge.parameters())


def test_the_label_judge_repeats_with_its_seed_and_wants_two_classes():
    split, before = labelled(20, seed=0), torch.get_rng_state()
    judges = [networks.train_judge(split, seed, epochs=1) for seed in (0, 0, 1)]
    one, same, other = (judge.head.weight for judge in judges)
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
    split.labels = torch.ones(20, dtype=torch.int64)
    with pytest.raises(ValueError, match="two classes"):
        networks.train_judge(split)


def test_a_last_batch_of_one_small_film_does_not_stop_the_judge():
    split = labelled(65, seed=0)
    split.images = split.images[..., :16, :16]
    assert networks.train_judge(split, epochs=1).name == "CNN on 2 labels"


def test_inception_says_what_is_missing(no_weights):
    try:
        import torch_fidelity  # noqa: F401
    except ImportError:
        with pytest.raises(WeightsMissing, match="torch-fidelity"):
            networks.fid(films(4), films(4))
    else:
        pytest.skip("torch-fidelity is installed")


class Means(torch.nn.Linear):
    """Sixteen means of an image, in Inception's place."""

    def forward(self, x):
        assert x.shape[1] == 3 and x.dtype == torch.uint8
        return torch.nn.functional.adaptive_avg_pool2d(x[:, 1].float() / 255, 4).flatten(1)


def test_fid_is_torchmetrics_on_grey_as_rgb(monkeypatch):
    inception = Means(1, 1)
    monkeypatch.setattr(networks, "load_inception", lambda: inception)
    a, b = films(40), films(30, seed=1) // 2
    vectors = [inception(x.expand(-1, 3, -1, -1)).double().numpy() for x in (a, b)]
    assert networks.fid(a, b / 255) == pytest.approx(distances.gaussian_frechet(*vectors), rel=1e-6)


def test_inception_is_torch_fidelitys_from_a_file(no_weights, monkeypatch, tmp_path):
    """The whole path but for the values of the weights, which are random here."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    extractor, file = module.FeatureExtractorInceptionV3, networks.INCEPTION_FILE.replace("*", "w-")
    with monkeypatch.context() as patch:  # its constructor wants weights
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(extractor, "load_state_dict", lambda *_: None)
        random = extractor("inception-v3-compat", ["2048"], feature_extractor_weights_path="")
    torch.save(random.state_dict(), tmp_path / file)
    network, x = networks.load_inception(), films(4).expand(-1, 3, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(network(x), random(x)[0])
    assert not network.training
