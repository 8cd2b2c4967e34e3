"""K-means: a ragged batch of clusterings of weight rows, in one operator call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oskt_ext._arrays import as_int, as_tensor, restorer
from oskt_ext._rows import check_finite, check_gram_rows, check_rows

_RANGES = {"n_init": (1, 2**16 - 1), "max_iter": (0, 2**30), "seed": (0, 2**63 - 1)}


class KMeansResult(NamedTuple):
    """What `kmeans` returns, problem by problem.

    Args:
        centers: B arrays (K_b, D_b), the means of the members.
        labels: B arrays int64 (N_b,), 0 <= label < K_b.
        inertia: float64 (B,), the sums of squared distances of the rows to their means.
        n_iter: int64 (B,), Lloyd iterations plus Hartigan passes of the restart that won.
    """

    centers: list[Any]
    labels: list[Any]
    inertia: Any
    n_iter: Any


def kmeans(
    rows: Sequence[Any],
    k: Sequence[int],
    *,
    metric: str = "euclidean",
    init: str | Sequence[Any] = "k-means++",
    algorithm: str = "hartigan",
    n_init: int = 1,
    max_iter: int = 100,
    seed: int = 0,
    generator: torch.Generator | None = None,
    route: str = "auto",
    precision: str = "highest",
) -> KMeansResult:
    """Partition the rows of every problem into k clusters of low within-cluster sum of squares.

    inertia = sum over clusters c of sum over members i of c of |x_i - mean_c|^2, a local minimum.

    Args:
        rows: B arrays (N_b, D_b), N_b >= 1 (and <= 16384 on the Gram route), of one dtype (float64,
            float32, float16 or bfloat16) and one device, finite; strided arrays are copied. NumPy
            and CuPy arrays are taken as they are.
        k: B numbers of clusters, 1 <= k_b <= N_b. Several k of one matrix, the same contiguous
            tensor several times in rows, cost one Gram matrix.
        metric: "euclidean"; or "cosine": rows are divided by their length first (a zero row stays
            zero), and centers and inertia are those of the divided rows.
        init: "k-means++" (greedy: the best of 2 + ln k draws per step); "ward" (Ward's
            agglomeration cut at k, labels numbered by first member); or B arrays (k_b, D_b) of
            starting centers in the dtype and device of rows.
        algorithm: "lloyd" runs until no label changes, or every row lies at its center to rounding.
            "hartigan" goes on with moves of single rows that lower the inertia, until none does.
        n_init: seedings to try, 1 to 65535; the lowest inertia wins, among equal ones (to
            rounding) the first. Only "k-means++" draws: other starts run once.
        max_iter: bound on Lloyd iterations plus Hartigan passes, >= 0; 0 returns the start, such as
            the plain Ward partition.
        seed: 0 <= seed < 2**63.
        generator: draws the seed in place of `seed`.
        route: how distances are formed; the labels are the same to rounding. "gram" forms the Gram
            matrix X X^T once, N^2 D / 2 multiply-adds and N^2 numbers, and no later step depends on
            D. "direct" (not from "ward") forms them from the rows at every step, N K D
            multiply-adds, in O(N + K D) memory beside the rows, on the CPU a packed copy of them,
            too, unless it takes more than 1 GiB. "auto" goes direct, problem by problem, where
            N > 16384, or where N > 4096 and N > 64 k; always "gram" from "ward".
        precision: in the words of torch.set_float32_matmul_precision. "highest", or "high": the
            direct route on CUDA may seek the nearest mean among rows and means that are rounded
            first, to half rows' own type or from float32 to TF32, for the speed of tensor cores:
            a row may get a mean that is farther by some parts in 2^11 (bfloat16: 2^8) of its
            distance from the mean of all rows. Means, centers and inertia, and single-row moves,
            are as ever; so is all on a CPU, on the Gram route and for float64.

    Returns:
        KMeansResult of arrays of the kind and on the device of rows; centers in their dtype. The
        results carry no gradient: clustering is not differentiable.

    Raises:
        TypeError: rows, k or init of a wrong type or dtype.
        ValueError: wrong rank, size, device or range; precision "high" where tensor cores would be
            needed and are not there; a NaN or Inf in rows (when called eagerly).

    Notes:
        Every cluster has a member: an empty one takes the row farthest from its center. Ties go to
        the lower index. At convergence every label is that of the nearest center, to rounding.
        Bitwise repeatable on a device, whatever the number of threads and the rest of the batch.
        Sums of products are in float32 for float32 and half types on the CPU and on the direct
        route, float64 otherwise; means, centers and inertia are float64 passes over the rows, never
        the expanded square. Memory on the Gram route: N^2 numbers, K N per restart and N^2 more for
        "ward", for each of threads + 1 matrices at a time (CPU), or for every one at once (CUDA).
        CUDA never waits for the device: its direct route launches 3 max_iter kernels, and 4 k for
        "k-means++", whenever it is done; precision "high" needs compute capability 8.0 and keeps a
        rounded copy of the rows.
        The check for NaN and Inf waits for the device once (twice with given centers); under
        torch.compile and while a CUDA graph is captured it is left out, and the inertia of rows
        with one is NaN. A `generator` on CUDA waits, too.

    Source:
        Arthur and Vassilvitskii 2007 (k-means++); Murtagh 1983 (nearest-neighbour chain); Slonim,
        Aharoni and Crammer, IJCAI 2013 (single-point moves). The published OSKT code uses Ward's
        method; `init="ward", max_iter=0` is that partition.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[0.0], [10.0], [1.0], [11.0]])
        >>> result = kmeans([rows], [2], init="ward")
        >>> result.labels[0].tolist(), result.centers[0].tolist(), result.inertia.tolist()
        ([0, 1, 0, 1], [[0.5], [10.5]], [1.0])
    """
    tensors = check_rows("kmeans", rows)
    k = _check_k(k, tensors)
    _check_choice("metric", metric, ("euclidean", "cosine"))
    _check_choice("algorithm", algorithm, ("hartigan", "lloyd"))
    _check_choice("precision", precision, ("highest", "high"))
    if generator is not None:
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    n_init, max_iter, seed = (
        _check_range(name, value)
        for name, value in (("n_init", n_init), ("max_iter", max_iter), ("seed", seed))
    )
    _check_route(route, init, tensors)
    initial_centers: list[Tensor] = []
    if isinstance(init, str):
        _check_choice("init", init, ("k-means++", "ward"))
    else:
        initial_centers, init = _check_centers(init, k, tensors), "centers"

    centers, labels, inertia, n_iter = torch.ops.oskt_ext.kmeans.default(
        [tensor.detach().contiguous() for tensor in tensors],
        k,
        metric,
        init,
        initial_centers,
        algorithm,
        n_init,
        max_iter,
        seed,
        route,
        precision,
    )
    check_finite("kmeans", "rows", inertia.isfinite())
    restore = restorer(rows[0])
    return KMeansResult(
        [restore(c) for c in centers],
        [restore(x) for x in labels],
        restore(inertia),
        restore(n_iter),
    )


def _check_k(given: Any, tensors: list[Tensor]) -> list[int]:
    entries = given if isinstance(given, (list, tuple)) else [None]
    k = [n for n in map(as_int, entries) if n is not None]
    if len(k) < len(entries):
        raise TypeError(
            f"kmeans: k must be a list of int, got {given!r}. Pass one int per problem."
        )
    if len(k) != len(tensors):
        raise ValueError(
            f"kmeans: k must have one entry per problem ({len(tensors)}), got {len(k)}. "
            "Pass one int per matrix of rows."
        )
    for b, (value, tensor) in enumerate(zip(k, tensors)):
        if value < 1 or value > tensor.shape[0]:
            raise ValueError(
                f"kmeans: k[{b}] must be in 1 .. N = {tensor.shape[0]}, got {value}. "
                "No cluster may be empty."
            )
    return k


def _check_centers(init: Any, k: Sequence[int], tensors: list[Tensor]) -> list[Tensor]:
    if not isinstance(init, (list, tuple)) or len(init) != len(tensors):
        raise ValueError(
            f"kmeans: init must be 'k-means++', 'ward' or a list of {len(tensors)} matrices, "
            f"got {type(init).__name__}. Pass one (K, D) matrix per problem."
        )
    centers = [as_tensor("kmeans", f"init[{b}]", value) for b, value in enumerate(init)]
    for b, (center, tensor) in enumerate(zip(centers, tensors)):
        shape = (k[b], tensor.shape[1])
        kind = (shape, tensor.dtype, tensor.device)
        if (tuple(center.shape), center.dtype, center.device) != kind:
            raise ValueError(
                f"kmeans: init[{b}] must be {shape} {tensor.dtype} on {tensor.device}, got "
                f"{tuple(center.shape)} {center.dtype} on {center.device}. Match rows[{b}]."
            )
    check_finite("kmeans", "init", torch.stack([center.isfinite().all() for center in centers]))
    return [center.detach().contiguous() for center in centers]


def _check_route(route: Any, init: Any, tensors: list[Tensor]) -> None:
    _check_choice("route", route, ("auto", "gram", "direct"))
    ward = isinstance(init, str) and init == "ward"
    if ward and route == "direct":
        raise ValueError(
            "kmeans: route must be 'auto' or 'gram' here, got 'direct': init 'ward' works on the "
            "Gram matrix. Choose another init."
        )
    if not ward and route != "gram":
        return
    remedy = (
        "Cluster a subset of rows, or take init='k-means++'." if ward else "Take route='direct'."
    )
    for b, tensor in enumerate(tensors):
        check_gram_rows("kmeans", b, tensor, remedy)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"kmeans: {name} must be one of {choices}, got {value!r}. Choose one.")


def _check_range(name: str, value: Any) -> int:
    low, high = _RANGES[name]
    number = as_int(value)
    if number is None or number < low or number > high:
        raise ValueError(
            f"kmeans: {name} must be an int in {low} .. {high}, got {value!r}. Choose another."
        )
    return number


@torch.library.register_fake("oskt_ext::kmeans")
def _(
    rows: list[Tensor],
    k: list[int],
    metric: str,
    init: str,
    initial_centers: list[Tensor],
    algorithm: str,
    n_init: int,
    max_iter: int,
    seed: int,
    route: str = "auto",
    precision: str = "highest",
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    return (
        [row.new_empty(clusters, row.shape[1]) for row, clusters in zip(rows, k)],
        [row.new_empty(row.shape[0], dtype=torch.int64) for row in rows],
        rows[0].new_empty(len(rows), dtype=torch.float64),
        rows[0].new_empty(len(rows), dtype=torch.int64),
    )
