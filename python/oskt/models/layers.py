"""Layers and the head that the convolutional re-identification networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GeM(nn.Module):
    """Generalised mean over space: (mean x^p)^(1/p) with a learned p, x clamped to eps."""

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1.0 / self.p)


class IBN(nn.Module):
    """Instance norm of the first half of the channels, batch norm of the rest (IBN-a).

    The border is read from the layers themselves, so that a student may have halves of any widths.

    Source: Pan et al. 2018; names (`IN`, `BN`) as in its checkpoints.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.IN = nn.InstanceNorm2d(channels // 2, affine=True)
        self.BN = nn.BatchNorm2d(channels - channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        half = self.BN.weight.shape[0]
        first, rest = x.split([x.shape[1] - half, half], 1)
        return torch.cat([self.IN(first), self.BN(rest)], 1)


def pooling_of(name: str, network: str) -> nn.Module:
    """The pooling over space that a network's argument `pooling` names."""
    if name not in ("avg", "gem"):
        raise ValueError(
            f"{network}: pooling must be 'avg' or 'gem', got {name!r}. Choose one of the two."
        )
    return GeM() if name == "gem" else nn.AdaptiveAvgPool2d(1)


class NeckedNetwork(nn.Module):
    """A network whose `feature(images)` (B, F) goes through BNNeck and a classifier.

    In evaluation mode the output is the embedding (B, F), the feature after BNNeck; in training
    mode it is (feature before BNNeck, logits), what the losses read. Without a classifier the
    logits are empty. BNNeck's bias stays 0 and is not trained, so that the cosine of embeddings is
    about the origin.

    Source: Luo et al. 2019 (Bag of Tricks).
    """

    head = ("bottleneck", "classifier")
    untrained = ("bottleneck.bias",)
    bottleneck: nn.BatchNorm1d
    classifier: nn.Linear | None

    def add_neck(self, features: int, num_classes: int) -> None:
        """Add BNNeck and, unless num_classes is 0, a classifier."""
        self.bottleneck = nn.BatchNorm1d(features)
        self.classifier = nn.Linear(features, num_classes, bias=False) if num_classes else None

    def reset_parameters(self) -> None:
        """He initialisation (fan out) of convolutions, their biases 0; N(0, 0.001) of the
        classifier; BNNeck's bias is not trained."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.bottleneck.bias.requires_grad_(False)
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=0.001)

    def feature(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, F)."""
        raise NotImplementedError

    @torch.no_grad()
    def scale_features(self, scale: Tensor) -> None:
        """Multiply the channels of the embedding by scale (F,); logits stay as they are."""
        self.bottleneck.weight.mul_(scale)
        self.bottleneck.bias.mul_(scale)
        if self.classifier is not None:
            self.classifier.weight.div_(scale)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        feature = self.feature(images)
        embedding = self.bottleneck(feature)
        if not self.training:
            return embedding
        if self.classifier is None:
            return feature, feature.new_empty(len(feature), 0)
        return feature, self.classifier(embedding)
