"""Merge trees against their definition: heights, cuts, ties, determinism, errors."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from oskt_ext import kmeans, merge_trees, reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def gaussian(n, d, *, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(device, dtype)


def ragged(device, dtype=torch.float32):
    """Sizes around every tile, panel and lane."""
    shapes = [(1, 1), (2, 3), (33, 27), (64, 147), (127, 64), (130, 5), (300, 257), (600, 31)]
    return [gaussian(n, d, dtype=dtype, device=device, seed=n) for n, d in shapes]


def same(trees, others):
    """Whether two results are equal bit for bit."""
    return all(torch.equal(a, b) for x, y in zip(trees, others) for a, b in zip(x, y))


def rises(rows, order, parent):
    """The rise of the sum of squares of every merge, by definition, the last position first."""
    mean, size = rows.double().cpu()[order.cpu()], np.ones(len(order))
    found = torch.zeros(len(order), dtype=torch.float64)
    for i in range(len(order) - 1, 0, -1):
        p = int(parent[i])
        both = size[i] + size[p]
        found[i] = size[i] * size[p] / both * (mean[i] - mean[p]).square().sum()
        mean[p] = (size[i] * mean[i] + size[p] * mean[p]) / both
        size[p] = both
    return found


def band(rows, dtype):
    """How far rounding may move a height.

    A height is linear in the N^2 squared distances, with weights whose absolute sum is at most N
    (2 n_a n_b / (n_a + n_b), half of it from pairs within a and within b). A distance has the error
    of three sums of D products, growing as sqrt(D), and some roundings of the recurrence: 4
    (sqrt(D) + 4) eps times the largest squared length once the mean is off.
    """
    x = rows.double()
    n, d = x.shape
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    return n * 4 * (d**0.5 + 4) * eps * float((x - x.mean(0)).square().sum(1).max())


def labels_at(order, parent, k):
    """Labels of the cut at k, by position."""
    place = list(range(len(order)))
    for i in range(k, len(order)):
        place[i] = place[int(parent[i])]
    labels = torch.empty(len(order), dtype=torch.int64)
    labels[order.cpu()] = torch.tensor(place)
    return labels


def as_partition(labels):
    """Labels renumbered by first appearance."""
    numbers = {}
    return [numbers.setdefault(int(x), len(numbers)) for x in labels]


def check_trees(rows, trees):
    """Permutations, parents before children, lowest rows kept, heights that never rise."""
    for row, order, parent, height in zip(rows, *trees):
        n = len(row)
        assert (order.dtype, parent.dtype, height.dtype) == (torch.int64,) * 2 + (torch.float64,)
        assert {x.device.type for x in (order, parent, height)} == {row.device.type}
        assert order.sort().values.tolist() == list(range(n))
        assert (order[0], parent[0], height[0]) == (0, -1, 0.0)
        assert (parent[1:] >= 0).all()
        assert (parent[1:] < torch.arange(1, n, device=row.device)).all()
        assert (order[1:] > order[parent[1:]]).all()
        assert (height >= 0).all()
        assert (height[1:-1] >= height[2:]).all()


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ragged_batch(device, dtype, offset):
    rows = [row.add(offset) for row in ragged(device, dtype)]
    copies = [row.clone() for row in rows]
    trees = merge_trees(rows)
    check_trees(rows, trees)
    assert all(torch.equal(a, b) for a, b in zip(rows, copies))
    for row, order, parent, height in zip(rows, *trees):
        atol = band(row, dtype)
        torch.testing.assert_close(height.cpu(), rises(row, order, parent), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
def test_heights_sum_to_the_spread(device, dtype):
    for row in ragged(device, dtype):
        x = row.double()
        total = float(merge_trees([row]).height[0].sum())
        assert total == pytest.approx(
            float((x - x.mean(0)).square().sum()), rel=0, abs=len(row) * band(row, dtype)
        )


def test_equals_the_reference(device):
    """In float64 no height of such rows is within rounding of another."""
    rows = [
        gaussian(n, d, dtype=torch.float64, device=device, seed=d)
        for n, d in [(1, 4), (2, 1), (60, 9), (41, 50)]
    ]
    trees, expected = merge_trees(rows), reference.merge_trees(rows)
    assert same(trees[:2], expected[:2])
    for row, height, twin in zip(rows, trees.height, expected.height):
        torch.testing.assert_close(height, twin, rtol=0, atol=band(row, row.dtype))


def test_every_cut_is_the_ward_partition_of_kmeans(device):
    for dtype in (torch.float64, torch.float32):
        rows = gaussian(70, 12, dtype=dtype, device=device, seed=3)
        order, parent, _ = (part[0] for part in merge_trees([rows]))
        ks = list(range(1, 71))
        theirs = kmeans([rows] * 70, ks, init="ward", max_iter=0).labels
        for k, labels in zip(ks, theirs):
            assert as_partition(labels_at(order, parent, k)) == labels.tolist()


def test_equals_scipy():
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    for n, d in [(50, 3), (200, 64), (311, 9)]:
        x = gaussian(n, d, dtype=torch.float64, seed=n)
        order, parent, height = (part[0] for part in merge_trees([x]))
        linkage = hierarchy.linkage(x.numpy(), method="ward")
        theirs = torch.from_numpy(linkage[::-1, 2].copy()).square() / 2
        torch.testing.assert_close(height[1:], theirs, rtol=0, atol=band(x, x.dtype))
        for k in (2, 7, n // 3):
            cut = hierarchy.fcluster(linkage, k, criterion="maxclust")
            assert as_partition(labels_at(order, parent, k)) == as_partition(cut)


def test_integer_rows_are_exact(device):
    """Corners of squares around four far points: every sum and quotient is exact in every dtype.

    A square of side 2 merges at 2, 2 and 4; the points, 4 rows each, at 4 * 4 / 8 * 128 twice and
    8 * 8 / 16 * |(8, 8, -8, -8) / 2|^2.
    """
    corners = 8.0 * torch.eye(4, dtype=torch.float64)
    steps = torch.tensor([[1, 1, 0, 0], [-1, 1, 0, 0], [1, -1, 0, 0], [-1, -1, 0, 0]])
    rows = (corners[:, None] + steps).reshape(16, 4).to(device)
    for dtype in DTYPES:
        for scale in (1.0, 4.0):
            trees = merge_trees([rows.to(dtype) * scale])
            check_trees([rows], trees)
            expected = [0.0, 256.0, 256.0, 256.0, *[4.0] * 4, *[2.0] * 8]
            assert (trees.height[0] / scale**2).tolist() == expected
            labels = labels_at(trees.order[0], trees.parent[0], 4)
            assert as_partition(labels) == [i // 4 for i in range(16)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_follow_the_rule(device, dtype):
    """Of equal distances the chain takes the lowest row; the merge found first splits last."""
    trees = merge_trees([torch.eye(4, dtype=dtype, device=device)])
    assert trees.order[0].tolist() == [0, 3, 2, 1]
    assert trees.parent[0].tolist() == [-1, 0, 0, 0]
    assert trees.height[0].tolist() == [0.0, 1.0, 1.0, 1.0]
    line = torch.tensor([[0.0], [4.0], [1.0], [5.0]], dtype=dtype, device=device)
    trees = merge_trees([line])
    assert trees.order[0].tolist() == [0, 1, 3, 2]
    assert trees.parent[0].tolist() == [-1, 0, 1, 0]
    assert trees.height[0].tolist() == [0.0, 16.0, 0.5, 0.5]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rounding_cannot_put_a_merge_below_its_parts(device, dtype):
    """Any two clusters of a simplex of edge sqrt(2) a merge at a^2: rounding alone orders them.

    a^2 = 0.09 is no binary number; some recurrences fall below the heights that they merge.
    """
    for n in (50, 97):
        rows = [0.3 * torch.eye(n, dtype=dtype, device=device)]
        trees = merge_trees(rows)
        check_trees(rows, trees)
        expected = torch.full((n - 1,), 0.09, dtype=torch.float64)
        atol = band(rows[0], dtype)
        torch.testing.assert_close(trees.height[0][1:].cpu(), expected, rtol=0, atol=atol)


def test_one_row_and_duplicates(device):
    distinct = torch.randint(-8, 8, (3, 5), device=device).float()
    rows = [
        distinct[torch.arange(64, device=device) % 3],
        torch.zeros(9, 4, device=device),
        gaussian(1, 7, device=device),
    ]
    trees = merge_trees(rows)
    check_trees(rows, trees)
    assert (trees.height[0][3:] == 0).all()
    assert (trees.height[0][1:3] > 0).all()
    assert as_partition(labels_at(trees.order[0], trees.parent[0], 3)) == [i % 3 for i in range(64)]
    assert trees.height[1].tolist() == [0.0] * 9
    assert [part[2].tolist() for part in trees] == [[0], [-1], [0.0]]


def test_alone_in_a_batch_and_permuted(device):
    rows = ragged(device)
    together, order = merge_trees(rows), torch.randperm(len(rows)).tolist()
    permuted = merge_trees([rows[b] for b in order])
    for place, b in enumerate(order):
        expected = [[part[b]] for part in together]
        assert same(merge_trees([rows[b]]), expected)
        assert same([[part[place]] for part in permuted], expected)


def test_bitwise_repeatable_for_any_number_of_threads(device):
    rows, threads = ragged(device), torch.get_num_threads()
    first = merge_trees(rows)
    try:
        for repeat in range(10):
            torch.set_num_threads(1 + repeat % 2)
            assert same(merge_trees(rows), first)
    finally:
        torch.set_num_threads(threads)


def test_strided_rows_and_numpy(device):
    rows = gaussian(64, 40, device=device)
    expected = merge_trees([rows])
    wide = torch.zeros(80, 128, device=device)
    wide[::2, ::2] = rows.T
    assert same(merge_trees([wide[::2, ::2].T]), expected)
    if device.type == "cpu":
        for part, twin in zip(merge_trees([rows.numpy()]), expected):
            assert isinstance(part[0], np.ndarray)
            assert np.array_equal(part[0], twin[0].numpy())


def test_no_gradient(device):
    rows = gaussian(20, 4, device=device).requires_grad_()
    assert not merge_trees([rows]).height[0].requires_grad


def test_opcheck(device):
    rows = [gaussian(20, 5, device=device), gaussian(33, 7, device=device)]
    torch.library.opcheck(torch.ops.oskt_ext.merge_trees.default, (rows,))


def test_compiles_to_one_graph(device):
    rows = [gaussian(40, 6, device=device), gaussian(25, 3, device=device)]
    compiled = torch.compile(merge_trees, fullgraph=True, backend="aot_eager")
    assert same(compiled(rows), merge_trees(rows))


X = torch.zeros(6, 3)
ERRORS = [
    (X, TypeError, r"rows must be a list of matrices, got Tensor\. Pass \[matrix\]"),
    ([], ValueError, r"rows must hold at least one matrix, got 0"),
    ([3.0], TypeError, r"rows\[0\] must be a tensor or an array of numbers that speaks"),
    ([X.long()], TypeError, r"rows\[0\] must be float64, float32.*got torch.int64"),
    ([torch.zeros(4, 3, 3)], ValueError, r"rank 2.*\(4, 3, 3\).*\.flatten\(1\)"),
    ([torch.zeros(0, 3)], ValueError, r"must have rows and columns, got shape \(0, 3\)"),
    ([torch.zeros(1, 1).expand(16385, 1)], ValueError, r"at most 16384 .*1\.0 GiB"),
    ([X, X.double()], ValueError, r"rows\[1\] must have the dtype of rows\[0\]"),
    ([X, X.to("meta")], ValueError, r"rows\[1\] must have the device of rows\[0\]"),
]


@pytest.mark.parametrize(("rows", "error", "message"), ERRORS)
def test_errors(rows, error, message):
    with pytest.raises(error, match=r"^merge_trees: .*" + message):
        merge_trees(rows)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_rows_that_are_not_finite(device, dtype, value):
    good = gaussian(30, 5, dtype=dtype, device=device)
    for place in (slice(0, 1), slice(7, 20), slice(None)):
        bad = good.clone()
        bad[place, 2] = value
        with pytest.raises(ValueError, match=r"rows\[1\] must be finite, got NaN or Inf"):
            merge_trees([good, bad])
        order, parent, height = torch.ops.oskt_ext.merge_trees.default([bad])
        assert height[0].isnan().all()
        assert order[0].sort().values.tolist() == list(range(30))
        assert (parent[0] < torch.arange(30, device=device)).all()


def test_direct_calls_are_checked():
    operator = torch.ops.oskt_ext.merge_trees.default
    for rows in ([X, X[:0]], [X, X.double()], [X.T]):
        with pytest.raises((RuntimeError, ValueError), match="merge_trees: rows"):
            operator(rows)


def test_docstring():
    results = doctest.testmod(sys.modules["oskt_ext.merge_trees"])  # the name is the function's
    assert results.attempted > 0
    assert results.failed == 0


OUT_OF_MEMORY = """
import resource, torch, oskt_ext
torch.set_num_threads(2)
rows = [torch.randn(8, 4), torch.randn(16384, 4)]  # a Gram matrix of 1 GiB
oskt_ext.merge_trees(rows[:1])
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (600 << 20), -1))
try:
    oskt_ext.merge_trees(rows)
except MemoryError:
    print("raised")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="its allocator aborts")
def test_out_of_memory_raises():
    """One worker fails; the others must not wait for it."""
    command = [sys.executable, "-c", OUT_OF_MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "raised\n"
