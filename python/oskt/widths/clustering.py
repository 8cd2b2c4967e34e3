"""Clusterings of a group's channels, and the copies that a student makes of chain rows."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
