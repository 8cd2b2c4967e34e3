"""Expansion of a ResNet-50 chain of width 1/8 to the paper's six sizes, in one call.

Rows: `oskt_ext.expand` and its peers at the same task and dtype; correctness is asserted before
anything is timed. extra_info holds `bytes`, the compulsory traffic (source read, student written;
twice that for a step), and `roof_s`, the time of a copy of as many bytes measured in this run.

Peers: `loop`, one Python step per channel; `index`, index_select of rows and index_add_ of columns;
`embedding_bag`, the best stock PyTorch form: a fused column sum over the chain rows, then a row
select; `numpy`, add.reduceat; `cupy`, the `index` form there. A copy of the bytes is the roof.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from oskt_ext import IndexMap
from shapes import PRESETS, resnet50_convs, resnet50_groups

VECTORS = 4  # gamma, beta, running mean and running variance of the norm behind every convolution


def copies(sizes: np.ndarray, width: int) -> np.ndarray:
    """Copies of every chain row: one each, then one more for the lowest copies / size."""
    count = np.ones(len(sizes), dtype=np.int64)
    for _ in range(width - len(sizes)):
        count[np.argmin(count / sizes)] += 1
    return count


def group_maps(rng: np.random.Generator, teacher: int, chain: int, width: int) -> dict[str, Any]:
    """Random clusters of a channel group, and its maps: rows, columns and vectors."""
    labels = rng.permutation(np.concatenate([np.arange(chain), rng.integers(chain, size=teacher)]))
    labels = np.concatenate([np.arange(chain), labels[: teacher - chain] % chain])
    rng.shuffle(labels)
    members = [np.flatnonzero(labels == k) for k in range(chain)]
    count = copies(np.array([len(m) for m in members]), width)
    blocks = [b for m, c in zip(members, count) for b in np.array_split(m, c)]
    return {
        "rows": IndexMap.select(np.repeat(np.arange(chain), count), chain),
        "columns": IndexMap.lists(blocks, teacher),
        "vectors": IndexMap.lists(blocks, teacher, mean=True),
    }


@cache
def resnet50_items(preset: str) -> list[tuple[IndexMap, IndexMap, int]]:
    """Items of the whole model: every convolution, then the vectors of every norm."""
    rng = np.random.default_rng(0)
    in_planes, multipliers = PRESETS[preset]
    teacher, chain = resnet50_convs(), resnet50_convs(8)
    student = resnet50_convs(in_planes, multipliers)
    widths = {t[0]: (t[1], c[1], s[1]) for t, c, s in zip(teacher, chain, student)}
    maps: dict[str, dict[str, Any]] = {}
    for group in resnet50_groups():
        maps |= dict.fromkeys(group, group_maps(rng, *widths[group[0]]))
    items, stream, inner = [], "", ""
    one, image = IndexMap.identity(1), IndexMap.identity(3)
    for name, _, _, side in teacher:
        if name == "conv1":
            columns = image
        elif name.endswith(("conv1", "downsample.0")):
            columns = maps[stream]["columns"]
        else:
            columns = maps[inner]["columns"]
        items.append((maps[name]["rows"], columns, side * side))
        inner = name
        if name == "conv1" or name.endswith("downsample.0"):
            stream = name
        # conv3 precedes the downsample of its block, whose input is still the old stream.
    items += [(maps[name]["vectors"], one, 1) for name, *_ in teacher for _ in range(VECTORS)]
    return items
