"""The rivals of OSKT, each from its paper: starts of a student, and trainings under a teacher.

A start is `start(teacher, coupling, widths, *, seed)`, or takes the chain in place of the first two
(`published`, `oskt`); what it returns is trained by `oskt.train.finetune_student` or, on what the
teacher says, by `distill_student`.
"""

from oskt.baselines.distill import (
    DistilledObjective,
    DistillRecipe,
    class_means,
    distill_student,
    norm_direction_loss,
)
from oskt.baselines.fold import folding
from oskt.baselines.prune import depgraph
from oskt.baselines.starts import oskt, published, scratch, weight_selection

__all__ = [
    "DistillRecipe",
    "DistilledObjective",
    "class_means",
    "depgraph",
    "distill_student",
    "folding",
    "norm_direction_loss",
    "oskt",
    "published",
    "scratch",
    "weight_selection",
]
