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
from oskt.widths import Clustering

FORMAT = "oskt-chain/1"
SECTIONS = ("weights", "vectors", "statistics")


def write(
    path: str | Path,
    sections: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    clusterings: Mapping[str, Clustering],
    header: Mapping[str, Any],
) -> None:
    """Flat sections, plain tensors, and labels as the smallest integers that hold them."""
    tensors = {
        **sections,
        **{f"plain.{name}": tensor for name, tensor in plain.items()},
        **{f"labels.{name}": _small(c.labels) for name, c in clusterings.items()},
    }
    blocks = {name: clustering.blocks for name, clustering in clusterings.items()}
    write_tensors(path, FORMAT, tensors, {**header, "blocks": blocks})


def read(
    path: str | Path,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Clustering], dict[str, Any]]:
    """(sections, plain tensors, clusterings, header) of a file of `write`."""
    tensors, header = read_tensors(path, FORMAT)
    sections = {name: tensors[name] for name in SECTIONS}
    plain = {n.removeprefix("plain."): t for n, t in tensors.items() if n.startswith("plain.")}
    clusterings = {
        name: Clustering(tensors[f"labels.{name}"].numpy().astype(np.int64), blocks)
        for name, blocks in header["blocks"].items()
    }
    return sections, plain, clusterings, header


def training_only(coupling: Coupling) -> set[str]:
    """Weights that the evaluation form never reads: the classifier of a ReID model."""
    weights = expansion.layouts_of(coupling, ("weight",))
    return {layout.name for layout in weights if layout.name not in coupling.positions}


def _small(labels: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(labels.astype(np.uint8 if labels.max() < 256 else np.int16))


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
