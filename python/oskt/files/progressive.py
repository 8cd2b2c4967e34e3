"""The progressive chain file: its first bytes are the smallest student, later ones widen it.

A nested chain cut at ascending widths, one part per width (the bytes: oskt.files.part_file). A part
holds the vectors, statistics and trees of its width, which are small, and of the weights only what
the part before lacks (oskt.files.widening). So all parts together hold as many numbers as the
weights have, and a student is widened by the bytes that it lacks alone. Of a ladder every chain is
cut so, one after the other from the narrowest, each at the widths that it serves.

Reading needs no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from oskt.coupling import Coupling
from oskt.files import part_file
from oskt.files.contents import Contents
from oskt.files.part_file import Part, PartFile, Source
from oskt.files.part_file import extend as extend
from oskt.files.widening import lacking, widened
from oskt.widths.ladder import Ladder, within

if TYPE_CHECKING:
    from oskt.chain import WeightChain


def write(
    chain: WeightChain | Ladder[WeightChain],
    path: str | Path,
    widths: Sequence[float] = (1 / 8, 1 / 4, 1 / 2, 1),
    *,
    dtype: DTypeLike | None = None,
    classifier: bool = False,
) -> list[Part]:
    """Write a nested chain, or a ladder of some, as a progressive file; whole or not at all.

    Args:
        chain: of kind "nested", in float64, float32 or float16.
        path: target file.
        widths: share of the channels in every group for each part, ascending, in (0, 1]. Students
            narrower than the first are read from it; the last is the widest that there will be.
            Of a ladder each chain has a part for every width from its narrow end to its full width,
            so that a width where two chains meet is there twice.
        dtype: storage of weights and vectors, e.g. "float16"; default as they are.
        classifier: keep weights that only training needs (see WeightChain.save).

    Returns:
        The parts of the file: `about["widths"]`, `about["chain"]`, its number in the ladder, and
        which bytes, `start` to `end`.

    Raises:
        ValueError: a chain of kind "oskt" or in bfloat16, or widths that do not ascend.

    Notes:
        Numbers in the file come back as they were stored, so at width 1 most weights are the
        teacher's bit for bit. Those that are solved for carry the rounding of the numbers that
        they are solved from: in one step at most u (|A| + sum of a |W| over the cluster) / a, with
        u the unit roundoff of `dtype` and letters as in oskt.files.widening.
        Memory: about four times the weights.

    Example:
        >>> import tempfile, torch
        >>> from oskt import WeightChain
        >>> from oskt.models.resnet import ResNet
        >>> teacher = ResNet(18, in_planes=8)
        >>> chain = WeightChain.from_teacher(teacher, torch.zeros(2, 3, 64, 32), "nested")
        >>> whole, here = (Path(tempfile.mkdtemp()) / "chain.progressive" for _ in range(2))
        >>> first, second, *_ = write(chain, whole)
        >>> _ = here.write_bytes(whole.read_bytes()[: first.end])
        >>> WeightChain.load(here).groups["conv1"]
        1
        >>> _ = extend(here, whole.read_bytes()[second.start : second.end])
        >>> WeightChain.load(here).groups["conv1"]
        2
    """
    import torch

    ladder = chain if isinstance(chain, Ladder) else Ladder([chain])
    base = ladder.base
    if base.kind != "nested":
        raise ValueError(
            f"progressive.write: chain must be nested, got kind {base.kind!r}. "
            "A published chain is its own smallest file: use WeightChain.save."
        )
    if base.statistics.dtype == torch.bfloat16:
        raise ValueError(
            "progressive.write: chain must be of a dtype that NumPy has, got torch.bfloat16. "
            "Convert it with chain.to(torch.float32)."
        )
    if not widths or not all(a < b <= 1 for a, b in itertools.pairwise([0, *widths])):
        raise ValueError(
            f"progressive.write: widths must ascend in (0, 1], got {list(widths)}. "
            "Example: widths=(0.125, 0.25, 0.5, 1)."
        )
    own = base.statistics[:0].cpu().numpy().dtype
    kinds = {"weights": dtype or own, "vectors": dtype or own, "statistics": own}
    sizes = [base.resolve(width) for width in widths]
    parts = []
    for number, one in enumerate(ladder.chains):
        exact = (one if classifier else one.lean()).to("cpu", torch.float64)
        for about, arrays in _parts(
            exact.truncated(each).contents().mapped(np.asarray)
            for each in sizes
            if within(each, one.groups) and (number == 0 or within(one.widths, each))
        ):
            small = {n: a.astype(kinds.get(n, a.dtype)) for n, a in arrays.items()}
            parts.append(({"chain": number, **about}, small))
    contents = exact.contents().header()
    shared = {name: contents[name] for name in ("coupling", "blocks", "absent")}
    meta = {"whole": exact.groups, **exact.meta}
    part_file.write(path, {**shared, "meta": meta}, parts)
    return outline(path)


def _parts(
    levels: Iterator[Contents],
) -> Iterator[tuple[dict[str, Any], dict[str, NDArray[Any]]]]:
    """What each part of one chain is about, and its arrays, in float64."""
    widths: dict[str, int] = {}
    for level in levels:
        header, arrays = level.header(), level.tensors()
        if widths:
            arrays = {n: array for n, array in arrays.items() if not n.startswith("plain.")}
            arrays["weights"] = lacking(level, widths)
        widths = {name: group.size for name, group in level.coupling.free.items()}
        about = {name: header[name] for name in ("narrowest", "measured", "merges")}
        yield {"widths": widths, **about}, arrays


def outline(source: Source) -> list[Part]:
    """The parts of the whole file, from its header: which bytes to fetch for which width.

    Args:
        source: a path, or bytes from the beginning of a file; the header will do.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, or a header that is cut off or edited.
    """
    return PartFile(source).parts


def read(source: Source, parts: int | None = None) -> list[Contents]:
    """The chain that the first parts of a file give, or the chains of a ladder, as NumPy arrays.

    WeightChain.load, ChainLadder.load, oskt.edge.load and load_ladder take the same sources.

    Args:
        source: a path, or bytes from the beginning of a file. A part that it ends in is not read.
        parts: how many to read, from 1; default all that are whole. Later ones are not looked at.

    Returns:
        The contents of each chain that is there; its full width is that of its last part read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, no whole part, fewer than `parts`, or edited bytes.
    """
    file = PartFile(source)
    whole = file.whole()
    count = len(whole) if parts is None else parts
    if not 1 <= count <= len(whole):
        raise ValueError(
            f"progressive.read: parts must be from 1 to {len(whole)}, those that are whole in "
            f"{file}, got {parts}. Its {len(file.parts)} parts end at bytes "
            f"{', '.join(f'{part.end:,}' for part in file.parts)}."
        )
    chains = itertools.groupby(whole[:count], lambda part: part.about["chain"])
    return [_chain(file, part) for _, part in chains]


def _chain(file: PartFile, parts: Iterable[Part]) -> Contents:
    """The chain that its first parts give."""
    coupling = Coupling.from_json(file.shared["coupling"])
    plain: dict[str, NDArray[Any]] = {}
    narrow: tuple[Mapping[str, int], NDArray[np.float64]] | None = None
    for part in parts:
        widths, arrays = part.about["widths"], file.read(part)
        plain |= {name: array for name, array in arrays.items() if name.startswith("plain.")}
        resized = {"coupling": coupling.resized(widths).to_json()}
        level = Contents.of({**arrays, **plain}, {**file.shared, **part.about, **resized})
        weights = level.weights.astype(np.float64)
        if narrow is not None:
            weights = widened(level, *narrow, weights)
        narrow = widths, weights
    return replace(level, weights=weights.astype(level.statistics.dtype))
