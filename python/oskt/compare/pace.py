"""Seconds of a table's trainings, taken in turn. Its rows are found over hours in which a machine
is not always as fast; what they cost is compared as if they had been found in one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from oskt.compare import logs
from oskt.compare.cells import Cell
from oskt.compare.parts import Part, Student, Teacher, Trained, trained_parts, work
from oskt.compare.rows import Row
from oskt.compare.workshop import Workshop

STEPS = 12  # that are timed, after as many in which kernels are compiled
ROUNDS = 3


def retimed(rows: Iterable[Row], cells: Sequence[Cell], workshop: Workshop, at: str) -> list[Row]:
    """The rows with the seconds that their trainings take when they are run in turn.

    Trainings that differ in seed, rate or length alone do equal work: one of them runs, ROUNDS
    times for a few steps among all others, and its median counts. Rows of other cells stay.

    Args:
        rows, cells: of one table.
        workshop: whose parts the trainings begin with; those that are not there are made.
        at: what the rows say of it: where and when.
    """
    rows, known = list(rows), {cell.key: list(trained_parts(cell.part)) for cell in cells}
    tried: dict[str, Trained] = {}
    for row in rows:
        for part in known.get(row.key, ()):
            tried.setdefault(work(part), part)
    watch, times = Stopwatch(workshop), dict[str, list[float]]()
    with tqdm(total=ROUNDS * len(tried), desc="trainings timed in turn") as bar:
        for _ in range(ROUNDS):
            for key, part in tried.items():
                times.setdefault(key, []).append(watch.seconds_of_step(part))
                bar.update()

    def timed(row: Row) -> Row:
        parts = known.get(row.key)
        if parts is None:
            return row
        step = [median(times[work(part)]) for part in parts]
        shared = [
            {**one, "seconds": round(one["steps"] * seconds, 2)}
            for one, seconds in zip(row.shared, step)
        ]  # fmt: skip
        own = round(row.steps * step[-1], 2) if row.steps else 0.0
        return replace(row, seconds=own, shared=shared, timed=at)

    return list(map(timed, rows))


class Stopwatch(Workshop):
    """A workshop whose trainings are tried for a few steps, in a folder that is gone afterwards;
    what they begin with is made, and kept, where the other workshop has its parts."""

    def __init__(self, workshop: Workshop) -> None:
        super().__init__(workshop.root, workshop.device)
        self._tried: Trained | None = None
        self._scratch = Path()

    def seconds_of_step(self, part: Trained) -> float:
        """Of a training's step, the first ones apart."""
        make: Callable[[Any], Path] = (
            self.student if isinstance(part, Student)
            else self.teacher if isinstance(part, Teacher)
            else self.chain
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as scratch:
            self._tried, self._scratch = part, Path(scratch)
            make(part)
            return logs.seconds_of_last_steps(self._scratch)

    def folder(self, part: Part) -> Path:
        return self._scratch if part is self._tried else super().folder(part)

    def _train(self, *made: Any, **options: Any) -> None:
        if options["folder"] == self._scratch:
            options |= {"max_steps": 2 * STEPS, "report_every": STEPS}
        super()._train(*made, **options)
