"""Which sampler? Fitted on training images, chosen on validation images."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vaekit.judge import distances
from vaekit.judge.distances import LEAST
from vaekit.judge.networks import feature_vectors, find_trunk, network_name
from vaekit.judge.rows import MAX_IMAGES, row
from vaekit.sample import SAMPLERS, check_kind, decode_all, encode_all, fit_sampler


class Choice(NamedTuple):
    best: str  # the kind
    samplers: dict  # of every kind, fitted
    rows: list[dict]  # the validation table, keys as in `rows.COLUMNS`


@dataclass
class Candidate:
    name: str
    features: np.ndarray  # (draws, n, D): what the judge sees of its images
    memorises: bool = False


def choose_sampler(
    model, train, val, kinds=SAMPLERS, trunk="auto", draws: int = 10, seed: int = 0
) -> Choice:
    """The kind of sampler nearest to `val` by Fréchet distance, fitted on `train` (Splits).

    Distances are means over `draws` draws of as many images as `val` has, of all kinds from the
    same random numbers. Rows: "frechet", beside the floor and reconstructions of training images;
    "frechet gap", what a kind has more than the chosen one; "memorises". low, high: 1.96 standard
    errors (jackknife of images and draws; paired for a gap: 0 between them is a tie).
    A kind that `distances.memorisation` objects to is not chosen. trunk: as for `find_trunk`. Test
    images are not to be seen here: score them afterwards. Below 4 images the first kind is taken,
    without rows; where every kind memorises, a line says so. ValueError for an unknown kind.
    """
    for kind in kinds:
        check_kind(kind)
    trunk = find_trunk(trunk)
    if trunk is not None:
        trunk.to(next(model.parameters()).device)
    mu, logvar = encode_all(model, train)
    seen, real = feature_vectors(train, trunk), feature_vectors(val, trunk)
    samplers = {kind: fit_sampler(mu, logvar, kind, seed) for kind in kinds}
    n = min(len(seen), len(real), MAX_IMAGES)
    if n < LEAST:
        print(f"a choice takes {LEAST} images to choose by: there are {n}, and {kinds[0]} is taken")
        return Choice(kinds[0], samplers, [])
    axes = distances.principal_axes(real, n)
    rng = np.random.default_rng(seed)
    real = real[rng.permutation(len(real))[:n]]

    parts = [rng.permutation(len(seen))[:n] for _ in range(draws)]
    rebuilt = look(model, [mu[part] for part in parts], trunk)
    sets = [Candidate("floor", seen[parts]), Candidate("reconstruction", rebuilt)]
    for kind in kinds:
        codes = [samplers[kind].sample(n, seed=seed + i) for i in range(draws)]
        features = look(model, codes, trunk)
        copies = distances.memorisation(np.concatenate(features), seen, real).memorises
        sets.append(Candidate(kind, features, copies))
    honest = [i for i in range(2, len(sets)) if not sets[i].memorises]
    if not honest:
        print(f"every one of {', '.join(kinds)} memorises its training images")
        honest = range(2, len(sets))

    fakes = np.stack([c.features @ axes for c in sets], axis=2).swapaxes(0, 1)
    real = real @ axes
    gap = differences(real, fakes)
    error = 1.96 * distances.jackknife_error(differences, real, fakes, rng=np.random.default_rng(0))
    best = min(honest, key=lambda i: gap[i, -1])
    judge = f"{network_name(trunk)}, {axes.shape[1]} PCs"
    rows = table(sets, gap, error, best, n, judge)
    return Choice(sets[best].name, samplers, rows)


def look(model, codes: list, trunk) -> np.ndarray:
    """Features (draws, n, D) of the images of `codes`, one tensor a draw."""
    return np.stack([feature_vectors(decode_all(model, z), trunk) for z in codes])


def differences(real: np.ndarray, fakes: np.ndarray) -> np.ndarray:
    """(S, S + 1): how much farther from real (n, d) set i is than set j; last, its own distance.

    fakes: (n, draws, S, d). Distances are means over the draws.
    """
    _, draws, count, _ = fakes.shape
    found = []
    for s in range(count):
        each = [distances.gaussian_frechet(real, fakes[:, draw, s]) for draw in range(draws)]
        found.append(np.mean(each))
    return np.subtract.outer(found, [*found, 0.0])


def table(sets: list[Candidate], gap, error, best: int, n: int, judge: str) -> list[dict]:
    """Rows of `choose_sampler`; the first set is the floor, the second the reconstructions."""
    rows = []
    for i in range(1, len(sets)):
        value, e = gap[i, -1], error[i, -1]
        low = max(0.0, value - e)
        rows.append(row("frechet", sets[i].name, value, low, value + e, n, judge, gap[0, -1]))
    for i in range(2, len(sets)):
        value, e = gap[i, best], error[i, best]
        if i != best:
            rows.append(row("frechet gap", sets[i].name, value, value - e, value + e, n, judge))
    return rows + [row("memorises", c.name, float(c.memorises), n=n) for c in sets[2:]]
