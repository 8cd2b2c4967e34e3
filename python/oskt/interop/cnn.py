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
    state: Mapping[str, Tensor],
    coupling: Coupling,
    clusterings: Mapping[str, Clustering],
) -> tuple[dict[str, Tensor], list[str]]:
    """Every tensor as the chain holds it, and the weights that it lacks."""
    tensors = dict(teacher)
    for name, layout in coupling.layouts.items():
        gene = state.get(f"base.GeneChain.{name}", tensors[name])
        if layout.role == "weight":
            tensors[name] = gene
        elif layout.role == "statistic":
            # They lie at teacher width, equal within a cluster: one of each.
            members = clusterings[layout.rows[0][0]].members()
            tensors[name] = gene[torch.from_numpy(np.array([m[0] for m in members]))]
    _head(state, tensors, clusterings, coupling)
    headless = "classifier.weight" in teacher and "GeneNet_classifier.weight" not in state
    return tensors, ["classifier.weight"] if headless else []


def _head(
    state: Mapping[str, Tensor],
    tensors: dict[str, Tensor],
    clusterings: Mapping[str, Clustering],
    coupling: Coupling,
) -> None:
    """The chain's own head lies at chain width: spread it over the teacher's columns."""
    if "GeneNet_classifier.weight" not in state:
        return
    clustering = clusterings[coupling.layouts["bottleneck.weight"].rows[0][0]]
    labels = torch.from_numpy(clustering.labels)
    share = torch.from_numpy(np.bincount(clustering.labels)).float()[labels]
    tensors["classifier.weight"] = state["GeneNet_classifier.weight"][:, labels] / share
    for name in ("weight", "bias"):
        if f"GeneNet_bottleneck.{name}" in state:
            tensors[f"bottleneck.{name}"] = state[f"GeneNet_bottleneck.{name}"][labels]
    for name in ("running_mean", "running_var"):
        if f"GeneNet_bottleneck.{name}" in state:
            tensors[f"bottleneck.{name}"] = state[f"GeneNet_bottleneck.{name}"]
