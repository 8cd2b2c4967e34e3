"""What the retrieval operators share: checks of features and labels, and the means over queries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oskt_ext._arrays import as_int, as_tensor, check_dense, check_float, restorer

METRICS = ("cosine", "euclidean")


@dataclass(frozen=True, eq=False)
class RetrievalMetrics:
    """What a ranking of the gallery is worth; arrays are float64 and of the kind of the input.

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


def summarise(
    op: str, like: Any, cmc: Tensor, rows: tuple[Tensor, Tensor, Tensor]
) -> RetrievalMetrics:
    """Means, exactly rounded, over the queries with a hit; arrays of the kind of `like`.

    `rows` are average precision, inverse negative penalty and trapezoid average precision, NaN
    where a query has no hit.
    """
    host = torch.stack(rows).cpu()
    valid = ~host[0].isnan()
    count = int(valid.sum())
    if count == 0:
        raise ValueError(
            f"{op}: query_ids must have an id that another camera saw in the gallery, "
            f"got 0 valid queries of {len(valid)}. Check ids and cameras of both sides."
        )
    means = [math.fsum(row[valid].tolist()) / count for row in host]
    restore = restorer(like)
    return RetrievalMetrics(
        cmc=restore(cmc),
        mAP=means[0],
        mINP=means[1],
        num_valid_queries=count,
        average_precision=restore(rows[0]),
        mAP_trapezoid=means[2],
        trapezoid_average_precision=restore(rows[2]),
    )


def check_features(op: str, query_features: Any, gallery_features: Any) -> tuple[Tensor, Tensor]:
    """Both sides, detached; their values are left to `check_finite`."""
    queries = _features(op, "query_features", query_features)
    gallery = _features(op, "gallery_features", gallery_features)
    _check_pair(op, queries, gallery)
    return queries, gallery


def check_metric(op: str, metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(
            f"{op}: metric must be 'cosine' or 'euclidean', got {metric!r}. "
            "Rankings by arccos or by unsquared distance equal these."
        )


def check_count(op: str, name: str, value: Any, remedy: str) -> int:
    """A whole number from 1 on as an int."""
    count = as_int(value)
    if count is None:
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}. {remedy}")
    if count < 1:
        raise ValueError(f"{op}: {name} must be at least 1, got {count}. {remedy}")
    return count


def check_max_rank(op: str, max_rank: Any) -> int:
    return check_count(op, "max_rank", max_rank, "Pass the length of the CMC, for example 50.")


def check_labels(op: str, name: str, value: Any, count: int | None, device: torch.device) -> Tensor:
    """The labels as int64, one per image, on `device`; `count` None takes any number."""
    labels = as_tensor(op, name, value)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"{op}: {name} must be integers, got {labels.dtype}. Number the names first."
        )
    check_dense(op, name, labels)
    if labels.dim() != 1 or count not in (None, len(labels)):
        raise ValueError(
            f"{op}: {name} must be of shape ({'*' if count is None else count},), got "
            f"{tuple(labels.shape)}. Pass one entry per image."
        )
    if labels.device != device:
        raise ValueError(
            f"{op}: {name} must be on {device}, got {labels.device}. Move it with .to('{device}')."
        )
    return labels.to(torch.int64)


def check_finite(op: str, queries: Tensor, gallery: Tensor) -> None:
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
                f"{op}: {name} must be finite with row norms up to {limit:.1e}, got a "
                f"row of norm {norm}. Look for NaN or Inf in the model's output."
            )


def _features(op: str, name: str, value: Any) -> Tensor:
    features = as_tensor(op, name, value).detach()
    check_float(op, name, features)
    if features.dim() != 2 or features.numel() == 0:
        raise ValueError(
            f"{op}: {name} must be of shape (rows, width), neither 0, got "
            f"{tuple(features.shape)}. Pass one feature row per image."
        )
    return features


def _check_pair(op: str, queries: Tensor, gallery: Tensor) -> None:
    if gallery.shape[1] != queries.shape[1]:
        raise ValueError(
            f"{op}: gallery_features must be of width {queries.shape[1]}, got "
            f"{gallery.shape[1]}. Extract both sides with one model."
        )
    if gallery.dtype != queries.dtype:
        raise TypeError(
            f"{op}: gallery_features must be {queries.dtype}, got {gallery.dtype}. "
            "Convert one side, so that both are compared in one type."
        )
    if gallery.device != queries.device:
        raise ValueError(
            f"{op}: gallery_features must be on {queries.device}, got "
            f"{gallery.device}. Move it with .to('{queries.device}')."
        )
