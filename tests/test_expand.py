"""expand: against its definition, exactly where arithmetic is exact, and by its properties."""

from __future__ import annotations

import doctest
import importlib
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oskt_ext import ExpansionPlan, IndexMap, expand
from oskt_ext.reference import expand as expand_reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def ragged(rng, entries, size, weights):
    """Random lists, some empty, some repeated."""
    lists = [rng.integers(size, size=rng.integers(0, 5)) for _ in range(entries)]
    lists = [lists[rng.integers(entries)] if rng.random() < 0.3 else one for one in lists]
    lengths = np.array([len(one) for one in lists])
    index = np.concatenate(lists).astype(np.int32)
    return IndexMap(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        index,
        rng.choice(weights, size=len(index)).astype(np.float64),
        size,
    )


def mixed_items(seed=0, weights=(1.0,)):
    """Every kind of item: all column kinds, areas 1, 4, 9 and 49, vectors, wide and narrow."""
    rng = np.random.default_rng(seed)
    shared = ragged(rng, 23, 17, weights)
    copies = IndexMap.select(rng.integers(6, size=40), 6)
    blocks = IndexMap.lists(np.array_split(rng.permutation(70), 12), 70)
    narrow = IndexMap.lists([np.arange(64)], 64)
    return [
        (copies, blocks, 1),
        (copies, blocks, 9),
        (IndexMap.select(np.arange(19) % 11, 11), IndexMap.identity(3), 49),
        (shared, shared, 1),
        (shared, shared, 4),
        (ragged(rng, 30, 8, weights), ragged(rng, 11, 200, weights), 33),
        (IndexMap.identity(8), IndexMap.select(rng.integers(30, size=50), 30), 1),
        (IndexMap.identity(5), IndexMap.select([2, 2, 0], 3), 9),
        (ragged(rng, 300, 100, weights), IndexMap.identity(1), 1),
        (narrow, narrow, 1),
        (narrow, IndexMap.identity(700), 9),
        (IndexMap.select([], 4), IndexMap.identity(2), 1),
        (shared, IndexMap.lists([[], [1]], 2, mean=True), 1),
    ]


def integers(numel, dtype=torch.float32, high=3):
    """Small integers: every sum below is exact in every dtype's accumulator."""
    return torch.randint(-high, high + 1, (numel,)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, -0.5)])
def test_exact_arithmetic_is_bit_equal(device, dtype, weights):
    plan = ExpansionPlan(mixed_items(1, weights)).to(device)
    source = integers(plan.source_numel, dtype).to(device)
    assert torch.equal(expand(source, plan), expand_reference(source, plan))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("area", [1, 4, 9, 49])
def test_selections_are_copies(device, dtype, area):
    """Leading channels, a stretch, few and many gathered ones, in any order and repeated."""
    rng = np.random.default_rng(area)
    size = 150
    columns = [
        np.arange(40),
        np.arange(31, 131),
        np.arange(size - 1, size),
        np.sort(rng.permutation(size)[:20]),
        np.sort(rng.permutation(size)[:110]),
        rng.integers(size, size=37),
        rng.integers(size, size=300),
    ]
    rows = [np.sort(rng.permutation(60)[: 3 + 7 * i]) for i in range(len(columns))]
    plan = ExpansionPlan(
        [(IndexMap.select(r, 60), IndexMap.select(c, size), area) for r, c in zip(rows, columns)]
    ).to(device)
    source = torch.randn(plan.source_numel).to(device, dtype)
    matrices = source.reshape(len(columns), 60, size, area)
    expected = [m[r][:, c].flatten() for m, r, c in zip(matrices, rows, columns)]
    assert torch.equal(expand(source, plan), torch.cat(expected))


@pytest.mark.parametrize("width", [256, 251])
def test_large_students_are_written_whole(device, width):
    """20 MB, which go past the caches, in aligned rows and in others; sums, copies and runs."""
    members = IndexMap.lists(np.array_split(np.random.default_rng(0).permutation(512), width), 512)
    copies = IndexMap.select(np.arange(3000) % 37, 37)
    single = IndexMap.select(np.arange(36, -1, -1), 37)
    leading = IndexMap.select(np.arange(width), 512)
    items = [(copies, members, 1), (single, members, 9), (copies, leading, 7)]
    plan = ExpansionPlan(items).to(device)
    source = integers(plan.source_numel).to(device)
    assert torch.equal(expand(source, plan), expand_reference(source, plan))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_stays_within_its_bound(device, dtype):
    """|error| <= (n + 1) u sum |a b x|, n additions and products in the accumulator, one store."""
    plan = ExpansionPlan(mixed_items(2, (0.3, 1.7, -0.9))).to(device)
    source = torch.randn(plan.source_numel).to(device, dtype)
    exact = expand_reference(source.double(), plan)
    magnitude = expand_reference(source.double().abs(), _absolute(plan))
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    terms = max(
        np.diff(r.offsets, append=0).max() + np.diff(c.offsets, append=0).max() + 4
        for r, c, _ in plan.items
    )
    # The factor 2 stands for the reference's own error in the float64 case.
    bound = 2 * float(terms) * unit * magnitude + torch.finfo(dtype).eps / 2 * exact.abs()
    smallest = torch.finfo(dtype).smallest_normal
    assert ((expand(source, plan).double() - exact).abs() <= bound + smallest).all()


def _absolute(plan):
    """The plan with the absolute values of its weights."""
    seen = {}

    def positive(m):
        return seen.setdefault(id(m), IndexMap(m.offsets, m.index, np.abs(m.weight), m.size))

    return ExpansionPlan([(positive(r), positive(c), area) for r, c, area in plan.items])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 9]))
def test_any_lists(seed, rows, columns, area):
    rng = np.random.default_rng(seed)
    items = [
        (ragged(rng, rows, 7, (1.0, 2.0)), ragged(rng, columns, 6, (1.0, -1.0)), area)
        for _ in range(2)
    ]
    plan = ExpansionPlan(items)
    source = integers(plan.source_numel)
    assert torch.equal(expand(source, plan), expand_reference(source, plan))


def test_backward_is_the_transpose(device):
    """<expand(x), y> = <x, backward(y)>, exactly."""
    plan = ExpansionPlan(mixed_items(3, (1.0, 2.0))).to(device)
    x = integers(plan.source_numel, torch.float64).to(device).requires_grad_()
    y = integers(plan.student_numel, torch.float64).to(device)
    out = expand(x, plan)
    (gradient,) = torch.autograd.grad(out, x, y)
    assert torch.dot(out.detach(), y) == torch.dot(x.detach(), gradient)
    reference = x.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(expand_reference(reference, plan), reference, y)
    assert torch.equal(gradient, expected)


def test_gradcheck_first_and_second_order(device):
    rng = np.random.default_rng(4)
    items = [(ragged(rng, 4, 3, (1.0, 0.5)), ragged(rng, 3, 5, (1.0, 2.0)), 2)]
    plan = ExpansionPlan(items).to(device)
    source = torch.randn(plan.source_numel, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: expand(x, plan), source)
    assert torch.autograd.gradgradcheck(lambda x: expand(x, plan), source)


def test_opcheck(device):
    plan = ExpansionPlan(mixed_items(5)).to(device)
    tables = (
        plan.table,
        plan.coefficient,
        plan.transposed_table,
        plan.transposed_coefficient,
        plan.student_numel,
    )
    for requires_grad in (False, True):
        source = torch.randn(plan.source_numel, device=device, requires_grad=requires_grad)
        torch.library.opcheck(torch.ops.oskt_ext.expand.default, (source, *tables))


def test_compiles_in_one_graph(device):
    plan = ExpansionPlan(mixed_items(6)).to(device)
    compiled = torch.compile(
        lambda x: expand(x, plan).square().sum(), fullgraph=True, backend="aot_eager"
    )
    values, gradients = integers(plan.source_numel).to(device), []
    for function in (compiled, lambda x: expand(x, plan).square().sum()):
        source = values.clone().requires_grad_()
        function(source).backward()
        gradients.append(source.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bitwise_repeatable_over_runs_and_threads(device, dtype):
    plan = ExpansionPlan(mixed_items(7, (0.3, 1.1))).to(device)
    source = torch.randn(plan.source_numel).to(device, dtype)
    first = expand(source, plan)
    threads = torch.get_num_threads()
    try:
        for run in range(20):
            torch.set_num_threads(1 + run % 3)
            assert torch.equal(expand(source, plan), first)
    finally:
        torch.set_num_threads(threads)


def test_an_item_does_not_depend_on_its_neighbours(device):
    """The thread cuts and the batches of rows differ, the bits do not."""
    items = mixed_items(8, (0.3, 1.1))
    whole = ExpansionPlan(items).to(device)
    source = torch.randn(whole.source_numel, device=device)
    parts, start = [], 0
    for item in items:
        plan = ExpansionPlan([item]).to(device)
        parts.append(expand(source[start : start + plan.source_numel], plan))
        start += plan.source_numel
    assert torch.equal(torch.cat(parts), expand(source, whole))


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 16, 17, 33])
def test_a_row_does_not_depend_on_the_rows_beside_it(device, rows):
    """However many rows go through the column sums together, the bits are those of one alone."""
    rng = np.random.default_rng(rows)
    columns = ragged(rng, 37, 130, (0.3, 1.1))
    together = ExpansionPlan([(IndexMap.identity(rows), columns, 1)]).to(device)
    alone = ExpansionPlan([(IndexMap.identity(1), columns, 1)]).to(device)
    source = torch.randn(rows, 130, device=device)
    expected = torch.stack([expand(row, alone) for row in source])
    assert torch.equal(expand(source.flatten(), together).reshape(rows, 37), expected)


def test_vectors_read_alike_do_not_depend_on_each_other(device):
    """Neighbours with one column and the same lists are computed as one matrix."""
    lists, one = ragged(np.random.default_rng(9), 50, 40, (0.3, 1.1)), IndexMap.identity(1)
    for area in (1, 9):
        plan = ExpansionPlan([(lists, one, area)] * 5).to(device)
        alone = ExpansionPlan([(lists, one, area)]).to(device)
        source = torch.randn(5, 40 * area, device=device)
        expected = torch.cat([expand(vector, alone) for vector in source])
        assert torch.equal(expand(source.flatten(), plan), expected)


def test_mean_of_a_cluster_and_sum_of_its_columns(device):
    """A merge keeps constants: means of equal rows, and row sums over all columns."""
    members = np.array_split(np.arange(24), 5)
    rows, columns = IndexMap.lists(members, 24, mean=True), IndexMap.lists(members, 24)
    plan = ExpansionPlan([(rows, columns, 9)]).to(device)
    source = torch.arange(24 * 9.0, device=device).reshape(24, 9).expand(24, 24, 9)
    student = expand(source.flatten(), plan).reshape(5, 5, 9)
    torch.testing.assert_close(student.sum(1), source.sum(1)[:5])


def test_the_same_map_is_stored_once():
    rows, columns = IndexMap.identity(64), IndexMap.lists(np.array_split(np.arange(64), 8), 64)
    one, many = (ExpansionPlan([(rows, columns, 1)] * n).table.numel() for n in (1, 9))
    assert many - one < 9 * 64


def test_numpy_in_numpy_out():
    plan = ExpansionPlan(mixed_items(9))
    source = integers(plan.source_numel)
    student = expand(source.numpy(), plan)
    assert isinstance(student, np.ndarray)
    assert np.array_equal(student, expand(source, plan).numpy())


def test_empty_plan_and_input_unchanged():
    assert expand(torch.empty(0), ExpansionPlan([])).shape == (0,)
    plan = ExpansionPlan(mixed_items(10))
    source = torch.randn(plan.source_numel)
    before = source.clone()
    student = expand(source, plan)
    student.zero_()
    assert torch.equal(source, before)


def test_strided_input_is_copied(device):
    plan = ExpansionPlan(mixed_items(11)).to(device)
    source = integers(2 * plan.source_numel).to(device)[::2]
    assert torch.equal(expand(source, plan), expand(source.contiguous(), plan))


def plain_map(**changes):
    values = {"offsets": [0, 1, 2], "index": [0, 2], "weight": [1.0, 1.0], "size": 3} | changes
    return IndexMap(
        np.array(values["offsets"], np.int32),
        np.array(values["index"], values.get("dtype", np.int32)),
        np.array(values["weight"], np.float64),
        values["size"],
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": [0, 3]}, r"index of map 0 must be in \[0, 3\), got 3 at position 1"),
        ({"index": [-1, 0]}, r"index of map 0 must be in \[0, 3\), got -1"),
        ({"offsets": [0, 2, 1]}, "offsets of map 0 must ascend"),
        ({"offsets": [0, 1, 3]}, "offsets of map 0 must end at 2"),
        ({"offsets": [1, 1, 2]}, "offsets of map 0 must start at 0, got 1"),
        ({"offsets": []}, "offsets of map 0 must start at 0, got none"),
        ({"weight": [1.0]}, "weight of map 0 must have 2 values"),
        ({"size": -1}, r"size of map 0 must be in \[0, 2\^31\)"),
        ({"dtype": np.int64}, "index of map 0 must be int32, got int64"),
    ],
)
def test_bad_maps(changes, message):
    with pytest.raises(ValueError, match="ExpansionPlan: " + message):
        ExpansionPlan([(plain_map(**changes), IndexMap.identity(1), 1)])


@pytest.mark.parametrize(
    ("index", "got"),
    [
        (np.array([2**32 + 1]), "int64 from 4294967297"),  # 1 in 32 bits
        (np.array([-(2**32)]), "int64 from -4294967296"),
        ([0.0, 1.9], "float64 from 0.0 to 1.9"),
        (np.array([True, False, True]), "bool from False to True"),
    ],
)
def test_an_index_is_not_made_another_one(index, got):
    message = "IndexMap: index must be integers of 32 bits, got " + got
    with pytest.raises(ValueError, match=re.escape(message)):
        IndexMap.select(index, 3)
    with pytest.raises(ValueError, match=re.escape(message)):
        IndexMap.lists([[], index], 3)


def test_a_plan_made_in_inference_mode_serves_training():
    with torch.inference_mode():
        plan = ExpansionPlan([(IndexMap.select([1, 1], 3), IndexMap.identity(1), 1)])
        far = plan.to("meta")
    chain = torch.zeros(3, requires_grad=True)
    expand(chain, plan).sum().backward()
    assert chain.grad.tolist() == [0, 2, 0]
    assert not far.table.is_inference()


def test_bad_area():
    with pytest.raises(ValueError, match="ExpansionPlan: area of item 0 must be in"):
        ExpansionPlan([(plain_map(), IndexMap.identity(1), 0)])


def test_bad_calls():
    plan = ExpansionPlan([(plain_map(), IndexMap.identity(1), 1)])
    with pytest.raises(TypeError, match="expand: chain must be float64, float32, float16 or"):
        expand(torch.zeros(3, dtype=torch.int64), plan)
    with pytest.raises(ValueError, match=r"expand: chain must be of shape \(3,\), got \(4,\)"):
        expand(torch.zeros(4), plan)
    with pytest.raises(TypeError, match="expand: chain must be a tensor or an array"):
        expand([0.0, 1.0, 2.0], plan)


def test_direct_calls_cannot_read_wild_memory():
    plan = ExpansionPlan([(plain_map(), IndexMap.identity(1), 1)])
    tables = (plan.table, plan.coefficient, plan.transposed_table, plan.transposed_coefficient)
    operator = torch.ops.oskt_ext.expand.default
    with pytest.raises(ValueError, match="expand: source and student must have 3 and 2"):
        operator(torch.zeros(3), *tables, 5)
    with pytest.raises(ValueError, match="expand: table must be the int64 table"):
        operator(torch.zeros(3), torch.zeros(99, dtype=torch.int64), *tables[1:], 2)


def test_docstring_examples():
    # oskt_ext.expand the name is the function; the module must be asked for.
    module = importlib.import_module("oskt_ext.expand")
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0


def test_forward_mode_is_refused():
    plan = ExpansionPlan([(plain_map(), IndexMap.identity(1), 1)])
    with pytest.raises(NotImplementedError, match="expand: chain must have no tangent, got one"):
        torch.func.jvp(lambda chain: expand(chain, plan), (torch.ones(3),), (torch.ones(3),))
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(lambda chain: expand(chain, plan).sum())(torch.ones(3))
