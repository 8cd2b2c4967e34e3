"""What kmeans and merge_trees ask of the rows of a ragged batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oskt_ext._arrays import as_tensor, check_float

MAX_ROWS = 16384


def check_rows(op: str, rows: Any) -> list[Tensor]:
    """The matrices as tensors over the same memory, or a TypeError or ValueError in `op`'s name.

    Their number of rows is left to `check_gram_rows`.
    """
    if not isinstance(rows, (list, tuple)):
        raise TypeError(
            f"{op}: rows must be a list of matrices, got {type(rows).__name__}. "
            "Pass [matrix] for one problem."
        )
    if not rows:
        raise ValueError(f"{op}: rows must hold at least one matrix, got 0. Pass [matrix].")
    tensors = [as_tensor(op, f"rows[{b}]", value) for b, value in enumerate(rows)]
    for b, tensor in enumerate(tensors):
        check_float(op, f"rows[{b}]", tensor)
        if tensor.dim() != 2:
            raise ValueError(
                f"{op}: rows[{b}] must be of rank 2 (N, D), got shape {tuple(tensor.shape)}. "
                "Flatten a convolution weight with .flatten(1)."
            )
        if 0 in tensor.shape:
            raise ValueError(
                f"{op}: rows[{b}] must have rows and columns, got shape {tuple(tensor.shape)}. "
                "Leave empty problems out."
            )
        for name in ("dtype", "device"):
            if getattr(tensor, name) != getattr(tensors[0], name):
                raise ValueError(
                    f"{op}: rows[{b}] must have the {name} of rows[0] "
                    f"({getattr(tensors[0], name)}), got {getattr(tensor, name)}. "
                    "Convert with .to() or call once per kind."
                )
    return tensors


def check_gram_rows(op: str, b: int, tensor: Tensor, remedy: str) -> None:
    """A ValueError if the Gram matrix of problem b would not fit."""
    if tensor.shape[0] > MAX_ROWS:
        gib = tensor.shape[0] ** 2 * 4 / 2**30
        raise ValueError(
            f"{op}: rows[{b}] must have at most {MAX_ROWS} rows, got {tensor.shape[0]}: "
            f"the Gram matrix would take {gib:.1f} GiB in float32. {remedy}"
        )


def check_finite(op: str, name: str, finite: Tensor) -> None:
    """A ValueError naming the first problem of which `finite`, bool (B,), is not True.

    None where nobody can wait for its values: a program is traced, or a CUDA graph captured.
    """
    if torch.compiler.is_compiling():
        return
    if finite.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if not bool(finite.all()):
        b = int(finite.logical_not().nonzero()[0])
        raise ValueError(
            f"{op}: {name}[{b}] must be finite, got NaN or Inf. Clean it with torch.nan_to_num."
        )
