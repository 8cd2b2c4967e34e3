"""Which students a chain offers, what they cost, and the search for a budget. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oskt import presets, widths
from oskt.coupling import Coupling, TensorLayout
from oskt.merge_tree import MergeTree, Partitions
from oskt.widths import Clustering


class Sizes:
    """A chain without its numbers; WeightChain and oskt.edge.EdgeChain add those.

    Attributes:
        coupling: the channel groups of the teacher.
        partitions: free group -> Clustering (labels N -> M) or, in a nested chain, MergeTree.
        absent: weights that only training needs (a classifier) and that the file left out.
        meta: kind, spec of the model, parent hash and how the chain was made.
    """

    def __init__(
        self,
        coupling: Coupling,
        partitions: Partitions,
        *,
        absent: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self.coupling = coupling
        self.partitions = dict(partitions)
        self.absent = tuple(absent)
        self.meta = dict(meta or {})

    @property
    def kind(self) -> str:
        """ "oskt" or "nested"."""
        return "nested" if self.trees else "oskt"

    @property
    def trees(self) -> dict[str, MergeTree]:
        """Free group -> the nesting of its channels; empty for a chain of kind "oskt"."""
        return {g: p for g, p in self.partitions.items() if isinstance(p, MergeTree)}

    @property
    def clusterings(self) -> dict[str, Clustering]:
        """Free group -> its clustering; empty for a nested chain."""
        return {g: p for g, p in self.partitions.items() if isinstance(p, Clustering)}

    @property
    def groups(self) -> dict[str, int]:
        """Free group -> N, the teacher's width."""
        return {name: group.size for name, group in self.coupling.free.items()}

    @property
    def widths(self) -> dict[str, int]:
        """Free group -> the narrowest width that is trained: that of the S-Student."""
        return {name: partition.narrowest for name, partition in self.partitions.items()}

    @property
    def least(self) -> dict[str, int]:
        """Free group -> the narrowest width that exists: M, or 1 per block in a nested chain."""
        return {name: partition.least for name, partition in self.partitions.items()}

    @property
    def layouts(self) -> list[TensorLayout]:
        """The layouts of the numbers that the chain holds: weights, then vectors, statistics."""
        return self.coupling.layouts_of(("weight", "vector", "statistic"), self.absent)

    def resolve(
        self,
        width: float | None = None,
        widths_: Mapping[str, int] | None = None,
        preset: str | None = None,
        params: float | None = None,
        macs: float | None = None,
    ) -> dict[str, int]:
        """The width of every free group from a share, a mapping, a preset or a budget.

        Groups that a mapping does not name stay at chain width. A share below what exists gives
        the narrowest that does. A budget (params, macs or both) gives the largest share that fits.

        Args:
            width: share of the teacher's channels in every group, in (0, 1].
            widths_: group -> channels.
            preset: a key of oskt.presets.PRESETS, on the chain of a residual network.
            params, macs: at most so many parameters and MACs per image (see costs).

        Raises:
            ValueError: none or several of these, a value out of range, an unknown name, or a budget
                below the smallest student.
        """
        budget = None if params is None and macs is None else (params, macs)
        given = sum(x is not None for x in (width, widths_, preset, budget))
        name = type(self).__name__
        if given != 1:
            raise ValueError(
                f"{name}: one of width, widths, preset and a budget must be given, got "
                f"{given} of them. Example: width=0.5."
            )
        if budget is not None:
            return self._largest(params, macs)
        if preset is not None:
            widths_ = self._preset(preset)
        if widths_ is not None:
            return {**self.widths, **widths.resolve(self.coupling, widths_, self.least)}
        assert width is not None
        if not 0 < width <= 1:
            raise ValueError(
                f"{name}: width must be in (0, 1], got {width}. Give a share of the teacher's "
                "channels, or widths= for channel counts."
            )
        return self._share(width)

    def _share(self, width: float) -> dict[str, int]:
        least = self.least
        return {
            name: widths.round_width(group, width, least[name])
            for name, group in self.coupling.free.items()
        }

    def _largest(self, params: float | None, macs: float | None) -> dict[str, int]:
        """The widest share within a budget, by bisection: costs never fall with the width."""

        def fits(step: int) -> bool:
            costs = self.costs(self._share(step / steps))
            limits = (params, macs)
            return all(limit is None or c <= limit for c, limit in zip(costs, limits))

        steps = 2 * max(self.groups.values(), default=1)
        if not fits(1):
            least = self.costs(self.least)
            raise ValueError(
                f"{type(self).__name__}: params and macs must allow the smallest student, "
                f"{least[0]:,} parameters and {least[1]:,} MACs, got params={params}, "
                f"macs={macs}. Raise the budget, or make a narrower chain."
            )
        low, high = 1, steps + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return self._share(low / steps)

    def _preset(self, preset: str) -> dict[str, int]:
        spec = self.meta.get("spec") or {}
        if preset not in presets.PRESETS or spec.get("family") != "resnet":
            raise ValueError(
                f"{type(self).__name__}: preset must be one of {', '.join(presets.PRESETS)} on a "
                f"residual network's chain, got {preset!r}. Use width= or widths= for other chains."
            )
        return presets.widths(*presets.PRESETS[preset], layers=spec["layers"])

    def costs(self, widths_: Mapping[str, int]) -> tuple[int, int]:
        """(parameters, MACs per image) of the student's backbone, without its head."""
        head = tuple(f"{name}." for name in self.meta.get("head", ()))
        return (
            widths.parameters(self.coupling, widths_, head),
            widths.macs(self.coupling, widths_),
        )

    def shapes(self, widths_: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """State-dict name -> shape, of the tensors in `layouts`, in a student of these widths."""
        return {layout.name: self.coupling.shape(layout.name, widths_) for layout in self.layouts}

    def source_shape(self, layout: TensorLayout) -> tuple[int, ...]:
        """Shape of a weight in the chain: M rows (all N in a nested chain) over N columns."""
        kept = {name: partition.rows for name, partition in self.partitions.items()}
        rows = self.coupling.axis_size(layout.rows, kept)
        return (rows, *layout.shape[1:])
