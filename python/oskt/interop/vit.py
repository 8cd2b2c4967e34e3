"""The published ViT chain: a transformer whose chain has vectors of its own, and `dw`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oskt import models
from oskt.coupling import ChannelGroup, Coupling
from oskt.interop.tensors import Tensors, of_head
from oskt.models import vit_checkpoint
from oskt.widths import Clustering

ROWS = "published-cosine"  # what that code clusters, see oskt.coupling.clustering


def spec(folder: Path, matcher: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The teacher's spec, from the shapes of its tensors and the labels of its heads."""
    needed = ("dw_weight_gene", "pos_embed", "norm.weight", "blocks.0.mlp.fc1.weight")
    missing = [name for name in needed if f"base.{name}" not in state]
    depth = sum(name.endswith(".attn.qkv.weight") for name in state)
    if missing or not depth:
        raise ValueError(
            f"load_published_chain: checkpoint in {folder} must hold a refined transformer, got "
            f"{depth} blocks without {', '.join(missing) or 'attention'}. Give a whole checkpoint."
        )
    labels = _labels(matcher, "blocks.0.attn.q")
    if not len(labels):
        raise ValueError(
            f"load_published_chain: gene_matcher.json in {folder} must label the queries of every "
            "block, got none of blocks.0.attn.q. The matcher belongs to another checkpoint."
        )
    stem, _, patch, _ = state["base.patch_embed.proj.weight"].shape
    hidden, dim = state["base.blocks.0.mlp.fc1.weight"].shape
    parts = sum(name.startswith("base.part_token") for name in state)
    columns = math.isqrt(state["base.pos_embed"].shape[1] // 2)
    return models.VisionTransformer(
        dim,
        depth,
        _heads(labels),
        hidden / dim,
        patch,
        (2 * columns * patch, columns * patch),  # that code's images are twice as high as wide
        parts,
        stem_dim=stem,
    ).spec


def clusterings(
    folder: Path, coupling: Coupling, matcher: Mapping[str, Any]
) -> dict[str, Clustering]:
    """Free group -> its clustering. Queries, keys and values share labels; the stem is whole."""
    result = {}
    for name, group in coupling.free.items():
        if name == "patch_embed.proj":
            result[name] = Clustering(np.arange(group.size))
            continue
        key = _key(name)
        labels = _labels(matcher, key)
        if not _fits(labels, group):
            raise ValueError(
                f"load_published_chain: gene_matcher.json in {folder} must label {group.size} "
                f"channels of {key}, clusters within each of {group.blocks} heads, got "
                f"{len(labels)} labels. The matcher belongs to another checkpoint."
            )
        result[name] = Clustering(labels, group.blocks)
    return result


def _labels(matcher: Mapping[str, Any], key: str) -> np.ndarray:
    """The labels of a group; none where the matcher is of another form."""
    groups = matcher.get("o2g")
    labels = groups.get(key, []) if isinstance(groups, dict) else []
    return np.array(labels, dtype=np.int64)


def _key(name: str) -> str:
    """The matcher's name of a group: the stream is one entry, queries and values have two."""
    if name.endswith(".attn.qkv"):
        return name.removesuffix("qkv") + "q"
    if name.endswith(".attn.qkv#2"):
        return name.removesuffix("qkv#2") + "v"
    return "dw_proj_fc2" if name == "dw" else name


def _fits(labels: np.ndarray, group: ChannelGroup) -> bool:
    return len(labels) == group.size and _stretches(labels, group.blocks)


def _stretches(labels: np.ndarray, count: int) -> bool:
    """Whether each of `count` equal stretches has its own equally many labels, ascending."""
    clusters = int(labels.max(initial=-1)) + 1
    if not clusters or len(labels) % count or clusters % count:
        return False
    own = np.arange(clusters).reshape(count, -1)
    return all(set(part) == set(mine) for part, mine in zip(labels.reshape(count, -1), own))


def _heads(labels: np.ndarray) -> int:
    """The most stretches whose labels do not mix: the checkpoint says it nowhere else."""
    return max(count for count in range(1, len(labels) + 1) if _stretches(labels, count))


@torch.no_grad()
def take_imagenet_pixels(teacher: nn.Module) -> None:
    """Move the normalisation of that code's images, mean and std 0.5, into the patch embedding."""
    patches = [teacher.get_parameter(f"patch_embed.proj.{name}") for name in ("weight", "bias")]
    for tensor, moved in zip(patches, vit_checkpoint.from_half(*patches)):
        tensor.copy_(moved)


def chain_tensors(
    teacher: Mapping[str, Tensor],
    found: Tensors,
    coupling: Coupling,
    clusterings: Mapping[str, Clustering],
) -> tuple[dict[str, Tensor], list[str]]:
    """Every tensor as the chain holds it; it lacks none.

    Tokens, positions and patches are the teacher's. What the file does not have, BNNecks' vectors
    and running statistics at chain width, is the teacher's and the mean of the teacher's.
    """
    tensors = dict(teacher)
    sizes = {name: clustering.size for name, clustering in clusterings.items()}
    for name, layout in coupling.layouts.items():
        if layout.role == "plain" or layout.rows[0][0] == "patch_embed.proj":
            continue
        own, (owner, _, leaf) = tensors[name], name.rpartition(".")
        if layout.role == "statistic":
            labels = torch.from_numpy(clusterings[layout.rows[0][0]].labels)
            sums = torch.zeros(int(labels.max()) + 1).index_add_(0, labels, own)
            tensors[name] = sums / labels.bincount()
            continue
        rows = coupling.axis_size(layout.rows, sizes) if layout.role == "weight" else len(own)
        tensors[name] = found.take(
            (rows, *own.shape[1:]),
            f"base.{owner}_{leaf}_gene",
            f"base.{owner}_gene.{leaf}",
            default=own if of_head(name) else None,
        )
    return tensors, []
