"""One training of a comparison: quiet, timed, with an end."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from oskt.compare.digits import DigitBatches, Digits
from oskt.compare.logs import SCORED
from oskt.task import ReIDData, TrainingBatches
from oskt.train import Recipe

CURVE_POINTS = 6  # evaluations of a training whose curve is drawn


def train(
    stage: Callable[..., Path],
    *made: Any,
    task: ReIDData | Digits,
    recipe: Recipe,
    folder: Path,
    end: float,
    device: str | None,
    curve: bool = False,
    **options: Any,
) -> None:
    """Run a stage of oskt.train in its folder, or go on with it where it was stopped.

    Args:
        stage: train_teacher, refine_chain, finetune_student or distill_student.
        made: its networks.
        task: the data.
        recipe, folder, device, options: of the stage.
        end: time (monotonic clock) after which it stops, its state saved, as by Ctrl-C.
        curve: score the network a few times on the way.
    """
    data = _Until(task.training(recipe), end)
    if curve:
        options["evaluate"] = _timed(task.scores)
        options["evaluate_every"] = max(1, recipe.epochs // CURVE_POINTS)
    with _messages(folder / "messages.txt"):
        options = {"report_every": len(data), **options}
        stage(*made, data, recipe, folder, resume=True, tensorboard=False, device=device, **options)
    (folder / "state.pt").unlink(missing_ok=True)  # three times the size of the network


class _Until:
    """Batches up to a time; then the training is asked to stop as Ctrl-C asks it.

    Nothing else is interrupted: what cannot be gone on with, such as drawing, is not begun in vain.
    """

    def __init__(self, data: TrainingBatches | DigitBatches, end: float) -> None:
        self.data, self.end = data, end
        self.fingerprint = data.fingerprint

    def __len__(self) -> int:
        return len(self.data)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor, Any]]:
        for batch in self.data.batches(epoch, start):
            if time.monotonic() > self.end:
                signal.raise_signal(signal.SIGINT)
            yield batch


def _timed(
    scores: Callable[[nn.Module], dict[str, float]],
) -> Callable[[nn.Module], dict[str, float]]:
    """Scores and seconds under names of their own: a log line has those of the loss as well."""

    def scored(model: nn.Module) -> dict[str, float]:
        start = time.perf_counter()
        found = {f"{SCORED}{name}": value for name, value in scores(model).items()}
        return {**found, f"{SCORED}seconds": time.perf_counter() - start}

    return scored


def live() -> bool:
    """Whether somebody watches."""
    return sys.stderr.isatty()


@contextlib.contextmanager
def _messages(path: Path) -> Iterator[None]:
    """Hundreds of trainings would drown a log file: what they say goes to a file of their own,
    unless somebody watches."""
    if live():
        yield
        return
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        yield
