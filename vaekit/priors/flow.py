"""A learned prior by flow matching: noise moves to codes along a velocity that a network learns.

A point starts as noise e at time 0 and should be the code x at time 1. On the straight line
between them, x_t = (1 - t) e + t x, it moves with velocity x - e. A network that sees only x_t
and t and is fitted to x - e by least squares learns the mean velocity there, and following that
takes the cloud of noise to the cloud of codes. Source: Lipman et al. 2023, arXiv 2210.02747.
"""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vaekit.sample import Gaussian

LEAST = 20  # codes, below which there is nothing to hold out
STEPS = 25  # of the midpoint rule, from noise to code: twice as many calls of the network
NO_CLASS = 0.15  # share of training codes whose class is not told, for guidance
WAVES = 16  # cosines that tell the network the time


class Block(nn.Module):
    """h + gate * MLP(scale * norm(h) + shift), all three given by time and class, gate 0 at first.

    Adaptive normalisation. Source: Peebles and Xie 2023, arXiv 2212.09748.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adapt = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.adapt.weight)
        nn.init.zeros_(self.adapt.bias)

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        shift, scale, gate = self.adapt(told).chunk(3, dim=1)
        return h + gate * self.mlp((1 + scale) * self.norm(h) + shift)


class Velocity(nn.Module):
    """Mean velocity (N, dims) of the points x (N, dims) at times t (N, 1), of classes (N,) or none.

    What takes N(0, I) to itself is known: x (2t - 1) / (t^2 + (1-t)^2). The network learns the
    rest, and begins with 0. Class number `classes` stands for "any".
    """

    def __init__(self, dims: int, classes: int = 0, depth: int = 3):
        super().__init__()
        self.dims, self.classes, width = dims, classes, max(128, dims)
        self.enter = nn.Linear(dims, width)
        self.time = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))
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
    """A Gaussian whose leading coordinates a velocity field moves before they are scaled.

    Of one class where it was fitted with labels: `dataclasses.replace(flow, label=1)`; guidance
    above 1 overdoes the class (Ho and Salimans 2022, arXiv 2207.12598).
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
        return free + self.guidance * (self.velocity(x, t, torch.tensor([self.label])) - free)


@torch.inference_mode(False)  # it trains, also in a cell without gradients
def fit_flow(gaussian: Gaussian, y: np.ndarray, seed: int = 0, labels=None) -> Gaussian:
    """`gaussian` with a velocity field fitted to y (N, d), the leading coordinates of the means.

    labels: int (N,), for samples of one class. `gaussian` itself where the field gains nothing on
    a held-out fifth, or below 20 images.
    """
    if len(y) < LEAST:
        return gaussian
    x = torch.from_numpy(y / gaussian.stds[: y.shape[1]].clip(min=1e-9)).float()
    gains, velocity = train_velocity(x, labels, seed)
    if labels is None and max(gains) <= 0:
        return gaussian
    return FlowMatching(**vars(gaussian), velocity=velocity)


def train_velocity(
    x: Tensor, labels=None, seed: int = 0, steps: int = 3000, patience: int | None = 10
) -> tuple[list[float], Velocity]:
    """What each 50 steps gained on a held-out fifth of x (N, d), and the best averaged Velocity.

    Gain: the share of the Gaussian's squared error that is gone, on the same noise and times each
    time. It stops after `patience` looks without a better one; None: the last one is taken.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        labels = torch.zeros(len(x), dtype=torch.int64) if labels is None else labels.cpu()
        classes = 0 if labels.max() == 0 else int(labels.max()) + 1
        held, rest = torch.randperm(len(x)).tensor_split([len(x) // 5])
        watched = held.repeat(1 + 2000 // len(held))
        watched = [x[watched], labels[watched], *noise_for(x[watched])]
        net = Velocity(x.shape[1], classes)
        average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.99))
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.1)
        start, gains, best = held_error(net, watched), [0.0], copy.deepcopy(net)
        for step in range(1, steps + 1):
            rows = rest[torch.randint(len(rest), (128,))]
            told = labels[rows].where(torch.rand(len(rows)) >= NO_CLASS, classes)
            optimizer.zero_grad()
            errors(net, x[rows], told, *noise_for(x[rows])).mean().backward()
            optimizer.step()
            average.update_parameters(net)
            if step % 50 == 0 or step == steps:
                gains.append(1 - held_error(average.module, watched) / start)
                if patience is None or gains[-1] == max(gains):
                    best = copy.deepcopy(average.module)
                elif len(gains) - 1 - int(np.argmax(gains)) >= patience:
                    break
    return gains, best.requires_grad_(False)


def noise_for(x: Tensor) -> tuple[Tensor, Tensor]:
    """e like x, and times t (N, 1)."""
    return torch.randn_like(x), torch.rand(len(x), 1)


def errors(velocity: Velocity, x: Tensor, labels: Tensor, e: Tensor, t: Tensor) -> Tensor:
    """Squared error (N,) of the velocity half way between noise e and codes x, a mean over d."""
    return (velocity((1 - t) * e + t * x, t, labels) - (x - e)).square().mean(1)


@torch.no_grad()
def held_error(velocity: Velocity, watched: list) -> float:
    return errors(velocity, *watched).mean().item()
