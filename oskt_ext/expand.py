"""Expansion: every tensor of a student from the flat buffer of a chain, in one operator call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oskt_ext import _C
from oskt_ext._arrays import as_tensor, check_float, check_no_tangent, moved, restorer


@dataclass(frozen=True, eq=False)
class IndexMap:
    """A ragged list of weighted sources: entry i reads sum over p of weight[p] * source[index[p]].

    The p of entry i are offsets[i] <= p < offsets[i + 1].

    Args:
        offsets: int32 [n + 1], ascending from 0; an entry may be empty (it reads 0).
        index: int32 [nnz], 0 <= index < size.
        weight: float64 [nnz].
        size: number of source entries N.
    """

    offsets: NDArray[np.int32]
    index: NDArray[np.int32]
    weight: NDArray[np.float64]
    size: int

    @staticmethod
    def identity(size: int) -> IndexMap:
        """Entry i reads source i."""
        return IndexMap.select(np.arange(size), size)

    @staticmethod
    def select(index: Any, size: int) -> IndexMap:
        """Entry i reads source index[i]: the row map of copies."""
        index = _int32(np.asarray(index))
        offsets = np.arange(len(index) + 1, dtype=np.int32)
        return IndexMap(offsets, index, np.ones(len(index)), size)

    @staticmethod
    def lists(members: Sequence[Any], size: int, *, mean: bool = False) -> IndexMap:
        """Entry i reads the sum (or the mean) of the sources members[i]."""
        lengths = np.array([len(m) for m in members], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        parts = [np.asarray(m) for m in members if len(m)]
        index = _int32(np.concatenate(parts) if parts else np.empty(0))
        weight = np.repeat(1.0 / np.maximum(lengths, 1), lengths) if mean else np.ones(len(index))
        return IndexMap(offsets, index, weight, size)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def dense(self) -> Tensor:
        """The map as a float64 matrix (n, N)."""
        matrix = np.zeros((len(self), self.size))
        entry = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        np.add.at(matrix, (entry, self.index), self.weight)
        return torch.from_numpy(matrix)


def _int32(index: NDArray[Any]) -> NDArray[np.int32]:
    """The index in 32 bits, or a ValueError where that would be another one."""
    if len(index) == 0:
        return np.empty(0, dtype=np.int32)
    low, high = index.min(), index.max()
    if index.dtype.kind not in "iu" or low < -(2**31) or high >= 2**31:
        raise ValueError(
            f"IndexMap: index must be integers of 32 bits, got {index.dtype} from {low} to {high}. "
            "Pass numbers of sources; np.flatnonzero gives those of a mask."
        )
    return index.astype(np.int32)


@dataclass(frozen=True, eq=False)
class ExpansionPlan:
    """How a flat student is read from a flat source; built once per width, on the host, in C++.

    The buffers are runs of items, packed in order without gaps. Item q is a source matrix
    (R, C, O) = (rows.size, columns.size, area) that becomes a student matrix
    (len(rows), len(columns), area); a per-channel vector is an item with one column and area 1.

    Args:
        items: one (rows, columns, area) per tensor. The same IndexMap object may serve many items
            and is stored once.

    Raises:
        ValueError: an index outside its source, or offsets that do not ascend.
    """

    items: tuple[tuple[IndexMap, IndexMap, int], ...]
    source_numel: int = field(init=False)
    student_numel: int = field(init=False)
    table: Tensor = field(init=False)
    coefficient: Tensor = field(init=False)
    transposed_table: Tensor = field(init=False)
    transposed_coefficient: Tensor = field(init=False)

    def __init__(self, items: Sequence[tuple[IndexMap, IndexMap, int]]) -> None:
        slots: dict[int, int] = {}
        maps: list[IndexMap] = []
        for rows, columns, _ in items:
            for index_map in (rows, columns):
                if id(index_map) not in slots:
                    slots[id(index_map)] = len(maps)
                    maps.append(index_map)
        host = _C.ExpansionPlan(
            [(m.offsets, m.index, m.weight, m.size) for m in maps],
            [(slots[id(rows)], slots[id(columns)], area) for rows, columns, area in items],
        )
        with torch.inference_mode(False):  # its tensors would serve no training later
            values = {
                "items": tuple(items),
                "source_numel": host.source_numel,
                "student_numel": host.student_numel,
                "table": torch.from_numpy(host.table()),
                "coefficient": torch.from_numpy(host.coefficient()),
                "transposed_table": torch.from_numpy(host.table(transposed=True)),
                "transposed_coefficient": torch.from_numpy(host.coefficient(transposed=True)),
            }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def to(self, device: torch.device | str) -> ExpansionPlan:
        """The same plan with its tables on `device`."""
        return moved(self, device)


def expand(chain: Any, plan: ExpansionPlan) -> Any:
    """Build the flat buffer of a student from the flat buffer of a chain.

    W[i, j, :] = sum over s in R(i) of a_s * sum over t in C(j) of b_t * source[s, t, :], for every
    item (rows R, columns C, area O) of the plan; items lie one after the other in both buffers.

    Args:
        chain: [plan.source_numel], float64, float32, float16 or bfloat16, any device; a strided
            input is copied. NumPy and CuPy arrays are taken as they are.
        plan: the ExpansionPlan; its tables must be on the device of `chain` (`plan.to(device)`).

    Returns:
        [plan.student_numel], dtype, device and kind of array of `chain`; never an alias of it.
        Differentiable to any order: the operator is linear and its backward is the same operator
        on the transposed plan. Not with torch.func: torch gives library operators no such rules.

    Raises:
        TypeError: `chain` is no floating-point array.
        NotImplementedError: forward-mode differentiation.
        ValueError: wrong rank or length, or plan and chain on different devices.

    Notes:
        Bitwise repeatable: fixed order of summation, no atomics. Sums in float32 (float64 for
        float64). Memory: the result only. No host synchronisation, one launch on CUDA.

    Source:
        OSKT, arXiv 2511.06016, section 3 (row stack, column sum, norm average). Difference: the
        lists carry weights, so that means of rows (nested chains) are the same operator.

    Example:
        >>> import torch
        >>> rows, columns = IndexMap.select([0, 1, 0], 2), IndexMap.lists([[0, 2], [1]], 3)
        >>> expand(torch.arange(6.0), ExpansionPlan([(rows, columns, 1)])).tolist()
        [2.0, 1.0, 8.0, 4.0, 2.0, 1.0]
    """
    source = as_tensor("expand", "chain", chain)
    check_float("expand", "chain", source)
    check_no_tangent("expand", "chain", source)
    if source.dim() != 1 or source.numel() != plan.source_numel:
        raise ValueError(
            f"expand: chain must be of shape ({plan.source_numel},), got {tuple(source.shape)}. "
            "Pass the flat buffer that the plan was built for."
        )
    if source.device != plan.table.device:
        raise ValueError(
            f"expand: plan must be on {source.device}, got {plan.table.device}. "
            f"Call plan.to('{source.device}') once and keep the result."
        )
    student = torch.ops.oskt_ext.expand.default(
        source.contiguous(),
        plan.table,
        plan.coefficient,
        plan.transposed_table,
        plan.transposed_coefficient,
        plan.student_numel,
    )
    return restorer(chain)(student)


@torch.library.register_fake("oskt_ext::expand")
def _(
    source: Tensor,
    table: Tensor,
    coefficient: Tensor,
    transposed_table: Tensor,
    transposed_coefficient: Tensor,
    student_numel: int,
) -> Tensor:
    return source.new_empty(student_numel)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    source, *tables, _ = inputs
    ctx.save_for_backward(*tables)
    ctx.source_numel = source.numel()


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    table, coefficient, transposed_table, transposed_coefficient = ctx.saved_tensors
    source_grad = torch.ops.oskt_ext.expand.default(
        grad.contiguous(),
        transposed_table,
        transposed_coefficient,
        table,
        coefficient,
        ctx.source_numel,
    )
    return source_grad, None, None, None, None, None


torch.library.register_autograd("oskt_ext::expand", _backward, setup_context=_setup_context)
