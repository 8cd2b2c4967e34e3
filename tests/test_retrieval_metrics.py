"""retrieval_metrics: known answers, ties, the twin, properties, array kinds, errors."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from oskt_ext import reference, retrieval_metrics

SIDES = ("query_ids", "gallery_ids", "query_cameras", "gallery_cameras")
METRICS = ("cosine", "euclidean")


def random_problem(
    queries=40, gallery=300, width=16, ids=12, cameras=4, dtype=torch.float64, integer=False, seed=0
):
    """Features and labels drawn like a ReID test set, with distractors (id 0) and junk (id -1)."""
    g = torch.Generator().manual_seed(seed)
    if integer:
        features = [torch.randint(-2, 3, (n, width), generator=g) for n in (queries, gallery)]
    else:
        features = [
            torch.randn(n, width, generator=g, dtype=torch.float64) for n in (queries, gallery)
        ]
    labels = [
        torch.randint(1, ids, (queries,), generator=g),
        torch.randint(-1, ids, (gallery,), generator=g),
        torch.randint(0, cameras, (queries,), generator=g),
        torch.randint(0, cameras, (gallery,), generator=g),
    ]
    return [*(f.to(dtype) for f in features), *labels]


def line(hits, *, max_rank=50, **options):
    """One query at 0 and a gallery at 1, 2, 3, ..: the ranking is the list `hits` itself."""
    n = len(hits)
    return retrieval_metrics(
        torch.zeros(1, 1, dtype=torch.float64),
        torch.arange(1, n + 1, dtype=torch.float64)[:, None],
        torch.tensor([7]),
        torch.tensor([7 if hit else 0 for hit in hits]),
        torch.tensor([0]),
        torch.ones(n, dtype=torch.int64),
        metric="euclidean",
        max_rank=max_rank,
        **options,
    )


def assert_equal(result, expected, tolerance=0.0):
    """Two RetrievalMetrics, bit for bit or to a tolerance; NaN at the same queries."""
    assert result.num_valid_queries == expected.num_valid_queries
    for name, value in vars(expected).items():
        torch.testing.assert_close(
            torch.as_tensor(vars(result)[name]).cpu().double(),
            torch.as_tensor(value).cpu().double(),
            rtol=0,
            atol=tolerance,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


# ------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("metric", METRICS)  # equal rankings: the features have length 1
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-5)])
def test_golden_vectors_of_two_toolkits(golden, device, metric, dtype, tolerance):
    data = np.load(golden / "evaluation_a.npz")
    features = [
        torch.from_numpy(data[name].astype(dtype)).to(device)
        for name in ("query_features", "gallery_features")
    ]
    labels = [torch.from_numpy(data[name]).to(device) for name in SIDES]
    result = retrieval_metrics(*features, *labels, metric=metric)
    assert result.mAP == pytest.approx(float(data["mAP"]), abs=tolerance)
    assert result.mINP == pytest.approx(float(data["mINP"]), abs=tolerance)
    precision = result.average_precision.cpu().numpy()
    np.testing.assert_allclose(
        precision[~np.isnan(precision)], data["average_precisions"], rtol=0, atol=tolerance
    )
    # The toolkits store the curve in float32: half a unit in the last place below 1.
    np.testing.assert_allclose(result.cmc.cpu().numpy(), data["cmc"], rtol=0, atol=2.0**-24)


@pytest.mark.parametrize(
    ("hits", "precision", "trapezoid"),
    [
        ([1, 0, 1, 0, 0, 1], 0.722222, 0.677778),
        ([0, 1, 1, 0], 0.583333, 0.416667),
        ([0, 1, 0], 0.5, 0.25),
    ],
)
def test_hand_vectors_in_both_forms(hits, precision, trapezoid):
    result = line(hits)
    assert result.mAP == pytest.approx(precision, abs=5e-7)
    assert result.mAP_trapezoid == pytest.approx(trapezoid, abs=5e-7)
    last = max(place for place, hit in enumerate(hits, start=1) if hit)
    assert result.mINP == sum(hits) / last
    first = hits.index(1)
    assert result.cmc.tolist() == [0.0] * first + [1.0] * (50 - first)


def test_short_gallery_pads_the_curve_with_its_last_value():
    assert line([0, 0, 1]).cmc.tolist() == [0.0, 0.0] + [1.0] * 48
    assert line([0, 0, 1], max_rank=2).cmc.tolist() == [0.0, 0.0]
    assert line([0, 0, 1], max_rank=1).cmc.tolist() == [0.0]


def test_distractors_stay_and_count_as_wrong():
    result = line([0, 1])
    assert result.cmc[0] == 0.0
    assert result.mAP == 0.5


def test_junk_is_neither_right_nor_wrong():
    clean = line([0, 1, 1])
    junk_first = retrieval_metrics(
        torch.zeros(1, 1),
        torch.tensor([[0.1], [0.2], [1.0], [2.0], [3.0]]),
        torch.tensor([7]),
        torch.tensor([-1, 7, 0, 7, 7]),  # id -1, then the query's own camera
        torch.tensor([0]),
        torch.tensor([1, 0, 1, 1, 1]),
        metric="euclidean",
    )
    assert_equal(junk_first, clean)


def test_queries_without_a_hit_are_skipped_everywhere(device):
    problem = [tensor.to(device) for tensor in random_problem()]
    alone = retrieval_metrics(*problem)
    features, gallery, ids, gallery_ids, cameras, gallery_cameras = problem
    strangers = torch.tensor([999, -1, 998], device=device)
    more = retrieval_metrics(
        torch.cat([features[:3], features]),
        gallery,
        torch.cat([strangers, ids]),
        gallery_ids,
        torch.cat([cameras[:3], cameras]),
        gallery_cameras,
    )
    assert more.average_precision[:3].isnan().all()
    assert more.trapezoid_average_precision[:3].isnan().all()
    assert torch.equal(more.average_precision[3:], alone.average_precision)
    assert torch.equal(more.cmc, alone.cmc)
    assert (more.mAP, more.mINP) == (alone.mAP, alone.mINP)
    assert more.num_valid_queries == alone.num_valid_queries


def test_zero_rows_stay_zero_under_cosine():
    # Cosines: 0 for the zero row, -1 for the opposite one, 1 for the hit.
    gallery = torch.tensor([[0.0, 0.0], [-2.0, 0.0], [3.0, 0.0]])
    for hit, rank in ((2, 1), (0, 2), (1, 3)):
        ids = torch.zeros(3, dtype=torch.int64).index_fill(0, torch.tensor([hit]), 7)
        result = retrieval_metrics(
            torch.tensor([[1.0, 0.0]]), gallery, torch.tensor([7]), ids,
            torch.tensor([0]), torch.ones(3, dtype=torch.int64),
        )  # fmt: skip
        assert result.mINP == 1 / rank


# ---------------------------------------------------------------------------------------- ties


@pytest.mark.parametrize(("hit_first", "rank"), [(True, 1), (False, 2)])
def test_tie_of_hit_and_miss_goes_to_the_lower_index(device, hit_first, rank):
    ids = torch.tensor([7, 0] if hit_first else [0, 7], device=device)
    result = retrieval_metrics(
        torch.zeros(1, 3, device=device),
        torch.ones(2, 3, device=device),
        torch.tensor([7], device=device),
        ids,
        torch.tensor([0], device=device),
        torch.tensor([1, 1], device=device),
    )
    assert result.mAP == 1 / rank


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [7, 300])
def test_duplicate_gallery_rows_tie_wherever_they_lie(device, metric, dtype, width):
    """All gallery rows equal: every rank is decided by the index, in any tile of the product."""
    g = torch.Generator().manual_seed(1)
    row = torch.randn(1, width, generator=g).to(dtype)
    gallery = row.repeat(293, 1)
    ids = torch.zeros(293, dtype=torch.int64)
    hits = torch.tensor([0, 1, 31, 32, 100, 255, 256, 292])
    ids[hits] = 7
    queries = torch.randn(35, width, generator=g).to(dtype)
    result = retrieval_metrics(
        queries.to(device),
        gallery.to(device),
        torch.full((35,), 7, device=device),
        ids.to(device),
        torch.zeros(35, dtype=torch.int64, device=device),
        torch.ones(293, dtype=torch.int64, device=device),
        metric=metric,
    )
    expected = (torch.arange(1, 9).double() / (hits + 1)).mean()
    torch.testing.assert_close(
        result.average_precision.cpu(), expected.expand(35), rtol=0, atol=1e-15
    )


# ------------------------------------------------------------------------------------ the twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (3, 5, 2), (33, 31, 8), (130, 129, 5), (40, 1200, 17)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_equals_the_twin_on_exact_arithmetic(device, dtype, shape):
    """Small integers: distances are exact in every type, with many ties, so ranks are equal.

    Per-query values are sums of at most P quotients in [0, 1]; two orders of summation differ by
    at most P 2^-53, P <= 1200.
    """
    queries, gallery, width = shape
    problem = random_problem(queries, gallery, width, ids=4, dtype=dtype, integer=True)
    problem[2][0], problem[3][0], problem[4][0], problem[5][0] = 1, 1, 0, 1  # one valid query
    expected = reference.retrieval_metrics(*problem, metric="euclidean", max_rank=20)
    result = retrieval_metrics(*(t.to(device) for t in problem), metric="euclidean", max_rank=20)
    assert_equal(result, expected, tolerance=1200 * 2.0**-53)
    assert torch.equal(result.cmc.cpu(), expected.cmc)


@pytest.mark.parametrize("metric", METRICS)
def test_equals_the_twin_on_random_features(device, metric):
    problem = random_problem(queries=70, gallery=900, width=33)
    expected = reference.retrieval_metrics(*problem, metric=metric)
    result = retrieval_metrics(*(t.to(device) for t in problem), metric=metric)
    assert_equal(result, expected, tolerance=900 * 2.0**-53)


def test_many_hits_per_query(device):
    """Two ids in all: hundreds of hits, more than any fixed list would hold."""
    problem = random_problem(queries=9, gallery=3000, width=4, ids=3, cameras=2)
    expected = reference.retrieval_metrics(*problem)
    result = retrieval_metrics(*(t.to(device) for t in problem))
    assert_equal(result, expected, tolerance=3000 * 2.0**-53)


# ---------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("metric", METRICS)
def test_permuting_the_gallery_changes_nothing(device, metric):
    """Distances of random float64 features are distinct, so the index never decides."""
    features, gallery, ids, gallery_ids, cameras, gallery_cameras = (
        t.to(device) for t in random_problem()
    )
    order = torch.randperm(len(gallery), device=device)
    plain = retrieval_metrics(
        features, gallery, ids, gallery_ids, cameras, gallery_cameras, metric=metric
    )
    moved = retrieval_metrics(
        features, gallery[order], ids, gallery_ids[order], cameras, gallery_cameras[order],
        metric=metric,
    )  # fmt: skip
    assert_equal(moved, plain)


def test_cosine_ignores_positive_scale_and_euclidean_a_power_of_two():
    problem = random_problem()
    scaled = [problem[0] * 4, problem[1] * 4, *problem[2:]]
    for metric in METRICS:
        assert_equal(
            retrieval_metrics(*scaled, metric=metric), retrieval_metrics(*problem, metric=metric)
        )


def test_tiny_and_huge_rows_keep_their_direction():
    problem = random_problem(dtype=torch.float32)
    plain = retrieval_metrics(*problem)
    for power in (-100, 50):
        scale = 2.0**power
        assert_equal(retrieval_metrics(problem[0] * scale, problem[1] * scale, *problem[2:]), plain)


def test_curve_ascends_to_one_and_trapezoid_is_below():
    result = retrieval_metrics(*random_problem(), max_rank=300)
    assert (result.cmc.diff() >= 0).all()
    assert result.cmc[-1] == 1.0
    valid = ~result.average_precision.isnan()
    assert (result.trapezoid_average_precision[valid] <= result.average_precision[valid]).all()
    assert int(valid.sum()) == result.num_valid_queries


def test_repeatable_for_any_number_of_threads(device):
    problem = [t.to(device) for t in random_problem(300, 2000, 48, dtype=torch.float32)]
    first = retrieval_metrics(*problem)
    threads = torch.get_num_threads()
    try:
        for repeat in range(20):
            torch.set_num_threads(1 + repeat % 2)
            assert_equal(retrieval_metrics(*problem), first)
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------------ arrays and autograd


@pytest.mark.parametrize("integer", [np.uint8, np.int32, np.int64])
def test_numpy_in_numpy_out(integer):
    features, gallery, *labels = random_problem()
    labels[1][labels[1] == -1] = 0  # uint8 has no -1
    arrays = [features.numpy(), gallery.numpy(), *(t.numpy().astype(integer) for t in labels)]
    result = retrieval_metrics(*arrays)
    assert isinstance(result.cmc, np.ndarray)
    assert isinstance(result.average_precision, np.ndarray)
    assert isinstance(result.trapezoid_average_precision, np.ndarray)
    assert type(result.mAP) is type(result.mINP) is type(result.mAP_trapezoid) is float
    assert type(result.num_valid_queries) is int
    assert_equal(result, retrieval_metrics(features, gallery, *labels))


def test_numpy_arrays_that_torch_has_no_view_of():
    rows, ids = np.random.default_rng(0).standard_normal((9, 4), np.float32), np.arange(9) // 3
    labels = (ids, ids, np.zeros(9, np.int64), np.ones(9, np.int64))
    expected = retrieval_metrics(rows, rows, *labels)
    backwards = retrieval_metrics(rows[::-1][::-1], rows[::-1], ids, ids[::-1], *labels[2:])
    swapped = retrieval_metrics(rows.astype(">f4"), rows, ids.astype(">i8"), *labels[1:])
    assert backwards.mAP == swapped.mAP == expected.mAP
    for wrong in (rows.astype(object), np.ma.masked_array(rows), rows.astype(np.longdouble)):
        with pytest.raises(TypeError, match="query_features must be a tensor or an array of num"):
            retrieval_metrics(wrong, rows, *labels)


def test_strided_inputs():
    features, gallery, *labels = random_problem()
    strided = [features.T.contiguous().T, torch.stack([gallery, gallery], 2)[:, :, 0]]
    strided_labels = [torch.stack([t, t], 1)[:, 1] for t in labels]
    assert not any(t.is_contiguous() for t in strided + strided_labels)
    assert_equal(
        retrieval_metrics(*strided, *strided_labels), retrieval_metrics(features, gallery, *labels)
    )


def test_features_are_detached():
    features, *rest = random_problem()
    assert not retrieval_metrics(features.requires_grad_(), *rest).cmc.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(device, dtype):
    problem = [t.to(device) for t in random_problem(5, 20, 4, ids=3, dtype=dtype)]
    torch.library.opcheck(torch.ops.oskt_ext.retrieval_metrics.default, (*problem, "cosine", 7))


def test_compiles_without_a_graph_break(device):
    def step(features, gallery, *labels):
        return torch.ops.oskt_ext.retrieval_metrics(
            features * 2, gallery * 2, *labels, "euclidean", 7
        )

    problem = [t.to(device) for t in random_problem(5, 20, 4, ids=3)]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*problem)
    for got, want in zip(compiled, step(*problem)):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


# -------------------------------------------------------------------------------------- errors


def with_argument(position, value):
    problem = random_problem(4, 6, 3, ids=3)
    problem[position] = value if not callable(value) else value(problem[position])
    return problem


@pytest.mark.parametrize(
    ("position", "value", "error", "message"),
    [
        (0, [[1.0]], TypeError, "query_features must be a tensor or an array.*got list"),
        (
            0,
            lambda t: t.long(),
            TypeError,
            r"query_features must be float64, float32, float16 or.*\.float\(\)",
        ),
        (1, lambda t: t.long(), TypeError, "gallery_features must be float64, float32, float16 or"),
        (0, lambda t: t[0], ValueError, r"query_features must be of shape.*got \(3,\)"),
        (0, lambda t: t[:0], ValueError, r"query_features must be of shape.*got \(0, 3\)"),
        (1, lambda t: t[:0], ValueError, r"gallery_features must be of shape.*got \(0, 3\)"),
        (1, lambda t: t[:, :2], ValueError, "gallery_features must be of width 3, got 2"),
        (1, lambda t: t.float(), TypeError, "gallery_features must be torch.float64, got"),
        (1, lambda t: t.to("meta"), ValueError, "gallery_features must be on cpu, got meta"),
        (2, lambda t: t.double(), TypeError, "query_ids must be integers, got torch.float64"),
        (3, lambda t: t > 0, TypeError, "gallery_ids must be integers, got torch.bool"),
        (3, lambda t: t[:5], ValueError, r"gallery_ids must be of shape \(6,\), got \(5,\)"),
        (4, lambda t: t[:, None], ValueError, r"query_cameras must be of shape \(4,\)"),
        (5, lambda t: t.to("meta"), ValueError, "gallery_cameras must be on cpu, got meta"),
        (0, lambda t: t * torch.nan, ValueError, "query_features must be finite.*norm nan"),
        (1, lambda t: t / 0, ValueError, "gallery_features must be finite.*norm (inf|nan)"),
        (1, lambda t: t * 1e200, ValueError, "gallery_features must be finite"),
        (2, lambda t: t + 100, ValueError, "got 0 valid queries of 4. Check ids and cameras"),
    ],
)
def test_errors_name_the_argument(position, value, error, message):
    with pytest.raises(error, match=f"^retrieval_metrics: .*{message}"):
        retrieval_metrics(*with_argument(position, value))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "dot"}, ValueError, "metric must be 'cosine' or 'euclidean', got 'dot'"),
        ({"max_rank": 0}, ValueError, "max_rank must be at least 1, got 0"),
        ({"max_rank": 5.0}, TypeError, "max_rank must be an int, got float"),
        ({"max_rank": True}, TypeError, "max_rank must be an int, got bool"),
    ],
)
def test_errors_of_options(options, error, message):
    with pytest.raises(error, match=f"^retrieval_metrics: {message}"):
        retrieval_metrics(*random_problem(), **options)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, lambda t: t[0], "features must be of rank 2"),
        (1, lambda t: t[:0], "features must not be empty, got 4 and 0 rows"),
        (1, lambda t: t[:, :2], "gallery_features must be of the width and dtype"),
        (2, lambda t: t.int(), "query_ids must be an int64 vector"),
        (5, lambda t: t[:5], "gallery_cameras must be an int64 vector"),
    ],
)
def test_direct_calls_cannot_read_wild_memory(position, value, message):
    with pytest.raises(ValueError, match=f"^retrieval_metrics: {message}"):
        torch.ops.oskt_ext.retrieval_metrics(*with_argument(position, value), "cosine", 5)


def test_docstring_example():
    import sys

    module = sys.modules["oskt_ext.retrieval_metrics"]
    assert doctest.testmod(module).failed == 0


def test_whole_numbers_of_numpy_are_whole_numbers():
    found = retrieval_metrics(*random_problem(), max_rank=np.int64(7))
    assert torch.equal(found.cmc, retrieval_metrics(*random_problem(), max_rank=7).cmc)


def test_other_kinds_of_features_are_refused():
    queries, gallery, *labels = random_problem(dtype=torch.float32)
    with pytest.raises(TypeError, match=r"query_features must be float64, .* got torch.float8"):
        retrieval_metrics(queries.to(torch.float8_e4m3fn), gallery, *labels)
    with pytest.raises(TypeError, match=r"gallery_features must be dense, got torch.sparse_coo"):
        retrieval_metrics(queries, gallery.to_sparse(), *labels)
    with pytest.raises(TypeError, match=r"gallery_ids must be dense, got torch.sparse_coo"):
        retrieval_metrics(queries, gallery, labels[0], labels[1].to_sparse(), *labels[2:])
