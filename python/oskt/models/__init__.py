"""The networks that oskt trains; a model's `spec` builds it again."""

from __future__ import annotations

from typing import Any

from torch import nn

from oskt.models.osnet import OSNet as OSNet
from oskt.models.resnet import ResNet as ResNet
from oskt.models.vit import VisionTransformer as VisionTransformer

_FAMILIES: dict[str, type[nn.Module]] = {
    "resnet": ResNet,
    "osnet": OSNet,
    "vit": VisionTransformer,
}


def build(spec: dict[str, Any]) -> nn.Module:
    """The freshly initialised teacher-shaped network that a spec describes.

    Raises:
        ValueError: a family or an option that this version does not know.
    """
    options = dict(spec)
    family = options.pop("family", None)
    if family not in _FAMILIES:
        raise ValueError(
            f"build: spec['family'] must be one of {', '.join(_FAMILIES)}, got {family!r}. "
            "Update oskt, or pass the module yourself as `template`."
        )
    try:
        return _FAMILIES[family](**options)
    except TypeError as error:
        raise ValueError(
            f"build: spec must have options of {_FAMILIES[family].__name__}, got {error}. "
            "Another version of oskt wrote it: update oskt."
        ) from None


def image_size(model: nn.Module) -> tuple[int, int]:
    """(height, width) of images to trace a network with: its own, where it takes one alone."""
    height, width = getattr(model, "spec", {}).get("image", (64, 32))
    return height, width


def head_of(model: nn.Module) -> tuple[str, ...]:
    """Modules that sizes of the backbone leave out, as a network of ours states them; a foreign
    network may well have a layer of that name."""
    head = getattr(model, "head", ())
    return head if isinstance(head, tuple) else ()
