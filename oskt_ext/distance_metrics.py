"""Distance metrics: CMC, mAP and mINP of distances that come from elsewhere, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from oskt_ext._arrays import as_tensor, check_float
from oskt_ext._retrieval import RetrievalMetrics, check_labels, check_max_rank, summarise

OP = "distance_metrics"


def distance_metrics(
    distances: Any,
    query_ids: Any,
    gallery_ids: Any,
    query_cameras: Any,
    gallery_cameras: Any,
    *,
    max_rank: int = 50,
) -> RetrievalMetrics:
    """Score given distances by the Market-1501 protocol, as `retrieval_metrics` scores features.

    For distances that are not those of two feature rows: re-ranked (`k_reciprocal`), fused, learnt.
    They may come as row chunks, so that no Q x G matrix is ever stored.

    Args:
        distances: [Q, G], float64, float32, float16 or bfloat16, finite, any device; or an iterable
            of such arrays [R, G] of consecutive queries, each used and let go before the next.
        query_ids: [Q], any integer dtype, on that device; likewise the three below.
        gallery_ids: [G].
        query_cameras: [Q].
        gallery_cameras: [G].
        max_rank: length of `cmc`, at least 1.

    Returns:
        RetrievalMetrics, arrays of the kind of the distances.

    Raises:
        TypeError: distances are not floating point; ids or cameras are not integers.
        ValueError: wrong rank or length, chunks of several widths, no chunk at all, mixed devices,
            NaN or Inf, max_rank < 1, or no query with a hit.

    Notes:
        Not differentiable. Order is (distance, gallery index), of the distances as they are stored.
        Bitwise repeatable, for any number of threads and any way to cut the chunks.
        Synchronises a CUDA device once per chunk (the finite check), and once for the means.

    Source:
        As `retrieval_metrics`.

    Example:
        >>> import numpy as np
        >>> result = distance_metrics(
        ...     (np.array([row]) for row in [[0.1, 0.2, 0.3], [0.5, 0.5, 0.4]]),
        ...     np.array([7, 8]), np.array([1, 7, 8]), np.array([0, 0]), np.array([1, 1, 1]))
        >>> result.mAP, result.cmc[:2].tolist()
        (0.75, [0.5, 1.0])
    """
    max_rank = check_max_rank(OP, max_rank)
    single = isinstance(distances, Tensor) or hasattr(distances, "__dlpack__")
    chunks = [distances] if single else _iterate(distances)
    first: Any = None
    labels: list[Tensor] = []
    found: list[tuple[Tensor, ...]] = []
    start = 0
    for chunk in chunks:
        rows = _rows(chunk)
        if first is None:
            first, device, width = chunk, rows.device, rows.shape[1]
            query_ids = check_labels(OP, "query_ids", query_ids, None, device)
            query_cameras = check_labels(OP, "query_cameras", query_cameras, len(query_ids), device)
            labels = [
                check_labels(OP, "gallery_ids", gallery_ids, width, device),
                check_labels(OP, "gallery_cameras", gallery_cameras, width, device),
            ]
        elif rows.shape[1] != width or rows.device != device:
            raise ValueError(
                f"{OP}: distances must be of width {width} on {device} in every chunk, got "
                f"{rows.shape[1]} on {rows.device}. Compare all queries with one gallery."
            )
        end = start + len(rows)
        if end > len(query_ids):
            raise ValueError(
                f"{OP}: distances must have {len(query_ids)} rows, one per query id, got at least "
                f"{end}. Pass the ids of all queries."
            )
        found.append(
            torch.ops.oskt_ext.distance_metrics.default(
                rows, query_ids[start:end], labels[0], query_cameras[start:end], labels[1]
            )
        )
        start = end
    if start != len(query_ids) or first is None:
        raise ValueError(
            f"{OP}: distances must have {len(query_ids)} rows, one per query id, got {start}. "
            "Pass the rows of all queries."
        )
    first_hit, precision, inverse_penalty, trapezoid = map(torch.cat, zip(*found))
    places = torch.bincount(first_hit.clamp(max=max_rank + 1), minlength=max_rank + 2)
    cmc = places[1 : max_rank + 1].cumsum(0).double() / (first_hit > 0).sum()
    return summarise(OP, first, cmc, (precision, inverse_penalty, trapezoid))


def _iterate(distances: Any) -> Iterable[Any]:
    if isinstance(distances, Iterable):
        return distances
    raise TypeError(
        f"{OP}: distances must be an array or an iterable of arrays, got "
        f"{type(distances).__name__}. Pass a torch, NumPy or CuPy array."
    )


def _rows(chunk: Any) -> Tensor:
    rows = as_tensor(OP, "distances", chunk).detach()
    check_float(OP, "distances", rows)
    if rows.dim() != 2 or rows.numel() == 0:
        raise ValueError(
            f"{OP}: distances must be of shape (queries, gallery), neither 0, got "
            f"{tuple(rows.shape)}. Pass one row per query."
        )
    low, high = torch.stack(torch.aminmax(rows)).tolist()  # NaN comes through; no copy of the rows
    if not (abs(low) < torch.inf and abs(high) < torch.inf):
        raise ValueError(
            f"{OP}: distances must be finite, got {low} to {high}. Look for NaN or Inf, and give "
            "excluded pairs a large number instead."
        )
    return rows


@torch.library.register_fake("oskt_ext::distance_metrics")
def _(
    distances: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_cameras: Tensor,
    gallery_cameras: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    queries = distances.shape[0]
    first_hit = distances.new_empty(queries, dtype=torch.int32)
    precision, inverse_penalty, trapezoid = (
        distances.new_empty(queries, dtype=torch.float64) for _ in range(3)
    )
    return first_hit, precision, inverse_penalty, trapezoid
