"""K-means against its definition: values, invariants, ties, determinism, errors."""

from __future__ import annotations

import doctest
import itertools
import sys

import numpy as np
import pytest
import torch

from oskt_ext import kmeans, reference
from oskt_ext._rows import check_finite

STARTS = ["k-means++", "ward"]
ALGORITHMS = ["hartigan", "lloyd"]


def blobs(n, d, k, *, spread=0.05, dtype=torch.float64, device="cpu", seed=0):
    """n rows in k clusters whose centers lie far apart."""
    generator = torch.Generator().manual_seed(seed)
    centers = 10.0 * torch.randn(k, d, generator=generator, dtype=torch.float64)
    label = torch.arange(n) % k
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return (centers[label] + spread * noise).to(device, dtype), label.to(device)


def gaussian(n, d, *, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(device, dtype)


def ragged(device, dtype=torch.float32):
    """Sizes around every tile, panel, lane and unrolling, and their numbers of clusters."""
    shapes = [(1, 1), (2, 3), (33, 27), (64, 147), (127, 64), (130, 5), (300, 257), (600, 31)]
    rows = [gaussian(n, d, dtype=dtype, device=device, seed=n) for n, d in shapes]
    return rows, [max(1, n // 8) for n, _ in shapes]


def as_partition(labels):
    """Labels renumbered by first appearance."""
    numbers = {}
    return [numbers.setdefault(int(x), len(numbers)) for x in labels]


def normalised(rows):
    rows = rows.double()
    length = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(length > 0, length, 1.0)


def check_result(rows, k, result, *, metric="euclidean"):
    """Non-empty clusters, centers that are means, inertia by float64 recomputation."""
    for row, clusters, centers, labels, inertia in zip(rows, k, *result[:3]):
        x = normalised(row) if metric == "cosine" else row.double()
        assert torch.equal(labels.unique(), torch.arange(clusters, device=labels.device))
        means = reference._means(x, labels, clusters)
        # One rounding to the storage dtype (or subnormal), and float64 sums in another order.
        info = torch.finfo(centers.dtype)
        atol = max(info.smallest_normal * info.eps, 1e-14)
        torch.testing.assert_close(centers.double(), means, rtol=2 * info.eps, atol=atol)
        expected = (x - means[labels]).square().sum()
        torch.testing.assert_close(inertia, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("init", STARTS)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_ragged_batch(device, dtype, metric, init, algorithm):
    rows, k = ragged(device, dtype)
    copies = [row.clone() for row in rows]
    result = kmeans(rows, k, metric=metric, init=init, algorithm=algorithm)
    check_result(rows, k, result, metric=metric)
    assert all(torch.equal(a, b) for a, b in zip(rows, copies))
    assert [c.dtype for c in result.centers] == [dtype] * len(rows)
    assert result.inertia.device.type == device.type


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("init", STARTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_reference_on_separated_rows(device, dtype, init, algorithm):
    problems = [
        blobs(n, d, k, dtype=dtype, device=device, seed=n)
        for n, d, k in [(24, 3, 4), (40, 27, 5), (35, 130, 7)]
    ]
    rows, k = [x for x, _ in problems], [4, 5, 7]
    options = {"init": init, "algorithm": algorithm, "seed": 3, "n_init": 2}
    result, expected = kmeans(rows, k, **options), reference.kmeans(rows, k, **options)
    for mine, twin, (_, truth) in zip(result.labels, expected.labels, problems):
        assert torch.equal(mine, twin)
        if init == "ward":
            assert torch.equal(mine, truth)
    torch.testing.assert_close(result.inertia, expected.inertia, rtol=1e-9, atol=0)
    assert torch.equal(result.n_iter, expected.n_iter)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("init", STARTS)
def test_equals_the_reference_on_random_rows(device, init, algorithm):
    """In float64 no distance of such rows is within rounding of another."""
    rows = [
        gaussian(n, d, dtype=torch.float64, device=device, seed=d) for n, d in [(60, 9), (41, 50)]
    ]
    options = {"init": init, "algorithm": algorithm, "seed": 11, "n_init": 3}
    result, expected = kmeans(rows, [7, 12], **options), reference.kmeans(rows, [7, 12], **options)
    assert all(torch.equal(a, b) for a, b in zip(result.labels, expected.labels))
    assert torch.equal(result.n_iter, expected.n_iter)


def test_integer_rows_are_exact(device):
    """Small integers in clusters of a power of two: every sum is exact in every dtype."""
    corners = torch.tensor([[8, 0, 0], [0, 8, 0], [0, 0, 8], [-8, 0, 0]], dtype=torch.float64)
    steps = torch.tensor([[1, 1, 0], [-1, 1, 0], [1, -1, 0], [-1, -1, 0]], dtype=torch.float64)
    rows = (corners[:, None] + steps).reshape(16, 3).to(device)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        result = kmeans([rows.to(dtype)], [4], init="ward")
        assert torch.equal(result.labels[0], torch.arange(4, device=device).repeat_interleave(4))
        assert torch.equal(result.centers[0], corners.to(device, dtype))
        assert result.inertia.item() == 32.0


def test_ties_go_to_the_lower_index(device):
    rows = torch.tensor([[-2.0], [2.0], [0.0]], device=device)
    centers = torch.tensor([[-2.0], [2.0]], device=device)
    for order in ([0, 1], [1, 0]):
        result = kmeans([rows], [2], init=[centers[order]], algorithm="lloyd", max_iter=0)
        assert result.labels[0].tolist() == [order.index(0), order.index(1), 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_labels_are_nearest_centers_within_rounding(device, dtype, algorithm, offset):
    """The band: |x|^2 (after the mean is off) times eps times the terms of a distance.

    Distances come from Gram sums of n terms over D; pairwise chunks keep the growth under
    sqrt(D) + sqrt(N), with a factor 4 for the four sums in a distance.
    """
    n, d = 500, 300
    rows = gaussian(n, d, dtype=torch.float64, device=device).add(offset).to(dtype)
    result = kmeans([rows], [60], algorithm=algorithm)
    x, centers = rows.double(), reference._means(rows.double(), result.labels[0], 60)
    distance = reference._sq_dist(x, centers)
    chosen = distance.gather(1, result.labels[0][:, None]).squeeze(1)
    scale = (x - x.mean(0)).square().sum(1).max()
    band = 4 * (d**0.5 + n**0.5) * torch.finfo(dtype).eps * scale
    assert (chosen - distance.min(1).values <= band).all()


def test_one_cluster_and_all_singletons(device):
    rows = gaussian(40, 27, device=device)
    result = kmeans([rows, rows], [1, 40])
    check_result([rows, rows], [1, 40], result)
    assert result.inertia[1] == 0
    assert result.labels[1].sort().values.tolist() == list(range(40))


@pytest.mark.parametrize("init", STARTS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_duplicates_leave_no_cluster_empty(device, init, algorithm):
    distinct = gaussian(3, 50, device=device)
    rows = [distinct[torch.arange(64, device=device) % 3], torch.zeros(9, 4, device=device)]
    result = kmeans(rows, [10, 5], init=init, algorithm=algorithm)
    check_result(rows, [10, 5], result)
    assert result.inertia.tolist() == [0.0, 0.0]


def test_empty_starting_clusters_take_the_farthest_rows(device):
    rows = torch.tensor([[0.0], [1.0], [5.0], [9.0]], device=device)
    far = torch.tensor([[0.0], [100.0], [200.0]], device=device)
    result = kmeans([rows], [3], init=[far], max_iter=0)
    assert result.labels[0].tolist() == [0, 0, 2, 1]


@pytest.mark.parametrize("init", [*STARTS, "centers"])
def test_zero_rows_stay_under_cosine(device, init):
    rows = gaussian(30, 8, device=device)
    rows[[3, 17]] = 0
    start = [normalised(rows[2:6]).float()] if init == "centers" else init  # one of them is zero
    result = kmeans([rows], [4], metric="cosine", init=start)
    check_result([rows], [4], result, metric="cosine")
    scaled = rows * torch.arange(1, 31, device=device)[:, None]
    again = kmeans([scaled], [4], metric="cosine", init=start)
    assert torch.equal(again.labels[0], result.labels[0])


@pytest.mark.parametrize("route", ["gram", "direct"])
@pytest.mark.parametrize("init", [*STARTS, "centers"])
def test_nothing_but_zero_rows_under_cosine(device, route, init):
    if (init, route) == ("ward", "direct"):
        pytest.skip("Ward's start works on the Gram matrix")
    rows = torch.zeros(9, 4, device=device)
    start = [torch.eye(3, 4, device=device)] if init == "centers" else init
    result = kmeans([rows], [3], metric="cosine", init=start, route=route)
    check_result([rows], [3], result, metric="cosine")
    assert result.inertia.item() == 0


@pytest.mark.parametrize("route", ["gram", "direct"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rows_do_not_move_for_ever(device, dtype, metric, algorithm, route):
    """More clusters than distinct rows: of two that share a mean, rounding says which is nearer."""
    distinct = gaussian(20, 50, dtype=dtype, device=device)
    rows = distinct[torch.arange(400, device=device) % 20]
    if metric == "cosine":  # equal directions, to rounding
        rows = rows * (1 + gaussian(400, 1, dtype=dtype, device=device).abs())
    result = kmeans([rows], [30], metric=metric, algorithm=algorithm, route=route)
    check_result([rows], [30], result, metric=metric)
    assert result.n_iter < 10  # of 100


@pytest.mark.parametrize("n_init", [1, 3])
@pytest.mark.parametrize("init", STARTS)
def test_alone_in_a_batch_and_permuted(device, init, n_init):
    rows, k = ragged(device)
    together = kmeans(rows, k, init=init, n_init=n_init, seed=7)
    order = torch.randperm(len(rows)).tolist()
    permuted = kmeans(
        [rows[b] for b in order], [k[b] for b in order], init=init, n_init=n_init, seed=7
    )
    for place, b in enumerate(order):
        alone = kmeans([rows[b]], [k[b]], init=init, n_init=n_init, seed=7)
        for other, index in ((alone, 0), (permuted, place)):
            assert torch.equal(other.labels[index], together.labels[b])
            assert torch.equal(other.centers[index], together.centers[b])
            assert other.inertia[index] == together.inertia[b]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("init", [*STARTS, "centers"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_several_k_of_one_matrix(device, dtype, init, metric):
    """They share a Gram matrix, also with a twin of another batch place; views of it do not."""
    x, y = (gaussian(n, 36, dtype=dtype, device=device, seed=n) + 3 for n in (200, 150))
    rows, k = [x, y, x, x[:150], x, x.view(400, 18)], [8, 5, 32, 8, 16, 8]
    starts = [row[:count] for row, count in zip(rows, k)]
    together = kmeans(rows, k, metric=metric, init=starts if init == "centers" else init, n_init=2)
    for b in range(len(rows)):
        start = starts[b : b + 1] if init == "centers" else init
        alone = kmeans(rows[b : b + 1], k[b : b + 1], metric=metric, init=start, n_init=2)
        for one, batch in zip(alone, together):
            assert torch.equal(one[0], batch[b])


def test_several_k_of_one_matrix_on_both_routes():
    x = gaussian(4200, 3)
    k = [200, 3, 100]  # "auto" goes direct with 3
    together = kmeans([x] * 3, k, max_iter=2)
    for b, count in enumerate(k):
        for one, batch in zip(kmeans([x], [count], max_iter=2), together):
            assert torch.equal(one[0], batch[b])


@pytest.mark.parametrize("init", STARTS)
def test_bitwise_repeatable_for_any_number_of_threads(device, init):
    rows, k = ragged(device)
    first, threads = kmeans(rows, k, init=init, n_init=2), torch.get_num_threads()
    try:
        for repeat in range(20):
            torch.set_num_threads(1 + repeat % 3)
            again = kmeans(rows, k, init=init, n_init=2)
            assert all(torch.equal(a, b) for a, b in zip(again.labels, first.labels))
            assert all(torch.equal(a, b) for a, b in zip(again.centers, first.centers))
            assert torch.equal(again.inertia, first.inertia)
    finally:
        torch.set_num_threads(threads)


def test_two_data_sets_of_one_shape(device):
    a, b = (gaussian(80, 20, device=device, seed=seed) for seed in (1, 2))
    both = kmeans([a, b], [9, 9])
    for x, labels in zip((a, b), both.labels):
        assert torch.equal(kmeans([x], [9]).labels[0], labels)


@pytest.mark.parametrize("init", STARTS)
def test_inertia_only_falls(device, init):
    """Lloyd's iterations, then Hartigan's passes, by the float64 inertia of stopped runs."""
    rows = gaussian(300, 40, dtype=torch.float64, device=device)
    full = kmeans([rows], [37], init=init)
    inertia = [
        kmeans([rows], [37], init=init, max_iter=m).inertia.item()
        for m in range(int(full.n_iter) + 1)
    ]
    assert all(b <= a for a, b in itertools.pairwise(inertia))
    assert inertia[-1] == full.inertia.item()
    assert full.inertia < kmeans([rows], [37], init=init, algorithm="lloyd").inertia


def test_restarts_keep_the_best(device):
    rows = gaussian(200, 10, device=device)
    inertia = [kmeans([rows], [25], n_init=n).inertia.item() for n in range(1, 7)]
    assert all(b <= a for a, b in itertools.pairwise(inertia))
    assert inertia[-1] < inertia[0]


def test_never_below_the_optimum_of_a_line(device):
    """Brute force: the clusters of a best partition of a line are intervals."""
    for seed in range(5):
        x = gaussian(11, 1, dtype=torch.float64, device=device, seed=seed)
        ordered = x.flatten().sort().values
        best = min(
            sum(float((part - part.mean()).square().sum()) for part in ordered.tensor_split(cuts))
            for cuts in itertools.combinations(range(1, 11), 3)
        )
        found = kmeans([x], [4], n_init=20).inertia.item()
        assert found >= best * (1 - 1e-12)
        assert found <= best * (1 + 1e-9)


def test_translation_and_scale(device):
    rows = torch.randint(-50, 50, (120, 16), dtype=torch.float64, device=device)
    base = kmeans([rows], [15])
    for other in (rows * 4, rows + 1024):
        assert torch.equal(kmeans([other], [15]).labels[0], base.labels[0])


def test_ward_equals_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    for n, d, k in [(50, 3, 7), (200, 64, 25), (311, 9, 40)]:
        x = gaussian(n, d, dtype=torch.float64, seed=n)
        labels = kmeans([x], [k], init="ward", max_iter=0).labels[0]
        theirs = cluster.AgglomerativeClustering(k, linkage="ward").fit_predict(x.numpy())
        assert labels.tolist() == as_partition(theirs)


def test_given_centers_equal_scikit_learn_lloyd():
    cluster = pytest.importorskip("sklearn.cluster")
    x = gaussian(200, 12, dtype=torch.float64)
    start = x[:20].clone()
    theirs = cluster.KMeans(20, init=start.numpy(), n_init=1, tol=0, max_iter=300).fit(x.numpy())
    result = kmeans([x], [20], init=[start], algorithm="lloyd")
    assert result.labels[0].tolist() == theirs.labels_.tolist()
    assert result.inertia.item() == pytest.approx(theirs.inertia_, rel=1e-12)


def test_strided_rows_and_numpy(device):
    rows = gaussian(64, 40, device=device)
    expected = kmeans([rows], [8])
    wide = torch.zeros(80, 128, device=device)
    wide[::2, ::2] = rows.T
    assert torch.equal(kmeans([wide[::2, ::2].T], [8]).labels[0], expected.labels[0])
    if device.type == "cpu":
        result = kmeans([rows.numpy()], [8])
        assert isinstance(result.labels[0], np.ndarray)
        assert isinstance(result.inertia, np.ndarray)
        assert np.array_equal(result.centers[0], expected.centers[0].numpy())


def test_no_gradient(device):
    rows = gaussian(20, 4, device=device).requires_grad_()
    result = kmeans([rows], [3], init=[rows[:3]])
    assert not result.centers[0].requires_grad
    assert not result.inertia.requires_grad


def test_generator_draws_the_seed(device):
    rows = [gaussian(200, 10, device=device)]
    results = [
        kmeans(rows, [25], generator=torch.Generator().manual_seed(s)).inertia.item()
        for s in (5, 5, 6)
    ]
    assert results[0] == results[1] != results[2]


def test_opcheck(device):
    rows = [gaussian(20, 5, device=device), gaussian(33, 7, device=device)]
    for init, centers in (("ward", []), ("centers", [row[:4].contiguous() for row in rows])):
        torch.library.opcheck(
            torch.ops.oskt_ext.kmeans.default,
            (rows, [4, 4], "cosine", init, centers, "lloyd", 1, 20, 0),
        )


def test_compiles_to_one_graph(device):
    rows = [gaussian(40, 6, device=device), gaussian(25, 3, device=device)]
    compiled = torch.compile(
        lambda x: kmeans(x, [5, 6], n_init=2), fullgraph=True, backend="aot_eager"
    )
    result, expected = compiled(rows), kmeans(rows, [5, 6], n_init=2)
    assert all(torch.equal(a, b) for a, b in zip(result.labels, expected.labels))
    assert torch.equal(result.inertia, expected.inertia)


def test_a_k_that_is_traced_compiles():
    compiled = torch.compile(
        lambda x: kmeans([x], [len(x) // 2]).labels[0],
        dynamic=True, fullgraph=True, backend="aot_eager",
    )  # fmt: skip
    rows = gaussian(12, 3)
    assert torch.equal(compiled(rows), kmeans([rows], [6]).labels[0])


X, MANY = torch.zeros(6, 3), torch.zeros(1, 1).expand(16385, 1)
ERRORS = [
    (X, [2], {}, TypeError, r"rows must be a list of matrices, got Tensor\. Pass \[matrix\]"),
    ([], [], {}, ValueError, r"rows must hold at least one matrix, got 0"),
    ([3.0], [2], {}, TypeError, r"rows\[0\] must be a tensor or an array of numbers that speaks"),
    ([X.long()], [2], {}, TypeError, r"rows\[0\] must be float64, float32.*got torch.int64"),
    ([torch.zeros(4, 3, 3, 3)], [2], {}, ValueError, r"rank 2.*\(4, 3, 3, 3\).*\.flatten\(1\)"),
    ([torch.zeros(0, 3)], [1], {}, ValueError, r"must have rows and columns, got shape \(0, 3\)"),
    ([X], [2], {"route": "elkan"}, ValueError, r"route must be one of .*got 'elkan'"),
    ([X], [2], {"route": "direct", "init": "ward"}, ValueError, r"got 'direct': init 'ward' works"),
    ([X], [2], {"precision": "low"}, ValueError, r"precision must be one of .*got 'low'"),
    ([MANY], [1], {"route": "gram"}, ValueError, r"16384 .*1\.0 GiB.*Take route='direct'"),
    ([MANY], [1], {"init": "ward"}, ValueError, r"16384 rows, got 16385.*take init='k-means\+\+'"),
    ([X, X.double()], [2, 2], {}, ValueError, r"rows\[1\] must have the dtype of rows\[0\]"),
    ([X, X.to("meta")], [2, 2], {}, ValueError, r"rows\[1\] must have the device of rows\[0\]"),
    ([X], 2, {}, TypeError, r"k must be a list of int, got 2"),
    ([X], [2.0], {}, TypeError, r"k must be a list of int, got \[2\.0\]"),
    ([X], [True], {}, TypeError, r"k must be a list of int, got \[True\]"),
    ([X], [torch.tensor(True)], {}, TypeError, r"k must be a list of int, got \[tensor"),
    ([X], [2, 2], {}, ValueError, r"k must have one entry per problem \(1\), got 2"),
    ([X], [0], {}, ValueError, r"k\[0\] must be in 1 \.\. N = 6, got 0"),
    ([X], [7], {}, ValueError, r"k\[0\] must be in 1 \.\. N = 6, got 7"),
    ([X], [2], {"metric": "l1"}, ValueError, r"metric must be one of .*got 'l1'"),
    ([X], [2], {"algorithm": "elkan"}, ValueError, r"algorithm must be one of .*got 'elkan'"),
    ([X], [2], {"init": "random"}, ValueError, r"init must be one of .*got 'random'"),
    ([X], [2], {"init": X[:2]}, ValueError, r"init must be .* a list of 1 matrices"),
    ([X], [2], {"init": [X[:3]]}, ValueError, r"init\[0\] must be \(2, 3\) torch.float32 on cpu"),
    ([X], [2], {"init": [X[:2].double()]}, ValueError, r"got \(2, 3\) torch.float64"),
    ([X], [2], {"init": [X[:2] / 0]}, ValueError, r"init\[0\] must be finite, got NaN or Inf"),
    ([X], [2], {"n_init": 0}, ValueError, r"n_init must be an int in 1 "),
    ([X], [2], {"max_iter": -1}, ValueError, r"max_iter must be an int in 0 "),
    ([X], [2], {"seed": 2**63}, ValueError, r"seed must be an int in 0 "),
]


@pytest.mark.parametrize(("rows", "k", "options", "error", "message"), ERRORS)
def test_errors(rows, k, options, error, message):
    with pytest.raises(error, match=r"^kmeans: .*" + message):
        kmeans(rows, k, **options)


@pytest.mark.parametrize("init", [*STARTS, "centers"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_rows_that_are_not_finite(device, dtype, value, init):
    good = gaussian(30, 5, dtype=dtype, device=device)
    for place in (slice(0, 1), slice(7, 20), slice(None)):
        bad = good.clone()
        bad[place, 2] = value
        start = [good[:6], good[:6]] if init == "centers" else init
        with pytest.raises(ValueError, match=r"rows\[1\] must be finite, got NaN or Inf"):
            kmeans([good, bad], [6, 6], init=start)


def test_nobody_waits_for_values_while_a_graph_is_captured(monkeypatch):
    class OnDevice:
        is_cuda = True

        def all(self):
            raise RuntimeError("waits")

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    check_finite("kmeans", "rows", OnDevice())
    with pytest.raises(ValueError, match="kmeans: rows"):  # on the CPU there is nothing to wait for
        check_finite("kmeans", "rows", torch.tensor([False]))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.raises(RuntimeError, match="waits"):
        check_finite("kmeans", "rows", OnDevice())


def test_direct_calls_are_checked():
    operator = torch.ops.oskt_ext.kmeans.default
    for k, init, route in ((9, "ward", "auto"), (2, "ward", "direct"), (2, "k-means++", "fast")):
        with pytest.raises((RuntimeError, ValueError), match=r"kmeans: (k|route)"):
            operator([X], [k], "euclidean", init, [], "lloyd", 1, 1, 0, route)
    with pytest.raises((RuntimeError, ValueError), match="kmeans: precision"):
        operator([X], [2], "euclidean", "k-means++", [], "lloyd", 1, 1, 0, "auto", "low")


def test_docstring():
    results = doctest.testmod(sys.modules["oskt_ext.kmeans"])  # the name is the function's
    assert results.attempted > 0
    assert results.failed == 0


def test_whole_numbers_of_numpy_are_whole_numbers():
    plain = kmeans([X], [2], n_init=2, seed=3)
    options = {"n_init": np.int32(2), "seed": np.uint64(3)}
    for two in (np.int64(2), np.array(2), torch.tensor(2)):  # whatever can be an index
        assert torch.equal(kmeans([X], [two], **options).labels[0], plain.labels[0])
