"""The chain file: safetensors with a JSON header, written whole or not at all, never unpickled."""

from __future__ import annotations

from pathlib import Path

from oskt import tensor_file
from oskt.contents import Contents

FORMAT = "oskt-chain/1"


def read(path: str | Path) -> Contents:
    """The contents of a chain file as NumPy arrays, without torch.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, edited or foreign file, or one in bfloat16.
    """
    return Contents.of(*tensor_file.read(path, FORMAT))
