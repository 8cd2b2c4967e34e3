"""One-shot knowledge transfer for person re-identification: one teacher, students of any size."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oskt import interop, models
    from oskt.chain import ChainLadder, WeightChain
    from oskt.train.joint import JointModel

__all__ = ["ChainLadder", "JointModel", "WeightChain", "interop", "models"]

_CLASSES = {
    "ChainLadder": "oskt.chain",
    "JointModel": "oskt.train.joint",
    "WeightChain": "oskt.chain",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for (PEP 562), so that `import oskt.edge` needs no torch."""
    if name in _CLASSES:
        return getattr(import_module(_CLASSES[name]), name)
    if name in __all__:
        return import_module(f"oskt.{name}")
    raise AttributeError(f"module 'oskt' has no attribute {name!r}")
