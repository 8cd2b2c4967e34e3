"""Refining loss: how far the teacher's rows lie from the rows of the chain that stand for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oskt_ext import _C  # noqa: F401  (registers torch.ops.oskt_ext)
from oskt_ext._arrays import as_tensor, check_float, check_no_tangent, moved, restorer

_MAGIC = 0x6F736B7472656602  # csrc/refine/refining_loss.h, layout 2
_TASK_ELEMENTS = 8192
_CUT = 16  # columns between cuts of a row: whole cache lines
_ALL_ONES = -1
_HEADER_WORDS, _ITEM_WORDS, _TASK_WORDS = 6, 7, 5


@dataclass(frozen=True, eq=False)
class RefiningItem:
    """One teacher tensor and the chain rows that it is drawn to.

    Args:
        labels: integers [N], 0 <= label < clusters: the chain row of every teacher row.
        clusters: number of chain rows M; a cluster may be empty (its gradient is 0).
        row_length: D, elements of a row; 1 for a per-channel vector.
        offset: position in the flat chain of this item's (M, D) rows.
        weight: factor of this item in the loss.
        row_weights: [N], at least 0, a factor of every teacher row; None: all 1.
    """

    labels: Any
    clusters: int
    row_length: int
    offset: int
    weight: float = 1.0
    row_weights: Any = None

    def __post_init__(self) -> None:
        labels = self.labels.cpu() if isinstance(self.labels, Tensor) else self.labels
        labels = np.asarray(labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(
                "RefiningItem: labels must be a one-dimensional array of integers, got "
                f"{labels.ndim} dimensions of {labels.dtype}. Pass the labels of a clustering."
            )
        if labels.size and not 0 <= labels.min() <= labels.max() < self.clusters:
            raise ValueError(
                f"RefiningItem: labels must be in [0, {self.clusters}), got values from "
                f"{labels.min()} to {labels.max()}. Pass the labels and clusters of one clustering."
            )
        for name, least in (("clusters", 0), ("row_length", 1), ("offset", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"RefiningItem: {name} must be at least {least}, got {getattr(self, name)}. "
                    "Describe the item's (M, D) rows in the flat chain."
                )
        object.__setattr__(self, "labels", labels.astype(np.int64))
        if self.row_weights is not None:
            weights = self.row_weights
            if isinstance(weights, Tensor):
                weights = weights.detach().cpu().double()  # NumPy knows no bfloat16
            weights = np.asarray(weights, dtype=np.float64)
            if weights.shape != labels.shape or not (weights >= 0).all():
                raise ValueError(
                    f"RefiningItem: row_weights must be {len(labels)} numbers of at least 0, got "
                    f"shape {weights.shape} with a least of {weights.min(initial=np.inf)}. "
                    "Give every label one."
                )
            object.__setattr__(self, "row_weights", weights)

    @property
    def end(self) -> int:
        """One past the last chain element of the item."""
        return self.offset + self.clusters * self.row_length


@dataclass(frozen=True, eq=False)
class RefiningPlan:
    """Which chain row every teacher row is drawn to; built once, on the host.

    Args:
        items: one per teacher tensor; their stretches of the chain must not overlap.

    Raises:
        ValueError: two items share chain elements.
    """

    items: tuple[RefiningItem, ...]
    chain_numel: int = field(init=False)
    table: Tensor = field(init=False)
    weight: Tensor = field(init=False)

    def __init__(self, items: Sequence[RefiningItem]) -> None:
        weights = [np.array([item.weight for item in items], dtype=np.float64)]
        weights += [item.row_weights for item in items if item.row_weights is not None]
        by_offset = sorted((i for i in items if i.clusters), key=lambda item: item.offset)
        for before, after in pairwise(by_offset):
            if after.offset < before.end:
                raise ValueError(
                    "RefiningPlan: items must not overlap in the chain, got one that ends at "
                    f"{before.end} and one that starts at {after.offset}. Give every item rows of "
                    "its own."
                )
        values = {
            "items": tuple(items),
            "chain_numel": max((item.end for item in items), default=0),
            "weight": torch.from_numpy(np.concatenate(weights)),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "table", torch.from_numpy(_pack(self.items, self.chain_numel)))

    def to(self, device: torch.device | str) -> RefiningPlan:
        """The same plan with its tables on `device`."""
        return moved(self, device)


def _pack(items: Sequence[RefiningItem], chain_numel: int) -> NDArray[np.int64]:
    """The table of csrc/refine/refining_loss.h."""
    tasks: list[tuple[int, ...]] = []
    first_tasks, starts = [], []
    for number, item in enumerate(items):
        first_tasks.append(len(tasks))
        sizes = np.bincount(item.labels, minlength=item.clusters)
        starts.append(np.concatenate([[0], np.cumsum(sizes)]))
        tasks += _tasks(number, sizes, item.row_length)
    lists_at = _HEADER_WORDS + _ITEM_WORDS * len(items) + _TASK_WORDS * len(tasks)
    lists: list[NDArray[np.int64]] = []
    records: list[int] = []
    num_weights = len(items)
    for item, first_task, start in zip(items, first_tasks, starts):
        rows, members_at = len(item.labels), lists_at + len(start)
        weighted = item.row_weights is not None
        row_weights_at = num_weights if weighted else _ALL_ONES
        num_weights += rows if weighted else 0
        records += [rows, item.row_length, item.offset, lists_at, members_at, first_task]
        records.append(row_weights_at)
        lists += [start, np.argsort(item.labels, kind="stable")]
        lists_at = members_at + rows
    records = [_MAGIC, lists_at, chain_numel, len(items), len(tasks), num_weights, *records]
    fixed = [np.array(words, dtype=np.int64).ravel() for words in (records, tasks)]
    return np.concatenate([*fixed, *lists]).astype(np.int64)


def _tasks(number: int, sizes: NDArray[np.int64], row_length: int) -> list[tuple[int, ...]]:
    """Runs of clusters, or stretches of the columns of one, of about _TASK_ELEMENTS elements."""
    tasks: list[tuple[int, ...]] = []
    begin, elements = 0, 0
    for cluster, size in enumerate(sizes.tolist()):
        own = (size + 1) * row_length
        parts = min(row_length, own // _TASK_ELEMENTS)
        if elements and (elements + own > _TASK_ELEMENTS or parts > 1):
            tasks.append((number, begin, cluster, 0, row_length))
            begin, elements = cluster, 0
        if parts > 1:
            cuts = [row_length * part // parts // _CUT * _CUT for part in range(parts)]
            cuts = sorted({*cuts, row_length})
            tasks += [(number, cluster, cluster + 1, a, b) for a, b in pairwise(cuts)]
            begin = cluster + 1
        else:
            elements += own
    if begin < len(sizes):
        tasks.append((number, begin, len(sizes), 0, row_length))
    return tasks


def refining_loss(
    teacher: Sequence[Any], chain: Any, plan: RefiningPlan, *, scale: float = 1.0
) -> Any:
    """Measure how far teacher rows lie from their chain rows, with both gradients in one pass.

    loss = scale * sum over items l of weight_l * sum over rows n of w_n |T_l[n] - C_l[label(n)]|^2,
    w the item's row_weights. For a teacher that does not change see FrozenTeacher.

    Args:
        teacher: one array per item of the plan, (N, D) or (N, ...) with D elements per row;
            float64, float32, float16 or bfloat16, any device; a strided tensor is copied.
        chain: [at least plan.chain_numel], flat, dtype and device of the teacher. Elements outside
            the items (vectors behind the weights) take no part; their gradient is 0.
        plan: the RefiningPlan, on the device of `chain` (`plan.to(device)`).
        scale: factor of the whole loss: 1 for the published plain sum.

    Returns:
        A scalar, float64 for a float64 chain and else float32, of the kind of array of `chain`.
        Differentiable once, in `teacher` and `chain`; not with torch.func.

    Raises:
        NotImplementedError: forward-mode differentiation.
        TypeError: `teacher` or `chain` is no floating-point array, or their dtypes differ.
        ValueError: wrong number, shape or device.
        RuntimeError: backward with create_graph=True; the loss is differentiable once.

    Notes:
        Bitwise repeatable: partial sums in float64 in a fixed order, no atomics. Memory: the
        gradients that someone needs, computed in the forward pass, as large as their tensors;
        backward gives these away, times the factor that reaches the loss (one launch on CUDA,
        nothing to do for 1), or copies where the graph is kept. No host synchronisation.
        Inf and NaN are not looked for: they propagate.

    Source:
        OSKT, arXiv 2511.06016, the refining term of progressive refinement, as the published code
        computes it: a plain sum, and gradients to the teacher and the chain. The paper also divides
        by layers and clusters: that is `scale` and `weight`.

    Example:
        >>> import torch
        >>> plan = RefiningPlan([RefiningItem([0, 1, 0], clusters=2, row_length=2, offset=0)])
        >>> teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        >>> refining_loss([teacher], torch.tensor([3.0, 4.0, 3.0, 4.0]), plan).item()
        16.0
    """
    flat = as_tensor("refining_loss", "chain", chain)
    tensors = [as_tensor("refining_loss", f"teacher[{i}]", t) for i, t in enumerate(teacher)]
    _check_chain(flat, plan)
    check_teacher("refining_loss", tensors, plan, flat.dtype)
    for name, tensor in (("chain", flat), *(("teacher", tensor) for tensor in tensors)):
        check_no_tangent("refining_loss", name, tensor)
    recording = torch.is_grad_enabled()
    loss, _, _ = torch.ops.oskt_ext.refining_loss.default(
        [tensor.contiguous() for tensor in tensors],
        flat.contiguous(),
        plan.table,
        plan.weight,
        float(scale),
        recording and any(tensor.requires_grad for tensor in tensors),
        recording and flat.requires_grad,
    )
    return restorer(chain)(loss)


def _check_chain(chain: Tensor, plan: RefiningPlan) -> None:
    check_float("refining_loss", "chain", chain)
    if chain.dim() != 1 or chain.numel() < plan.chain_numel:
        raise ValueError(
            f"refining_loss: chain must be flat with at least {plan.chain_numel} elements, "
            f"got shape {tuple(chain.shape)}. Pass the buffer that the plan was built for."
        )
    if chain.device != plan.table.device:
        raise ValueError(
            f"refining_loss: plan must be on {chain.device}, got {plan.table.device}. "
            f"Call plan.to('{chain.device}') once and keep the result."
        )


def check_teacher(op: str, teacher: list[Tensor], plan: RefiningPlan, dtype: torch.dtype) -> None:
    """Raises where the tensors are not those that the plan's items describe."""
    if len(teacher) != len(plan.items):
        raise ValueError(
            f"{op}: teacher must have {len(plan.items)} tensors, one per item, "
            f"got {len(teacher)}. Pass them in the order of the plan's items."
        )
    for i, (tensor, item) in enumerate(zip(teacher, plan.items)):
        rows = len(item.labels)
        if tensor.dim() < 1 or tensor.shape[0] != rows or tensor.numel() != rows * item.row_length:
            raise ValueError(
                f"{op}: teacher[{i}] must be of shape ({rows}, ...) with "
                f"{item.row_length} elements per row, got {tuple(tensor.shape)}. "
                "Pass them in the order of the plan's items."
            )
        if tensor.dtype != dtype:
            raise TypeError(
                f"{op}: teacher[{i}] must be {dtype} like the others, got {tensor.dtype}. "
                "Convert it."
            )
        if tensor.device != plan.table.device:
            raise ValueError(
                f"{op}: teacher[{i}] must be on {plan.table.device} like the plan, "
                f"got {tensor.device}. Move one of them."
            )


@torch.library.register_fake("oskt_ext::refining_loss")
def _(
    teacher: list[Tensor],
    chain: Tensor,
    table: Tensor,
    weight: Tensor,
    scale: float,
    teacher_needs_gradient: bool,
    chain_needs_gradient: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    return (
        chain.new_empty((), dtype=torch.promote_types(chain.dtype, torch.float32)),
        [torch.empty_like(tensor) for tensor in teacher] if teacher_needs_gradient else [],
        chain.new_empty(chain.numel() if chain_needs_gradient else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    _, teacher_gradient, chain_gradient = output
    ctx.mark_non_differentiable(*teacher_gradient, chain_gradient)
    ctx.set_materialize_grads(False)  # else backward is given zeros as large as the gradients
    ctx.save_for_backward(chain_gradient, *teacher_gradient)
    ctx.num_teacher, (ctx.teacher_needed, ctx.chain_needed) = len(inputs[0]), inputs[-2:]


@torch.library.register_fake("oskt_ext::refining_loss_scale_")
def _(gradients: list[Tensor], factor: Tensor) -> None:
    return None


def _is_last(grad_loss: Tensor) -> bool:
    """Whether nobody reads the saved gradients after this backward, so that it may scale them.

    A copy of the teacher's gradient costs more than the loss itself. What is traced (compile) may
    run any number of times.
    """
    traced = type(grad_loss) is not Tensor
    return not (traced or torch._C._autograd._get_current_graph_task_keep_graph())


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad_loss is None:
        return ([None] * ctx.num_teacher, *[None] * 6)
    if torch.is_grad_enabled():
        raise RuntimeError(
            "refining_loss: backward must be called without create_graph, got create_graph=True. "
            "The loss is differentiable once; use oskt_ext.reference.refining_loss for more."
        )
    gradients = list(ctx.saved_tensors)
    if not _is_last(grad_loss):
        gradients = [gradient.clone() for gradient in gradients]
    torch.ops.oskt_ext.refining_loss_scale_.default(gradients, grad_loss)
    chain_gradient, *teacher_gradient = gradients
    return (
        teacher_gradient if ctx.teacher_needed else [None] * ctx.num_teacher,
        chain_gradient if ctx.chain_needed else None,
        *[None] * 5,
    )


torch.library.register_autograd("oskt_ext::refining_loss", _backward, setup_context=_setup_context)
