"""What a chain file holds, apart from how it lies on disk. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oskt.coupling import Coupling
from oskt.merge_tree import MergeTree, Partitions
from oskt.widths import Clustering


@dataclass(frozen=True, eq=False)
class Contents:
    """The numbers of a chain and everything that says what they are; see WeightChain.

    Args:
        coupling, partitions, absent, meta: as in oskt.sizes.Sizes.
        weights, vectors, statistics: flat arrays of one kind, torch's or NumPy's.
        plain: state-dict name -> array, of tensors that no group touches.
    """

    coupling: Coupling
    partitions: Partitions
    weights: Any
    vectors: Any
    statistics: Any
    plain: Mapping[str, Any]
    absent: tuple[str, ...]
    meta: Mapping[str, Any]

    def tensors(self) -> dict[str, Any]:
        """Every array by the name it has in a file; those of partitions in few bytes."""
        named = {"weights": self.weights, "vectors": self.vectors, "statistics": self.statistics}
        named |= {f"plain.{name}": array for name, array in self.plain.items()}
        for name, partition in self.partitions.items():
            for field in _fields(isinstance(partition, MergeTree)):
                named[f"{field}.{name}"] = _small(getattr(partition, field))
        return named

    def header(self) -> dict[str, Any]:
        """The rest, as JSON values."""
        trees = {n: p for n, p in self.partitions.items() if isinstance(p, MergeTree)}
        return {
            "coupling": self.coupling.to_json(),
            "blocks": {name: partition.blocks for name, partition in self.partitions.items()},
            "narrowest": {name: tree.narrowest for name, tree in trees.items()},
            "measured": {name: tree.measured for name, tree in trees.items()},
            "absent": self.absent,
            "meta": self.meta,
        }

    @staticmethod
    def of(named: Mapping[str, Any], header: Mapping[str, Any]) -> Contents:
        """The contents whose `tensors()` and `header()` these are; names it knows not are left."""
        narrowest = header.get("narrowest", {})  # files from before nested chains have none
        partitions: dict[str, Clustering | MergeTree] = {}
        for name, blocks in header["blocks"].items():
            arrays = {
                field: np.asarray(named[f"{field}.{name}"]).astype(np.int64)
                for field in _fields(name in narrowest)
            }
            if name in narrowest:
                measured = tuple(header["measured"][name])
                partitions[name] = MergeTree(
                    **arrays, narrowest=narrowest[name], blocks=blocks, measured=measured
                )
            else:
                partitions[name] = Clustering(**arrays, blocks=blocks)
        return Contents(
            Coupling.from_json(header["coupling"]),
            partitions,
            named["weights"],
            named["vectors"],
            named["statistics"],
            {n.removeprefix("plain."): t for n, t in named.items() if n.startswith("plain.")},
            tuple(header["absent"]),
            header["meta"],
        )


def _fields(nested: bool) -> tuple[str, ...]:
    return ("order", "parent", "sizes") if nested else ("labels",)


def _small(values: NDArray[np.int64]) -> NDArray[Any]:
    """In the smallest integers that hold them and that torch knows."""
    kinds = (np.uint8, np.int16, np.int32, np.int64)
    low, high = values.min(), values.max()
    kind = next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    return values.astype(kind)
