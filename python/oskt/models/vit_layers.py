"""Layers of a vision transformer: every width is read from their tensors."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6  # of every layer norm, as in timm and PASS


class Patches(nn.Module):
    """Square patches as tokens, (B, 3, H, W) -> (B, H W / patch^2, channels)."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention over tokens (B, T, dim). How wide queries, keys and values are is read from
    the layers: `proj` takes the values, and the rest of qkv's rows are queries and keys alike."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        value = self.proj.weight.shape[1]
        key = (self.qkv.weight.shape[0] - value) // 2
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).split([key, key, value], -1)
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers on every token, (B, T, dim) -> (B, T, dim), GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP on tokens (B, T, dim), each behind a layer norm and added to the stream. In
    training a branch is left out of an image with probability `drop`, and counts 1 / (1 - drop)
    otherwise."""

    def __init__(self, dim: int, heads: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = MLP(dim, hidden)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._thinned(self.attn(self.norm1(x)))
        return x + self._thinned(self.mlp(self.norm2(x)))

    def _thinned(self, branch: Tensor) -> Tensor:
        if not self.training or not self.drop:
            return branch
        return branch * F.dropout(branch.new_ones(branch.shape[0], 1, 1), self.drop)
