"""distance_metrics: against retrieval_metrics and the twin, chunks, ties, array kinds, errors."""

from __future__ import annotations

import doctest
import sys

import numpy as np
import pytest
import torch
from test_retrieval_metrics import assert_equal, random_problem

from oskt_ext import distance_metrics, reference, retrieval_metrics


def distance_problem(dtype=torch.float64, device="cpu", **shape):
    """Distances of many ties, and the labels of a ReID test set."""
    features, gallery, *labels = random_problem(integer=True, width=5, **shape)
    labels[0][0], labels[1][0], labels[2][0], labels[3][0] = 1, 1, 0, 1  # one valid query
    distances = torch.cdist(features.double(), gallery.double()).square().round()
    return [tensor.to(device) for tensor in (distances.to(dtype), *labels)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (33, 31), (40, 1200)], ids=str)
def test_equals_the_twin(device, dtype, shape):
    """Integers up to 80 are exact in every type; sums differ by at most P 2^-53, P <= 1200."""
    queries, gallery = shape
    problem = distance_problem(dtype, queries=queries, gallery=gallery, ids=4)
    expected = reference.distance_metrics(*problem, max_rank=20)
    result = distance_metrics(*(t.to(device) for t in problem), max_rank=20)
    assert_equal(result, expected, tolerance=1200 * 2.0**-53)
    assert torch.equal(result.cmc.cpu(), expected.cmc)


def test_equals_retrieval_metrics_bit_for_bit(device):
    """Integer features: their squared distances are exact, so both rank alike."""
    features, gallery, *labels = (
        t.to(device) for t in random_problem(queries=70, gallery=500, integer=True)
    )
    distances = torch.cdist(features.double(), gallery.double()).square().round()
    for max_rank in (1, 7, 600):
        assert_equal(
            distance_metrics(distances, *labels, max_rank=max_rank),
            retrieval_metrics(features, gallery, *labels, metric="euclidean", max_rank=max_rank),
        )


@pytest.mark.parametrize("rows", [1, 7, 39, 1000])
def test_chunks_change_nothing(device, rows):
    distances, *labels = distance_problem(device=device)
    whole = distance_metrics(distances, *labels)
    assert_equal(distance_metrics(distances.split(rows), *labels), whole)
    assert_equal(distance_metrics((chunk for chunk in distances.split(rows)), *labels), whole)


def test_a_rising_function_of_the_distances_changes_nothing():
    distances, *labels = distance_problem()
    expected = distance_metrics(distances, *labels)
    assert_equal(distance_metrics(3 * distances - 7, *labels), expected)
    assert_equal(distance_metrics(distances.sqrt(), *labels), expected)


@pytest.mark.parametrize(("hit_first", "rank"), [(True, 1), (False, 2)])
def test_ties_go_to_the_lower_index(device, hit_first, rank):
    ids = torch.tensor([7, 0] if hit_first else [0, 7], device=device)
    one = torch.tensor([7], device=device)
    cameras = torch.ones(2, dtype=torch.int64, device=device)
    assert distance_metrics(torch.ones(1, 2, device=device), one, ids, one, cameras).mAP == 1 / rank


def test_many_hits_per_query(device):
    """Two ids in all: more hits than are counted one by one, ties among them."""
    problem = distance_problem(device=device, queries=9, gallery=3000, ids=3, cameras=2)
    expected = reference.distance_metrics(*problem)
    assert_equal(distance_metrics(*problem), expected, tolerance=3000 * 2.0**-53)


def test_repeatable_for_any_number_of_threads_and_inputs_stay(device):
    problem = distance_problem(device=device, queries=300, gallery=500)
    before = problem[0].clone()
    first = distance_metrics(*problem)
    threads = torch.get_num_threads()
    try:
        for repeat in range(10):
            torch.set_num_threads(1 + repeat % 2)
            assert_equal(distance_metrics(*problem), first)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(problem[0], before)


def test_numpy_in_numpy_out_and_strides():
    problem = distance_problem()
    expected = distance_metrics(*problem)
    arrays = [t.numpy().astype(np.int32) if i else t.numpy() for i, t in enumerate(problem)]
    result = distance_metrics(*arrays)
    assert isinstance(result.cmc, np.ndarray)
    assert isinstance(result.average_precision, np.ndarray)
    assert_equal(result, expected)
    assert_equal(distance_metrics(problem[0].T.contiguous().T, *problem[1:]), expected)
    assert_equal(distance_metrics(problem[0].requires_grad_(), *problem[1:]), expected)


def test_opcheck(device):
    problem = distance_problem(device=device, queries=5, gallery=20, ids=3)
    torch.library.opcheck(torch.ops.oskt_ext.distance_metrics.default, tuple(problem))


@pytest.mark.parametrize(
    ("position", "value", "error", "message"),
    [
        (0, lambda t: 3, TypeError, "distances must be an array or an iterable.*got int"),
        (0, lambda t: ["a"], TypeError, "distances must be a tensor or an array.*got str"),
        (
            0,
            lambda t: t.long(),
            TypeError,
            r"distances must be float64, float32, float16 or.*\.float\(\)",
        ),
        (0, lambda t: t[0], ValueError, r"distances must be of shape.*got \(6,\)"),
        (0, lambda t: t[:0], ValueError, r"distances must be of shape.*got \(0, 6\)"),
        (0, lambda t: [], ValueError, "distances must have 4 rows, one per query id, got 0"),
        (0, lambda t: t[:3], ValueError, "distances must have 4 rows, one per query id, got 3"),
        (0, lambda t: [t, t], ValueError, "distances must have 4 rows.*got at least 8"),
        (0, lambda t: [t[:2], t[2:, :5]], ValueError, "distances must be of width 6 on cpu.*got 5"),
        (0, lambda t: t / 0, ValueError, "distances must be finite, got"),
        (0, lambda t: t * torch.nan, ValueError, "distances must be finite, got nan"),
        (1, lambda t: t.double(), TypeError, "query_ids must be integers, got torch.float64"),
        (1, lambda t: t[:, None], ValueError, r"query_ids must be of shape \(\*,\), got \(4, 1\)"),
        (2, lambda t: t[:5], ValueError, r"gallery_ids must be of shape \(6,\), got \(5,\)"),
        (3, lambda t: t[:3], ValueError, r"query_cameras must be of shape \(4,\), got \(3,\)"),
        (4, lambda t: t.to("meta"), ValueError, "gallery_cameras must be on cpu, got meta"),
        (1, lambda t: t + 100, ValueError, "got 0 valid queries of 4. Check ids and cameras"),
    ],
)
def test_errors_name_the_argument(position, value, error, message):
    problem = distance_problem(queries=4, gallery=6, ids=3)
    problem[position] = value(problem[position])
    with pytest.raises(error, match=f"^distance_metrics: .*{message}"):
        distance_metrics(*problem)


def test_errors_of_max_rank():
    problem = distance_problem(queries=4, gallery=6, ids=3)
    with pytest.raises(ValueError, match=r"^distance_metrics: max_rank must be at least 1, got 0"):
        distance_metrics(*problem, max_rank=0)
    with pytest.raises(TypeError, match=r"^distance_metrics: max_rank must be an int, got float"):
        distance_metrics(*problem, max_rank=1.5)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, lambda t: t[0], "distances must be of rank 2 and not empty, got rank 1"),
        (0, lambda t: t[:0], "distances must be of rank 2 and not empty"),
        (1, lambda t: t.int(), "query_ids must be an int64 vector"),
        (4, lambda t: t[:5], "gallery_cameras must be an int64 vector"),
    ],
)
def test_direct_calls_cannot_read_wild_memory(position, value, message):
    problem = distance_problem(queries=4, gallery=6, ids=3)
    problem[position] = value(problem[position])
    with pytest.raises(ValueError, match=f"^distance_metrics: {message}"):
        torch.ops.oskt_ext.distance_metrics(*problem)


def test_docstring_example():
    assert doctest.testmod(sys.modules["oskt_ext.distance_metrics"]).failed == 0
