"""What rows say: means and spreads over seeds, best of a column, what a family cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from oskt.compare.cells import FULL_WIDTH
from oskt.compare.methods import OURS, TITLES
from oskt.compare.rows import Row

AT_ONCE = "at once"
BUDGETS = {
    AT_ONCE: "At once, before any training of their own",
    "short": "After the short training: as many steps for the whole family as one refinement takes",
    "long": "After the long training: as much time for the whole family as one refinement takes",
    "own": "After training on the students' data",
}


@dataclass(frozen=True)
class Score:
    """Mean over seeds, in percent.

    Args:
        first: mAP, or accuracy.
        second: rank-1; None beside accuracy.
        deviation: sample standard deviation of `first`; None for one seed.
        seeds: how many.
        parameters, macs: of the network; means, as pruned ones may differ by seed.
    """

    first: float
    second: float | None
    deviation: float | None
    seeds: int
    parameters: float
    macs: float

    @property
    def text(self) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.1f}"
        return f"{self.first:.1f}{spread}"


@dataclass(frozen=True)
class Line:
    """One line of a grid: a method, or a variant of it, and its scores by column."""

    method: str
    variant: str
    scores: dict[str, Score]

    @property
    def name(self) -> str:
        """The method as people read it, and its variant."""
        return ", ".join(filter(None, (TITLES[self.method], self.variant)))


@dataclass(frozen=True)
class Grid:
    """Methods against sizes (or variants), in one scenario after one budget.

    Args:
        scenario: of the rows.
        budget: AT_ONCE, "short", "long" or "own".
        columns: in the order of the table.
        lines: in the order of the table.
    """

    scenario: str
    budget: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def heading(self) -> str:
        return f"{BUDGETS[self.budget]} ({self.scenario})"

    def best(self, column: str) -> float:
        """The highest mean of a column among students, rounded as it is printed."""
        found = [
            line.scores[column].first for line in self.lines
            if column in line.scores and line.method != "teacher"
        ]  # fmt: skip
        return round(max(found, default=0.0), 1)


def best_rates(rows: Iterable[Row]) -> list[Row]:
    """Of rows that differ in the student's rate alone, those of the rate with the best mean over
    seeds: every method, size and budget has its own, chosen by the scores that are reported.

    A rate changes no work: the least time of a training at all rates stands, as in a benchmark.
    """
    rows = list(rows)
    scores: dict[tuple[str, ...], dict[float, list[float]]] = {}
    seconds: dict[tuple[tuple[str, ...], int], float] = {}
    for row in rows:
        if row.trained is not None:
            found = scores.setdefault(_place(row), {}).setdefault(row.rate, [])
            found.append(next(iter(row.trained.values())))
        run = (_place(row), row.seed)
        seconds[run] = min(row.seconds, seconds.get(run, row.seconds))
    best = {
        place: max(by_rate, key=lambda rate: (len(by_rate[rate]), statistics.fmean(by_rate[rate])))
        for place, by_rate in scores.items()
    }  # fmt: skip
    return [
        replace(row, seconds=seconds[_place(row), row.seed])
        for row in rows if best.get(_place(row), row.rate) == row.rate
    ]  # fmt: skip


def _place(row: Row) -> tuple[str, ...]:
    """What a row is about, whatever its seed and rate."""
    return (row.scenario, row.variant, row.method, row.size, row.budget)


def grids(rows: Sequence[Row], columns: str) -> list[Grid]:
    """The grids of a table, every student at its best rate.

    Args:
        rows: of one table.
        columns: "size" or "variant", what stands at the top; the other one heads a line.
    """
    found, rows = [], best_rates(rows)
    for scenario in _unique(row.scenario for row in rows):
        mine = [row for row in rows if row.scenario == scenario]
        budgets = [b for b in _unique(row.budget for row in mine) if b]
        for budget in [AT_ONCE, *budgets]:
            grid = _grid(mine, scenario, budget, columns)
            if any(line.method != "teacher" for line in grid.lines):
                found.append(grid)
    return found


def _grid(rows: Sequence[Row], scenario: str, budget: str, columns: str) -> Grid:
    cells: dict[tuple[str, str], dict[str, dict[int, Row]]] = {}
    names: dict[str, None] = {}
    for row in rows:
        scores = row.at_once if budget == AT_ONCE and row.size != FULL_WIDTH else row.trained
        if scores is None or (row.budget not in (budget, "") and budget != AT_ONCE):
            continue
        column, head = row.size, row.variant
        if columns == "variant":
            column, head = row.variant, "refined" if row.size == FULL_WIDTH else row.size
        names.setdefault(column)
        # The same student stands in several budgets at once: one of each seed counts.
        cells.setdefault((row.method, head), {}).setdefault(column, {})[row.seed] = row
    ordered = [n for n in names if n != FULL_WIDTH] + [n for n in names if n == FULL_WIDTH]
    methods = _unique(method for method, _ in cells)
    lines = tuple(
        Line(method, head, {c: _score(list(by.values()), budget) for c, by in found.items()})
        for method in methods
        for (own, head), found in cells.items() if own == method
    )  # fmt: skip
    return Grid(scenario, budget, tuple(ordered), lines)


def _score(rows: Sequence[Row], budget: str) -> Score:
    found = []
    for row in rows:
        scores = row.at_once if budget == AT_ONCE and row.size != FULL_WIDTH else row.trained
        assert scores is not None
        found.append(scores)
    name = "mAP" if "mAP" in found[0] else "accuracy"
    first = [100 * scores[name] for scores in found]
    second = [100 * scores["rank1"] for scores in found if "rank1" in scores]
    return Score(
        statistics.fmean(first),
        statistics.fmean(second) if second else None,
        statistics.stdev(first) if len(first) > 1 else None,
        len(first),
        statistics.fmean(row.parameters for row in rows),
        statistics.fmean(row.macs for row in rows),
    )


@dataclass(frozen=True)
class Cost:
    """What one method spent on a family of sizes, mean over seeds.

    Args:
        sizes: how many sizes the family has here.
        own_steps: (least, most) optimiser steps of one size alone.
        teacher, refinement, students: (steps, seconds) of the three together.
    """

    scenario: str
    variant: str
    method: str
    budget: str
    sizes: int
    own_steps: tuple[int, int]
    teacher: tuple[float, float]
    refinement: tuple[float, float]
    students: tuple[float, float]

    @property
    def steps(self) -> float:
        return self.teacher[0] + self.refinement[0] + self.students[0]

    @property
    def seconds(self) -> float:
        return self.teacher[1] + self.refinement[1] + self.students[1]


def costs(rows: Iterable[Row]) -> list[Cost]:
    """The cost of every family: the sizes of one method and budget, and what they share. Trainings
    at rates that were not taken cost nothing, as other trials of a recipe do.

    Of our methods there is a line AT_ONCE, too: the family before any fine-tuning.
    """
    families: dict[tuple[str, str, str, str], dict[int, list[Row]]] = {}
    for row in best_rates(rows):
        if row.size == FULL_WIDTH:
            continue
        labels = (row.scenario, row.variant, row.method)
        for budget in (AT_ONCE, row.budget) if row.method in OURS else (row.budget,):
            family = families.setdefault((*labels, budget), {}).setdefault(row.seed, [])
            if budget != AT_ONCE or all(row.size != other.size for other in family):
                family.append(row)
    found = []
    for (scenario, variant, method, budget), by_seed in families.items():
        at_once, sizes = budget == AT_ONCE, max(map(len, by_seed.values()))
        # A seed of which not every size is found yet has not spent what a family costs.
        whole = [family for family in by_seed.values() if len(family) == sizes]
        per_seed = [_spent(family, at_once) for family in whole]
        own = [0 if at_once else row.steps for family in whole for row in family]
        teacher, refinement, students = (
            (statistics.fmean(s[part][0] for s in per_seed),
             statistics.fmean(s[part][1] for s in per_seed))
            for part in ("teacher", "refinement", "students")
        )  # fmt: skip
        span = (min(own), max(own))
        found.append(
            Cost(scenario, variant, method, budget, sizes, span, teacher, refinement, students)
        )
    return found


def _spent(family: Sequence[Row], at_once: bool) -> dict[str, tuple[float, float]]:
    shared = {part["name"]: part for row in family for part in row.shared}

    def of(kind: str) -> tuple[float, float]:
        parts = [part for part in shared.values() if part["kind"] == kind]
        return sum(p["steps"] for p in parts), sum(p["seconds"] for p in parts)

    own = (0.0, 0.0)
    if not at_once:
        own = sum(row.steps for row in family), sum(row.seconds for row in family)
    return {"teacher": of("teacher"), "refinement": of("refinement"), "students": own}


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
