"""The chain file: safetensors with a JSON header, written whole or not at all, never unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from oskt import expansion, models
from oskt.checkpoint import read_tensors, write_tensors
from oskt.coupling import Coupling
from oskt.tracing import on_meta
from oskt.widths import Clustering

if TYPE_CHECKING:
    from oskt.chain import WeightChain

FORMAT = "oskt-chain/1"
SECTIONS = ("weights", "vectors", "statistics")


def save(chain: WeightChain, path: Path, dtype: torch.dtype | None, classifier: bool) -> None:
    """See WeightChain.save."""
    absent = set(chain.absent)
    if not classifier:
        absent |= training_only(chain.coupling)
    tensors = {
        "weights": _without(chain, absent),
        "vectors": chain.vectors,
        "statistics": chain.statistics,
        **{f"plain.{name}": tensor for name, tensor in chain.plain.items()},
        **{f"labels.{g}": _small(c.labels) for g, c in chain.clusterings.items()},
    }
    if dtype is not None:
        for name in ("weights", "vectors"):
            tensors[name] = tensors[name].to(dtype)
    meta = {
        "coupling": chain.coupling.to_json(),
        "absent": sorted(absent),
        "meta": chain.meta,
    }
    write_tensors(path, FORMAT, tensors, meta)


def load(path: Path, template: nn.Module | None) -> WeightChain:
    """See WeightChain.load."""
    from oskt.chain import WeightChain

    tensors, header = read_tensors(path, FORMAT)
    coupling = Coupling.from_json(header["coupling"])
    clusterings = {
        name.removeprefix("labels."): Clustering(
            tensor.numpy().astype(np.int64), coupling.groups[name.removeprefix("labels.")].blocks
        )
        for name, tensor in tensors.items()
        if name.startswith("labels.")
    }
    plain = {n.removeprefix("plain."): t for n, t in tensors.items() if n.startswith("plain.")}
    spec = header["meta"].get("spec")
    if template is None and spec is not None:
        with torch.device("meta"):
            template = models.build(spec)
    if template is not None:
        _check_template(path, template, coupling)
        template = on_meta(template, buffers=False)
    sections = (tensors[name].to(tensors["statistics"].dtype) for name in SECTIONS)
    return WeightChain(
        coupling,
        clusterings,
        *sections,
        plain,
        absent=header["absent"],
        template=template,
        meta=header["meta"],
    )


def training_only(coupling: Coupling) -> set[str]:
    """Weights that the evaluation form never reads: the classifier of a ReID model."""
    weights = expansion.layouts_of(coupling, ("weight",))
    return {layout.name for layout in weights if layout.name not in coupling.positions}


def _without(chain: WeightChain, absent: set[str]) -> Tensor:
    layouts = expansion.layouts_of(chain.coupling, ("weight",), chain.absent)
    shapes = {t.name: chain.source_shape(t) for t in layouts}
    parts = expansion.split(chain.weights, shapes)
    return torch.cat([part.flatten() for name, part in parts.items() if name not in absent])


def _small(labels: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(labels.astype(np.uint8 if labels.max() < 256 else np.int16))


def _check_template(path: Path, template: nn.Module, coupling: Coupling) -> None:
    """The template must have the tensors that the chain was made from, in their shapes."""
    shapes = {name: tuple(t.shape) for name, t in template.state_dict().items()}
    wanted = {name: layout.shape for name, layout in coupling.layouts.items()}
    wrong = [n for n in wanted if shapes.get(n) != wanted[n]] + [n for n in shapes if n not in wanted]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"WeightChain.load: template must have the tensors of the chain in {path}, got "
            f"{name} {shapes.get(name)} for {wanted.get(name)} ({len(wrong)} differ). "
            "Give a module of the architecture that the chain was made from."
        )

