"""Sizes of the paper's networks, by name and by width. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Residual networks.
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

# Vision transformers: name -> channels of the stream; of ViT-S (384) and of ViT-B (768).
VIT_PRESETS = {"vit-s-s1": 120, "vit-s-s2": 168, "vit-b-s1": 264, "vit-b-s2": 336}

NAMES = (*PRESETS, *VIT_PRESETS)


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


def vit_widths(
    dim: int, depth: int = 12, *, mlp_ratio: float = 4.0, stem_dim: int | None = None
) -> dict[str, int]:
    """Channel group -> width of the vision transformer of `dim` channels, for chain.student().

    Args:
        dim: channels of the student's stream, of its queries and keys and of its values; a multiple
            of the teacher's heads.
        depth: blocks.
        mlp_ratio: hidden channels of the MLP over dim.
        stem_dim: on chains of networks with `dw`: channels of the student's patch embedding.
            Published students keep the teacher's.

    Returns:
        {"patch_embed.proj": dim, "blocks.0.attn.qkv": ..., ...}; groups are named by their first
        writer, queries and keys before values, so the stream is "dw" where there is one.

    Example:
        >>> vit_widths(120, 1)["blocks.0.mlp.fc1"]
        480
    """
    sizes = {"patch_embed.proj": dim}
    if stem_dim is not None:
        sizes = {"patch_embed.proj": stem_dim, "dw": dim}
    for block in range(depth):
        sizes[f"blocks.{block}.attn.qkv"] = dim
        sizes[f"blocks.{block}.attn.qkv#2"] = dim
        sizes[f"blocks.{block}.mlp.fc1"] = int(dim * mlp_ratio)
    return sizes


def of_chain(preset: str, spec: Mapping[str, Any]) -> dict[str, int] | None:
    """Channel group -> width of a preset on the chain of the network that a spec builds; None for
    a preset of another family. A stem of its own keeps the teacher's width, as published."""
    family = spec.get("family")
    if family == "resnet" and preset in PRESETS:
        return widths(*PRESETS[preset], layers=spec["layers"])
    if family == "vit" and preset in VIT_PRESETS:
        return vit_widths(
            VIT_PRESETS[preset],
            spec["depth"],
            mlp_ratio=spec["mlp_ratio"],
            stem_dim=spec["stem_dim"],
        )
    return None
