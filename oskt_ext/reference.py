"""The definition of every operator in plain PyTorch: slow, readable, any device.

The compiled operators are tested against these, and nothing here calls them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oskt_ext.expand import ExpansionPlan
from oskt_ext.refining_loss import RefiningPlan


def expand(chain: Tensor, plan: ExpansionPlan) -> Tensor:
    """Per item: dense row matrix @ source @ dense column matrix, summed in float64 or float32."""
    accumulate = torch.float64 if chain.dtype == torch.float64 else torch.float32
    start, parts = 0, []
    for rows, columns, area in plan.items:
        shape = (rows.size, columns.size, area)
        source = chain[start : start + shape[0] * shape[1] * area].reshape(shape).to(accumulate)
        row_matrix, column_matrix = (m.dense().to(source) for m in (rows, columns))
        summed = torch.einsum("is,sto->ito", row_matrix, source)
        parts.append(torch.einsum("jt,ito->ijo", column_matrix, summed).flatten())
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
