"""What a pass over a module has seen so far: tensors, parameters and their axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from oskt.coupling.tracing.axes import Atom, Axis, Run, Runs, Split, freeze, leaf_runs, unify

ROW, COLUMN, VECTOR, STATISTIC = "row", "column", "vector", "statistic"


@dataclass
class ParameterTrace:
    """What is known of one parameter or buffer: an axis and a role for each of its dimensions."""

    name: str
    shape: tuple[int, ...]
    axes: list[Axis]
    roles: list[str | None]
    groups: int = 1  # of a grouped convolution: its columns are one block of axes[1]


class Seen(NamedTuple):
    """A tensor of the pass: its axes, the parameter it is a view of, the layer that wrote it."""

    tensor: Tensor  # kept alive, so that ids stay unique
    axes: tuple[Axis, ...]
    parameter: tuple[str, tuple[int, ...]] | None = None  # name, view dimension -> dimension or -1
    writer: str | None = None


@dataclass
class Trace:
    """Everything that the passes over a module revealed."""

    parameters: dict[str, ParameterTrace] = field(default_factory=dict)
    writers: list[tuple[str, Axis]] = field(default_factory=list)  # execution order
    norm_of: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    layer_norms: dict[str, tuple[Axis, int]] = field(default_factory=dict)  # see Coupling
    positions: dict[str, int] = field(default_factory=dict)
    products: list[tuple[Axis, int]] = field(default_factory=list)
    numbers: dict[tuple[str, str], Axis] = field(default_factory=dict)  # (module, attribute)
    outputs: list[tuple[Axis, ...]] = field(default_factory=list)  # training form's, evaluation's
    opaque: list[str] = field(default_factory=list)


class Sight:
    """The tensors of one pass and what is known of them; operators' rules read and write it."""

    def __init__(self, trace: Trace, named: dict[int, tuple[str, Tensor]], batch: int) -> None:
        self.trace, self.named, self.batch = trace, named, batch
        self.seen: dict[int, Seen] = {}
        self.unnormed: dict[int, str] = {}  # tensor -> the layer that wrote it, no norm since
        self.noise: set[int] = set()  # tensors of random numbers
        self.splits: list[Split] = []  # that views made and no selection took apart

    def look(self, tensor: Tensor) -> Seen:
        """What is known of a tensor; a parameter gets an atom per dimension when first met."""
        if id(tensor) in self.seen:
            return self.seen[id(tensor)]
        if id(tensor) in self.named:
            name, _ = self.named[id(tensor)]
            if name not in self.trace.parameters:
                shape = tuple(tensor.shape)
                alone = len(shape) == 1  # a bias of one channel; other sizes of 1 broadcast
                axes: list[Axis] = [(Run(Atom(s), 1),) if s > 1 or alone else None for s in shape]
                self.trace.parameters[name] = ParameterTrace(name, shape, axes, [None] * len(shape))
            axes_now = tuple(self.trace.parameters[name].axes)
            return self.put(tensor, axes_now, (name, tuple(range(tensor.dim()))))
        return self.put(tensor, (None,) * tensor.dim())

    def put(
        self,
        tensor: Tensor,
        axes: Sequence[Axis],
        parameter: tuple[str, tuple[int, ...]] | None = None,
        writer: str | None = None,
    ) -> Seen:
        self.seen[id(tensor)] = Seen(tensor, tuple(axes), parameter, writer)
        return self.seen[id(tensor)]

    def whole_parameter(self, tensor: Tensor, order: tuple[int, ...]) -> str | None:
        """The name of the parameter that a tensor is, its dimensions in this order."""
        seen = self.look(tensor)
        if seen.parameter is None or seen.parameter[1] != order:
            return None
        return seen.parameter[0]

    def plain(self, tensor: Tensor, dim: int) -> Seen:
        """A parameter's dimension that meets a plain axis, such as space, is plain as well."""
        seen = self.look(tensor)
        if seen.parameter is None or not isinstance(seen.axes[dim], tuple):
            return seen
        name, dims = seen.parameter
        if dims[dim] < 0 or self.trace.parameters[name].roles[dims[dim]] is not None:
            return seen
        self.trace.parameters[name].axes[dims[dim]] = None
        axes = [None if d == dim else axis for d, axis in enumerate(seen.axes)]
        return self.put(seen.tensor, axes, seen.parameter, seen.writer)

    def role(self, seen: Seen, dim: int, role: str, op: str) -> None:
        """Record how an operator uses a parameter's dimension; two different uses freeze it."""
        if seen.parameter is None:
            return
        name, dims = seen.parameter
        record = self.trace.parameters[name]
        if dims[dim] < 0:
            freeze(seen.axes[dim], f"{name} is used through a view ({op})")
        elif record.roles[dims[dim]] not in (None, role):
            freeze(record.axes[dims[dim]], f"{name} is used in two ways ({op})")
        else:
            record.roles[dims[dim]] = role

    def vector(self, vector: Tensor, axis: Axis, role: str, op: str) -> str | None:
        """Tie a vector of one number per channel to the channels' axis; returns its name."""
        seen = self.look(vector)
        self.role(seen, 0, role, op)
        if seen.axes[0] is not None and axis is not None:
            unify(axis, seen.axes[0], op)
        else:
            freeze(axis, f"{op} meets a vector without channel identity")
        return seen.parameter[0] if seen.parameter else None

    def channel(self, tensor: Tensor, dim: int, layer: str) -> Runs:
        """The channel axis that a layer reads; one without identity is frozen at its width."""
        seen = self.look(tensor)
        dim %= tensor.dim()
        axis = seen.axes[dim]
        if isinstance(axis, tuple):
            return axis
        if axis is not None:
            freeze(axis, f"{layer} reads a part of it")
        runs = (Run(Atom(tensor.shape[dim], f"{layer} reads a model input or a plain axis"), 1),)
        axes = list(seen.axes)
        axes[dim] = runs
        self.put(tensor, axes, seen.parameter, seen.writer)
        return runs

    def opaque(self, op: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """An operator without a rule: everything that it touches keeps the teacher's width."""
        touched = False
        for tensor in inputs:
            for axis in self.look(tensor).axes:
                touched = touched or axis is not None
                freeze(axis, f"{op} is not known")
        if touched:
            self.trace.opaque.append(op)
        for tensor in outputs:
            self.put(tensor, (None,) * tensor.dim())

    def forget(self, split: Split) -> None:
        self.splits = [known for known in self.splits if known is not split]

    def product(self, axis: Axis, positions: int, kind: str = "") -> None:
        """Multiply-accumulates between activations: entries of `axis` times `positions`, per
        image. With a kind, the axis is what they sum over."""
        self.trace.products.append((axis, positions))
        if kind:
            for run in leaf_runs(axis):
                run.atom.product = run.atom.product or kind
