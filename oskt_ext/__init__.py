"""Operators of one-shot knowledge transfer: C++ and CUDA, for torch, NumPy and CuPy."""

from oskt_ext._load import build_info
from oskt_ext.expand import ExpansionPlan, IndexMap, expand
from oskt_ext.kmeans import KMeansResult, kmeans
from oskt_ext.merge_trees import MergeTrees, merge_trees
from oskt_ext.refining_loss import RefiningItem, RefiningPlan, refining_loss
from oskt_ext.retrieval_metrics import RetrievalMetrics, retrieval_metrics

__version__: str = build_info()["version"]

__all__ = [
    "ExpansionPlan",
    "IndexMap",
    "KMeansResult",
    "MergeTrees",
    "RefiningItem",
    "RefiningPlan",
    "RetrievalMetrics",
    "build_info",
    "expand",
    "kmeans",
    "merge_trees",
    "refining_loss",
    "retrieval_metrics",
]
