"""What students cost: sums over tensors, and one array form of them for searches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oskt.coupling import AxisRuns, Coupling

Array = NDArray[np.float64]


class Term(NamedTuple):
    """Numbers that cost something: their shape at given widths, and what each of them counts."""

    shape: Callable[[Mapping[str, int]], tuple[int, ...]]
    counts: tuple[int, ...]


def terms(coupling: Coupling, exclude: Iterable[str] = ()) -> Iterator[Term]:
    """Everything that a student's costs are sums over, with counts (parameters, MACs, bytes).

    Args:
        coupling: of the teacher.
        exclude: modules whose tensors are no parameters of the backbone: those of its head.

    Returns:
        Parameters: trained numbers. MACs: multiply-accumulates per image in evaluation mode, of
        convolutions and linears and of attention's two products. Bytes: four
        for every number that inference reads, norm statistics and the head included, the
        classifier (and what else only training needs) and batch counters not.
    """
    training_only = coupling.training_only
    outside = tuple(f"{module}." for module in exclude)
    for name, layout in coupling.layouts.items():
        known = layout.role in ("weight", "vector") or name in coupling.loose
        trained = known and not name.startswith(outside)
        read = name not in training_only and len(layout.shape) > 0
        yield Term(
            partial(coupling.shape, name),
            (int(trained), coupling.positions.get(name, 0), 4 * int(read)),
        )
    for axis, count in coupling.products:
        yield Term(partial(_length, coupling, axis), (0, count, 0))


def _length(coupling: Coupling, axis: AxisRuns, widths: Mapping[str, int]) -> tuple[int]:
    return (coupling.axis_size(axis, widths),)


def parameters(coupling: Coupling, widths: Mapping[str, int], exclude: Iterable[str] = ()) -> int:
    """Trained numbers of the student (see terms), without the modules in `exclude`."""
    return _total(coupling, widths, exclude, 0)


def macs(coupling: Coupling, widths: Mapping[str, int]) -> int:
    """Multiply-accumulates per image (see terms)."""
    return _total(coupling, widths, (), 1)


def _total(
    coupling: Coupling, widths: Mapping[str, int], exclude: Iterable[str], which: int
) -> int:
    return sum(
        math.prod(term.shape(widths)) * term.counts[which] for term in terms(coupling, exclude)
    )


class Costs:
    """Costs of students: sums, over tensors, of products of axis lengths.

    An axis length is affine in the widths of the groups, so

        cost_k(w) = sum over terms t of counts[t, k] * prod over axes d of (base + slope @ w).

    Args:
        coupling: of the teacher.
        terms: shapes at given widths and k counts each, as of `terms`; every shape is
            asked for once per group, and the rest is arithmetic.

    Attributes:
        groups: the free groups, [G]; their order is that of all arrays of widths. One stands for
            those that must be like it.
        whole: [G], the teacher's widths.
        blocks: [G], widths come in whole multiples of these.

    Example:
        >>> from oskt.coupling import ChannelGroup
        >>> coupling = Coupling({"a": ChannelGroup("a", 8), "b": ChannelGroup("b", 3)}, {}, {}, {})
        >>> matrix = Term(lambda widths: (widths.get("a", 8), 2 * widths.get("b", 3)), (1, 10))
        >>> costs = Costs(coupling, [matrix])
        >>> costs(costs.array({"a": 4, "b": 2})).tolist()
        [16.0, 160.0]
    """

    def __init__(self, coupling: Coupling, terms: Iterable[Term]) -> None:
        terms = list(terms)
        self.coupling = coupling
        free = {name: group for name, group in coupling.free.items() if not group.like}
        self.groups = list(free)
        self.whole: Array = np.array([group.size for group in free.values()], dtype=float)
        self.blocks: Array = np.array([group.step for group in free.values()], dtype=float)
        lengths = _lengths(terms, {})
        wider = [
            _lengths(terms, coupling.alike({group.name: group.size + group.step}))
            for group in free.values()
        ]
        slope = np.zeros((*lengths.shape, len(free)))
        for place, (moved, step) in enumerate(zip(wider, self.blocks)):
            slope[:, :, place] = (moved - lengths) / step
        # Axes that no width moves are numbers; few others are left, and they go first.
        moves = slope.any(-1)
        axes = np.argsort(~moves, axis=1, kind="stable")[:, : max(1, moves.sum(1).max(initial=0))]
        fixed = np.where(moves, 1, lengths).prod(1)
        self._slope: Array = np.take_along_axis(slope, axes[:, :, None], 1)
        self._base: Array = np.where(
            np.take_along_axis(moves, axes, 1),
            np.take_along_axis(lengths, axes, 1) - self._slope @ self.whole,
            1,
        )
        self._counts: Array = fixed[:, None] * np.array([t.counts for t in terms], dtype=float)

    def array(self, widths: Mapping[str, int]) -> Array:
        """[G]; groups that are not named have the teacher's width."""
        return np.array([widths.get(g, n) for g, n in zip(self.groups, self.whole)], dtype=float)

    def widths(self, array: Array) -> dict[str, int]:
        """Group -> width, the inverse of `array`."""
        return self.coupling.alike({group: int(n) for group, n in zip(self.groups, array)})

    def __call__(self, array: Array) -> Array:
        """[..., k] at widths [..., G]; whole numbers, exact below 2^53."""
        costs: Array = self._axes(array).prod(-1) @ self._counts
        return costs

    def slopes(self, array: Array) -> Array:
        """[G, k], what one more channel of each group costs at widths [G]: the derivative."""
        axes = self._axes(array)
        others = np.stack([np.delete(axes, d, axis=1).prod(1) for d in range(axes.shape[1])], 1)
        slopes: Array = (others[:, :, None] * self._slope).sum(1).T @ self._counts
        return slopes

    def _axes(self, array: Array) -> Array:
        """[..., terms, axes], the lengths that widths move."""
        lengths: Array = np.tensordot(array, self._slope, (-1, -1)) + self._base
        return lengths


def _lengths(terms: Sequence[Term], widths: Mapping[str, int]) -> Array:
    """[terms, axes], shapes filled up with ones."""
    shapes = [term.shape(widths) for term in terms]
    depth = max(map(len, shapes), default=1)
    rows = [(*shape, *(1,) * (depth - len(shape))) for shape in shapes]
    return np.array(rows, dtype=float).reshape(len(terms), depth)
