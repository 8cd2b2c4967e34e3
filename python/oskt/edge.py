"""Students of a chain file where there is no torch: NumPy and safetensors alone.

python -m oskt.edge chain.safetensors --params 500000 --out student.safetensors
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oskt import reading
from oskt.files import chain_file
from oskt.files.contents import Contents
from oskt.files.part_file import Source
from oskt.files.tensor_file import MODEL, file_hash, write_arrays
from oskt.widths import presets, shapes
from oskt.widths.ladder import Ladder
from oskt.widths.shapes import Curves
from oskt.widths.sizes import Sizes


class EdgeChain(Sizes):
    """A weight chain in NumPy arrays: the students of oskt.WeightChain as named arrays.

    Make one with `load`. `groups`, `widths`, `least`, `resolve` and `costs` are those of Sizes.

    Args:
        contents: of a chain file; weights and vectors that it keeps in half precision are computed
            with in the dtype of the statistics.
    """

    def __init__(self, contents: Contents) -> None:
        super().__init__(
            contents.coupling, contents.partitions, absent=contents.absent, meta=contents.meta
        )
        self.plain = dict(contents.plain)
        dtype = contents.statistics.dtype
        self._flat = np.concatenate(
            [
                part.astype(dtype, copy=False)
                for part in (contents.weights, contents.vectors, contents.statistics)
            ]
        )

    def student(
        self,
        *,
        width: float | None = None,
        widths: Mapping[str, int] | None = None,
        preset: str | None = None,
        params: float | None = None,
        macs: float | None = None,
        memory_mb: float | None = None,
        shape: str | Curves = "uniform",
        norm: str = "interpolate",
    ) -> dict[str, NDArray[Any]]:
        """The tensors of a student: give one of width, widths, preset and a budget.

        Args:
            width: share of the channels in every group, in (0, 1], of the file's full width: the
                teacher's, unless it was cut off or truncated.
            widths: group -> channels; groups not named stay at chain width.
            preset: a size of the paper, e.g. "res50-s1".
            params, macs, memory_mb: a budget, any of them together: at most so many parameters and
                MACs per image, of the backbone at the traced input size, and megabytes in float32.
            shape: of a student by budget: "uniform" or "sensitivity" (see Sizes.resolve).
            norm: "interpolate" or "exact" (see WeightChain.expand).

        Returns:
            state-dict name -> array, without the weights in `absent`.

        Raises:
            ValueError: see Sizes.resolve.

        Notes:
            The sums are those of WeightChain.expand, but NumPy adds pairwise and rounds every
            product: an entry may differ by a few roundings of its largest term. Entries that
            read one number are equal, so a nested chain's full width is the teacher bit for bit.
            Bitwise repeatable on one machine.
        """
        sizes = self.resolve(width, widths, preset, params, macs, memory_mb, shape=shape)
        items = reading.student(self.coupling, self.partitions, sizes, norm, self.layouts)
        named_shapes = self.shapes(sizes)
        ends = np.cumsum([math.prod(form) for form in named_shapes.values()])
        parts = np.split(reading.apply(items, self._flat), ends[:-1])
        named = {
            name: part.reshape(form) for (name, form), part in zip(named_shapes.items(), parts)
        }
        named |= {name: array.copy() for name, array in self.plain.items()}
        shares = reading.student_shares(self.coupling, self.clusterings, sizes, norm)
        return named | {name: s.astype(self._flat.dtype) for name, s in shares.items()}


def load(source: Source) -> EdgeChain:
    """Read a chain file of either kind, or a progressive one as far as it is here.

    Args:
        source: a file of WeightChain.save or oskt.files.progressive.write, or bytes from the
            beginning of a progressive one. Of a long file,
            EdgeChain(*oskt.files.progressive.read(path, 1)) takes the first part alone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, edited or foreign file, one in bfloat16, or a ladder of several.

    Example:
        >>> import tempfile, torch
        >>> from oskt import WeightChain
        >>> from oskt.models.resnet import ResNet
        >>> path = Path(tempfile.mkdtemp()) / "chain.safetensors"
        >>> teacher = ResNet(18, in_planes=8)
        >>> WeightChain.from_teacher(teacher, torch.zeros(2, 3, 64, 32), "nested").save(path)
        >>> load(path).student(width=1 / 2)["conv1.weight"].shape
        (4, 3, 7, 7)
    """
    return EdgeChain(chain_file.single(source, chain_file.read(source)))


def load_ladder(source: Source) -> Ladder[EdgeChain]:
    """Read several chains of one file (oskt.ChainLadder), or one as a ladder of one.

    Example:
        >>> import tempfile, torch
        >>> from oskt import ChainLadder
        >>> from oskt.models.resnet import ResNet
        >>> path, images = Path(tempfile.mkdtemp()) / "ladder", torch.zeros(2, 3, 64, 32)
        >>> ChainLadder.from_teacher(ResNet(18, 8), images, (1 / 4, 1 / 2), check=False).save(path)
        >>> ladder = load_ladder(path)
        >>> sizes = ladder.resolve(width=0.75)
        >>> ladder.chain_for(sizes).student(widths=sizes)["conv1.weight"].shape
        (6, 3, 7, 7)
    """
    return Ladder([EdgeChain(contents) for contents in chain_file.read(source)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a student as the model file that `oskt expand` would write, without its classifier."""
    parser = argparse.ArgumentParser(
        prog="python -m oskt.edge", description="Write a student of any size, without torch."
    )
    parser.add_argument("chain", type=Path, help="chain file, ladder or progressive file")
    parser.add_argument("--out", type=Path, required=True, help="model file to write")
    size = parser.add_argument_group("size: one of these; limits of a budget also together")
    size.add_argument("--width", type=float, help="share of the channels of the file's full width")
    size.add_argument("--preset", help="size of the paper: " + ", ".join(presets.NAMES))
    size.add_argument("--params", type=float, help="at most so many parameters")
    size.add_argument("--macs", type=float, help="at most so many MACs per image")
    size.add_argument("--memory-mb", type=float, help="at most so many megabytes in float32")
    size.add_argument(
        "--shape", choices=shapes.NAMES, default=shapes.NAMES[0], help="of a student by budget"
    )
    parser.add_argument(
        "--norm", choices=("interpolate", "exact"), default="interpolate", help="as oskt expand"
    )
    parser.add_argument(
        "--backend", choices=("numpy",), default="numpy", help="as oskt expand, of which this is it"
    )
    given = parser.parse_args(arguments)
    ladder = load_ladder(given.chain)
    sizes = ladder.resolve(
        given.width, preset=given.preset, params=given.params, macs=given.macs,
        memory_mb=given.memory_mb, shape=given.shape,
    )  # fmt: skip
    chain = write_student(ladder, given.chain, sizes, given.out, norm=given.norm)
    parameters, macs = chain.costs(sizes)
    if len(ladder.chains) > 1:
        print(f"from {ladder.name_of(chain)}")
    print(f"student: {given.out}  {parameters:,} parameters, {macs / 1e6:,.1f} M MACs")


def write_student(
    ladder: Ladder[EdgeChain],
    source: Path,
    sizes: Mapping[str, int],
    out: Path,
    *,
    norm: str = "interpolate",
    about: Mapping[str, Any] | None = None,
) -> EdgeChain:
    """Write a model file as `oskt expand` does, without a classifier that the chain lacks.

    Args:
        ladder: of `load_ladder`.
        source: the file that it was read from, for its hash.
        sizes: group -> channels, of Ladder.resolve.
        out: the file; replaced whole or not at all.
        norm: "interpolate" or "exact" (see WeightChain.expand).
        about: further JSON values for the file.

    Returns:
        The chain that the student was read from.
    """
    chain = ladder.chain_for(sizes)
    spec = chain.meta.get("spec")
    if spec is not None and "classifier.weight" in chain.absent:
        spec = {**spec, "num_classes": 0}
    meta = {
        "spec": spec,
        "widths": dict(sizes),
        "parent": file_hash(source),
        "tied": {},
        **chain.trained_on,
        **(about or {}),
    }
    write_arrays(out, MODEL, chain.student(widths=sizes, norm=norm), meta)
    return chain


def command(arguments: Sequence[str] | None = None) -> None:
    """`main` for a shell: an error is one line and exit status 1."""
    try:
        main(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    command()
