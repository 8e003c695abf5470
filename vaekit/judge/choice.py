"""Which sampler? Fitted on training images, chosen on validation images."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vaekit.data import pixels_of
from vaekit.features import Trunk
from vaekit.judge.distances import gaussian_frechet, jackknife_error, memorisation, principal_axes
from vaekit.judge.networks import feature_vectors, find_trunk, network_name
from vaekit.judge.rows import row
from vaekit.sample import (
    SAMPLERS,
    LatentSampler,
    check_kind,
    decode_all,
    encode_all,
    fit_sampler,
)

TEMPERATURES = (0.7, 0.85, 1.0, 1.15)


class Choice(NamedTuple):
    best: str  # the kind
    samplers: dict[str, LatentSampler]  # all of them, fitted
    rows: list[dict]  # the validation table, keys as in `metrics.COLUMNS`
    temperature: float  # for `samplers[best].sample`


class Trial:
    """Sets of images in the judge's eyes, next to the validation films. For `choose_sampler`.

    sets: {name: (draws, n, d)}, n images in d principal directions of the validation films.
    """

    def __init__(self, model, train, val, mu: Tensor, trunk, draws: int, seed: int):
        rng = np.random.default_rng(seed)
        self.model, self.trunk, self.n = model, trunk, min(len(train), len(val))
        self.seen, real = (feature_vectors(s, trunk) for s in (train, val))
        self.axes = principal_axes(real, self.n)
        self.unseen = real[rng.permutation(len(real))[: self.n]]
        films = np.stack([rng.permutation(len(mu))[: self.n] for _ in range(draws)])
        self.sets = {"floor": self.seen[films] @ self.axes}
        self.add("reconstruction", [mu[i] for i in films])

    def add(self, name: str, codes: list[Tensor]) -> np.ndarray:
        """Decode a set's draws and keep it; their features (draws, n, D)."""
        images = (decode_all(self.model, z) for z in codes)
        features = np.stack([feature_vectors(x, self.trunk) for x in images])
        self.sets[name] = features @ self.axes
        return features

    def compare(self, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(S + 1, S + 1): by how much set i is farther than set j, and 1.96 standard errors of it.

        Means over the draws. The last stands for a distance of 0: its column holds the distances.
        The errors are paired, of the same films and random numbers (jackknife).
        """
        fakes = np.stack([self.sets[name] for name in names], axis=2)  # (draws, n, S, d)

        def measure(real, fakes):
            sets = fakes.transpose(2, 1, 0, 3)
            found = [np.mean([gaussian_frechet(real, f) for f in s]) for s in sets]
            return np.subtract.outer([*found, 0.0], [*found, 0.0])

        pair, rng = (self.unseen @ self.axes, fakes.swapaxes(0, 1)), np.random.default_rng(0)
        return measure(*pair), 1.96 * jackknife_error(measure, *pair, rng=rng)

    def rows(self, gap: np.ndarray, error: np.ndarray, chosen: str) -> list[dict]:
        """What `compare` found of all sets, the floor being the first."""
        judge, c = (
            f"{network_name(self.trunk)}, {self.axes.shape[1]} PCs",
            [*self.sets].index(chosen),
        )
        found = [*zip(self.sets, gap, error, strict=False)]
        rows = [row("frechet", name, v[-1], max(0.0, v[-1] - e[-1]), v[-1] + e[-1], self.n, judge,
                    gap[0, -1]) for name, v, e in found[1:]]  # fmt: skip
        return rows + [row("frechet gap", name, v[c], v[c] - e[c], v[c] + e[c], self.n, judge)
                       for name, v, e in found[2:] if name != chosen]  # fmt: skip


def subject(kind: str, temperature: float) -> str:
    """How a table calls it: "gmm", "gmm, T = 0.85"."""
    return kind if temperature == 1 else f"{kind}, T = {temperature:g}"


def choose_sampler(model, train, val, kinds=SAMPLERS, trunk: Trunk | str | None = "auto",
                   memorises: Callable | None = None, draws: int = 10, seed: int = 0,
                   download: bool = True, temperatures=TEMPERATURES) -> Choice:  # fmt: skip
    """A kind of sampler and its temperature: fitted on `train`, chosen on `val` (Splits, tensors).

    First the kind nearest to `val` by Fréchet distance, at the temperature nearest to 1; then its
    temperature, another one only where it is nearer by more than chance. Distances are means over
    `draws` draws of as many images as `val` has, all candidates from the same random numbers.
    Rows: "frechet", beside the floor and reconstructions of training films; "frechet gap", what
    a candidate has more than the chosen one; "memorises". low, high: 1.96 standard errors
    (jackknife of films and draws; paired for a gap: 0 between them is a tie).
    memorises(images (n, C, H, W) of one draw) -> bool takes a candidate out of the choice; None
    asks `distances.memorisation` on the judge's features. trunk, download: as for
    `find_trunk`. Test films are not to be seen here: score them afterwards. ValueError
    for an unknown kind, or where every kind memorises.
    """
    for kind in kinds:
        check_kind(kind)
    first = min(temperatures, key=lambda t: abs(t - 1))
    others = [t for t in sorted(temperatures) if t != first]
    trunk, train, val = find_trunk(trunk, download), pixels_of(train), pixels_of(val)
    if trunk is not None:
        trunk.to(next(model.parameters()).device)
    mu, logvar = encode_all(model, train)
    fitted = {kind: fit_sampler(mu, logvar, kind, seed) for kind in kinds}
    trial, copies = Trial(model, train, val, mu, trunk, draws, seed), {}

    def look(kind: str, t: float) -> str:
        name = subject(kind, t)
        codes = [fitted[kind].sample(trial.n, t, seed + i) for i in range(draws)]
        features = np.concatenate(trial.add(name, codes))
        copies[name] = bool(memorises(decode_all(model, codes[0]))) if memorises else (
            memorisation(features, trial.seen, trial.unseen).memorises)  # fmt: skip
        return name

    kind_of = {name: kind for kind in kinds if not copies[name := look(kind, first)]}
    if not kind_of:
        raise ValueError(f"every one of {', '.join(kinds)} memorises its training films")
    near, _ = trial.compare([*kind_of])
    start = [*kind_of][near[:-1, -1].argmin()]
    warmth = {start: first} | {look(kind_of[start], t): t for t in others}
    gap, error = trial.compare([*trial.sets])
    at = {name: i for i, name in enumerate(trial.sets)}
    clear = [name for name in warmth
             if not copies[name] and (gap + error)[at[name], at[start]] < 0]  # fmt: skip
    chosen = min(clear, key=lambda name: gap[at[name], -1], default=start)
    rows = trial.rows(gap, error, chosen)
    rows += [row("memorises", name, float(found), n=trial.n) for name, found in copies.items()]
    return Choice(kind_of[start], fitted, rows, warmth[chosen])
