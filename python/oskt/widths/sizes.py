"""Which students a chain offers, what they cost, and the search for a budget. Needs no torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from oskt.coupling import Coupling, TensorLayout
from oskt.widths import presets, shapes
from oskt.widths.budget import Budget, Path, Timer
from oskt.widths.clustering import Clustering
from oskt.widths.costs import Costs, terms
from oskt.widths.merge_tree import MergeTree, Partitions
from oskt.widths.resolving import resolve, round_width
from oskt.widths.shapes import Curves


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
        self.meta = copy.deepcopy(dict(meta or {}))  # the teacher's spec is in it, and may change

    @property
    def kind(self) -> str:
        """ "oskt" or "nested": by its partitions or, where no group is free, as it was made."""
        nested = self.trees if self.partitions else self.meta.get("kind") == "nested"
        return "nested" if nested else "oskt"

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
        """Free group -> the narrowest width that exists: M, or one step in a nested chain."""
        steps = {name: self.coupling.groups[name].step for name in self.partitions}
        return {name: max(steps[name], part.least) for name, part in self.partitions.items()}

    @property
    def trained_on(self) -> dict[str, Any]:
        """What students' files keep of the training: the recipe, which says the images' size, and
        whom the classifier knows."""
        return {key: self.meta[key] for key in ("recipe", "identities") if key in self.meta}

    @property
    def layouts(self) -> list[TensorLayout]:
        """The layouts of the numbers that the chain holds: weights, then vectors, statistics."""
        return self.coupling.layouts_of(("weight", "vector", "statistic"), self.absent)

    def resolve(
        self,
        width: float | None = None,
        widths: Mapping[str, int] | None = None,
        preset: str | None = None,
        params: float | None = None,
        macs: float | None = None,
        memory_mb: float | None = None,
        latency_ms: float | None = None,
        *,
        device: str | Timer = "cpu",
        shape: str | Curves = "uniform",
    ) -> dict[str, int]:
        """The width of every free group from a share, a mapping, a preset or a budget.

        Groups that a mapping does not name stay at chain width. A share below what exists gives
        the narrowest that does. A budget, of one limit or several, gives the largest student of
        its shape that keeps them all.

        Args:
            width: share of the teacher's channels in every group, in (0, 1].
            widths: group -> channels.
            preset: one of oskt.widths.presets.NAMES, on a chain of that family.
            params, macs, memory_mb: at most so many parameters, MACs per image and megabytes (see
                costs and memory); closed forms.
            latency_ms: at most so many milliseconds for one image, measured; needs torch.
            device: where, or an oskt.widths.latency.Meter, which remembers every width that it
                measured.
            shape: with a budget: "uniform", one share for all groups; "sensitivity", groups of
                which the chain says that they can spare more are narrower (see oskt.widths.shapes);
                or curves of oskt.widths.sensitivity.measure. See docs/lab/budget.md for which.

        Raises:
            ValueError: none or several of these, a value out of range, an unknown name or shape, or
                a budget below the smallest student, which the message names.
        """
        budget = Budget(params, macs, memory_mb, latency_ms)
        given = sum(x is not None for x in (width, widths, preset, budget.given or None))
        name = type(self).__name__
        if given != 1:
            raise ValueError(
                f"{name}: one of width, widths, preset and a budget must be given, got "
                f"{given} of them. Example: width=0.5."
            )
        if shape != "uniform" and not budget.given:
            raise ValueError(
                f"{name}: shape must come with a budget, got {shape!r} without one. "
                "Give params, macs, memory_mb or latency_ms."
            )
        if budget.given:
            timer = self._timer(device) if latency_ms is not None else None
            try:
                found = budget.largest(self._path(shape, budget), self.forms, timer)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            return self.forms.widths(found)
        if preset is not None:
            return {**self.widths, **self._preset(preset)}
        if widths is not None:
            return {**self.widths, **resolve(self.coupling, widths, self.least)}
        assert width is not None
        if not 0 < width <= 1:
            raise ValueError(
                f"{name}: width must be in (0, 1], got {width}. Give a share of the teacher's "
                "channels, or widths= for channel counts."
            )
        least = self.least
        return {
            name: round_width(group, width, least[name])
            for name, group in self.coupling.free.items()
        }

    def _path(self, shape: str | Curves, budget: Budget) -> Path:
        """The students of a shape, from the smallest to the teacher."""
        least = self.forms.array(self.least)
        if shape == "uniform":
            return shapes.uniform(self.forms, least)
        if isinstance(shape, str):
            shape = self._curves(shape)
        prices = [1 / limit for limit in budget.limits]
        if not any(prices):  # latency alone: MACs stand for it while the shape is chosen
            prices = [0.0, 1.0, 0.0]
        floors = (self.forms.array(self.widths), least)
        return shapes.by_sensitivity(self.forms, shape, prices, floors)

    def _curves(self, shape: str) -> Curves:
        known = self.meta.get("clustering", {})
        if shape not in shapes.NAMES:
            raise ValueError(
                f"{type(self).__name__}: shape must be 'uniform', 'sensitivity' or curves, got "
                f"{shape!r}. Choose one; oskt.widths.sensitivity.measure makes curves."
            )
        if not {"adds", "loss"} & set(known):
            raise ValueError(
                f"{type(self).__name__}: shape 'sensitivity' must be of a chain that says what its "
                "groups lose, got one without. Measure them: oskt.widths.sensitivity.measure."
            )
        return shapes.kept(self.partitions, known)

    def _timer(self, device: str | Timer) -> Timer:
        """What measures latency on a device."""
        if isinstance(device, str):
            raise ValueError(
                f"{type(self).__name__}: latency_ms must be measured with torch, got a chain "
                "without it. Use oskt.WeightChain, or limit params, macs or memory_mb."
            )
        return device

    def _preset(self, preset: str) -> dict[str, int]:
        name, spec = type(self).__name__, self.meta.get("spec") or {}
        sizes = presets.of_chain(preset, spec)
        if sizes is None:
            raise ValueError(
                f"{name}: preset must be one of {', '.join(presets.NAMES)}, on a chain of that "
                f"family, got {preset!r} on one of {spec.get('family') or 'another network'}. Use "
                "width= or widths= for other chains."
            )
        try:
            return resolve(self.coupling, sizes, self.least)
        except ValueError as error:
            raise ValueError(
                f"{name}: preset must fit the chain, got {preset!r}, of which {error}"
            ) from None

    @cached_property
    def forms(self) -> Costs:
        """Parameters, MACs and bytes as closed forms in the widths."""
        return Costs(self.coupling, terms(self.coupling, self.meta.get("head", ())))

    def costs(self, widths: Mapping[str, int]) -> tuple[int, int]:
        """(parameters, MACs per image) of the student's backbone, without its head."""
        parameters, macs, _ = self.forms(self.forms.array(widths))
        return int(parameters), int(macs)

    def memory(self, widths: Mapping[str, int]) -> int:
        """Bytes that the student occupies: every number that inference reads, in float32.

        Weights, vectors and norm statistics, the head's norm included, the classifier not. In half
        precision it is half of it. Activations are not counted: how many live at once is for the
        runtime to say, not for the widths.
        """
        return int(self.forms(self.forms.array(widths))[2])

    def shapes(self, widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """State-dict name -> shape, of the tensors in `layouts`, in a student of these widths."""
        return {layout.name: self.coupling.shape(layout.name, widths) for layout in self.layouts}

    def source_shape(self, layout: TensorLayout) -> tuple[int, ...]:
        """Shape of a weight in the chain: M rows (all N in a nested chain) over N columns."""
        kept = {name: partition.rows for name, partition in self.partitions.items()}
        rows = self.coupling.axis_size(layout.rows, kept)
        return (rows, *layout.shape[1:])
