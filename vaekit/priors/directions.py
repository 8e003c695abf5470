"""Paths and directions in latent space, and what they change in the images."""

from typing import NamedTuple

import torch
from torch import Tensor

from vaekit.sample import decode_all


def interpolate(z_a: Tensor, z_b: Tensor, steps: int, how: str = "linear") -> Tensor:
    """(steps, *latent_shape) from z_a to z_b, both included; "linear" or "spherical".

    "Spherical" turns by equal angles and keeps the norm of codes of equal norm. In many dimensions
    the middle of the straight line is too short. Source: White 2016, arXiv 1609.04468. ValueError
    for another `how`.
    """
    t = torch.linspace(0, 1, steps, dtype=z_a.dtype, device=z_a.device)
    a, b = 1 - t, t
    if how == "spherical":
        angle = torch.cosine_similarity(z_a.flatten(), z_b.flatten(), dim=0).clamp(-1, 1).acos()
        if angle.sin() >= 1e-4:  # else parallel or opposite: no plane to turn in
            a = ((1 - t) * angle).sin() / angle.sin()
            b = (t * angle).sin() / angle.sin()
    elif how != "linear":
        raise ValueError(f"how={how!r} is not one of linear, spherical")
    shape = (steps, *[1] * z_a.dim())
    return a.view(shape) * z_a + b.view(shape) * z_b


def between_neighbours(mu: Tensor) -> Tensor:
    """The point half way from each code (N, *latent_shape) to its nearest neighbour; N >= 2.

    The Fréchet distance of their decoded images predicts, before any prior is fitted, how well a
    latent can be sampled from. Source: Xu et al. 2026, arXiv 2603.05630.
    """
    codes = mu.flatten(1)
    near = [torch.cdist(part, codes).topk(2, largest=False).indices for part in codes.split(1000)]
    return (mu + mu[torch.cat(near)[:, 1]]) / 2  # the nearest is the code itself


def principal_directions(mu: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """mean (*latent_shape), the k largest directions (k, *latent_shape) of unit norm, std (k,).

    mu (N, *latent_shape) as encoded; k at most min(N, latent elements), else ValueError.
    """
    from sklearn.decomposition import PCA

    pca = PCA(k, svd_solver="full").fit(mu.detach().flatten(1).double().numpy())
    directions = torch.from_numpy(pca.components_).float().view(k, *mu.shape[1:])
    stds = torch.from_numpy(pca.explained_variance_**0.5).float()
    return mu.mean(0), directions, stds


def class_direction(mu: Tensor, labels: Tensor, a: int, b: int) -> tuple[Tensor, Tensor]:
    """From the mean code of class a to that of class b: unit norm (*latent_shape), and std ().

    std is the deviation along it of all mu (N, *latent_shape), whatever their class; labels (N,).
    It carries everything in which the two sets of images differ on average, exposure and posture
    included. Source: Radford et al. 2016, arXiv 1511.06434. ValueError where a class has no image,
    or a is b.
    """
    present = labels.unique().tolist()
    if a == b or a not in present or b not in present:
        raise ValueError(f"from class {a} to class {b}: two different ones of {present} are needed")
    arrow = mu[labels == b].mean(0) - mu[labels == a].mean(0)
    arrow = arrow / arrow.norm()
    return arrow, (mu * arrow).flatten(1).sum(1).std()


def traverse(model, mean: Tensor, direction: Tensor, std: Tensor | float, values) -> Tensor:
    """Images (len(values), C, H, W), CPU, of mean + value * std * direction: values in stds.

    mean: a code, (*latent_shape). With `class_direction` this is attribute arithmetic: the same
    image, further towards a class.
    """
    t = torch.as_tensor(values).to(mean).view(-1, *[1] * mean.dim())
    return decode_all(model, mean + t * (std * direction))


class Probe(NamedTuple):
    accuracy: float  # on the test codes, in [0, 1]
    low: float  # 95% interval (Wilson 1927), for the number of test images
    high: float
    majority: float  # accuracy of always naming the commonest training class
    n: int  # test codes


def probe(mu_train: Tensor, labels: Tensor, mu_test: Tensor, labels_test: Tensor) -> Probe:
    """How well a linear classifier reads the class from the codes (N, *latent_shape), labels (N,).

    Logistic regression on standardised codes, its regularisation chosen by cross-validation on
    the training codes: minutes from tens of thousands on. Source: Alain and Bengio 2017, arXiv
    1610.01644. ValueError where fewer than two classes have two training images each.
    """
    from scipy.stats import binomtest
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = torch.bincount(labels.cpu())
    rarest = int(counts[counts > 0].min())
    if len(counts.nonzero()) < 2 or rarest < 2:
        raise ValueError(f"a probe needs two images of two classes, not {counts.tolist()}")
    line = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    grid = {"logisticregression__C": [1e-4, 1e-3, 1e-2, 0.1, 1.0]}
    folds = StratifiedKFold(min(5, rarest), shuffle=True, random_state=0)
    search = GridSearchCV(line, grid, cv=folds, scoring="neg_log_loss")
    search.fit(mu_train.flatten(1).double().cpu().numpy(), labels.cpu().numpy())
    y, n = labels_test.cpu().numpy(), len(labels_test)
    hits = int((search.predict(mu_test.flatten(1).double().cpu().numpy()) == y).sum())
    low, high = binomtest(hits, n).proportion_ci(method="wilson")
    return Probe(hits / n, float(low), float(high), float((y == int(counts.argmax())).mean()), n)
