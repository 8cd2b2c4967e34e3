"""Norm statistics of every width of a nested chain, measured at a few."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from oskt import students
from oskt.chain.weight_chain import STATISTICS, WeightChain
from oskt.coupling import TensorLayout
from oskt.widths import EIGHTHS
from oskt.widths.merge_tree import MergeTree


def calibrate(
    chain: WeightChain,
    images: Callable[[], Iterable[Tensor]],
    shares: Sequence[float] = EIGHTHS[:-1],
    *,
    full: bool = False,
) -> WeightChain:
    """A nested chain that carries norm statistics of several widths, so that students of every
    width work at once, without images of their own.

    The widths measured are of all groups alike; a student of another shape takes, norm by norm,
    those of the width at which the layer before reads as much (see reading.statistic). Groups that
    are frozen have the statistics of full width alone.

    Args:
        chain: of kind "nested".
        images: called once per width: batches (B, 3, H, W), B >= 2, normalised and augmented as
            in training, without labels (see ReIDData.unlabelled).
        shares: uniform widths to measure, ascending, in (0, 1); those below the narrowest that
            was trained are left out.
        full: measure full width, too, for a chain that was trained without it; else it keeps the
            statistics of its training.

    Returns:
        A new chain; its file is longer by the statistics of those widths.

    Raises:
        ValueError: a chain of kind "oskt", whose students are recalibrated one by one.

    Notes:
        One forward pass over the images per width. Deterministic if `images` is.
    """
    if chain.kind != "nested":
        raise ValueError(
            f"calibrate: chain must be nested, got kind {chain.kind!r}. "
            "Recalibrate students of a published chain one by one: oskt.students.recalibrate."
        )
    resolved = [chain.resolve(share) for share in shares]
    grid = [w for w in resolved if all(w[g] >= n for g, n in chain.widths.items())]
    grid.append(chain.groups)
    sources = []
    for widths in grid if full else grid[:-1]:
        student = chain.student(widths=widths)
        students.recalibrate(student, images())
        sources.append({name: t.cpu() for name, t in student.named_buffers()})
    if not full:
        sources.append(chain.expand(chain.groups))

    def entries(layout: TensorLayout) -> Iterable[Tensor]:
        """One run of channels after the other, each at all measured widths."""
        starts = [0] * len(grid)
        for group, area in layout.rows:
            for place, (widths, tensors) in enumerate(zip(grid, sources)):
                if group not in widths and place + 1 < len(grid):
                    continue  # frozen: full width alone
                length = chain.coupling.axis_size(((group, area),), widths)
                start = starts[place]
                yield tensors[layout.name].flatten()[start : start + length]
                starts[place] += length

    layouts = chain.coupling.layouts_of(STATISTICS)
    parts = [part.to(chain.statistics) for layout in layouts for part in entries(layout)]
    calibrated = copy.copy(chain)
    calibrated.statistics = torch.cat(parts) if parts else chain.statistics
    calibrated.partitions = {
        name: replace(tree, measured=tuple(widths[name] for widths in grid[:-1]))
        for name, tree in chain.partitions.items()
        if isinstance(tree, MergeTree)
    }
    return calibrated
