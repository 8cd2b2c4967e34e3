"""Merge trees: the nesting of a channel group's channels, of which every cut is a width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oskt.widths.clustering import Clustering


@dataclass(frozen=True, eq=False)
class MergeTree:
    """A dendrogram over a group's N channels, written in the order in which clusters split.

    Position 0 begins as everything. Position i > 0 splits off from position parent[i] < i, which
    keeps the rest. So the cut at n needs the first n positions, position i keeps its channel
    order[i] in every wider cut, and a tree cut off at n is its first n parents.

    Where clusters do not merge, a student has the channels order[:n] and nothing of the others:
    the tree is that order, and every position but 0 has parent 0.

    Args:
        order: int64 [N], the channel that position i is once all have split.
        parent: int64 [N], parent[i] < i; -1 at 0.
        sizes: int64 [N], original channels that position i stands for: 1, or more in a chain that
            was truncated. Means weigh by it.
        narrowest: the width, in 1..N, below which the chain was not trained.
        blocks: the group is this many equal stretches, none merged with another; the arrays then
            hold one tree after the other, each counting its positions and channels from 0.
        measured: widths, never falling, at which the chain holds norm statistics beside N.
        merges: whether a student's channel is the merge of its cluster, or the one channel that
            the cluster keeps.

    Raises:
        ValueError: arrays that are no tree.

    Example:
        >>> tree = MergeTree(np.array([0, 2, 1]), np.array([-1, 0, 0]), np.ones(3, int))
        >>> [tree.cut(n).labels.tolist() for n in (1, 2, 3)]
        [[0, 0, 0], [0, 0, 1], [0, 1, 2]]
    """

    order: NDArray[np.int64]
    parent: NDArray[np.int64]
    sizes: NDArray[np.int64]
    narrowest: int = 1
    blocks: int = 1
    measured: tuple[int, ...] = ()
    merges: bool = True

    def __post_init__(self) -> None:
        lengths = {len(self.order), len(self.parent), len(self.sizes)}
        whole = len(lengths) == 1 and self.rows > 0 and self.rows % self.blocks == 0
        if not whole or not all(map(self._is_tree, range(self.blocks))):
            raise ValueError(
                "MergeTree: order must be a permutation, parent[i] in 0..i-1 after -1 and sizes "
                f"positive, {self.blocks} times over, got order {_start(self.order)}, parent "
                f"{_start(self.parent)} and sizes {_start(self.sizes)}. "
                "The chain file was edited, or the arrays belong to different groups."
            )
        for name, n in [("narrowest", self.narrowest), *(("measured", n) for n in self.measured)]:
            self._check(name, n)

    def _is_tree(self, block: int) -> bool:
        order, parent, sizes = self._block(block)
        positions = np.arange(len(order))
        return (
            np.array_equal(np.sort(order), positions)
            and parent[0] == -1
            and bool(((parent >= 0) & (parent < positions))[1:].all())
            and bool((sizes > 0).all())
        )

    def _check(self, name: str, n: int) -> None:
        if not self.blocks <= n <= self.rows or n % self.blocks:
            raise ValueError(
                f"MergeTree: {name} must be from {self.blocks} to {self.rows} in steps of "
                f"{self.blocks}, got {n}. Choose a width in that range."
            )

    def _block(self, block: int) -> Iterator[NDArray[np.int64]]:
        """order, parent and sizes of one block."""
        count = self.rows // self.blocks
        part = slice(block * count, (block + 1) * count)
        return (array[part] for array in (self.order, self.parent, self.sizes))

    @property
    def rows(self) -> int:
        """Rows that the chain keeps of every weight: all N."""
        return len(self.parent)

    @property
    def least(self) -> int:
        """The narrowest cut that exists."""
        return self.blocks

    def cut(self, n: int) -> Clustering:
        """The n nested clusters, n in whole blocks, in the order of their channels `order[i]`: so
        the cut at N is the identity.

        Raises:
            ValueError: n out of range or not in whole blocks.
        """
        self._check("n", n)
        count, kept = self.rows // self.blocks, n // self.blocks
        labels = np.empty(self.rows, dtype=np.int64)
        for block in range(self.blocks):
            order, parent, _ = self._block(block)
            place = np.arange(count)
            place[kept:] = parent[kept:]
            while (place >= kept).any():  # every round doubles the steps towards position 0
                place = place[place]
            labels[block * count + order] = block * kept + _ranks(order[:kept])[place]
        return Clustering(labels, self.blocks)

    def coarsened(self, fine: int, coarse: int) -> NDArray[np.int64]:
        """[fine], the cluster at the cut `coarse` <= `fine` that holds each cluster at `fine`."""
        clusters = np.empty(fine, dtype=np.int64)
        clusters[self.cut(fine).labels] = self.cut(coarse).labels
        return clusters

    def shares(self) -> NDArray[np.int64]:
        """[N] in channel order: original channels that each channel stands for."""
        shares = np.empty_like(self.sizes)
        shares[self._channels(self.rows)] = self.sizes
        return shares

    def kept(self, n: int) -> NDArray[np.int64]:
        """[n]: of each cluster of the cut at n, the channel that it keeps at every wider cut."""
        self._check("n", n)
        return np.sort(self._channels(n))

    def truncated(self, n: int) -> MergeTree:
        """The tree of the student of width n: its channels are the clusters of the cut at n."""
        labels = self.cut(n).labels
        channels = self._channels(n)
        count, kept = self.rows // self.blocks, n // self.blocks
        first = [block * count + np.arange(kept) for block in range(self.blocks)]
        return MergeTree(
            labels[channels] % kept,
            self.parent[np.concatenate(first)],
            np.bincount(labels, self.shares()).astype(np.int64)[labels[channels]],
            min(self.narrowest, n),
            self.blocks,
            tuple(width for width in self.measured if width < n),
            self.merges,
        )

    def _channels(self, n: int) -> NDArray[np.int64]:
        """[n]: the channel of each of the first n positions, block after block."""
        count, kept = self.rows // self.blocks, n // self.blocks
        starts = count * np.arange(self.blocks)[:, None]
        return (starts + self.order.reshape(self.blocks, count)[:, :kept]).ravel()


Partitions = Mapping[str, Clustering | MergeTree]  # free group -> what a chain cuts it by


def _ranks(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each value among all."""
    return np.argsort(np.argsort(values))


def _start(values: NDArray[np.int64]) -> str:
    return f"{values[:8].tolist()}{'...' if len(values) > 8 else ''}"
