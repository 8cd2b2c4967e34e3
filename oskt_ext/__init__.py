"""Operators of one-shot knowledge transfer: C++ and CUDA, for torch, NumPy and CuPy."""

from oskt_ext._load import build_info
from oskt_ext.expand import ExpansionPlan, IndexMap, expand
from oskt_ext.kmeans import KMeansResult, kmeans
from oskt_ext.refining_loss import RefiningItem, RefiningPlan, refining_loss
from oskt_ext.retrieval_metrics import RetrievalMetrics, retrieval_metrics

__version__: str = build_info()["version"]

__all__ = [
    "ExpansionPlan",
    "IndexMap",
    "KMeansResult",
    "RefiningItem",
    "RefiningPlan",
    "RetrievalMetrics",
    "build_info",
    "expand",
    "kmeans",
    "refining_loss",
    "retrieval_metrics",
]
