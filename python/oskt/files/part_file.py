"""Part files: arrays in parts, one after the other, so that every prefix of the file can be read.

    b"oskt-progressive/1\\n"
    8 bytes    length of the header, unsigned, little-endian
    32 bytes   SHA-256 of the header
    header     JSON: "shared", and "parts", each with what it is "about", its "arrays" (name, dtype,
               shape), the number of its "bytes" and their "sha256"
    parts      one after the other: a part's arrays in that order, little-endian, without gaps

safetensors cannot be read like this: its header must be about all of the bytes that follow. Needs
no torch. Nothing in a file is executed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oskt.files.tensor_file import write_atomic

MAGIC = b"oskt-progressive/1\n"
FIXED = len(MAGIC) + 8 + 32  # bytes before the header

Source = str | Path | bytes  # a file, or bytes from its beginning


class Part(NamedTuple):
    """Where a part lies in its file, and what it is about.

    Args:
        about: the JSON values that it was written with.
        start, end: its bytes are start <= i < end; the first part begins with the header, at 0.
        size, sha256: of its arrays, the last of these bytes.
        arrays: (name, dtype, shape) of each.
    """

    about: dict[str, Any]
    start: int
    end: int
    size: int
    sha256: str
    arrays: list[tuple[str, str, tuple[int, ...]]]


def write(
    path: str | Path,
    shared: Mapping[str, Any],
    parts: Iterable[tuple[Mapping[str, Any], Mapping[str, NDArray[Any]]]],
) -> None:
    """Write a part file; whole or not at all.

    Args:
        path: target file.
        shared: JSON values about all parts.
        parts: of each, JSON values and named arrays.
    """
    entries, blobs = [], []
    for about, arrays in parts:
        little = {n: array.astype(array.dtype.newbyteorder("<")) for n, array in arrays.items()}
        blobs.append(b"".join(array.tobytes() for array in little.values()))
        entries.append(
            {
                "about": about,
                "arrays": [(name, array.dtype.str, array.shape) for name, array in little.items()],
                "bytes": len(blobs[-1]),
                "sha256": hashlib.sha256(blobs[-1]).hexdigest(),
            }
        )
    header = {"shared": shared, "parts": entries}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    fixed = MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest()
    write_atomic(path, b"".join([fixed, text, *blobs]))


def is_part_file(path: str | Path) -> bool:
    """Whether a file begins like a part file."""
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class PartFile:
    """A part file, or as much of it as there is.

    Args:
        source: a path, or bytes from the beginning of a file; the header must be whole.

    Attributes:
        shared: JSON values about all parts.
        parts: those of the whole file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, or a header that is cut off or edited.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        if not isinstance(source, bytes) and not Path(source).is_file():
            raise FileNotFoundError(
                f"load: source must be a progressive file, got {self}, which does not exist. "
                "Give a file of oskt.files.progressive.write."
            )
        fixed = self._bytes(0, FIXED)
        if not fixed.startswith(MAGIC[: len(fixed)]):
            raise ValueError(
                f"load: {self} must begin with {MAGIC!r}, got {fixed[: len(MAGIC)]!r}. "
                "Another command, program or version wrote it."
            )
        end = FIXED
        if len(fixed) == FIXED:
            end += int.from_bytes(fixed[len(MAGIC) : len(MAGIC) + 8], "little")
        text = self._bytes(FIXED, end)
        if len(fixed) + len(text) < max(end, FIXED + 1):
            raise ValueError(
                f"load: {self} must hold at least its header, {end:,} bytes, got "
                f"{len(fixed) + len(text):,}. Fetch more of the file."
            )
        if hashlib.sha256(text).digest() != fixed[-32:]:
            raise ValueError(
                f"load: the header of {self} must match its checksum, got other content. "
                f"It was damaged or edited: fetch the first {end:,} bytes again."
            )
        header = json.loads(text)
        self.shared: dict[str, Any] = header["shared"]
        entries = header["parts"]
        borders = itertools.accumulate((entry["bytes"] for entry in entries), initial=end)
        self.parts = [
            Part(e["about"], a if number else 0, b, e["bytes"], e["sha256"], e["arrays"])
            for number, (e, (a, b)) in enumerate(zip(entries, itertools.pairwise(borders)))
        ]

    def __str__(self) -> str:
        return f"{self.size:,} bytes" if isinstance(self.source, bytes) else f"'{self.source}'"

    @property
    def size(self) -> int:
        """Bytes that there are."""
        source = self.source
        return len(source) if isinstance(source, bytes) else Path(source).stat().st_size

    def whole(self) -> list[Part]:
        """The parts that are here to their last byte.

        Raises:
            ValueError: not even the first, or more bytes than the parts have.
        """
        first, last = self.parts[0].end, self.parts[-1].end
        if not first <= self.size <= last:
            raise ValueError(
                f"load: {self} must hold from {first:,} bytes, its first part, to {last:,}, got "
                f"{self.size:,}. "
                + ("Fetch more of the file." if self.size < first else "Fetch it again.")
            )
        return [part for part in self.parts if part.end <= self.size]

    def read(self, part: Part) -> dict[str, NDArray[Any]]:
        """The arrays of a part by name.

        Raises:
            ValueError: edited or damaged bytes.
        """
        data = self._bytes(part.end - part.size, part.end)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            number = self.parts.index(part)
            raise ValueError(
                f"load: part {number + 1} of {self} must match its checksum, got other content. "
                f"It was damaged or edited: fetch bytes {part.start:,} to {part.end:,} again"
                + (f", or read the {number} before it with parts={number}." if number else ".")
            )
        arrays, place = {}, 0
        for name, kind, shape in part.arrays:
            array = np.frombuffer(data, kind, math.prod(shape), place).reshape(shape)
            arrays[name] = array.astype(array.dtype.newbyteorder("="))
            place += array.nbytes
        return arrays

    def _bytes(self, start: int, end: int) -> bytes:
        if isinstance(self.source, bytes):
            return self.source[start:end]
        with open(self.source, "rb") as file:
            file.seek(start)
            return file.read(min(end, self.size) - start)  # a damaged length may be anything


def extend(path: str | Path, more: bytes) -> list[Part]:
    """Append further bytes to a file that lies here in part; whole or not at all.

    Args:
        path: a file that ends anywhere behind its header, even within a part.
        more: the bytes that follow; they too may end within a part.

    Returns:
        The parts that are whole now.

    Raises:
        FileNotFoundError: no such file.
        ValueError: bytes that are not those that follow; the file is unchanged.
    """
    before = PartFile(path)
    together = PartFile(before._bytes(0, before.size) + more)
    whole = together.whole()
    for part in whole:
        if part.end > before.size:
            together.read(part)
    write_atomic(path, together._bytes(0, together.size))
    return whole
