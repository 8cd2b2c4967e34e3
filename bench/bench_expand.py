"""Expansion of whole models, in one call: the paper's six sizes, ViT-B, nested chains.

Rows: `oskt_ext.expand` and its peers at the same task and dtype; correctness is asserted before
anything is timed. Buffers are the same from call to call, so that small ones stay in a cache;
rows `cold` flush the caches before every call. extra_info holds `bytes`, the compulsory traffic
(source read, student written; for a step also the student's gradient read and the source's written
whole), `roof_s`, the time of as many bytes at the bandwidth of a copy, and `error`, the largest
deviation from the reference as a share of its largest number. Memory is read by the cache line: of
a selection `bytes` counts every line that holds a number of it.

Peers: `loop`, one Python step per channel; `index`, index_select and index_add_ of rows and
columns, first those of which fewer are left; `embedding_bag`, the best stock PyTorch form for sums:
a fused column sum over the chain rows, then a row select; `numpy`, add.reduceat.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from expand_cases import CASES, items_of
from harness import CUDA, DEVICE, against_copy
from oskt_ext import ExpansionPlan, IndexMap, expand
from oskt_ext.reference import expand as expand_reference

Provider = Callable[[Tensor], Any]


def views(source: Any, items: list[tuple[IndexMap, IndexMap, int]]) -> list[Any]:
    """The source matrix (R, C, O) of every item."""
    sizes = [rows.size * columns.size * area for rows, columns, area in items]
    ends = np.cumsum(sizes)
    # One split: backward of a slice writes a gradient of the whole source.
    parts = (
        source.split(sizes)
        if isinstance(source, Tensor)
        else [source[end - size : end] for size, end in zip(sizes, ends)]
    )
    return [
        part.reshape(rows.size, columns.size, area)
        for part, (rows, columns, area) in zip(parts, items)
    ]


def flat(m: IndexMap) -> tuple[np.ndarray, np.ndarray]:
    """Student entry and source entry of every pair of a map."""
    return np.repeat(np.arange(len(m)), np.diff(m.offsets)), m.index


def provide_loop(items: Any) -> Provider:
    """One Python step per student channel, as the published code expands."""
    lists = [[m.index[a:b].tolist() for a, b in zip(m.offsets, m.offsets[1:])] for _, m, _ in items]
    rows = [
        [(m.index[a:b].tolist(), float(m.weight[a])) for a, b in zip(m.offsets, m.offsets[1:])]
        for m, _, _ in items
    ]

    def run(source: Tensor) -> Tensor:
        parts = []
        for matrix, row_lists, column_lists in zip(views(source, items), rows, lists):
            narrow = [matrix[:, members].sum(1) for members in column_lists]
            table = torch.stack(narrow, dim=1)
            parts += [(weight * table[members].sum(0)).flatten() for members, weight in row_lists]
        return torch.cat(parts)

    return run


def provide_index(items: Any) -> Provider:
    """index_select, and index_add_ of sums; the axis that shrinks more goes first."""

    def step(dim: int, m: IndexMap) -> Callable[[Tensor], Tensor]:
        if len(m) == m.size and np.array_equal(m.index, np.arange(m.size)):
            return lambda matrix: matrix
        to, index = (torch.from_numpy(a.astype(np.int64)).to(DEVICE) for a in flat(m))
        weight = torch.from_numpy(m.weight).float().to(DEVICE)
        weight = weight[:, None, None] if dim == 0 else weight[:, None]
        ones, single = bool((m.weight == 1).all()), bool((np.diff(m.offsets) == 1).all())

        def run(matrix: Tensor) -> Tensor:
            picked = matrix.index_select(dim, index)
            picked = picked if ones else picked * weight
            if single:
                return picked
            shape = [*matrix.shape[:dim], len(m), *matrix.shape[dim + 1 :]]
            return matrix.new_zeros(shape).index_add_(dim, to, picked)

        return run

    plans = []
    for rows, columns, _ in items:
        order = sorted([(0, rows), (1, columns)], key=lambda axis: len(axis[1]) / axis[1].size)
        plans.append([step(dim, m) for dim, m in order])

    def run(source: Tensor) -> Tensor:
        parts = []
        for matrix, steps in zip(views(source, items), plans):
            for take in steps:
                matrix = take(matrix)
            parts.append(matrix.flatten())
        return torch.cat(parts)

    return run


def provide_embedding_bag(items: Any) -> Provider:
    """A column sum per chain row as bags of elements, then a row select; vectors as bags."""
    plans = []
    for rows, columns, area in items:
        if columns.size == 1:
            index, offsets = rows.index, rows.offsets[:-1]
            weight, select = torch.from_numpy(rows.weight).float().to(DEVICE), None
        else:
            starts = np.arange(rows.size)[:, None] * columns.size
            index = (starts + columns.index).ravel()
            offsets = np.arange(rows.size)[:, None] * len(columns.index) + columns.offsets[:-1]
            weight, select = None, torch.from_numpy(rows.index).long().to(DEVICE)
        index, offsets = (torch.from_numpy(np.ravel(a).astype(np.int64)).to(DEVICE)
                          for a in (index, offsets))  # fmt: skip
        plans.append((index, offsets, weight, select, len(columns) * area))

    def run(source: Tensor) -> Tensor:
        parts = []
        for matrix, (index, offsets, weight, select, pitch) in zip(views(source, items), plans):
            bags = torch.nn.functional.embedding_bag(
                index, matrix.reshape(-1, matrix.shape[2]), offsets, mode="sum",
                per_sample_weights=weight,
            )  # fmt: skip
            bags = bags if select is None else bags.reshape(-1, pitch).index_select(0, select)
            parts.append(bags.flatten())
        return torch.cat(parts)

    return run


def provide_numpy(items: Any) -> Provider:
    """add.reduceat over gathered columns, then a row gather; NumPy has one thread."""

    def run(source: Tensor) -> Tensor:
        parts = []
        for matrix, (rows, columns, _) in zip(views(source.numpy(), items), items):
            if columns.size > 1:
                matrix = np.add.reduceat(matrix[:, columns.index], columns.offsets[:-1], axis=1)
                parts.append(matrix[rows.index].ravel())
            else:
                picked = matrix.ravel()[rows.index] * rows.weight.astype(np.float32)
                parts.append(np.add.reduceat(picked, rows.offsets[:-1]))
        return torch.from_numpy(np.concatenate(parts))

    return run


def provide_cupy(items: Any) -> Provider:
    """cupyx.scatter_add over columns, then a row gather; not repeatable (float atomics)."""
    cupy, cupyx = pytest.importorskip("cupy"), pytest.importorskip("cupyx")
    plans = []
    for rows, columns, _ in items:
        tables = [cupy.asarray(a) for m in (rows, columns) for a in flat(m)]
        plans.append((*tables, cupy.asarray(rows.weight, cupy.float32), len(rows), len(columns)))

    def run(source: Tensor) -> Tensor:
        parts = []
        for matrix, plan in zip(views(cupy.from_dlpack(source.detach()), items), plans):
            to_row, from_row, to_column, from_column, weight, n, m = plan
            narrow = cupy.zeros((matrix.shape[0], m, matrix.shape[2]), cupy.float32)
            cupyx.scatter_add(narrow, (slice(None), to_column), matrix[:, from_column])
            student = cupy.zeros((n, m, matrix.shape[2]), cupy.float32)
            cupyx.scatter_add(student, to_row, narrow[from_row] * weight[:, None, None])
            parts.append(student.ravel())
        return torch.from_dlpack(cupy.concatenate(parts))

    return run


def provide_oskt(items: Any) -> Provider:
    plan = ExpansionPlan(items).to(DEVICE)
    return lambda source: expand(source, plan)


PROVIDERS = {
    "oskt": provide_oskt,
    "index": provide_index,
    "embedding_bag": provide_embedding_bag,
    **({"cupy": provide_cupy} if CUDA else {"numpy": provide_numpy}),
    "loop": provide_loop,
}


# Peers take seconds; they run at the sizes that the README shows.
WITH_ALL = ("res50-s1", "res50-s3", "res50-s6")
WITH_INDEX = ("vit-b-1/2", "select-1/2", "merge-1/2")


def providers_of(case: str) -> list[str]:
    if case in WITH_ALL:
        return [name for name in PROVIDERS if name != "loop" or case == "res50-s1"]
    return ["oskt", "index"] if case in WITH_INDEX else ["oskt"]


FORWARD = [(case, peer) for case in CASES for peer in providers_of(case)]
STEP = [(c, p) for c, p in FORWARD if p in ("oskt", "index", "embedding_bag")]


def rounds_of(provider: str) -> int:
    """Peers take up to seconds, and are told apart from ours by far fewer rounds."""
    return 9 if provider == "oskt" else 5


def bytes_read(items: list[tuple[IndexMap, IndexMap, int]]) -> int:
    """The cache lines of a float32 source that hold a number which is read, in bytes."""
    line, start, lines = 16, 0, 0
    for rows, columns, area in items:
        end = start + rows.size * columns.size * area
        first, last = start // line * line, -(-end // line) * line
        read = np.zeros(last - first, dtype=bool)
        matrix = read[start - first : end - first].reshape(rows.size, columns.size, area)
        matrix[np.ix_(np.unique(rows.index), np.unique(columns.index))] = True
        lines += int(read.reshape(-1, line).any(axis=1).sum())
        start = end
    return 4 * line * lines


@cache
def reference(case: str) -> tuple[Tensor, Tensor, int]:
    """A random chain, its student by the definition, and the compulsory bytes of a forward."""
    items = items_of(case)
    plan = ExpansionPlan(items)
    source = torch.randn(plan.source_numel, generator=torch.Generator().manual_seed(0))
    nbytes = bytes_read(items) + 4 * plan.student_numel
    return source, expand_reference(source, plan), nbytes


def make_case(benchmark: Any, case: str, provider: str) -> tuple[Tensor, Provider, int]:
    """A random chain, the provider's function, verified, and the compulsory bytes of a forward."""
    source, expected, nbytes = reference(case)
    run, source = PROVIDERS[provider](items_of(case)), source.clone().to(DEVICE)
    student = run(source).cpu()
    torch.testing.assert_close(student, expected, rtol=1e-4, atol=1e-4)
    error = (student - expected).abs().max() / expected.abs().max()
    benchmark.extra_info["error"] = float(error)
    return source, run, nbytes


@pytest.mark.parametrize(("case", "provider"), FORWARD)
def test_forward(benchmark, case, provider):
    source, run, nbytes = make_case(benchmark, case, provider)
    benchmark.group = f"expand forward {case}"
    against_copy(benchmark, nbytes, lambda: run(source), rounds=rounds_of(provider))


@pytest.mark.parametrize("case", CASES)
def test_forward_cold(benchmark, case):
    source, run, nbytes = make_case(benchmark, case, "oskt")
    flush = torch.ones(32 << 20, device=DEVICE)
    benchmark.group = f"expand forward {case}"
    against_copy(benchmark, nbytes, lambda: run(source), prepare=lambda: flush.add_(1))


@pytest.mark.parametrize(("case", "provider"), STEP)
def test_forward_backward(benchmark, case, provider):
    source, run, nbytes = make_case(benchmark, case, provider)
    source.requires_grad_()
    gradient = torch.ones_like(run(source))
    benchmark.group = f"expand forward and backward {case}"
    nbytes += 4 * (gradient.numel() + source.numel())

    def step() -> None:
        torch.autograd.grad(run(source), source, gradient)

    against_copy(benchmark, nbytes, step, rounds=rounds_of(provider))
