"""The definition of every operator in plain PyTorch: slow, readable, any device.

The compiled operators are tested against these, and nothing here calls them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oskt_ext.expand import ExpansionPlan
from oskt_ext.refining_loss import RefiningPlan
from oskt_ext.retrieval_metrics import RetrievalMetrics


def expand(chain: Tensor, plan: ExpansionPlan) -> Tensor:
    """Per item: dense row matrix @ source @ dense column matrix, summed in float64 or float32."""
    accumulate = torch.float64 if chain.dtype == torch.float64 else torch.float32
    start, parts = 0, []
    for rows, columns, area in plan.items:
        shape = (rows.size, columns.size, area)
        source = chain[start : start + shape[0] * shape[1] * area].reshape(shape).to(accumulate)
        row_matrix, column_matrix = (m.dense().to(source) for m in (rows, columns))
        parts.append(torch.einsum("is,jt,sto->ijo", row_matrix, column_matrix, source).flatten())
        start += source.numel()
    return torch.cat(parts).to(chain.dtype)


def refining_loss(
    teacher: list[Tensor], chain: Tensor, plan: RefiningPlan, *, scale: float = 1.0
) -> Tensor:
    """scale * sum over weights l of weight_l * sum over rows k of |T_k - C_label(k)|^2."""
    total = chain.new_zeros((), dtype=torch.float64)
    for tensor, item in zip(teacher, plan.items):
        rows = tensor.reshape(len(item.labels), -1).double()
        clusters = chain[item.offset : item.offset + item.clusters * rows.shape[1]].double()
        labels = torch.as_tensor(item.labels, device=chain.device, dtype=torch.long)
        residual = rows - clusters.reshape(item.clusters, -1)[labels]
        total = total + item.weight * residual.square().sum()
    return (scale * total).to(torch.promote_types(chain.dtype, torch.float32))


def retrieval_metrics(
    query_features: Tensor,
    gallery_features: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_cameras: Tensor,
    gallery_cameras: Tensor,
    *,
    metric: str = "cosine",
    max_rank: int = 50,
) -> RetrievalMetrics:
    """Whole distance matrix, stable sort, then precision at every hit; float64 for float64."""
    accumulate = torch.float64 if query_features.dtype == torch.float64 else torch.float32
    queries, gallery = (f.detach().to(accumulate) for f in (query_features, gallery_features))
    if metric == "cosine":
        queries, gallery = (
            torch.nan_to_num(f / torch.linalg.vector_norm(f, dim=1, keepdim=True))
            for f in (queries, gallery)
        )
        distance = 1 - queries @ gallery.T
    else:
        distance = gallery.square().sum(1) - 2 * queries @ gallery.T
    found = torch.zeros(max_rank, dtype=torch.int64)
    rows = torch.full((3, len(queries)), torch.nan, dtype=torch.float64)
    for q, order in enumerate(distance.argsort(dim=1, stable=True)):
        ids, cameras = gallery_ids[order], gallery_cameras[order]
        junk = (ids == -1) | ((ids == query_ids[q]) & (cameras == query_cameras[q]))
        hits = (ids[~junk] == query_ids[q]).cpu()
        ranks = (hits.nonzero().flatten() + 1).double()
        if len(ranks) == 0:
            continue
        k = torch.arange(1, len(ranks) + 1).double()
        before = torch.where(ranks == 1, 1.0, (k - 1) / (ranks - 1).clamp(min=1))
        found[int(ranks[0]) - 1 :] += 1
        rows[0, q] = (k / ranks).mean()
        rows[1, q] = len(ranks) / ranks[-1]
        rows[2, q] = ((k / ranks + before) / 2).mean()
    count = int((~rows[0].isnan()).sum())
    precision, inverse_penalty, trapezoid = rows.to(query_features.device)
    return RetrievalMetrics(
        cmc=found.to(query_features.device).double() / count,
        mAP=float(precision.nanmean()),
        mINP=float(inverse_penalty.nanmean()),
        num_valid_queries=count,
        average_precision=precision,
        mAP_trapezoid=float(trapezoid.nanmean()),
        trapezoid_average_precision=trapezoid,
    )
