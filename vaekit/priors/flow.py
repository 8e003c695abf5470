"""A learned prior: a small normalising flow over the leading coordinates of the latents."""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vaekit.sample import Gaussian

FLOW_DIMS = (8, 16, 32)  # how many coordinates it may bend, or all that it is given


class Flow(nn.Module):
    """RealNVP: x (N, dims) <-> N(0, I). Layer by layer one half of the numbers, drawn at random,
    scales and shifts the other: y_b = x_b exp(tanh s(x_a)) + t(x_a). It starts as the identity.
    Source: Dinh et al. 2017, arXiv 1605.08803, eq. 7.
    """

    def __init__(self, dims: int, layers: int = 8, width: int = 64):
        super().__init__()
        self.dims = dims
        self.halves = [torch.randperm(dims).tensor_split(2) for _ in range(layers)]
        self.nets = nn.ModuleList()
        for a, b in self.halves:
            last = nn.Linear(width, 2 * len(b))
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            first, middle = nn.Linear(len(a), width), nn.Linear(width, width)
            self.nets.append(nn.Sequential(first, nn.SiLU(), middle, nn.SiLU(), last))

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x), (N,) in nats: log N(y; 0, I) + log |det dy/dx|."""
        log_det = 0.0
        for net, (a, b) in zip(self.nets, self.halves, strict=True):
            s, t = net(x[:, a]).chunk(2, dim=1)
            x = x.index_copy(1, b, x[:, b] * s.tanh().exp() + t)
            log_det = log_det + s.tanh().sum(1)
        return log_det - 0.5 * (x.square() + math.log(2 * math.pi)).sum(1)

    @torch.no_grad()
    def bend(self, y: np.ndarray) -> np.ndarray:
        """Standard normal y (N, dims) to x: the inverse."""
        x = torch.from_numpy(y)
        for net, (a, b) in zip(reversed(self.nets), reversed(self.halves), strict=True):
            s, t = net(x[:, a]).chunk(2, dim=1)
            x = x.index_copy(1, b, (x[:, b] - t) * (-s.tanh()).exp())
        return x.numpy()


@dataclass
class BentGaussian(Gaussian):
    """A Gaussian whose leading coordinates are bent by a flow before they are scaled."""

    flow: Flow

    def coordinates(self, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        d = self.flow.dims
        bent = np.hstack([self.flow.bend(y[:, :d]), y[:, d:]])
        return super().coordinates(bent, rng)


@torch.inference_mode(False)  # it trains, also in a cell without gradients
def fit_flow(gaussian: Gaussian, y: np.ndarray, seed: int = 0) -> Gaussian:
    """`gaussian` with a flow fitted to y (N, d), the leading coordinates of the means.

    How many it bends is chosen on a held-out fifth, by what each flow gains over N(0, I): with
    few images a flow of many only learns by heart. `gaussian` itself where nothing is gained, or
    below 20 images or 2 dimensions.
    """
    n, d = y.shape
    sizes = sorted(size for size in {*FLOW_DIMS, d} if 2 <= size <= d)
    x = torch.from_numpy(y / gaussian.stds[:d].clip(min=1e-9)).float()
    best_gain, best = 0.0, None
    with torch.random.fork_rng(devices=[]):
        for size in sizes if n >= 20 else []:
            torch.manual_seed(seed)
            gain, flow = train_flow(x[:, :size])
            if gain > best_gain:
                best_gain, best = gain, flow
    if best is None:
        return gaussian
    return BentGaussian(**vars(gaussian), flow=best.double().requires_grad_(False))


def train_flow(x: Tensor, epochs: int = 200, patience: int = 15) -> tuple[float, Flow]:
    """(nats an image gained over N(0, I) on a held-out fifth, the Flow of the best epoch)."""
    order = torch.randperm(len(x))  # the same for every size
    held, x = x[order].tensor_split([len(x) // 5])
    flow = Flow(x.shape[1])
    optimizer = torch.optim.AdamW(flow.parameters(), 1e-3, weight_decay=3.0)
    values, state = [], {}
    for _ in range(epochs):
        with torch.no_grad():
            values.append(flow.log_density(held).mean().item())
        best = int(np.argmax(values))
        if best == len(values) - 1:
            state = copy.deepcopy(flow.state_dict())
        if len(values) > best + patience:
            break
        for batch in x[torch.randperm(len(x))].split(128):
            optimizer.zero_grad()
            (-flow.log_density(batch).mean()).backward()
            nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
            optimizer.step()
    flow.load_state_dict(state)
    return max(values) - values[0], flow
