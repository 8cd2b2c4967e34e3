"""Students as modules: a module's structure at other widths, and numbers put into it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from oskt.coupling import Coupling
from oskt.tracing import on_meta


def narrow(template: nn.Module, coupling: Coupling, widths: Mapping[str, int]) -> nn.Module:
    """The template's structure with every tensor and layer attribute at the given widths.

    Args:
        template: a module that the coupling describes; its numbers are not read.
        coupling: the channel groups of the template.
        widths: group -> width; groups that are not named keep the template's width.

    Returns:
        A module on the meta device, in the template's training mode.
    """
    student = on_meta(template, buffers=False)
    for name, layout in coupling.layouts.items():
        if layout.role == "plain":
            continue
        owner, leaf = _owner(student, name)
        old = getattr(owner, leaf)
        new = torch.empty(coupling.shape(name, widths), dtype=old.dtype, device="meta")
        if isinstance(old, nn.Parameter):
            setattr(owner, leaf, nn.Parameter(new, old.requires_grad))
        else:
            owner.register_buffer(leaf, new, leaf not in owner._non_persistent_buffers_set)
        if layout.role == "weight":
            _resize_layer(owner, tuple(old.shape), tuple(new.shape), layout.groups)
        elif hasattr(owner, "num_features"):
            owner.num_features = new.shape[0]
    return student


def fill(
    student: nn.Module, tensors: Mapping[str, Tensor], absent: Iterable[str] = ()
) -> nn.Module:
    """Put copies of tensors into a module on the meta device.

    `absent` ones (a classifier that the chain's file left out) are drawn from N(0, 0.001).
    """
    device = next((t.device for t in tensors.values()), torch.device("cpu"))
    student.load_state_dict(
        {name: tensor.detach().clone() for name, tensor in tensors.items()},
        strict=False,
        assign=True,
    )
    for name in absent:
        owner, leaf = _owner(student, name)
        values = torch.empty(getattr(owner, leaf).shape, device=device).normal_(std=0.001)
        setattr(owner, leaf, nn.Parameter(values))
    return student


def replace_classifier(model: nn.Module, num_classes: int) -> None:
    """Give a re-identification model a fresh classifier, N(0, 0.001), for another set of ids."""
    old = model.classifier
    fresh = nn.Linear(old.in_features, num_classes, bias=False, device=old.weight.device)
    nn.init.normal_(fresh.weight, std=0.001)
    model.classifier = fresh
    if isinstance(getattr(model, "spec", None), dict):
        model.spec = {**model.spec, "num_classes": num_classes}


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def _resize_layer(
    layer: nn.Module, old: tuple[int, ...], new: tuple[int, ...], groups: int
) -> None:
    if isinstance(layer, nn.modules.conv._ConvNd):
        if layer.groups > 1 and groups == 1:  # depthwise: groups follow the channels
            layer.groups = layer.groups * new[0] // old[0]
        layer.out_channels, layer.in_channels = new[0], new[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = new
