"""What a chain file holds, apart from how it lies on disk. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oskt.coupling import Coupling
from oskt.widths import Clustering
from oskt.widths.merge_tree import MergeTree, Partitions


@dataclass(frozen=True, eq=False)
class Contents:
    """The numbers of a chain and everything that says what they are; see WeightChain.

    Args:
        coupling, partitions, absent, meta: as in oskt.widths.sizes.Sizes.
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

    @property
    def trees(self) -> dict[str, MergeTree]:
        """Free group -> the nesting of its channels; empty for a chain of kind "oskt"."""
        return {n: p for n, p in self.partitions.items() if isinstance(p, MergeTree)}

    def mapped(self, convert: Callable[[Any], Any]) -> Contents:
        """The contents with another kind of arrays."""
        return replace(
            self,
            weights=convert(self.weights),
            vectors=convert(self.vectors),
            statistics=convert(self.statistics),
            plain={name: convert(array) for name, array in self.plain.items()},
        )

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
        return {
            "coupling": self.coupling.to_json(),
            "blocks": {name: partition.blocks for name, partition in self.partitions.items()},
            "narrowest": {name: tree.narrowest for name, tree in self.trees.items()},
            "measured": {name: tree.measured for name, tree in self.trees.items()},
            "merges": {name: tree.merges for name, tree in self.trees.items()},
            "absent": self.absent,
            "meta": self.meta,
        }

    @staticmethod
    def of(named: Mapping[str, Any], header: Mapping[str, Any]) -> Contents:
        """The contents whose `tensors()` and `header()` these are; names it knows not are left.

        Raises:
            ValueError: fields that this version does not know, or lacks.
        """
        try:
            return Contents._of(named, header)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"load: header of the chain must have the fields of this version, got {error}. "
                "Another version of oskt wrote it: read it with that one."
            ) from error

    @staticmethod
    def _of(named: Mapping[str, Any], header: Mapping[str, Any]) -> Contents:
        coupling = Coupling.from_json(header["coupling"])
        narrowest = header["narrowest"]
        partitions: dict[str, Clustering | MergeTree] = {}
        for name in coupling.free:
            blocks = header["blocks"][name]
            arrays = {
                field: np.asarray(named[f"{field}.{name}"]).astype(np.int64)
                for field in _fields(name in narrowest)
            }
            if name in narrowest:
                partitions[name] = MergeTree(
                    **arrays,
                    narrowest=narrowest[name],
                    blocks=blocks,
                    measured=tuple(header["measured"][name]),
                    merges=header["merges"][name],
                )
            else:
                partitions[name] = Clustering(**arrays, blocks=blocks)
        return Contents(
            coupling,
            partitions,
            named["weights"],
            named["vectors"],
            named["statistics"],
            {n: named[f"plain.{n}"] for n in coupling.layouts if f"plain.{n}" in named},
            tuple(header["absent"]),
            header["meta"],
        )


def together(ladder: Sequence[Contents]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and header of a file that holds several chains of one teacher.

    What is equal in all (the coupling, the teacher's vectors) stands there once; an array of chain
    number i alone has "i." before its name, and header["chains"][i] has its own JSON values.
    """
    tensors = [contents.tensors() for contents in ladder]
    headers = [contents.header() for contents in ladder]
    shared = {n: x for n, x in tensors[0].items() if all(_equal(x, other[n]) for other in tensors)}
    header = {n: x for n, x in headers[0].items() if all(x == other[n] for other in headers)}
    own = {
        f"{number}.{name}": array
        for number, arrays in enumerate(tensors)
        for name, array in arrays.items()
        if name not in shared
    }
    chains = [{n: x for n, x in values.items() if n not in header} for values in headers]
    return {**shared, **own}, {**header, "chains": chains}


def apart(named: Mapping[str, Any], header: Mapping[str, Any]) -> list[Contents]:
    """The chains of a file, whether of one chain or of `together`."""
    found = []
    for number, values in enumerate(header.get("chains", [{}])):
        own = {
            name.removeprefix(f"{number}."): array
            for name, array in named.items()
            if name.startswith(f"{number}.")
        }
        found.append(Contents.of({**named, **own}, {**header, **values}))
    return found


def _equal(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())


def _fields(nested: bool) -> tuple[str, ...]:
    return ("order", "parent", "sizes") if nested else ("labels",)


def _small(values: NDArray[np.int64]) -> NDArray[Any]:
    """In the smallest integers that hold them and that torch knows."""
    kinds = (np.uint8, np.int16, np.int32, np.int64)
    low, high = values.min(), values.max()
    kind = next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    return values.astype(kind)
