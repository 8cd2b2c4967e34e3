"""Ward's merge trees of all 53 convolution weights of ResNet-50, as one batch.

Every row records `inertia`, the sum of squares that its heights say is lost at a cut to N / 8
clusters, beside its time: all must agree to rounding. Peers run the same problems one by one, as
they must: SciPy's linkage (float64) and scikit-learn's full tree. `roof_s` is that of bench_kmeans:
half of the Gram matrices at the rate of a square sgemm.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from bench_kmeans import DATA, half_gram_seconds, problems
from harness import cpu_module, timed
from oskt_ext import merge_trees

Heights = Callable[[list[Tensor]], list[NDArray[np.float64]]]


def ours(rows: list[Tensor]) -> list[NDArray[np.float64]]:
    return [height[1:].cpu().numpy() for height in merge_trees(rows).height]


def scipy_linkage(rows: list[Tensor]) -> list[NDArray[np.float64]]:
    hierarchy = cpu_module("scipy.cluster.hierarchy")
    trees = [hierarchy.linkage(x.cpu().numpy(), method="ward") for x in rows]
    return [tree[:, 2] ** 2 / 2 for tree in trees]


def sklearn_tree(rows: list[Tensor]) -> list[NDArray[np.float64]]:
    cluster = cpu_module("sklearn.cluster")
    trees = [
        cluster.AgglomerativeClustering(None, distance_threshold=0).fit(x.cpu().numpy())
        for x in rows
    ]
    return [tree.distances_**2 / 2 for tree in trees]


METHODS: dict[str, Heights] = {"ours": ours, "scipy": scipy_linkage, "sklearn": sklearn_tree}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_resnet50(benchmark, kind, method):
    rows, k = problems(kind)
    rounds, warmup = (3, 1) if method == "ours" else (1, 0)
    METHODS[method]([rows[0]])  # imports what it needs
    heights = timed(benchmark, lambda: METHODS[method](rows), rounds=rounds, warmup=warmup)
    lost = [np.sort(h)[: len(x) - clusters].sum() for x, h, clusters in zip(rows, heights, k)]
    benchmark.extra_info["inertia"] = float(sum(lost))
    benchmark.extra_info["roof_s"] = half_gram_seconds(rows)
