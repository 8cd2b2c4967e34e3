"""What a nested chain lacks to be a wider one, and the wider one from both. Needs no torch.

Entry (i, j) of a narrower weight A is a sum of entries of the wider weight W,

    A[i, j] = sum over rows s of cluster i of a_s * sum over columns t of cluster j of W[s, t].

The channels (s, t) that both clusters keep (MergeTree.kept) are the one unknown of this equation
when all other entries of W are known. So A and the others are W, in as many numbers as W has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oskt import reading
from oskt.files.contents import Contents
from oskt.reading import Item


def lacking(wide: Contents, widths: Mapping[str, int]) -> NDArray[Any]:
    """The entries of a nested chain's weights that its student of `widths` leaves unknown.

    Args:
        wide: the chain.
        widths: free group -> channels of the narrower one.

    Returns:
        Flat, weight by weight, in the order of the weights.
    """
    parts, start = [wide.weights[:0]], 0
    for _, kept, known in _weights(wide, widths):
        end = start + known.size * kept.area
        parts.append(wide.weights[start:end].reshape(*known.shape, kept.area)[known].ravel())
        start = end
    return np.concatenate(parts)


def widened(
    wide: Contents, widths: Mapping[str, int], narrow: NDArray[Any], others: NDArray[Any]
) -> NDArray[np.float64]:
    """The weights of a nested chain from those of its student and what that lacks.

    Args:
        wide: the chain; its weights are not read.
        widths: free group -> channels of the student.
        narrow: flat, the student's weights.
        others: flat, `lacking(wide, widths)`.

    Returns:
        float64, flat. Entries of `others` are unchanged; the rest are solved for in float64.
    """
    parts, from_narrow, from_others = [np.empty(0)], 0, 0
    for merged, kept, known in _weights(wide, widths):
        rows, columns, area = merged
        weight = np.zeros((*known.shape, area))
        end = from_others + int(known.sum()) * area
        weight[known] = others[from_others:end].reshape(-1, area)
        from_others = end
        end = from_narrow + len(rows) * len(columns) * area
        rest = narrow[from_narrow:end] - reading.apply([merged], weight.ravel())
        from_narrow = end
        share = np.empty(rows.size)
        share[rows.index] = rows.weight
        rest = rest.reshape(len(rows), -1) / share[kept.rows.index][:, None]
        weight[~known] = rest.reshape(-1, area)  # kept channels ascend as their clusters do
        parts.append(weight.ravel())
    return np.concatenate(parts)


def _weights(
    wide: Contents, widths: Mapping[str, int]
) -> Iterator[tuple[Item, Item, NDArray[np.bool_]]]:
    """Of every weight (block): its merge, the channels kept, and which entries (s, t) are known."""
    layouts = wide.coupling.layouts_of(("weight",), wide.absent)
    merges = reading.student(wide.coupling, wide.partitions, widths, "interpolate", layouts)
    for merged, kept in zip(merges, reading.kept(wide.coupling, wide.trees, widths, layouts)):
        known = np.ones((kept.rows.size, kept.columns.size), dtype=bool)
        known[np.ix_(kept.rows.index, kept.columns.index)] = False
        yield merged, kept, known
