"""Channel groups: which tensor axes of a module must share one partition. Plain records that need
no torch; `oskt.coupling.grouping.trace_coupling` makes them of a module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

AxisRuns = tuple[tuple[str, int], ...]  # (group name, area), one channel run after the other


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that one partition serves.

    Args:
        name: the layer that writes it first, e.g. "layer1.0.conv3".
        size: N, its channels in the teacher.
        blocks: clusters stay inside `blocks` equal stretches (grouped convolutions).
        frozen: why it keeps the teacher's width, or None.
        writers: weights whose rows are these channels, in execution order.
        product: "" or how its channels meet in sums of products, as queries and keys do: "dot", or
            "attention", which divides by the square root of a block's width.
        like: the group whose share of the teacher's width it must have, because the module's code
            asks for it (see oskt.coupling.ties); "" for none.
        step: widths are whole multiples of it: of `blocks`, and more where others are alike.
    """

    name: str
    size: int
    blocks: int = 1
    frozen: str | None = None
    writers: tuple[str, ...] = ()
    product: str = ""
    like: str = ""
    step: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", math.lcm(self.step or 1, self.blocks))


@dataclass(frozen=True)
class TensorLayout:
    """How one tensor of the state dict reads and writes groups.

    An axis is a tuple of (group name, area): its channels one after the other, each `area` entries
    long. A weight has rows (dimension 0) and perhaps columns (dimension 1); a vector or statistic
    has rows only; a tensor with neither is copied as it is.

    Args:
        role: "weight", "vector" (norm parameters, biases, tokens), "statistic" or "plain".
        groups: of a grouped convolution, else 1.
        dim: the dimension of the rows: not 0 in a position embedding (1, positions, channels).
    """

    name: str
    shape: tuple[int, ...]
    role: str
    rows: AxisRuns = ()
    columns: AxisRuns = ()
    groups: int = 1
    dim: int = 0

    @property
    def places(self) -> int:
        """Entries before the rows' dimension, each with rows of its own."""
        return math.prod(self.shape[: self.dim])


@dataclass(frozen=True)
class Coupling:
    """The channel groups of a module, and every tensor's place in them.

    Args:
        groups: name -> ChannelGroup, in execution order.
        layouts: state-dict name -> TensorLayout, in state-dict order.
        norms: weight name -> names of the batch norm (gamma, beta, mean, variance) that follows.
        positions: weight name -> output positions per image, which makes MACs a closed form.
        products: axis and count per image, of multiply-accumulates between activations: so many
            for each entry of the axis (attention).
        layer_norms: vector name -> what a layer, RMS or group norm with this vector spans, and in
            how many stretches.
        numbers: (module, attribute, axis, parts): a whole number that a module keeps and reads,
            the length of an axis over parts, such as the width of a head.
        outputs: per output tensor (the training form's, then the evaluation form's) the axis of
            every dimension.
        inputs: shapes of the example inputs, which `positions` belong to.
        opaque: operators that were not known and froze what they touched.
        integers: which of the inputs are whole numbers, such as words.
        loose: parameters that no group touches; their layouts are plain, as those of counters.
    """

    groups: dict[str, ChannelGroup]
    layouts: dict[str, TensorLayout]
    norms: dict[str, tuple[str | None, ...]]
    positions: dict[str, int]
    products: tuple[tuple[AxisRuns, int], ...] = ()
    layer_norms: dict[str, tuple[AxisRuns, int]] = field(default_factory=dict)
    numbers: tuple[tuple[str, str, AxisRuns, int], ...] = ()
    outputs: tuple[tuple[AxisRuns, ...], ...] = ()
    inputs: tuple[tuple[int, ...], ...] = ()
    opaque: tuple[str, ...] = ()
    integers: tuple[int, ...] = ()
    loose: tuple[str, ...] = ()

    @property
    def free(self) -> dict[str, ChannelGroup]:
        """The groups whose width can change."""
        return {name: group for name, group in self.groups.items() if group.frozen is None}

    @property
    def training_only(self) -> set[str]:
        """Weights that the evaluation form never reads: the classifier of a ReID model."""
        return {t.name for t in self.layouts_of(("weight",)) if t.name not in self.positions}

    def alike(self, widths: Mapping[str, int]) -> dict[str, int]:
        """The widths, with those of all groups that are like a named one."""
        result = dict(widths)
        for name, group in self.free.items():
            if group.like in widths:
                result[name] = widths[group.like] * group.size // self.groups[group.like].size
        return result

    def layouts_of(self, roles: Sequence[str], absent: Iterable[str] = ()) -> list[TensorLayout]:
        """The layouts with the given roles, role by role: the order of a flat buffer."""
        return [
            layout
            for role in roles
            for layout in self.layouts.values()
            if layout.role == role and layout.name not in absent
        ]

    def axis_size(self, axis: Sequence[tuple[str, int]], widths: Mapping[str, int]) -> int:
        """Entries of an axis when groups have the given widths (missing ones: the teacher's)."""
        return sum(widths.get(g, self.groups[g].size) * area for g, area in axis)

    def shape(self, name: str, widths: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of a state-dict tensor of the student with the given widths."""
        layout = self.layouts[name]
        shape = list(layout.shape)
        if layout.rows:
            shape[layout.dim] = self.axis_size(layout.rows, widths)
        if layout.columns:
            shape[1] = self.axis_size(layout.columns, widths) // layout.groups
        return tuple(shape)

    def resized(self, widths: Mapping[str, int]) -> Coupling:
        """The coupling of the student with the given widths."""
        groups = {
            name: replace(group, size=widths.get(name, group.size))
            for name, group in self.groups.items()
        }
        layouts = {
            name: replace(layout, shape=self.shape(name, widths))
            for name, layout in self.layouts.items()
        }
        return replace(self, groups=groups, layouts=layouts)

    def to_json(self) -> dict[str, Any]:
        """A JSON value from which `from_json` makes an equal Coupling."""
        return {
            "groups": [asdict(g) for g in self.groups.values()],
            "layouts": [asdict(t) for t in self.layouts.values()],
            "norms": self.norms,
            "positions": self.positions,
            "products": self.products,
            "layer_norms": self.layer_norms,
            "numbers": self.numbers,
            "outputs": self.outputs,
            "inputs": self.inputs,
            "opaque": self.opaque,
            "integers": self.integers,
            "loose": self.loose,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> Coupling:
        """The Coupling of a `to_json`; KeyError or TypeError if fields are missing or others."""

        def axis(runs: Any) -> AxisRuns:
            return tuple((str(g), int(a)) for g, a in runs)

        groups = [ChannelGroup(**{**g, "writers": tuple(g["writers"])}) for g in value["groups"]]
        layouts = [
            TensorLayout(
                **{
                    **t,
                    "shape": tuple(t["shape"]),
                    "rows": axis(t["rows"]),
                    "columns": axis(t["columns"]),
                }
            )
            for t in value["layouts"]
        ]
        return Coupling(
            {g.name: g for g in groups},
            {t.name: t for t in layouts},
            {k: tuple(v) for k, v in value["norms"].items()},
            {k: int(v) for k, v in value["positions"].items()},
            tuple((axis(runs), int(count)) for runs, count in value["products"]),
            {n: (axis(runs), int(k)) for n, (runs, k) in value["layer_norms"].items()},
            tuple((m, a, axis(runs), int(parts)) for m, a, runs, parts in value["numbers"]),
            tuple(tuple(axis(runs) for runs in output) for output in value["outputs"]),
            tuple(tuple(shape) for shape in value["inputs"]),
            tuple(value["opaque"]),
            tuple(value["integers"]),
            tuple(value.get("loose", ())),  # which files of before do not know
        )
