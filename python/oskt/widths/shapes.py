"""Shapes of students: which groups are wide and which are narrow at a given cost.

"uniform" keeps one share of every group. By sensitivity, groups differ: from the teacher down,
whatever loses least per cost saved is taken away first. What a group loses is a curve over its
widths, read off the chain (`kept`) or measured on images (oskt.widths.sensitivity). Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oskt.widths.budget import Path
from oskt.widths.costs import Array, Costs
from oskt.widths.merge_tree import MergeTree, Partitions

# Free group -> [N], what widths 1..N are worth; never falling. A chain that ends below N reads the
# part up to its own width.
Curves = Mapping[str, Array]
NAMES = ("uniform", "sensitivity")
STEPS = 32  # a group is narrowed by about so many equal steps


def uniform(costs: Costs, least: Array) -> Path:
    """Every share of the teacher from the narrowest student up, rounded to whole channels."""
    count = 2 * int(costs.whole.max(initial=1))

    def at(place: int) -> Array:
        share = costs.whole * (place + 1) / count
        rounded = costs.blocks * np.maximum(1, np.rint(share / costs.blocks))
        widths: Array = np.minimum(costs.whole, np.maximum(least, rounded))
        return widths

    return Path(count, at)


def by_sensitivity(
    costs: Costs, curves: Curves, prices: Sequence[float], floors: Sequence[Array]
) -> Path:
    """From the teacher down, one small step at a time: the group that loses least per cost saved.

    Args:
        costs: parameters, MACs and bytes.
        curves: group -> what each width is worth; the sum over groups is to stay high.
        prices: [k], of a unit of each cost.
        floors: [G] each, one below the other: no group goes below the first before all are there.

    Returns:
        The path, from the last floor to the teacher, in steps of 1/32 of a group.

    Notes:
        A greedy choice, as is usual for separable worth under a cost; costs are priced by their
        slopes, which are exact where no axis pair belongs to one group. Ties: the first group.
    """
    worth = np.concatenate([_worth(costs, curves, group) for group in costs.groups])
    last = np.cumsum(costs.whole).astype(int) - costs.whole.astype(int) - 1  # + width: its place
    steps = costs.blocks * np.maximum(1, np.rint(costs.whole / STEPS / costs.blocks))
    widths = costs.whole
    down = [widths]
    for floor in floors:
        floor = costs.blocks * np.ceil(floor / costs.blocks)
        while (widths > floor).any():
            step = np.minimum(steps, widths - floor)
            here, there = (last + w.astype(int) for w in (widths, widths - step))
            saved = costs.slopes(widths) @ np.asarray(prices) * step
            loss = np.where(step > 0, worth[here] - worth[there], np.inf)
            chosen = int(np.argmin(loss / np.maximum(saved, 1e-300)))
            widths = widths.copy()
            widths[chosen] -= step[chosen]
            down.append(widths)
    return Path(len(down), lambda place: down[len(down) - 1 - place])


def _worth(costs: Costs, curves: Curves, group: str) -> Array:
    """[N] of a group: the sum of its curve and those of groups that must be like it, if given."""
    widths = np.arange(1, costs.coupling.groups[group].size + 1)
    worth = np.zeros(len(widths))
    for name, other in costs.coupling.free.items():
        if name in curves and group in (name, other.like):
            theirs = widths * (other.size / len(widths))
            worth += np.interp(theirs, np.arange(1, len(curves[name]) + 1), curves[name])
    return worth


def kept(partitions: Partitions, clustering: Mapping[str, Any]) -> Curves:
    """Data-free curves: the logarithm of the share of a group that a width keeps.

    A network passes through its groups one after the other, so the shares multiply and their
    logarithms add. Nested: what the first n positions add (of importance, or of the sum of squares
    of Ward's tree), the first position counted like the second, of which nothing is known.
    Clustering: 1 - loss at the chain's width M, 1 at N, linear in between.

    Args:
        partitions: of the chain.
        clustering: meta["clustering"] of the chain: "adds" or "loss" of every group.

    Example:
        >>> from oskt.widths import Clustering
        >>> curve = kept({"a": Clustering(np.array([0, 0, 1]))}, {"loss": {"a": 0.5}})["a"]
        >>> np.exp(curve).round(2).tolist()
        [0.5, 0.5, 1.0]
    """
    curves = {}
    for name, partition in partitions.items():
        if isinstance(partition, MergeTree):
            count = partition.rows // partition.blocks
            adds = np.array(clustering["adds"][name], dtype=float)
            adds = adds.reshape(partition.blocks, -1).sum(0)[: count - 1]
            gains = np.repeat(np.concatenate([adds[:1], adds]), partition.blocks)
            if not gains.sum() > 0:  # a group of one channel, or of channels all alike
                gains = np.ones(partition.rows)
            share = gains.cumsum() / gains.sum()
        else:
            loss, size = clustering["loss"].get(name, 0.0), len(partition.labels)
            width = np.maximum(np.arange(1, size + 1), partition.size)
            share = 1 - loss * (size - width) / max(1, size - partition.size)
        curves[name] = np.log(np.maximum(share, 1e-12))
    return curves
