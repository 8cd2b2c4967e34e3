"""Readers of what the published OSKT code writes; nothing is unpickled but tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oskt import models
from oskt.chain import WeightChain
from oskt.coupling import Coupling
from oskt.grouping import trace_coupling
from oskt.tracing import on_meta
from oskt.widths import Clustering


def load_published_chain(folder: str | Path) -> WeightChain:
    """Read the weight chain of a published refinement: `gene_matcher.json` and its .pth file.

    Args:
        folder: holds gene_matcher.json and one checkpoint (resnet50_*.pth).

    Returns:
        The WeightChain, with the teacher's norm vectors, the chain's running statistics and, where
        the checkpoint has one, the chain's head.

    Raises:
        ValueError: files missing, truncated, not a CNN chain, or labels that do not fit.
    """
    return load_published(folder)[1]


def load_published(folder: str | Path) -> tuple[nn.Module, WeightChain]:
    """(teacher, chain) of a published refinement; see load_published_chain."""
    folder = Path(folder)
    matcher, state = _read(folder)
    spec = _resnet_spec(folder, state)
    with torch.device("meta"):
        template = models.build(spec)
    coupling = trace_coupling(template, torch.zeros(2, 3, 64, 32))
    clusterings = _clusterings(folder, coupling, matcher)

    teacher = models.build(spec)
    for name, tensor in teacher.state_dict().items():
        tensor.copy_(state.get(f"base.{name}", state.get(name, tensor)))

    chain_state = dict(teacher.state_dict())
    for name, layout in coupling.layouts.items():
        if layout.role == "weight" and f"base.GeneChain.{name}" in state:
            chain_state[name] = state[f"base.GeneChain.{name}"]
        elif layout.role == "statistic":
            source = state.get(f"base.GeneChain.{name}", chain_state[name])
            chain_state[name] = source[_first_members(clusterings, layout.rows[0][0])]
    _head(state, chain_state, clusterings, coupling)
    headless = spec["num_classes"] and "GeneNet_classifier.weight" not in state
    absent = ["classifier.weight"] if headless else []

    def section(role: str) -> Tensor:
        layouts = coupling.layouts_of((role,), absent)
        return torch.cat([chain_state[layout.name].flatten() for layout in layouts])

    plain = {t.name: chain_state[t.name] for t in coupling.layouts_of(("plain",))}
    return teacher, WeightChain(
        coupling,
        clusterings,
        section("weight"),
        section("vector"),
        section("statistic"),
        plain,
        absent=absent,
        template=on_meta(template, buffers=False),
        meta={"kind": "oskt", "spec": spec, "parent": "", "clustering": {"rows": "published"}},
    )


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    checkpoints = sorted(folder.glob("*.pth"))
    if not (folder / "gene_matcher.json").is_file() or len(checkpoints) != 1:
        raise ValueError(
            f"load_published_chain: folder must hold gene_matcher.json and one .pth file, got "
            f"{sorted(p.name for p in folder.glob('*')) if folder.is_dir() else 'no folder'} in "
            f"{folder}. Give the folder that the published refinement wrote."
        )
    try:
        matcher = json.loads((folder / "gene_matcher.json").read_text())
        state = torch.load(checkpoints[0], map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"load_published_chain: files in {folder} must be whole, got {type(error).__name__}: "
            f"{error}. Copy them again; files that hold more than tensors are refused."
        ) from error
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if not all(isinstance(v, list) for v in matcher.values()) or "base.conv1.weight" not in state:
        raise ValueError(
            f"load_published_chain: {folder} must hold a CNN chain, got another kind "
            f"({', '.join(list(matcher)[:4])}). Transformer chains are not read yet."
        )
    return matcher, state


def _resnet_spec(folder: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
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


def _clusterings(
    folder: Path, coupling: Coupling, matcher: Mapping[str, list[int]]
) -> dict[str, Clustering]:
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


def _first_members(clusterings: Mapping[str, Clustering], group: str) -> Tensor:
    """The chain's statistics lie at teacher width, equal within a cluster: one of each."""
    return torch.from_numpy(np.array([members[0] for members in clusterings[group].members()]))


def _head(
    state: Mapping[str, Tensor],
    chain_state: dict[str, Tensor],
    clusterings: Mapping[str, Clustering],
    coupling: Coupling,
) -> None:
    """The chain's own head lies at chain width: spread it over the teacher's columns."""
    if "GeneNet_classifier.weight" not in state:
        return
    clustering = clusterings[coupling.layouts["bottleneck.weight"].rows[0][0]]
    labels = torch.from_numpy(clustering.labels)
    share = torch.from_numpy(np.bincount(clustering.labels)).float()[labels]
    chain_state["classifier.weight"] = state["GeneNet_classifier.weight"][:, labels] / share
    for name in ("weight", "bias"):
        if f"GeneNet_bottleneck.{name}" in state:
            chain_state[f"bottleneck.{name}"] = state[f"GeneNet_bottleneck.{name}"][labels]
    for name in ("running_mean", "running_var"):
        if f"GeneNet_bottleneck.{name}" in state:
            chain_state[f"bottleneck.{name}"] = state[f"GeneNet_bottleneck.{name}"]
