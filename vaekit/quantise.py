"""Quantised codes: at every place of the latent map stands one of K vectors.

`encode` returns the encoder's mu without noise: logvar is minus infinity. `decode` first rounds any
z to the nearest code. Rounding has no gradient; training treats it as the identity
(straight-through estimator, Bengio et al. 2013, arXiv 1308.3432). If the prior makes all K codes
equally likely, the KL of a place is log K nats for every image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaekit.config import Config

# per step, of the running averages that form the codebook
DECAY = 0.97
# a code with less than this part of an equal share of the use is placed anew
DEAD = 0.05


class Quantiser(nn.Module):
    """forward: z (B, C, H, W) -> the nearest codes, the same shape, straight-through gradient.

    `indices` turns vectors into code numbers (B, H, W) from 0 to K - 1, `lookup` turns them back.
    """

    num_codes: int

    def forward(self, z: Tensor) -> Tensor:
        # the values of one, the gradient of the other
        return self.nearest(z) + (z - z.detach())

    def nearest(self, z: Tensor) -> Tensor:
        return self.lookup(self.indices(z))

    def bound(self, z: Tensor) -> Tensor:
        """mu, from the output of the encoder's last layer."""
        return z

    def distance(self, z: Tensor) -> Tensor:
        """Rounding error: mean (z - nearest)^2 over elements, (B,). Its gradient pulls the
        encoder's output to the codes."""
        return (z - self.nearest(z).detach()).square().flatten(1).mean(1)

    def kl(self, z: Tensor) -> Tensor:
        """H W log K nats, (B,): the KL from a prior under which all codes are equally likely."""
        places = z[0, 0].numel()
        return z.new_full((len(z),), places * math.log(self.num_codes))


class FSQ(Quantiser):
    """Finite scalar quantisation: channel c of a vector is rounded to levels[c] values, evenly
    spaced from -1 to 1. No codebook has to be learned, so none can collapse.

    Source: Mentzer et al. 2024, arXiv 2309.15505, with levels symmetric around 0.
    """

    def __init__(self, levels: tuple):
        super().__init__()
        self.num_codes = math.prod(levels)
        levels = torch.tensor(levels).view(-1, 1, 1)  # (C, 1, 1)
        places = torch.cat([torch.ones_like(levels[:1]), levels[:-1]]).cumprod(0)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("places", places, persistent=False)  # 1, 8, 40, ...

    def bound(self, z: Tensor) -> Tensor:
        return z.tanh()

    def digits(self, z: Tensor) -> Tensor:
        """The nearest level of each number: int64 (B, C, H, W), from 0."""
        return ((z.clamp(-1, 1) + 1) / 2 * (self.levels - 1)).round().long()

    def nearest(self, z: Tensor) -> Tensor:
        return 2 * self.digits(z) / (self.levels - 1) - 1

    def indices(self, z: Tensor) -> Tensor:
        return (self.digits(z) * self.places).sum(1)

    def lookup(self, indices: Tensor) -> Tensor:
        digits = indices.to(self.levels.device)[:, None] // self.places % self.levels
        return 2 * digits / (self.levels - 1) - 1


class VQ(Quantiser):
    """Vector quantisation with a learned codebook (K, C) that starts as noise (van den Oord et al.
    2017, arXiv 1711.00937).

    A code is the running average of the vectors nearest to it (their appendix A.1). It is updated
    in training steps, where gradients reach the encoder. A code that is hardly used is moved to a
    vector of the batch (Dhariwal et al. 2020, arXiv 2005.00341); all codes start like that. With
    several processes, the averages of the first are used.
    """

    def __init__(self, num_codes: int, channels: int):
        super().__init__()
        self.num_codes = num_codes
        codebook = torch.randn(num_codes, channels)
        self.register_buffer("codebook", codebook)
        self.register_buffer("sums", codebook.clone())
        # vectors per step that each code gets; 0 until it is placed, at the first step
        self.register_buffer("use", torch.zeros(num_codes))

    def forward(self, z: Tensor) -> Tensor:
        if self.training and z.requires_grad and torch.is_grad_enabled():
            self.learn(z.detach().permute(0, 2, 3, 1).flatten(0, 2))
        return super().forward(z)

    def indices(self, z: Tensor) -> Tensor:
        vectors = z.permute(0, 2, 3, 1)
        nearest = torch.cdist(vectors.flatten(0, 2), self.codebook).argmin(1)
        return nearest.view(vectors.shape[:-1])

    def lookup(self, indices: Tensor) -> Tensor:
        return self.codebook[indices.to(self.codebook.device)].permute(0, 3, 1, 2)

    @torch.no_grad()
    def learn(self, vectors: Tensor) -> None:
        """A step: dead codes are placed on vectors (N, C) of the batch, then all averages move."""
        share = len(vectors) / self.num_codes  # vectors a code, were all used alike
        dead = self.use < DEAD * share
        drawn = vectors[torch.randint(len(vectors), dead.shape, device=vectors.device)]
        self.use.copy_(self.use.where(~dead, share))
        self.sums.copy_(self.sums.where(~dead[:, None], share * drawn))
        self.codebook.copy_(self.sums / self.use[:, None])
        nearest = torch.cdist(vectors, self.codebook).argmin(1)
        chosen = F.one_hot(nearest, self.num_codes).to(vectors)  # (N, K)
        self.use.lerp_(chosen.sum(0), 1 - DECAY)
        self.sums.lerp_(chosen.T @ vectors, 1 - DECAY)
        self.codebook.copy_(self.sums / self.use[:, None])


def quantiser_for(cfg: Config) -> Quantiser | None:
    """The quantiser that `latent` asks for; None for codes that are not quantised."""
    if cfg.latent == "fsq":
        return FSQ(cfg.levels)
    return VQ(cfg.codebook_size, cfg.latent_channels) if cfg.latent == "vq" else None


def code_use(indices: Tensor, num_codes: int) -> dict[str, float]:
    """How the K codes are used: "codes_used", how many of them occur in `indices`, and
    "perplexity", exp of the entropy of their frequencies: as varied as that many equally frequent
    codes."""
    counts = torch.bincount(indices.flatten().cpu(), minlength=num_codes)
    entropy = torch.special.entr(counts.double() / counts.sum()).sum()
    return {"codes_used": int((counts > 0).sum()), "perplexity": entropy.exp().item()}
