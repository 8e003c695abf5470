"""Distances between sets: hand-computed values, agreement with the libraries, known answers."""

import numpy as np
import pytest
import torch

from vaekit.judge import distances


def normal(n: int, dims: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dims))


def vectors(n: int, seed: int) -> np.ndarray:
    """Correlated features, as networks give them."""
    return normal(n, 20, seed) @ normal(20, 20, seed + 100) + 1


def by_torchmetrics(metric, real: np.ndarray, fake: np.ndarray):
    """What torchmetrics makes of the same features: its Inception is replaced by the identity."""
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(fake), real=False)
    return metric.compute()


def identity(dims: int) -> torch.nn.Module:
    given = torch.nn.Identity()
    given.num_features = dims
    return given


def test_frechet_agrees_with_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = vectors(300, 1), vectors(250, 2)
    theirs = by_torchmetrics(FrechetInceptionDistance(identity(20)), a, b).item()
    assert distances.gaussian_frechet(a, b) == pytest.approx(theirs, rel=1e-6)
    assert distances.frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)


def test_principal_axes_follow_the_number_of_images():
    a = normal(400, 128)
    found = [distances.principal_axes(a, n).shape for n in (400, 40, 3)]
    assert found == [(128, 64), (128, 10), (128, 1)]
    with pytest.raises(ValueError, match="1 image"):
        distances.frechet_distance(a[:1], a)


def test_kernel_distance_agrees_with_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = vectors(60, 1), vectors(60, 2)
    with pytest.warns(UserWarning, match="buffer"):  # it keeps all features
        metric = KernelInceptionDistance(identity(20), subsets=1, subset_size=60)
    theirs, _ = by_torchmetrics(metric, a, b)
    assert distances.kernel_distance(a, b) == pytest.approx(theirs.item(), rel=1e-9)
    with pytest.raises(ValueError, match="1 image"):
        distances.kernel_distance(a[:1], b)


def test_precision_recall_agree_with_the_package():
    prdc = pytest.importorskip("prdc")
    real, fake = vectors(120, 1), vectors(90, 2)
    found = distances.precision_recall(real, fake)
    theirs = prdc.compute_prdc(real, fake, nearest_k=5)
    assert found._asdict() == pytest.approx(theirs, abs=1e-12)
    assert len({*found}) == 4  # none of them stands in for another
    with pytest.raises(ValueError, match=r"1\.\.89"):
        distances.precision_recall(real, fake, k=90)


def coverage(a, b):
    return distances.precision_recall(a, b).coverage


MEASURES = [distances.gaussian_frechet, distances.kernel_distance, coverage]


@pytest.mark.parametrize("measure", MEASURES)
def test_jackknife_matches_the_spread_over_fresh_sets(measure):
    rng = np.random.default_rng(0)

    def draw():
        return rng.standard_normal((100, 4)), rng.standard_normal((100, 4)) + 1

    fresh = np.std([measure(*draw()) for _ in range(200)])
    ours = np.mean([distances.jackknife_error(measure, *draw(), rng=rng) for _ in range(20)])
    assert ours == pytest.approx(fresh, rel=0.3)


@pytest.mark.parametrize("n", [2, 7, 88])
def test_jackknife_of_a_mean_is_its_standard_error(n):
    a = normal(n, 1)
    found = distances.jackknife_error(np.mean, a, rng=np.random.default_rng(0), rounds=4000)
    assert found == pytest.approx(a.std(ddof=1) / n**0.5, rel=0.05)


def test_memorisation_by_hand():
    column = [np.array(values)[:, None] for values in ([5, 0.25], [0.0, 1], [3.0])]
    found = distances.memorisation(*column)  # samples, train, test
    assert found.closer == 0.5  # 0.25 < 2, 4 > 2
    assert found.stands_out == 0.5  # 0.25 / 0.75 < 2 / 3, 4 / 5 > 2 / 3
    assert found.authentic == 0.5
    assert found.pairs.tolist() == [[1, 0], [0, 1]]
    assert found.distances.tolist() == pytest.approx([0.25, 4])
    with pytest.raises(ValueError, match="2 training images"):
        distances.memorisation(column[0], column[1][:1], column[2])


def test_memorisation_does_not_compare_all_training_images_with_each_other(monkeypatch):
    from sklearn.neighbors import NearestNeighbors

    asked, search = [], NearestNeighbors.kneighbors
    monkeypatch.setattr(
        NearestNeighbors,
        "kneighbors",
        lambda self, x=None, **kwargs: asked.append(len(x)) or search(self, x, **kwargs),
    )
    train = normal(300)
    train[7] = train[8]  # twice the same: its nearest neighbour is at 0
    found = distances.memorisation(train[[7]] + 0.01, train, normal(20, seed=1))
    assert max(asked) <= 21 and found.authentic == 1


def test_a_sampler_that_returns_its_training_films_is_caught():
    train, test = normal(200, 16), normal(80, 16, seed=1)
    order = np.random.default_rng(2).permutation(200)[:60]
    found = distances.memorisation(train[order] + 0.1 * normal(60, 16, seed=3), train, test)
    assert found.memorises and min(found.closer, found.stands_out) > 0.99
    assert found.authentic == 0 and found.p < 1e-10
    assert all(order[sample] == film for sample, film in found.pairs)
    assert not distances.memorisation(train[order] + normal(60, 16, seed=3), train, test).memorises


def test_fresh_real_images_are_hardly_ever_taken_for_copies():
    sets = [[normal(n, 16, seed=3 * s + i) for i, n in enumerate((60, 200, 80))] for s in range(30)]
    found = [distances.memorisation(*three) for three in sets]
    assert np.mean([f.memorises for f in found]) < 0.1  # p below 0.01 does happen
    assert np.mean([f.closer for f in found]) == pytest.approx(0.5, abs=0.03)


def test_images_nearer_to_every_film_are_not_taken_for_copies():
    """Blur draws images towards their mean, which is near to all of them."""
    train, test, fresh = (normal(n, 16, seed=i) for i, n in enumerate((200, 80, 60)))
    found = distances.memorisation(0.5 * fresh, train, test)
    assert found.closer > 0.9 and found.stands_out < 0.6 and not found.memorises
