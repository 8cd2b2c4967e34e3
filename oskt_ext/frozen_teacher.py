"""The refining loss against a teacher that does not change: the means of its clusters suffice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oskt_ext._arrays import as_tensor, check_float
from oskt_ext.refining_loss import RefiningItem, RefiningPlan, check_teacher, refining_loss


class FrozenTeacher:
    """The refining loss in closed form, for many evaluations against one teacher.

    loss = scale * (within + sum over items l of weight_l * sum over k of n_k |mean_k - C_l[k]|^2),
    the sum over members n of k of w_n |T_l[n] - C_l[k]|^2 around their weighted mean: n_k is the
    sum of the members' row_weights (their number where they have none) and within the loss of the
    means themselves. An evaluation reads the chain and as many means in place of the teacher, with
    the kernel of refining_loss: for ResNet-50 and a chain of 1/8, a third of the bytes.

    Args:
        teacher, plan: as for refining_loss; no tensor requires a gradient. Read here and not kept.

    Attributes:
        means: a tensor (M, D) per item, dtype and device of the teacher; 0 for an empty cluster.
        plan: the RefiningPlan of the means.
        within: the loss of a chain that holds the means, at scale 1.

    Raises:
        TypeError, ValueError: as refining_loss; or a tensor requires a gradient.

    Notes:
        Means are rounded once, from float64, to the teacher's dtype, |error| <= u |mean_k| with u
        half its epsilon (2^-53 for float64, 2^-24 for float32). Beside the rounding of results
        themselves, the gradient of the chain differs from refining_loss by at most
        2 scale weight_l n_k u |mean_k| an element, and the loss by the sum over the elements of the
        chain of 2 scale weight_l n_k u |mean_k| |mean_k - C_k|. Bitwise repeatable.

    Source: the decomposition of a sum of squares about a mean (Huygens, Steiner). Difference to the
    published refinement: there the teacher is trained along and needs a gradient.

    Example:
        >>> plan = RefiningPlan([RefiningItem([0, 1, 0], clusters=2, row_length=2, offset=0)])
        >>> teacher = FrozenTeacher([torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])], plan)
        >>> teacher.means[0].tolist(), teacher.within
        ([[3.0, 4.0], [3.0, 4.0]], 16.0)
        >>> teacher.refining_loss(torch.tensor([3.0, 5.0, 3.0, 4.0])).item()
        18.0
    """

    def __init__(self, teacher: Sequence[Any], plan: RefiningPlan) -> None:
        tensors = [as_tensor("FrozenTeacher", f"teacher[{i}]", t) for i, t in enumerate(teacher)]
        for i, tensor in enumerate(tensors):
            check_float("FrozenTeacher", f"teacher[{i}]", tensor)
            if tensor.requires_grad:
                raise ValueError(
                    f"FrozenTeacher: teacher[{i}] must not require a gradient, got one that does. "
                    "Pass teacher[i].detach(), or call refining_loss, which gives it one."
                )
        dtype = tensors[0].dtype if tensors else torch.float32
        check_teacher("FrozenTeacher", tensors, plan, dtype)
        self.means: list[Tensor] = []
        self.within = 0.0
        items: list[RefiningItem] = []
        for tensor, item in zip(tensors, plan.items):
            members = np.bincount(item.labels, item.row_weights, minlength=item.clusters)
            counts = members.astype(np.float64)
            with torch.inference_mode(False):  # its tensors would serve no training later
                rows = tensor.clone() if tensor.is_inference() else tensor
                mean, within = _summary(rows.double(), item, counts, dtype)
            self.means.append(mean)
            self.within += item.weight * within
            items.append(replace(item, labels=np.arange(item.clusters), row_weights=counts))
        self.plan = RefiningPlan(items).to(plan.table.device)

    def refining_loss(self, chain: Any, *, scale: float = 1.0) -> Any:
        """refining_loss(teacher, chain, plan, scale=scale), differentiable once in `chain`.

        Args, returns and errors are those of refining_loss.
        """
        return refining_loss(self.means, chain, self.plan, scale=scale) + scale * self.within


def _summary(
    rows: Tensor, item: RefiningItem, counts: NDArray[np.float64], dtype: torch.dtype
) -> tuple[Tensor, float]:
    """The weighted means of the clusters, in `dtype`, and the squares around them."""
    alone = RefiningPlan([replace(item, offset=0, weight=1.0)]).to(rows.device)
    origin = torch.zeros(alone.chain_numel, dtype=rows.dtype, device=rows.device)
    # At the origin the gradient is -2 times the sum of every cluster's rows, in a fixed order.
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(
            refining_loss([rows], origin.requires_grad_(), alone), origin
        )
    total = -gradient.reshape(item.clusters, item.row_length) / 2
    divisor = torch.from_numpy(np.where(counts > 0, counts, 1.0)).to(rows.device)
    mean = (total / divisor[:, None]).to(dtype)
    return mean, refining_loss([rows], mean.double().flatten(), alone).item()
