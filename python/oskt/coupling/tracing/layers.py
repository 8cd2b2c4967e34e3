"""Rules of operators that mix channels: layers with weights, norms, products of activations."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from oskt.coupling.tracing.axes import (
    Atom,
    Axis,
    Inner,
    Outer,
    Run,
    evenly,
    freeze,
    leaf_runs,
    multiplied,
    splits_of,
    unify,
)
from oskt.coupling.tracing.sight import COLUMN, ROW, STATISTIC, VECTOR, Sight


def convolution(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    x, weight, bias, *_, transposed, _, groups = args
    name = sight.whole_parameter(weight, tuple(range(weight.dim())))
    if name is None or transposed:
        sight.opaque(op, [t for t in (x, weight, bias) if t is not None], [out])
        return
    if groups == 1:
        _contract(sight, name, x, out)
    else:
        _grouped(sight, name, x, out, groups)
    if bias is not None:
        sight.vector(bias, sight.trace.parameters[name].axes[0], VECTOR, name)


def matrix_product(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """x @ w.T with w a parameter (addmm adds the bias first), or a product of activations."""
    bias, x, w = args[:3] if op == "aten.addmm" else (None, *args[:2])
    name = sight.whole_parameter(w, (1, 0))
    if name is not None and not kwargs:
        _contract(sight, name, x, out)
        if bias is not None:
            sight.vector(bias, sight.trace.parameters[name].axes[0], VECTOR, name)
    elif bias is None and not kwargs:
        activations(sight, op, (x, w), {}, out)
    else:
        sight.opaque(op, [t for t in (bias, x, w) if t is not None], [out])


def _contract(sight: Sight, name: str, x: Tensor, out: Tensor) -> None:
    """out channels = rows of parameter `name`, columns tied to the channels of x."""
    layer = name.rpartition(".")[0] or name
    record = sight.trace.parameters[name]
    if record.axes[0] is None:
        fixed = f"{layer} has a single channel" if record.shape[0] == 1 else f"{name} is a table"
        record.axes[0] = (Run(Atom(record.shape[0], fixed), 1),)
    columns, rows = record.axes[1], record.axes[0]
    if record.shape[1] > 1:
        inputs = sight.channel(x, 1, layer)
        if record.roles[1] is None:  # first use: the columns are what the layer reads
            record.axes[1], record.roles[1] = inputs, COLUMN
        elif record.roles[1] == COLUMN and columns is not None:
            unify(inputs, columns, layer)
        else:
            freeze(inputs, f"{name} is used in two ways")
    if record.roles[0] not in (None, ROW):
        freeze(rows, f"{name} is used in two ways")
    record.roles[0] = ROW
    _finish(sight, name, rows, out)


def _finish(sight: Sight, name: str, rows: Axis, out: Tensor) -> None:
    axes: list[Axis] = [None] * out.dim()
    axes[1] = rows
    sight.trace.writers.append((name, rows))
    spatial = out.numel() // max(1, sight.batch * out.shape[1])
    sight.trace.positions[name] = sight.trace.positions.get(name, 0) + spatial
    sight.put(out, axes, None, name)


def _grouped(sight: Sight, name: str, x: Tensor, out: Tensor, groups: int) -> None:
    """Depthwise ties in and out; other groups keep clusters inside blocks on both sides."""
    layer = name.rpartition(".")[0]
    record = sight.trace.parameters[name]
    inputs = sight.channel(x, 1, layer)
    record.roles[0] = ROW
    if record.shape[1] == 1:
        record.axes[0] = multiplied(inputs, record.shape[0] // groups)
    else:
        rows = record.axes[0]
        # The weight's own second axis is one block of the input: it has no atom of its own.
        record.axes[1], record.roles[1], record.groups = inputs, COLUMN, groups
        if not (evenly(inputs, groups) and evenly(rows, groups)):
            freeze(inputs, f"{layer} is grouped over a joined axis")
            freeze(rows, f"{layer} is grouped over a joined axis")
    _finish(sight, name, record.axes[0], out)


def batch_norm(sight: Sight, op: str, args: Any, kwargs: Any, out: Any) -> None:
    x, *vectors = args[:5]
    axis = sight.channel(x, 1, "batch norm")
    names = tuple(
        None if vector is None else sight.vector(vector, axis, role, op)
        for vector, role in zip(vectors, (VECTOR, VECTOR, STATISTIC, STATISTIC))
    )
    source = sight.look(x)
    if source.writer is not None:
        rows = sight.trace.parameters[source.writer].axes[0]
        if leaf_runs(rows) == leaf_runs(axis):  # a view between may have put space among them
            sight.trace.norm_of[source.writer] = names
    sight.put(out[0], source.axes)


def instance_norm(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """Every channel on its own, over space."""
    x, *vectors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    axis = sight.channel(x, 1, op)
    roles = (VECTOR, VECTOR) if len(vectors) < 3 else (STATISTIC, STATISTIC, VECTOR, VECTOR)
    for vector, role in zip(vectors, roles):
        sight.vector(vector, axis, role, op)
    sight.put(out, sight.look(x).axes)


def layer_norm(sight: Sight, op: str, args: Any, kwargs: Any, out: Any) -> None:
    """Mean and variance over the last dimension: channels there weigh each other."""
    x, shape = args[:2]
    first = out[0] if isinstance(out, (tuple, list)) else out
    axes = sight.look(x).axes
    wide = [axis for axis in axes[-len(shape) :] if axis is not None]
    names = [v for v in (*args[2:4], *kwargs.values()) if isinstance(v, Tensor)]
    if len(shape) > 1 or not names or any(not isinstance(axis, tuple) for axis in wide):
        for axis in wide:
            freeze(axis, f"{op} spans it")
        for vector in names:
            for own in sight.look(vector).axes:
                freeze(own, f"{op} spans it")
    else:
        _spanning(sight, op, sight.channel(x, -1, op), names, 1)
    sight.put(first, sight.look(x).axes)


def group_norm(sight: Sight, op: str, args: Any, kwargs: Any, out: Any) -> None:
    """Mean and variance over space and an equal stretch of the channels."""
    x, weight, bias, *_, groups, _ = args
    axis = sight.channel(x, 1, op)
    names = [v for v in (weight, bias) if v is not None]
    if not evenly(axis, groups):
        freeze(axis, f"{op} spans parts of a joined axis")
    if not names:
        freeze(axis, f"{op} spans it")
    _spanning(sight, op, axis, names, groups)
    sight.put(out[0], sight.look(x).axes)


def _spanning(sight: Sight, op: str, axis: Axis, vectors: list[Tensor], groups: int) -> None:
    for vector in vectors:
        name = sight.vector(vector, axis, VECTOR, op)
        if name is None:
            freeze(axis, f"{op} has vectors that are no parameters")
        else:
            sight.trace.layer_norms[name] = (axis, groups)


def softmax(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """Entries along one dimension weigh each other."""
    seen = sight.look(args[0])
    freeze(seen.axes[args[1]], f"{op} spans it")
    sight.put(out, seen.axes)


def activations(
    sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor, kind: str = "dot"
) -> None:
    """x (..., i, k) @ y (..., k, j): neither is a weight. Channels that are summed over meet in a
    product: no sum of columns can stand for merged ones, scaled rows can."""
    x, y = args[:2]
    if min(x.dim(), y.dim()) < 2 or sight.look(x).parameter or sight.look(y).parameter:
        sight.opaque(op, [x, y], [out])
        return
    a, b = sight.look(x).axes, sight.look(y).axes
    over, other = a[-1], b[-2]
    positions = math.prod(out.shape) // sight.batch  # per image, times what is summed over
    if over is not None and other is not None:
        unify(over, other, op)
        stretches = over.split.count if isinstance(over, Inner) else 1
        sight.product(_whole(over), positions // stretches, kind)
    else:
        freeze(over, f"{op} weighs its channels")
        freeze(other, f"{op} weighs its channels")
    axes: list[Axis] = [None] * out.dim()
    for side, dim in ((a, -2), (b, -1)):
        kept = axes[dim] = side[dim]
        if kept is not None and over is None:
            stretches = kept.split.count if isinstance(kept, Inner) else 1
            places = positions * x.shape[-1] // (out.shape[dim] * stretches)
            sight.product(_whole(kept), places)
    inners = [axis.split for axis in axes[-2:] if isinstance(axis, Inner)]
    for dim in range(3, out.dim() + 1):
        met = [side[-dim] for side in (a, b) if len(side) >= dim and side[-dim] is not None]
        mine = [m for m in met if any(split in inners for split in splits_of(m))]
        for axis in met[1:]:
            unify(met[0], axis, op)
        axes[-dim] = (mine or met or [None])[0]
    sight.put(out, axes)


def _whole(axis: Axis) -> Axis:
    while isinstance(axis, (Inner, Outer)):
        axis = axis.split.parent
    return axis


def attention(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """softmax(q k^T / sqrt(head width)) v, as one operator."""
    query, key, value, *rest = args
    scaled = kwargs.get("scale") is None and (len(rest) < 4 or rest[3] is None)
    scores = query.new_empty((*query.shape[:-1], key.shape[-2]))
    transposed = key.transpose(-2, -1)
    q, k = sight.look(query), sight.look(key)
    sight.put(transposed, (*k.axes[:-2], k.axes[-1], k.axes[-2]))
    activations(sight, op, (query, transposed), {}, scores, "attention" if scaled else "dot")
    freeze(sight.look(scores).axes[-1], f"{op} weighs it")
    activations(sight, op, (scores, value), {}, out)
    mask = kwargs.get("attn_mask", rest[0] if rest else None)
    if isinstance(mask, Tensor):
        for axis in sight.look(mask).axes:
            freeze(axis, f"{op} masks with it")
    for axis in q.axes[:-1]:
        if isinstance(axis, tuple):
            freeze(axis, f"{op} attends over it")
