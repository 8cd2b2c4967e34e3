"""Evaluation of a re-identification network: mAP, CMC and mINP, plain and re-ranked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from oskt.evaluation.embedding import ImageFiles, embed
from oskt.evaluation.rankings import label_columns
from oskt.pixels import IMAGENET_MEAN, IMAGENET_STD
from oskt_ext import RetrievalMetrics, distance_metrics, k_reciprocal, retrieval_metrics


@dataclass(frozen=True)
class Scores:
    """What one ranking of the gallery is worth; every share is in 0..1.

    Attributes:
        mAP: mean average precision, precision-at-hit form, over the valid queries.
        cmc: CMC curve; cmc[r - 1] is the share of valid queries with a hit in the first r.
        mINP: mean inverse negative penalty, hits / rank of the last hit.
        mAP_trapezoid: mAP in the form of the original Market-1501 code.
        average_precision: float [Q], per query, on the CPU; NaN where a query has no hit.
        num_valid_queries: queries that have a hit once junk is dropped.
        rank_seconds: wall time of ranking and scoring.
        peak_bytes: largest memory of the process up to then, and of its GPU; 0 where unknown.
    """

    mAP: float
    cmc: tuple[float, ...]
    mINP: float
    mAP_trapezoid: float
    average_precision: Tensor
    num_valid_queries: int
    rank_seconds: float
    peak_bytes: int

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

    def summary(self) -> dict[str, Any]:
        """What `oskt evaluate --json` writes of a ranking."""
        return {
            "mAP": self.mAP,
            "mINP": self.mINP,
            "cmc": self.cmc,
            "rank_seconds": self.rank_seconds,
            "peak_bytes": self.peak_bytes,
        }

    def shares(self) -> dict[str, float]:
        """The shares under the names of a table."""
        return {
            "mAP": self.mAP,
            "Rank-1": self.rank1,
            "Rank-5": self.rank5,
            "Rank-10": self.rank10,
            "mINP": self.mINP,
            "mAP, trapezoid form": self.mAP_trapezoid,
        }


@dataclass(frozen=True)
class Evaluation(Scores):
    """What one evaluation found: the scores of the plain ranking, and what surrounds them.

    Attributes:
        num_queries, num_gallery: images on either side.
        embed_seconds: wall time of the embeddings.
        reranked: the scores after k-reciprocal re-ranking, if they were asked for.
        features: (query, gallery) embeddings if they were asked for.
    """

    num_queries: int
    num_gallery: int
    embed_seconds: float
    reranked: Scores | None = None
    features: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def images_per_second(self) -> float:
        return (self.num_queries + self.num_gallery) / max(self.embed_seconds, 1e-9)

    def log_lines(self) -> list[str]:
        """The lines that toolkits of the Bag-of-Tricks family print, for scripts that read them."""
        ranks = [f"CMC curve, Rank-{r:<3}:{self.rank(r):.1%}" for r in (1, 5, 10)]
        return [f"mAP: {self.mAP:.1%}", *ranks]

    def table(self) -> Table:
        """The same numbers as a table for the terminal, one per line; re-ranked ones beside."""
        queries = f"{self.num_valid_queries}"
        if self.num_valid_queries < self.num_queries:
            queries += f" of {self.num_queries}"
        columns: list[Scores] = [self] if self.reranked is None else [self, self.reranked]
        table = Table.grid(padding=(0, 2))
        table.add_column()
        for _ in columns:
            table.add_column(justify="right")
        if self.reranked is not None:
            table.add_row("", "plain", "re-ranked")
        for name in self.shares():
            table.add_row(name, *(f"{100 * scores.shares()[name]:.1f}" for scores in columns))
        table.add_row("queries", queries)
        table.add_row("gallery", f"{self.num_gallery}")
        table.add_row("images per second", f"{self.images_per_second:,.0f}")
        table.add_row("seconds of ranking", *(f"{scores.rank_seconds:.1f}" for scores in columns))
        table.add_row("seconds", f"{self.embed_seconds + self.rank_seconds:.1f}")
        table.add_row("peak memory, GiB", *(f"{x.peak_bytes / 2**30:.1f}" for x in columns))
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
    rerank: bool = False,
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
        rerank: also score the k-reciprocal re-ranking (k1 = 20, k2 = 6, lambda = 0.3) of the same
            embeddings. It ranks with the whole query set in hand, so it is a number of its own.
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
        Zhong et al. 2017 (re-ranking).
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
    labels = label_columns(query, gallery, features[0].device)
    scores = _timed(lambda: retrieval_metrics(*features, *labels, metric=metric, max_rank=max_rank))
    reranked = None
    if rerank:
        reranked = _timed(
            lambda: distance_metrics(
                k_reciprocal(*features, metric=metric).chunks(), *labels, max_rank=max_rank
            )
        )
    evaluation = Evaluation(
        **vars(scores),
        num_queries=len(query.paths),
        num_gallery=len(gallery.paths),
        embed_seconds=embedded - start,
        reranked=reranked,
        features=(features[0], features[1]) if keep_features else None,
    )
    if console:
        for line in evaluation.log_lines():
            console.print(line, highlight=False)
        console.print(evaluation.table())
    return evaluation


def _timed(score: Callable[[], RetrievalMetrics]) -> Scores:
    start = time.perf_counter()
    found = score()
    return Scores(
        mAP=float(found.mAP),
        cmc=tuple(found.cmc.tolist()),
        mINP=float(found.mINP),
        mAP_trapezoid=float(found.mAP_trapezoid),
        average_precision=found.average_precision.cpu(),
        num_valid_queries=int(found.num_valid_queries),
        rank_seconds=time.perf_counter() - start,
        peak_bytes=_peak_bytes(),
    )


def _peak_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + device
