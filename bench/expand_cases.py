"""What bench_expand expands: whole models of random clusters, as items of an ExpansionPlan.

Published chains: ResNet-50 of width 1/8 to the paper's sizes, ViT-B of width 1/8 to 1/4 and 1/2 of
its channels. Nested chains of ResNet-50, whose source is the teacher: `select`, a student has some
of the channels; `lead`, the same of channels in order; `merge`, rows are averaged and columns
summed over clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from oskt.widths import allocate
from oskt_ext import IndexMap
from shapes import PRESETS, resnet50_convs, resnet50_groups, vit_linears

Items = list[tuple[IndexMap, IndexMap, int]]
Maps = dict[str, IndexMap]  # "rows", "columns" and "vectors" of a channel group
VECTORS = 4  # gamma, beta, running mean and running variance of the norm behind every convolution


def random_members(rng: np.random.Generator, size: int, clusters: int) -> list[np.ndarray]:
    """The members of random clusters, none empty."""
    labels = rng.permutation(
        np.concatenate([np.arange(clusters), rng.integers(clusters, size=size)])
    )
    labels = np.concatenate([np.arange(clusters), labels[: size - clusters] % clusters])
    rng.shuffle(labels)
    return [np.flatnonzero(labels == k) for k in range(clusters)]


def published(rng: np.random.Generator, teacher: int, chain: int, width: int) -> Maps:
    members = random_members(rng, teacher, chain)
    count = np.bincount(allocate(map(len, members), width))
    blocks = [b for m, c in zip(members, count) for b in np.array_split(m, c)]
    return {
        "rows": IndexMap.select(np.repeat(np.arange(chain), count), chain),
        "columns": IndexMap.lists(blocks, teacher),
        "vectors": IndexMap.lists(blocks, teacher, mean=True),
    }


def nested_select(rng: np.random.Generator, teacher: int, _: int, width: int) -> Maps:
    kept = IndexMap.select(np.sort(rng.permutation(teacher)[:width]), teacher)
    return dict.fromkeys(("rows", "columns", "vectors"), kept)


def nested_lead(rng: np.random.Generator, teacher: int, _: int, width: int) -> Maps:
    leading = IndexMap.select(np.arange(width), teacher)
    return dict.fromkeys(("rows", "columns", "vectors"), leading)


def nested_merge(rng: np.random.Generator, teacher: int, _: int, width: int) -> Maps:
    members = random_members(rng, teacher, width)
    mean = IndexMap.lists(members, teacher, mean=True)
    return {"rows": mean, "columns": IndexMap.lists(members, teacher), "vectors": mean}


def resnet50(kind: Callable[..., Maps], in_planes: int, multipliers: tuple[int, int, int]) -> Items:
    """Every convolution, then the vectors of every norm."""
    rng = np.random.default_rng(0)
    teacher, chain = resnet50_convs(), resnet50_convs(8)
    student = resnet50_convs(in_planes, multipliers)
    widths = {t[0]: (t[1], c[1], s[1]) for t, c, s in zip(teacher, chain, student)}
    maps: dict[str, Maps] = {}
    for group in resnet50_groups():
        maps |= dict.fromkeys(group, kind(rng, *widths[group[0]]))
    inputs, items = {"stem": IndexMap.identity(3)}, []
    stream = inner = "stem"
    for name, _, _, side in teacher:
        # conv3 stands before the downsample of its block, which still reads the old stream.
        reads = stream if name.endswith((".conv1", "downsample.0")) else inner
        items.append((maps[name]["rows"], inputs[reads], side * side))
        inputs[name] = maps[name]["columns"]
        inner = name
        if name == "conv1" or name.endswith("downsample.0"):
            stream = name
    one = IndexMap.identity(1)
    return items + [(maps[name]["vectors"], one, 1) for name, *_ in teacher for _ in range(VECTORS)]


def vit_b(kind: Callable[..., Maps], share: float) -> Items:
    """The linears of every block and their biases; one stream group, two groups in every block."""
    rng = np.random.default_rng(0)

    def group(size: int) -> Maps:
        return kind(rng, size, size // 8, round(share * size))

    stream, one, items = group(768), IndexMap.identity(1), []
    for name, rows, columns in vit_linears():
        if name.endswith(("qkv", "fc1")):
            reads, inner = stream, group(rows)
            writes = inner
        else:
            # proj reads the values, a third of what qkv writes: a group of as many channels.
            reads, writes = (group(columns) if name.endswith("proj") else inner), stream
        items += [(writes["rows"], reads["columns"], 1), (writes["vectors"], one, 1)]
    return items


@cache
def items_of(case: str) -> Items:
    """The items of one of CASES."""
    return CASES[case]()


CASES: dict[str, Callable[[], Items]] = {
    **{name: (lambda size=size: resnet50(published, *size)) for name, size in PRESETS.items()},
    "vit-b-1/4": lambda: vit_b(published, 1 / 4),
    "vit-b-1/2": lambda: vit_b(published, 1 / 2),
    "select-1/8": lambda: resnet50(nested_select, 8, (2, 4, 8)),
    "select-1/2": lambda: resnet50(nested_select, 32, (2, 4, 8)),
    "lead-1/8": lambda: resnet50(nested_lead, 8, (2, 4, 8)),
    "lead-1/2": lambda: resnet50(nested_lead, 32, (2, 4, 8)),
    "merge-1/8": lambda: resnet50(nested_merge, 8, (2, 4, 8)),
    "merge-1/2": lambda: resnet50(nested_merge, 32, (2, 4, 8)),
}
