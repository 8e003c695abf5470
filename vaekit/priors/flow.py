"""A learned prior by flow matching: noise moves to codes with a velocity that a network learns.

A point starts as noise e at time 0 and should reach the code x at time 1. On the straight line
between them, x_t = (1 - t) e + t x, its velocity is x - e. A network that sees only x_t and t, and
is fitted to x - e by least squares, learns the mean velocity there. Following it moves the
distribution of the noise to that of the codes. Source: Lipman et al. 2023, arXiv 2210.02747.
"""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vaekit.sample import Gaussian
from vaekit.train import update_ema

SIZES = (8, 32)  # numbers of coordinates to try
LEAST = 20  # codes needed, so that some can be held out
STEPS = 25  # of the midpoint rule, from noise to code: twice as many calls of the network
MOST_STEPS = 800  # of training; fewer where there are few codes
BATCH = 128
LOOK = 50  # training steps between two evaluations on held-out codes
NO_CLASS = 0.15  # share of training codes without their class, for guidance
WAVES = 16  # cosines that tell the network the time


def two_layers(inputs: int, width: int) -> nn.Sequential:
    last = nn.Linear(width, width)
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), last)


class Block(nn.Module):
    """h + gate * MLP(scale * norm(h) + shift), with all three from time and class.

    Adaptive normalisation. Source: Peebles and Xie 2023, arXiv 2212.09748.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = two_layers(width, width)
        self.adapt = nn.Linear(width, 3 * width)

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        shift, scale, gate = self.adapt(told).chunk(3, dim=-1)
        return h + gate * self.mlp((1 + scale) * self.norm(h) + shift)


class Velocity(nn.Module):
    """Mean velocity (N, dims) of the points x (N, dims) at times t (N, 1), of classes (N,) or none.

    The velocity that takes N(0, I) to itself is known: x (2t - 1) / (t^2 + (1-t)^2). The network
    learns the rest, and starts at 0. Class number `classes` stands for "any".
    """

    def __init__(self, dims: int, classes: int = 0, depth: int = 3):
        super().__init__()
        self.dims, self.classes, width = dims, classes, max(128, dims)
        self.enter = nn.Linear(dims, width)
        self.time = two_layers(WAVES, width)
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dims))
        nn.init.zeros_(self.leave[1].weight)
        nn.init.zeros_(self.leave[1].bias)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        waves = torch.cos(math.pi * t * torch.arange(WAVES))
        told = nn.functional.silu(self.time(waves) + self.label(labels))
        spread = t.square() + (1 - t).square()
        h = self.enter(x / spread.sqrt())
        for block in self.blocks:
            h = block(h, told)
        return (2 * t - 1) / spread * x + self.leave(h)


@dataclass
class FlowMatching(Gaussian):
    """A Gaussian whose leading coordinates are moved by a velocity field before they are scaled.

    For one class, if fitted with labels: `dataclasses.replace(flow, label=1)`; guidance above 1
    exaggerates the class (Ho and Salimans 2022, arXiv 2207.12598).
    """

    velocity: Velocity
    label: int | None = None
    guidance: float = 1.0

    def coordinates(self, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        d = self.velocity.dims
        moved = self.move(torch.from_numpy(y[:, :d]).float()).numpy()
        return super().coordinates(np.hstack([moved, y[:, d:]]), rng)

    @torch.no_grad()
    def move(self, x: Tensor, steps: int = STEPS) -> Tensor:
        """Noise x (N, dims) to coordinates of codes, by the midpoint rule."""
        for i in range(steps):
            half_way = x + self.at(x, i / steps) / (2 * steps)
            x = x + self.at(half_way, (i + 0.5) / steps) / steps
        return x

    def at(self, x: Tensor, t: float) -> Tensor:
        """The velocity at x, guided: v(any) + guidance * (v(class) - v(any))."""
        t = torch.full((1, 1), t)
        free = self.velocity(x, t, torch.tensor([self.velocity.classes]))
        if self.label is None:
            return free
        told = self.velocity(x, t, torch.tensor([self.label]))
        return free + self.guidance * (told - free)


@torch.inference_mode(False)  # it trains, also in a cell without gradients
def fit_flow(gaussian: Gaussian, y: np.ndarray, seed: int = 0, labels=None) -> FlowMatching | None:
    """`gaussian` with a velocity field fitted to y (N, d), the leading coordinates of the means.

    The number of moved coordinates is chosen on a held-out fifth: with few images, a flow of many
    only memorises. labels: int (N,), for samples of one class. None below 20 images, and where
    nothing is gained and there are no labels.
    """
    n, d = y.shape
    if n < LEAST:
        return None
    x = torch.from_numpy(y / gaussian.stds[:d].clip(min=1e-9)).float()
    steps = min(MOST_STEPS, 200 + n)
    best_gain = 0.0
    best = None
    for size in sorted({min(size, d) for size in SIZES}):
        gains, velocity = train_velocity(x[:, :size], labels, seed, steps)
        gain = size * max(gains)  # in squared error, summed
        if gain > best_gain or (best is None and labels is not None):
            best_gain = gain
            best = velocity
    if best is None:
        return None
    return FlowMatching(**vars(gaussian), velocity=best)


def train_velocity(
    x: Tensor, labels=None, seed: int = 0, steps: int = 3000, patience: int | None = 8
) -> tuple[list[float], Velocity]:
    """The gain on a held-out fifth of x (N, d) at every evaluation, and the best Velocity.

    Gain: the share of the Gaussian's squared error that is removed, on the same noise and times
    each time, by weights averaged over the last steps. Training ends after `patience` evaluations
    without a better one; None: it takes all `steps`, and returns the last Velocity.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if labels is None:
            labels = torch.zeros(len(x), dtype=torch.int64)
        # one class is the same as none
        classes = int(labels.max()) + 1 if labels.any() else 0
        held, rest = torch.randperm(len(x)).tensor_split([len(x) // 5])
        held = held.repeat(1 + 1000 // len(held))
        noise = torch.randn(len(held), x.shape[1])
        watched = x[held], labels[held], noise, torch.rand(len(held), 1)
        net = Velocity(x.shape[1], classes)
        average = copy.deepcopy(net).requires_grad_(False)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.1, fused=True)
        found = []
        for step in range(steps + 1):
            if step % LOOK == 0 or step == steps:
                with torch.no_grad():
                    found.append(errors(average, *watched).mean().item())
                best_look = int(np.argmin(found))
                if patience is None or best_look == len(found) - 1:
                    best = copy.deepcopy(average)
                elif len(found) > best_look + patience:
                    break
            rows = rest[torch.randint(len(rest), (BATCH,))]
            told = labels[rows].where(torch.rand(BATCH) >= NO_CLASS, classes)
            e, t = torch.randn(BATCH, x.shape[1]), torch.rand(BATCH, 1)
            optimizer.zero_grad()
            errors(net, x[rows], told, e, t).mean().backward()
            optimizer.step()
            update_ema(average, net, 0.99)
    return [1 - value / found[0] for value in found], best.requires_grad_(False)


def errors(velocity: Velocity, x, labels, e, t) -> Tensor:
    """Squared error (N,), a mean over d, at times t (N, 1) of the lines from noise e to codes x."""
    x_t = (1 - t) * e + t * x
    return (velocity(x_t, t, labels) - (x - e)).square().mean(1)
