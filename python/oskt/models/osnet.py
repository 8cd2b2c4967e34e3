"""Omni-scale networks for re-identification, with torchreid's parameter names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oskt.models.layers import NeckedNetwork, pooling_of

CHANNELS = (64, 256, 384, 512)  # stem and three stages of width 1
REDUCTION = 16  # of the aggregation gate


class _Conv(nn.Module):
    """Convolution without bias, norm and, unless it ends a branch, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *,
        instance: bool = False, relu: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        norm = nn.InstanceNorm2d(outputs, affine=True) if instance else nn.BatchNorm2d(outputs)
        self.bn: nn.Module = norm
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class _Lite(nn.Module):
    """The lite 3x3 convolution: pointwise, then depthwise, then norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv2(self.conv1(x))))


class _Gate(nn.Module):
    """The aggregation gate: channel weights in (0, 1) from the spatial mean, by a small MLP."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(pooled))))


class _Block(nn.Module):
    """Four streams of one to four lite convolutions, receptive fields 3 to 9, that one shared gate
    weighs channel by channel before they are added; a bottleneck around, a residual beside."""

    def __init__(self, inputs: int, outputs: int, instance: bool) -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1 = _Conv(inputs, middle)
        self.conv2a = _Lite(middle)
        self.conv2b = nn.Sequential(*(_Lite(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(_Lite(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(_Lite(middle) for _ in range(4)))
        self.gate = _Gate(middle)
        self.conv3 = _Conv(middle, outputs, relu=False)
        self.downsample = _Conv(inputs, outputs, relu=False) if inputs != outputs else None
        self.IN = nn.InstanceNorm2d(outputs, affine=True) if instance else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        a, b, c, d = self.conv2a(y), self.conv2b(y), self.conv2c(y), self.conv2d(y)
        y = self.conv3(self.gate(a) + self.gate(b) + self.gate(c) + self.gate(d))
        y = y + (x if self.downsample is None else self.downsample(x))
        return F.relu(y if self.IN is None else self.IN(y))


class OSNet(NeckedNetwork):
    """An omni-scale network with a BNNeck head: the field's small network, at stride 16.

    Output as in NeckedNetwork. A checkpoint of torchreid loads whole, and while BNNeck is fresh
    cosine distances are those of torchreid's own feature.

    Args:
        width: share of the channels (64, 256, 384, 512); published are 1, 0.75, 0.5 and 0.25.
        num_classes: identities; 0 leaves the classifier out.
        feature_dim: F, outputs of `fc` (linear, batch norm, ReLU); 0 leaves fc out, and the pooled
            channels are the feature.
        ibn: instance norm in place of the stem's batch norm and behind the first stage's residual
            additions (torchreid's osnet_ibn), which generalises better to other cameras.
        pooling: "avg" or "gem".

    Source: Zhou et al. 2019. 2.19 M parameters and 0.98 GMACs at 256 x 128 for width 1, 0.20 M and
    0.08 for 0.25. Differences from torchreid: a BNNeck behind fc, no bias in the classifier, a gate
    of at least one hidden channel.

    Example:
        >>> import torch
        >>> model = OSNet(1 / 16, feature_dim=24).eval()
        >>> model(torch.zeros(2, 3, 64, 32)).shape
        torch.Size([2, 24])
    """

    def __init__(
        self,
        width: float = 1.0,
        num_classes: int = 0,
        *,
        feature_dim: int = 512,
        ibn: bool = False,
        pooling: str = "avg",
    ) -> None:
        super().__init__()
        if not width * CHANNELS[0] >= 1:
            raise ValueError(
                f"OSNet: width must be at least 1/{CHANNELS[0]}, got {width}. "
                "Published are 1, 0.75, 0.5 and 0.25."
            )
        if feature_dim < 0:
            raise ValueError(
                f"OSNet: feature_dim must be >= 0, got {feature_dim}. 512 is torchreid's, 0 takes "
                "the pooled channels."
            )
        self.spec = {
            "family": "osnet",
            "width": width,
            "num_classes": num_classes,
            "feature_dim": feature_dim,
            "ibn": ibn,
            "pooling": pooling,
        }
        stem, *stages = (int(width * channels) for channels in CHANNELS)
        self.conv1 = _Conv(3, stem, 7, 2, instance=ibn)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = stem
        for number, outputs in enumerate(stages, 2):
            instance = ibn and number == 2
            modules: list[nn.Module] = [
                _Block(inputs, outputs, instance),
                _Block(outputs, outputs, instance),
            ]
            if number < 4:
                modules.append(nn.Sequential(_Conv(outputs, outputs), nn.AvgPool2d(2)))
            self.add_module(f"conv{number}", nn.Sequential(*modules))
            inputs = outputs
        self.conv5 = _Conv(inputs, inputs)
        self.pool = pooling_of(pooling, "OSNet")
        self.fc = None
        if feature_dim:
            self.fc = nn.Sequential(
                nn.Linear(inputs, feature_dim), nn.BatchNorm1d(feature_dim), nn.ReLU(inplace=True)
            )
        self.add_neck(feature_dim or inputs, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in NeckedNetwork; N(0, 0.01) of fc."""
        super().reset_parameters()
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.classifier:
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def feature(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(images))
        for stage in ("conv2", "conv3", "conv4", "conv5"):
            x = self.get_submodule(stage)(x)
        x = self.pool(x).flatten(1)
        return x if self.fc is None else self.fc(x)
