"""Distances between sets of feature vectors: numpy arrays (N, D), one row an image.

The vectors can come from `networks.feature_vectors` or anywhere else. All distances need D floats
per image and up to N^2 distances between pairs: keep N at a few thousand.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FRECHET_DIMS = 64
LEAST = 4  # images that a distance between sets needs
NEAREST = 5  # k of precision, recall, density, coverage, as Naeem et al. recommend


def principal_axes(real: np.ndarray, n: int, dims: int = FRECHET_DIMS) -> np.ndarray:
    """(D, dims): the leading principal directions of real (N, D), at most n / 4 of them.

    With four images per direction, covariances of n images are regular. ValueError below 2 images.
    """
    dims = min(dims, max(n // LEAST, 1), *real.shape)
    if n < 2:
        raise ValueError(f"a Fréchet distance of {n} image says nothing")
    _, _, axes = np.linalg.svd(real - real.mean(0), full_matrices=False)
    return axes[:dims].T


def frechet_distance(real: np.ndarray, other: np.ndarray, dims: int = FRECHET_DIMS) -> float:
    """Fréchet distance of feature sets (N, D), (M, D) along `real`'s principal directions.

    Uses `dims` of them, at most min(N, M) / 4. It falls with N: compare at equal N only, and with
    real against real. ValueError below 2 images.
    """
    axes = principal_axes(real, min(len(real), len(other)), dims)
    return gaussian_frechet(real @ axes, other @ axes)


def gaussian_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2) of the Gaussians fitted to a and b, >= 0.

    tr (A B)^1/2 = tr (A^1/2 B A^1/2)^1/2: symmetric, so its eigenvalues are real.
    Source: Heusel et al. 2017, arXiv 1706.08500, eq. 6.
    """
    cov_a = np.atleast_2d(np.cov(a.T))
    cov_b = np.atleast_2d(np.cov(b.T))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    gap = np.square(a.mean(0) - b.mean(0)).sum()
    return max(0.0, float(gap + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def mmd(a, b, kernel: Callable) -> tuple[float, float]:
    """Squared maximum mean discrepancy of a (N, D) and b (M, D), arrays or tensors, unbiased.

    0 on average for two draws of one distribution, whatever N, so it can be negative. Also as a
    share: 1 where the kernel means are orthogonal. kernel(x, y): (len(x), len(y)). Source: Gretton
    et al. 2012, eq. 3. ValueError below 2 images.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a kernel distance of {min(len(a), len(b))} image says nothing")

    def within(x):  # without pairs of an image with itself: no bias
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    own = within(a) + within(b)
    across = 2 * kernel(a, b).mean()
    return float(own - across), float(1 - across / own)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The squared discrepancy `mmd` of a (N, D) and b (M, D) by the kernel (x.y / D + 1)^3.

    On Inception features this is KID. Source: Binkowski et al. 2018, arXiv 1801.01401. ValueError
    below 2 images.
    """
    from sklearn.metrics.pairwise import polynomial_kernel  # of degree 3 unless told otherwise

    return mmd(a, b, polynomial_kernel)[0]


class Coverage(NamedTuple):
    """The result of `precision_recall`; all in [0, 1] except density, which may exceed 1.

    precision: share of fake images inside the k-nearest-neighbour ball of some real image; recall:
    share of real images inside the ball of some fake one; density: mean number of real balls that a
    fake image lies in, divided by k; coverage: share of real balls that hold a fake image.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = NEAREST) -> Coverage:
    """Do fakes (M, D) look real, and do they cover the real images (N, D)? See `Coverage`.

    An image's ball reaches to its k-th nearest neighbour in its own set. All four depend on N and
    k: compare with real against real at the same N. Precision, recall: Kynkäänniemi et al. 2019,
    arXiv 1904.06991; density, coverage: Naeem et al. 2020, arXiv 2002.09797. ValueError where k is
    not below both N and M.
    """
    from sklearn.metrics import pairwise_distances

    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"k={k} should lie in 1..{min(len(real), len(fake)) - 1}")
    # column 0 of a sorted row is the image's distance from itself
    ball_real, ball_fake = (np.partition(pairwise_distances(s), k)[:, k] for s in (real, fake))
    d = pairwise_distances(real, fake)  # (N, M)
    in_real = d < ball_real[:, None]
    in_fake = d < ball_fake
    density = in_real.sum() / k / len(fake)
    shares = in_real.any(0).mean(), in_fake.any(1).mean(), density, in_real.any(1).mean()
    return Coverage(*map(float, shares))


def jackknife_error(measure: Callable, *sets: np.ndarray, rng, rounds: int = 20):
    """Standard error of measure(*sets), a number or an array, from subsamples of every set.

    80% of each, drawn without replacement: with replacement, images that occur twice would raise a
    distance. A subsample's value is biased as well (the distance falls with N), but its spread is
    not: the delete-d jackknife scales it by (m / (n - m))^1/2, which is 2 at 80%. Source: Shao and
    Wu 1989. Between two draws of one distribution the error is up to 1.7 times too large.
    """
    kept = [min(round(0.8 * len(s)), len(s) - 1) for s in sets]
    found = []
    for _ in range(rounds):
        cut = [s[rng.permutation(len(s))[:m]] for s, m in zip(sets, kept, strict=True)]
        found.append(measure(*cut))
    left_out = sum(map(len, sets)) - sum(kept)
    return np.std(found, axis=0, ddof=1) * (sum(kept) / left_out) ** 0.5


class Memorisation(NamedTuple):
    """The result of `memorisation` for S samples. Both chances are 0.5 where nothing is copied.

    closer: chance that a sample is nearer to training than a test image is; stands_out: chance that
    its nearest training image stands out more from the others; p: of both, if samples were unseen
    images; authentic: share of samples that are; pairs (S, 2): sample and its nearest training
    image, the closest pair first; distances (S,): of those pairs.
    """

    closer: float
    stands_out: float
    p: float
    authentic: float
    pairs: np.ndarray
    distances: np.ndarray

    @property
    def memorises(self) -> bool:
        """p below 0.01 and both chances above 0.6: many samples are copies of training images.

        A few copies among many samples do not reach this: also look at the first `pairs`.
        """
        return self.p < 0.01 and min(self.closer, self.stands_out) > 0.6


def memorisation(samples: np.ndarray, train: np.ndarray, test: np.ndarray) -> Memorisation:
    """Are samples (S, D) copies of training images (N, D)? Compares them with unseen test images
    (T, D).

    `closer`: distances to the nearest training image, in a one-sided Mann-Whitney test (Meehan et
    al. 2020, arXiv 2004.05675). Blurred images are close to every image, so a copy also has to
    stand out: the same test of the nearest distance divided by the second nearest. p is the larger
    of the two. Copies of an image that training holds twice do not pass the second test.
    `authentic`: farther from the nearest image than that image is from its own nearest neighbour in
    training (Alaa et al. 2022, arXiv 2102.08921). Mixtures of several training images do not count
    as copies; for a model that stores the images themselves see `health.train_to_test`. ValueError
    below 2 training images.
    """
    from sklearn.neighbors import NearestNeighbors

    if len(train) < 2:
        raise ValueError("memorisation needs 2 training images at least")
    search = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(train)
    d, nearest = search.kneighbors(samples)  # (S, 2), the nearer one first
    d_test, _ = search.kneighbors(test)  # (T, 2)
    found, place = np.unique(nearest[:, 0], return_inverse=True)
    among = search.kneighbors(train[found])[0][:, 1]  # column 0 is the image itself
    closer, p_closer = _chance_below(d[:, 0], d_test[:, 0])
    ratio, ratio_test = (x[:, 0] / np.maximum(x[:, 1], 1e-12) for x in (d, d_test))
    stands_out, p_out = _chance_below(ratio, ratio_test)
    authentic = float((d[:, 0] > among[place]).mean())
    order = d[:, 0].argsort()
    pairs = np.stack([order, nearest[order, 0]], axis=1)
    return Memorisation(closer, stands_out, max(p_closer, p_out), authentic, pairs, d[order, 0])


def _chance_below(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The chance that a value of `a` is below one of `b`, and the p of it being above 0.5."""
    from scipy.stats import mannwhitneyu

    test = mannwhitneyu(a, b, alternative="less")
    return 1 - float(test.statistic) / (len(a) * len(b)), float(test.pvalue)
