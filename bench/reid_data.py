"""Test sets of ReID sizes on the device, a peer's second half, and the memory that a call takes."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from harness import CUDA, DEVICE

T = TypeVar("T")


class Size(NamedTuple):
    """A test set: images on either side, width of the features, identities and cameras."""

    queries: int
    gallery: int
    width: int
    ids: int
    cameras: int
    distractors: int


MARKET = Size(3368, 15913, 512, 750, 6, 2793)
SIZES = {
    "market_512": MARKET,
    "market_2048": MARKET._replace(width=2048),
    "msmt17_2048": Size(11659, 82161, 2048, 3060, 15, 0),
}


def problem(size: Size, noise: float = 3.0) -> list[Tensor]:
    """Unit features around one centre per id, and labels: as the retrieval operators take them."""
    g = torch.Generator().manual_seed(0)
    query_ids = torch.arange(size.queries) % size.ids + 1
    gallery_ids = torch.arange(size.gallery - size.distractors) % size.ids + 1
    gallery_ids = torch.cat([gallery_ids, torch.zeros(size.distractors, dtype=torch.int64)])
    gallery_ids = gallery_ids[torch.randperm(size.gallery, generator=g)]
    cameras = [
        torch.randint(0, size.cameras, (n,), generator=g) for n in (size.queries, size.gallery)
    ]
    centers = torch.randn(size.ids + 1, size.width, generator=g)
    centers[0] = 0  # distractors look like nobody
    sides = []
    for ids in (query_ids, gallery_ids):
        side = torch.randn(len(ids), size.width, generator=g).mul_(noise)
        for rows, part in zip(side.split(4096), ids.split(4096)):  # no second copy of the side
            rows += centers[part]
            rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        sides.append(side)
    return [x.to(DEVICE) for x in (*sides, query_ids, gallery_ids, *cameras)]


def precisions(
    order: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_cameras: Tensor,
    gallery_cameras: Tensor,
) -> Tensor:
    """The average precision of every query with a hit, from whole rankings [Q, G], in torch."""
    same = gallery_ids[order] == query_ids[:, None]
    keep = ~(same & (gallery_cameras[order] == query_cameras[:, None]))
    hits = same & keep
    precision = hits.cumsum(1).double() / keep.cumsum(1).clamp(min=1)
    found = hits.sum(1)
    valid = found > 0
    return (precision * hits).sum(1)[valid] / found[valid]


def with_peak(call: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and by how many MiB it raises the memory in use at its peak.

    That is the memory that torch has given out on a GPU, and the resident set (Linux) on the CPU.
    """
    gc.collect()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        result = call()
        return result, round((torch.cuda.max_memory_allocated() - held) / 2**20, 1)
    ctypes.CDLL(None).malloc_trim(0)  # else memory kept from earlier calls hides the growth
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
    before = _memory_mib("VmRSS")
    result = call()
    return result, round(_memory_mib("VmHWM") - before, 1)


def _memory_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
