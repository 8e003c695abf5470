"""Choose a sampler: fitted on training images, chosen on validation images."""

from typing import NamedTuple

import numpy as np

from vaekit.judge import distances
from vaekit.judge.networks import feature_vectors, load_judges, network_name
from vaekit.judge.rows import MAX_IMAGES, row
from vaekit.sample import SAMPLERS, decode_all, encode_all, fit_sampler


class Choice(NamedTuple):
    # the kind that was chosen
    best: str
    # {kind: sampler}, fitted
    samplers: dict
    # the validation table, keys as in `rows.COLUMNS`
    rows: list[dict]
    # the judge's feature vectors of the training images
    seen: np.ndarray


def choose_sampler(
    model, train, val, kinds=SAMPLERS, judge="squeezenet", draws=10, seed: int = 0, codes=None
) -> Choice:
    """The kind of sampler nearest to `val` by Fréchet distance, fitted on `train` (Splits).

    Distances are means over `draws` draws of as many images as `val` has; all kinds use the same
    random numbers. Rows: "frechet", with the floor and reconstructions of training images;
    "frechet gap", the difference from the chosen kind; "memorises". low, high: 1.96 standard errors
    (jackknife of images and draws; paired for a gap: an interval that holds 0 is a tie).

    A kind that `distances.memorisation` rejects is not chosen; if it rejects all, a line says so.
    judge: one of `load_judges`. codes: `encode_all` of `train`, if already computed. Keep test
    images out of this: score them afterwards. Below 4 images the first kind is taken, without rows.
    ValueError for an unknown kind.
    """
    (trunk,) = load_judges([judge], next(model.parameters()).device)
    mu, logvar = encode_all(model, train) if codes is None else codes
    seen, real = feature_vectors(train, trunk), feature_vectors(val, trunk)
    samplers = {kind: fit_sampler(mu, logvar, kind, seed) for kind in kinds}
    n = min(len(seen), len(real), MAX_IMAGES)
    if n < distances.LEAST:
        print(f"{n} images are too few to choose by: {kinds[0]} is taken")
        return Choice(kinds[0], samplers, [], seen)
    axes = distances.principal_axes(real, n)
    rng = np.random.default_rng(seed)
    real = real[rng.permutation(len(real))[:n]]

    parts = [rng.permutation(len(seen))[:n] for _ in range(draws)]
    rebuilt = look(model, [mu[part] for part in parts], trunk)
    sets = {"floor": seen[parts], "reconstruction": rebuilt}
    copies = {}
    for kind in kinds:
        codes = [samplers[kind].sample(n, seed=seed + i) for i in range(draws)]
        sets[kind] = look(model, codes, trunk)
        found = distances.memorisation(np.concatenate(sets[kind])[:MAX_IMAGES], seen, real)
        copies[kind] = found.memorises
    honest = [kind for kind in kinds if not copies[kind]]
    if not honest:
        print(f"every one of {', '.join(kinds)} memorises its training images")

    fakes = np.stack([features @ axes for features in sets.values()], axis=2).swapaxes(0, 1)
    real = real @ axes
    gap = differences(real, fakes)
    error = 1.96 * distances.jackknife_error(differences, real, fakes, rng=np.random.default_rng(0))
    place = {name: i for i, name in enumerate(sets)}
    best = min(honest or kinds, key=lambda kind: gap[place[kind], -1])
    pairs = [("frechet", name, -1) for name in sets if name != "floor"]
    pairs += [("frechet gap", kind, place[best]) for kind in kinds if kind != best]
    judge = f"{network_name(trunk)}, {axes.shape[1]} PCs"
    rows = []
    for metric, name, other in pairs:
        value, e = gap[place[name], other], error[place[name], other]
        rows.append(row(metric, name, value, value - e, value + e, n, judge))
        if metric == "frechet":
            rows[-1] |= dict(low=max(0.0, value - e), floor=gap[0, -1])
    rows += [row("memorises", kind, float(copies[kind]), n=n) for kind in kinds]
    return Choice(best, samplers, rows, seen)


def look(model, codes: list, trunk) -> np.ndarray:
    """Features (draws, n, D) of the images decoded from `codes`, one tensor per draw."""
    return np.stack([feature_vectors(decode_all(model, z), trunk) for z in codes])


def differences(real: np.ndarray, fakes: np.ndarray) -> np.ndarray:
    """(S, S + 1): how much farther set i is from real (n, d) than set j; last column: its distance.

    fakes: (n, draws, S, d). Distances are means over the draws.
    """
    found = []
    for draws in fakes.transpose(2, 1, 0, 3):
        found.append(np.mean([distances.gaussian_frechet(real, fake) for fake in draws]))
    return np.subtract.outer(found, [*found, 0.0])
