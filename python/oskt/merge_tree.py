"""Merge trees: every number of nested clusters of a channel group in one array of parents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oskt.widths import Clustering


@dataclass(frozen=True, eq=False)
class MergeTree:
    """A dendrogram over a group's N channels, written in the order in which clusters split.

    Position 0 begins as everything. Position i > 0 splits off from position parent[i] < i, which
    keeps the rest. So the cut at n needs the first n positions, a cluster keeps its place in every
    wider cut, and a tree cut off at n is its first n parents.

    Args:
        order: int64 [N], the channel that position i is once all have split.
        parent: int64 [N], parent[i] < i; -1 at 0.
        sizes: int64 [N], original channels that position i stands for: 1, or more in a chain that
            was truncated. Means weigh by it.
        narrowest: the width, in 1..N, below which the chain was not trained.
        blocks: the group is this many equal stretches, none merged with another; the arrays then
            hold one tree after the other, each counting its positions and channels from 0.

    Example:
        >>> tree = MergeTree(np.array([0, 2, 1]), np.array([-1, 0, 0]), np.ones(3, int))
        >>> [tree.cut(n).labels.tolist() for n in (1, 2, 3)]
        [[0, 0, 0], [0, 0, 1], [0, 2, 1]]
    """

    order: NDArray[np.int64]
    parent: NDArray[np.int64]
    sizes: NDArray[np.int64]
    narrowest: int = 1
    blocks: int = 1

    def __post_init__(self) -> None:
        count = len(self.parent) // self.blocks
        positions = np.arange(count)
        for block in range(self.blocks):
            part = slice(block * count, (block + 1) * count)
            parent, order = self.parent[part], self.order[part]
            whole = len(order) == count and np.array_equal(np.sort(order), positions)
            grown = count and parent[0] == -1 and (parent[1:] >= 0).all()
            if not whole or not grown or not (parent[1:] < positions[1:]).all():
                raise ValueError(
                    "MergeTree: order must be a permutation and parent[i] in 0..i-1 after -1, got "
                    f"order {order[:8].tolist()}... and parent {parent[:8].tolist()}.... "
                    "The chain file was edited, or the arrays belong to different groups."
                )

    @property
    def rows(self) -> int:
        """Rows that the chain keeps of every weight: all N."""
        return len(self.parent)

    @property
    def least(self) -> int:
        """The narrowest cut that exists."""
        return self.blocks

    def cut(self, n: int) -> Clustering:
        """The n nested clusters, n in whole blocks; cluster i is position i."""
        count, kept = self.rows // self.blocks, n // self.blocks
        labels = np.empty(self.rows, dtype=np.int64)
        for block in range(self.blocks):
            start = block * count
            parent = self.parent[start : start + count]
            place = np.arange(count)
            while (high := place >= kept).any():  # as often as the tree is deep
                place[high] = parent[place[high]]
            labels[start + self.order[start : start + count]] = place + block * kept
        return Clustering(labels, self.blocks)

    def shares(self) -> NDArray[np.int64]:
        """[N] in channel order: original channels that each channel stands for."""
        count = self.rows // self.blocks
        starts = np.repeat(np.arange(self.blocks) * count, count)
        shares = np.empty(self.rows, dtype=np.int64)
        shares[starts + self.order] = self.sizes
        return shares

    def truncated(self, n: int) -> MergeTree:
        """The tree of the student of width n: its channels are the positions below n."""
        count, kept = self.rows // self.blocks, n // self.blocks
        first = np.concatenate([np.arange(kept) + b * count for b in range(self.blocks)])
        sizes = np.bincount(self.cut(n).labels, weights=self.shares()).astype(np.int64)
        return MergeTree(
            np.tile(np.arange(kept), self.blocks),
            self.parent[first],
            sizes,
            min(self.narrowest, n),
            self.blocks,
        )
