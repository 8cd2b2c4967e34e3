"""Retrieval metrics: CMC, mAP and mINP of the Market-1501 protocol, without a distance matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oskt_ext._arrays import as_tensor, restorer

METRICS = ("cosine", "euclidean")


@dataclass(frozen=True, eq=False)
class RetrievalMetrics:
    """What `retrieval_metrics` measures; arrays are float64 and of the kind of `query_features`.

    Args:
        cmc: [max_rank]; cmc[k] is the share of valid queries with a hit in the first k + 1 places.
        mAP: mean of average_precision over valid queries, in [0, 1] (not percent).
        mINP: mean over valid queries of (number of hits) / (rank of the last hit).
        num_valid_queries: queries with at least one hit; the others count nowhere.
        average_precision: [Q], precision-at-hit form; NaN where a query is not valid.
        mAP_trapezoid: mean of trapezoid_average_precision over valid queries.
        trapezoid_average_precision: [Q], the form of the original Market-1501 code; NaN likewise.
    """

    cmc: Any
    mAP: float
    mINP: float
    num_valid_queries: int
    average_precision: Any
    mAP_trapezoid: float
    trapezoid_average_precision: Any


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
        Memory: both feature sets once in the computing type and a chunk of scores; never Q x G,
        and no sort of the gallery's distances. Time: Q G D, and up to P G per query.
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
    queries = _features("query_features", query_features)
    gallery = _features("gallery_features", gallery_features)
    _check_pair(queries, gallery)
    labels = [
        _labels(name, value, features)
        for name, value, features in (
            ("query_ids", query_ids, queries),
            ("gallery_ids", gallery_ids, gallery),
            ("query_cameras", query_cameras, queries),
            ("gallery_cameras", gallery_cameras, gallery),
        )
    ]
    if metric not in METRICS:
        raise ValueError(
            f"retrieval_metrics: metric must be 'cosine' or 'euclidean', got {metric!r}. "
            "Rankings by arccos or by unsquared distance equal these."
        )
    if not isinstance(max_rank, int) or isinstance(max_rank, bool):
        raise TypeError(
            f"retrieval_metrics: max_rank must be an int, got {type(max_rank).__name__}. "
            "Pass the length of the CMC, for example 50."
        )
    if max_rank < 1:
        raise ValueError(
            f"retrieval_metrics: max_rank must be at least 1, got {max_rank}. "
            "Pass the length of the CMC, for example 50."
        )
    _check_finite(queries, gallery)

    cmc, precision, inverse_penalty, trapezoid = torch.ops.oskt_ext.retrieval_metrics.default(
        queries, gallery, *labels, metric, max_rank
    )
    host = torch.stack([precision, inverse_penalty, trapezoid]).cpu()
    valid = ~host[0].isnan()
    count = int(valid.sum())
    if count == 0:
        raise ValueError(
            "retrieval_metrics: query_ids must have an id that another camera saw in the gallery, "
            f"got 0 valid queries of {len(queries)}. Check ids and cameras of both sides."
        )
    means = [math.fsum(row[valid].tolist()) / count for row in host]
    restore = restorer(query_features)
    return RetrievalMetrics(
        cmc=restore(cmc),
        mAP=means[0],
        mINP=means[1],
        num_valid_queries=count,
        average_precision=restore(precision),
        mAP_trapezoid=means[2],
        trapezoid_average_precision=restore(trapezoid),
    )


def _features(name: str, value: Any) -> Tensor:
    features = as_tensor("retrieval_metrics", name, value).detach()
    if not features.is_floating_point():
        raise TypeError(
            f"retrieval_metrics: {name} must be floating point, got {features.dtype}. "
            "Convert it with .float()."
        )
    if features.dim() != 2 or features.numel() == 0:
        raise ValueError(
            f"retrieval_metrics: {name} must be of shape (rows, width), neither 0, got "
            f"{tuple(features.shape)}. Pass one feature row per image."
        )
    return features


def _check_pair(queries: Tensor, gallery: Tensor) -> None:
    if gallery.shape[1] != queries.shape[1]:
        raise ValueError(
            f"retrieval_metrics: gallery_features must be of width {queries.shape[1]}, got "
            f"{gallery.shape[1]}. Extract both sides with one model."
        )
    if gallery.dtype != queries.dtype:
        raise TypeError(
            f"retrieval_metrics: gallery_features must be {queries.dtype}, got {gallery.dtype}. "
            "Convert one side, so that both are compared in one type."
        )
    if gallery.device != queries.device:
        raise ValueError(
            f"retrieval_metrics: gallery_features must be on {queries.device}, got "
            f"{gallery.device}. Move it with .to('{queries.device}')."
        )


def _labels(name: str, value: Any, features: Tensor) -> Tensor:
    """The labels as int64, one per feature row, on the device of the features."""
    labels = as_tensor("retrieval_metrics", name, value)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"retrieval_metrics: {name} must be integers, got {labels.dtype}. "
            "Number the names first."
        )
    if labels.dim() != 1 or len(labels) != len(features):
        raise ValueError(
            f"retrieval_metrics: {name} must be of shape ({len(features)},), got "
            f"{tuple(labels.shape)}. Pass one entry per feature row."
        )
    if labels.device != features.device:
        raise ValueError(
            f"retrieval_metrics: {name} must be on {features.device}, got {labels.device}. "
            f"Move it with .to('{features.device}')."
        )
    return labels.to(torch.int64)


def _check_finite(queries: Tensor, gallery: Tensor) -> None:
    """One pass over the features; their squared norms must not overflow in the computing type."""
    computing = torch.promote_types(queries.dtype, torch.float32)
    limit = math.sqrt(torch.finfo(computing).max) / 2
    names = ("query_features", "gallery_features")
    longest = torch.stack(
        [
            torch.linalg.vector_norm(rows, dim=1, dtype=computing).max()
            for rows in (queries, gallery)
        ]
    )
    for name, norm in zip(names, longest.tolist()):
        if not norm <= limit:
            raise ValueError(
                f"retrieval_metrics: {name} must be finite with row norms up to {limit:.1e}, got a "
                f"row of norm {norm}. Look for NaN or Inf in the model's output."
            )


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


torch.library.register_fake("oskt_ext::retrieval_metrics", _fake)
