"""k-reciprocal re-ranking: distances that count shared neighbours, from sparse lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from oskt_ext._arrays import restorer
from oskt_ext._retrieval import check_count, check_features, check_finite, check_metric

OP = "k_reciprocal"


@dataclass(frozen=True, eq=False)
class KReciprocal:
    """The neighbourhoods of all images, from which re-ranked distances are made row by row.

    `distance_metrics(reranked.chunks(), ...)` scores them without a Q x G matrix.

    Args:
        shape: (Q, G).
        lambda_: share of the original distance in the re-ranked one.
        encoding: V' of `k_reciprocal` in sparse rows, queries first: start int64 [N + 1], column
            int32 and weight [start[-1]], columns ascending in a row; weights of a row sum to 1.
        farthest: float64 [Q], the largest original distance of every query.
    """

    shape: tuple[int, int]
    lambda_: float
    encoding: tuple[Any, Any, Any]
    farthest: Any
    _features: tuple[Tensor, Tensor] = field(repr=False)
    _metric: str = field(repr=False)
    _queries: tuple[Tensor, Tensor, Tensor] = field(repr=False)  # start, column, weight
    _gallery: tuple[Tensor, Tensor, Tensor] = field(repr=False)  # start of a column, item, weight
    _farthest: Tensor = field(repr=False)

    def distances(self, start: int = 0, stop: int | None = None) -> Any:
        """Re-ranked distances of the queries start .. stop - 1 to the whole gallery.

        Args:
            start, stop: as in a slice of the queries, 0 <= start < stop <= Q; None is Q.

        Returns:
            [stop - start, G] in the computing type (float64 for float64, else float32), values in
            [0, 1] to rounding, smaller is nearer.

        Raises:
            ValueError: no such queries.

        Notes:
            Costs (stop - start) G D multiply-adds and one packing of the gallery, so take some
            hundreds of queries at a time.
        """
        end = self.shape[0] if stop is None else stop
        if not 0 <= start < end <= self.shape[0]:
            raise ValueError(
                f"KReciprocal.distances: start and stop must be 0 <= start < stop <= "
                f"{self.shape[0]}, got {start} and {end}. Ask for queries that are there."
            )
        queries, gallery = self._features
        starts, column, weight = self._queries
        rows = torch.ops.oskt_ext.k_reciprocal_distances.default(
            queries[start:end], gallery, starts[start : end + 1], column, weight,
            *self._gallery, self._farthest[start:end], self._metric, self.lambda_,
        )  # fmt: skip
        return restorer(self.farthest)(rows)

    def chunks(self, rows: int = 512) -> Iterator[Any]:
        """The distances of all queries, `rows` >= 1 at a time; each chunk takes rows * G."""
        if rows < 1:
            raise ValueError(
                f"KReciprocal.chunks: rows must be at least 1, got {rows}. Pass queries of a chunk."
            )
        for start in range(0, self.shape[0], rows):
            yield self.distances(start, min(start + rows, self.shape[0]))


def k_reciprocal(
    query_features: Any,
    gallery_features: Any,
    *,
    metric: str = "cosine",
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
) -> KReciprocal:
    """Re-rank by k-reciprocal encoding: images are near whose nearest neighbours are the same.

    All N = Q + G images are ranked against all, themselves included, by (distance, index), queries
    before gallery. With N(i, n) the first n of i's ranking and far(i) its largest distance:

        R(i, n) = {j in N(i, n) : i in N(j, n)}
        R*(i)   = R(i, k1 + 1), and R(c, k1/2 + 1) of every c in it of which more than 2/3 lie in it
        V(i, j) = exp(-d(i, j) / far(i)) for j in R*(i), scaled to sum 1; 0 elsewhere
        V'(i)   = mean of V(j) over j in N(i, k2)
        J(q, g) = 1 - sum_j min(V'(q, j), V'(g, j)) / sum_j max(V'(q, j), V'(g, j))
        d*(q, g) = (1 - lambda) J(q, g) + lambda d(q, g) / far(q)

    Re-ranking uses the whole query set at once: report it beside the plain numbers, never as them.

    Args:
        query_features: [Q, D], float64, float32, float16 or bfloat16, finite.
        gallery_features: [G, D], dtype and device of `query_features`.
        metric: what d is: "cosine", 1 - cos of the rows, or "euclidean", |q - g|^2.
        k1: neighbours, self not counted, at least 1; k1/2 is rounded, halves to even. At most N - 1
            count.
        k2: rows of the mean, at least 1; 1 leaves V as it is.
        lambda_: share of the original distance, in [0, 1].

    Returns:
        KReciprocal, on the device of the features and of their kind.

    Raises:
        TypeError: features are not floating point or differ in dtype; k1 or k2 is no int.
        ValueError: as `retrieval_metrics` for features; k1, k2 or lambda_ out of range.

    Notes:
        Not differentiable. Computed in float64 for float64, in float32 else; sums of the encoding
        in float64. Bitwise repeatable for any number of threads. Where all distances of an image
        are 0, d / far is 0.
        Never stores N x N: memory beyond the inputs is a chunk of 512 rows of N scores and, per
        image, k1 + 1 neighbours and a set of at most about 4 k1.
        Time: on the CPU N^2 D / 2 multiply-adds, and Q G D more for the distances.

    Source:
        Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017.
        Differences from the authors' code: ties have a defined order, ranks are those of d itself
        (not of d / far, where rounding makes ties), and weights are kept in the computing type.
        k1 = 20, k2 = 6, lambda = 0.3 are theirs. Some toolkits mix J with another distance.

    Example:
        >>> import torch
        >>> gallery = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
        >>> reranked = k_reciprocal(torch.tensor([[1.1]]), gallery, metric="euclidean", k1=2, k2=1)
        >>> reranked.distances().argsort().tolist()
        [[1, 2, 0, 3]]
    """
    queries, gallery = check_features(OP, query_features, gallery_features)
    check_metric(OP, metric)
    k1, k2 = (
        check_count(OP, name, k, "Published: k1 20, k2 6.") for name, k in (("k1", k1), ("k2", k2))
    )
    if not 0 <= lambda_ <= 1:
        raise ValueError(f"{OP}: lambda_ must be in [0, 1], got {lambda_}. Published: 0.3.")
    check_finite(OP, queries, gallery)
    start, column, weight, farthest = torch.ops.oskt_ext.k_reciprocal.default(
        queries, gallery, metric, k1, k2
    )
    restore = restorer(query_features)
    count = len(queries)
    cut = int(start[count])
    return KReciprocal(
        shape=(count, len(gallery)),
        lambda_=float(lambda_),
        encoding=(restore(start), restore(column), restore(weight)),
        farthest=restore(farthest),
        _features=(queries, gallery),
        _metric=metric,
        _queries=(start[: count + 1], column[:cut], weight[:cut]),
        _gallery=_by_column(start[count:] - cut, column[cut:], weight[cut:], len(start) - 1),
        _farthest=farthest,
    )


def _by_column(
    start: Tensor, column: Tensor, weight: Tensor, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sparse rows as sparse columns, rows ascending in each."""
    rows = torch.arange(len(start) - 1, dtype=torch.int32, device=start.device)
    row = rows.repeat_interleave(start.diff())
    order = column.sort(stable=True).indices
    ends = torch.bincount(column, minlength=columns).cumsum(0)
    return torch.cat([ends.new_zeros(1), ends]), row[order], weight[order]


@torch.library.register_fake("oskt_ext::k_reciprocal")
def _(
    query_features: Tensor, gallery_features: Tensor, metric: str, k1: int, k2: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = query_features.shape[0] + gallery_features.shape[0]
    entries = torch.library.get_ctx().new_dynamic_size()
    return (
        query_features.new_empty(rows + 1, dtype=torch.int64),
        query_features.new_empty(entries, dtype=torch.int32),
        query_features.new_empty(entries, dtype=_computing(query_features)),
        query_features.new_empty(query_features.shape[0], dtype=torch.float64),
    )


@torch.library.register_fake("oskt_ext::k_reciprocal_distances")
def _(
    query_features: Tensor,
    gallery_features: Tensor,
    start: Tensor,
    column: Tensor,
    weight: Tensor,
    item_start: Tensor,
    item: Tensor,
    item_weight: Tensor,
    farthest: Tensor,
    metric: str,
    lambda_: float,
) -> Tensor:
    shape = (query_features.shape[0], gallery_features.shape[0])
    return query_features.new_empty(shape, dtype=_computing(query_features))


def _computing(features: Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)
