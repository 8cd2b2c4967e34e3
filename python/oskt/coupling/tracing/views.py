"""Rules of views: dimensions are cut into factors and joined again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from oskt.coupling.tracing.axes import (
    Axis,
    Counted,
    Inner,
    Outer,
    Split,
    coarsened,
    divided,
    freeze,
    interleaved,
    leaf_runs,
    multiplied,
)
from oskt.coupling.tracing.sight import Sight

REPEATS = 64  # places whose channels a view may line up


def view(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """Dimensions that keep their size pass through, others are cut and joined factor by factor:
    (C, H, W) -> C*H*W makes areas, C -> (heads, C / heads) splits, the way back joins."""
    x = args[0]
    seen = sight.look(x)
    if tuple(x.shape) == tuple(out.shape):
        sight.put(out, seen.axes, seen.parameter, seen.writer)
        return
    axes: list[Axis] = [None] * out.dim()
    origin = [-1] * out.dim()
    for source, target in _factor(tuple(x.shape), tuple(out.shape)):
        lead = [d for d in source if x.shape[d] != 1]
        goal = [d for d in target if out.shape[d] != 1]
        if all(seen.axes[d] is None for d in lead):
            continue
        if len(lead) == 1 and len(goal) == 1:
            axes[goal[0]] = seen.axes[lead[0]]
            origin[goal[0]] = seen.parameter[1][lead[0]] if seen.parameter else -1
            continue
        factors = [(x.shape[d], seen.axes[d]) for d in lead]
        regrouped = _regroup(sight, op, factors, [out.shape[d] for d in goal])
        if regrouped is None:
            for d in lead:
                freeze(seen.axes[d], f"{op} mixes it with another axis")
        else:
            for d, axis in zip(goal, regrouped):
                axes[d] = axis
    sight.put(out, axes, seen.parameter and (seen.parameter[0], tuple(origin)), seen.writer)


def _regroup(
    sight: Sight, op: str, factors: list[tuple[int, Axis]], sizes: Sequence[int]
) -> list[Axis] | None:
    """Row-major factors dealt to dimensions of the given sizes; None where that is not exact."""
    factors = [part for f in factors[::-1] for part in _parted(f)]  # the next one last
    result = []
    for size in sizes:
        pieces: list[Axis] = []
        lengths: list[int] = []
        while size > 1:
            length, axis = factors.pop()
            if length > size:
                if length % size:
                    return None
                cut = _cut(sight, axis, length, size)
                if cut is None:
                    return None
                axis, rest = cut
                factors.append((length // size, rest))
                length = size
            elif size % length:
                return None
            pieces.append(axis)
            lengths.append(length)
            size //= length
        joined = _join(sight, op, pieces, lengths)
        if joined is None:
            return None
        result.append(joined[0])
    return result


def _parted(factor: tuple[int, Axis]) -> list[tuple[int, Axis]]:
    _, axis = factor
    return [*reversed(axis.factors)] if isinstance(axis, Counted) else [factor]


def _cut(sight: Sight, axis: Axis, length: int, size: int) -> tuple[Axis, Axis] | None:
    """A factor as two: `size` entries, then the rest of its `length`."""
    if axis is None:
        return None, None
    if isinstance(axis, (Outer, Counted)):
        return None
    rest = length // size
    if isinstance(axis, tuple) and all(run.area % rest == 0 for run in leaf_runs(axis)):
        return divided(axis, rest), None
    made = Split(axis, size)
    sight.splits.append(made)
    return Outer(made), Inner(made)


def _join(sight: Sight, op: str, pieces: list[Axis], lengths: list[int]) -> tuple[Axis] | None:
    """Factors as one dimension, in a tuple; None where that is not exact."""
    axes: list[Axis] = []
    for piece, length in zip(pieces, lengths):
        last = axes[-1] if axes else None
        if piece is None and isinstance(last, tuple):
            axes[-1] = multiplied(last, length)
        elif isinstance(last, Inner) and isinstance(piece, Outer) and last.split is piece.split:
            sight.forget(piece.split)
            axes[-1] = interleaved(piece.split, op)
        elif not axes or piece is not None or last is not None:
            axes.append(piece)
        while len(axes) > 1 and isinstance(axes[-2], Outer) and isinstance(axes[-1], Inner):
            if axes[-2].split is not axes[-1].split:
                break
            axes[-2:] = [axes[-1].split.parent]
    if len(axes) == 1:
        return (axes[0],)
    *places, last = axes
    count = math.prod(n for n, piece in zip(lengths, pieces) if piece is None)
    if places == [None] and isinstance(last, tuple) and pieces[-1] is last and count <= REPEATS:
        return (last * count,)  # the same channels at every place, one after the other
    counted = [(n, p) for n, p in zip(lengths, pieces) if p is None or isinstance(p, Outer)]
    return (Counted(tuple(counted)),) if len(counted) == len(pieces) else None


def _factor(
    source: tuple[int, ...], target: tuple[int, ...]
) -> Iterator[tuple[list[int], list[int]]]:
    """Cut two shapes of equal numel into the shortest stretches of equal product."""
    i = j = 0
    while i < len(source) or j < len(target):
        a: list[int] = []
        b: list[int] = []
        while True:
            left, right = math.prod(source[d] for d in a), math.prod(target[d] for d in b)
            if left == right and (a or b):
                break
            if left <= right and i < len(source):
                a.append(i)
                i += 1
            elif j < len(target):
                b.append(j)
                j += 1
            else:
                break
        yield a, b


def pixel_shuffle(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """(C r^2, H, W) -> (C, r H, r W): r^2 consecutive channels become places of one."""
    axis = sight.channel(args[0], -3, op)
    axes: list[Axis] = [None] * out.dim()
    if coarsened(axis, args[1] ** 2):
        axes[-3] = divided(axis, args[1] ** 2)
    else:
        freeze(axis, f"{op} mixes it with space")
    sight.put(out, axes)


def pixel_unshuffle(sight: Sight, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """(C, r H, r W) -> (C r^2, H, W): places become channels."""
    axes: list[Axis] = [None] * out.dim()
    axes[-3] = multiplied(sight.channel(args[0], -3, op), args[1] ** 2)
    sight.put(out, axes)
