"""Axes of a traced tensor: runs of atoms, which operators tie together, split or freeze."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias


class Atom:
    """A run of channels that share one partition: a union-find node that can also be split, or be
    found to come in units of several channels."""

    def __init__(self, size: int, frozen: str | None = None) -> None:
        self.size = size
        self.frozen = frozen
        self.blocks = 1  # clusters may not cross a border between blocks (heads, grouped layers)
        self.product = ""  # see ChannelGroup.product
        self.parent: Atom | None = None
        self.children: tuple[Atom, Atom] | None = None
        self.unit: tuple[Atom, int] | None = None

    def find(self) -> Atom:
        node = self
        while node.parent is not None:
            node = node.parent
        return node

    def leaves(self, area: int = 1) -> Iterator[Run]:
        """What is left of this atom, each `area` entries a channel."""
        root = self.find()
        if root.children is not None:
            for child in root.children:
                yield from child.leaves(area)
        elif root.unit is not None:
            unit, channels = root.unit
            yield from unit.leaves(area * channels)
        else:
            yield Run(root, area)

    def freeze(self, reason: str) -> None:
        for leaf, _ in self.leaves():
            leaf.frozen = leaf.frozen or reason

    def split(self, first: int) -> bool:
        """Cut a leaf root into its first channels and the rest, at a border of blocks."""
        length = self.size // self.blocks
        if self.blocks > 1 and first % length:
            return False
        self.children = (Atom(first, self.frozen), Atom(self.size - first, self.frozen))
        for child in self.children:
            child.blocks = child.size // length if self.blocks > 1 else 1
            child.product = self.product
        return True

    def coarsen(self, channels: int) -> bool:
        """Let every `channels` consecutive channels of a leaf root be one channel of a unit."""
        length = self.size // self.blocks
        if length % channels:
            return False
        unit = Atom(self.size // channels, self.frozen)
        unit.blocks, unit.product = self.blocks, self.product
        self.unit = (unit, channels)
        return True

    def join(self, other: Atom) -> None:
        """Tie two leaf roots of one size."""
        if self is not other:
            other.parent = self
            self.frozen = self.frozen or other.frozen
            self.blocks = math.lcm(self.blocks, other.blocks)
            self.product = self.product or other.product


class Run(NamedTuple):
    """A stretch of an axis: the channels of an atom, each `area` entries long."""

    atom: Atom
    area: int


Runs: TypeAlias = tuple[Run, ...]


@dataclass(frozen=True, eq=False)
class Split:
    """An axis that a view cut into `count` equal stretches: two dimensions hold it together.

    Heads of attention are such stretches; so are the three parts of a fused q, k, v.
    """

    parent: Axis
    count: int


@dataclass(frozen=True, eq=False)
class Outer:
    """The dimension that counts the stretches of a split. Its size never changes."""

    split: Split


@dataclass(frozen=True, eq=False)
class Inner:
    """The dimension that lies within a stretch; which channel it is, the Outer one says."""

    split: Split


@dataclass(frozen=True, eq=False)
class Counted:
    """Outer dimensions and such without channels, joined to one by a view: batch x heads."""

    factors: tuple[tuple[int, Outer | None], ...]  # (size, axis), the slowest first


Axis: TypeAlias = "Runs | Outer | Inner | Counted | None"  # None: batch, space; no channel identity


def leaf_runs(axis: Axis) -> list[Run]:
    """All channels that an axis touches; of a split, those of its parent."""
    if axis is None:
        return []
    if isinstance(axis, (Outer, Inner)):
        return leaf_runs(axis.split.parent)
    if isinstance(axis, Counted):
        return [run for _, factor in axis.factors for run in leaf_runs(factor)]
    return [leaf for run in axis for leaf in run.atom.leaves(run.area)]


def splits_of(axis: Axis) -> list[Split]:
    """The splits whose stretches a dimension counts."""
    factors = [f for _, f in axis.factors] if isinstance(axis, Counted) else [axis]
    return [factor.split for factor in factors if isinstance(factor, Outer)]


def freeze(axis: Axis, reason: str) -> None:
    for run in leaf_runs(axis):
        run.atom.freeze(reason)


def unify(left: Axis, right: Axis, op: str) -> None:
    """Tie two axes of equal length channel by channel, cutting atoms where borders differ."""
    if left is None or right is None or left is right:
        return
    if isinstance(left, Inner) and isinstance(right, Inner):
        if left.split.count == right.split.count:
            unify(left.split.parent, right.split.parent, op)
            return
    elif isinstance(left, (Outer, Counted)) and isinstance(right, (Outer, Counted)):
        return  # two counts of stretches, neither of which changes
    elif isinstance(left, tuple) and isinstance(right, tuple) and _unify_runs(left, right):
        return
    for axis in (left, right):
        freeze(axis, f"{op} ties axes of different structure")


def _unify_runs(left: Runs, right: Runs) -> bool:
    while True:
        for x, y in zip(leaf_runs(left), leaf_runs(right)):
            if x.atom is y.atom and x.area == y.area:
                continue
            if x.area != y.area:
                coarse, fine = (x, y) if x.area > y.area else (y, x)
                times, rest = divmod(coarse.area, fine.area)
                if rest or not fine.atom.coarsen(times):
                    return False
            elif x.atom.size == y.atom.size:
                x.atom.join(y.atom)
            else:
                long, short = (x.atom, y.atom) if x.atom.size > y.atom.size else (y.atom, x.atom)
                if not long.split(short.size):
                    return False
            break  # leaves changed: look again
        else:
            return True


def stretch(axis: Axis, start: int, stop: int) -> Runs | None:
    """The entries start..stop-1 of an axis, cutting atoms at the borders; None: not possible."""
    if not isinstance(axis, tuple):
        return None
    while True:
        kept, place = [], 0
        for run in leaf_runs(axis):
            end = place + run.atom.size * run.area
            border = next((b for b in (start, stop) if place < b < end), None)
            if border is not None:
                channels, rest = divmod(border - place, run.area)
                if rest or not run.atom.split(channels):
                    return None
                break  # leaves changed: look again
            if start <= place and end <= stop:
                kept.append(run)
            place = end
        else:
            return tuple(kept)


def stretches(split: Split) -> list[Runs] | None:
    """Every stretch of a split as an axis of its own; None: not possible."""
    length = sum(run.atom.size * run.area for run in leaf_runs(split.parent)) // split.count
    parts = [stretch(split.parent, i * length, (i + 1) * length) for i in range(split.count)]
    return None if any(part is None for part in parts) else [part for part in parts if part]


def interleaved(split: Split, op: str) -> Axis:
    """The axis whose entries take turns between the stretches of a split (a channel shuffle): the
    stretches are tied, and every channel then has one entry of each, side by side."""
    parts = stretches(split)
    if parts is None:
        freeze(split.parent, f"{op} shuffles it")
        return None
    for part in parts[1:]:
        unify(parts[0], part, op)
    return tuple(Run(run.atom, run.area * split.count) for run in leaf_runs(parts[0]))


def coarsened(axis: Runs, area: int) -> bool:
    """Whether every channel of an axis can be made to have a multiple of `area` entries."""
    for run in leaf_runs(axis):
        if run.area % area:
            times = area // math.gcd(run.area, area)
            if not run.atom.coarsen(times):
                return False
    return True


def divided(axis: Runs, area: int) -> Runs:
    """The axis with 1/area of the entries of every channel."""
    return tuple(Run(run.atom, run.area // area) for run in leaf_runs(axis))


def multiplied(axis: Runs, area: int) -> Runs:
    """The axis with `area` times the entries of every channel."""
    return tuple(Run(run.atom, run.area * area) for run in axis)


def evenly(axis: Axis, count: int) -> bool:
    """Whether `count` equal stretches of an axis stay equally wide; they then become blocks of
    groups that lie over several."""
    runs = leaf_runs(axis)
    length = sum(run.atom.size * run.area for run in runs) // count
    within: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    blocks: list[tuple[Atom, int]] = []
    place = 0
    for run in runs:
        first, offset = divmod(place, length)
        place += run.atom.size * run.area
        number = max(1, -(-(place - first * length) // length))
        if number > 1 and (offset or place % length or run.atom.size % number):
            return False
        blocks.append((run.atom, number))
        for stretch_ in within[first : first + number]:
            stretch_.append((id(run.atom), run.area * run.atom.size // number))
    if any(sorted(stretch_) != sorted(within[0]) for stretch_ in within):
        return False
    for atom, number in blocks:
        atom.blocks = math.lcm(atom.blocks, number)
    return True


def settle(splits: Sequence[Split]) -> None:
    """Keep the stretches of splits equally wide."""
    for split in splits:
        if not evenly(split.parent, split.count):
            freeze(split.parent, "a view cuts it into unequal parts")
