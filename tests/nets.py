"""Small networks that tests trace: one idea each."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def varied(module):
    """Norm parameters and statistics that tell channels apart."""
    for name, tensor in module.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
            if name.endswith(("bias", "mean")):
                tensor.sub_(1.0)
    return module.eval()


class Mixed(nn.Module):
    """Depthwise, grouped, residual add, concatenation, pooling, flatten, linear."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.side = nn.Conv2d(3, 12, 3, padding=1)
        self.fc = nn.Linear((12 + 8) * 16, 10)

    def forward(self, x):
        y = self.depthwise(torch.relu(self.bn(self.stem(x))))
        z = torch.sigmoid(self.grouped(y)) + self.side(x)
        return self.fc(torch.flatten(F.max_pool2d(torch.cat([z, y], 1), 2), 1))


class Gate(nn.Module):
    """Squeeze and excitation: linears over pooled channels gate the same channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)
        self.out = nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return self.out((x * gate[:, :, None, None]).mean((2, 3)))


class SplitSum(nn.Module):
    """A concatenation added to one tensor: the long group must split at the border."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.c, self.out = nn.Conv2d(3, 10, 1), nn.Conv2d(10, 7, 1)

    def forward(self, x):
        return self.out(torch.relu(torch.cat([self.a(x), self.b(x)], 1) + self.c(x))).mean((2, 3))


class Shared(nn.Module):
    """One layer used twice, which ties its input to its output."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.out(torch.relu(self.twice(torch.relu(self.twice(self.stem(x))))))


class Scaled(nn.Module):
    """Per-channel parameters in several shapes, one through a function, one through a view."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)
        self.shift = nn.Parameter(torch.randn(1, 6, 1, 1))
        self.map = nn.Parameter(torch.randn(6, 8, 8))

    def forward(self, x):
        x = self.conv(x) * torch.exp(self.scale).view(1, -1, 1, 1) + self.shift
        return self.out(torch.relu(x + self.map)).mean((2, 3))


class NormOfFlat(nn.Module):
    """A norm of flattened maps, with numbers for every channel and place, and one of places."""

    def __init__(self):
        super().__init__()
        self.conv, self.flat = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm1d(6 * 9)
        self.side, self.places = nn.Conv2d(3, 9, 3, 2), nn.BatchNorm1d(9)
        self.out = nn.Linear(6 * 9 + 9, 5)

    def forward(self, x):
        y = torch.relu(self.flat(torch.flatten(self.conv(x), 1)))
        z = torch.relu(self.places(self.side(x).flatten(2).transpose(1, 2)))
        return self.out(torch.cat([y, z.mean(1)], 1))


SMALL = torch.zeros(2, 3, 8, 8)
CASES = {  # name -> (class, images that it takes)
    "Mixed": (Mixed, SMALL),  # grouped, depthwise, concatenated, flattened
    "Gate": (Gate, SMALL),
    "SplitSum": (SplitSum, SMALL),
    "Shared": (Shared, SMALL),
    "Scaled": (Scaled, SMALL),
    "NormOfFlat": (NormOfFlat, SMALL),
}


class Flipped(nn.Module):
    """Channels reversed: not known to the tracer, so it must freeze, never guess."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)
        self.out = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.out(torch.relu(self.b(torch.flip(self.a(x), (1,))))).mean((2, 3))


class Rolled(nn.Module):
    """A roll without dimensions moves entries through all of them, channels too."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.out(torch.relu(torch.roll(self.a(x), 3))).mean((2, 3))


class SoftmaxOverChannels(nn.Module):
    """A softmax weighs channels against each other: merging them changes it."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.out(torch.softmax(self.a(x), 1)).mean((2, 3))
