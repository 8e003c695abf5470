"""A learned prior: a mixture of Gaussians over the leading coordinates of the latents."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from vaekit.sample import Gaussian

COMPONENTS = (1, 2, 4, 8, 16)


@dataclass
class Mixture(Gaussian):
    """A Gaussian, except for the leading coordinates: m_k + L_k y, with k drawn by weight."""

    mixture: Any  # scikit-learn's GaussianMixture, "full" or "diag"

    def coordinates(self, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        m = self.mixture
        d = m.n_features_in_
        k = rng.choice(m.n_components, len(y), p=m.weights_ / m.weights_.sum())
        along = super().coordinates(y, rng)
        if m.covariance_type == "diag":
            along[:, :d] = m.means_[k] + np.sqrt(m.covariances_[k]) * y[:, :d]
            return along
        for j in range(m.n_components):
            root = np.linalg.cholesky(m.covariances_[j])
            along[k == j, :d] = m.means_[j] + y[k == j, :d] @ root.T
        return along


def fit_mixture(gaussian: Gaussian, y: np.ndarray, seed: int = 0) -> Mixture:
    """The mixture of y (N, d), leading coordinates of the means; `gaussian` for the others.

    Number and kind of components are chosen by likelihood on held-out thirds; full covariances only
    with 2 images per dimension and component.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from sklearn.model_selection import GridSearchCV, KFold
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    n, d = y.shape
    floor = 1e-6 * float(y[:, 0].var(ddof=1)) + 1e-12
    one = GaussianMixture(covariance_type="diag", random_state=seed, reg_covar=floor)
    if n < 20:
        return Mixture(**vars(gaussian), mixture=one.fit(y))
    counts = [k for k in COMPONENTS if n >= 10 * k]
    grid = [{"n_components": counts}]
    full = [k for k in counts if 1 < k <= n / (2 * d)]  # 1 would be "diag": PCA decorrelates
    if full:
        grid.append({"n_components": full, "covariance_type": ["full"]})
    search = GridSearchCV(one, grid, cv=KFold(3, shuffle=True, random_state=seed))
    # small problems: more threads only wait for one another, on a busy machine for seconds
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(y)
    return Mixture(**vars(gaussian), mixture=search.best_estimator_)
