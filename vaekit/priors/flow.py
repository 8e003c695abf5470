"""A learned prior: a small normalising flow over the leading coordinates of the latents."""

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn

FLOW_DIMS = (8, 16, 32)  # how many coordinates it may bend, or all that it is given


class Flow(nn.Module):
    """RealNVP: x (N, dims) <-> N(0, I). Layer by layer one half of the numbers, drawn at random,
    scales and shifts the other: y_b = x_b exp(tanh s(x_a)) + t(x_a). It starts as the identity.
    Source: Dinh et al. 2017, arXiv 1605.08803, eq. 7.
    """

    def __init__(self, dims: int, layers: int = 8, width: int = 64):
        super().__init__()
        self.dims, self.nets = dims, nn.ModuleList()
        self.halves = [torch.randperm(dims).tensor_split(2) for _ in range(layers)]
        for a, b in self.halves:
            last = nn.Linear(width, 2 * len(b))
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.nets.append(nn.Sequential(nn.Linear(len(a), width), nn.SiLU(),
                                           nn.Linear(width, width), nn.SiLU(), last))  # fmt: skip

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


def fit_flow(x: np.ndarray, seed: int = 0) -> Flow | None:
    """A Flow of the leading columns of x (N, d), mean 0 and deviation 1; double precision.

    How many columns is chosen on a held-out fifth, by what each flow gains over N(0, I): with few
    films a flow of many only learns by heart. None, that is a Gaussian, where nothing is gained,
    or below 20 films or 2 dimensions.
    """
    if len(x) < 20:
        return None
    sizes = {d for d in (*FLOW_DIMS, x.shape[1]) if 2 <= d <= x.shape[1]}
    with torch.random.fork_rng(devices=[]):
        found = []
        for d in sorted(sizes):
            torch.manual_seed(seed)
            found.append(train_flow(torch.from_numpy(x[:, :d]).float()))
    gain, flow = max(found, key=lambda pair: pair[0], default=(0.0, None))
    return flow.double().requires_grad_(False) if gain > 0 else None


def train_flow(x: Tensor, epochs: int = 200, patience: int = 15) -> tuple[float, Flow]:
    """(nats a film gained over N(0, I) on a held-out fifth, the Flow of the best epoch)."""
    held, x = x[torch.randperm(len(x))].tensor_split([len(x) // 5])  # the same for every size
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
