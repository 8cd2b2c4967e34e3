"""Sizes of residual networks, by name and by stem width. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

LAYERS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

# The paper's students: name -> (in_planes, multipliers).
PRESETS: dict[str, tuple[int, tuple[int, int, int]]] = {
    "res50-s1": (8, (2, 4, 8)),
    "res50-s2": (16, (2, 3, 4)),
    "res50-s3": (16, (2, 4, 8)),
    "res50-s4": (32, (2, 3, 4)),
    "res50-s5": (32, (2, 4, 8)),
    "res50-s6": (64, (2, 3, 4)),
}


def widths(
    in_planes: int, multipliers: Sequence[int] = (2, 4, 8), *, layers: Sequence[int] | int = 50
) -> dict[str, int]:
    """Channel group -> width of the residual network in_planes/multipliers, for chain.student().

    Args:
        in_planes: stem width of the student, >= 1.
        multipliers: planes of stages 2 to 4 as multiples of in_planes.
        layers: depth (18, 34, 50, 101, 152) or, for a bottleneck network, blocks per stage.

    Returns:
        {"conv1": in_planes, "layer1.0.conv1": ..., ...}; groups are named by their first writer,
        so a stage's residual group is "layerS.0.conv3" (or "layerS.0.conv2" for depths 18, 34).

    Example:
        >>> sizes = widths(8, (2, 3, 4))
        >>> sizes["conv1"], sizes["layer4.0.conv1"], sizes["layer4.0.conv3"]
        (8, 32, 128)
    """
    bottleneck = not isinstance(layers, int) or layers >= 50
    blocks = LAYERS[layers] if isinstance(layers, int) else tuple(layers)
    sizes = {"conv1": in_planes}
    for stage, (count, multiple) in enumerate(zip(blocks, (1, *multipliers)), 1):
        planes = in_planes * multiple
        for block in range(count):
            sizes[f"layer{stage}.{block}.conv1"] = planes
            if bottleneck:
                sizes[f"layer{stage}.{block}.conv2"] = planes
        if bottleneck:
            sizes[f"layer{stage}.0.conv3"] = planes * 4
        elif stage > 1:
            sizes[f"layer{stage}.0.conv2"] = planes
    return sizes
