"""The chain file: safetensors with a JSON header, written whole or not at all, never unpickled."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from oskt import expansion, models
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
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    if dtype is not None:
        for name in ("weights", "vectors"):
            tensors[name] = tensors[name].to(dtype)
    header = {
        "format": FORMAT,
        "coupling": chain.coupling.to_json(),
        "absent": sorted(absent),
        "meta": chain.meta,
        "digest": _digest(tensors),
    }
    data = to_safetensors(tensors, {"oskt": json.dumps(header, separators=(",", ":"))})
    write_whole(path, data)


def load(path: Path, template: nn.Module | None) -> WeightChain:
    """See WeightChain.load."""
    from oskt.chain import WeightChain

    if not path.is_file():
        raise ValueError(
            f"WeightChain.load: path must be a chain file, got {path}, which does not exist. "
            "Make one with `oskt refine`, or convert a published one with `oskt import`."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"WeightChain.load: {path} must be a whole safetensors file, got a truncated or foreign "
            f"one ({error}). Copy or make it again."
        ) from error
    header = json.loads(metadata.get("oskt", "{}"))
    if header.get("format") != FORMAT:
        raise ValueError(
            f"WeightChain.load: {path} must have format {FORMAT}, got {header.get('format')!r}. "
            "Give a chain file, not a model checkpoint."
        )
    if header["digest"] != _digest(tensors):
        raise ValueError(
            f"WeightChain.load: {path} must match the digest in its header, got other numbers. "
            "The file was edited or damaged: copy or make it again."
        )
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


def write_whole(path: Path, data: bytes) -> None:
    """Write beside the target, flush to disk, rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            f"save: {path} must be writable with {len(data) / 1e6:.1f} MB free, got '{error}'. "
            "Free space or choose another folder; an older file there is untouched."
        ) from error


def _without(chain: WeightChain, absent: set[str]) -> Tensor:
    layouts = expansion.layouts_of(chain.coupling, ("weight",), chain.absent)
    shapes = {t.name: chain.source_shape(t) for t in layouts}
    parts = expansion.split(chain.weights, shapes)
    return torch.cat([part.flatten() for name, part in parts.items() if name not in absent])


def _small(labels: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(labels.astype(np.uint8 if labels.max() < 256 else np.int16))


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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

