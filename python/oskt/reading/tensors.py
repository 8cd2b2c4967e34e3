"""Who reads what: how every tensor of a student is made of those of a chain, as lists.

It stands here once and needs no torch: `oskt.chain.expansion.plan` has the lists run by the
expand operator, `oskt.reading.apply` by NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oskt.coupling import AxisRuns, ChannelGroup, Coupling, TensorLayout
from oskt.reading.lists import Item, Reading
from oskt.widths import Clustering, cut
from oskt.widths.merge_tree import MergeTree, Partitions

SHARE = "share"  # leaf name of the weights of a weighted norm
Shares = Mapping[str, NDArray[np.float64]]  # group -> (n,), how much a norm counts each channel


class Inputs(NamedTuple):
    """What a layer reads: entries of its columns, and those at all measured widths and at N."""

    size: int
    measured: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class GroupReading:
    """How the channels of one group are read, for each part that it plays in a tensor."""

    weight: Reading  # as rows of a weight
    column: Reading
    vector: Reading
    statistic: Callable[[Inputs | None], Reading]  # by what the layer before the norm reads

    @staticmethod
    def alike(rows: Reading, column: Reading, vector: Reading) -> GroupReading:
        """Statistics are read as rows are, whatever the layer reads."""
        return GroupReading(rows, column, vector, lambda _: rows)

    @staticmethod
    def identity(size: int) -> GroupReading:
        one = Reading.identity(size)
        return GroupReading.alike(one, one, one)


def student(
    coupling: Coupling,
    partitions: Partitions,
    widths: Mapping[str, int],
    norm: str,
    layouts: Sequence[TensorLayout],
) -> list[Item]:
    """Chain -> student, of either kind.

    Clustering: rows are copied, columns summed over blocks, vectors averaged: with norm
    "interpolate" over a copy's own block (published), with "exact" over its whole cluster.
    Statistics are copied like rows. MergeTree: columns are summed over the clusters at the cut,
    all else averaged, or the channel that a cluster keeps is read alone; `norm` says nothing.

    Channels that meet in products (ChannelGroup.product) have no columns to sum. So that
    q k / sqrt(head width) keeps its value, their rows are scaled: those of m copies by 1/sqrt(m)
    ("exact"), the mean of m merged ones by sqrt(m), and in attention either by
    (head width / head width of the source)^(1/4).
    """
    if norm not in ("interpolate", "exact"):
        raise ValueError(
            f"expand: norm must be 'interpolate' or 'exact', got {norm!r}. Choose one of the two."
        )

    def of(group: ChannelGroup, partition: Clustering | MergeTree, n: int) -> GroupReading:
        if isinstance(partition, MergeTree):
            return _of_tree(group, partition, n)
        copies = cut(partition, n)
        rows = Reading.identity(partition.size).take(copies.rows)
        columns = Reading.sum(copies.labels)
        if norm == "interpolate":
            return GroupReading.alike(rows, columns, Reading.mean(copies.labels))
        vectors = Reading.mean(partition.labels).take(copies.rows)
        scale = np.ones(n)
        if group.product:  # no column sums up what its copies say: each says less
            scale = _width_scale(group, n, partition.size) / np.sqrt(copies.counts)
        return GroupReading(rows.scaled(scale), columns, vectors.scaled(scale), lambda _: rows)

    return _items(coupling, partitions, widths, of, layouts)


def chain(
    coupling: Coupling, partitions: Partitions, layouts: Sequence[TensorLayout]
) -> list[Item]:
    """Teacher -> chain: with a Clustering a row is the mean of its members, as a statistic is;
    columns, vectors and everything of a MergeTree stay as they are."""

    def of(group: ChannelGroup, partition: Clustering | MergeTree, n: int) -> GroupReading:
        same = GroupReading.identity(n)
        if isinstance(partition, MergeTree):
            return same
        means = Reading.mean(partition.labels)
        return GroupReading.alike(means, same.column, same.vector)

    return _items(coupling, partitions, {}, of, layouts)


def truncation(
    coupling: Coupling,
    partitions: Mapping[str, MergeTree],
    widths: Mapping[str, int],
    layouts: Sequence[TensorLayout],
) -> list[Item]:
    """Nested chain -> the nested chain whose full width is the student: its tensors, and before
    its statistics those of the narrower measured widths."""

    def of(group: ChannelGroup, tree: MergeTree, n: int) -> GroupReading:
        student = _of_tree(group, tree, n)
        narrower = sum(tree.truncated(n).measured)

        def statistic(inputs: Inputs | None) -> Reading:
            own = student.statistic(inputs)
            return Reading.of(
                np.concatenate([np.arange(narrower), own.entry + narrower]),
                np.concatenate([np.arange(narrower), own.index]),
                np.concatenate([np.ones(narrower), own.weight]),
                own.size,
            )

        return GroupReading(student.weight, student.column, student.vector, statistic)

    return _items(coupling, partitions, widths, of, layouts)


def kept(
    coupling: Coupling,
    partitions: Mapping[str, MergeTree],
    widths: Mapping[str, int],
    layouts: Sequence[TensorLayout],
) -> list[Item]:
    """Nested chain -> of every cluster of a student, the channel that it keeps at wider cuts."""

    def of(group: ChannelGroup, tree: MergeTree, n: int) -> GroupReading:
        one = Reading.select(tree.kept(n), tree.rows)
        return GroupReading.alike(one, one, one)

    return _items(coupling, partitions, widths, of, layouts)


def tied(
    coupling: Coupling,
    partitions: Mapping[str, MergeTree],
    widths: Mapping[str, int],
    layouts: Sequence[TensorLayout],
) -> list[Item]:
    """Nested chain -> network of full width that computes what the student computes: the members
    of every cluster at the cut are equal (means of rows, vectors and statistics) or, where
    clusters do not merge, the channels that the student lacks are zero."""

    def of(group: ChannelGroup, tree: MergeTree, n: int) -> GroupReading:
        student, labels = _of_tree(group, tree, n), tree.cut(n).labels
        if tree.merges:
            mean = Reading.mean(labels, tree.shares()).take(labels)
            same = Reading.identity(tree.rows)
            return GroupReading(
                mean, same, mean, lambda inputs: student.statistic(inputs).take(labels)
            )
        has = np.isin(np.arange(tree.rows), tree.kept(n)).astype(float)
        own = Reading.identity(tree.rows).scaled(has)
        rows = own.scaled(np.full(tree.rows, _width_scale(group, tree.rows, n)))

        def statistic(inputs: Inputs | None) -> Reading:
            all_have = student.statistic(inputs).take(labels)
            return replace(all_have, weight=all_have.weight * has[all_have.entry])

        return GroupReading(rows, own, rows, statistic)

    return _items(coupling, partitions, widths, of, layouts)


def copy_shares(partitions: Mapping[str, Clustering], widths: Mapping[str, int]) -> Shares:
    """How much each channel of a student counts where all copies of a row together count 1."""
    return {name: 1 / cut(part, widths[name]).counts for name, part in partitions.items()}


def student_shares(
    coupling: Coupling, partitions: Mapping[str, Clustering], widths: Mapping[str, int], norm: str
) -> dict[str, NDArray[np.float64]]:
    """What `norm_shares` gives of a student; nothing unless `norm` is "exact"."""
    return norm_shares(coupling, copy_shares(partitions, widths)) if norm == "exact" else {}


def tied_shares(partitions: Mapping[str, MergeTree], widths: Mapping[str, int]) -> Shares:
    """The same for `tied`: the members of a cluster together count 1, channels that the student
    lacks nothing."""
    shares = {}
    for name, tree in partitions.items():
        labels = tree.cut(widths[name]).labels
        has = np.isin(np.arange(tree.rows), tree.kept(widths[name])).astype(float)
        shares[name] = 1 / np.bincount(labels)[labels] if tree.merges else has
    return shares


def shares_on(coupling: Coupling, axis: AxisRuns, shares: Shares) -> NDArray[np.float64]:
    """How much every entry of an axis counts; groups without shares count 1 each."""
    parts = [
        np.repeat(shares.get(group, np.ones(coupling.groups[group].size)), area)
        for group, area in axis
    ]
    return np.concatenate(parts)


def norm_shares(coupling: Coupling, shares: Shares) -> dict[str, NDArray[np.float64]]:
    """State-dict name `PATH.share` -> weights of the channels in the mean and variance of the norm
    at PATH, which sum to 1; only where channels count differently (see oskt.norms)."""
    named = {}
    for vector, (axis, stretches) in coupling.layer_norms.items():
        share = shares_on(coupling, axis, shares).reshape(stretches, -1)
        share = share / share.sum(1, keepdims=True)
        if not np.allclose(share, share.mean(), rtol=1e-12):
            named[f"{vector.rpartition('.')[0]}.{SHARE}"] = share.ravel()
    return named


def statistic(tree: MergeTree, n: int, inputs: Inputs | None = None) -> Reading:
    """Norm statistics of width n from those of the measured widths and of N, one after the other.

    What was measured were students with all groups alike, and what a channel's numbers depend on is
    how much the layer before the norm reads, not how many channels there are beside it. So they are
    those of the width nearest to n at which that layer has these `inputs` (n itself, where nothing
    is known of it), linear between the measured widths below and above; under the lowest, from
    above alone. A cluster takes the mean of its parts or, from below, its parent's numbers. Where
    clusters do not merge, a channel's numbers are its own, from the nearest widths that have it.
    """
    grid = (*tree.measured, tree.rows)
    starts = np.concatenate([[0], np.cumsum(grid)])
    at = float(n) if inputs is None else _width_with(inputs, grid, n)
    above = next(i for i, width in enumerate(grid) if width >= at)
    parts, from_above = [], np.ones(n)
    if above > 0 and grid[above] > at:
        coarse = grid[above - 1]
        blend = (at - coarse) / (grid[above] - coarse)
        entry, index, weight = _from_measured(tree, n, coarse)
        parts.append((entry, starts[above - 1] + index, (1 - blend) * weight))
        from_above[entry] = blend
    lacking = np.ones(n, dtype=bool)
    while lacking.any():
        entry, index, weight = _from_measured(tree, n, grid[above])
        due = lacking[entry]
        entry = entry[due]
        parts.append((entry, starts[above] + index[due], from_above[entry] * weight[due]))
        lacking[entry] = False
        above += 1
    entry, index, weight = map(np.concatenate, zip(*parts))
    return Reading.of(entry, index, weight, int(starts[-1]))


def _width_with(inputs: Inputs, grid: Sequence[int], n: int) -> float:
    """The width nearest to n, of those between the measured ones, at which a layer reads this."""
    read = np.array(inputs.measured)
    own = np.array([*grid, *[grid[-1]] * (len(read) - len(grid))], dtype=float)
    read = np.concatenate([read, np.full(len(own) - len(read), read[-1])])
    first, last = (np.searchsorted(read, inputs.size, side) for side in ("left", "right"))
    if first < last:  # as measured, perhaps at several widths; at the lowest, under it, too
        return float(np.clip(n, own[first] if first else 0, own[last - 1]))
    if first == 0:
        return min(n, own[0])
    between = slice(first - 1, first + 1)
    return float(np.interp(inputs.size, read[between], own[between]))


def _from_measured(tree: MergeTree, n: int, width: int) -> tuple[NDArray[Any], ...]:
    """Entry, index and weight by which statistics at the cut n are read from those at `width`:
    the mean of a cluster's parts or its parent's; without merging its channel's, if that is there.
    """
    if not tree.merges:
        channels, measured = tree.kept(n), tree.kept(width)
        entry = np.flatnonzero(np.isin(channels, measured))
        return entry, np.searchsorted(measured, channels[entry]), np.ones(len(entry))
    if width < n:
        return np.arange(n), tree.coarsened(n, width), np.ones(n)
    members = np.bincount(tree.cut(width).labels, tree.shares())
    entry = tree.coarsened(width, n)
    return entry, np.arange(width), members / np.bincount(entry, members)[entry]


def _of_tree(group: ChannelGroup, tree: MergeTree, n: int) -> GroupReading:
    """A nested chain's channels -> those of its student of width n."""
    if not tree.merges:
        one = Reading.select(tree.kept(n), tree.rows)
        return GroupReading(one, one, one, partial(statistic, tree, n))
    labels, shares = tree.cut(n).labels, tree.shares()
    mean = Reading.mean(labels, shares)
    if group.product:
        # Channels that stand for m already hold sqrt(m) times their mean (truncated chains).
        weight = np.sqrt(shares / np.bincount(labels, shares)[labels])
        mean = Reading.of(labels, np.arange(tree.rows), weight, tree.rows)
        mean = mean.scaled(np.full(n, _width_scale(group, n, tree.rows)))
    return GroupReading(mean, Reading.sum(labels), mean, partial(statistic, tree, n))


def _width_scale(group: ChannelGroup, n: int, source: int) -> float:
    """What rows of queries and keys take so that another head width leaves the scores alone."""
    return float((n / source) ** 0.25) if group.product == "attention" else 1.0


def _items(
    coupling: Coupling,
    partitions: Mapping[str, Any],
    widths: Mapping[str, int],
    of: Callable[[ChannelGroup, Any, int], GroupReading],
    layouts: Sequence[TensorLayout],
) -> list[Item]:
    """The items of every layout, from the reading of each partition at its width (default N)."""
    groups = {}
    for name, group in coupling.groups.items():
        if name in partitions:
            groups[name] = of(group, partitions[name], widths.get(name, group.size))
        else:
            groups[name] = GroupReading.identity(group.size)
    axes: dict[tuple[object, ...], Reading] = {}  # equal axes share one reading
    one = Reading.identity(1)

    before = {name: weight for weight, norm in coupling.norms.items() for name in norm}

    def inputs_before(statistic: str) -> Inputs | None:
        """What the layer before a norm reads; None if nothing is known of it, or if it reads the
        same at every width."""
        runs = coupling.layouts[before[statistic]].columns if statistic in before else ()
        grids = {
            group: (*tree.measured, tree.rows) for group, _ in runs
            if isinstance(tree := partitions.get(group), MergeTree)
        }  # fmt: skip
        if not grids:
            return None
        places = range(max(map(len, grids.values())))  # truncation leaves the widest out
        measured = (
            coupling.axis_size(runs, {g: grid[min(i, len(grid) - 1)] for g, grid in grids.items()})
            for i in places
        )
        return Inputs(coupling.axis_size(runs, widths), tuple(measured))

    def axis(
        part: str, runs: Sequence[tuple[str, int]], inputs: Inputs | None = None
    ) -> tuple[Reading, int]:
        """The reading of an axis and the area that stays beside it (a common area of one run)."""
        area = runs[0][1] if len(runs) == 1 else 1
        key = (part, tuple(runs), inputs)
        if key not in axes:
            parts = [getattr(groups[group], part) for group, _ in runs]
            if part == "statistic":
                parts = [read(inputs) for read in parts]
            if len(runs) > 1:
                parts = [p.with_area(run_area) for p, (_, run_area) in zip(parts, runs)]
            axes[key] = Reading.joined(parts)
        return axes[key], area

    def items(layout: TensorLayout) -> list[Item]:
        inputs = inputs_before(layout.name) if layout.role == "statistic" else None
        rows, row_area = axis(layout.role, layout.rows, inputs)
        rest = math.prod(layout.shape[layout.dim :]) // coupling.axis_size(layout.rows, {})
        if layout.places > 1:
            return [Item(Reading.identity(layout.places), rows, rest * row_area)]
        if not layout.columns:
            return [Item(rows, one, rest * row_area)]
        columns, column_area = axis("column", layout.columns)
        read = coupling.axis_size(layout.columns, {}) // layout.groups
        rows = rows.with_area(row_area)
        if layout.groups == 1:
            return [Item(rows, columns, rest // read * column_area)]
        columns = columns.with_area(column_area)
        blocks = zip(rows.blocks(layout.groups), columns.blocks(layout.groups))
        return [Item(own_rows, own_columns, rest // read) for own_rows, own_columns in blocks]

    return [item for layout in layouts for item in items(layout)]
