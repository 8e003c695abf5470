"""The adversarial term: a network learns to tell reconstructions from images, and the decoder
learns to deceive it.

An error per pixel or per feature is smallest at the average of all possible images, and an average
is blurry. A critic asks whether an image looks real. Its network is the patch discriminator of
Isola et al. 2017 (arXiv 1611.07004), with the hinge loss of Lim and Ye 2017 (arXiv 1705.02894). It
makes the decoder invent detail that the image did not have.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 32
LR = 1e-3
# a short memory, because the reconstructions change while it learns
BETAS = (0.5, 0.9)


class Critic(nn.Module):
    """x (B, C, S, S) in [0, 1] -> scores (B, 1, S/4, S/4), one per patch; images above 0."""

    def __init__(self, channels: int, fused: bool = True):
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * channels, WIDTH, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(WIDTH, 2 * WIDTH, 4, stride=2, padding=1),
            nn.GroupNorm(8, 2 * WIDTH),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, padding=1),
            nn.GroupNorm(8, 2 * WIDTH),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * WIDTH, 1, 3, padding=1),
        )
        self.optimizer = torch.optim.Adam(self.parameters(), lr=LR, betas=BETAS, fused=fused)

    def forward(self, x: Tensor) -> Tensor:
        odd = x.shape[-1] % 2
        return self.layers(F.pad(4 * x - 2, (0, odd, 0, odd))).float()

    def loss(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Hinge loss, a scalar: 0 where images score above 1 and reconstructions below -1; 2 where
        all scores are 0."""
        real, fake = self(torch.cat([x, x_hat.detach()])).chunk(2)
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def gradient(self, x_hat: Tensor) -> Tensor:
        """The direction that makes x_hat (B, C, S, S) look less real, in the shape of x_hat."""
        x_hat = x_hat.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(-self(x_hat).mean(), x_hat)
        return gradient

    def step(self, accelerator) -> None:
        """One optimiser step, with the mean gradient of all processes."""
        for weight in self.parameters():
            if weight.grad is not None:
                weight.grad = accelerator.reduce(weight.grad, "mean")
        self.optimizer.step()

    def training_state(self) -> dict:
        """Weights and the optimiser's moments, for checkpoints."""
        return {"model": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_training_state(self, state: dict) -> None:
        self.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def add_share(gradient: Tensor, pull: Tensor, share: float) -> Tensor:
    """`gradient` plus a step along `pull`, `share` times as long as `gradient`.

    A fixed weight would not do: an untrained critic's gradient is as long as a trained one's, and
    its length changes by orders of magnitude while both learn.
    """
    return gradient + share * gradient.norm() / pull.norm().clamp(min=1e-12) * pull
