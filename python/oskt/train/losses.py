"""The losses of re-identification training; every one is computed in float32, also in autocast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from oskt.train.recipe import Recipe

_MIN_SQ_DIST = 1e-12  # below it a distance is constant, so that sqrt has a gradient at 0


def smoothed_cross_entropy(logits: Tensor, ids: Tensor, *, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy against (1 - s) * one-hot + s / classes, averaged over the batch.

    Args:
        logits: [B, classes], floating point.
        ids: [B], int64, 0 <= id < classes; moved to the device of `logits`.
        smoothing: s in [0, 1).

    Returns:
        float32 scalar, differentiable in `logits`.

    Raises:
        ValueError: shapes that do not fit, or a model without a classifier.

    Source:
        Szegedy et al. 2016, section 7; the uniform share includes the true class, as there.

    Example:
        >>> smoothed_cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).item()
        1.3862943649291992
    """
    if logits.dim() != 2 or logits.shape[1] == 0 or ids.shape != logits.shape[:1]:
        raise ValueError(
            "smoothed_cross_entropy: logits and ids must be of shapes (B, classes > 0) and (B,), "
            f"got {tuple(logits.shape)} and {tuple(ids.shape)}. "
            "Build the model with num_classes = the number of training identities."
        )
    ids = ids.to(logits.device, non_blocking=True)
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(logits.float(), ids, label_smoothing=smoothing)


def batch_hard_triplet(
    feature: Tensor,
    ids: Tensor,
    *,
    margin: float | None = 0.3,
    hard_factor: float = 0.0,
) -> Tensor:
    """Triplet loss of every anchor with its farthest positive and its nearest negative.

    mean over a of max(0, margin + (1 + h) d(a, p) - (1 - h) d(a, n)), or with margin None the soft
    form log(1 + exp((1 + h) d(a, p) - (1 - h) d(a, n))); d is Euclidean, the feature as it lies
    (not normalised). Ties go to the lower index.

    Args:
        feature: [B, F], floating point, the feature before BNNeck.
        ids: [B], integer. On the CPU the check of the batch costs no synchronisation.
        margin: distance by which a negative must be farther, >= 0; None for the soft form.
        hard_factor: h in [0, 1): makes positives look farther and negatives nearer.

    Returns:
        float32 scalar, differentiable in `feature`; gradients reach the chosen pairs only.

    Raises:
        ValueError: shapes that do not fit, one identity in the batch, or an identity seen once.

    Notes:
        Memory B * B for the distances, which carry no gradient, and 2 * B * F for the pairs.
        In data-parallel training the batch is that of one process.

    Source:
        Hermans et al. 2017, eq. 5 (batch hard, soft margin). hard_factor: the published code of
        OSKT (0.2). Difference: distances come from differences, not from |a|^2 + |b|^2 - 2ab,
        which loses all digits of near pairs.

    Example:
        >>> feature = torch.tensor([[0.0], [1.0], [3.0], [3.0]])
        >>> batch_hard_triplet(feature, torch.tensor([7, 7, 8, 8]), margin=1.5).item()
        0.125
    """
    if feature.dim() != 2 or ids.shape != feature.shape[:1]:
        raise ValueError(
            "batch_hard_triplet: feature and ids must be of shapes (B, F) and (B,), got "
            f"{tuple(feature.shape)} and {tuple(ids.shape)}. Pass one row and one id per image."
        )
    seen, count = torch.unique(ids, return_counts=True)
    if len(seen) < 2 or int(count.min()) < 2:
        raise ValueError(
            "batch_hard_triplet: ids must hold 2 identities or more with 2 images or more each, "
            f"got {len(seen)} identities of {sorted(count.tolist())} images. "
            "Draw the batch with identities >= 2 and instances >= 2."
        )
    ids = ids.to(feature.device, non_blocking=True)
    with torch.autocast(feature.device.type, enabled=False):
        feature = feature.float()
        with torch.no_grad():
            distance = torch.cdist(feature, feature, compute_mode="donot_use_mm_for_euclid_dist")
            same = ids[:, None] == ids[None, :]
            positive = distance.masked_fill(~same, -torch.inf).argmax(1)
            negative = distance.masked_fill(same, torch.inf).argmin(1)
        # index_select, not indexing: the latter's CPU backward adds in the order of its threads.
        far = _distance(feature, feature.index_select(0, positive)) * (1 + hard_factor)
        near = _distance(feature, feature.index_select(0, negative)) * (1 - hard_factor)
        if margin is None:
            return F.softplus(far - near).mean()
        return F.relu(far - near + margin).mean()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(1).clamp(min=_MIN_SQ_DIST).sqrt()


def center_loss(feature: Tensor, ids: Tensor, centers: Tensor) -> Tensor:
    """Mean squared distance of each feature to the center of its identity.

    Args:
        feature: [B, F], floating point.
        ids: [B], int64, 0 <= id < classes.
        centers: [classes, F], a parameter. Its rate is that of its own SGD (0.5): the training
            loop divides its gradient by the weight of this loss, so that weight and rate are
            independent, as Bag of Tricks does.

    Returns:
        float32 scalar, differentiable in `feature` and `centers`.

    Source:
        Wen et al. 2016, eq. 2, with a mean over the batch and without the factor 1/2, as in the
        code of Luo et al. 2019.

    Example:
        >>> center_loss(torch.ones(2, 3), torch.tensor([0, 1]), torch.zeros(2, 3)).item()
        3.0
    """
    ids = ids.to(feature.device, non_blocking=True)
    with torch.autocast(feature.device.type, enabled=False):
        return (feature.float() - centers.index_select(0, ids).float()).square().sum(1).mean()


def distillation(student: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)), averaged over the batch.

    Args:
        student: logits [B, classes].
        teacher: logits [B, classes]; detached here, the teacher learns nothing from its student.
        temperature: T > 0. A weight of T * T keeps the gradient's scale when T changes.

    Returns:
        float32 scalar, differentiable in `student`.

    Source:
        Hinton et al. 2015, section 2; not part of OSKT.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0]])
        >>> distillation(logits, logits).item()
        0.0
    """
    with torch.autocast(student.device.type, enabled=False):
        return F.kl_div(
            F.log_softmax(student.float() / temperature, 1),
            F.log_softmax(teacher.detach().float() / temperature, 1),
            log_target=True,
            reduction="batchmean",
        )


def similarity_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all pairs of images of (cos(s_i, s_j) - cos(t_i, t_j))^2: alike ranking, whatever
    the lengths of the two features.

    Args:
        student: [B, F], features before BNNeck.
        teacher: [B, F'], of the same images; detached here.

    Returns:
        float32 scalar, differentiable in `student`.

    Source:
        Tung and Mori 2019, eq. 3-5 (similarity-preserving distillation). Difference: cosines in
        place of row-normalised inner products, because retrieval ranks by cosine.

    Example:
        >>> feature = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> similarity_distillation(2 * feature, feature).item()
        0.0
    """
    with torch.autocast(student.device.type, enabled=False):
        own, target = (F.normalize(f.float(), dim=1) for f in (student, teacher.detach()))
        return (own @ own.T - target @ target.T).square().mean()


class ReIDLoss(nn.Module):
    """Label-smoothed cross-entropy + triplet + weight * center: the loss of one network.

    Args:
        recipe: names the terms and their weights.
        num_classes: training identities.
        feature_dim: length F of the feature before BNNeck.

    `forward(feature, logits, ids)` returns the total and its parts as detached float32 scalars:
    "id", "triplet", "center" (those in use, unweighted) and "accuracy" of the classifier in [0, 1].

    Source:
        Luo et al. 2019 (Bag of Tricks), section 3.6; OSKT_CNN adds the hard factor.

    Example:
        >>> from oskt.train.recipe import RECIPES
        >>> loss = ReIDLoss(RECIPES["bot"], num_classes=2, feature_dim=3)
        >>> total, parts = loss(torch.zeros(4, 3), torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]))
        >>> sorted(parts)
        ['accuracy', 'center', 'id', 'triplet']
    """

    def __init__(self, recipe: Recipe, num_classes: int, feature_dim: int) -> None:
        super().__init__()
        self.recipe = recipe
        if recipe.center_weight:
            # A fixed generator: the centers of a run depend on nothing but their shape.
            generator = torch.Generator().manual_seed(recipe.seed)
            self.centers = nn.Parameter(torch.randn(num_classes, feature_dim, generator=generator))

    def forward(
        self, feature: Tensor, logits: Tensor, ids: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        recipe = self.recipe
        if not ids.is_cuda and not 0 <= int(ids.min()) <= int(ids.max()) < logits.shape[1]:
            raise ValueError(  # a GPU would say it after the step, without the number
                f"train: ids must be from 0 to {logits.shape[1] - 1}, the model's classes, got "
                f"{int(ids.min())} to {int(ids.max())}. "
                "Build the model with num_classes = the training identities, counted from 0."
            )
        total = smoothed_cross_entropy(logits, ids, smoothing=recipe.label_smoothing)
        parts = {"id": total.detach()}
        if recipe.triplet != "none":
            margin = recipe.margin if recipe.triplet == "hard" else None
            triplet = batch_hard_triplet(
                feature, ids, margin=margin, hard_factor=recipe.hard_factor
            )
            total = total + triplet
            parts["triplet"] = triplet.detach()
        if recipe.center_weight:
            center = center_loss(feature, ids, self.centers)
            total = total + recipe.center_weight * center
            parts["center"] = center.detach()
        hits = logits.detach().argmax(1) == ids.to(logits.device, non_blocking=True)
        parts["accuracy"] = hits.float().mean()
        return total, parts
