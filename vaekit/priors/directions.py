"""Paths and directions in latent space, what they carry, and what was near in training."""

from typing import NamedTuple

import torch
from torch import Tensor

from vaekit.model import evaluating


def interpolate(z_a: Tensor, z_b: Tensor, steps: int, how: str = "linear") -> Tensor:
    """(steps, *latent_shape) from z_a to z_b, both included; "linear" or "spherical".

    Spherical turns by equal angles and keeps the norm of codes of equal norm, which in many
    dimensions the straight line does not: its middle is too short. Source: White 2016,
    arXiv 1609.04468. ValueError for another `how`.
    """
    t = torch.linspace(0, 1, steps, dtype=z_a.dtype, device=z_a.device)
    if how == "linear":
        a, b = 1 - t, t
    elif how == "spherical":
        cos = torch.cosine_similarity(z_a.flatten(), z_b.flatten(), dim=0)
        angle = cos.clamp(-1, 1).acos()
        if angle.sin() < 1e-4:  # parallel or opposite: no plane to turn in
            return interpolate(z_a, z_b, steps)
        a, b = ((1 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()
    else:
        raise ValueError(f"how={how!r} is not one of linear, spherical")
    view = (-1, *[1] * z_a.dim())
    return a.view(view) * z_a + b.view(view) * z_b


def principal_directions(mu: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """mean (*latent_shape), the k largest directions (k, *latent_shape) of unit norm, std (k,).

    mu (N, *latent_shape) as encoded; k at most min(N - 1, latent elements), else ValueError.
    """
    from sklearn.decomposition import PCA

    flat, most = mu.flatten(1).double().numpy(), min(len(mu) - 1, mu[0].numel())
    if not 1 <= k <= most:
        raise ValueError(f"k={k} directions: {len(mu)} codes have between 1 and {most}")
    pca = PCA(k, svd_solver="full").fit(flat)
    directions = torch.from_numpy(pca.components_).float().view(k, *mu.shape[1:])
    return mu.mean(0), directions, torch.from_numpy(pca.explained_variance_**0.5).float()


def class_direction(mu: Tensor, labels: Tensor, a: int, b: int) -> tuple[Tensor, Tensor]:
    """From the mean code of class a to that of class b: unit norm (*latent_shape), and std ().

    std is the deviation along it of all mu (N, *latent_shape), whatever their class; labels (N,).
    It carries everything in which the two sets of films differ on average, exposure and posture
    included. Source: Radford et al. 2016, arXiv 1511.06434. ValueError where a class has no film,
    or a is b.
    """
    groups = [mu[labels == k] for k in (a, b)]
    if a == b or not all(map(len, groups)):
        present = ", ".join(map(str, labels.unique().tolist()))
        raise ValueError(f"from class {a} to class {b}: two different ones of {present} are needed")
    arrow = groups[1].mean(0) - groups[0].mean(0)
    arrow = arrow / arrow.norm()
    return arrow, (mu * arrow).flatten(1).sum(1).std()


def move(z: Tensor, direction: Tensor, values) -> Tensor:
    """z + t * direction for each t of `values`: (len(values), *z.shape).

    z: one code or (N, *latent_shape); direction (*latent_shape). With `class_direction` this is
    attribute arithmetic: the same film, further towards a class.
    """
    return z + torch.as_tensor(values).to(z).view(-1, *[1] * z.dim()) * direction


def traverse(model, mean: Tensor, direction: Tensor, std: Tensor | float, values) -> Tensor:
    """Images (len(values), C, H, W), CPU, of mean + value * std * direction: values in stds."""
    with evaluating(model) as device:
        return model.decode(move(mean, std * direction, values).to(device)).cpu()


class Probe(NamedTuple):
    accuracy: float  # on the test codes, in [0, 1]
    low: float  # 95% interval (Wilson 1927): of the test films' number, not of the training
    high: float
    majority: float  # accuracy of always naming the commonest training class
    n: int  # test codes


def probe(mu_train: Tensor, labels: Tensor, mu_test: Tensor, labels_test: Tensor) -> Probe:
    """How well a linear classifier reads the class off the codes (N, *latent_shape), labels (N,).

    Logistic regression on standardised codes, its regularisation chosen by cross-validation on
    the training codes. Source: Alain and Bengio 2017, arXiv 1610.01644. ValueError where fewer
    than two classes have two training films each.
    """
    from scipy.stats import binomtest
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, x_test = (mu.flatten(1).double().cpu().numpy() for mu in (mu_train, mu_test))
    y, y_test = labels.cpu().numpy(), labels_test.cpu().numpy()
    counts = torch.bincount(labels.cpu())
    if len(counts.nonzero()) < 2 or counts[counts > 0].min() < 2:
        raise ValueError(f"a probe needs two films of two classes, not {counts.tolist()} films")
    line = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(min(5, int(counts[counts > 0].min())), shuffle=True, random_state=0)
    grid = {"logisticregression__C": [1e-4, 1e-3, 1e-2, 0.1, 1.0]}
    right = GridSearchCV(line, grid, cv=folds, scoring="neg_log_loss").fit(x, y).predict(x_test)
    n, hits = len(y_test), int((right == y_test).sum())
    low, high = binomtest(hits, n).proportion_ci(method="wilson")
    majority = float((y_test == int(counts.argmax())).mean())
    return Probe(hits / n, float(low), float(high), majority, n)
