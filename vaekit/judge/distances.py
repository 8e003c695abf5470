"""Distances between sets of feature vectors: numpy arrays (N, D), one row an image.

Whatever made the features, `metrics.feature_vectors` or anything else. All of them need D floats
an image and up to N^2 distances: keep N at a few thousand.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FRECHET_DIMS = 64
NEAREST = 5  # k of precision, recall, density, coverage, as Naeem et al. recommend
COPIES_P, COPIES_CHANCE = 0.01, 0.6  # `Memorisation.memorises`


class Frechet(NamedTuple):
    value: float
    dims: int


def principal_axes(real: np.ndarray, n: int, dims: int = FRECHET_DIMS) -> np.ndarray:
    """(D, dims): the leading principal directions of real (N, D), at most n / 4 of them.

    Four images a direction keep covariances of n images regular. ValueError below 4 images.
    """
    dims = min(dims, n // 4, *real.shape)
    if dims < 1:
        raise ValueError(f"a Fréchet distance of {n} images says nothing")
    return np.linalg.svd(real - real.mean(0), full_matrices=False)[2][:dims].T


def frechet_distance(real: np.ndarray, other: np.ndarray, dims: int = FRECHET_DIMS) -> Frechet:
    """Fréchet distance of feature sets (N, D), (M, D) along `real`'s principal directions.

    Returned with how many: `dims`, at most min(N, M) / 4. Falls with N: compare at equal N only,
    beside real against real. ValueError below 4 images.
    """
    axes = principal_axes(real, min(len(real), len(other)), dims)
    return Frechet(gaussian_frechet(real @ axes, other @ axes), axes.shape[1])


def gaussian_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2) of the Gaussians fitted to a and b, >= 0.

    tr (A B)^1/2 = tr (A^1/2 B A^1/2)^1/2: symmetric, so its eigenvalues are real.
    Source: Heusel et al. 2017, arXiv 1706.08500, eq. 6.
    """
    cov_a, cov_b = (np.atleast_2d(np.cov(s, rowvar=False)) for s in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    gap = np.square(a.mean(0) - b.mean(0)).sum()
    return max(0.0, float(gap + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def mmd(a, b, kernel: Callable) -> tuple[float, float]:
    """Squared maximum mean discrepancy of a (N, D) and b (M, D), arrays or tensors, unbiased.

    0 on average for two draws of one distribution, whatever N, so it can be negative; and as a
    share: 1 where the kernel means are orthogonal. kernel(x, y): (len(x), len(y)). Source: Gretton
    et al. 2012, eq. 3. ValueError below 2 images.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a kernel distance of {min(len(a), len(b))} image says nothing")

    def within(x):  # an image with itself is what would bias the mean
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    own, across = within(a) + within(b), 2 * kernel(a, b).mean()
    return float(own - across), float(1 - across / own)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The squared discrepancy `mmd` of a (N, D) and b (M, D) by the kernel (x.y / D + 1)^3.

    On Inception features this is KID. Source: Binkowski et al. 2018, arXiv 1801.01401. ValueError
    below 2 images.
    """
    return mmd(a, b, lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3)[0]


class Coverage(NamedTuple):
    """What `precision_recall` found; in [0, 1] but for density, which may exceed 1."""

    precision: float  # share of fake images within the k-nearest-neighbour ball of some real one
    recall: float  # share of real images within the ball of some fake one
    density: float  # how many real balls a fake image lies in, over k
    coverage: float  # share of real balls that hold a fake image


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = NEAREST) -> Coverage:
    """Do fakes (M, D) look real, and do they cover what is real (N, D)? See `Coverage`.

    An image's ball reaches to its k-th nearest neighbour in its own set. All four depend on N
    and k: real against real at the same N says what to expect. Precision, recall: Kynkäänniemi
    et al. 2019, arXiv 1904.06991; density, coverage: Naeem et al. 2020, arXiv 2002.09797.
    ValueError where k is not below both N and M.
    """
    from sklearn.metrics import pairwise_distances

    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"k={k} should lie in 1..{min(len(real), len(fake)) - 1}")
    # column 0 once sorted is an image's distance from itself
    balls = [np.partition(pairwise_distances(s), k)[:, k] for s in (real, fake)]
    d = pairwise_distances(real, fake)  # (N, M)
    in_real, in_fake = d < balls[0][:, None], d < balls[1]
    found = in_real.any(0).mean(), in_fake.any(1).mean(), in_real.sum() / k / d.shape[1]
    return Coverage(*map(float, (*found, in_real.any(1).mean())))


def jackknife_error(measure: Callable, *sets: np.ndarray, rng, rounds: int = 20,
                    keep: float = 0.8):  # fmt: skip
    """Standard error of measure(*sets), a number or an array, from subsamples of every set.

    Drawn without replacement: with it, images that occur twice would raise a distance. A
    subsample's own value is off as well (the distance falls with N), its spread is not: the
    delete-d jackknife scales it by (m / (n - m))^1/2, 2 at 80%. Source: Shao and Wu 1989. Between
    two draws of one distribution it is up to 1.7 times too large: cautious where it matters.
    """
    kept = [min(round(keep * len(s)), len(s) - 1) for s in sets]
    cuts = [[s[rng.permutation(len(s))[:m]] for s, m in zip(sets, kept, strict=True)]
            for _ in range(rounds)]  # fmt: skip
    scale = (sum(kept) / (sum(map(len, sets)) - sum(kept))) ** 0.5
    return np.std([measure(*cut) for cut in cuts], axis=0, ddof=1) * scale


class Memorisation(NamedTuple):
    """What `memorisation` found of S samples. Chances are 0.5 where nothing is copied."""

    closer: float  # chance that a sample is nearer to training than a test film
    stands_out: float  # chance that its nearest film stands out more among all of training
    p: float  # of both chances, were the samples unseen films
    authentic: float  # share of samples that are
    authentic_test: float  # the same of test films: what to expect
    pairs: np.ndarray  # (S, 2): sample and its nearest training film, the closest pair first
    distances: np.ndarray  # (S,), of those pairs

    @property
    def memorises(self) -> bool:
        """p below 0.01 and both chances above 0.6: many samples are copies of training films.

        A few copies among many do not move them that far: look at the first `pairs` as well.
        """
        return self.p < COPIES_P and min(self.closer, self.stands_out) > COPIES_CHANCE


def memorisation(samples: np.ndarray, train: np.ndarray, test: np.ndarray) -> Memorisation:
    """Are samples (S, D) copies of training films (N, D), next to unseen test films (T, D)?

    `closer`: distances to the nearest training film, by a one-sided Mann-Whitney test (Meehan et
    al. 2020, arXiv 2004.05675). Blurred images are closer to every film, though, so a copy also
    has to `stand out`: the same test of the nearest distance over the second nearest. p is the
    larger of the two. A film that training holds twice hides its copies from the second.
    `authentic`: farther from the nearest film than that film is from its own nearest neighbour
    in training (Alaa et al. 2022, arXiv 2102.08921). ValueError below 2 training films.
    """
    from scipy.stats import mannwhitneyu
    from sklearn.neighbors import NearestNeighbors

    if len(train) < 2:
        raise ValueError("memorisation needs 2 training films at least")
    search = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(train)
    among = search.kneighbors(n_neighbors=1)[0][:, 0]  # of training films: itself does not count
    near, second, which, authentic = [], [], [], []
    for vectors in (samples, test):
        d, i = search.kneighbors(vectors)
        near.append(d[:, 0])
        second.append(d[:, 0] / np.maximum(d[:, 1], 1e-12))
        which.append(i[:, 0])
        authentic.append(float((d[:, 0] > among[i[:, 0]]).mean()))
    tests = [mannwhitneyu(*both, alternative="less") for both in (near, second)]
    chances = [1 - float(t.statistic) / (len(samples) * len(test)) for t in tests]
    order = np.argsort(near[0])
    return Memorisation(*chances, max(float(t.pvalue) for t in tests), *authentic,
                        np.stack([order, which[0][order]], axis=1), near[0][order])  # fmt: skip
