"""Operators of one-shot knowledge transfer: C++ and CUDA, for torch, NumPy and CuPy."""

from oskt_ext._load import build_info
from oskt_ext._retrieval import RetrievalMetrics
from oskt_ext.distance_metrics import distance_metrics
from oskt_ext.expand import ExpansionPlan, IndexMap, expand
from oskt_ext.frozen_teacher import FrozenTeacher
from oskt_ext.k_reciprocal import KReciprocal, k_reciprocal
from oskt_ext.kmeans import KMeansResult, kmeans
from oskt_ext.merge_trees import MergeTrees, merge_trees
from oskt_ext.refining_loss import RefiningItem, RefiningPlan, refining_loss
from oskt_ext.retrieval_metrics import retrieval_metrics

__version__: str = build_info()["version"]

__all__ = [
    "ExpansionPlan",
    "FrozenTeacher",
    "IndexMap",
    "KMeansResult",
    "KReciprocal",
    "MergeTrees",
    "RefiningItem",
    "RefiningPlan",
    "RetrievalMetrics",
    "build_info",
    "distance_metrics",
    "expand",
    "k_reciprocal",
    "kmeans",
    "merge_trees",
    "refining_loss",
    "retrieval_metrics",
]
