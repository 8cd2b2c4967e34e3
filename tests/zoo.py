"""Small networks in the manner of the well-known ones, for tracing: convolutional families."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def conv(inputs, outputs, kernel=1, stride=1, groups=1, act=nn.ReLU):
    """Convolution, batch norm, activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        act(),
    )


class Classifier(nn.Module):
    """A backbone (B, C, H, W), global average, logits."""

    def __init__(self, backbone, channels, classes=5):
        super().__init__()
        self.backbone, self.fc = backbone, nn.Linear(channels, classes)

    def forward(self, x):
        return self.fc(self.backbone(x).mean((2, 3)))


class Squeeze(nn.Module):
    """Squeeze and excitation by 1x1 convolutions."""

    def __init__(self, channels, hidden, gate=nn.Sigmoid):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.gate = gate()

    def forward(self, x):
        scale = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1))))
        return self.gate(scale) * x


class StochasticDepth(nn.Module):
    """Leaves a branch out of images at random, in training."""

    def forward(self, x):
        if not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(0.8)
        return x * keep.div_(0.8)


class Inverted(nn.Module):
    """Inverted residual: widen, depthwise, perhaps squeeze, narrow without activation."""

    def __init__(self, inputs, outputs, widen, stride=1, act=nn.ReLU6, squeeze=None):
        super().__init__()
        hidden = inputs * widen
        self.layers = nn.Sequential(
            conv(inputs, hidden, act=act),
            conv(hidden, hidden, 3, stride, groups=hidden, act=act),
            squeeze(hidden, hidden // 4) if squeeze else nn.Identity(),
            conv(hidden, outputs, act=nn.Identity),
        )
        self.drop = StochasticDepth()
        self.same = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.drop(self.layers(x)) if self.same else self.layers(x)


def mobilenet_v2():
    layers = [conv(3, 8, 3, 2, act=nn.ReLU6), Inverted(8, 6, 1), Inverted(6, 10, 3, 2)]
    layers += [Inverted(10, 10, 3), Inverted(10, 10, 3), conv(10, 16, act=nn.ReLU6)]
    return Classifier(nn.Sequential(*layers), 16)


def mobilenet_v3():
    def squeeze(channels, hidden):
        return Squeeze(channels, hidden, nn.Hardsigmoid)

    layers = [conv(3, 8, 3, 2, act=nn.Hardswish), Inverted(8, 8, 2, act=nn.ReLU)]
    layers += [Inverted(8, 12, 3, 2, nn.Hardswish, squeeze), Inverted(12, 12, 3, 1, nn.Hardswish)]
    head = nn.Sequential(nn.Linear(12, 20), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(20, 5))
    model = Classifier(nn.Sequential(*layers), 12)
    model.fc = head
    return model


def efficientnet():
    layers = [conv(3, 8, 3, 2, act=nn.SiLU), Inverted(8, 8, 1, 1, nn.SiLU, Squeeze)]
    layers += [Inverted(8, 12, 4, 2, nn.SiLU, Squeeze), Inverted(12, 12, 4, 1, nn.SiLU, Squeeze)]
    return Classifier(nn.Sequential(*layers, conv(12, 24, act=nn.SiLU)), 24)


class GroupedBottleneck(nn.Module):
    """The residual block of RegNetY: a grouped 3x3 convolution, squeeze and excitation."""

    def __init__(self, inputs, outputs, stride, group_width):
        super().__init__()
        self.a = conv(inputs, outputs)
        self.b = conv(outputs, outputs, 3, stride, groups=outputs // group_width)
        self.se = Squeeze(outputs, max(2, inputs // 4))
        self.c = conv(outputs, outputs, act=nn.Identity)
        self.proj = conv(inputs, outputs, 1, stride, act=nn.Identity) if stride > 1 else None

    def forward(self, x):
        y = self.c(self.se(self.b(self.a(x))))
        return F.relu(y + (x if self.proj is None else self.proj(x)))


def regnet():
    stages = [conv(3, 8, 3, 2), GroupedBottleneck(8, 16, 2, 4), GroupedBottleneck(16, 16, 1, 4)]
    return Classifier(nn.Sequential(*stages, GroupedBottleneck(16, 24, 2, 8)), 24)


class DenseBlock(nn.Module):
    """Every layer reads all earlier ones, side by side."""

    def __init__(self, inputs, growth, layers):
        super().__init__()
        self.layers = nn.ModuleList()
        for i in range(layers):
            width = inputs + i * growth
            norm, bottleneck = nn.BatchNorm2d(width), nn.Conv2d(width, 2 * growth, 1, bias=False)
            last = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)
            self.layers.append(
                nn.Sequential(
                    norm, nn.ReLU(), bottleneck, nn.BatchNorm2d(2 * growth), nn.ReLU(), last
                )
            )

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


def densenet():
    transition = nn.Sequential(
        nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False), nn.AvgPool2d(2, 2)
    )
    blocks = [nn.Conv2d(3, 8, 3, 2, 1), DenseBlock(8, 4, 2), transition, DenseBlock(8, 4, 3)]
    return Classifier(nn.Sequential(*blocks, nn.BatchNorm2d(20), nn.ReLU()), 20)


def channel_shuffle(x, groups):
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """Half of the channels pass by, and all are shuffled."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        half = outputs // 2
        self.side = None
        if stride > 1:
            depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
            self.side = nn.Sequential(depthwise, nn.BatchNorm2d(inputs), conv(inputs, half))
        self.main = nn.Sequential(
            conv(inputs if stride > 1 else half, half),
            nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            conv(half, half),
        )

    def forward(self, x):
        if self.side is not None:
            x = torch.cat([self.side(x), self.main(x)], 1)
        else:
            first, second = x.chunk(2, 1)
            x = torch.cat([first, self.main(second)], 1)
        return channel_shuffle(x, 2)


def shufflenet_v2():
    units = [ShuffleUnit(8, 16, 2), ShuffleUnit(16, 16, 1), ShuffleUnit(16, 16, 1)]
    return Classifier(nn.Sequential(conv(3, 8, 3, 2), *units, conv(16, 24)), 24)


class GroupNormBlock(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm1, self.norm2 = (nn.GroupNorm(groups, channels) for _ in range(2))

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + x)


def groupnorm_resnet():
    blocks = [nn.Conv2d(3, 16, 3, 2, 1), GroupNormBlock(16, 4), GroupNormBlock(16, 4)]
    return Classifier(nn.Sequential(*blocks), 16)


class GeneralisedMean(nn.Module):
    """GeM as ReID toolkits write it: an exponent of shape (1,), one pooling over the whole map."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(conv(3, 8, 3, 2), conv(8, 12, 3, 2))
        self.p = nn.Parameter(torch.ones(1) * 3)
        self.neck, self.fc = nn.BatchNorm1d(12), nn.Linear(12, 5, bias=False)

    def forward(self, x):
        x = self.conv(x)
        x = F.avg_pool2d(x.clamp(min=1e-6).pow(self.p), (x.size(-2), x.size(-1))).pow(1 / self.p)
        feature = self.neck(x.view(x.size(0), -1))
        return self.fc(feature) if self.training else F.normalize(feature)


class Upscaler(nn.Module):
    """Pixel shuffle: channels become places."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(3, 8, 3), conv(8, 24, 3))
        self.up, self.out = nn.PixelShuffle(2), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x):
        return self.out(F.relu(self.up(self.body(x))))


IMAGES = torch.zeros(2, 3, 32, 32)
CONVOLUTIONAL = {
    "MobileNetV2": mobilenet_v2,
    "MobileNetV3": mobilenet_v3,
    "EfficientNet": efficientnet,
    "RegNetY": regnet,
    "DenseNet": densenet,
    "ShuffleNetV2": shufflenet_v2,
    "GroupNorm ResNet": groupnorm_resnet,
    "GeM": GeneralisedMean,
    "PixelShuffle": Upscaler,
}
