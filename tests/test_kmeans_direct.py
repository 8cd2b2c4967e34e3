"""The direct route of k-means: the rules of the Gram route, without its N x N memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_kmeans import ALGORITHMS, blobs, check_result, gaussian, ragged

from oskt_ext import kmeans, reference


def same(a, b):
    """Whether two results are equal bit by bit."""
    pairs = [*zip(a.labels, b.labels), *zip(a.centers, b.centers)]
    return all(torch.equal(x, y) for x, y in [*pairs, (a.inertia, b.inertia), (a.n_iter, b.n_iter)])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_ragged_batch(device, dtype, metric, algorithm):
    rows, k = ragged(device, dtype)
    result = kmeans(rows, k, metric=metric, algorithm=algorithm, route="direct")
    check_result(rows, k, result, metric=metric)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("init", ["k-means++", "centers"])
def test_equals_the_gram_route_and_the_reference(device, init, algorithm):
    """In float64 no distance of such rows is within rounding of another, near or far from 0."""
    shapes = [(60, 9), (41, 50), (600, 7), (300, 33)]
    rows = [gaussian(n, d, dtype=torch.float64, device=device, seed=n) + d for n, d in shapes]
    k = [7, 12, 150, 40]  # more clusters than one block of products, and fewer
    start = init if init == "k-means++" else [x[:m].clone() for x, m in zip(rows, k)]
    options = {"init": start, "algorithm": algorithm, "seed": 11, "n_init": 2}
    direct, gram = (kmeans(rows, k, route=route, **options) for route in ("direct", "gram"))
    expected = reference.kmeans(
        rows[:2], k[:2], **{**options, "init": start[:2] if init == "centers" else init}
    )
    for b in range(4):
        assert torch.equal(direct.labels[b], gram.labels[b])
        assert direct.n_iter[b] == gram.n_iter[b]
        if b < 2:
            assert torch.equal(direct.labels[b], expected.labels[b])
    torch.testing.assert_close(direct.inertia, gram.inertia, rtol=1e-12, atol=0)


def test_auto_goes_direct_where_the_gram_matrix_costs_more():
    """Rows full of ties show the route: rounding decides them, differently on each."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 9, (5000, 2), generator=generator) / 7]
    for k, taken, left in ((78, "direct", "gram"), (79, "gram", "direct")):
        differ = 0  # at a seed or two of some builds they may agree
        for seed in range(4):
            auto, same_route, other = (
                kmeans(rows, [k], max_iter=3, seed=seed, route=route)
                for route in ("auto", taken, left)
            )
            assert same(auto, same_route)
            differ += not same(auto, other)
        assert differ > 0


def test_more_rows_than_a_gram_matrix_holds(device):
    rows, truth = (t.to(device) for t in blobs(16385 + 4000, 3, 5, dtype=torch.float32))
    result = kmeans([rows], [5], seed=1)
    check_result([rows], [5], result)
    together = result.labels[0] * 5 + truth  # found and true clusters are paired one to one
    assert len(together.unique()) == 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_high_precision_where_clusters_are_far_apart(device, dtype):
    """Rounding to a half type moves no row to another cluster, whichever way products are made."""
    rows = [
        blobs(n, d, 5, dtype=torch.float32)[0].to(device, dtype) for n, d in ((900, 40), (130, 7))
    ]
    highest, high = (
        kmeans(rows, [5, 5], init=[x[:5] for x in rows], route="direct", precision=precision)
        for precision in ("highest", "high")
    )
    assert same(high, highest)


def test_bitwise_repeatable_alone_in_a_batch_and_for_any_number_of_threads():
    rows, k = ragged("cpu")
    options = {"n_init": 2, "seed": 7, "route": "direct"}
    first, threads = kmeans(rows, k, **options), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert same(kmeans(rows, k, **options), first)
    finally:
        torch.set_num_threads(threads)
    for b in range(len(rows)):
        alone = kmeans(rows[b : b + 1], k[b : b + 1], **options)
        assert torch.equal(alone.labels[0], first.labels[b])
        assert torch.equal(alone.centers[0], first.centers[b])


def test_one_cluster_and_all_singletons(device):
    rows = gaussian(40, 27, device=device)
    result = kmeans([rows, rows], [1, 40], route="direct")
    check_result([rows, rows], [1, 40], result)
    assert result.inertia[1] == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_duplicates_leave_no_cluster_empty(device, algorithm):
    distinct = gaussian(3, 50, device=device)
    rows = [distinct[torch.arange(64, device=device) % 3], torch.zeros(9, 4, device=device)]
    result = kmeans(rows, [10, 5], algorithm=algorithm, route="direct")
    check_result(rows, [10, 5], result)
    assert result.inertia.tolist() == [0.0, 0.0]


def test_ties_and_empty_starting_clusters(device):
    """-2, 2 and 0: the tie goes to the lower center. An empty center takes the farthest row."""
    rows = torch.tensor([[-2.0], [2.0], [0.0]], device=device)
    centers = torch.tensor([[-2.0], [2.0]], device=device)
    options = {"algorithm": "lloyd", "max_iter": 0, "route": "direct"}
    for order in ([0, 1], [1, 0]):
        result = kmeans([rows], [2], init=[centers[order]], **options)
        assert result.labels[0].tolist() == [order.index(0), order.index(1), 0]
    rows = torch.tensor([[0.0], [1.0], [5.0], [9.0]], device=device)
    far = torch.tensor([[0.0], [100.0], [200.0]], device=device)
    assert kmeans([rows], [3], init=[far], **options).labels[0].tolist() == [0, 0, 2, 1]


def test_zero_rows_stay_under_cosine(device):
    rows = gaussian(30, 8, device=device)
    rows[[3, 17]] = 0
    check_result([rows], [4], kmeans([rows], [4], metric="cosine", route="direct"), metric="cosine")


def test_inertia_only_falls(device):
    rows = gaussian(300, 40, dtype=torch.float64, device=device)
    full = int(kmeans([rows], [37], route="direct").n_iter)
    stopped = [
        kmeans([rows], [37], route="direct", max_iter=m).inertia.item() for m in range(full + 1)
    ]
    assert all(b <= a for a, b in itertools.pairwise(stopped))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite(device, value):
    for place in (slice(0, 1), slice(7, 20), slice(None)):
        bad = gaussian(30, 5, device=device)
        bad[place, 2] = value
        for algorithm in ALGORITHMS:
            with pytest.raises(ValueError, match=r"rows\[1\] must be finite, got NaN or Inf"):
                kmeans(
                    [gaussian(30, 5, device=device), bad],
                    [6, 6],
                    algorithm=algorithm,
                    route="direct",
                )
