"""What a module does to channels, read from one forward pass on the meta device.

Every operator of the pass is seen once. Each tensor axis carries either None (batch, space: no
channel identity) or runs of atoms; operators tie, join, cut and pass on atoms by the rules of
layers.py (what mixes channels) and shapes.py (what moves them). A rule exists only where it is
exact; everything else freezes the axes that it touches, with the operator's name as the reason. A
frozen axis is always safe: it keeps the teacher's width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from oskt.tracing import layers, shapes
from oskt.tracing.axes import freeze, settle
from oskt.tracing.sight import COLUMN, ROW, STATISTIC, VECTOR, Sight, Trace

__all__ = ["COLUMN", "ROW", "STATISTIC", "VECTOR", "Trace", "on_meta", "run_passes"]

aten = torch.ops.aten

_NORMS = [
    aten.native_batch_norm,
    aten.cudnn_batch_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
    aten._batch_norm_with_update,
]
RULES: dict[Any, Any] = {
    aten.convolution: layers.convolution,
    **dict.fromkeys([aten.mm, aten.addmm], layers.matrix_product),
    aten.bmm: layers.activations,
    **dict.fromkeys(_NORMS, layers.batch_norm),
    aten.native_layer_norm: layers.layer_norm,
    aten._fused_rms_norm: layers.layer_norm,
    aten.native_group_norm: layers.group_norm,
    **dict.fromkeys([aten._softmax, aten._log_softmax], layers.softmax),
    **dict.fromkeys(
        [aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d,
         aten.adaptive_max_pool2d, aten.native_dropout, aten.upsample_nearest2d,
         aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten.constant_pad_nd],
        shapes.same_axes,
    ),
    **dict.fromkeys([aten.roll, aten.flip], shapes.along),
    **dict.fromkeys(
        [aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full, aten.empty_like,
         aten.zeros_like, aten.ones_like],
        shapes.create,
    ),
    **dict.fromkeys([aten.mean, aten.sum, aten.amax], shapes.reduce),
    **dict.fromkeys([aten.t, aten.transpose, aten.permute], shapes.permute),
    **dict.fromkeys([aten.view, aten._unsafe_view, aten.reshape], shapes.view),
    aten.unsqueeze: shapes.unsqueeze,
    aten.squeeze: shapes.squeeze,
    aten.expand: shapes.expand,
    aten.cat: shapes.cat,
    aten.stack: shapes.stack,
    aten.select: shapes.select,
    aten.unbind: shapes.unbind,
    aten.slice: shapes.slice_,
    **dict.fromkeys([aten.split, aten.split_with_sizes, aten.chunk], shapes.split),
    **dict.fromkeys([aten.embedding, aten.index, aten.index_select], shapes.index),
    aten.pixel_shuffle: shapes.pixel_shuffle,
    aten.pixel_unshuffle: shapes.pixel_unshuffle,
}  # fmt: skip
_POINTWISE = {aten.clone, aten.detach, aten.alias, aten._to_copy, aten.lift_fresh, aten.copy_}

# Functions whose own operators would hide what they do: their results are seen as a whole.
_FUNCTIONS: dict[Any, Any] = {
    F.scaled_dot_product_attention: layers.attention,
    F.instance_norm: layers.instance_norm,
    **dict.fromkeys([torch.matmul, Tensor.matmul, Tensor.__matmul__], layers.activations),
}


class _Operators(TorchDispatchMode):
    """Every aten operator: its rule, or pointwise, or opaque."""

    def __init__(self, sight: Sight) -> None:
        super().__init__()
        self.sight, self.quiet = sight, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.quiet:
            return out
        op, sight = func.overloadpacket, self.sight
        name, rule = str(op), RULES.get(op)
        inputs = [t for t in _flatten((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in _flatten(out) if isinstance(t, Tensor)]
        if rule is not None:
            rule(sight, name, args, kwargs, out)
        elif torch.Tag.pointwise in func.tags or op in _POINTWISE:
            shapes.pointwise(sight, name, inputs, outputs[0])
        elif inputs:
            sight.opaque(name, inputs, outputs)
        marks = [sight.unnormed[id(t)] for t in inputs if id(t) in sight.unnormed]
        normed = op in _NORMS or rule in (layers.layer_norm, layers.group_norm)
        for tensor in outputs:
            mark = sight.look(tensor).writer or (marks[0] if marks and not normed else None)
            if mark is not None:
                sight.unnormed[id(tensor)] = mark
            else:
                sight.unnormed.pop(id(tensor), None)
        return out


class _Functions(TorchFunctionMode):
    """The functions of _FUNCTIONS on activations, before they fall apart into operators."""

    def __init__(self, operators: _Operators) -> None:
        super().__init__()
        self.operators = operators

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule, sight = _FUNCTIONS.get(func), self.operators.sight
        inputs = [t for t in args if isinstance(t, Tensor)]
        if rule is None or (
            rule is layers.activations
            and (min(t.dim() for t in inputs) < 3 or any(sight.look(t).parameter for t in inputs))
        ):
            return func(*args, **kwargs)
        self.operators.quiet = True
        try:
            out = func(*args, **kwargs)
            rule(sight, func.__name__, args, kwargs, out)
        finally:
            self.operators.quiet = False
        return out


def _flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _flatten(part)
    else:
        yield value


@contextmanager
def _mode_of(module: nn.Module, training: bool) -> Iterator[None]:
    before = {m: m.training for m in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for m, was in before.items():
            m.training = was


def on_meta(module: nn.Module, *, buffers: bool = True) -> nn.Module:
    """A copy of the module's structure without its numbers (buffers keep theirs on request)."""
    memo: dict[int, Tensor] = {
        id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()
    }
    if buffers:
        memo.update((id(b), b.to("meta")) for b in module.buffers())
    return copy.deepcopy(module, memo)


def _batch_of_two(tensor: Tensor) -> Tensor:
    """A batch of one as two: batch norms refuse a single value per channel in training."""
    single = tensor.dim() > 0 and tensor.shape[0] == 1
    return tensor.expand(2, *tensor.shape[1:]).contiguous() if single else tensor


def run_passes(
    module: nn.Module, example_inputs: Sequence[Tensor], *, free_outputs: bool = False
) -> Trace:
    """Trace the evaluation and the training form of a module into one Trace.

    MACs (`positions`, `products`) are those of the evaluation form. Outputs that a linear or
    convolution writes with no norm after it (logits) keep their width unless `free_outputs`.
    """
    meta = on_meta(module)
    inputs = [_batch_of_two(t.to("meta")) if isinstance(t, Tensor) else t for t in example_inputs]
    named = {id(t): (name, t) for name, t in (*meta.named_parameters(), *meta.named_buffers())}
    batch = next((t.shape[0] for t in inputs if isinstance(t, Tensor) and t.dim()), 1)
    trace = Trace()
    for training in (True, False):
        trace.positions.clear()
        trace.products.clear()
        sight = Sight(trace, named, batch)
        operators = _Operators(sight)
        try:
            with _mode_of(meta, training), torch.no_grad(), operators, _Functions(operators):
                out = meta(*inputs)
        except Exception as error:
            raise ValueError(
                f"coupling: module must run on meta tensors, got {type(error).__name__}: {error}. "
                "Remove branches on tensor values, or trace the submodule that has none."
            ) from error
        settle(sight.splits)
        for tensor in _flatten(out):
            if isinstance(tensor, Tensor):
                seen = sight.look(tensor)
                trace.outputs.append(seen.axes)
                writer = sight.unnormed.get(id(tensor))
                if writer is not None and not free_outputs:
                    for axis in seen.axes:
                        freeze(axis, f"{writer} writes a model output")
    return trace
