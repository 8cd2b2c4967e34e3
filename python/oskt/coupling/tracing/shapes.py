"""Rules of operators that move channels, or leave them where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from oskt.coupling.tracing.axes import (
    Axis,
    Counted,
    Inner,
    Outer,
    Split,
    freeze,
    stretch,
    stretches,
    unify,
)
from oskt.coupling.tracing.sight import VECTOR, Sight


def pointwise(sight: Sight, op: str, inputs: Sequence[Tensor], out: Tensor) -> None:
    """Equal indices of all operands meet: their axes are tied (a size of 1 broadcasts)."""
    axes: list[Axis] = [None] * out.dim()
    told = [t for t in inputs if id(t) not in sight.noise]
    if not told:
        noise(sight, op, (), {}, out)
        return
    inputs = told
    for dim in range(1, out.dim() + 1):
        met = [
            (t, t.dim() - dim)
            for t in inputs
            if t.dim() >= dim and t.shape[-dim] == out.shape[-dim] and out.shape[-dim] > 1
        ]
        fixed = [sight.look(t).axes[d] for t, d in met]
        if any(axis is None or isinstance(axis, (Outer, Counted)) for axis in fixed):
            for t, d in met:
                sight.plain(t, d)
        seen = [(sight.look(t), d) for t, d in met]
        named = [(s, d) for s, d in seen if s.axes[d] is not None]
        for s, d in named:
            if len(inputs) > 1:
                sight.role(s, d, VECTOR, op)
            unify(named[0][0].axes[named[0][1]], s.axes[d], op)
        if named:
            axes[-dim] = named[0][0].axes[named[0][1]]
            if len(named) < len(met) and not isinstance(axes[-dim], (Outer, Counted)):
                freeze(axes[-dim], f"{op} meets a tensor without channel identity")
    sight.put(out, axes, sight.look(inputs[0]).parameter if len(inputs) == 1 else None)


def same_axes(sight: Sight, op: str, args: Any, kwargs: Any, out: Any) -> None:
    """Spatial pooling, dropout, copies: per channel, axes pass through."""
    first = out[0] if isinstance(out, (tuple, list)) else out
    seen = sight.look(args[0])
    sight.put(first, seen.axes, seen.parameter if first.shape == args[0].shape else None)


def restride(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """Other strides in place: pooling to one place, channels last, ends so and moves nothing."""
    axes = sight.look(args[0]).axes
    if len(axes) == out.dim() == 4 and tuple(out.shape[2:]) == (1, 1):
        same_axes(sight, op, args, kwargs, out)
    else:
        sight.opaque(op, [args[0]], [out])


def along(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """Entries move along the named dimensions: roll, flip. Channels there lose their place."""
    seen = sight.look(args[0])
    if op == "aten.roll" and len(args) < 3:  # no dimensions: from one row to the next
        sight.opaque(op, [args[0]], [out])
        return
    for dim in args[-1]:
        axis = sight.plain(args[0], dim).axes[dim]
        if axis is not None:
            freeze(axis, f"{op} is not known")
            sight.trace.opaque.append(op)
    sight.put(out, sight.look(args[0]).axes, seen.parameter)


def reduce(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """Mean or sum over axes without channel identity."""
    x = args[0]
    dims = args[1] if len(args) > 1 and args[1] is not None else list(range(x.dim()))
    dims = {d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)}
    keep = bool(args[2]) if len(args) > 2 else kwargs.get("keepdim", False)
    seen = sight.look(x)
    for d in dims:
        freeze(seen.axes[d], f"{op} reduces it")
    axes = [None if d in dims else a for d, a in enumerate(seen.axes) if keep or d not in dims]
    sight.put(out, axes)


def permute(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    x = args[0]
    order = list(range(x.dim()))
    if op == "aten.permute":
        order = [d % x.dim() for d in args[1]]
    elif x.dim() > 1:
        a, b = (0, 1) if op == "aten.t" else (args[1], args[2])
        order[a], order[b] = order[b], order[a]
    _gather(sight, x, order, out)


def unsqueeze(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    order = list(range(args[0].dim()))
    order.insert(args[1] % out.dim(), -1)
    _gather(sight, args[0], order, out)


def squeeze(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    x = args[0]
    dims = range(x.dim()) if len(args) < 2 else args[1]
    gone = {d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)}
    order = [d for d in range(x.dim()) if d not in gone or x.shape[d] != 1]
    _gather(sight, x, order, out)


def expand(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    x = args[0]
    new = out.dim() - x.dim()
    order = [-1] * new + list(range(x.dim()))
    _gather(sight, x, order, out)


def _gather(sight: Sight, x: Tensor, order: Sequence[int], out: Tensor) -> None:
    """Dimension d of the result is dimension order[d] of x; -1 is a new one."""
    seen = sight.look(x)
    axes = [None if d < 0 else seen.axes[d] for d in order]
    name, dims = seen.parameter or ("", ())
    origin = tuple(-1 if d < 0 else dims[d] for d in order) if seen.parameter else ()
    sight.put(out, axes, (name, origin) if seen.parameter else None, seen.writer)


def create(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """A tensor shaped like another but holding none of its numbers."""
    sight.put(out, (None,) * out.dim())


def noise(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """Random numbers of one distribution (dropout's): they tell no channel from another."""
    sight.put(out, (None,) * out.dim())
    sight.noise.add(id(out))


def cat(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    tensors = [t for t in args[0] if t.numel()]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    axes: list[Axis] = []
    for d in range(out.dim()):
        parts = [sight.look(t).axes[d] for t in tensors]
        if (d != dim and any(part is None for part in parts)) or (
            d == dim and any(part is None and t.shape[d] > 1 for part, t in zip(parts, tensors))
        ):
            parts = [sight.plain(t, d).axes[d] for t in tensors]
        known = [part for part in parts if part is not None]
        if not known:
            axes.append(None)
        elif d == dim:
            runs = [sight.channel(t, d, op) for t in tensors]
            axes.append(tuple(run for part in runs for run in part))
        else:
            for t in tensors:
                sight.role(sight.look(t), d, VECTOR, op)
            for part in known[1:]:
                unify(known[0], part, op)
            if len(known) < len(parts):
                freeze(known[0], f"{op} meets a tensor without channel identity")
            axes.append(known[0])
    sight.put(out, axes)


def stack(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """Tensors side by side along a new dimension: their axes are tied."""
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    pointwise(sight, op, args[0], args[0][0].new_empty(args[0][0].shape))
    axes = list(sight.look(args[0][0]).axes)
    sight.put(out, [*axes[:dim], None, *axes[dim:]])


# -- parts of a dimension ---------------------------------------------------------------------


def select(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    _select(sight, op, args[0], args[1], [(args[2], out)])


def unbind(sight: Sight, op: str, args: Any, kwargs: Any, out: Any) -> None:
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    _select(sight, op, args[0], dim, list(enumerate(out)))


def _select(
    sight: Sight, op: str, x: Tensor, dim: int, wanted: Sequence[tuple[int, Tensor]]
) -> None:
    """One index of a dimension: of a split, the stretch; of channels, nothing that is known."""
    dim %= x.dim()
    seen = sight.look(x)
    axis = seen.axes[dim]
    order = [d for d in range(x.dim()) if d != dim]
    parts = stretches(axis.split) if isinstance(axis, Outer) else None
    if isinstance(axis, Outer) and parts is not None:
        sight.forget(axis.split)
        for index, out in wanted:
            _gather(sight, x, order, out)
            known: dict[int, Split] = {}
            axes = [_within(sight, seen.axes[d], axis.split, parts[index], known) for d in order]
            sight.put(out, axes)
        return
    if axis is not None and seen.parameter is not None:
        sight.plain(x, dim)
    elif axis is not None:
        freeze(axis, f"{op} picks from it")
    for _, out in wanted:
        _gather(sight, x, order, out)


def _within(sight: Sight, axis: Axis, split: Split, part: Axis, known: dict[int, Split]) -> Axis:
    """An axis after one stretch of a split was chosen."""
    if not isinstance(axis, (Inner, Outer)):
        return axis
    if axis.split is split:
        return part
    if id(axis.split) not in known:
        parent = _within(sight, axis.split.parent, split, part, known)
        if parent is axis.split.parent:
            return axis
        known[id(axis.split)] = Split(parent, axis.split.count)
        sight.splits.append(known[id(axis.split)])
    sight.forget(axis.split)
    return type(axis)(known[id(axis.split)])


def slice_(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    x, dim, start, _, step = (*args, *[None, None, None, 1][len(args) - 1 :])[:5]
    dim = (dim or 0) % x.dim()
    size = x.shape[dim]
    start = min(max((start or 0) + (size if (start or 0) < 0 else 0), 0), size)
    if step == 1:
        _parts(sight, op, x, dim, [(start, start + out.shape[dim], out)])
    else:
        sight.plain(x, dim)
        freeze(sight.look(x).axes[dim], f"{op} takes every {step}th of it")
        _gather(sight, x, list(range(x.dim())), out)


def split(sight: Sight, op: str, args: Any, kwargs: Any, out: Any) -> None:
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % args[0].dim()
    start, wanted = 0, []
    for part in out:
        wanted.append((start, start + part.shape[dim], part))
        start += part.shape[dim]
    _parts(sight, op, args[0], dim, wanted)


def _parts(
    sight: Sight, op: str, x: Tensor, dim: int, wanted: Sequence[tuple[int, int, Tensor]]
) -> None:
    """Stretches of a dimension."""
    seen = sight.look(x)
    axis = seen.axes[dim]
    for start, stop, out in wanted:
        whole = stop - start == x.shape[dim]
        part = axis if whole or axis is None else stretch(axis, start, stop)
        if part is None and axis is not None:
            freeze(axis, f"{op} cuts it")
        _gather(sight, x, list(range(x.dim())), out)
        if axis is not None and not whole:
            axes = list(sight.look(out).axes)
            axes[dim] = part
            sight.put(out, axes, sight.look(out).parameter)  # no norm of the whole follows


def index(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """x[i] with a tensor of integers along dimension 0, as of a table; otherwise not known."""
    x, indices = args[:2]
    if op == "aten.embedding":
        indices = [indices]
    elif op == "aten.index_select":
        indices = [args[2]] if indices % x.dim() == 0 else [None]
    if indices[0] is None or any(i is not None for i in indices[1:]):
        sight.opaque(op, [x], [out])
        return
    sight.plain(x, 0)
    seen = sight.look(x)
    freeze(seen.axes[0], f"{op} picks from it")
    new = out.dim() - x.dim() + 1
    _gather(sight, x, [-1] * new + list(range(1, x.dim())), out)
    if op == "aten.embedding":
        sight.role(sight.look(out), out.dim() - 1, VECTOR, op)
