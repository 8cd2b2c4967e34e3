"""Ranking lists: the first gallery items of some queries, for reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from oskt.data.split import Split


def label_columns(query: Split, gallery: Split, device: torch.device) -> list[Tensor]:
    """Ids and cameras in the order of the retrieval operators."""
    columns = (query.ids, gallery.ids, query.cameras, gallery.cameras)
    return [torch.as_tensor(column, dtype=torch.long, device=device) for column in columns]


@dataclass(frozen=True)
class RankingLists:
    """The first gallery items of some queries.

    Attributes:
        queries: int64 [Q], the query indices.
        gallery: int64 [Q, k], gallery indices, best first; -1 where fewer than k are kept.
        right: bool [Q, k], whether the item shows the query's identity.
    """

    queries: Tensor
    gallery: Tensor
    right: Tensor


def ranking_lists(
    query_features: Tensor,
    gallery_features: Tensor,
    query: Split,
    gallery: Split,
    *,
    k: int = 10,
    queries: Sequence[int] | None = None,
    metric: str = "cosine",
    chunk: int = 64,
) -> RankingLists:
    """List the first k kept gallery items of each query, junk dropped as in `evaluate`.

    Args:
        query_features: floating point [Q, F].
        gallery_features: floating point [G, F], same device.
        query, gallery: the parts of the data set, for `ids` and `cameras`.
        k: length of the lists, >= 1.
        queries: which queries to list; None lists all.
        metric: "cosine" or "euclidean".
        chunk: queries ranked at once; memory is about 16 * chunk * G bytes.

    Returns:
        The `RankingLists`, on the CPU; order is (distance, gallery index).

    Raises:
        ValueError: an unknown metric, or k or chunk below 1.
    """
    for name, value in (("k", k), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"ranking_lists: {name} must be at least 1, got {value}. Raise it.")
    if metric not in ("cosine", "euclidean"):
        raise ValueError(
            f"ranking_lists: metric must be 'cosine' or 'euclidean', got {metric!r}. "
            "Use the metric of the evaluation."
        )
    device = query_features.device
    if metric == "cosine":
        query_features, gallery_features = normalize(query_features), normalize(gallery_features)
    query_ids, gallery_ids, query_cameras, gallery_cameras = label_columns(query, gallery, device)
    every = torch.arange(len(query_ids))
    chosen = every if queries is None else torch.as_tensor(queries, dtype=torch.long)
    lists, rights = [], []
    for picked in torch.split(chosen.to(device), chunk):
        rows = query_features[picked]
        if metric == "cosine":
            distance = 1 - rows @ gallery_features.T
        else:
            distance = torch.cdist(rows, gallery_features)
        same = query_ids[picked, None] == gallery_ids
        junk = same & (query_cameras[picked, None] == gallery_cameras) | (gallery_ids == -1)
        distance.masked_fill_(junk, torch.inf)
        # topk leaves the order of ties open; a stable sort keeps the lower gallery index first.
        order = distance.sort(dim=1, stable=True).indices[:, :k]
        dropped = junk.gather(1, order)
        lists.append(order.masked_fill(dropped, -1).cpu())
        rights.append((same.gather(1, order) & ~dropped).cpu())
    missing = (0, max(0, k - len(gallery_ids)))  # columns for which the gallery is too small
    return RankingLists(
        chosen, pad(torch.cat(lists), missing, value=-1), pad(torch.cat(rights), missing)
    )


def spread_queries(average_precision: Tensor, count: int) -> list[int]:
    """Pick queries from the hardest to the easiest at even steps of average precision.

    A fixed rule, so that the pictures of a report are no choice of its author.

    Args:
        average_precision: float [Q]; NaN (no hit) is never picked.
        count: how many, >= 1; fewer come back if there are fewer valid queries.

    Example:
        >>> spread_queries(torch.tensor([0.9, float("nan"), 0.1, 0.5, 0.7]), 3)
        [2, 4, 0]
    """
    valid = torch.nonzero(~average_precision.isnan()).flatten()
    ordered = valid[average_precision[valid].sort(stable=True).indices]
    steps = torch.linspace(0, len(ordered) - 1, min(count, len(ordered)))
    return ordered[steps.round().long()].tolist()
