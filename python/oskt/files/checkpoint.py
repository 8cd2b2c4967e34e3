"""Model files: tensors as safetensors, everything about them as JSON in the header, no pickle."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import oskt_ext
from oskt.files import tensor_file
from oskt.files.tensor_file import MODEL
from oskt.files.tensor_file import file_hash as file_hash
from oskt.files.tensor_file import write_atomic as write_atomic


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
    return write_tensors(path, MODEL, tensors, {**provenance(), **meta, "tied": tied})


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
    tensors, meta = read_tensors(path, MODEL)
    for name, owner in meta.pop("tied").items():
        tensors[name] = tensors[owner]
    return tensors, meta


def write_tensors(
    path: str | Path, kind: str, tensors: Mapping[str, Any], meta: Mapping[str, Any]
) -> Path:
    """Write named tensors and JSON values as one safetensors file with a checksum.

    Args:
        path: the file; replaced whole or not at all.
        kind: format and version, for example "oskt-model/1"; `read_tensors` asks for it.
        tensors: torch tensors on any device, or NumPy arrays.
        meta: JSON values; "format" is added.
    """
    stored = {
        name: torch.as_tensor(tensor).detach().cpu().contiguous()
        for name, tensor in tensors.items()
    }
    header = tensor_file.header(kind, stored, meta, _content)
    write_atomic(path, safetensors.torch.save(stored, header))
    return Path(path)


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `write_tensors`, every byte checked; nothing in it is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, changed since it was written, or of another kind.
    """
    return tensor_file.read(path, kind, "pt", _content)


def _content(tensor: Tensor) -> tuple[str, NDArray[np.uint8]]:
    """(dtype, bytes): what tensor_file must know of a tensor."""
    return str(tensor.dtype), tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


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


def _commit() -> str:
    """The git commit of oskt's own checkout, "+" if changed since; "" for an installed package."""
    root = Path(__file__).parents[3]  # of a checkout; an installed package may lie in another's
    if not all((root / name).exists() for name in (".git", "csrc")):
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()
