"""From a coupling and widths to the plan of the expand operator: the only place that knows how
chains become ragged lists."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from oskt.coupling import Coupling, TensorLayout
from oskt.merge_tree import MergeTree
from oskt.widths import Clustering, cut
from oskt_ext import ExpansionPlan, IndexMap, RefiningItem, RefiningPlan

Clusterings = Mapping[str, Clustering]
Partitions = Mapping[str, Clustering | MergeTree]


def layouts_of(
    coupling: Coupling, roles: Sequence[str], absent: Iterable[str] = ()
) -> list[TensorLayout]:
    """The layouts with the given roles, role by role: the order of a flat buffer."""
    return [
        layout
        for role in roles
        for layout in coupling.layouts.values()
        if layout.role == role and layout.name not in absent
    ]


def split(flat: Tensor, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Named views of a flat buffer."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    parts = flat.split(sizes)
    return {name: part.view(tuple(shape)) for (name, shape), part in zip(shapes.items(), parts)}


@dataclass(frozen=True, eq=False)
class GroupMaps:
    """How the entries of one group are read, for each part that it plays in a tensor."""

    weight: IndexMap  # as rows of a weight
    column: IndexMap
    vector: IndexMap
    statistic: IndexMap

    @staticmethod
    def identity(size: int) -> GroupMaps:
        one = IndexMap.identity(size)
        return GroupMaps(one, one, one, one)


class _Items:
    """Builds plan items from per-group maps; equal axes share one map."""

    def __init__(self, coupling: Coupling, maps_of: Callable[[str], GroupMaps]) -> None:
        self.coupling = coupling
        self.maps = {name: maps_of(name) for name in coupling.groups}
        self.made: dict[tuple[object, ...], IndexMap] = {}
        self.one = IndexMap.identity(1)

    def axis(self, part: str, axis: Sequence[tuple[str, int]]) -> tuple[IndexMap, int]:
        """The map of an axis and the area that stays beside it (a common area of one run)."""
        area = axis[0][1] if len(axis) == 1 else 1
        key = (part, tuple(axis))
        if key not in self.made:
            maps = [getattr(self.maps[group], part) for group, _ in axis]
            if len(axis) > 1:
                maps = [_with_area(m, run_area) for m, (_, run_area) in zip(maps, axis)]
            self.made[key] = IndexMap.concatenate(maps)
        return self.made[key], area

    def of(self, layout: TensorLayout) -> list[tuple[IndexMap, IndexMap, int]]:
        rows, row_area = self.axis(layout.role, layout.rows)
        rest = math.prod(layout.shape) // self.coupling.axis_size(layout.rows, {})
        if not layout.columns:
            return [(rows, self.one, rest * row_area)]
        columns, column_area = self.axis("column", layout.columns)
        read = self.coupling.axis_size(layout.columns, {}) // layout.groups
        rows, area = _with_area(rows, row_area), rest // read * column_area
        if layout.groups == 1:
            return [(rows, columns, area)]
        blocks = zip(_blocks(rows, layout.groups), _blocks(columns, layout.groups))
        return [(block_rows, block_columns, area) for block_rows, block_columns in blocks]


def _with_area(index_map: IndexMap, area: int) -> IndexMap:
    """Every entry of the map becomes `area` entries: the map of a flattened axis."""
    if area == 1:
        return index_map
    offsets, members, weights = index_map.offsets, index_map.index, index_map.weight
    lists = [members[a:b] for a, b in itertools.pairwise(offsets)]
    shares = [weights[a:b] for a, b in itertools.pairwise(offsets)]
    lengths = np.repeat(np.diff(offsets), area)
    return IndexMap(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        np.concatenate([m * area + p for m in lists for p in range(area)]).astype(np.int32),
        np.concatenate([s for s in shares for _ in range(area)]),
        index_map.size * area,
    )


def _blocks(index_map: IndexMap, count: int) -> list[IndexMap]:
    """The map of each of `count` equal blocks, none of which reads another."""
    entries, size = len(index_map) // count, index_map.size // count
    parts = []
    for block in range(count):
        offsets = index_map.offsets[block * entries : (block + 1) * entries + 1]
        chosen = slice(int(offsets[0]), int(offsets[-1]))
        index = index_map.index[chosen] - block * size
        parts.append(IndexMap(offsets - offsets[0], index, index_map.weight[chosen], size))
    return parts


def _plan(items: _Items, layouts: Iterable[TensorLayout]) -> ExpansionPlan:
    return ExpansionPlan([item for layout in layouts for item in items.of(layout)])


def student_plan(
    coupling: Coupling,
    partitions: Partitions,
    widths: Mapping[str, int],
    norm: str,
    layouts: Sequence[TensorLayout],
) -> ExpansionPlan:
    """Chain -> student, of either kind.

    Clustering: rows are copied, columns summed over blocks, vectors averaged: with norm
    "interpolate" over a copy's own block (published), with "exact" over its whole cluster.
    Statistics are copied like rows. MergeTree: columns are summed over the clusters at the cut,
    all else averaged; `norm` says nothing.
    """

    def maps_of(group: str) -> GroupMaps:
        size = coupling.groups[group].size
        if group not in partitions:
            return GroupMaps.identity(size)
        partition, n = partitions[group], widths.get(group, size)
        if isinstance(partition, MergeTree):
            return _merge(partition, n)
        copies = cut(partition, n)
        rows = IndexMap.select(copies.rows, partition.size)
        averaged = copies.blocks
        if norm == "exact":
            clusters = partition.members()
            averaged = [clusters[row] for row in copies.rows]
        columns = IndexMap.lists(copies.blocks, size)
        return GroupMaps(rows, columns, IndexMap.lists(averaged, size, mean=True), rows)

    return _plan(_Items(coupling, maps_of), layouts)


def _merge(tree: MergeTree, n: int) -> GroupMaps:
    labels = tree.cut(n).labels
    mean = IndexMap.clusters(labels, mean=True, shares=tree.shares())
    return GroupMaps(mean, IndexMap.clusters(labels), mean, statistic_map(tree, n))


def statistic_map(tree: MergeTree, n: int) -> IndexMap:
    """Norm statistics of width n from those of the measured widths and of N, one after the other.

    Linear in n between the nearest measured widths below and above: from below a cluster takes
    its parent's numbers, from above the mean of its parts; under the lowest, from above alone.
    """
    grid = (*tree.measured, tree.rows)
    starts = np.concatenate([[0], np.cumsum(grid)])
    above = next(i for i, width in enumerate(grid) if width >= n)
    fine = grid[above]
    blend = 1.0 if above == 0 or fine == n else (n - grid[above - 1]) / (fine - grid[above - 1])
    members = np.bincount(tree.cut(fine).labels, tree.shares())
    entry = tree.coarsened(fine, n)
    weight = blend * members / np.bincount(entry, members)[entry]
    index = starts[above] + np.arange(fine)
    if blend < 1:
        index = np.concatenate([index, starts[above - 1] + tree.coarsened(n, grid[above - 1])])
        weight = np.concatenate([weight, np.full(n, 1 - blend)])
        entry = np.concatenate([entry, np.arange(n)])
    order = np.argsort(entry, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(entry))])
    return IndexMap(
        offsets.astype(np.int32), index[order].astype(np.int32), weight[order], int(starts[-1])
    )


def chain_plan(
    coupling: Coupling, partitions: Partitions, layouts: Sequence[TensorLayout]
) -> ExpansionPlan:
    """Teacher -> chain: with a Clustering a row is the mean of its members, as a statistic is;
    columns, vectors and everything of a MergeTree stay as they are."""

    def maps_of(group: str) -> GroupMaps:
        size = coupling.groups[group].size
        partition = partitions.get(group)
        same = GroupMaps.identity(size)
        if not isinstance(partition, Clustering):
            return same
        means = IndexMap.clusters(partition.labels, mean=True)
        return GroupMaps(means, same.column, same.vector, means)

    return _plan(_Items(coupling, maps_of), layouts)


def truncation_plan(
    coupling: Coupling,
    partitions: Mapping[str, MergeTree],
    widths: Mapping[str, int],
    layouts: Sequence[TensorLayout],
) -> ExpansionPlan:
    """Nested chain -> the nested chain whose full width is the student: its tensors, and before
    its statistics those of the narrower measured widths."""

    def maps_of(group: str) -> GroupMaps:
        size = coupling.groups[group].size
        if group not in partitions:
            return GroupMaps.identity(size)
        tree, n = partitions[group], widths[group]
        own = statistic_map(tree, n)
        narrower = IndexMap.identity(own.size).take(np.arange(sum(tree.truncated(n).measured)))
        return replace(_merge(tree, n), statistic=narrower.followed_by(own))

    return _plan(_Items(coupling, maps_of), layouts)


def tied_plan(
    coupling: Coupling,
    partitions: Mapping[str, MergeTree],
    widths: Mapping[str, int],
    layouts: Sequence[TensorLayout],
) -> ExpansionPlan:
    """Nested chain -> network of full width in which the members of every cluster at the cut are
    equal (means of rows, vectors and statistics): it computes what the student computes."""

    def maps_of(group: str) -> GroupMaps:
        size = coupling.groups[group].size
        same = GroupMaps.identity(size)
        if group not in partitions:
            return same
        tree, n = partitions[group], widths[group]
        labels, merged = tree.cut(n).labels, _merge(tree, n)
        mean = merged.vector.take(labels)
        return GroupMaps(mean, same.column, mean, merged.statistic.take(labels))

    return _plan(_Items(coupling, maps_of), layouts)


def refining_plan(
    coupling: Coupling, clusterings: Clusterings, layouts: Sequence[TensorLayout], form: str
) -> tuple[RefiningPlan, list[str]]:
    """The clustered weights of a chain's buffer and their labels, for the refining loss.

    form "sum" is the published code's plain sum; "mean" divides as the paper does, by the number
    of weights and each weight's clusters. Returns the plan and the teacher tensors that it reads.
    """
    items: list[tuple[str, NDArray[np.int64], int, int, int]] = []
    offset = 0
    for layout in layouts:
        clusters = sum(
            (clusterings[g].size if g in clusterings else coupling.groups[g].size) * area
            for g, area in layout.rows
        )
        row_length = math.prod(layout.shape) // layout.shape[0]
        if all(g in clusterings and area == 1 for g, area in layout.rows):
            starts = np.cumsum([0, *(clusterings[g].size for g, _ in layout.rows)])
            labels = np.concatenate(
                [clusterings[g].labels + s for (g, _), s in zip(layout.rows, starts)]
            )
            items.append((layout.name, labels, clusters, row_length, offset))
        offset += clusters * row_length
    plan = RefiningPlan(
        [
            RefiningItem(labels, m, d, start, 1.0 if form == "sum" else 1.0 / (len(items) * m))
            for _, labels, m, d, start in items
        ]
    )
    return plan, [name for name, *_ in items]
