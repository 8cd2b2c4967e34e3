"""Clustering of all 53 convolution weights of ResNet-50, K = rows / 8, as one batch; the 48 linears
of ViT-B; many rows.

Every row records `inertia`, the float64 sum of squares of its labels, beside its time: a fast
answer that is a worse one shows. Peers run the same problems one by one, as they must. On a CPU:
scikit-learn KMeans (greedy k-means++, one start; sklearnex where it is installed) and Ward, and
faiss k-means++ where it is installed. On a GPU: Lloyd from the first rows in torch, and where they
are installed fast_pytorch_kmeans, cuML and, of equal problems, flash-kmeans. `trained` are the
weights of short_training.py. `roof_s` is half of the Gram matrices, as they are symmetric, at the
rate of a square sgemm; `gemm` are the whole ones by torch.mm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import CUDA, DEVICE, cpu_module, sgemm_rate, timed
from oskt_ext import kmeans
from shapes import resnet50_convs, vit_linears
from short_training import trained_convolutions

DATA = ["gauss", "low-rank", "clustered", "trained"]
VIT = "vit-b"  # Gaussian rows of its shapes


@cache
def problems(kind: str) -> tuple[list[Tensor], list[int]]:
    """Rows of every weight, of about unit length, and the numbers of clusters."""
    if kind == "trained":
        weights = trained_convolutions()
        rows = [weights[f"{name}.weight"].flatten(1) for name, *_ in resnet50_convs()]
        rows = [x / x.norm(dim=1).mean() for x in rows]
        return [x.to(DEVICE) for x in rows], [len(x) // 8 for x in rows]
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shapes = [(n, channels * side * side) for _, n, channels, side in resnet50_convs()]
    if kind == VIT:
        shapes = [(n, d) for _, n, d in vit_linears()]
    rows = []
    for n, d in shapes:
        if kind in ("gauss", VIT):
            x = normal(n, d)
        elif kind == "low-rank":
            rank = max(4, min(n, d) // 8)
            x = normal(n, rank) @ normal(rank, d) / rank**0.5 + 0.3 * normal(n, d)
        else:
            owner = torch.randint(n // 8, (n,), generator=generator)
            x = normal(n // 8, d)[owner] + 0.5 * normal(n, d)
        rows.append((x / d**0.5).to(DEVICE))
    return rows, [len(x) // 8 for x in rows]


def half_gram_seconds(rows: list[Tensor]) -> float:
    """The roof of clusterings that need the distances of all pairs of rows, each pair once."""
    return sum(len(x) * x.numel() for x in rows) / sgemm_rate()


def inertia_of(rows: list[Tensor], labels: list[Tensor], k: list[int]) -> float:
    """The sum of squared distances to the means, in float64."""
    total = 0.0
    for x, label, clusters in zip(rows, labels, k):
        x, label = x.double(), torch.as_tensor(label, device=x.device).long()
        sums = x.new_zeros(clusters, x.shape[1]).index_add_(0, label, x)
        means = sums / torch.bincount(label, minlength=clusters)[:, None]
        total += float((x - means[label]).square().sum())
    return total


Labels = Callable[[list[Tensor], list[int]], list[Tensor]]


def ours(**options: object) -> Labels:
    return lambda rows, k: kmeans(rows, k, **options).labels  # type: ignore[arg-type]


def sklearn_kmeans(
    rows: list[Tensor], k: list[int], module: str = "sklearn.cluster"
) -> list[Tensor]:
    cluster = cpu_module(module)
    return [
        torch.from_numpy(cluster.KMeans(m, n_init=1, random_state=0).fit(x.cpu().numpy()).labels_)
        for x, m in zip(rows, k)
    ]


def sklearn_ward(rows: list[Tensor], k: list[int]) -> list[Tensor]:
    cluster = cpu_module("sklearn.cluster")
    return [
        torch.from_numpy(cluster.AgglomerativeClustering(m).fit_predict(x.cpu().numpy()))
        for x, m in zip(rows, k)
    ]


def faiss_kmeans(rows: list[Tensor], k: list[int]) -> list[Tensor]:
    faiss = cpu_module("faiss")
    labels = []
    for x, m in zip(rows, k):
        points = x.cpu().numpy()
        model = faiss.Kmeans(
            points.shape[1], m, niter=25, seed=0, min_points_per_centroid=1,
            max_points_per_centroid=len(points),  # all; 256 by default
        )  # fmt: skip
        if hasattr(faiss, "ClusteringInitMethod_KMEANS_PLUS_PLUS"):
            model.cp.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
        model.train(points)
        labels.append(torch.from_numpy(model.index.search(points, 1)[1][:, 0]))
    return labels


def torch_from_first_rows(rows: list[Tensor], k: list[int]) -> list[Tensor]:
    return [torch_lloyd(x[None], x[None, :m], 25)[0] for x, m in zip(rows, k)]


def fast_pytorch_kmeans(rows: list[Tensor], k: list[int]) -> list[Tensor]:
    fast = pytest.importorskip("fast_pytorch_kmeans")
    return [fast.KMeans(n_clusters=m, max_iter=25).fit_predict(x) for x, m in zip(rows, k)]


def cuml_kmeans(rows: list[Tensor], k: list[int]) -> list[Tensor]:
    cluster = pytest.importorskip("cuml.cluster")
    torch.cuda.synchronize()  # its stream is its own and would run ahead of the clock's
    return [
        torch.as_tensor(
            cluster.KMeans(n_clusters=m, n_init=1, random_state=0).fit(x).labels_, device=DEVICE
        )
        for x, m in zip(rows, k)
    ]


OURS: dict[str, Labels] = {
    "lloyd": ours(algorithm="lloyd"),
    "hartigan": ours(),
    "ward": ours(init="ward", max_iter=0),
    "ward+hartigan": ours(init="ward"),
}
CPU_PEERS: dict[str, Labels] = {
    "sklearn": sklearn_kmeans,
    "sklearnex": partial(sklearn_kmeans, module="sklearnex.cluster"),
    "sklearn-ward": sklearn_ward,
    "faiss": faiss_kmeans,
}
GPU_PEERS: dict[str, Labels] = {
    "torch": torch_from_first_rows,
    "fast_pytorch_kmeans": fast_pytorch_kmeans,
    "cuml": cuml_kmeans,
}
METHODS = OURS | (GPU_PEERS if CUDA else CPU_PEERS)


def labels_timed(benchmark: Any, method: str, rows: list[Tensor], k: list[int]) -> None:
    """Times a method and notes the inertia of its labels; scikit-learn, in seconds, runs once."""

    rounds, warmup = (1, 0) if method.startswith("sklearn") else (9, 1)
    METHODS[method]([rows[0][: 4 * k[0]]], [k[0]])  # imports what it needs
    labels = timed(benchmark, lambda: METHODS[method](rows, k), rounds=rounds, warmup=warmup)
    benchmark.extra_info["inertia"] = inertia_of(rows, labels, k)


WITH_VIT = ["ward+hartigan", *(["torch"] if CUDA else ["sklearn-ward", "faiss"])]
CASES = [(method, kind) for method in METHODS for kind in DATA]
CASES += [(method, VIT) for method in WITH_VIT]


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_network(benchmark, method, kind):
    rows, k = problems(kind)
    labels_timed(benchmark, method, rows, k)
    benchmark.extra_info["roof_s"] = half_gram_seconds(rows)


@pytest.mark.parametrize("shape", [(50000, 64, 64), (20000, 512, 100)], ids=str)
@pytest.mark.parametrize("method", [name for name in METHODS if "ward" not in name])
def test_many_rows(benchmark, shape, method):
    """One problem of N rows of length D in K clusters, overlapping blobs: the direct route."""
    n, d, k = shape
    rows = blobs(n, d, k).to(DEVICE)
    labels_timed(benchmark, method, [rows], [k])


def blobs(n: int, d: int, k: int, seed: int = 0) -> Tensor:
    """(n, d), rows around 2 k centers."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(2 * k, d, generator=generator)
    owner = torch.randint(2 * k, (n,), generator=generator)
    return centers[owner] + torch.randn(n, d, generator=generator)


@cache
def batch_of_blobs(b: int, n: int, d: int, k: int) -> Tensor:
    return torch.stack([blobs(n, d, k, seed) for seed in range(b)])


def oskt_lloyd(
    rows: Tensor, centers: Tensor, iterations: int, precision: str = "highest"
) -> Tensor:
    found = kmeans(
        [*rows], [centers.shape[1]] * len(rows), init=[*centers], algorithm="lloyd",
        max_iter=iterations, route="direct", precision=precision,
    )  # fmt: skip
    return torch.stack(found.labels)


def torch_lloyd(rows: Tensor, centers: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        distance = torch.baddbmm(centers.square().sum(2)[:, None], rows, centers.mT, alpha=-2)
        labels = distance.argmin(2)
        sums = torch.zeros_like(centers).scatter_add_(1, labels[..., None].expand_as(rows), rows)
        sizes = torch.zeros_like(centers[..., 0]).scatter_add_(
            1, labels, rows.new_ones(1, 1).expand_as(labels)
        )
        centers = sums / sizes.clamp_min(1)[..., None]
    return labels


def flash_lloyd(rows: Tensor, centers: Tensor, iterations: int) -> Tensor:
    flash = pytest.importorskip("flash_kmeans")
    labels: Tensor = flash.batch_kmeans_Euclid(
        rows, centers.shape[1], max_iters=iterations, tol=-1.0, init_centroids=centers
    )[0]
    return labels


BATCHED: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "oskt": oskt_lloyd,
    "oskt-high": partial(oskt_lloyd, precision="high"),
    "torch": torch_lloyd,
    "flash": flash_lloyd,
}


@pytest.mark.skipif(not CUDA, reason="minutes long on a CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape", [(8, 16384, 128, 100), (32, 16384, 128, 1000), (8, 131072, 128, 1000)], ids=str
)
@pytest.mark.parametrize("method", BATCHED)
def test_equal_problems(benchmark, method, shape, dtype):
    """Ten of Lloyd's iterations from given centers, on the shapes that flash-kmeans measures.

    The roof is that of float32, also for halves, which tensor cores multiply faster.
    """
    b, n, d, k = shape
    rows = batch_of_blobs(b, n, d, k).to(DEVICE, dtype)
    centers = rows[:, :k].contiguous()

    labels = timed(benchmark, lambda: BATCHED[method](rows, centers, 10))
    benchmark.extra_info["roof_s"] = 10 * 2 * b * n * k * d / sgemm_rate()
    benchmark.extra_info["inertia"] = inertia_of([*rows], [*labels], [k] * b)


def test_gemm(benchmark):
    rows, _ = problems("gauss")

    def call() -> None:
        for x in rows:
            torch.mm(x, x.T)

    timed(benchmark, call)
    benchmark.extra_info["roof_s"] = half_gram_seconds(rows)
