"""Which channels of a group become one chain row: rows to cluster, and the clusterings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

import oskt_ext
from oskt.coupling import ChannelGroup, Coupling
from oskt.widths import Clustering

ROWS = ("folded", "published", "published-cosine")
METHODS = ("kmeans", "ward", "random")


def cluster_channels(
    coupling: Coupling,
    tensors: Mapping[str, Tensor],
    clusters: Mapping[str, int],
    *,
    rows: str = "folded",
    method: str = "kmeans",
    seed: int = 0,
) -> tuple[dict[str, Clustering], dict[str, float]]:
    """Cluster the channels of every free group, all in one batched k-means call.

    Args:
        coupling: of the teacher.
        tensors: the teacher's state dict.
        clusters: group -> M, in whole blocks.
        rows: what is clustered. "folded": each writer's rows and bias with the batch norm that
            follows folded in, each writer's matrix scaled to unit mean square row norm, so that
            neither scales that the norm hides nor large layers decide. "published": raw rows side
            by side (the published CNN code). "published-cosine": per-matrix unit rows (its ViT).
        method: "kmeans" (Ward start, Lloyd, Hartigan moves), "ward" (the published code's
            agglomeration) or "random" (an ablation).
        seed: of the random method.

    Returns:
        group -> Clustering, and group -> share of the rows' variance that the clusters lose, 0..1.
    """
    if rows not in ROWS or method not in METHODS:
        raise ValueError(
            f"cluster_channels: rows must be one of {ROWS} and method one of {METHODS}, got "
            f"rows={rows!r}, method={method!r}. Choose from the lists."
        )
    names = [g for g in coupling.free if clusters[g] < coupling.groups[g].size]
    problems, counts = [], []
    for name in names:
        group = coupling.groups[name]
        matrix = _rows(coupling, tensors, group, rows)
        problems += [part.contiguous() for part in matrix.chunk(group.blocks)]
        counts += [clusters[name] // group.blocks] * group.blocks
    labels, inertia = _cluster(problems, counts, method, seed) if problems else ([], [])
    spread = [float((p - p.mean(0)).square().sum()) for p in problems]
    clusterings, loss, start = {}, {}, 0
    for name in names:
        blocks = coupling.groups[name].blocks
        step = clusters[name] // blocks
        parts = [labels[start + b] + b * step for b in range(blocks)]
        clusterings[name] = Clustering(np.concatenate(parts).astype(np.int64), blocks)
        mine = slice(start, start + blocks)
        loss[name] = sum(inertia[mine]) / max(sum(spread[mine]), 1e-300)
        start += blocks
    for name, group in coupling.free.items():
        if name not in clusterings:
            clusterings[name] = Clustering(np.arange(group.size), group.blocks)
    return clusterings, loss


def _cluster(
    problems: list[Tensor], counts: list[int], method: str, seed: int
) -> tuple[list[np.ndarray], list[float]]:
    """Labels and inertia of every problem."""
    if method == "random":
        rng = np.random.default_rng(seed)
        labels = [rng.permutation(np.arange(len(p)) % k) for p, k in zip(problems, counts)]
        means = [
            torch.stack([p[torch.from_numpy(part == c)].mean(0) for c in range(k)])[part]
            for p, part, k in zip(problems, labels, counts)
        ]
        return labels, [float((p - m).square().sum()) for p, m in zip(problems, means)]
    result = oskt_ext.kmeans(
        problems, counts, init="ward", max_iter=100 if method == "kmeans" else 0
    )
    return [part.cpu().numpy() for part in result.labels], result.inertia.tolist()


def _rows(
    coupling: Coupling, tensors: Mapping[str, Tensor], group: ChannelGroup, kind: str
) -> Tensor:
    """The (N, D) matrix of a group: its writers' rows side by side."""
    parts = []
    for writer in group.writers:
        layout = coupling.layouts[writer]
        if layout.rows != ((group.name, layout.rows[0][1]),):
            continue  # a writer of several groups cannot be cut by rows alone
        matrix = tensors[writer].detach().reshape(group.size, -1)
        matrix = matrix.double() if matrix.dtype == torch.float64 else matrix.float()
        if kind == "published-cosine":
            matrix = torch.nn.functional.normalize(matrix, dim=1)
        elif kind == "folded":
            matrix = _fold(coupling, tensors, writer, matrix)
            matrix = matrix / matrix.square().sum(1).mean().sqrt().clamp_min(1e-12)
        parts.append(matrix)
    if not parts:  # written by no weight alone: nothing but the order of channels is known
        return torch.eye(group.size)
    return torch.cat(parts, dim=1)


def _fold(coupling: Coupling, tensors: Mapping[str, Tensor], writer: str, matrix: Tensor) -> Tensor:
    """Rows times gamma/sigma, with the folded bias as one more column."""
    names = coupling.norms.get(writer)
    bias = tensors.get(writer.removesuffix("weight") + "bias")
    shift = torch.zeros(len(matrix)) if bias is None else bias.detach()
    shift = shift.to(matrix).reshape(-1)
    if names is None or None in names:
        return torch.cat([matrix, shift[:, None]], dim=1)
    gamma, beta, mean, variance = (tensors[str(n)].detach().to(matrix) for n in names)
    scale = gamma / (variance + 1e-5).sqrt()
    return torch.cat([matrix * scale[:, None], ((shift - mean) * scale + beta)[:, None]], dim=1)
