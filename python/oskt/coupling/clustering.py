"""Which channels of a group go together, and which of them count most: clusterings, nestings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import oskt_ext
from oskt.coupling import AxisRuns, ChannelGroup, Coupling
from oskt.widths import Clustering
from oskt.widths.merge_tree import MergeTree

ROWS = ("folded", "owned", "published", "published-cosine")
METHODS = ("kmeans", "ward", "random")
NESTINGS = ("saliency", "magnitude", "ward", "random")


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
            neither scales that the norm hides nor large layers decide. "owned": as it is, all that
            a channel owns: rows, norm parameters, biases and the columns that read it (Model
            Folding). "published": raw rows side by side (the published CNN code).
            "published-cosine": per-matrix unit rows (its ViT).
        method: "kmeans" (Ward start, Lloyd, Hartigan moves), "ward" (the published code's
            agglomeration) or "random" (an ablation).
        seed: of the random method.

    Returns:
        group -> Clustering, and group -> share of the rows' variance that the clusters lose, 0..1.

    Raises:
        ValueError: unknown method or rows.
    """
    if method not in METHODS:
        raise ValueError(
            f"cluster_channels: method must be one of {METHODS}, got {method!r}. Choose one."
        )
    names = [g for g in coupling.free if clusters[g] < coupling.groups[g].size]
    problems = _problems(coupling, tensors, names, rows)
    counts: list[int] = []
    for name in names:
        blocks = coupling.groups[name].blocks
        counts += [clusters[name] // blocks] * blocks
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


def nest_channels(
    coupling: Coupling,
    tensors: Mapping[str, Tensor],
    narrowest: Mapping[str, int],
    *,
    method: str = "magnitude",
    rows: str = "folded",
    seed: int = 0,
    saliency: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, MergeTree], dict[str, list[float]]]:
    """The nesting of every free group's channels.

    Args:
        coupling, tensors: as for cluster_channels.
        narrowest: group -> the narrowest width that will be trained, in whole blocks.
        method: "magnitude": students have the most important channels, clusters do not merge.
            A channel's importance is the mean, over the weights that write or read it and the
            norms over it, of its squared norm there, each over the mean of all channels (DepGraph's
            group magnitude, Fang et al. 2023, without its sparsity training). "saliency": the
            same sums over `saliency` in place of the weights. "ward": Ward's merge tree of the
            rows, students merge clusters. "random": an order drawn by `seed`, an ablation.
        rows: of "ward": as for cluster_channels.
        saliency: of "saliency": parameter -> what each number is worth (oskt.train.saliency).

    Returns:
        group -> MergeTree, and group -> what position 1, 2, ... of each block adds, as a share of
        all positions but the first: of the importance (of "random": of the numbers drawn), or of
        the sum of squares that a split takes off.

    Raises:
        ValueError: unknown method or rows, "saliency" without it, of another network or with NaN.
    """
    if method not in NESTINGS:
        raise ValueError(
            f"nest_channels: method must be one of {NESTINGS}, got {method!r}. Choose one."
        )
    if method == "ward":
        return _ward_trees(coupling, tensors, narrowest, rows)
    if method == "saliency":
        tensors = {**tensors, **_checked(saliency, tensors)}
    rng = np.random.default_rng(seed)
    trees, adds = {}, {}
    for name, group in coupling.free.items():
        score = rng.random(group.size) if method == "random" else _importance(
            coupling, tensors, group
        )  # fmt: skip
        score = score.reshape(group.blocks, -1)
        order = np.argsort(-score, axis=1, kind="stable")
        parent = np.zeros_like(order)
        parent[:, 0] = -1
        trees[name] = MergeTree(
            order.ravel(), parent.ravel(), np.ones(group.size, dtype=np.int64), narrowest[name],
            group.blocks, merges=False,
        )  # fmt: skip
        adds[name] = _shares(np.take_along_axis(score, order, axis=1)[:, 1:])
    return trees, adds


def _checked(
    saliency: Mapping[str, Tensor] | None, tensors: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    if saliency is None:
        raise ValueError(
            "nest_channels: saliency must be given for method 'saliency', got None. "
            "Measure it on training images with oskt.train.saliency, or take 'magnitude'."
        )
    for name, worth in saliency.items():
        expected = tuple(tensors[name].shape) if name in tensors else None
        if expected != tuple(worth.shape):
            raise ValueError(
                f"nest_channels: saliency must be of the teacher's parameters, got {name} of shape "
                f"{tuple(worth.shape)}, there {expected}. Measure it on this teacher."
            )
        if not bool(torch.isfinite(worth).all()):
            raise ValueError(
                f"nest_channels: saliency must be finite, got NaN or Inf in {name}. "
                "Use a teacher and images whose loss is a number."
            )
    return saliency


def _importance(
    coupling: Coupling, tensors: Mapping[str, Tensor], group: ChannelGroup
) -> NDArray[np.float64]:
    """[N], mean relative squared norm of each channel over the weights and norms that hold it.

    Not counted: biases, tokens, grouped convolutions and columns after a flatten. Where nothing is
    left, all channels count the same.
    """
    parts = []
    for layout in coupling.layouts.values():
        if layout.role not in ("weight", "vector") or layout.groups > 1 or layout.dim:
            continue
        for dim, runs in enumerate((layout.rows, layout.columns)):
            for start, area in _stretches(coupling, runs, group.name):
                if area > 1 or layout.name.endswith("bias"):
                    continue
                values = tensors[layout.name].detach().transpose(0, dim)
                rows = values[start : start + group.size].double().reshape(group.size, -1)
                if layout.role == "vector" and rows.shape[1] > 1:
                    continue  # one number per channel and place
                squares = rows.square().sum(1).cpu().numpy()
                parts.append(squares / max(squares.mean(), 1e-300))
    return np.mean(parts, axis=0) if parts else np.ones(group.size)


def _shares(values: NDArray[np.float64]) -> list[float]:
    shares: list[float] = (values / max(values.sum(), 1e-300)).round(6).ravel().tolist()
    return shares


def _ward_trees(
    coupling: Coupling, tensors: Mapping[str, Tensor], narrowest: Mapping[str, int], rows: str
) -> tuple[dict[str, MergeTree], dict[str, list[float]]]:
    """Ward's merge tree of every free group, all in one batched call."""
    names = list(coupling.free)
    trees = oskt_ext.merge_trees(_problems(coupling, tensors, names, rows))
    result, heights, start = {}, {}, 0
    for name in names:
        blocks = coupling.groups[name].blocks
        mine = slice(start, start + blocks)
        order, parent, height = (
            np.concatenate([t.cpu().numpy() for t in part[mine]])
            for part in (trees.order, trees.parent, trees.height)
        )
        order, parent = order.astype(np.int64), parent.astype(np.int64)
        result[name] = MergeTree(order, parent, np.ones_like(order), narrowest[name], blocks)
        heights[name] = _shares(height.reshape(blocks, -1)[:, 1:])
        start += blocks
    return result, heights


def _problems(
    coupling: Coupling, tensors: Mapping[str, Tensor], names: Iterable[str], rows: str
) -> list[Tensor]:
    """The row matrices to cluster: one per block of every group."""
    if rows not in ROWS:
        raise ValueError(f"clustering: rows must be one of {ROWS}, got {rows!r}. Choose one.")
    return [
        part.contiguous()
        for name in names
        for part in _rows(coupling, tensors, coupling.groups[name], rows).chunk(
            coupling.groups[name].blocks
        )
    ]


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


def owned(coupling: Coupling, tensors: Mapping[str, Tensor], group: str) -> Tensor:
    """(N, D): rows, norm parameters, biases and columns of every channel of a group."""
    size, parts = coupling.groups[group].size, []
    for name, layout in coupling.layouts.items():
        if layout.role not in ("weight", "vector"):
            continue
        tensor = tensors[name].detach()
        if [run for run, _ in layout.rows] == [group]:
            parts.append(tensor.movedim(layout.dim, 0).reshape(size, -1))
        if [run for run, _ in layout.columns] == [group] and layout.groups == 1:
            parts.append(tensor.transpose(0, 1).reshape(size, -1))
    return _side_by_side(parts, size, tensors)


def _rows(
    coupling: Coupling, tensors: Mapping[str, Tensor], group: ChannelGroup, kind: str
) -> Tensor:
    """The (N, D) matrix of a group: its writers' rows side by side, or all that it owns."""
    if kind == "owned":
        return owned(coupling, tensors, group.name)
    parts = []
    for writer in group.writers:
        layout = coupling.layouts[writer]
        matrix = tensors[writer].detach().flatten(1)
        matrix = matrix.double() if matrix.dtype == torch.float64 else matrix.float()
        if kind == "folded":
            matrix = _fold(coupling, tensors, writer, matrix)
        for start, area in _stretches(coupling, layout.rows, group.name):
            part = matrix[start : start + group.size * area].reshape(group.size, -1)
            if kind == "published-cosine":
                part = torch.nn.functional.normalize(part, dim=1)
            elif kind == "folded":
                part = part / part.square().sum(1).mean().sqrt().clamp_min(1e-12)
            parts.append(part)
    return _side_by_side(parts, group.size, tensors)


def _side_by_side(parts: list[Tensor], size: int, tensors: Mapping[str, Tensor]) -> Tensor:
    if not parts:  # of no weight: nothing but the order of channels is known
        like = next(t for t in tensors.values() if t.is_floating_point())
        parts = [torch.eye(size, dtype=like.dtype, device=like.device)]
    rows = torch.cat(parts, dim=1)
    return rows if rows.dtype == torch.float64 else rows.float()


def _stretches(coupling: Coupling, axis: AxisRuns, group: str) -> Iterator[tuple[int, int]]:
    """(first entry, area) of every place where a group lies on an axis: queries and keys of a fused
    layer are two."""
    start = 0
    for name, area in axis:
        if name == group:
            yield start, area
        start += coupling.groups[name].size * area


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
