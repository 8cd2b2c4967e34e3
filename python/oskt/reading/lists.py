"""Ragged lists of weighted sources: how the axes of an array are read. NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Reading:
    """How an axis is read: entry i is the sum over p of weight[p] * source[index[p]].

    The p of entry i are offsets[i] <= p < offsets[i + 1], at least one. It is oskt_ext.IndexMap
    where there is no torch.

    Args:
        offsets: int64 [n + 1], ascending from 0.
        index: int64 [nnz], 0 <= index < size.
        weight: float64 [nnz].
        size: entries of the source.

    Example:
        >>> mean = Reading.mean(np.array([0, 1, 0]))
        >>> mean.read(np.array([1.0, 5.0, 3.0]), 0).tolist()
        [2.0, 5.0]
    """

    offsets: NDArray[np.int64]
    index: NDArray[np.int64]
    weight: NDArray[np.float64]
    size: int

    @staticmethod
    def of(entry: Any, index: Any, weight: Any, size: int) -> Reading:
        """From triples in any order: entry[p] reads weight[p] of source index[p]."""
        order = np.argsort(entry, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(entry))])
        return Reading(offsets, index[order], weight[order], size)

    @staticmethod
    def select(index: Any, size: int) -> Reading:
        """Entry i reads source index[i]."""
        return Reading(np.arange(len(index) + 1), np.asarray(index), np.ones(len(index)), size)

    @staticmethod
    def identity(size: int) -> Reading:
        """Entry i reads source i."""
        return Reading.select(np.arange(size), size)

    @staticmethod
    def sum(labels: NDArray[np.int64]) -> Reading:
        """Entry i reads all sources of label i, every one of 0..n-1 present."""
        return Reading.of(labels, np.arange(len(labels)), np.ones(len(labels)), len(labels))

    @staticmethod
    def mean(labels: NDArray[np.int64], shares: Any = None) -> Reading:
        """Entry i reads the mean of the sources of label i, each weighted by its share or 1."""
        counts = np.ones(len(labels)) if shares is None else np.asarray(shares, dtype=np.float64)
        weight = counts / np.bincount(labels, counts)[labels]
        return Reading.of(labels, np.arange(len(labels)), weight, len(labels))

    @staticmethod
    def joined(parts: Sequence[Reading]) -> Reading:
        """Of a concatenated axis: each part reads its own stretch of the source."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(part.size for part in parts)])
        entries = np.cumsum([0, *(len(part) for part in parts)])
        return Reading.of(
            np.concatenate([part.entry + e for part, e in zip(parts, entries)]),
            np.concatenate([part.index + s for part, s in zip(parts, starts)]),
            np.concatenate([part.weight for part in parts]),
            int(starts[-1]),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def entry(self) -> NDArray[np.int64]:
        """[nnz], the entry that reads index[p]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def take(self, entries: Any) -> Reading:
        """Entry i is this reading's entry entries[i]."""
        lengths = np.diff(self.offsets)[entries]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[entries] - offsets[:-1], lengths)
        return Reading(offsets, self.index[places], self.weight[places], self.size)

    def scaled(self, factors: NDArray[np.float64]) -> Reading:
        """Entry i times factors[i]."""
        if (factors == 1).all():
            return self
        return replace(self, weight=self.weight * factors[self.entry])

    def with_area(self, area: int) -> Reading:
        """Every entry becomes `area` entries: the reading of a flattened axis."""
        if area == 1:
            return self

        def flattened(values: NDArray[np.int64]) -> NDArray[np.int64]:
            return (values[:, None] * area + np.arange(area)).ravel()

        return Reading.of(
            flattened(self.entry),
            flattened(self.index),
            np.repeat(self.weight, area),
            self.size * area,
        )

    def blocks(self, count: int) -> list[Reading]:
        """The reading of each of `count` equal blocks, none of which reads another."""
        entries, size = len(self) // count, self.size // count
        parts = []
        for block in range(count):
            offsets = self.offsets[block * entries : (block + 1) * entries + 1]
            mine = slice(offsets[0], offsets[-1])
            index = self.index[mine] - block * size
            parts.append(Reading(offsets - offsets[0], index, self.weight[mine], size))
        return parts

    def read(self, source: NDArray[Any], axis: int) -> NDArray[Any]:
        """Read an axis of an array; sums in the array's dtype, in the order of the lists."""
        one_each = len(self.index) == len(self)
        plain = bool((self.weight == 1).all())
        if one_each and plain and np.array_equal(self.index, np.arange(self.size)):
            return source
        gathered = source.take(self.index, axis)
        if not plain:
            shape = [-1 if d == axis % source.ndim else 1 for d in range(source.ndim)]
            gathered *= self.weight.astype(source.dtype).reshape(shape)
        return gathered if one_each else np.add.reduceat(gathered, self.offsets[:-1], axis)


class Item(NamedTuple):
    """A source matrix (rows.size, columns.size, area) and how a student's matrix reads it."""

    rows: Reading
    columns: Reading
    area: int


def apply(items: Sequence[Item], flat: NDArray[Any]) -> NDArray[Any]:
    """The flat student of a flat source: what oskt_ext.expand computes, to rounding.

    W[i, j, :] = sum over s of a_s * sum over t of b_t * source[s, t, :], rows first; items lie one
    after the other in both. Sums in the dtype of `flat`.
    """
    parts, start = [np.empty(0, flat.dtype)], 0
    for rows, columns, area in items:
        end = start + rows.size * columns.size * area
        source = flat[start:end].reshape(rows.size, columns.size, area)
        parts.append(columns.read(rows.read(source, 0), 1).ravel())
        start = end
    return np.concatenate(parts)
