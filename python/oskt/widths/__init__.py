"""Widths: which copies a student makes of which chain rows, and what a student costs."""

from __future__ import annotations

import difflib
import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oskt.coupling import AxisRuns, ChannelGroup, Coupling


@dataclass(frozen=True, eq=False)
class Clustering:
    """A partition of a group's N channels into M non-empty clusters.

    Args:
        labels: int64 [N], each channel's cluster, every one of 0..M-1 present.
        blocks: clusters (and widths) come in this many equal stretches, none across a border.
    """

    labels: NDArray[np.int64]
    blocks: int = 1

    @property
    def size(self) -> int:
        """M."""
        return int(self.labels.max()) + 1

    @property
    def rows(self) -> int:
        """Rows that a chain keeps of every weight."""
        return self.size

    @property
    def narrowest(self) -> int:
        """The width of the S-Student, which is trained."""
        return self.size

    @property
    def least(self) -> int:
        """The narrowest student that exists."""
        return self.size

    def members(self) -> list[NDArray[np.int64]]:
        """The channels of every cluster, ascending."""
        order = np.argsort(self.labels, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.labels))[:-1])


def allocate(sizes: Iterable[int], n: int) -> NDArray[np.int64]:
    """The chain row of each of n copies: every row once, then again the least copied one.

    The next copy goes to the row with the lowest copies/size (ties: the lowest row), so rows for n
    are a prefix of rows for n' > n. Published rule (OSKT code, `select_elements`), through a heap.

    Args:
        sizes: members of each of the M clusters.
        n: copies, M <= n <= sum(sizes).

    Example:
        >>> allocate([4, 1, 3], 6).tolist()
        [0, 1, 2, 0, 2, 0]
    """
    sizes = list(sizes)
    if not len(sizes) <= n <= sum(sizes):
        raise ValueError(
            f"allocate: n must be from {len(sizes)} (clusters) to {sum(sizes)} (channels), got {n}."
            " Choose a width in that range."
        )
    heap = [(1 / size, row, 1) for row, size in enumerate(sizes)]
    heapq.heapify(heap)
    rows = list(range(len(sizes)))
    while len(rows) < n:
        _, row, copies = heap[0]
        rows.append(row)
        heapq.heapreplace(heap, ((copies + 1) / sizes[row], row, copies + 1))
    return np.array(rows)


@dataclass(frozen=True, eq=False)
class Copies:
    """A clustering cut for one width: copy i repeats chain row rows[i] and owns blocks[i]."""

    rows: NDArray[np.int64]
    blocks: list[NDArray[np.int64]]

    @property
    def labels(self) -> NDArray[np.int64]:
        """[N], the copy that owns each channel."""
        labels = np.empty(sum(map(len, self.blocks)), dtype=np.int64)
        labels[np.concatenate(self.blocks)] = np.repeat(
            np.arange(len(self.blocks)), [len(block) for block in self.blocks]
        )
        return labels

    @property
    def counts(self) -> NDArray[np.int64]:
        """[n], how many copies repeat the row of copy i."""
        return np.bincount(self.rows)[self.rows]


def cut(clustering: Clustering, n: int) -> Copies:
    """Deal the members of each cluster to its copies, in contiguous runs of ascending members.

    The first `size mod copies` runs are one longer (published rule).
    """
    members = clustering.members()
    per_block = len(members) // clustering.blocks
    rows = np.concatenate(
        [
            start + allocate(map(len, members[start : start + per_block]), n // clustering.blocks)
            for start in range(0, len(members), per_block)
        ]
    )
    runs = [
        iter(np.array_split(m, c))
        for m, c in zip(members, np.bincount(rows, minlength=len(members)))
    ]
    return Copies(rows, [next(runs[row]) for row in rows])


EIGHTHS = tuple(k / 8 for k in range(1, 9))  # shares at which nested chains are trained, measured


def round_width(group: ChannelGroup, fraction: float, lowest: int = 1) -> int:
    """fraction of a group's channels, in whole steps, at least `lowest` and at most N."""
    width = group.step * max(1, round(group.size * fraction / group.step))
    return min(group.size, max(lowest, width))


def resolve(
    coupling: Coupling, widths: Mapping[str, int], lowest: Mapping[str, int]
) -> dict[str, int]:
    """Check widths given by group name (or by any layer that writes the group).

    Returns:
        group -> width, of the groups named and of those that must be alike.

    Raises:
        ValueError: unknown name, a width outside [lowest, N], not in whole steps, or two
            different widths for one group or for groups that must be alike.
    """
    names = {g.name: g.name for g in coupling.groups.values()}
    for group in coupling.groups.values():
        for writer in group.writers:
            names.setdefault(writer.rpartition(".")[0], group.name)
    result: dict[str, int] = {}
    for name, width in widths.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, 3)
            raise ValueError(
                f"widths: name must be a channel group, got {name!r}. "
                f"{'Did you mean ' + ' or '.join(near) if near else 'See chain.groups'}."
            )
        group = coupling.groups[names[name]]
        low = group.size if group.frozen else max(lowest.get(group.name, 1), group.step)
        if not low <= width <= group.size or (width % group.step and not group.frozen):
            raise ValueError(
                f"widths: {name} must be from {low} to {group.size}"
                f"{f' in steps of {group.step}' if group.step > 1 else ''}, got {width}. "
                + (f"It is frozen: {group.frozen}." if group.frozen else
                   "Choose a width between the chain and the teacher.")
            )  # fmt: skip
        first = coupling.groups[group.like or group.name]
        share = width * first.size // group.size
        if result.setdefault(first.name, share) != share:
            raise ValueError(
                f"widths: {name} must be {result[first.name] * group.size // first.size}, as other "
                f"layers of group {first.name} have it, got {width}. Give the group one width."
            )
    return coupling.alike(result)


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
        Parameters: trained numbers, weights and vectors. MACs: multiply-accumulates per image in
        evaluation mode, of convolutions and linears and of attention's two products. Bytes: four
        for every number that inference reads, norm statistics and the head included, the
        classifier (and what else only training needs) and batch counters not.
    """
    training_only = coupling.training_only
    outside = tuple(f"{module}." for module in exclude)
    for name, layout in coupling.layouts.items():
        trained = layout.role in ("weight", "vector") and not name.startswith(outside)
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
