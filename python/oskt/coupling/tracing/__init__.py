"""What a module does to channels, read from one forward pass on the meta device.

Every operator of the pass is seen once. Each tensor axis carries either None (batch, space: no
channel identity) or runs of atoms; operators tie, join, cut and pass on atoms by the rules of
layers.py (what mixes channels), shapes.py (what moves them) and views.py. A rule exists only where
it is exact; everything else freezes the axes that it touches, with the operator's name as the
reason. A frozen axis is always safe: it keeps the teacher's width.
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

from oskt.coupling.tracing import layers, shapes, views
from oskt.coupling.tracing.axes import freeze, settle
from oskt.coupling.tracing.sight import COLUMN, ROW, STATISTIC, VECTOR, Sight, Trace

__all__ = ["COLUMN", "ROW", "STATISTIC", "VECTOR", "Trace", "flatten", "on_meta", "run_passes"]

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
    **dict.fromkeys([aten._softmax, aten._safe_softmax, aten._log_softmax], layers.softmax),
    **dict.fromkeys(
        [aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d,
         aten.adaptive_max_pool2d, aten.native_dropout, aten.upsample_nearest2d,
         aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten.constant_pad_nd,
         aten.fill_, aten.zero_],
        shapes.same_axes,
    ),
    **dict.fromkeys([aten.roll, aten.flip], shapes.along),
    aten.as_strided_: shapes.restride,
    **dict.fromkeys(
        [aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full, aten.empty_like,
         aten.zeros_like, aten.ones_like],
        shapes.create,
    ),
    **dict.fromkeys(
        [aten.bernoulli, aten.bernoulli_, aten.rand_like, aten.randn_like, aten.uniform_,
         aten.normal_],
        shapes.noise,
    ),
    **dict.fromkeys([aten.mean, aten.sum, aten.amax], shapes.reduce),
    **dict.fromkeys([aten.t, aten.transpose, aten.permute], shapes.permute),
    **dict.fromkeys([aten.view, aten._unsafe_view, aten.reshape], views.view),
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
    aten.pixel_shuffle: views.pixel_shuffle,
    aten.pixel_unshuffle: views.pixel_unshuffle,
}  # fmt: skip
# Entry by entry, though torch does not tag them so.
_POINTWISE = {
    aten.clone, aten.detach, aten.alias, aten._to_copy, aten.lift_fresh, aten.copy_, aten.hardswish,
    aten.hardswish_, aten.gelu_, aten.relu6_, aten.threshold_, aten._prelu_kernel, aten.masked_fill,
    aten.masked_fill_,
}  # fmt: skip

_VIEWS = (Tensor.view, Tensor.reshape, torch.reshape, Tensor.expand)
# Functions whose own operators would hide what they do: their results are seen as a whole.
_FUNCTIONS: dict[Any, Any] = {
    F.scaled_dot_product_attention: layers.attention,
    F.instance_norm: layers.instance_norm,
    F.rms_norm: layers.layer_norm,
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
        inputs = [t for t in flatten((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in flatten(out) if isinstance(t, Tensor)]
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


class _Named(int):
    """A whole number that a module keeps, such as head_dim: which one, when a view asks for it."""

    name: tuple[str, str]  # path of the module, attribute


def _with_named_numbers(module: nn.Module) -> nn.Module:
    for path, owner in module.named_modules():
        for attribute, value in vars(owner).items():
            if type(value) is int and value > 1:
                named = _Named(value)
                named.name = (path, attribute)
                vars(owner)[attribute] = named
    return module


class _Functions(TorchFunctionMode):
    """Functions as the module calls them: those of _FUNCTIONS on activations, before they fall
    apart into operators, and views whose sizes are numbers that a module keeps."""

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
            out = func(*args, **kwargs)
            if func in _VIEWS and isinstance(out, Tensor):
                self.note_sizes(args[1:], out)
            return out
        self.operators.quiet = True
        try:
            out = func(*args, **kwargs)
            rule(sight, func.__name__, args, kwargs, out)
        finally:
            self.operators.quiet = False
        return out

    def note_sizes(self, sizes: Sequence[Any], out: Tensor) -> None:
        """Which axis a module's own number was the length of."""
        sight = self.operators.sight
        for size, axis in zip(flatten(sizes), sight.look(out).axes):
            if isinstance(size, _Named) and axis is not None:
                sight.trace.numbers[size.name] = axis


def flatten(value: Any) -> Iterator[Any]:
    """What lies in tuples, lists and dicts, and in those in them, in order."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from flatten(part)
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
    meta = _with_named_numbers(on_meta(module))
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
        for tensor in flatten(out):
            if isinstance(tensor, Tensor):
                seen = sight.look(tensor)
                trace.outputs.append(seen.axes)
                writer = sight.unnormed.get(id(tensor))
                if writer is not None and not free_outputs:
                    for axis in seen.axes:
                        freeze(axis, f"{writer} writes a model output")
        if not trace.outputs:  # nothing would tell a wrong coupling from a right one
            raise ValueError(
                "coupling: module must return tensors, alone or in tuples, lists and dicts, got "
                f"{type(out).__name__}. Wrap it in a module that does."
            )
    return trace
