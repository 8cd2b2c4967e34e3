"""The networks that oskt trains; a model's `spec` builds it again."""

from __future__ import annotations

from typing import Any

from torch import nn

from oskt.models.resnet import ResNet as ResNet


def build(spec: dict[str, Any]) -> nn.Module:
    """The freshly initialised teacher-shaped network that a spec describes."""
    options = dict(spec)
    family = options.pop("family", None)
    if family != "resnet":
        raise ValueError(
            f"build: spec['family'] must be 'resnet', got {family!r}. "
            "Update oskt, or pass the module yourself as `template`."
        )
    return ResNet(**options)
