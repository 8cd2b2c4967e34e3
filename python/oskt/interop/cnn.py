"""The published CNN chain: a residual network, frozen 0/1 convolutions left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oskt import models
from oskt.coupling import Coupling
from oskt.interop.tensors import Tensors, of_head
from oskt.widths import Clustering

ROWS = "published"  # what that code clusters, see oskt.coupling.clustering


def spec(folder: Path, matcher: object, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The teacher's spec, from the shapes of its tensors."""
    in_planes = state["base.conv1.weight"].shape[0]
    blocks = [0, 0, 0, 0]
    for name in state:
        found = re.fullmatch(r"base\.layer(\d)\.(\d+)\.conv1\.weight", name)
        if found:
            stage = int(found[1]) - 1
            blocks[stage] = max(blocks[stage], int(found[2]) + 1)
    if not all(blocks):
        raise ValueError(
            f"load_published_chain: checkpoint in {folder} must hold four residual stages, got "
            f"{blocks} blocks. Give a whole checkpoint."
        )
    planes = [state[f"base.layer{s}.0.conv1.weight"].shape[0] for s in (1, 2, 3, 4)]
    classifier = state.get("classifier.weight", state.get("GeneNet_classifier.weight"))
    return models.ResNet(
        50,
        in_planes,
        [p // in_planes for p in planes[1:]],
        0 if classifier is None else classifier.shape[0],
        layers=blocks,
    ).spec


def clusterings(
    folder: Path, coupling: Coupling, matcher: Mapping[str, list[int]]
) -> dict[str, Clustering]:
    """Free group -> its clustering."""
    result = {}
    for name, group in coupling.free.items():
        labels = np.array(matcher.get(f"base.{name}", []), dtype=np.int64)
        if len(labels) != group.size or set(labels) != set(range(labels.max(initial=-1) + 1)):
            raise ValueError(
                f"load_published_chain: gene_matcher.json in {folder} must label {group.size} "
                f"channels of base.{name} with every cluster present, got {len(labels)} labels. "
                "The matcher belongs to another checkpoint."
            )
        result[name] = Clustering(labels)
    return result


def chain_tensors(
    teacher: Mapping[str, Tensor],
    found: Tensors,
    coupling: Coupling,
    clusterings: Mapping[str, Clustering],
) -> tuple[dict[str, Tensor], list[str]]:
    """Every tensor as the chain holds it, and the weights that it lacks."""
    tensors = dict(teacher)
    sizes = {name: clustering.size for name, clustering in clusterings.items()}
    for name, layout in coupling.layouts.items():
        own, gene = tensors[name], f"base.GeneChain.{name}"
        default = own if of_head(name) else None
        if layout.role == "weight":
            shape = (coupling.axis_size(layout.rows, sizes), *own.shape[1:])
            tensors[name] = found.take(shape, gene, default=default)
        elif layout.role == "statistic":
            # They lie at teacher width, equal within a cluster: one of each.
            members = clusterings[layout.rows[0][0]].members()
            at = torch.from_numpy(np.array([m[0] for m in members]))
            tensors[name] = found.take(own.shape, gene, default=default)[at]
    _head(found, tensors, clusterings, coupling)
    headless = "classifier.weight" in teacher and "GeneNet_classifier.weight" not in found
    return tensors, ["classifier.weight"] if headless else []


def _head(
    found: Tensors,
    tensors: dict[str, Tensor],
    clusterings: Mapping[str, Clustering],
    coupling: Coupling,
) -> None:
    """The chain's own head lies at chain width: spread it over the teacher's columns."""
    if "GeneNet_classifier.weight" not in found:
        return
    clustering = clusterings[coupling.layouts["bottleneck.weight"].rows[0][0]]
    labels = torch.from_numpy(clustering.labels)
    share = torch.from_numpy(np.bincount(clustering.labels)).float()[labels]
    shape = (len(tensors["classifier.weight"]), clustering.size)
    tensors["classifier.weight"] = found.take(shape, "GeneNet_classifier.weight")[:, labels] / share
    for name in ("weight", "bias"):
        if f"GeneNet_bottleneck.{name}" in found:
            own = found.take(shape[1:], f"GeneNet_bottleneck.{name}")
            tensors[f"bottleneck.{name}"] = own[labels]
    for name in ("running_mean", "running_var"):
        if f"GeneNet_bottleneck.{name}" in found:
            tensors[f"bottleneck.{name}"] = found.take(shape[1:], f"GeneNet_bottleneck.{name}")
