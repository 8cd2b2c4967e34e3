"""The chain file: safetensors with a JSON header, written whole or not at all, never unpickled."""

from __future__ import annotations

from oskt import progressive, tensor_file
from oskt.contents import Contents
from oskt.part_file import Source, is_part_file

FORMAT = "oskt-chain/1"


def read(source: Source) -> Contents:
    """The contents of a chain file, or of a progressive one, as NumPy arrays, without torch.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, edited or foreign file, or one in bfloat16.
    """
    if isinstance(source, bytes) or is_part_file(source):
        return progressive.read(source)
    return Contents.of(*tensor_file.read(source, FORMAT))
