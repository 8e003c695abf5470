"""Which prior is best for how many images, and when does one copy them?

    python benchmarks/priors.py --data DIR --runs OUT --out benchmarks/priors.json

Trains one model on all training images (kept in OUT), or with `--preset linear` fits the linear
VAE. Then, for each N and seed, it fits priors to the codes of N training images and judges as many
samples as there are test images. Scores: Fréchet excess over real against real, precision and
coverage, by a CNN trained here to tell the classes apart, which no model was trained with;
sharpness; and `memorisation` of those N images. "flow, 500 steps" is the flow without early
stopping. "map flow" is a transformer over the latent map, where there is one, in place of the
package's flow along leading directions. "half way" has no prior: the codes half way between
neighbours. `--set` changes the preset, as in '{"latent": "fsq", "levels": [2, 2, 2]}': where the
code is quantised, the priors are equally likely codes and "codes", the transformer. Rows that are
already in the file are not made again.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

import vaekit
from vaekit import metrics, sample
from vaekit.data import as_float
from vaekit.judge import distances, networks
from vaekit.judge.rows import distance_rows
from vaekit.lessons import rates
from vaekit.priors import flow
from vaekit.priors.directions import between_neighbours
from vaekit.priors.flow import FlowMatching, train_velocity
from vaekit.priors.tokens import CodePrior, fit_tokens

KINDS = ("prior", "gaussian", "gmm", "flow", "half way")
STEPS = (100, 300, 1000, 3000)  # of training, without early stopping
COUNTS = (100, 300, 1000, 4000)
MAP_STEPS = 3000  # of training, at most
LOOKED_AT = ("frechet excess", "precision", "coverage")


class Bench:
    """One model, its codes, one judge, and the judge's features of the images."""

    def __init__(self, model, data, judge, most: int):
        self.model, self.judge = model, judge
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(data.test)))
        self.test = data.test.images[order[:most]]
        self.mu, self.logvar = sample.encode_all(model, data.train)
        self.mu_test = sample.encode_all(model, self.test)[0]
        self.seen = networks.feature_vectors(data.train, judge)
        self.unseen = networks.feature_vectors(self.test, judge)

    def row(self, kind: str, n: int, seed: int) -> dict:
        """Everything measured of one prior, fitted to n training images drawn with this seed."""
        rows = np.random.default_rng(seed).permutation(len(self.mu))
        others, rows = self.seen[rows[::-1]], rows[:n]
        mu, logvar, seen = self.mu[rows], self.logvar[rows], self.seen[rows]
        z, spent = draw(kind, mu, logvar, self.mu_test, seed, self.model)
        images = sample.decode_all(self.model, z)
        fake = networks.feature_vectors(images, self.judge)
        table = distance_rows({kind: fake}, self.unseen, others, "", seed)
        found = {r["metric"]: r for r in table}
        copies = distances.memorisation(fake, seen, self.unseen)
        new = distances.memorisation(self.unseen, seen, self.unseen)
        result = {"prior": kind, "n": n, "seed": seed}
        for name in LOOKED_AT:
            result[name] = [found[name][key] for key in ("value", "low", "high")]
        result |= {
            "judged by": found["coverage"]["n"],
            "sharpness": metrics.sharpness_ratio(images, as_float(self.test)),
            "distance ratio": float(np.median(copies.distances) / np.median(new.distances)),
            "closer": copies.closer,
            "stands out": copies.stands_out,
            "authentic": copies.authentic,
            "memorises": copies.memorises,
        }
        return {key: rounded(value) for key, value in (result | spent).items()}


class MapBlock(nn.Module):
    """Attention between the places of a map, then the flow's own block at each: (B, places, C)."""

    def __init__(self, width: int, places: int, heads: int = 4):
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(places, width))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.block = flow.Block(width)

    def forward(self, h, told):
        seen = self.norm(h + self.position)
        h = h + self.attention(seen, seen, seen, need_weights=False)[0]
        return self.block(h, told)


class MapVelocity(flow.Velocity):
    """A transformer (Peebles and Xie 2023) with a token a place of the map `shape`, (C, H, W).
    Points are flat, (N, C * H * W)."""

    def __init__(self, shape, dims: int, classes: int = 0, depth: int = 4):
        super().__init__(shape[0], classes)
        self.dims, self.shape = dims, shape
        blocks = [MapBlock(self.enter.out_features, shape[1] * shape[2]) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x, t, labels):
        places = x.unflatten(1, self.shape).flatten(2).transpose(1, 2)
        moved = super().forward(places, t[:, None], labels[:, None])
        return moved.transpose(1, 2).flatten(1)


def fit_map_flow(mu, logvar, seed: int) -> FlowMatching:
    """Flow matching over the whole map, its numbers only standardised."""
    mean = mu.mean(0)
    x = (mu - mean).flatten(1).double()
    stds = x.std(0)
    gaussian = sample.Gaussian(
        shape=tuple(mean.shape),
        mean=mean.flatten().numpy(),
        scale=np.ones(len(stds)),
        basis=np.eye(len(stds)),
        stds=stds.numpy(),
        noise=logvar.exp().mean(0).sqrt().flatten().numpy(),
    )
    with mock.patch.object(flow, "Velocity", partial(MapVelocity, gaussian.shape)):
        _, velocity = train_velocity((x / stds).float(), None, seed, MAP_STEPS)
    return FlowMatching(**vars(gaussian), velocity=velocity)


def fit_codes(mu, quantiser, seed: int) -> CodePrior:
    """The transformer over the tokens of these codes."""
    indices = quantiser.indices(mu)
    net, history = fit_tokens(indices.flatten(1), quantiser.num_codes, seed=seed)
    return CodePrior(net, quantiser, tuple(indices.shape[1:]), history)


def draw(kind: str, mu, logvar, mu_test, seed: int, model) -> tuple[torch.Tensor, dict]:
    """As many codes of one kind as there are test images, and what they cost: processor seconds,
    and with "codes" the bits of a test image's tokens under the transformer."""
    began, n = time.process_time(), len(mu_test)
    quantiser = getattr(model, "quantiser", None)
    if kind == "half way":
        z = between_neighbours(mu)[torch.arange(n) % len(mu)]
        return z, {}
    if quantiser is not None:
        alike = sample.Prior(model.latent_shape, quantiser)
        sampler = alike if kind == "prior" else fit_codes(mu, quantiser, seed)
    elif kind in sample.SAMPLERS:
        sampler = sample.fit_sampler(mu, logvar, kind, seed)
    elif kind == "map flow":
        sampler = fit_map_flow(mu, logvar, seed)
    else:  # "flow, 500 steps"
        gaussian, y = sample.principal_gaussian(mu, logvar, "flow")
        x = torch.from_numpy(y / gaussian.stds[: y.shape[1]]).float()
        _, velocity = train_velocity(x, None, seed, int(kind.split()[1]), patience=None)
        sampler = FlowMatching(**vars(gaussian), velocity=velocity)
    fitted = time.process_time()
    z = sampler.sample(n, seed=seed)
    drawn = 1000 * (time.process_time() - fitted) / n
    spent = {"seconds to fit": fitted - began, "seconds for 1000": drawn}
    if kind == "codes":
        spent["bits"] = sampler.bits(quantiser.indices(mu_test)).mean().item()
    return z, spent


def rounded(value):
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def trained(given, data, cfg):
    """The linear VAE, with as many numbers as `sharp`, or a run of the preset."""
    if given.preset == "linear":
        return vaekit.linear_vae(data.train, cfg.latent_channels)
    return vaekit.fit(cfg, data, out=given.runs).model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="as VAEKIT_DATA; default: the bundled films")
    parser.add_argument("--name", help="of the data, in the file; default: where it was found")
    parser.add_argument("--preset", default="sharp", help="or linear")
    parser.add_argument("--set", type=json.loads, default={}, help="fields of the Config, as JSON")
    parser.add_argument("--runs", help="where the run is kept")
    parser.add_argument("--counts", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--steps", type=int, nargs="*", default=STEPS)
    parser.add_argument("--kinds", nargs="*", help="of priors; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test", type=int, default=400, help="test images, at most")
    parser.add_argument("--judge", help="a network of `load_judges`; default: a CNN trained here")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    name = "sharp" if given.preset == "linear" else given.preset
    changes = {"dataset": "fashion_mnist"} if name == "fashion_mnist" else {}
    changes |= {k: tuple(v) if isinstance(v, list) else v for k, v in given.set.items()}
    cfg = vaekit.preset(name, data_path=given.data, max_images=0, **changes)
    data = vaekit.load_data(cfg)
    model = trained(given, data, cfg)
    judge = networks.train_judge(data.train, max_seconds=1e9) if given.judge is None else None
    if judge is None:
        (judge,) = networks.load_judges([given.judge])
    file = json.loads(given.out.read_text()) if given.out.exists() else {"sets": {}}
    quantised = getattr(model, "quantiser", None) is not None
    key = f"{given.name or data.source}, {given.preset}" + (", FSQ" if quantised else "")
    rows = file["sets"].setdefault(key, {"rows": []})
    point = rates.measure(model, data.test)
    rows |= {
        "command": " ".join(["python", *sys.argv]),
        "train": len(data.train),
        "test": min(len(data.test), given.test),
        "size": cfg.image_size,
        # of a test image: its code under the prior of the training, and the copy decoded from it
        "bits": rounded(point.rate / math.log(2)),
        "PSNR": rounded(-10 * math.log10(point.mse)),
        "judge": networks.network_name(judge),
        "processor": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    done = {(r["prior"], r["n"], r["seed"]) for r in rows["rows"]}
    bench = Bench(model, data, judge, given.test)
    kinds = [*KINDS, *(f"flow, {steps} steps" for steps in given.steps)]
    if quantised:
        kinds = ["prior", "codes", "half way"]
    elif len(bench.mu.shape) == 4:
        kinds.append("map flow")
    counts = sorted({min(n, len(data.train)) for n in given.counts})
    for seed in range(given.seeds):
        for n in counts:
            for kind in given.kinds or kinds:
                if (kind, n, seed) in done:
                    continue
                found = bench.row(kind, n, seed)
                print(json.dumps(found), flush=True)
                rows["rows"].append(found)
                kept = given.out.with_suffix(".part")
                kept.write_text(json.dumps(file, indent=1) + "\n")
                os.replace(kept, given.out)


if __name__ == "__main__":
    main()
