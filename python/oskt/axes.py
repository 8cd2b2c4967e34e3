"""Axes of a traced tensor: runs of atoms, which operators tie together, split or freeze."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple


class Atom:
    """A run of channels that share one partition: a union-find node that can also be split."""

    def __init__(self, size: int, frozen: str | None = None) -> None:
        self.size = size
        self.frozen = frozen
        self.blocks = 1  # clusters may not cross a border between blocks (grouped convolution)
        self.parent: Atom | None = None
        self.children: tuple[Atom, Atom] | None = None

    def find(self) -> Atom:
        node = self
        while node.parent is not None:
            node = node.parent
        return node

    def leaves(self) -> Iterator[Atom]:
        root = self.find()
        if root.children is None:
            yield root
        else:
            for child in root.children:
                yield from child.leaves()

    def freeze(self, reason: str) -> None:
        for leaf in self.leaves():
            leaf.frozen = leaf.frozen or reason

    def split(self, first: int) -> None:
        """Cut a leaf root into its first channels and the rest."""
        self.children = (Atom(first, self.frozen), Atom(self.size - first, self.frozen))

    def join(self, other: Atom) -> None:
        """Tie two leaf roots of one size."""
        if self is not other:
            other.parent = self
            self.frozen = self.frozen or other.frozen
            self.blocks = math.lcm(self.blocks, other.blocks)


class Run(NamedTuple):
    """A stretch of an axis: the channels of an atom, each `area` entries long."""

    atom: Atom
    area: int


Axis = tuple[Run, ...] | None


def leaf_runs(axis: tuple[Run, ...]) -> list[Run]:
    return [Run(leaf, run.area) for run in axis for leaf in run.atom.leaves()]


def freeze(axis: Axis, reason: str) -> None:
    for run in axis or ():
        run.atom.freeze(reason)


def unify(left: tuple[Run, ...], right: tuple[Run, ...], op: str) -> None:
    """Tie two axes of equal length channel by channel, splitting atoms where borders differ."""
    while True:
        a, b = leaf_runs(left), leaf_runs(right)
        for x, y in zip(a, b):
            if x.atom is y.atom and x.area == y.area:
                continue
            if x.area != y.area or (
                x.atom.size != y.atom.size and max(x.atom, y.atom, key=_size).blocks > 1
            ):
                freeze(left, f"{op} ties axes of different structure")
                freeze(right, f"{op} ties axes of different structure")
                return
            if x.atom.size == y.atom.size:
                x.atom.join(y.atom)
            else:
                long, short = (x.atom, y.atom) if x.atom.size > y.atom.size else (y.atom, x.atom)
                long.split(short.size)
            break  # leaves changed: look again
        else:
            return


def _size(atom: Atom) -> int:
    return atom.size
