"""Arrays in, the same kind out: tensors as they are, NumPy and CuPy through DLPack; plans moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Plan = TypeVar("Plan")


def as_tensor(op: str, name: str, value: Any) -> Tensor:
    """A tensor over the memory of `value` (no copy), or a TypeError naming the argument."""
    if isinstance(value, Tensor):
        return value
    if type(value).__module__.split(".")[0] == "numpy":
        # DLPack refuses read-only arrays; a copy keeps the caller's array safe.
        writable = getattr(value, "flags", None) is None or value.flags.writeable
        return torch.from_numpy(value if writable else value.copy())
    if hasattr(value, "__dlpack__"):
        return torch.from_dlpack(value)
    raise TypeError(
        f"{op}: {name} must be a tensor or an array that speaks DLPack, "
        f"got {type(value).__name__}. Pass a torch, NumPy or CuPy array."
    )


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
    for name, value in vars(plan).items():
        object.__setattr__(other, name, value.to(device) if isinstance(value, Tensor) else value)
    return other
