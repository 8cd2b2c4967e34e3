"""The weights of the published ResNet-50: the shapes that the benchmarks share."""

from __future__ import annotations

from oskt.widths.presets import LAYERS, PRESETS

__all__ = [
    "BLOCKS", "EXPANSION", "PRESETS", "resnet50_convs", "resnet50_groups", "vit_linears",
]  # fmt: skip

BLOCKS = LAYERS[50]
EXPANSION = 4


def resnet50_convs(
    in_planes: int = 64, multipliers: tuple[int, int, int] = (2, 4, 8)
) -> list[tuple[str, int, int, int]]:
    """Every convolution as (name, out channels, in channels, kernel side), in forward order."""
    convs = [("conv1", in_planes, 3, 7)]
    width = in_planes
    for stage, (blocks, multiplier) in enumerate(zip(BLOCKS, (1, *multipliers)), start=1):
        planes = in_planes * multiplier
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            convs += [
                (f"{name}.conv1", planes, width, 1),
                (f"{name}.conv2", planes, planes, 3),
                (f"{name}.conv3", planes * EXPANSION, planes, 1),
            ]
            if block == 0:
                convs.append((f"{name}.downsample.0", planes * EXPANSION, width, 1))
            width = planes * EXPANSION
    return convs


def resnet50_groups() -> list[list[str]]:
    """The convolutions whose output channels share one partition, in forward order.

    The stem, and conv1 and conv2 of every block, stand alone; the residual stream of a stage ties
    its downsample and every conv3.
    """
    groups = [["conv1"]]
    for stage, blocks in enumerate(BLOCKS, start=1):
        names = [f"layer{stage}.{block}" for block in range(blocks)]
        groups += [[f"{name}.{conv}"] for name in names for conv in ("conv1", "conv2")]
        groups.append([f"layer{stage}.0.downsample.0", *(f"{name}.conv3" for name in names)])
    return groups


def vit_linears(dim: int = 768, blocks: int = 12) -> list[tuple[str, int, int]]:
    """Every linear of a ViT's blocks as (name, rows, columns), in forward order; 768: ViT-B."""
    sizes = [
        ("qkv", 3 * dim, dim),
        ("proj", dim, dim),
        ("fc1", 4 * dim, dim),
        ("fc2", dim, 4 * dim),
    ]
    return [(f"blocks.{i}.{name}", *shape) for i in range(blocks) for name, *shape in sizes]
