"""Small networks in the manner of the well-known ones, for tracing: tokens and attention, and a
network made of everything that defeats pruning libraries."""

from __future__ import annotations

import torch
import zoo
from torch import nn
from torch.nn import functional as F


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of (B, C, H, W)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, norm and two linears with channels last, layer scale."""

    def __init__(self, channels):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(1e-6 * torch.ones(channels))
        self.drop = zoo.StochasticDepth()

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.fc2(F.gelu(self.fc1(y)))
        return x + self.drop(y.permute(0, 3, 1, 2))


class ConvNeXt(nn.Module):
    def __init__(self, widths=(8, 12)):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), LayerNorm2d(widths[0]))
        self.first = nn.Sequential(*(ConvNeXtBlock(widths[0]) for _ in range(2)))
        self.down = nn.Sequential(LayerNorm2d(widths[0]), nn.Conv2d(*widths, 2, 2))
        self.second = ConvNeXtBlock(widths[1])
        self.norm, self.head = nn.LayerNorm(widths[1]), nn.Linear(widths[1], 5)

    def forward(self, x):
        x = self.second(self.down(self.first(self.stem(x))))
        return self.head(self.norm(x.mean([-2, -1])))


class WindowAttention(nn.Module):
    """Attention within windows, every second time shifted, with a bias by relative position."""

    def __init__(self, dim, heads, window, shift):
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.02)
        places = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
        steps = (places[:, :, None] - places[:, None]) + window - 1
        self.register_buffer("index", (steps[0] * (2 * window - 1) + steps[1]).flatten())

    def forward(self, x):
        batch, height, width, dim = x.shape
        w, count = self.window, self.window**2
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(batch, height // w, w, width // w, w, dim).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, count, dim)
        qkv = self.qkv(x).reshape(len(x), count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        bias = self.table[self.index].view(count, count, -1).permute(2, 0, 1).contiguous()
        scores = scores + bias.unsqueeze(0)
        if self.shift:
            scores = self.masked(scores, height, width)
        x = self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x.view(batch, height // w, width // w, w, w, -1).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, height, width, -1)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x

    def masked(self, scores, height, width):
        """Places that the shift brought together from two ends do not see each other."""
        w = self.window
        mask = scores.new_zeros((height, width))
        for number, rows in enumerate(
            (slice(0, -w), slice(-w, -self.shift), slice(-self.shift, None))
        ):
            mask[rows] += 3 * number
            mask[:, rows] += number
        mask = mask.view(height // w, w, width // w, w).permute(0, 2, 1, 3).reshape(-1, w * w)
        mask = mask.unsqueeze(1) - mask.unsqueeze(2)
        mask = mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)
        windows, count = len(mask), w * w
        scores = scores.view(-1, windows, self.heads, count, count) + mask[None, :, None]
        return scores.view(-1, self.heads, count, count)


class SwinBlock(nn.Module):
    def __init__(self, dim, heads, shift):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), WindowAttention(dim, heads, 4, shift)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Four neighbours side by side, then half as many channels."""

    def __init__(self, dim):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x):
        parts = [x[..., i::2, j::2, :] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Swin(nn.Module):
    def __init__(self, dim=8, heads=2):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 2, 2)
        self.first = nn.Sequential(SwinBlock(dim, heads, 0), SwinBlock(dim, heads, 2))
        self.merge = PatchMerging(dim)
        self.second = SwinBlock(2 * dim, heads, 0)
        self.norm, self.head = nn.LayerNorm(2 * dim), nn.Linear(2 * dim, 5)

    def forward(self, x):
        x = self.first(self.patches(x).permute(0, 2, 3, 1))
        return self.head(self.norm(self.second(self.merge(x))).mean((1, 2)))


class TimmAttention(nn.Module):
    """Attention with its sizes as attributes, as in timm."""

    def __init__(self, dim, heads, fused):
        super().__init__()
        self.num_heads, self.head_dim, self.fused = heads, dim // heads, fused
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class TimmBlock(nn.Module):
    def __init__(self, dim, heads, fused):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), TimmAttention(dim, heads, fused)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TimmViT(nn.Module):
    def __init__(self, dim=12, heads=2):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, dim) * 0.02)
        self.blocks = nn.Sequential(TimmBlock(dim, heads, True), TimmBlock(dim, heads, False))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class Encoder(nn.Module):
    """torch's own encoder layers over patches."""

    def __init__(self, dim=12, heads=3):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 8, 8)
        layer = nn.TransformerEncoderLayer(dim, heads, 20, batch_first=True, norm_first=True)
        self.layers, self.head = (
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            nn.Linear(dim, 5),
        )

    def forward(self, x):
        return self.head(self.layers(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class TiedLanguageModel(nn.Module):
    """Logits by the embedding table itself."""

    def __init__(self, words=11, dim=12):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(words, dim), nn.Embedding(6, dim)
        self.norm, self.fc1, self.fc2 = nn.RMSNorm(dim), nn.Linear(dim, 20), nn.Linear(20, dim)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.positions(
            torch.arange(tokens.shape[1], device=tokens.device)
        )
        x = x + self.fc2(F.gelu(self.fc1(self.norm(x))))
        return F.linear(x, self.embedding.weight)


class Trap(nn.Module):
    """Fused q, k, v taken apart by index, a channel shuffle, channels flipped, pixel shuffle, and
    scores between two sets of tokens that a linear reads."""

    def __init__(self):
        super().__init__()
        self.stem = zoo.conv(3, 8, 3, 2)
        self.left, self.right = zoo.conv(8, 8, 3, groups=2), zoo.conv(8, 12, 3)
        self.flipped, self.mixed = zoo.conv(12, 12), zoo.conv(12, 16, 3)
        self.spread = zoo.conv(4, 12, 4, 4)
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.keys, self.scores, self.head = nn.Linear(12, 6), nn.Linear(16, 8), nn.Linear(20, 5)

    def forward(self, x):
        x = zoo.channel_shuffle(self.left(self.stem(x)), 2)
        x = self.flipped(torch.flip(self.right(x), (1,)))
        x = self.spread(F.pixel_shuffle(self.mixed(x), 2))
        x = x.flatten(2).transpose(1, 2)[:, :64:4]  # 16 tokens
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, 3, 4).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] @ qkv[1].transpose(-2, -1) * 0.5).softmax(-1)
        x = x + self.proj((weights @ qkv[2]).transpose(1, 2).flatten(2))
        between = self.keys(x) @ self.keys(x.flip(1)).transpose(1, 2)
        return self.head(torch.cat([x.mean(1), F.relu(self.scores(between)).mean(1)], 1))


TOKENS = {
    "ConvNeXt": ConvNeXt,
    "Swin": Swin,
    "timm ViT": TimmViT,
    "MultiheadAttention": Encoder,
    "tied embedding": TiedLanguageModel,
    "the trap": Trap,
}
WORDS = torch.zeros(2, 6, dtype=torch.int64)
CASES = {
    name: (make, WORDS if name == "tied embedding" else zoo.IMAGES)
    for name, make in {**zoo.CONVOLUTIONAL, **TOKENS}.items()
}
