"""Students as modules: a module's structure at other widths, and numbers put into it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oskt import models, norms
from oskt.coupling import Coupling
from oskt.coupling.grouping import trace_coupling
from oskt.coupling.tracing import on_meta
from oskt.files.checkpoint import load_state


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
    resize(student, coupling, widths)
    return student


def resize(module: nn.Module, coupling: Coupling, widths: Mapping[str, int]) -> None:
    """Set the numbers of channels that layers keep beside their tensors."""
    for name, layout in coupling.layouts.items():
        if layout.role == "plain":
            continue
        layer = _owner(module, name)[0]
        rows, columns = (*coupling.shape(name, widths), 1)[:2]
        if layout.role != "weight":
            width = coupling.shape(name, widths)[layout.dim]
            if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
                layer.normalized_shape = (width,)
            elif isinstance(layer, nn.GroupNorm):
                layer.num_channels = width
            elif isinstance(layer, nn.Embedding):
                layer.embedding_dim = width
            elif isinstance(layer, nn.modules.batchnorm._NormBase):
                layer.num_features = width
        elif isinstance(layer, nn.modules.conv._ConvNd):
            if layer.groups > 1 and layout.groups == 1:  # depthwise: groups follow the channels
                layer.groups = layer.groups * rows // layer.out_channels
            layer.out_channels, layer.in_channels = rows, columns * layer.groups
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = rows, columns
        elif isinstance(layer, nn.MultiheadAttention):
            layer.embed_dim = layer.kdim = layer.vdim = columns
            layer.head_dim = columns // layer.num_heads
    for path, attribute, axis, parts in coupling.numbers:
        setattr(module.get_submodule(path), attribute, coupling.axis_size(axis, widths) // parts)


def fill(
    student: nn.Module, tensors: Mapping[str, Tensor], absent: Iterable[str] = ()
) -> nn.Module:
    """Put copies of tensors into a module on the meta device.

    `absent` ones (a classifier that the chain's file left out) are drawn from N(0, 0.001).
    """
    like = next(t for t in tensors.values() if t.is_floating_point())
    norms.weigh(student, tensors).load_state_dict(
        {name: tensor.detach().clone() for name, tensor in tensors.items()},
        strict=False,
        assign=True,
    )
    for name in absent:
        owner, leaf = _owner(student, name)
        values = like.new_empty(getattr(owner, leaf).shape).normal_(std=0.001)
        setattr(owner, leaf, nn.Parameter(values))
    restore_frozen(student)
    return student


def replace_classifier(model: nn.Module, num_classes: int) -> None:
    """Give a re-identification model a fresh classifier, N(0, 0.001), for another set of ids."""
    bottleneck = model.get_submodule("bottleneck")
    assert isinstance(bottleneck, nn.BatchNorm1d)
    features = getattr(model, "feature_dim", bottleneck.num_features)
    like = {"device": bottleneck.weight.device, "dtype": bottleneck.weight.dtype}
    fresh = nn.Linear(features, num_classes, bias=False, **like)
    nn.init.normal_(fresh.weight, std=0.001)
    model.classifier = fresh
    spec = getattr(model, "spec", None)
    if isinstance(spec, dict):
        spec["num_classes"] = num_classes


def num_classes(model: nn.Module) -> int:
    """Identities that a re-identification model's classifier tells apart; 0 without one."""
    classifier = getattr(model, "classifier", None)
    return classifier.out_features if isinstance(classifier, nn.Linear) else 0


def scale_features(model: nn.Module, scale: Tensor) -> None:
    """Multiply the channels of a network's embedding by scale (F,); logits stay as they are.

    Raises:
        ValueError: a network that does not say how, by a method `scale_features`.
    """
    scaled = getattr(model, "scale_features", None)
    if scaled is None:
        raise ValueError(
            f"WeightChain.student: norm 'cosine' must be of a network with scale_features, got "
            f"{type(model).__name__}. Take norm 'exact' and scale the features yourself."
        )
    scaled(scale.to(next(model.parameters())))


def set_widths(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Note on a student how wide it is; model files store it."""
    model.__dict__["widths"] = dict(widths)


def widths_of(model: nn.Module) -> dict[str, int]:
    """group -> width of a student; empty for a module that is none."""
    return dict(model.__dict__.get("widths", {}))


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def load_model(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network of a model file (teacher or student) and load its numbers.

    Returns:
        The module in evaluation mode (with `widths` if it is a student), and the file's meta.

    Raises:
        ValueError: no model file, one of a network that oskt.models does not build, or of other
            tensors than that network's.
    """
    state, meta = load_state(path)
    spec = meta.get("spec")
    if spec is None:
        raise ValueError(
            f"load_model: {path} must name the network that it holds, got no spec. "
            "Load its tensors with oskt.files.checkpoint.load_state into a module of your own."
        )
    with torch.device("meta"):
        model = models.build(spec)
    if meta.get("widths"):
        images = torch.zeros(2, 3, *models.image_size(model))
        model = narrow(model, trace_coupling(model, images), meta["widths"])
        set_widths(model, meta["widths"])
    try:
        norms.weigh(model, state).load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"load_model: {path} must hold the tensors of its network, got "
            f"{str(error).splitlines()[-1].strip()} Another program or version wrote it: make it "
            "again."
        ) from None
    restore_frozen(model)
    return model.eval(), meta


def restore_frozen(model: nn.Module) -> None:
    """BNNeck's bias is not trained; loading with assign=True must not make it so."""
    for name in getattr(model, "untrained", ()):
        model.get_parameter(name).requires_grad_(False)


def hollow(module: nn.Module, *, statistics: bool) -> nn.Module:
    """A structure whose parameters functional_call supplies, at any width (see `resize`).

    Its own parameters become empty, and without `statistics` its batch norms keep none.
    """
    for owner in module.modules():
        for leaf in [name for name, _ in owner.named_parameters(recurse=False)]:
            setattr(owner, leaf, nn.Parameter(torch.empty(0), requires_grad=False))
        if isinstance(owner, nn.modules.batchnorm._BatchNorm) and not statistics:
            owner.running_mean = owner.running_var = owner.num_batches_tracked = None
            owner.track_running_stats = False
    return module


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace a network's running statistics by the plain average over unlabelled batches.

    An expanded student's norms were averaged, its statistics were not measured on it; a few
    batches repair that at the cost of their forwards.

    Args:
        model: any module with batch norms; changed in place, its mode is kept.
        batches: images (B, 3, H, W), B >= 2, normalised and augmented as in training; taken in the
            model's dtype.

    Returns:
        How many batches were measured; 0 leaves the statistics alone. Norms that the evaluation
        form does not read, such as the BNNecks of a transformer, keep theirs; where it reads none,
        one batch alone is tried.

    Source: slimmable networks (Yu & Huang 2019), post-statistics of batch norm.
    """
    bns = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(m.momentum, {k: b.clone() for k, b in m.named_buffers()}) for m in bns]
    like = next(model.parameters())
    count = 0
    with modes_kept(model):
        try:
            for images in batches:
                if count == 0:
                    model.eval()  # dropout and all else as in use; the norms alone measure
                    for norm in bns:
                        norm.reset_running_stats()
                        norm.momentum = None  # None: cumulative average
                        norm.train()
                words = not images.is_floating_point()  # which stay whole numbers
                model(images.to(like.device if words else like))
                if not any(norm.num_batches_tracked for norm in bns):
                    break
                count += 1
        finally:
            for norm, (momentum, buffers) in zip(bns, kept):
                norm.momentum = momentum
                if not norm.num_batches_tracked:
                    norm.load_state_dict(buffers, strict=False)
    return count


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Whether each of its modules trains is afterwards as before: some may have been frozen."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """What forwards in training mode change, modes and buffers, is afterwards as before."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with modes_kept(model):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])
