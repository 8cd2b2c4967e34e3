"""From a module to its channel groups.

`trace_coupling(module, inputs)` reads them from one forward pass (see oskt.coupling.tracing), never
from a list of known models; what it does not know it freezes and names. `WeightChain.from_teacher`
then checks the result numerically.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from oskt.coupling import AxisRuns, ChannelGroup, Coupling, TensorLayout
from oskt.coupling.tracing import COLUMN, ROW, STATISTIC, VECTOR, Trace, run_passes
from oskt.coupling.tracing.axes import Axis, Inner, leaf_runs


def trace_coupling(
    module: nn.Module, example_inputs: Sequence[Tensor] | Tensor, *, free_outputs: bool = False
) -> Coupling:
    """Trace a module into channel groups.

    Both the evaluation and the training form run once on meta tensors (no arithmetic).

    Args:
        module: any module whose forward has no branch on tensor values. Left untouched.
        example_inputs: the forward's arguments; shapes alone matter (B, ...).
        free_outputs: let outputs that a linear or convolution writes with no norm after it (logits)
            shrink too.

    Returns:
        The Coupling.

    Raises:
        ValueError: the module does not run on meta tensors, or returns none.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
        >>> coupling = trace_coupling(net, torch.zeros(1, 3, 8, 8))
        >>> [(g.name, g.size, g.frozen is None) for g in coupling.groups.values()]
        [('0', 8, True), ('3', 5, False), ('0.columns', 3, False)]
        >>> coupling.layouts["3.weight"].columns
        (('0', 36),)
    """
    inputs = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
    trace = run_passes(module, inputs, free_outputs=free_outputs)
    _settle(trace)
    return _Naming(trace).coupling(module, inputs)


def _settle(trace: Trace) -> None:
    """Freeze what was seen but not understood: parameters that reach a group without a role."""
    for record in trace.parameters.values():
        known = [role for role in record.roles if role is not None]
        for axis, role in zip(record.axes, record.roles):
            for run in leaf_runs(axis):
                if role is None and known:
                    run.atom.freeze(f"{record.name} is used in part only")
                elif role in (VECTOR, STATISTIC) and len(known) > 1:
                    run.atom.freeze(f"{record.name} couples two axes")


class _Naming:
    """Turns atoms into named groups."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.names: dict[int, str] = {}
        self.groups: dict[str, ChannelGroup] = {}
        writers: dict[int, list[str]] = {}
        for weight, axis in trace.writers:
            for run in leaf_runs(axis):
                listed = writers.setdefault(id(run.atom), [])
                if weight not in listed:
                    listed.append(weight)
        for weight, axis in trace.writers:
            self.name_axis(axis, weight.rpartition(".")[0] or weight, writers)
        for record in trace.parameters.values():
            stem = record.name.rpartition(".")[0] or record.name
            for axis, role in zip(record.axes, record.roles):
                if role is not None:
                    suffix = ".columns" if role == COLUMN else ""
                    self.name_axis(axis, stem + suffix, writers)

    def name_axis(self, axis: Axis, stem: str, writers: dict[int, list[str]]) -> None:
        for run in leaf_runs(axis):
            atom = run.atom
            if id(atom) in self.names:
                continue
            name, number = stem, 1
            while name in self.groups:
                number += 1
                name = f"{stem}#{number}"
            frozen = atom.frozen
            if frozen is None and atom.size % atom.blocks:
                frozen = "its blocks do not divide it"
            self.names[id(atom)] = name
            self.groups[name] = ChannelGroup(
                name,
                atom.size,
                atom.blocks,
                frozen,
                tuple(writers.get(id(atom), ())),
                atom.product,
            )

    def axis(self, axis: Axis) -> AxisRuns:
        return tuple((self.names[id(run.atom)], run.area) for run in leaf_runs(axis))

    def numbers(self) -> Iterator[tuple[str, str, AxisRuns, int]]:
        for (path, attribute), axis in self.trace.numbers.items():
            parts = 1
            while isinstance(axis, Inner):
                parts *= axis.split.count
                axis = axis.split.parent
            if isinstance(axis, tuple):
                yield path, attribute, self.axis(axis), parts

    def outputs(self) -> tuple[tuple[AxisRuns, ...], ...]:
        return tuple(
            tuple(
                self.axis(axis)
                if all(id(run.atom) in self.names for run in leaf_runs(axis))
                else ()
                for axis in axes
            )
            for axes in self.trace.outputs
        )

    def coupling(self, module: nn.Module, inputs: Sequence[Tensor]) -> Coupling:
        layouts, owners, positions = {}, dict[int, str](), dict(self.trace.positions)
        tensors = module.state_dict(keep_vars=True)
        for name, tensor in tensors.items():
            owner = owners.setdefault(id(tensor), name)  # the trace knows tied tensors by one name
            layouts[name] = self.layout(name, owner, tuple(tensor.shape))
            if owner in positions:
                positions.setdefault(name, 0)  # its products are the owner's already
        return Coupling(
            self.groups,
            layouts,
            dict(self.trace.norm_of),
            positions,
            tuple((self.axis(axis), count) for axis, count in self.trace.products),
            {name: (self.axis(a), k) for name, (a, k) in self.trace.layer_norms.items()},
            tuple(self.numbers()),
            self.outputs(),
            tuple(tuple(x.shape) for x in inputs),
            tuple(dict.fromkeys(self.trace.opaque)),
            tuple(place for place, x in enumerate(inputs) if not x.is_floating_point()),
            tuple(
                name for name, layout in layouts.items()
                if layout.role == "plain" and isinstance(tensors[name], nn.Parameter)
            ),
        )  # fmt: skip

    def layout(self, name: str, owner: str, shape: tuple[int, ...]) -> TensorLayout:
        record = self.trace.parameters.get(owner)
        if record is None or not any(record.roles):
            return TensorLayout(name, shape, "plain")
        if ROW in record.roles or COLUMN in record.roles:
            columns = self.axis(record.axes[1]) if record.roles[1:2] == [COLUMN] else ()
            return TensorLayout(
                name, shape, "weight", self.axis(record.axes[0]), columns, record.groups
            )
        dim = next(i for i, role in enumerate(record.roles) if role is not None)
        role = record.roles[dim]
        assert role is not None
        return TensorLayout(name, shape, role, self.axis(record.axes[dim]), dim=dim)
