"""Model Folding: the teacher's channels clustered at the student's width, merged, repaired."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oskt.baselines.starts import complete
from oskt.chain import WeightChain
from oskt.chain.verification import TOLERANCE, random_inputs, randomised
from oskt.coupling import Coupling
from oskt.coupling.clustering import owned
from oskt.widths import Clustering


def folding(
    teacher: nn.Module,
    coupling: Coupling,
    widths: Mapping[str, int],
    *,
    seed: int = 0,
    approximate_repair: bool = False,
) -> nn.Module:
    """A student whose channels are means of clusters of the teacher's: rows averaged, columns
    summed.

    A channel is clustered by everything that it owns: the rows that write it, its norm parameters
    and the columns that read it, side by side as they are. Folding at width n is the published
    chain of width n at n; the merge is that of WeightChain.

    An average varies less than its members, so the norm after it divides by too much. Two repairs:
    REPAIR measures the statistics on a few unlabelled batches (`oskt.students.recalibrate` on the
    result). The approximate one, Fold-AR, needs no data: rows are first divided by the deviation
    of their norm, and the mean of n channels is taken to have the variance (1 + (n - 1) c) / n, c
    being the mean cosine between what its channels own.

    Args:
        teacher: the trained network; left untouched.
        coupling: its channel groups.
        widths: group -> channels; groups not named keep the teacher's width.
        seed: not read: k-means starts from Ward's partition.
        approximate_repair: Fold-AR; False leaves the means of the members' statistics, to be
            measured.

    Returns:
        The student, on the teacher's device, in evaluation mode.

    Raises:
        ValueError: coupling of another network, widths out of range, or with Fold-AR a layer before
            a norm that something else reads, too.

    Source:
        Wang et al., ICLR 2025 (arXiv 2502.10216), and the authors' code. Differences: k-means
        starts from Ward's partition, not from ten random ones; Fold-AR's rescaling of what is
        clustered by quartiles is left out; it puts 1 / sqrt(v) into gamma and 1 into the variance,
        we v into the variance: the same function, and gamma keeps its meaning in training. A norm
        that follows no weight (BNNeck, which it has none of) keeps the mean of its members.

    Example:
        >>> from oskt.coupling.grouping import trace_coupling
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> student = folding(net, trace_coupling(net, torch.zeros(2, 3)), {"0": 2})
        >>> torch.allclose(student[1].weight.sum(1), net[1].weight.sum(1))
        True
    """
    sizes = complete("folding", teacher, coupling, widths)
    source = teacher
    if approximate_repair:
        _check_normalised(teacher, coupling)
        source = _normalised(teacher, coupling)
    meta = {"kind": "oskt", "spec": getattr(teacher, "spec", None)}
    chain = WeightChain.of_clusters(
        source, coupling, sizes, meta, method="kmeans", rows="owned", seed=seed
    )
    student = chain.student(widths=sizes)
    if approximate_repair:
        _repair(student, coupling, chain.clusterings, source.state_dict())
    return student


def _normalised(teacher: nn.Module, coupling: Coupling) -> nn.Module:
    """An equal network in which every norm after a weight has variance 1 (its eps included)."""
    equal = copy.deepcopy(teacher)
    before, after = teacher.state_dict(), equal.state_dict()
    for weight, (_, _, mean, variance) in coupling.norms.items():
        if mean is None or variance is None:
            continue
        eps = _eps(teacher, variance)
        sigma = (before[variance] + eps).sqrt()
        bias = weight.removesuffix("weight") + "bias"
        for name in (weight, mean, *([bias] if bias in before else [])):
            shape = (-1, *[1] * (before[name].dim() - 1))
            after[name].copy_(before[name] / sigma.view(shape))
        after[variance].fill_(1 - eps)
    return equal


def _check_normalised(teacher: nn.Module, coupling: Coupling) -> None:
    """Whether that network is equal: a coupling names the norm after a weight, not who else reads
    it, such as the residual of a pre-activation block. On random numbers, in float64."""
    images = random_inputs(coupling, torch.Generator().manual_seed(0), batch=2)
    trial = randomised(teacher, images)
    with torch.no_grad():
        expected, found = trial(*images), _normalised(trial, coupling)(*images)
    deviation = float((found - expected).abs().max() / expected.abs().max())
    if deviation > TOLERANCE:
        raise ValueError(
            "folding: approximate_repair must be of a network in which nothing but the norm reads "
            f"the layer before it, got one that divides otherwise (deviation {deviation:.1e}). "
            "Leave it False, and measure the statistics: oskt.students.recalibrate."
        )


def _repair(
    student: nn.Module,
    coupling: Coupling,
    clusterings: Mapping[str, Clustering],
    tensors: Mapping[str, Tensor],
) -> None:
    """Set the variance of every norm after a weight to that of the mean of its cluster."""
    folded = student.state_dict()
    for _, _, _, variance in coupling.norms.values():
        runs = coupling.layouts[variance].rows if variance else ()
        if variance and len(runs) == 1 and runs[0][0] in clusterings:
            group = runs[0][0]
            rows = owned(coupling, tensors, group)
            predicted = _variance_of_means(rows, clusterings[group])
            folded[variance].copy_((predicted - _eps(student, variance)).clamp_min(0))


def _variance_of_means(rows: Tensor, clustering: Clustering) -> Tensor:
    """[M]: for every cluster the variance of the mean of its n members, each of variance 1, whose
    pairwise correlation is on average c, the mean cosine of their rows [N, D].

    (1 + (n - 1) c) / n = |sum of the rows at length 1|^2 / n^2, as that square holds every ordered
    pair, and every row with itself.
    """
    members = F.one_hot(torch.from_numpy(clustering.labels)).T.to(rows.device, torch.float64)
    sums = members @ F.normalize(rows.double(), dim=1)
    return sums.square().sum(1) / members.sum(1).square()


def _eps(module: nn.Module, statistic: str) -> float:
    return float(module.get_submodule(statistic.rpartition(".")[0]).eps)  # type: ignore[arg-type]
