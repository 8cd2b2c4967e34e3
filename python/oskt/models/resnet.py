"""Residual networks for re-identification, of any width, with torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from oskt.presets import LAYERS as LAYERS
from oskt.presets import PRESETS as PRESETS
from oskt.presets import widths as widths


class GeM(nn.Module):
    """Generalised mean over space: (mean x^p)^(1/p) with a learned p, x clamped to eps."""

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1.0 / self.p)


class _Block(nn.Module):
    """One residual block: two 3x3 convolutions (expansion 1) or a bottleneck (expansion 4)."""

    def __init__(self, inputs: int, planes: int, stride: int, expansion: int) -> None:
        super().__init__()
        outputs = planes * expansion
        if expansion == 1:
            self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, outputs, 3, 1, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
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


class ResNet(nn.Module):
    """A residual network with a BNNeck head, the re-identification baseline of the field.

    In evaluation mode the output is the embedding (B, F), the pooled feature after BNNeck; in
    training mode it is (feature before BNNeck, logits), what the losses read.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_planes: channels of the stem and the first stage; 64 is the standard network.
        multipliers: planes of stages 2 to 4 as multiples of in_planes.
        num_classes: identities; 0 leaves the classifier out (logits are then an empty tensor).
        layers: blocks per stage, in place of the depth's own.
        last_stride: stride of the last stage; 1 keeps the 16x8 map that ReID uses.
        pooling: "avg" or "gem".

    Source: He et al. 2016; last stride and BNNeck from Luo et al. 2019 (Bag of Tricks). Differences
    from torchvision: no fc layer, and `bottleneck` and `classifier` belong to the same module.

    Example:
        >>> import torch
        >>> model = ResNet(18, in_planes=4).eval()
        >>> model(torch.zeros(2, 3, 64, 32)).shape
        torch.Size([2, 32])
    """

    head = ("bottleneck", "classifier")
    untrained = ("bottleneck.bias",)

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
    ) -> None:
        super().__init__()
        if depth not in LAYERS:
            raise ValueError(
                f"ResNet: depth must be one of {sorted(LAYERS)}, got {depth}. "
                "Give `layers` for another number of blocks."
            )
        if pooling not in ("avg", "gem"):
            raise ValueError(
                f"ResNet: pooling must be 'avg' or 'gem', got {pooling!r}. Choose one of the two."
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
                modules.append(_Block(inputs, planes, stride if block == 0 else 1, expansion))
                inputs = planes * expansion
            self.add_module(f"layer{stage}", nn.Sequential(*modules))
        self.pool = GeM() if pooling == "gem" else nn.AdaptiveAvgPool2d(1)
        self.bottleneck = nn.BatchNorm1d(inputs)
        self.classifier = nn.Linear(inputs, num_classes, bias=False) if num_classes else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He initialisation (fan out) of convolutions, N(0, 0.001) of the classifier; BNNeck's
        bias stays 0 and is not trained, so that the cosine of embeddings is about the origin."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.bottleneck.bias.requires_grad_(False)
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            x = self.get_submodule(stage)(x)
        feature = self.pool(x).flatten(1)
        embedding = self.bottleneck(feature)
        if not self.training:
            return embedding
        if self.classifier is None:
            return feature, feature.new_empty(len(feature), 0)
        return feature, self.classifier(embedding)
