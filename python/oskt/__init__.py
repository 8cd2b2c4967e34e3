"""One-shot knowledge transfer for person re-identification: one teacher, students of any size."""

from oskt import interop, models
from oskt.chain import WeightChain
from oskt.joint import JointModel

__all__ = ["JointModel", "WeightChain", "interop", "models"]
