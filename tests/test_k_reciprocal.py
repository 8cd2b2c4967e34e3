"""k_reciprocal: against the dense definition, by hand, ties, properties, array kinds, errors."""

from __future__ import annotations

import doctest
import math
import sys

import numpy as np
import pytest
import torch

from oskt_ext import distance_metrics, k_reciprocal, reference

METRICS = ("cosine", "euclidean")
OPTIONS = [
    {},
    {"k2": 1},
    {"k1": 5, "k2": 3},  # k1/2 = 2.5 is rounded to 2
    {"k1": 7, "k2": 8, "lambda_": 0.0},  # 3.5 to 4; the mean is wider than the list
    {"k1": 1, "k2": 1, "lambda_": 1.0},
    {"k1": 1000, "k2": 1000, "lambda_": 0.5},  # more than there are
]


def problem(queries=30, gallery=110, width=12, ids=20, dtype=torch.float64, device="cpu", seed=0):
    """Features around one centre per identity; distances are distinct."""
    g = torch.Generator().manual_seed(seed)
    centers = torch.randn(ids, width, generator=g, dtype=torch.float64)
    sides = []
    for n in (queries, gallery):
        noise = torch.randn(n, width, generator=g, dtype=torch.float64)
        sides.append((centers[torch.arange(n) % ids] + 0.4 * noise).to(dtype).to(device))
    return sides


def integers(queries=20, gallery=60, dtype=torch.float64, device="cpu", seed=0):
    """Small integers with repeated rows: exact squared distances, most of them tied."""
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randint(-2, 3, (n, 3), generator=g).to(dtype).to(device) for n in (queries, gallery)
    ]


def tolerance(dtype, rows, width):
    """A bound of |ours - twin|, both computed with rounding unit u of the computing type.

    A distance as a share of the farthest is off by 2 (width + 4) u of the largest squared norm
    over the farthest distance, below 4 here; a weight by that much relatively, and its scaling by
    sum 1 doubles it; min sums and their quotient (slope below 1) keep it; storing adds 4 u. The
    float32 twin runs in float64, and ours sums weights in float64: rows enter only there.
    """
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    return 16 * (width + 4) * unit + 4 * unit + 2 * rows * 2.0**-53


# ---------------------------------------------------------------------------- the definition


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_dense_definition(device, metric, options):
    queries, gallery = problem(20, 50)
    expected = reference.k_reciprocal(queries, gallery, metric=metric, **options)
    result = k_reciprocal(queries.to(device), gallery.to(device), metric=metric, **options)
    bound = tolerance(torch.float64, 70, 12)
    torch.testing.assert_close(result.distances().cpu(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equals_the_dense_definition_in_other_types(device, metric, dtype):
    """Distances are distinct by more than float32 rounds, so the sets are the same."""
    queries, gallery = problem(dtype=dtype)
    expected = reference.k_reciprocal(queries, gallery, metric=metric)
    result = k_reciprocal(queries.to(device), gallery.to(device), metric=metric).distances()
    assert result.dtype == torch.float32
    bound = tolerance(dtype, 140, 12)
    torch.testing.assert_close(result.cpu().double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ties_are_broken_by_index(device, dtype, options):
    queries, gallery = integers(dtype=dtype)
    expected = reference.k_reciprocal(queries, gallery, metric="euclidean", **options)
    result = k_reciprocal(queries.to(device), gallery.to(device), metric="euclidean", **options)
    bound = tolerance(dtype, 80, 3)
    torch.testing.assert_close(result.distances().cpu().double(), expected, rtol=0, atol=bound)


def test_more_rows_than_a_strip(device):
    """Several strips and blocks of the product, with a rest: every pair is offered to both rows."""
    queries, gallery = problem(queries=300, gallery=900, width=8, ids=90)
    expected = reference.k_reciprocal(queries, gallery, k1=6, k2=2)
    result = k_reciprocal(queries.to(device), gallery.to(device), k1=6, k2=2).distances()
    bound = tolerance(torch.float64, 1200, 8)
    torch.testing.assert_close(result.cpu(), expected, rtol=0, atol=bound)


def test_by_hand():
    """Points 0 | 1, 3, 10 on a line, k1 = 1, k2 = 1.

    Lists of two: 0: (0, 1), 1: (1, 0), 3: (3, 1), 10: (10, 3). Mutual: {0, 1}, {0, 1}, {3}, {10}.
    far: 100, 81, 49, 100. V(0) = (1, e^-1/100) scaled, V(1) = (e^-1/81, 1) scaled.
    """
    gallery = torch.tensor([[1.0], [3.0], [10.0]], dtype=torch.float64)
    result = k_reciprocal(gallery.new_zeros(1, 1), gallery, metric="euclidean", k1=1, k2=1)
    a, b = math.exp(-1 / 100), math.exp(-1 / 81)
    shared = b / (1 + b) + a / (1 + a)
    jaccard = 1 - shared / (2 - shared)
    expected = [0.7 * jaccard + 0.3 / 100, 0.7 + 0.3 * 9 / 100, 1.0]
    np.testing.assert_allclose(result.distances()[0], expected, rtol=0, atol=2.0**-50)
    start, column, weight = result.encoding
    assert start.tolist() == [0, 2, 4, 5, 6]
    assert column.tolist() == [0, 1, 0, 1, 2, 3]
    np.testing.assert_allclose(weight[:2], [1 / (1 + a), a / (1 + a)], rtol=0, atol=2.0**-50)
    assert result.farthest.tolist() == [50.0]  # |q - g|^2 / 2


def test_it_finds_what_the_plain_distance_misses():
    """Two camera views of ten people, shifted apart: plain neighbours are of the own view."""
    g = torch.Generator().manual_seed(3)
    centers = torch.randn(10, 16, generator=g)
    ids = torch.arange(10).repeat(8)
    views = torch.arange(80) // 40
    shift = torch.randn(16, generator=g) * 0.7
    rows = centers[ids] + views[:, None] * shift + 0.5 * torch.randn(80, 16, generator=g)
    query, gallery = torch.arange(10), torch.arange(10, 80)
    labels = (ids[query], ids[gallery], views[query], views[gallery])
    plain = distance_metrics(torch.cdist(rows[query], rows[gallery]), *labels).mAP
    reranked = k_reciprocal(rows[query], rows[gallery], metric="euclidean", k1=8, k2=3)
    assert distance_metrics(reranked.chunks(), *labels).mAP > plain + 0.03


# -------------------------------------------------------------------------------- properties


def test_encoding_is_sparse_rows_of_sum_one(device):
    queries, gallery = problem(device=device)
    start, column, weight = k_reciprocal(queries, gallery).encoding
    assert start[0] == 0
    assert start[-1] == len(column) == len(weight)
    assert (weight > 0).all()
    dense = torch.zeros(140, 140, dtype=torch.float64, device=device)
    rows = torch.arange(140, device=device).repeat_interleave(start.diff())
    dense[rows, column.long()] = weight
    assert int((dense > 0).sum()) == len(column)  # no column twice
    inside = rows[1:] == rows[:-1]
    assert (column.diff()[inside] > 0).all()
    torch.testing.assert_close(dense.sum(1).cpu(), torch.ones(140).double(), rtol=0, atol=1e-14)


def test_lambda_blends_the_two_distances():
    queries, gallery = problem()
    jaccard, original, blend = (
        k_reciprocal(queries, gallery, lambda_=share).distances() for share in (0.0, 1.0, 0.25)
    )
    torch.testing.assert_close(blend, 0.75 * jaccard + 0.25 * original, rtol=0, atol=2.0**-50)
    unit = torch.nn.functional.normalize
    cosine = 1 - unit(queries) @ unit(torch.cat([queries, gallery])).T
    share = cosine[:, 30:] / cosine.amax(1, keepdim=True)
    torch.testing.assert_close(original, share, rtol=0, atol=2.0**-48)
    assert jaccard.min() > -(2.0**-48)  # 0 to rounding
    assert jaccard.max() == 1


@pytest.mark.parametrize("metric", METRICS)
def test_permuting_the_gallery_permutes_the_columns(device, metric):
    """Distances are distinct; sums in another order differ by about 140 roundings."""
    queries, gallery = problem(device=device)
    order = torch.randperm(len(gallery), device=device)
    plain = k_reciprocal(queries, gallery, metric=metric).distances()
    moved = k_reciprocal(queries, gallery[order], metric=metric).distances()
    torch.testing.assert_close(moved, plain[:, order], rtol=0, atol=140 * 2.0**-52)


def test_scale_changes_nothing():
    queries, gallery = problem()
    for metric in METRICS:  # a power of two scales every distance exactly
        plain = k_reciprocal(queries, gallery, metric=metric).distances()
        scaled = k_reciprocal(4 * queries, 4 * gallery, metric=metric).distances()
        torch.testing.assert_close(scaled, plain, rtol=0, atol=2.0**-50)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_gallery_rows_have_equal_distances(device, metric):
    """Were it not for the lists, which end by index: here all of them fit."""
    queries, gallery = problem(queries=7, gallery=9, dtype=torch.float32, device=device)
    twice = torch.cat([gallery, gallery])
    distances = k_reciprocal(queries, twice, metric=metric, k1=24, k2=1).distances()
    # Weights of a pair are equal bit for bit; only their places in the sums differ.
    torch.testing.assert_close(distances[:, :9], distances[:, 9:], rtol=0, atol=2.0**-22)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_all_rows_equal(device, value):
    queries, gallery = (torch.full((n, 4), value, device=device) for n in (3, 40))
    distances = k_reciprocal(queries, gallery, metric="euclidean", k1=4, k2=2).distances()
    expected = reference.k_reciprocal(queries, gallery, metric="euclidean", k1=4, k2=2)
    torch.testing.assert_close(distances.double(), expected, rtol=0, atol=2.0**-22)


def test_zero_rows_under_cosine(device):
    queries, gallery = problem()
    gallery[3] = queries[2] = 0
    expected = reference.k_reciprocal(queries, gallery, k1=6, k2=3)
    result = k_reciprocal(queries.to(device), gallery.to(device), k1=6, k2=3).distances()
    bound = tolerance(torch.float64, 140, 12)
    torch.testing.assert_close(result.cpu(), expected, rtol=0, atol=bound)


def test_one_query_and_one_item(device):
    one = torch.ones(1, 2, device=device)
    assert k_reciprocal(one, 2 * one, metric="euclidean").distances().shape == (1, 1)


def test_repeatable_for_any_number_of_threads(device):
    queries, gallery = problem(200, 900, 32, 60, dtype=torch.float32, device=device)
    threads = torch.get_num_threads()
    results = []
    try:
        for repeat in range(6):
            torch.set_num_threads(1 + repeat % 2)
            found = k_reciprocal(queries, gallery)
            results.append((*found.encoding, found.distances()))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


def test_chunks_are_the_rows(device):
    queries, gallery = problem(device=device)
    reranked = k_reciprocal(queries, gallery)
    whole = reranked.distances()
    assert reranked.shape == tuple(whole.shape)
    for rows in (1, 7, 30, 512):
        chunks = list(reranked.chunks(rows))
        assert torch.equal(torch.cat(chunks), whole)
        assert len(chunks) == -(-30 // rows)
    assert torch.equal(reranked.distances(5, 9), whole[5:9])
    assert torch.equal(reranked.distances(28), whole[28:])
    with pytest.raises(ValueError, match=r"^KReciprocal\.chunks: rows must be at least 1, got 0"):
        next(reranked.chunks(0))


# ----------------------------------------------------------------------- arrays and dispatch


def test_numpy_in_numpy_out():
    queries, gallery = problem()
    expected = k_reciprocal(queries, gallery)
    result = k_reciprocal(queries.numpy(), gallery.numpy())
    arrays = (*result.encoding, result.farthest, result.distances(), next(result.chunks()))
    assert all(isinstance(array, np.ndarray) for array in arrays)
    np.testing.assert_array_equal(result.distances(), expected.distances().numpy())


def test_strided_and_gradients():
    queries, gallery = problem()
    expected = k_reciprocal(queries, gallery).distances()
    strided = torch.stack([gallery, gallery], 2)[:, :, 1]
    result = k_reciprocal(queries.T.contiguous().T.requires_grad_(), strided).distances()
    assert torch.equal(result, expected)
    assert not result.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(device, dtype):
    queries, gallery = problem(5, 12, dtype=dtype, device=device)
    ops = torch.ops.oskt_ext
    torch.library.opcheck(ops.k_reciprocal.default, (queries, gallery, "cosine", 4, 2))
    found = k_reciprocal(queries, gallery, k1=4, k2=2)
    arguments = (*found._features, *found._queries, *found._gallery, found._farthest)
    torch.library.opcheck(ops.k_reciprocal_distances.default, (*arguments, "cosine", 0.3))


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("position", "value", "error", "message"),
    [
        (0, lambda t: [[1.0]], TypeError, "query_features must be a tensor or an array.*got list"),
        (1, lambda t: t.long(), TypeError, "gallery_features must be float64, float32, float16 or"),
        (0, lambda t: t[:0], ValueError, r"query_features must be of shape.*got \(0, 12\)"),
        (1, lambda t: t[:, :2], ValueError, "gallery_features must be of width 12, got 2"),
        (1, lambda t: t.float(), TypeError, "gallery_features must be torch.float64, got"),
        (1, lambda t: t.to("meta"), ValueError, "gallery_features must be on cpu, got meta"),
        (0, lambda t: t * torch.nan, ValueError, "query_features must be finite.*norm nan"),
    ],
)
def test_errors_name_the_argument(position, value, error, message):
    features = problem(4, 6)
    features[position] = value(features[position])
    with pytest.raises(error, match=f"^k_reciprocal: .*{message}"):
        k_reciprocal(*features)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "dot"}, ValueError, "metric must be 'cosine' or 'euclidean', got 'dot'"),
        ({"k1": 0}, ValueError, "k1 must be at least 1, got 0"),
        ({"k2": -1}, ValueError, "k2 must be at least 1, got -1"),
        ({"k1": 20.0}, TypeError, "k1 must be an int, got float"),
        ({"k2": True}, TypeError, "k2 must be an int, got bool"),
        ({"lambda_": 1.5}, ValueError, r"lambda_ must be in \[0, 1\], got 1.5"),
        ({"lambda_": math.nan}, ValueError, r"lambda_ must be in \[0, 1\], got nan"),
    ],
)
def test_errors_of_options(options, error, message):
    with pytest.raises(error, match=f"^k_reciprocal: {message}"):
        k_reciprocal(*problem(4, 6), **options)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 3), (0, 5), (4, None)])
def test_errors_of_distances(start, stop):
    with pytest.raises(ValueError, match=r"^KReciprocal.distances: start and stop must be 0 <="):
        k_reciprocal(*problem(4, 6)).distances(start, stop)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, lambda t: t[0], "features must be of rank 2"),
        (2, lambda t: t[1:], "start must be a vector"),
        (3, lambda t: t.long(), "column must be a vector"),
        (3, lambda t: t + 1000, "start, column, item_start and item must be those"),
        (2, lambda t: t + 1000, "start, column, item_start and item must be those"),
        (5, lambda t: t.flip(0), "start, column, item_start and item must be those"),
        (6, lambda t: t - 1, "start, column, item_start and item must be those"),
        (7, lambda t: t.float(), "item_weight must be a vector"),
        (8, lambda t: t[:2], "farthest must be a vector"),
    ],
)
def test_direct_calls_cannot_read_wild_memory(position, value, message):
    found = k_reciprocal(*problem(4, 6))
    arguments = [*found._features, *found._queries, *found._gallery, found._farthest]
    arguments[position] = value(arguments[position])
    with pytest.raises(ValueError, match=f"^k_reciprocal_distances: {message}"):
        torch.ops.oskt_ext.k_reciprocal_distances(*arguments, "cosine", 0.3)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_direct_calls_refuse_nan(metric):
    """The public function says which features; the operator itself must stay within its memory."""
    queries, gallery = problem(4, 6)
    gallery[2] = torch.nan
    with pytest.raises(ValueError, match=r"^k_reciprocal: features must be finite, got NaN or Inf"):
        torch.ops.oskt_ext.k_reciprocal(queries, gallery, metric, 3, 2)


def test_docstring_example():
    assert doctest.testmod(sys.modules["oskt_ext.k_reciprocal"]).failed == 0


def test_whole_numbers_of_numpy_are_whole_numbers():
    features = problem(4, 6)
    found = k_reciprocal(*features, k1=np.int64(3), k2=torch.tensor(2)).distances()
    assert torch.equal(found, k_reciprocal(*features, k1=3, k2=2).distances())
