"""Residual networks for re-identification, of any width, with torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from oskt.models.layers import IBN, NeckedNetwork, pooling_of
from oskt.widths.presets import LAYERS as LAYERS
from oskt.widths.presets import PRESETS as PRESETS
from oskt.widths.presets import widths as widths


class _Block(nn.Module):
    """One residual block: two 3x3 convolutions (expansion 1) or a bottleneck (expansion 4)."""

    def __init__(self, inputs: int, planes: int, stride: int, expansion: int, ibn: bool) -> None:
        super().__init__()
        outputs = planes * expansion
        if expansion == 1:
            self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, outputs, 3, 1, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn1 = IBN(planes) if ibn else nn.BatchNorm2d(planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False) if expansion > 1 else None
        self.bn3 = nn.BatchNorm2d(outputs) if expansion > 1 else None
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.conv3 is not None and self.bn3 is not None:
            out = self.bn3(self.conv3(self.relu(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(NeckedNetwork):
    """A residual network with a BNNeck head, the re-identification baseline of the field.

    Output as in NeckedNetwork: in evaluation mode the embedding (B, F), in training mode (feature,
    logits).

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_planes: channels of the stem and the first stage; 64 is the standard network.
        multipliers: planes of stages 2 to 4 as multiples of in_planes.
        num_classes: identities; 0 leaves the classifier out (logits are then an empty tensor).
        layers: blocks per stage, in place of the depth's own.
        last_stride: stride of the last stage; 1 keeps the 16x8 map that ReID uses.
        pooling: "avg" or "gem".
        ibn: half of the channels of every block's first norm are instance-normalised, but in the
            last stage (IBN-a), which generalises better to other cameras.

    Source: He et al. 2016; last stride and BNNeck from Luo et al. 2019 (Bag of Tricks); IBN-a from
    Pan et al. 2018. Differences from torchvision: no fc layer, and `bottleneck` and `classifier`
    belong to the same module.

    Example:
        >>> import torch
        >>> model = ResNet(18, in_planes=4).eval()
        >>> model(torch.zeros(2, 3, 64, 32)).shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        depth: int = 50,
        in_planes: int = 64,
        multipliers: Sequence[int] = (2, 4, 8),
        num_classes: int = 0,
        *,
        layers: Sequence[int] | None = None,
        last_stride: int = 1,
        pooling: str = "avg",
        ibn: bool = False,
    ) -> None:
        super().__init__()
        if depth not in LAYERS:
            raise ValueError(
                f"ResNet: depth must be one of {sorted(LAYERS)}, got {depth}. "
                "Give `layers` for another number of blocks."
            )
        if in_planes < 1:
            raise ValueError(
                f"ResNet: in_planes must be >= 1, got {in_planes}. 64 is the standard network."
            )
        layers = tuple(layers or LAYERS[depth])
        for name, given, count in (("multipliers", multipliers, 3), ("layers", layers, 4)):
            if len(given) != count or min(given) < 1:
                raise ValueError(
                    f"ResNet: {name} must be {count} numbers >= 1, got {tuple(given)}. "
                    f"Give one for every stage{' after the first' if count == 3 else ''}."
                )
        self.spec = {
            "family": "resnet",
            "depth": depth,
            "in_planes": in_planes,
            "multipliers": list(multipliers),
            "num_classes": num_classes,
            "layers": list(layers),
            "last_stride": last_stride,
            "pooling": pooling,
            "ibn": ibn,
        }
        expansion = 4 if depth >= 50 else 1
        self.conv1 = nn.Conv2d(3, in_planes, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = in_planes
        for stage, (blocks, multiple) in enumerate(zip(layers, (1, *multipliers)), 1):
            planes = in_planes * multiple
            stride = (1, 2, 2, last_stride)[stage - 1]
            modules = []
            for block in range(blocks):
                first = stride if block == 0 else 1
                modules.append(_Block(inputs, planes, first, expansion, ibn and stage < 4))
                inputs = planes * expansion
            self.add_module(f"layer{stage}", nn.Sequential(*modules))
        self.pool = pooling_of(pooling, "ResNet")
        self.add_neck(inputs, num_classes)
        self.reset_parameters()

    def feature(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            x = self.get_submodule(stage)(x)
        return self.pool(x).flatten(1)
