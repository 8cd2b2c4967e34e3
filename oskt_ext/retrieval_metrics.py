"""Retrieval metrics: CMC, mAP and mINP of the Market-1501 protocol, without a distance matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oskt_ext._retrieval import (
    RetrievalMetrics,
    check_features,
    check_finite,
    check_labels,
    check_max_rank,
    check_metric,
    summarise,
)


def retrieval_metrics(
    query_features: Any,
    gallery_features: Any,
    query_ids: Any,
    gallery_ids: Any,
    query_cameras: Any,
    gallery_cameras: Any,
    *,
    metric: str = "cosine",
    max_rank: int = 50,
) -> RetrievalMetrics:
    """Rank a gallery for every query and score the ranking, by the Market-1501 protocol.

    Per query, gallery items of the same id and the same camera, and items of id -1, are dropped.
    The kept items are ordered by (distance, gallery index); a hit is a kept item of the query's
    id. With r_1 < .. < r_P the 1-based ranks of the hits:

        AP = 1/P sum_k k / r_k        INP = P / r_P        CMC[r] = [r_1 <= r]
        trapezoid AP = 1/P sum_k (k / r_k + before_k) / 2,
        before_k = (k - 1) / (r_k - 1), and 1 where r_k = 1

    Distractors (Market-1501 gives them id 0) need no rule: no query has their id, so they are
    wrong. A query without a hit is skipped.

    Args:
        query_features: [Q, D], float64, float32, float16 or bfloat16, finite, any device.
        gallery_features: [G, D], dtype and device of `query_features`, G < 2^31 - 1.
        query_ids: [Q], any integer dtype, on that device; likewise the three below.
        gallery_ids: [G].
        query_cameras: [Q].
        gallery_cameras: [G].
        metric: "cosine": 1 - <q, g> of rows scaled to length 1, a zero row staying zero;
            "euclidean": |q - g|^2.
        max_rank: length of `cmc`, at least 1; beyond the end of a short gallery it keeps its last
            value.

    Returns:
        RetrievalMetrics.

    Raises:
        TypeError: features are not floating point or differ in dtype; ids or cameras are not
            integers; max_rank is no int.
        ValueError: wrong rank or length, an empty side, mixed devices, NaN, Inf or rows too long
            to square, an unknown metric, max_rank < 1, or no query with a hit.

    Notes:
        Not differentiable: features are detached. Computed in float64 for float64, in float32
        else, as the order of <q, g> (cosine) and <q, g> - |g|^2 / 2 (euclidean), which leaves out
        what is constant per query: equal gallery rows tie exactly, wherever they lie. Euclidean
        float32 distances far smaller than the features lose digits; pass float64 then.
        Bitwise repeatable for any number of threads: sums in a fixed order, ranks by counting,
        means exactly rounded.
        Memory beyond the inputs: on the CPU 512 rows of G scores; on CUDA both feature sets once in
        the computing type and a chunk of scores; never Q x G, and no sort of the distances.
        Time: Q G D multiply-adds, and up to P G compares per query.
        Synchronises a CUDA device twice: the finite check before, and the means after; the
        operator itself (`torch.ops.oskt_ext.retrieval_metrics`) does not.

    Source:
        Zheng et al., Scalable Person Re-identification, ICCV 2015 (protocol); Ye et al., Deep
        Learning for Person Re-Identification, TPAMI 2021 (INP). Differences from the usual
        toolkits: ties have a defined order, and short galleries pad the CMC.

    Example:
        >>> import numpy as np
        >>> gallery = np.array([[0.0], [1.0], [2.0], [3.0]])
        >>> result = retrieval_metrics(
        ...     np.zeros((1, 1)), gallery, np.array([7]), np.array([7, 1, 7, 7]),
        ...     np.array([0]), np.array([0, 1, 1, 2]), metric="euclidean", max_rank=3)
        >>> result.cmc.tolist(), round(result.mAP, 4), round(result.mINP, 4)
        ([0.0, 1.0, 1.0], 0.5833, 0.6667)
    """
    op = "retrieval_metrics"
    queries, gallery = check_features(op, query_features, gallery_features)
    labels = [
        check_labels(op, name, value, len(features), queries.device)
        for name, value, features in (
            ("query_ids", query_ids, queries),
            ("gallery_ids", gallery_ids, gallery),
            ("query_cameras", query_cameras, queries),
            ("gallery_cameras", gallery_cameras, gallery),
        )
    ]
    check_metric(op, metric)
    max_rank = check_max_rank(op, max_rank)
    check_finite(op, queries, gallery)
    cmc, precision, inverse_penalty, trapezoid = torch.ops.oskt_ext.retrieval_metrics.default(
        queries, gallery, *labels, metric, max_rank
    )
    return summarise(op, query_features, cmc, (precision, inverse_penalty, trapezoid))


@torch.library.register_fake("oskt_ext::retrieval_metrics")
def _fake(
    query_features: Tensor,
    gallery_features: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_cameras: Tensor,
    gallery_cameras: Tensor,
    metric: str,
    max_rank: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    per_query = query_features.shape[0]
    sizes = (max_rank, per_query, per_query, per_query)
    cmc, precision, inverse_penalty, trapezoid = (
        query_features.new_empty(size, dtype=torch.float64) for size in sizes
    )
    return cmc, precision, inverse_penalty, trapezoid
