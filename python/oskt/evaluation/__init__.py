"""Evaluation: embeddings of images, retrieval scores, ranking lists."""

from oskt.evaluation.scores import Evaluation, Scores, evaluate

__all__ = ["Evaluation", "Scores", "evaluate"]
