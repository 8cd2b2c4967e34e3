"""What a module does to channels, read from one forward pass on the meta device.

Every aten operator of the pass is seen once. Each tensor axis carries either None (batch, space:
no channel identity) or runs of atoms; operators tie, join and pass on atoms by the rules below.
A rule exists only where it is exact; everything else freezes the axes that it touches, with the
operator's name as the reason. A frozen axis is always safe: it keeps the teacher's width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from oskt.axes import Atom, Axis, Run, freeze, leaf_runs, unify

aten = torch.ops.aten

ROW, COLUMN, VECTOR, STATISTIC = "row", "column", "vector", "statistic"


@dataclass
class ParameterTrace:
    """What is known of one parameter or buffer: an axis and a role for each of its dimensions."""

    name: str
    shape: tuple[int, ...]
    axes: list[Axis]
    roles: list[str | None]
    groups: int = 1  # of a grouped convolution: its columns are one block of axes[1]


class _Seen(NamedTuple):
    """A tensor of the pass: its axes, the parameter it is a view of, the layer that wrote it."""

    tensor: Tensor  # kept alive, so that ids stay unique
    axes: tuple[Axis, ...]
    parameter: tuple[str, tuple[int, ...]] | None = None  # name, view dimension -> dimension
    writer: str | None = None


@dataclass
class Trace:
    """Everything that the passes over a module revealed."""

    parameters: dict[str, ParameterTrace] = field(default_factory=dict)
    writers: list[tuple[str, Axis]] = field(default_factory=list)  # execution order
    norm_of: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    outputs: list[tuple[Axis, ...]] = field(default_factory=list)  # training form's, evaluation's
    opaque: list[str] = field(default_factory=list)


class _Pass(TorchDispatchMode):
    def __init__(self, trace: Trace, named: dict[int, tuple[str, Tensor]], batch: int) -> None:
        super().__init__()
        self.trace, self.named, self.batch = trace, named, batch
        self.seen: dict[int, _Seen] = {}
        self.unnormed: dict[int, str] = {}  # tensor -> the layer that wrote it, no norm since

    # -- bookkeeping ------------------------------------------------------------------------

    def look(self, tensor: Tensor) -> _Seen:
        """What is known of a tensor; a parameter gets an atom per dimension when first met."""
        if id(tensor) in self.seen:
            return self.seen[id(tensor)]
        if id(tensor) in self.named:
            name, _ = self.named[id(tensor)]
            if name not in self.trace.parameters:
                shape = tuple(tensor.shape)
                axes: list[Axis] = [(Run(Atom(s), 1),) if s > 1 else None for s in shape]
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
    ) -> _Seen:
        self.seen[id(tensor)] = _Seen(tensor, tuple(axes), parameter, writer)
        return self.seen[id(tensor)]

    def plain(self, seen: _Seen, dim: int) -> _Seen:
        """A parameter's dimension that meets a plain axis, such as space, is plain as well."""
        if seen.parameter is None or seen.axes[dim] is None:
            return seen
        name, dims = seen.parameter
        record = self.trace.parameters[name]
        if record.roles[dims[dim]] is not None:
            return seen
        record.axes[dims[dim]] = None
        axes = [None if d == dim else axis for d, axis in enumerate(seen.axes)]
        return self.put(seen.tensor, axes, seen.parameter, seen.writer)

    def role(self, seen: _Seen, dim: int, role: str, op: str) -> None:
        """Record how an operator uses a parameter's dimension; two different uses freeze it."""
        if seen.parameter is None:
            return
        name, dims = seen.parameter
        record = self.trace.parameters[name]
        if record.roles[dims[dim]] not in (None, role):
            freeze(record.axes[dims[dim]], f"{name} is used in two ways ({op})")
        else:
            record.roles[dims[dim]] = role

    def opaque(self, op: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        touched = False
        for tensor in inputs:
            for axis in self.look(tensor).axes:
                touched = touched or axis is not None
                freeze(axis, f"{op} is not known")
        if touched:
            self.trace.opaque.append(op)
        for tensor in outputs:
            self.put(tensor, (None,) * tensor.dim())

    def channel(self, tensor: Tensor, dim: int, layer: str) -> tuple[Run, ...]:
        """The channel axis that a layer reads; one without identity is frozen at its width."""
        seen = self.look(tensor)
        dim %= tensor.dim()
        axis = seen.axes[dim]
        if axis is None:
            axis = (
                Run(Atom(tensor.shape[dim], f"{layer} reads a model input or a plain axis"), 1),
            )
            axes = list(seen.axes)
            axes[dim] = axis
            self.put(tensor, axes, seen.parameter, seen.writer)
        return axis

    # -- rules ------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        op = func.overloadpacket
        name = str(op)
        rule = _RULES.get(op)
        inputs = [t for t in _flatten((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in _flatten(out) if isinstance(t, Tensor)]
        if rule is not None:
            rule(self, name, args, kwargs, out)
        elif torch.Tag.pointwise in func.tags or op in _POINTWISE:
            self.pointwise(name, inputs, outputs[0])
        elif inputs:
            self.opaque(name, inputs, outputs)
        marks = [self.unnormed[id(t)] for t in inputs if id(t) in self.unnormed]
        for tensor in outputs:
            mark = self.look(tensor).writer or (marks[0] if marks and op not in _NORMS else None)
            if mark is not None:
                self.unnormed[id(tensor)] = mark
            else:
                self.unnormed.pop(id(tensor), None)
        return out

    def pointwise(self, op: str, inputs: list[Tensor], out: Tensor) -> None:
        """Equal indices of all operands meet: their axes are tied (a size of 1 broadcasts)."""
        axes: list[Axis] = [None] * out.dim()
        for dim in range(1, out.dim() + 1):
            met = [
                (self.look(t), t.dim() - dim)
                for t in inputs
                if t.dim() >= dim and t.shape[-dim] == out.shape[-dim] and out.shape[-dim] > 1
            ]
            if any(seen.axes[d] is None for seen, d in met):
                met = [(self.plain(seen, d), d) for seen, d in met]
            named = [(seen, d) for seen, d in met if seen.axes[d] is not None]
            for seen, d in named:
                if len(inputs) > 1:
                    self.role(seen, d, VECTOR, op)
                first = named[0][0].axes[named[0][1]]
                axis = seen.axes[d]
                assert first is not None
                assert axis is not None
                unify(first, axis, op)
                axes[-dim] = first
            if named and len(named) < len(met):
                freeze(axes[-dim], f"{op} meets a tensor without channel identity")
        self.put(out, axes, self.look(inputs[0]).parameter if len(inputs) == 1 else None)

    def contract(self, name: str, x: Tensor, dim: int, out: Tensor, out_dim: int) -> None:
        """out channels = rows of parameter `name`, columns tied to axis `dim` of x."""
        layer = name.rpartition(".")[0] or name
        record = self.trace.parameters[name]
        columns, rows = record.axes[1], record.axes[0]
        if record.shape[1] > 1:
            inputs = self.channel(x, dim, layer)
            if record.roles[1] is None:  # first use: the columns are what the layer reads
                record.axes[1], record.roles[1] = inputs, COLUMN
            elif record.roles[1] == COLUMN and columns is not None:
                unify(inputs, columns, layer)
            else:
                freeze(inputs, f"{name} is used in two ways")
        if record.roles[0] not in (None, ROW):
            freeze(rows, f"{name} is used in two ways")
        record.roles[0] = ROW
        self.finish(name, rows, out, out_dim)

    def finish(self, name: str, rows: Axis, out: Tensor, out_dim: int) -> None:
        axes: list[Axis] = [None] * out.dim()
        axes[out_dim] = rows
        self.trace.writers.append((name, rows))
        spatial = out.numel() // max(1, self.batch * out.shape[out_dim])
        self.trace.positions[name] = self.trace.positions.get(name, 0) + spatial
        self.put(out, axes, None, name)

    def add_bias(self, bias: Tensor | None, rows: Axis, op: str) -> None:
        if bias is not None:
            seen = self.look(bias)
            self.role(seen, 0, VECTOR, op)
            if seen.axes[0] is not None and rows is not None:
                unify(rows, seen.axes[0], op)
            else:
                freeze(rows, f"{op} adds a bias without channel identity")

    def convolution(self, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
        x, weight, bias, *_, transposed, _, groups = args
        seen = self.look(weight)
        if seen.parameter is None or seen.parameter[1] != tuple(range(weight.dim())) or transposed:
            self.opaque(op, [t for t in (x, weight, bias) if t is not None], [out])
            return
        name = seen.parameter[0]
        record = self.trace.parameters[name]
        if groups == 1:
            self.contract(name, x, 1, out, 1)
        else:
            self.grouped(name, x, out, groups)
        self.add_bias(bias, record.axes[0], name)

    def grouped(self, name: str, x: Tensor, out: Tensor, groups: int) -> None:
        """Depthwise ties in and out; other groups keep clusters inside blocks on both sides."""
        layer = name.rpartition(".")[0]
        record = self.trace.parameters[name]
        inputs = self.channel(x, 1, layer)
        record.roles[0] = ROW
        if record.shape[1] == 1:
            multiplier = record.shape[0] // groups
            record.axes[0] = tuple(Run(run.atom, run.area * multiplier) for run in inputs)
        else:
            rows = record.axes[0]
            assert rows is not None
            # The weight's own second axis is one block of the input: it has no atom of its own.
            record.axes[1], record.roles[1], record.groups = inputs, COLUMN, groups
            leaves = leaf_runs(inputs)
            fits = len(leaves) == 1 and leaves[0].area == 1
            if fits:
                leaves[0].atom.blocks = math.lcm(leaves[0].atom.blocks, groups)
                rows[0].atom.find().blocks = math.lcm(rows[0].atom.find().blocks, groups)
            else:
                freeze(inputs, f"{layer} is grouped over a joined axis")
                freeze(rows, f"{layer} is grouped over a joined axis")
        self.finish(name, record.axes[0], out, 1)

    def matrix_product(self, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
        """x @ w.T with w a parameter; addmm adds the bias first."""
        bias, x, w = args[:3] if op == "aten.addmm" else (None, *args[:2])
        seen = self.look(w)
        if seen.parameter is None or seen.parameter[1] != (1, 0) or kwargs:
            self.opaque(op, [t for t in (bias, x, w) if t is not None], [out])
            return
        name = seen.parameter[0]
        self.contract(name, x, 1, out, 1)
        self.add_bias(bias, self.trace.parameters[name].axes[0], name)

    def batch_norm(self, op: str, args: Any, kwargs: Any, out: Any) -> None:
        x, *vectors = args[:5]
        axis = self.channel(x, 1, "batch norm")
        names: list[str | None] = []
        for vector, role in zip(vectors, (VECTOR, VECTOR, STATISTIC, STATISTIC)):
            if vector is None:
                names.append(None)
                continue
            seen = self.look(vector)
            self.role(seen, 0, role, op)
            if seen.axes[0] is not None:
                unify(axis, seen.axes[0], op)
            names.append(seen.parameter[0] if seen.parameter else None)
        source = self.look(x)
        if source.writer is not None:
            self.trace.norm_of[source.writer] = tuple(names)
        self.put(out[0], source.axes)

    def same_axes(self, op: str, args: Any, kwargs: Any, out: Any) -> None:
        """Spatial pooling, dropout, copies: per channel, axes pass through."""
        first = out[0] if isinstance(out, (tuple, list)) else out
        seen = self.look(args[0])
        self.put(first, seen.axes, seen.parameter if first.shape == args[0].shape else None)

    def reduce(self, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
        """Mean or sum over axes without channel identity."""
        x = args[0]
        dims = args[1] if len(args) > 1 and args[1] is not None else list(range(x.dim()))
        dims = {d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)}
        keep = bool(args[2]) if len(args) > 2 else kwargs.get("keepdim", False)
        seen = self.look(x)
        for d in dims:
            freeze(seen.axes[d], f"{op} reduces it")
        axes = [None if d in dims else a for d, a in enumerate(seen.axes) if keep or d not in dims]
        self.put(out, axes)

    def permute(self, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
        x = args[0]
        seen = self.look(x)
        order = list(range(x.dim()))
        if op == "aten.permute":
            order = [d % x.dim() for d in args[1]]
        elif x.dim() > 1:
            a, b = (0, 1) if op == "aten.t" else (args[1], args[2])
            order[a], order[b] = order[b], order[a]
        parameter = seen.parameter and (
            seen.parameter[0],
            tuple(seen.parameter[1][d] for d in order),
        )
        self.put(out, [seen.axes[d] for d in order], parameter)

    def view(self, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
        """Dimensions that keep their size pass through; (C, H, W) -> C*H*W makes areas."""
        x = args[0]
        seen = self.look(x)
        if tuple(x.shape) == tuple(out.shape):
            self.put(out, seen.axes, seen.parameter, seen.writer)
            return
        axes: list[Axis] = [None] * out.dim()
        origin = [-1] * out.dim()
        for source, target in _factor(tuple(x.shape), tuple(out.shape)):
            lead = [d for d in source if x.shape[d] != 1]
            goal = [d for d in target if out.shape[d] != 1]
            named = [d for d in lead if seen.axes[d] is not None]
            axis = seen.axes[named[0]] if named else None
            if axis is None:
                continue
            if len(lead) == 1 and len(goal) == 1:
                axes[goal[0]] = axis
                origin[goal[0]] = seen.parameter[1][lead[0]] if seen.parameter else -1
            elif named == lead[:1] and len(goal) == 1:
                rest = math.prod(x.shape[d] for d in lead[1:])
                axes[goal[0]] = tuple(Run(run.atom, run.area * rest) for run in axis)
            elif len(lead) == 1 and all(
                run.area == math.prod(out.shape[d] for d in goal[1:]) for run in axis
            ):
                axes[goal[0]] = tuple(Run(run.atom, 1) for run in axis)
            else:
                for d in named:
                    freeze(seen.axes[d], f"{op} mixes it with another axis")
        self.put(out, axes, seen.parameter and (seen.parameter[0], tuple(origin)))

    def create(self, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
        """A tensor shaped like another but holding none of its numbers."""
        self.put(out, (None,) * out.dim())

    def cat(self, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
        tensors = [t for t in args[0] if t.numel()]
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
        views = [self.look(t) for t in tensors]
        axes: list[Axis] = []
        for d in range(out.dim()):
            parts = [seen.axes[d] for seen in views]
            if all(part is None for part in parts):
                axes.append(None)
            elif d == dim:
                runs = [self.channel(t, d, op) for t in tensors]
                axes.append(tuple(run for part in runs for run in part))
            else:
                known = [part for part in parts if part is not None]
                for part in known[1:]:
                    unify(known[0], part, op)
                if len(known) < len(parts):
                    freeze(known[0], f"{op} meets a tensor without channel identity")
                axes.append(known[0])
        self.put(out, axes)


_NORMS = [
    aten.native_batch_norm,
    aten.cudnn_batch_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
    aten._batch_norm_with_update,
]
_RULES: dict[Any, Any] = {
    aten.convolution: _Pass.convolution,
    aten.mm: _Pass.matrix_product,
    aten.addmm: _Pass.matrix_product,
    aten.cat: _Pass.cat,
    **dict.fromkeys(_NORMS, _Pass.batch_norm),
    **dict.fromkeys(
        [aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d,
         aten.adaptive_max_pool2d, aten.native_dropout, aten.upsample_nearest2d,
         aten.upsample_bilinear2d, aten.constant_pad_nd],
        _Pass.same_axes,
    ),
    **dict.fromkeys(
        [aten.new_empty, aten.new_zeros, aten.new_full, aten.empty_like, aten.zeros_like],
        _Pass.create,
    ),
    **dict.fromkeys([aten.mean, aten.sum, aten.amax], _Pass.reduce),
    **dict.fromkeys([aten.t, aten.transpose, aten.permute], _Pass.permute),
    **dict.fromkeys(
        [aten.view, aten._unsafe_view, aten.reshape, aten.squeeze, aten.unsqueeze], _Pass.view
    ),
}  # fmt: skip
_POINTWISE = {aten.clone, aten.detach, aten.alias, aten._to_copy, aten.lift_fresh, aten.copy_}


def _flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _flatten(part)
    else:
        yield value


def _factor(source: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Cut two shapes of equal numel into the shortest stretches of equal product."""
    pieces, i, j = [], 0, 0
    while i < len(source) or j < len(target):
        a, b = [], []
        left = right = 1
        while True:
            if left <= right and i < len(source):
                left *= source[i]
                a.append(i)
                i += 1
            elif j < len(target):
                right *= target[j]
                b.append(j)
                j += 1
            if left == right and (a or b):
                break
            if i >= len(source) and j >= len(target):
                break
        pieces.append((a, b))
    return pieces


@contextmanager
def _mode_of(module: nn.Module, training: bool) -> Iterator[None]:
    before = {m: m.training for m in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for m, was in before.items():
            m.training = was


def on_meta(module: nn.Module, *, buffers: bool = True) -> nn.Module:
    """A copy of the module's structure without its numbers (buffers keep theirs on request)."""
    memo: dict[int, Tensor] = {
        id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()
    }
    if buffers:
        memo.update((id(b), b.to("meta")) for b in module.buffers())
    return copy.deepcopy(module, memo)


def _batch_of_two(tensor: Tensor) -> Tensor:
    """A batch of one as two: batch norms refuse a single value per channel in training."""
    single = tensor.dim() > 0 and tensor.shape[0] == 1
    return tensor.expand(2, *tensor.shape[1:]).contiguous() if single else tensor


def run_passes(
    module: nn.Module, example_inputs: Sequence[Tensor], *, free_outputs: bool = False
) -> Trace:
    """Trace the evaluation and the training form of a module into one Trace.

    MACs (`positions`) are those of the evaluation form. Outputs that a linear or convolution
    writes with no norm after it (logits) keep their width unless `free_outputs`.
    """
    meta = on_meta(module)
    inputs = [_batch_of_two(t.to("meta")) if isinstance(t, Tensor) else t for t in example_inputs]
    named = {id(t): (name, t) for name, t in (*meta.named_parameters(), *meta.named_buffers())}
    batch = next((t.shape[0] for t in inputs if isinstance(t, Tensor) and t.dim()), 1)
    trace = Trace()
    for training in (True, False):
        trace.positions.clear()
        tracer = _Pass(trace, named, batch)
        try:
            with _mode_of(meta, training), torch.no_grad(), tracer:
                out = meta(*inputs)
        except Exception as error:
            raise ValueError(
                f"coupling: module must run on meta tensors, got {type(error).__name__}: {error}. "
                "Remove branches on tensor values, or trace the submodule that has none."
            ) from error
        for tensor in _flatten(out):
            if isinstance(tensor, Tensor):
                seen = tracer.look(tensor)
                trace.outputs.append(seen.axes)
                writer = tracer.unnormed.get(id(tensor))
                if writer is not None and not free_outputs:
                    for axis in seen.axes:
                        freeze(axis, f"{writer} writes a model output")
    return trace
