"""The chain file: safetensors with a JSON header, written whole or not at all, never unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oskt import expansion
from oskt.checkpoint import read_tensors, write_tensors
from oskt.coupling import Coupling
from oskt.expansion import Partitions
from oskt.merge_tree import MergeTree
from oskt.widths import Clustering

FORMAT = "oskt-chain/1"
SECTIONS = ("weights", "vectors", "statistics")


def write(
    path: str | Path,
    sections: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    partitions: Partitions,
    header: Mapping[str, Any],
) -> None:
    """Flat sections, plain tensors, and partitions as the smallest integers that hold them."""
    tensors = {**sections, **{f"plain.{name}": tensor for name, tensor in plain.items()}}
    blocks, narrowest, measured = {}, {}, {}
    for name, partition in partitions.items():
        blocks[name] = partition.blocks
        if isinstance(partition, MergeTree):
            narrowest[name], measured[name] = partition.narrowest, partition.measured
        for field in _fields(name in narrowest):
            tensors[f"{field}.{name}"] = _small(getattr(partition, field))
    header = {**header, "blocks": blocks, "narrowest": narrowest, "measured": measured}
    write_tensors(path, FORMAT, tensors, header)


def read(
    path: str | Path,
) -> tuple[dict[str, Tensor], dict[str, Tensor], Partitions, dict[str, Any]]:
    """(sections, plain tensors, partitions, header) of a file of `write`."""
    tensors, header = read_tensors(path, FORMAT)
    sections = {name: tensors[name] for name in SECTIONS}
    plain = {n.removeprefix("plain."): t for n, t in tensors.items() if n.startswith("plain.")}
    narrowest = header.get("narrowest", {})  # files from before nested chains have none
    partitions: dict[str, Clustering | MergeTree] = {}
    for name, blocks in header["blocks"].items():
        arrays = [
            tensors[f"{field}.{name}"].numpy().astype(np.int64)
            for field in _fields(name in narrowest)
        ]
        partitions[name] = (
            MergeTree(*arrays, narrowest[name], blocks, tuple(header["measured"][name]))
            if name in narrowest
            else Clustering(*arrays, blocks)
        )
    return sections, plain, partitions, header


def _fields(nested: bool) -> tuple[str, ...]:
    return ("order", "parent", "sizes") if nested else ("labels",)


def training_only(coupling: Coupling) -> set[str]:
    """Weights that the evaluation form never reads: the classifier of a ReID model."""
    weights = expansion.layouts_of(coupling, ("weight",))
    return {layout.name for layout in weights if layout.name not in coupling.positions}


def _small(values: np.ndarray[Any, Any]) -> Tensor:
    small = 0 <= values.min() and values.max() < 256
    return torch.from_numpy(values.astype(np.uint8 if small else np.int16))


def check_template(path: str | Path, template: nn.Module, coupling: Coupling) -> None:
    """The template must have the tensors that the chain was made from, in their shapes."""
    shapes = {name: tuple(t.shape) for name, t in template.state_dict().items()}
    wanted = {name: layout.shape for name, layout in coupling.layouts.items()}
    wrong = [n for n in wanted if shapes.get(n) != wanted[n]] + [
        n for n in shapes if n not in wanted
    ]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"WeightChain.load: template must have the tensors of the chain in {path}, got "
            f"{name} {shapes.get(name)} for {wanted.get(name)} ({len(wrong)} differ). "
            "Give a module of the architecture that the chain was made from."
        )
