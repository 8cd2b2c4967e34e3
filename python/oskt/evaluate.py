"""Evaluation of a re-identification network: mAP and CMC, and the ranking lists behind them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import normalize

from oskt.data.split import Split
from oskt.embedding import IMAGENET_MEAN, IMAGENET_STD, ImageFiles, embed
from oskt_ext import retrieval_metrics


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found; every share is in 0..1.

    Attributes:
        mAP: mean average precision, precision-at-hit form, over the valid queries.
        cmc: CMC curve; cmc[r - 1] is the share of valid queries with a hit in the first r.
        mINP: mean inverse negative penalty, hits / rank of the last hit.
        mAP_trapezoid: mAP in the form of the original Market-1501 code.
        average_precision: float [Q], per query, on the CPU; NaN where a query has no hit.
        num_valid_queries: queries that have a hit once junk is dropped.
        num_queries, num_gallery: images on either side.
        embed_seconds, rank_seconds: wall times of the two halves.
        features: (query, gallery) embeddings if they were asked for.
    """

    mAP: float
    cmc: tuple[float, ...]
    mINP: float
    mAP_trapezoid: float
    average_precision: Tensor
    num_valid_queries: int
    num_queries: int
    num_gallery: int
    embed_seconds: float
    rank_seconds: float
    features: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def rank(self, r: int) -> float:
        """CMC at rank r; past the end of a short curve it is the last value."""
        return self.cmc[min(r, len(self.cmc)) - 1]

    @property
    def rank1(self) -> float:
        return self.rank(1)

    @property
    def rank5(self) -> float:
        return self.rank(5)

    @property
    def rank10(self) -> float:
        return self.rank(10)

    @property
    def images_per_second(self) -> float:
        return (self.num_queries + self.num_gallery) / max(self.embed_seconds, 1e-9)

    def metrics(self) -> dict[str, float | int]:
        """The scalars, ready for a JSON line."""
        return {
            "mAP": self.mAP,
            "rank1": self.rank1,
            "rank5": self.rank5,
            "rank10": self.rank10,
            "mINP": self.mINP,
            "mAP_trapezoid": self.mAP_trapezoid,
            "num_valid_queries": self.num_valid_queries,
            "num_queries": self.num_queries,
            "num_gallery": self.num_gallery,
            "embed_seconds": self.embed_seconds,
            "rank_seconds": self.rank_seconds,
            "images_per_second": self.images_per_second,
        }

    def log_lines(self) -> list[str]:
        """The lines that toolkits of the Bag-of-Tricks family print, for scripts that read them."""
        ranks = [f"CMC curve, Rank-{r:<3}:{self.rank(r):.1%}" for r in (1, 5, 10)]
        return [f"mAP: {self.mAP:.1%}", *ranks]

    def table(self) -> Table:
        """The same numbers as a table for the terminal, one per line."""
        queries = f"{self.num_valid_queries}"
        if self.num_valid_queries < self.num_queries:
            queries += f" of {self.num_queries}"
        shares = {
            "mAP": self.mAP,
            "Rank-1": self.rank1,
            "Rank-5": self.rank5,
            "Rank-10": self.rank10,
            "mINP": self.mINP,
            "mAP, trapezoid form": self.mAP_trapezoid,
        }
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(justify="right")
        for name, value in shares.items():
            table.add_row(name, f"{100 * value:.1f}")
        table.add_row("queries", queries)
        table.add_row("gallery", f"{self.num_gallery}")
        table.add_row("images per second", f"{self.images_per_second:,.0f}")
        table.add_row("seconds", f"{self.embed_seconds + self.rank_seconds:.1f}")
        return table


def evaluate(
    model: nn.Module,
    data: Any,
    *,
    height: int = 256,
    width: int = 128,
    metric: str = "cosine",
    max_rank: int = 50,
    flip: bool = False,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    amp: bool = False,
    workers: int = 4,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    keep_features: bool = False,
    images: tuple[ImageFiles, ImageFiles] | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Retrieve every query from the gallery and score the rankings (Market-1501 protocol).

    Gallery images of the query's identity and camera, and those of identity -1, are junk and
    dropped; queries left without a hit do not count; identity 0 marks distractors, which stay.

    Args:
        model: see `embed`.
        data: a data set with `.query` and `.gallery`, or the pair (query, gallery); each part has
            `paths`, `ids` and `cameras` of one length.
        height, width: input size, in pixels.
        metric: "cosine" or "euclidean".
        max_rank: length of the CMC curve.
        flip, batch_size, device, amp, workers: see `embed`.
        mean, std: see `ImageFiles`.
        keep_features: give back the embeddings, for ranking lists.
        images: the files of query and gallery, where they are decoded once for many models; they
            have a size, mean and std of their own.
        console: prints the toolkit lines and a table; None prints nothing.

    Returns:
        The `Evaluation`.

    Raises:
        ValueError: an empty part, or embeddings that are not finite.

    Notes:
        Ranking order is (distance, gallery index), so equal distances give one answer everywhere.

    Source:
        Zheng et al. 2015 (protocol); average precision in the precision-at-hit form of the
        PyTorch toolkits and of the OSKT paper, which reads 0.5-1 point above the original code.
    """
    query, gallery = data if isinstance(data, tuple) else (data.query, data.gallery)
    features = []
    start = time.perf_counter()
    for index, (name, part) in enumerate((("query", query), ("gallery", gallery))):
        if len(part.paths) == 0:
            raise ValueError(
                f"evaluate: {name} must hold at least 1 image, got 0. Check the data folder."
            )
        if images is None:
            files = ImageFiles(part.paths, height, width, mean=mean, std=std)
        else:
            files = images[index]
        features.append(
            embed(
                model,
                files,
                batch_size=batch_size,
                device=device,
                amp=amp,
                flip=flip,
                workers=workers,
                progress=name if console else None,
            )
        )
        if not torch.isfinite(features[-1]).all():
            raise ValueError(
                f"evaluate: {name} embeddings must be finite, got NaN or Inf. The network has "
                "diverged or its weights are damaged; with amp=True try amp=False."
            )
    embedded = time.perf_counter()
    found = retrieval_metrics(
        features[0], features[1], *_labels(query, gallery, features[0].device),
        metric=metric, max_rank=max_rank,
    )  # fmt: skip
    evaluation = Evaluation(
        mAP=float(found.mAP),
        cmc=tuple(found.cmc.tolist()),
        mINP=float(found.mINP),
        mAP_trapezoid=float(found.mAP_trapezoid),
        average_precision=found.average_precision.cpu(),
        num_valid_queries=int(found.num_valid_queries),
        num_queries=len(query.paths),
        num_gallery=len(gallery.paths),
        embed_seconds=embedded - start,
        rank_seconds=time.perf_counter() - embedded,
        features=(features[0], features[1]) if keep_features else None,
    )
    if console:
        for line in evaluation.log_lines():
            console.print(line, highlight=False)
        console.print(evaluation.table())
    return evaluation


def _labels(query: Split, gallery: Split, device: torch.device) -> list[Tensor]:
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
        ValueError: an unknown metric.
    """
    if metric not in ("cosine", "euclidean"):
        raise ValueError(
            f"ranking_lists: metric must be 'cosine' or 'euclidean', got {metric!r}. "
            "Use the metric of the evaluation."
        )
    device = query_features.device
    if metric == "cosine":
        query_features, gallery_features = normalize(query_features), normalize(gallery_features)
    query_ids, gallery_ids, query_cameras, gallery_cameras = _labels(query, gallery, device)
    chosen = torch.arange(len(query_ids)) if queries is None else torch.as_tensor(queries)
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
    return RankingLists(chosen, torch.cat(lists), torch.cat(rights))


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
