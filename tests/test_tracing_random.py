"""Random networks: the rules of tracing alone, without the numerical check, are never wrong."""

from __future__ import annotations

import random

import nets
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from oskt import WeightChain
from oskt.chain.verification import TOLERANCE

CHANNELS = (4, 6, 8, 12)
SEEDS = 40


class RandomNet(nn.Module):
    """A random sequence of layers and functions on a pool of tensors (B, C, 8, 8)."""

    def __init__(self, seed: int, length: int = 10) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.layers = nn.ModuleDict()
        self.steps: list[tuple[str, int, int, tuple[int, ...]]] = []
        self.channels = [3]
        kinds = [
            "conv", "conv", "norm", "relu", "add", "add", "cat", "split", "depthwise", "grouped",
            "shuffle", "gate", "layer_norm", "group_norm", "pixel", "flip", "scores", "pool",
        ]  # fmt: skip
        self.step(draw, "conv")
        for _ in range(length):
            self.step(draw, draw.choice(kinds))
        self.out = nn.Conv2d(self.channels[-1], 5, 1)

    def step(self, draw: random.Random, kind: str) -> None:
        number = len(self.steps)
        source = draw.randrange(max(0, number - 2), number + 1)
        channels = self.channels[source]
        other, more, width = source, (), channels
        if source == 0 or channels == 1:
            kind = "conv"
        if kind == "conv":
            width = draw.choice(CHANNELS)
            self.layers[str(number)] = nn.Conv2d(channels, width, 3, padding=1)
        elif kind == "norm":
            self.layers[str(number)] = nn.BatchNorm2d(channels)
        elif kind == "depthwise":
            width = channels * draw.choice((1, 2))
            self.layers[str(number)] = nn.Conv2d(channels, width, 3, padding=1, groups=channels)
        elif kind in ("grouped", "group_norm"):
            groups = draw.choice([g for g in (1, 2, 3, 4) if channels % g == 0])
            if kind == "grouped":
                width = groups * draw.choice((2, 3))
                self.layers[str(number)] = nn.Conv2d(channels, width, 1, groups=groups)
            else:
                self.layers[str(number)] = nn.GroupNorm(groups, channels)
        elif kind == "gate":
            self.layers[str(number)] = nn.Linear(channels, channels)
        elif kind == "layer_norm":
            self.layers[str(number)] = nn.LayerNorm(channels)
        elif kind == "scores":
            self.layers[str(number)] = nn.Conv2d(channels, 2 * channels, 1)
        elif kind in ("add", "cat"):
            fits = [
                i for i, c in enumerate(self.channels) if i and (kind == "cat" or c == channels)
            ]
            other = draw.choice(fits)
            width = channels if kind == "add" else channels + self.channels[other]
        elif kind == "split":
            first = draw.randrange(1, channels)
            width = channels - first + 4
            self.layers[str(number)] = nn.Conv2d(first, 4, 1)
        elif kind == "shuffle":
            more = (draw.choice([g for g in (2, 3, 4, 6) if channels % g == 0] or [1]),)
        elif kind == "pixel":
            if channels % 4:
                kind = "relu"
            else:
                width = channels // 4
        self.steps.append((kind, source, other, more))
        self.channels.append(width)

    def forward(self, x):
        pool = [x]
        for number, (kind, source, other, more) in enumerate(self.steps):
            a, b = pool[source], pool[other]
            layer = dict(self.layers).get(str(number))
            if kind in ("conv", "norm", "depthwise", "grouped", "group_norm"):
                y = layer(a)
            elif kind == "relu":
                y = F.silu(a)
            elif kind == "add":
                y = a + b
            elif kind == "cat":
                y = torch.cat([a, b], 1)
            elif kind == "split":
                border = layer.weight.shape[1]
                y = torch.cat([layer(a[:, :border]), a[:, border:]], 1)
            elif kind == "shuffle":
                y = a.unflatten(1, (more[0], -1)).transpose(1, 2).flatten(1, 2)
            elif kind == "gate":
                y = a * torch.sigmoid(layer(a.mean((2, 3))))[:, :, None, None]
            elif kind == "layer_norm":
                y = layer(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            elif kind == "pixel":
                y = F.max_pool2d(F.pixel_shuffle(a, 2), 2)
            elif kind == "flip":
                y = a.flip(1)
            elif kind == "scores":
                q, k = layer(a).flatten(2).chunk(2, 1)
                y = (a.flatten(2) @ (q.transpose(1, 2) @ k).softmax(-1)).unflatten(2, (8, 8))
            else:
                y = F.avg_pool2d(a, 3, 1, 1)
            pool.append(y)
        return self.out(pool[-1]).mean((2, 3))


def chain_of(seed, check):
    torch.manual_seed(seed)
    net = nets.varied(RandomNet(seed).double())
    images = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    return WeightChain.from_teacher(net, images, width=0.5, method="random", check=check)


def test_rules_alone_are_never_silently_wrong():
    """A student may not run, where a view asks for widths that no operator ties; if it runs, it
    is right. (A view that cuts an axis at the borders of its channels can be read in two ways, as
    counting channels or as counting parts; 1 of 350 networks has one, and the check decides.)"""
    ran = 0
    for seed in range(SEEDS):
        chain = chain_of(seed, check=False)
        try:
            deviation = chain.verify(quiet=True)
        except RuntimeError:
            continue
        assert deviation < TOLERANCE, seed
        ran += 1
    assert ran > SEEDS / 2


@pytest.mark.parametrize("seed", [*range(SEEDS), 1013, 1186])  # a view read in two ways; grouped
def test_checked_students_of_any_widths_run_and_are_right(seed):
    assert chain_of(seed, check=True).verify(quiet=True) < TOLERANCE
