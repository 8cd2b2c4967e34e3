"""From a coupling and widths to the plan of the expand operator: the only place that knows how a
published chain becomes ragged lists."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from oskt.coupling import Coupling, TensorLayout
from oskt.widths import Clustering, cut
from oskt_ext import ExpansionPlan, IndexMap, RefiningItem, RefiningPlan

MapOf = Callable[[str], IndexMap]
Clusterings = Mapping[str, Clustering]


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


class _Items:
    """Builds plan items from per-group maps; equal axes share one map."""

    def __init__(
        self,
        coupling: Coupling,
        row_map: MapOf,
        column_map: MapOf,
        vector_map: MapOf,
        statistic_map: MapOf,
    ) -> None:
        self.coupling = coupling
        self.of_role = {"weight": row_map, "vector": vector_map, "statistic": statistic_map}
        self.column_map = column_map
        self.made: dict[tuple[object, ...], IndexMap] = {}
        self.one = IndexMap.identity(1)

    def axis(self, kind: str, make: MapOf, axis: Sequence[tuple[str, int]]) -> tuple[IndexMap, int]:
        """The map of an axis and the area that stays beside it (a common area of one run)."""
        area = axis[0][1] if len(axis) == 1 else 1
        key = (kind, tuple(axis))
        if key not in self.made:
            maps = [self.group(kind, make, group) for group, _ in axis]
            if len(axis) > 1:
                maps = [_with_area(m, run_area) for m, (_, run_area) in zip(maps, axis)]
            self.made[key] = IndexMap.concatenate(maps)
        return self.made[key], area

    def group(self, kind: str, make: MapOf, group: str) -> IndexMap:
        key = (kind, group)
        if key not in self.made:
            self.made[key] = make(group)
        return self.made[key]

    def of(self, layout: TensorLayout) -> list[tuple[IndexMap, IndexMap, int]]:
        rows, row_area = self.axis(layout.role, self.of_role[layout.role], layout.rows)
        rest = math.prod(layout.shape) // self.coupling.axis_size(layout.rows, {})
        if not layout.columns:
            return [(rows, self.one, rest * row_area)]
        columns, column_area = self.axis("column", self.column_map, layout.columns)
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
    clusterings: Clusterings,
    widths: Mapping[str, int],
    norm: str,
    layouts: Sequence[TensorLayout],
) -> ExpansionPlan:
    """Chain -> student: rows are copied, columns summed over blocks, vectors averaged.

    norm "interpolate": a copy's vectors are the mean over its own block (published); "exact": over
    its whole cluster. Statistics are copied like rows.
    """
    copies = {g: cut(clusterings[g], n) for g, n in widths.items() if g in clusterings}

    def rows(g: str) -> IndexMap:
        if g not in copies:
            return IndexMap.identity(coupling.groups[g].size)
        return IndexMap.select(copies[g].rows, clusterings[g].size)

    def lists(g: str, *, mean: bool, whole: bool = False) -> IndexMap:
        size = coupling.groups[g].size
        if g not in copies:
            return IndexMap.identity(size)
        members = clusterings[g].members() if whole else []
        blocks = [members[r] for r in copies[g].rows] if whole else copies[g].blocks
        return IndexMap.lists(blocks, size, mean=mean)

    items = _Items(
        coupling,
        rows,
        lambda g: lists(g, mean=False),
        lambda g: lists(g, mean=True, whole=norm == "exact"),
        rows,
    )
    return _plan(items, layouts)


def chain_plan(
    coupling: Coupling, clusterings: Clusterings, layouts: Sequence[TensorLayout]
) -> ExpansionPlan:
    """Teacher -> chain: a row is the mean of its members, columns and vectors stay as they are."""

    def same(g: str) -> IndexMap:
        return IndexMap.identity(coupling.groups[g].size)

    def means(g: str) -> IndexMap:
        if g not in clusterings:
            return same(g)
        return IndexMap.lists(clusterings[g].members(), coupling.groups[g].size, mean=True)

    return _plan(_Items(coupling, means, same, same, means), layouts)


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
