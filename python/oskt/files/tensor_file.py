"""Tensor files: safetensors with JSON in the header and a checksum over all; whole or not at all.

Needs no torch. `read` and `header` serve NumPy arrays and torch tensors alike: what they must know
of a tensor is its dtype's name and its bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

MODEL, CHAIN = "oskt-model/1", "oskt-chain/1"  # formats
WRITERS = {
    MODEL: "`oskt teacher`, `oskt expand` or `oskt finetune`",
    CHAIN: "`oskt refine`, `oskt pack` or `oskt import`",
}

Content = Callable[[Any], tuple[str, NDArray[np.uint8]]]


def content(array: NDArray[Any]) -> tuple[str, NDArray[np.uint8]]:
    """(dtype as torch names it, bytes) of a NumPy array."""
    return f"torch.{array.dtype}", np.asarray(array, order="C").reshape(-1).view(np.uint8)


def write_arrays(
    path: str | Path, kind: str, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]
) -> Path:
    """Write named NumPy arrays and JSON values as one safetensors file with a checksum.

    Args:
        path: the file; its folder is made. An old file is replaced at once or not at all.
        kind: format and version, for example "oskt-model/1"; `read` asks for it.
        arrays: of dtypes that torch knows.
        meta: JSON values; "format" is added.
    """
    stored = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_atomic(path, safetensors.numpy.save(stored, header(kind, stored, meta)))
    return Path(path)


def header(
    kind: str, tensors: Mapping[str, Any], meta: Mapping[str, Any], content: Content = content
) -> dict[str, str]:
    """The safetensors metadata of a file: format, JSON values, SHA-256 of these and all tensors."""
    try:
        text = json.dumps({"format": kind, **meta}, sort_keys=True)
    except TypeError as error:
        raise TypeError(f"save: meta must be JSON values, got {error}. Convert it first.") from None
    # One header entry: safetensors orders several by chance, and equal content is an equal file.
    digest = _digest(text, tensors, content)
    return {"oskt": json.dumps({"content": text, "format": kind, "sha256": digest})}


def read(
    path: str | Path, kind: str, framework: str = "np", content: Content = content
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tensors, JSON values) of a file, every byte checked; nothing in it is executed.

    Args:
        path: the file.
        kind: the format that it must have.
        framework, content: "np" for NumPy arrays, "pt" and oskt.files.checkpoint's for torch
            tensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, changed since it was written, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        why = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"load: path must be an {kind} file, got '{path}', which {why}. {_remedy(kind)}"
        )
    try:
        with safe_open(path, framework) as file:
            found = _header(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"load: '{path}' must be a whole safetensors file, got '{error}'. "
            "It is truncated or of another kind: copy it again; `oskt import` reads .pth chains."
        ) from None
    except TypeError as error:
        raise ValueError(
            f"load: '{path}' must hold numbers that NumPy knows, got {error}. "
            "Save it with another dtype, e.g. torch.float16."
        ) from None
    if found.get("format") != kind or not {"content", "sha256"} <= found.keys():
        raise ValueError(
            f"load: '{path}' must have format '{kind}', got {found.get('format')!r}. "
            f"{_remedy(kind, found.get('format', ''))}"
        )
    if _digest(found["content"], tensors, content) != found["sha256"]:
        raise ValueError(
            f"load: '{path}' must match its checksum {found['sha256'][:12]}, got other content. "
            "It was damaged or edited: copy it again, or make it again."
        )
    return tensors, json.loads(found["content"])


def format_of(path: str | Path) -> str:
    """The format that a file of oskt names in its header; "" for any other file."""
    try:
        with safe_open(Path(path), "np") as file:
            return _header(file.metadata() or {}).get("format", "")
    except (SafetensorError, OSError):
        return ""


def _remedy(kind: str, got: str = "") -> str:
    """Which file to give where one of another format, or none, was found."""
    if got.partition("/")[0] == kind.partition("/")[0]:
        return "Another version of oskt wrote it: read it with that one."
    return f"Give a file of {WRITERS.get(kind, 'oskt')}."


def _header(metadata: Mapping[str, str]) -> dict[str, str]:
    """Our entry of a safetensors header; empty if another program wrote the file."""
    try:
        found = json.loads(metadata.get("oskt", "{}"))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _digest(text: str, tensors: Mapping[str, Any], content: Content) -> str:
    """SHA-256 of the header text and of every tensor's name, dtype, shape and bytes."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        dtype, data = content(tensors[name])
        total.update(f"\n{name} {dtype} {tuple(tensors[name].shape)}\n".encode())
        total.update(data.data)
    return total.hexdigest()


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex: how an artefact names its parent."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def write_atomic(path: str | Path, data: bytes | memoryview) -> None:
    """Put `data` at `path` so that a kill at any moment leaves the old file or the new one, whole.

    Args:
        path: the file, or a link to it; its folder is made.
        data: its bytes.

    Raises:
        OSError: it cannot be written (full disk, no permission, a folder or a device); what was
            there is unchanged.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a device would be replaced by a file
        kind = "a folder" if path.is_dir() else "no file"
        raise OSError(
            f"write: path must be a file or not exist, got '{path}', which is {kind}. "
            "Choose another name."
        )
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        kept = "The previous file is unchanged. " if path.is_file() else ""
        failed = type(error)(
            f"write: '{path}' must be writable with {len(data) / 1e6:.1f} MB free, got "
            f"'{error.strerror or error}'. {kept}Free space or choose another folder."
        )
        failed.errno = error.errno  # given to the constructor it would stand before the message
        raise failed from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # what a failure or Ctrl-C leaves
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where folders can be opened and synced at all."""
    if os.name == "posix":
        with contextlib.suppress(OSError):  # the file is in its place, whatever comes of this
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
