"""Stage three: train a student that an expansion has initialised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from oskt.train.loop import Batches
from oskt.train.recipe import Recipe
from oskt.train.teacher import train_teacher


def finetune_student(
    student: nn.Module,
    data: Batches,
    recipe: Recipe,
    out: str | Path,
    *,
    parent: str | Path | None = None,
    **options: Any,
) -> Path:
    """Train a student and write it to out/student.safetensors.

    Args:
        student: of any size, for example `chain.student(width=1 / 2)`; trained in place.
            `student.spec` and `student.widths`, if there, are stored.
        data: training batches.
        recipe: for example RECIPES["paper-student"].
        out: folder of this run.
        parent: the chain file that it comes from; its hash is stored.
        options: those of `loop.fit`.

    Returns:
        Path of the file, written by the first process.

    Notes:
        The same job as `train_teacher` from another start.
    """
    return train_teacher(student, data, recipe, out, parent=parent, name="student", **options)
