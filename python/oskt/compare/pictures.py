"""The pictures of a table: accuracy against size or variant, before and after, on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.figure import Figure

from oskt.compare.cells import FULL_WIDTH
from oskt.compare.methods import METHODS, OURS, TITLES
from oskt.compare.rows import Row
from oskt.compare.summary import AT_ONCE, Grid, Line, best_rates
from oskt.compare.summary import grids as grids_of
from oskt.report.methods import (
    Series,
    against_columns,
    against_size,
    before_after,
    convergence,
)
from oskt.report.page import figure, section
from oskt.report.plots import Theme

PLACES = {method: place for place, method in enumerate(reversed(METHODS))}  # ours come first


def pictures(rows: Sequence[Row], grids: Sequence[Grid], variants: str = "") -> list[str]:
    """The HTML of the pictures section; [] where there is too little to draw.

    Args:
        rows: of one table.
        grids: made of them.
        variants: what stands at the top of the grids; "" for sizes.
    """
    scores = "accuracy" if any(r.trained and "accuracy" in r.trained for r in rows) else "mAP"
    parts = []
    for scenario in dict.fromkeys(grid.scenario for grid in grids):
        mine = {grid.budget: grid for grid in grids if grid.scenario == scenario}
        parts += _of_variants(mine, scores, variants) if variants else _of_sizes(mine, scores)
        drawn = [row for row in best_rates(rows) if row.curve and row.scenario == scenario]
        if drawn:
            named = ", ".join(dict.fromkeys(row.size for row in drawn))
            caption = f"The long training of {named} on its way, first seed ({scenario})."
            parts.append(figure(partial(convergence, list(map(_curve, drawn)), scores), caption))
    better = "Up is better." if variants else "Up and to the left is better."
    return [section("Pictures", better, "".join(parts))] if parts else []


def _of_sizes(grids: dict[str, Grid], scores: str) -> list[str]:
    """Every grid of a scenario against size, and what the longest training adds to at once."""
    parts, at_once = [], grids.get(AT_ONCE)
    for grid in grids.values():
        series = _lines(grid, at_once)
        if series:
            draw = partial(against_size, series, scores, _teacher(grid), _sizes(grid))
            note = "" if grid is at_once else " Dashed: ours at once, before any training."
            parts.append(figure(draw, f"{grid.heading}.{note}"))
    last = next(reversed(grids.values()))
    if at_once is not None and last is not at_once:
        before, after, sizes = _pairs(at_once, last)
        if after:
            caption = f"At once, and after the {last.budget} training ({last.scenario})."
            parts.append(figure(partial(before_after, before, after, sizes, scores), caption))
    return parts


def _of_variants(grids: dict[str, Grid], scores: str, variants: str) -> list[str]:
    """Every grid of a scenario against its columns."""
    parts = []
    for grid in grids.values():
        columns = grid.columns
        series = [_series(line, n, columns.index) for n, line in enumerate(grid.lines)]
        series = [one for one in series if len(one.x) > 2]
        if series:
            draw = partial(against_columns, series, scores, columns, variants)
            parts.append(figure(draw, f"{grid.heading}."))
    return parts


def size_plot(rows: Sequence[Row], theme: Theme) -> Figure:
    """Table 1 in one picture: every method after its long training, ours at once too."""
    by_budget = {grid.budget: grid for grid in grids_of(rows, "size")}
    grid = by_budget["long"]
    series = _lines(grid, by_budget.get(AT_ONCE))
    return against_size(series, "mAP", _teacher(grid), _sizes(grid), theme)


def _lines(grid: Grid, at_once: Grid | None) -> list[Series]:
    """Lines of three sizes or more: every method, and ours at once beside what is trained."""

    def against(line: Line, number: int, state: str = "") -> Series:
        return _series(line, number, lambda size: line.scores[size].parameters, state)

    series = [against(line, number) for number, line in enumerate(grid.lines)]
    if at_once is not None and at_once is not grid:
        series += [
            against(line, number, "at once") for number, line in enumerate(at_once.lines)
            if line.method in OURS
        ]  # fmt: skip
    return [one for one in series if len(one.x) > 2]


def _series(line: Line, number: int, x: Callable[[str], float], state: str = "") -> Series:
    """A line of a grid, its columns but for the full width in the order of their x."""
    columns = sorted((column for column in line.scores if column != FULL_WIDTH), key=x)
    scores = [line.scores[column] for column in columns]
    return Series(
        ", ".join(filter(None, (line.name, state))),
        [x(column) for column in columns],
        [score.first for score in scores],
        [score.deviation or 0.0 for score in scores],
        place=_place(line, number),
        ours=line.method in OURS,
        dashed=bool(state),
    )


def _place(line: Line, number: int) -> int:
    """A method's own colour; variants of one method need several."""
    return number if line.variant else PLACES.get(line.method, number)


def _pairs(before: Grid, after: Grid) -> tuple[list[Series], list[Series], list[str]]:
    """The lines that stand in both grids, x being the index of a size."""
    sizes = [column for column in after.columns if column != FULL_WIDTH]
    known = {line.name: line for line in before.lines}
    starts: list[Series] = []
    ends: list[Series] = []
    for number, line in enumerate(after.lines):
        start = known.get(line.name)
        shared = [
            place for place, column in enumerate(sizes)
            if start is not None and column in start.scores and column in line.scores
        ]  # fmt: skip
        if start is None or not shared:
            continue
        for one, found in ((start, starts), (line, ends)):
            y = [one.scores[sizes[place]].first for place in shared]
            found.append(Series(one.name, shared, y, place=_place(line, number)))
    return starts, ends, sizes


def _curve(row: Row) -> Series:
    """Scores on the way of a training, from what the student had at once."""
    points = [(step, 100 * score) for step, score in row.curve]
    if row.at_once is not None:
        points.insert(0, (0, 100 * next(iter(row.at_once.values()))))
    return Series(
        TITLES[row.method],
        [step for step, _ in points],
        [score for _, score in points],
        place=PLACES[row.method],
        ours=row.method in OURS,
    )


def _sizes(grid: Grid) -> dict[str, float]:
    """Size -> parameters, for the names along the bottom."""
    return {
        column: score.parameters
        for line in grid.lines if line.method != "depgraph"
        for column, score in line.scores.items() if column != FULL_WIDTH
    }  # fmt: skip


def _teacher(grid: Grid) -> float | None:
    found = [line.scores[FULL_WIDTH] for line in grid.lines if line.method == "teacher"]
    return found[0].first if found else None
