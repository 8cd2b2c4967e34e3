"""Plans of the operators, and the flat buffers that they read and write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oskt.coupling import Coupling, TensorLayout
from oskt.reading import Item, Reading
from oskt.widths import Clustering
from oskt_ext import ExpansionPlan, IndexMap, RefiningItem, RefiningPlan

Clusterings = Mapping[str, Clustering]


def split(flat: Tensor, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Named views of a flat buffer."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    parts = flat.split(sizes)
    return {name: part.view(tuple(shape)) for (name, shape), part in zip(shapes.items(), parts)}


def flat(tensors: Iterable[Tensor], like: Tensor) -> Tensor:
    """Tensors one after the other in one buffer, the inverse of `split`; of none, an empty one of
    the dtype and device of `like`."""
    return torch.cat([like.new_empty(0), *(tensor.flatten() for tensor in tensors)])


def plan(items: Iterable[Item]) -> ExpansionPlan:
    """The plan of the expand operator that runs the lists of oskt.reading."""
    made: dict[int, IndexMap] = {}  # the operator stores a list that many items share once

    def index_map(reading: Reading) -> IndexMap:
        if id(reading) not in made:
            offsets, index = (x.astype(np.int32) for x in (reading.offsets, reading.index))
            made[id(reading)] = IndexMap(offsets, index, reading.weight, reading.size)
        return made[id(reading)]

    return ExpansionPlan([(index_map(i.rows), index_map(i.columns), i.area) for i in items])


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
