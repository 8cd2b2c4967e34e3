"""What a deployment file says about itself, inside and in the JSON file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from oskt import models, students, widths
from oskt.coupling.grouping import trace_coupling
from oskt.files.checkpoint import provenance


def describe(model: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    """What is known about a network: its name, size, widths, costs and maker.

    `schema_version`, `model_name`, `img_size` and `preprocess` are the keys that BoxMOT's ReID
    backends read.
    """
    coupling = trace_coupling(model, torch.zeros(2, 3, *size))
    return {
        "schema_version": 1,
        "model_name": name_of(model),
        "img_size": list(size),
        "preprocess": "resize",
        "metric": "cosine",
        "parameters": widths.parameters(coupling, {}, models.head_of(model)),
        "macs": widths.macs(coupling, {}),
        "widths": students.widths_of(model),
        **provenance(),
    }


def name_of(model: nn.Module) -> str:
    """A name as trackers have them: architecture, and width over the standard network's.

    Example:
        >>> from oskt.models.resnet import ResNet
        >>> name_of(ResNet(50, in_planes=16))
        'resnet50_x0_25'
    """
    spec = getattr(model, "spec", None) or {}
    if "family" not in spec:
        return type(model).__name__.lower()
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    if spec["family"] == "vit":
        return f"vit_{model.get_parameter('norm.weight').shape[0]}"
    share = f"{stem.out_channels / 64:.3g}"  # 64: the stem of standard ResNet and OSNet
    digits = (share if "." in share else f"{share}.0").replace(".", "_")
    return f"{spec['family']}{spec.get('depth', '')}_x{digits}"


def path_of(path: Path) -> Path:
    """The sidecar of a deployment file, under the name that BoxMOT looks for."""
    return path.with_name(f"{path.name}.metadata.json")
