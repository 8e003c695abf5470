"""A learned prior over quantised codes: a small transformer that predicts them one by one.

p(codes) = p(first) p(second | first) p(third | first, second) ..., in rows from the top left. It is
a language model (architecture: Radford et al. 2019, GPT-2; Karpathy's nanoGPT) whose words are
codes and whose sentences are images. -log2 p is the image's rate in bits: the size of a file of its
codes, compressed with this prior.
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaekit.model import evaluating
from vaekit.quantise import Quantiser
from vaekit.sample import encode_all

HELD = 5  # one image in HELD is held out, and decides when to stop
UNLABELLED = 0.1  # share of labels left out, so that it also works without


class TransformerBlock(nn.Module):
    """Attention to the tokens before, then a small network at each place; both are added."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(up, nn.GELU(), down)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(h)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, width / heads)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.dropout(self.project(seen.transpose(1, 2).flatten(2)))
        return h + self.dropout(self.mlp(self.norm2(h)))


class CodeTransformer(nn.Module):
    """tokens int64 (B, t), t <= length, in 0...num_codes-1 -> logits (B, t + 1, num_codes).

    Row i is for token i and depends only on the tokens before it; the first depends only on
    `label`, int64 (B,): 0 for "any image", k + 1 for class k.
    """

    def __init__(
        self,
        num_codes: int,
        length: int,
        num_classes: int = 0,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.length = length
        self.start = nn.Embedding(num_classes + 1, width)
        self.embed = nn.Embedding(num_codes, width)
        self.position = nn.Parameter(torch.zeros(length, width))
        blocks = [TransformerBlock(width, heads, dropout) for _ in range(depth)]
        self.blocks = nn.Sequential(nn.Dropout(dropout), *blocks, nn.LayerNorm(width))
        self.head = nn.Linear(width, num_codes)
        for layer in (self.start, self.embed, self.head):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, label: Tensor | None = None) -> Tensor:
        if label is None:
            label = tokens.new_zeros(len(tokens))
        h = torch.cat([self.start(label)[:, None], self.embed(tokens)], 1)
        h = h[:, : self.length]
        return self.head(self.blocks(h + self.position[: h.shape[1]]))

    def nats(self, tokens: Tensor, label: Tensor | None = None) -> Tensor:
        """-log p of each token, given those before it: (B, length)."""
        logits = self(tokens, label)
        return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")


@dataclass
class CodePrior:
    """A fitted prior; `history` has training and held-out bits per image, epoch by epoch."""

    net: CodeTransformer
    quantiser: Quantiser
    shape: tuple  # (H, W)
    history: list[dict]

    @torch.no_grad()
    def bits(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Bits of each image's codes, (N,), CPU: indices (N, H, W), labels (N,) classes."""
        label = torch.zeros(len(indices), dtype=torch.long) if labels is None else labels + 1
        with evaluating(self.net) as device:
            nats = nats_of(self.net, indices.flatten(1).to(device), label.to(device))
        return nats.cpu() / math.log(2)

    @torch.no_grad()
    def sample_indices(
        self,
        n: int,
        temperature: float = 1.0,
        seed: int = 0,
        top_k: int = 0,
        label: int | None = None,
    ) -> Tensor:
        """int64 (n, H, W), CPU, the same for the same seed on one kind of machine.

        temperature divides the logits: below 1 likely codes become likelier, 0 always takes the
        likeliest. top_k: choose among that many of the likeliest, 0 for all. label: a class.
        """
        if temperature < 0 or top_k < 0:
            raise ValueError(f"temperature={temperature}, top_k={top_k}: neither is below 0")
        generator = torch.Generator().manual_seed(seed)
        with evaluating(self.net) as device:
            start = torch.full((n,), 0 if label is None else label + 1, device=device)
            tokens = torch.zeros(n, 0, dtype=torch.long, device=device)
            for _ in range(self.net.length):
                logits = self.net(tokens, start)[:, -1].cpu()
                drawn = draw(logits, temperature, top_k, generator)
                tokens = torch.cat([tokens, drawn.to(device)], 1)
        return tokens.cpu().view(n, *self.shape)

    def sample(self, n: int, temperature: float = 1.0, seed: int = 0, **choice) -> Tensor:
        """z (n, C, H, W) float32, CPU, for `decode_all`; see `sample_indices`."""
        indices = self.sample_indices(n, temperature, seed, **choice)
        return self.quantiser.lookup(indices).cpu()


def draw(logits: Tensor, temperature: float, top_k: int, generator) -> Tensor:
    """One token per row, (B, 1), from logits (B, K)."""
    if temperature == 0:
        return logits.argmax(1, keepdim=True)
    if top_k:
        least = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    return torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)


def fit_codes(model, images, labels: Tensor | None = None, seed: int = 0, **sizes) -> CodePrior:
    """A prior over the codes of `images` (Split or tensor) under a quantised model.

    labels: int64 (N,), to sample a class later; a tenth of the time they are left out. sizes: as in
    `fit_tokens`. ValueError for a model without quantised codes.
    """
    model.check_quantised()
    mu, _ = encode_all(model, images)
    device = next(model.parameters()).device
    indices = model.quantiser.indices(mu.to(device))
    net, history = fit_tokens(
        indices.flatten(1), model.quantiser.num_codes, labels, seed, device=device, **sizes
    )
    return CodePrior(net, model.quantiser, tuple(indices.shape[1:]), history)


@torch.inference_mode(False)  # it trains, also in a cell without gradients
def fit_tokens(
    tokens: Tensor,
    num_codes: int,
    labels: Tensor | None = None,
    seed: int = 0,
    epochs: int = 50,
    patience: int = 5,
    lr: float = 1e-3,
    device="cpu",
    **shape,
) -> tuple[CodeTransformer, list[dict]]:
    """A CodeTransformer of this `shape` (width, depth, heads, dropout), and its history.

    tokens: int64 (N, T). A fifth of the rows is held out. The epoch that codes them in the fewest
    bits is kept, and the fit ends after `patience` epochs without a better one. ValueError for
    fewer than HELD rows.
    """
    n, length = tokens.shape
    if n < HELD:
        raise ValueError(f"a prior over codes cannot be fitted to {n} images")
    classes = 0 if labels is None else int(labels.max()) + 1
    label = torch.zeros(n, dtype=torch.long) if labels is None else labels.cpu() + 1
    gpus = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(gpus):
        torch.manual_seed(seed)
        net = CodeTransformer(num_codes, length, classes, **shape).to(device)
        order = torch.randperm(n)
        rows = tokens.cpu()[order].clone().to(device)
        label = label[order].to(device)
        few = n // HELD
        optimizer = torch.optim.AdamW(net.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.1)
        history, best = [], 0
        for epoch in range(epochs):
            train = train_once(net, optimizer, rows[few:], label[few:])
            net.eval()
            with torch.no_grad():
                held = nats_of(net, rows[:few], label[:few]).mean().item()
            history.append({"train_bits": train / math.log(2), "held_bits": held / math.log(2)})
            if history[epoch]["held_bits"] <= history[best]["held_bits"]:
                best, state = epoch, copy.deepcopy(net.state_dict())
            if epoch >= best + patience:
                break
    net.load_state_dict(state)
    return net.eval().requires_grad_(False), history


def nats_of(net: CodeTransformer, rows: Tensor, label: Tensor) -> Tensor:
    """-log p of each row (N, T), (N,), in chunks."""
    parts = zip(rows.split(256), label.split(256), strict=True)
    return torch.cat([net.nats(*part).sum(1) for part in parts])


def train_once(net: CodeTransformer, optimizer, rows: Tensor, label: Tensor) -> float:
    """One epoch in batches of 32; returns mean nats per image."""
    net.train()
    total = 0.0
    for batch in torch.randperm(len(rows)).split(32):
        given = label[batch].where(torch.rand(len(batch), device=label.device) > UNLABELLED, 0)
        loss = net.nats(rows[batch], given).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        total += loss.item() * len(batch)
    return total / len(rows)
