"""Model files: tensors as safetensors, everything about them as JSON in the header, no pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import oskt_ext

FORMAT = "oskt-model/1"


def save_model(path: str | Path, module: nn.Module, meta: Mapping[str, Any]) -> Path:
    """Write a module's state to a safetensors file that says what it is and where it comes from.

    Args:
        path: the file; its folder is made. An old file is replaced at once or not at all.
        module: any module, on any device; tied tensors are stored once.
        meta: JSON values: "spec" builds the module again; "widths", "parent" (file_hash of the
            file that it was made from), "recipe", "metrics" and what else is known. "format",
            "versions", "commit" and a checksum are added here.

    Returns:
        The path.

    Raises:
        TypeError: `meta` holds something that is no JSON value.
        OSError: the file cannot be written; the old one is unchanged.

    Notes:
        Needs the bytes of the module once more in memory.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> _ = save_model(path, nn.Linear(2, 3), {"metrics": {"mAP": 0.5}})
        >>> state, meta = load_state(path)
        >>> sorted(state), meta["metrics"]["mAP"]
        (['bias', 'weight'], 0.5)
    """
    tensors, tied = _untie(module.state_dict())
    return write_tensors(path, FORMAT, tensors, {**provenance(), **meta, "tied": tied})


def load_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of save_model: (state dict on the CPU, meta).

    Args:
        path: the file.

    Returns:
        The state dict, tied names sharing one tensor, and the meta with "format", "versions",
        "commit".

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, changed since it was written, or written by another program.

    Notes:
        Every byte is checked against the checksum in the header; nothing in the file is executed.
    """
    tensors, meta = read_tensors(path, FORMAT)
    for name, owner in meta.pop("tied").items():
        tensors[name] = tensors[owner]
    return tensors, meta


def write_tensors(
    path: str | Path, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> Path:
    """Write named tensors and JSON values as one safetensors file with a checksum.

    Args:
        path: the file; replaced whole or not at all.
        kind: format and version, for example "oskt-model/1"; `read_tensors` asks for it.
        tensors: on any device.
        meta: JSON values; "format" is added.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        text = json.dumps({"format": kind, **meta}, sort_keys=True)
    except TypeError as error:
        raise TypeError(f"save: meta must be JSON values, got {error}. Convert it first.") from None
    # One header entry: safetensors orders several by chance, and equal content is an equal file.
    header = json.dumps({"content": text, "format": kind, "sha256": _digest(text, stored)})
    write_atomic(path, safetensors.torch.save(stored, {"oskt": header}))
    return Path(path)


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `write_tensors`, every byte checked; nothing in it is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, changed since it was written, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"load: path must be an {kind} file, got '{path}', which does not exist. "
            "Give a .safetensors file that oskt wrote."
        )
    try:
        with safe_open(path, "pt") as file:
            header = _header(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"load: '{path}' must be a whole safetensors file, got '{error}'. "
            "It is truncated or of another kind: copy it again; `oskt import` reads .pth chains."
        ) from None
    if header.get("format") != kind or not {"content", "sha256"} <= header.keys():
        raise ValueError(
            f"load: '{path}' must have format '{kind}', got {header.get('format')!r}. "
            "Another command, program or version wrote it."
        )
    if _digest(header["content"], tensors) != header["sha256"]:
        raise ValueError(
            f"load: '{path}' must match its checksum {header['sha256'][:12]}, got other content. "
            "It was damaged or edited: copy it again, or make it again."
        )
    return tensors, json.loads(header["content"])


def _header(metadata: Mapping[str, str]) -> dict[str, str]:
    """Our entry of a safetensors header; empty if another program wrote the file."""
    try:
        header = json.loads(metadata.get("oskt", "{}"))
    except json.JSONDecodeError:
        return {}
    return header if isinstance(header, dict) else {}


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex: how an artefact names its parent."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def provenance() -> dict[str, Any]:
    """{"versions": of oskt, its sources, torch and Python, "commit": of oskt's checkout or ""}."""
    build = oskt_ext.build_info()
    return {
        "versions": {
            "oskt": build["version"],
            "source_hash": build["source_hash"],
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "commit": _commit(),
    }


def write_atomic(path: str | Path, data: bytes | memoryview) -> None:
    """Put `data` at `path` so that a kill at any moment leaves the old file or the new one, whole.

    Args:
        path: the file; its folder is made.
        data: its bytes.

    Raises:
        OSError: it cannot be written (full disk, no permission); the old file is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        kept = "The previous file is unchanged. " if path.is_file() else ""
        raise OSError(
            error.errno,
            f"write: '{path}' must be writable with {len(data) / 1e6:.1f} MB free, got "
            f"'{error.strerror or error}'. {kept}Free space or choose another folder.",
        ) from None


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where folders can be opened at all."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _untie(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors with storage of their own, and {name: name that holds the same tensor}."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    owners: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in owners:
            tied[name] = owners[place]
        else:
            owners[place] = name
            tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return tensors, tied


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the header text and of every tensor's name, dtype, shape and bytes."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _commit() -> str:
    """The git commit of oskt's own checkout, "+" if changed since; "" for an installed package."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=40"]
    if not any((parent / ".git").exists() for parent in folder.parents):
        return ""
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()
