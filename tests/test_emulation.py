"""The CUDA kernels and their glue, run on the CPU (emulation/): against the CPU operators.

Blocks, barriers and warps are those of CUDA; speed, rounding of its mathematics and memory are not.
Every case runs with the threads of a block in three orders, which must not show in the result.
"""

from __future__ import annotations

import ctypes
import os
import shutil

import numpy as np
import pytest
import torch
from emulation.build import build

from oskt_ext import ExpansionPlan, IndexMap, RefiningPlan
from oskt_ext.k_reciprocal import _by_column
from oskt_ext.refining_loss import RefiningItem

ORDERS = range(3)  # ascending, descending, shuffled
OPERATORS = (
    "distance_metrics", "expand", "k_reciprocal", "k_reciprocal_distances", "kmeans", "merge_trees",
    "refining_loss", "refining_loss_scale_", "retrieval_metrics",
)  # fmt: skip
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler"
)


@pytest.fixture(scope="module")
def emulator():
    """The library, with torch.ops.oskt_emulated in the schemas of oskt_ext."""
    library = build(*os.environ.get("OSKT_EMULATION_FLAGS", "").split())
    torch.ops.load_library(library)
    schemas = torch.library.Library("oskt_emulated", "DEF")
    for name in OPERATORS:
        schemas.define(str(getattr(torch.ops.oskt_ext, name).default._schema).split("::")[1])
    yield ctypes.CDLL(str(library))
    schemas._destroy()


@pytest.fixture
def set_order(emulator):
    """Sets the order in which threads take turns."""
    return emulator.emulation_order


@pytest.fixture(autouse=True)
def _memory_of_nan():
    """What the kernels allocate and do not write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def flat(results):
    """The tensors of a result, one after the other."""
    if isinstance(results, torch.Tensor):
        return [results]
    return [tensor for part in results for tensor in flat(part)]


def check(set_order, name, *arguments, ulps=0.0):
    """Equal to the CPU operator, floats within `ulps` roundings of their largest; the result."""
    expected = flat(getattr(torch.ops.oskt_ext, name).default(*arguments))
    results = []
    for order in ORDERS:
        set_order(order)
        results.append(getattr(torch.ops.oskt_emulated, name).default(*arguments))
    for first, second, third, cpu in zip(*map(flat, results), expected):
        for other in (second, third):
            torch.testing.assert_close(other, first, rtol=0, atol=0, equal_nan=True)
        scale = float(cpu.nan_to_num().abs().max()) if cpu.numel() else 0.0
        unit = torch.finfo(cpu.dtype).eps if cpu.is_floating_point() else 0.0
        torch.testing.assert_close(first, cpu, rtol=0, atol=ulps * unit * scale, equal_nan=True)
    return results[0]


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def integers(*shape, dtype=torch.float64, top=3):
    """Small integers: sums are exact and many of them tied."""
    return torch.randint(-top, top + 1, shape).to(dtype)


def labels(queries, gallery, ids=4):
    """Ids and cameras of both sides: junk, queries without a hit, several hits."""
    q, g = torch.arange(queries), torch.arange(gallery)
    return q % (ids + 1), g % ids - (g % 9 == 8).long() * (g % ids + 1), q % 2, g % 3


# ---------------------------------------------------------------------------------- retrieval


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("queries", "gallery"), [(1, 1), (3, 300), (130, 5)])
def test_retrieval_metrics(set_order, dtype, queries, gallery):
    """Integers in the Euclidean metric: every score is exact, so that ranks are the same."""
    sides = integers(queries, 5, dtype=dtype), integers(gallery, 5, dtype=dtype)
    check(set_order, "retrieval_metrics", *sides, *labels(queries, gallery), "euclidean", 7)


def test_retrieval_metrics_cosine(set_order):
    sides = normal(9, 21), normal(70, 21)
    check(set_order, "retrieval_metrics", *sides, *labels(9, 70), "cosine", 7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("queries", "gallery"), [(1, 1), (130, 3), (3, 2100)])
def test_distance_metrics(set_order, dtype, queries, gallery):
    distances = integers(queries, gallery, dtype=dtype, top=40)
    check(set_order, "distance_metrics", distances, *labels(queries, gallery))


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(
    ("queries", "gallery", "k1", "k2"),
    [(1, 1, 20, 6), (5, 60, 7, 3), (20, 240, 1, 1), (3, 4, 9, 9)],
)
def test_k_reciprocal(set_order, dtype, queries, gallery, k1, k2):
    """A weight is off by some roundings of a distance (in float64) and of itself."""
    for metric, rows in (("euclidean", integers), ("cosine", normal)):
        sides = [rows(n, 5, dtype=torch.float64).to(dtype) for n in (queries, gallery)]
        start, column, weight, far = check(
            set_order, "k_reciprocal", *sides, metric, k1, k2, ulps=16
        )
        cut = int(start[queries])
        items = _by_column(start[queries:] - cut, column[cut:], weight[cut:], queries + gallery)
        rows_of_queries = start[: queries + 1], column[:cut], weight[:cut]
        tables = (*rows_of_queries, *items, far, metric, 0.3)
        check(set_order, "k_reciprocal_distances", *sides, *tables, ulps=16)


def test_k_reciprocal_of_nan_stays_within_its_rows(set_order):
    """On CUDA a check would wait for the device, so every entry of a list is a row."""
    queries, gallery = normal(3, 5), normal(9, 5)
    gallery[2] = queries[1] = torch.nan
    set_order(0)
    start, column, _, _ = torch.ops.oskt_emulated.k_reciprocal(queries, gallery, "cosine", 3, 2)
    assert start[0] == 0
    assert (start.diff() >= 0).all()
    assert start[-1] == len(column)
    assert ((column >= 0) & (column < 12)).all()


# ----------------------------------------------------------------------------------- clusters

SHAPES = [(1, 1), (2, 3), (33, 27), (70, 20), *[(3, 2)] * 20]  # more than one launch takes along


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_merge_trees(set_order, offset):
    """N 4 (sqrt(D) + 4) roundings, as in test_merge_trees.py, also of rows far from the origin."""
    rows = [normal(n, d) + offset for n, d in SHAPES]
    check(set_order, "merge_trees", rows, ulps=70 * 4 * (20**0.5 + 4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_trees_of_ties(set_order, dtype):
    """Few heights, exact: the tie rule decides."""
    line = torch.tensor([[0.0], [4.0], [1.0], [5.0]])
    rows = [part.to(dtype) for part in (torch.eye(40), line, torch.zeros(9, 4))]
    check(set_order, "merge_trees", rows)


def test_merge_trees_of_rows_that_are_not_finite(set_order):
    for value in (float("nan"), float("inf")):
        rows = normal(30, 5)
        rows[7:20, 2] = value
        heights = check(set_order, "merge_trees", [rows])[2]
        assert heights[0].isnan().all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("init", ["k-means++", "ward", "centers"])
def test_kmeans(set_order, init, metric):
    """Distances are distinct by far more than they are rounded: labels are the same."""
    rows = [normal(n, d) for n, d in SHAPES]
    k = [max(1, n // 7) for n, _ in SHAPES]
    centers = [row[:count].contiguous() for row, count in zip(rows, k)] if init == "centers" else []
    for algorithm in ("hartigan", "lloyd"):
        arguments = (rows, k, metric, init, centers, algorithm, 2, 20, 5)
        check(set_order, "kmeans", *arguments, ulps=64)


def line(n, top, dtype):
    """Rows on a line whose clusters are far apart and whose means are distinct."""
    return (torch.arange(n) % top * 8 + torch.arange(n) % 3)[:, None].to(dtype)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(("init", "most"), [("k-means++", 9), ("centers", 70)])
def test_direct_kmeans(set_order, init, most, metric):
    """Several tiles of rows, clusters and columns; problems are done at different times."""
    rows = [normal(n, d) + 30 * (n == 150) for n, d in ((300, 20), (150, 3), (5, 40), (1, 1))]
    k = [most, 4, 5, 1]
    centers = [row[:count].contiguous() for row, count in zip(rows, k)] if init == "centers" else []
    for algorithm, restarts, iterations in (("hartigan", 2, 12), ("lloyd", 1, 3)):
        arguments = (rows, k, metric, init, centers, algorithm, restarts, iterations, 5, "direct")
        n_iter = check(set_order, "kmeans", *arguments, ulps=64)[3].tolist()
        assert max(n_iter) <= iterations
        assert len(set(n_iter)) > 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_direct_kmeans_of_ties_and_duplicates(set_order, dtype):
    """Exact numbers: every tie and empty cluster, in every phase, goes as on the CPU."""
    distinct = integers(3, 50, dtype=dtype)
    rows = [distinct[torch.arange(130) % 3], torch.zeros(9, 4, dtype=dtype), line(140, 4, dtype)]
    for k, iterations in (([10, 5, 4], 0), ([10, 5, 4], 20), ([3, 1, 9], 20)):
        arguments = (rows, k, "euclidean", "k-means++", [], "hartigan", 1, iterations, 0, "direct")
        check(set_order, "kmeans", *arguments, ulps=140)  # of a sum


# Columns that one slab of rows holds, several that do not, and few; see TensorTile.
TENSOR_SHAPES = ((300, 60, 100), (130, 300, 70), (40, 3, 5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_kmeans_on_tensor_cores_of_numbers_that_rounding_keeps(set_order, dtype):
    """The assignment to given centers is the CPU's bit for bit: products and sums are exact."""
    rows = [integers(n, d, dtype=dtype) for n, d, _ in TENSOR_SHAPES]
    k = [k for *_, k in TENSOR_SHAPES]
    centers = [row[:count].contiguous() for row, count in zip(rows, k)]
    arguments = (rows, k, "euclidean", "centers", centers, "lloyd", 1, 0, 0, "direct", "high")
    check(set_order, "kmeans", *arguments, ulps=64)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_kmeans_on_tensor_cores_of_clusters_far_apart(set_order, dtype):
    """All phases, restarts and an offset; no row is within rounding of another cluster's."""
    place = 16 * integers(9, 20, dtype=torch.float32) + 40
    rows = [(place[torch.arange(n) % 9] + normal(n, 20)).to(dtype) for n in (140, 50)]
    for algorithm, metric in (("hartigan", "euclidean"), ("lloyd", "cosine")):
        arguments = (rows, [9, 9], metric, "k-means++", [], algorithm, 2, 5, 3, "direct", "high")
        check(set_order, "kmeans", *arguments, ulps=64)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_kmeans_on_tensor_cores_rounds_rows_and_means_first(set_order, dtype):
    """Numbers of 11 bits between 1 and 2, either sign: float32 holds all that is made of them."""
    rows = ((1 + torch.rand(300, 1)) * torch.tensor([[1], [-1]]).repeat(150, 1)).to(dtype)
    rounded = rows.double()
    if dtype == torch.float32:  # to TF32, ties away from 0
        rounded = ((rows.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double()
    expected = (rounded - rounded[:70].T).square().argmin(1)  # the first among equal ones
    set_order(0)
    arguments = ([rows], [70], "euclidean", "centers", [rows[:70].contiguous()], "lloyd", 1, 0, 0)
    found = [
        torch.ops.oskt_emulated.kmeans(*arguments, "direct", p)[1][0] for p in ("high", "highest")
    ]
    empty = 70 - len(expected.unique())  # each takes a row away
    assert (found[0] != expected).sum() <= empty
    if dtype == torch.float32:
        assert (found[1] != expected).sum() > empty


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_kmeans_on_tensor_cores_of_rows_that_are_not_finite(set_order, dtype):
    """The NaN that a GPU makes has all bits set; it must stay one, not round to a number."""
    centers = torch.tensor([[100.0] * 5, [0.0] * 5]).to(dtype)
    rows = centers[torch.arange(140) % 2]
    rows[7:20, 2] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32).to(dtype)
    set_order(0)
    arguments = ([rows], [2], "euclidean", "centers", [centers], "lloyd", 1, 0, 0, "direct")
    highest, high = (
        torch.ops.oskt_emulated.kmeans(*arguments, p)[1][0] for p in ("highest", "high")
    )
    assert (high[7:20] == 0).all()  # no mean is near
    assert torch.equal(high, highest)


@pytest.mark.parametrize("far", [60_000, 65_504])
def test_kmeans_on_tensor_cores_of_halves_whose_distance_is_none(set_order, far):
    """Rows less their offset, -32768 and 65536, are larger than a half; so are means."""
    rows = torch.full((140, 3), far if far == 65_504 else -far, dtype=torch.float16)
    rows[::10] *= -1
    rows[::7, 1] /= 2
    centers = rows[[0, 1, 7]].contiguous()
    for init, start in (("centers", [centers]), ("k-means++", [])):
        arguments = ([rows], [3], "euclidean", init, start, "hartigan", 1, 5, 0, "direct", "high")
        check(set_order, "kmeans", *arguments, ulps=64)


def test_kmeans_without_tensor_cores(emulator):
    """Refused where they would be used: not for float64, nor on the Gram route."""

    def kmeans(dtype, route):
        arguments = ([2], "euclidean", "k-means++", [], "lloyd", 1, 1, 0, route, "high")
        torch.ops.oskt_emulated.kmeans([line(9, 3, dtype)], *arguments)

    emulator.emulation_capability(7)
    try:
        kmeans(torch.float64, "direct")
        kmeans(torch.float32, "gram")
        with pytest.raises(ValueError, match=r"kmeans: precision must be 'highest' .* one of 7\.x"):
            kmeans(torch.float32, "direct")
    finally:
        emulator.emulation_capability(8)


def test_kmeans_takes_either_route_in_one_call(set_order):
    rows = [line(4100, 3, torch.float32), normal(40, 7, dtype=torch.float32)]
    arguments = ([3, 6], "euclidean", "k-means++", [], "hartigan", 1, 3, 3, "auto")
    both = check(set_order, "kmeans", rows, *arguments, ulps=64)
    for b, row in enumerate(rows):
        alone = torch.ops.oskt_emulated.kmeans([row], [(3, 6)[b]], *arguments[1:])
        assert all(torch.equal(one[0], pair[b]) for one, pair in zip(alone, both))


def test_direct_kmeans_of_rows_that_are_not_finite(set_order):
    for value in (float("nan"), float("inf")):
        rows = normal(140, 5)
        rows[7:20, 2] = value
        arguments = ([rows], [6], "euclidean", "k-means++", [], "hartigan", 1, 9, 0, "direct")
        set_order(0)
        _, labels, inertia, _ = torch.ops.oskt_emulated.kmeans(*arguments)
        assert not inertia.isfinite().any()
        assert ((labels[0] >= 0) & (labels[0] < 6)).all()


@pytest.mark.parametrize("init", ["k-means++", "ward"])
def test_kmeans_of_several_k_of_one_matrix(set_order, init):
    """A problem that reads another's Gram matrix has no block of that stage, wherever it stands."""
    set_order(0)
    x, y = normal(70, 9), normal(30, 5) + 9
    rows, k = [x, y, x, x[:40], y], [4, 5, 9, 4, 3]
    arguments = ("euclidean", init, [], "hartigan", 2, 9, 3, "gram")
    together = torch.ops.oskt_emulated.kmeans(rows, k, *arguments)
    for b, (row, count) in enumerate(zip(rows, k)):
        alone = torch.ops.oskt_emulated.kmeans([row], [count], *arguments)
        assert all(torch.equal(one[0], batch[b]) for one, batch in zip(alone, together))


@pytest.mark.parametrize("dtype", DTYPES)
def test_kmeans_of_duplicates(set_order, dtype):
    """Seeding and the empty-cluster rule are exact; iterations split equal rows by rounding."""
    distinct = integers(3, 50, dtype=dtype)
    rows = [distinct[torch.arange(64) % 3], torch.zeros(9, 4, dtype=dtype)]
    for init in ("k-means++", "ward"):
        check(set_order, "kmeans", rows, [10, 5], "euclidean", init, [], "hartigan", 1, 0, 0)


# -------------------------------------------------------------------------- expansion, refinement


@pytest.mark.parametrize("dtype", DTYPES)
def test_expand(set_order, dtype):
    """Copies, empty and long lists, weights, items that are read alike, a warp per element."""
    copies, one = IndexMap.select(np.arange(17) % 5, 5), IndexMap.identity(1)
    lists = IndexMap.lists([[0, 1], [2], [3, 4, 0], []], 5)
    means = IndexMap.lists([[0, 1], [3, 4, 0]], 5, mean=True)
    long = IndexMap.lists([[*range(200)], [1]], 200)
    items = [(copies, IndexMap.identity(12), 1)] * 2 + [(lists, means, 9), (long, long, 2)]
    plan = ExpansionPlan(items + [(copies, one, 1)] * 4 + [(means, one, 3), (long, one, 1)])
    forward, backward = (
        (plan.table, plan.coefficient),
        (plan.transposed_table, plan.transposed_coefficient),
    )
    chain, student = (normal(n, dtype=dtype) for n in (plan.source_numel, plan.student_numel))
    ulps = 200 if dtype in DTYPES[:2] else 1  # halves are summed in float32
    check(set_order, "expand", chain, *forward, *backward, len(student), ulps=ulps)
    check(set_order, "expand", student, *backward, *forward, len(chain), ulps=ulps)


def test_expand_refuses_a_foreign_plan(set_order):
    plan = ExpansionPlan([(IndexMap.identity(2), IndexMap.identity(3), 1)])
    tables = (plan.table, plan.coefficient, plan.transposed_table, plan.transposed_coefficient)
    with pytest.raises(ValueError, match="__trap"):
        torch.ops.oskt_emulated.expand(torch.zeros(5), *tables, 6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_refining_loss(set_order, dtype):
    """Several launches, an empty cluster, rows with weights, a chain with a rest, no tensors."""
    sizes = [(12, 4, 5, None), (7, 3, 3000, np.arange(7.0)), (300, 1, 100, None), (1, 1, 1, [0.5])]
    items, offset = [], 2
    for n, clusters, length, weights in sizes:
        of = np.arange(n) % max(1, clusters - 1)
        items.append(RefiningItem(of, clusters, length, offset, 0.7, weights))
        offset += clusters * length
    for chosen in (items, []):
        plan = RefiningPlan(chosen)
        teacher = [normal(len(i.labels), i.row_length, dtype=dtype) for i in chosen]
        chain = normal(offset + 3, dtype=dtype)
        for needs in ((True, True), (False, True), (True, False)):
            arguments = (teacher, chain, plan.table, plan.weight, 0.1, *needs)
            check(set_order, "refining_loss", *arguments, ulps=4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_refining_loss_scale(set_order, dtype):
    """Several launches, blocks that take several stretches, ends within a stretch, no tensor."""
    gradients = [normal(n, dtype=dtype) for n in (5, 0, 20_000, 2048, 4097)]
    for value in (1.0, 0.3, torch.nan):
        factor = torch.tensor(value, dtype=torch.promote_types(dtype, torch.float32))
        expected = [(g.to(factor.dtype) * factor).to(dtype) for g in gradients]
        for order in ORDERS:
            set_order(order)
            for chosen in (len(gradients), 0):
                scaled = [g.clone() for g in gradients[:chosen]]
                torch.ops.oskt_emulated.refining_loss_scale_(scaled, factor)
                for a, b in zip(scaled, expected):
                    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
