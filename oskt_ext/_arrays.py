"""Arrays in, the same kind out: tensors as they are, NumPy and CuPy through DLPack; plans moved."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

Plan = TypeVar("Plan")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def as_tensor(op: str, name: str, value: Any) -> Tensor:
    """A tensor over the memory of `value`, or a TypeError naming the argument.

    Nothing is copied but NumPy arrays that torch cannot look at: read-only ones (so that the
    caller's stays safe), those of negative strides or of the other byte order.
    """
    if isinstance(value, Tensor):
        return value
    if type(value).__module__.split(".")[0] == "numpy":
        masked = isinstance(value, np.ma.MaskedArray)  # torch would read what lies under the mask
        if isinstance(value, np.ndarray) and not masked and value.dtype.kind in "fiub":
            backwards = min(value.strides, default=0) < 0
            if not value.dtype.isnative:
                value = value.astype(value.dtype.newbyteorder("="))
            elif backwards or not value.flags.writeable:
                value = value.copy()
            if value.dtype != np.longdouble:
                return torch.from_numpy(value)
        got = f"{type(value).__name__} of {getattr(value, 'dtype', 'no type')}"
    elif hasattr(value, "__dlpack__"):
        return torch.from_dlpack(value)
    else:
        got = type(value).__name__
    raise TypeError(
        f"{op}: {name} must be a tensor or an array of numbers that speaks DLPack, got {got}. "
        "Pass a torch, NumPy or CuPy array."
    )


def check_float(op: str, name: str, tensor: Tensor) -> None:
    """A TypeError unless the tensor is dense and of a type that the kernels compute in."""
    if tensor.dtype not in FLOATS:
        raise TypeError(
            f"{op}: {name} must be float64, float32, float16 or bfloat16, got {tensor.dtype}. "
            "Convert it with .float()."
        )
    check_dense(op, name, tensor)


def check_dense(op: str, name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided:
        raise TypeError(
            f"{op}: {name} must be dense, got {tensor.layout}. Convert it with .to_dense()."
        )


def check_no_tangent(op: str, name: str, tensor: Tensor) -> None:
    """A NotImplementedError in forward mode, where torch would take a result's tangent for 0."""
    if torch.compiler.is_compiling():
        return
    _, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    if tangent is not None:
        raise NotImplementedError(
            f"{op}: {name} must have no tangent, got one of forward-mode differentiation. "
            "Differentiate in reverse, with backward() or torch.autograd.grad."
        )


def as_int(value: Any) -> int | None:
    """What can be an index as an int, a torch.SymInt as it is; None for bool and all else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, torch.SymInt)):
        return cast(int, value)
    if getattr(value, "dtype", None) == torch.bool:
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def restorer(value: Any) -> Callable[[Tensor], Any]:
    """The function that turns a result into the kind of array that `value` is."""
    if isinstance(value, Tensor):
        return lambda tensor: tensor
    if type(value).__module__.split(".")[0] == "numpy":
        return lambda tensor: tensor.detach().cpu().numpy()
    if type(value).__module__.split(".")[0] == "cupy":
        import cupy

        return lambda tensor: cupy.from_dlpack(tensor.detach())
    return lambda tensor: tensor


def moved(plan: Plan, device: torch.device | str) -> Plan:
    """A frozen dataclass with its tensors on `device`, not made (and checked) anew."""
    other = object.__new__(type(plan))
    with torch.inference_mode(False):  # its tensors would serve no training later
        for name, value in vars(plan).items():
            there = value.to(device) if isinstance(value, Tensor) else value
            object.__setattr__(other, name, there)
    return other
