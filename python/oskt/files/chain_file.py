"""The chain file: safetensors with a JSON header, written whole or not at all, never unpickled.

It holds one chain, or several of one teacher (a ladder), what they share once.
"""

from __future__ import annotations

from collections.abc import Sequence

from oskt.files import progressive, tensor_file
from oskt.files.contents import Contents, apart
from oskt.files.part_file import Source, is_part_file


def read(source: Source) -> list[Contents]:
    """Every chain of a chain file, or those of a progressive one, as NumPy arrays, without torch.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, edited or foreign file, or one in bfloat16.
    """
    if isinstance(source, bytes) or is_part_file(source):
        return progressive.read(source)
    return apart(*tensor_file.read(source, tensor_file.CHAIN))


def single(source: Source, chains: Sequence[Contents]) -> Contents:
    """The only chain of a file.

    Raises:
        ValueError: there are several.
    """
    if len(chains) > 1:
        raise ValueError(
            f"load: '{source!s}' must hold one chain, got a ladder of {len(chains)}. "
            "Read it with oskt.ChainLadder.load or oskt.edge.load_ladder."
        )
    return chains[0]
