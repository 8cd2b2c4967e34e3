"""The report of a table, from its rows alone: Markdown, and a page with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from oskt.compare.cells import FULL_WIDTH
from oskt.compare.methods import TITLES
from oskt.compare.pictures import pictures
from oskt.compare.rows import Row, read_rows
from oskt.compare.summary import Cost, Grid, Line, Score, costs, grids
from oskt.compare.tables import TABLES
from oskt.compare.verdicts import verdicts
from oskt.files.checkpoint import write_atomic
from oskt.report.duration import duration_text
from oskt.report.page import facts_section, section, shell
from oskt.report.table import count_text
from oskt.train import Recipe


def write_reports(out: str | Path) -> list[Path]:
    """Draw the report of every table that a folder has rows of.

    Raises:
        FileNotFoundError: the folder holds no rows.
    """
    found = [name for name in TABLES if read_rows(Path(out) / f"{name}.jsonl")]
    if not found:
        raise FileNotFoundError(
            f"compare: folder must hold rows of a table, got '{out}' without a row in any "
            "TABLE.jsonl. Pass the --out of an earlier `oskt compare`."
        )
    return [write_report(out, name) for name in found]


def write_report(out: str | Path, table: str) -> Path:
    """Write OUT/TABLE.md and OUT/TABLE.html from OUT/TABLE.jsonl; returns the page's path."""
    out = Path(out)
    rows = read_rows(out / f"{table}.jsonl")
    write_atomic(out / f"{table}.md", markdown(table, rows).encode())
    path = out / f"{table}.html"
    write_atomic(path, _page(table, rows).encode())
    return path


def markdown(table: str, rows: Sequence[Row]) -> str:
    """The report as text: every grid, what was spent, what it says."""
    lines = [f"# {TABLES[table].title}", "", *facts_lines(rows), ""]
    for grid in grids(rows, TABLES[table].columns):
        lines += [f"## {grid.heading}", "", *grid_lines(grid), ""]
    lines += ["## What was spent", "", *_cost_lines(costs(rows)), ""]
    said = verdicts(table, rows)
    if said:
        lines += ["## What it says", "", *(f"- {sentence}" for sentence in said), ""]
    return "\n".join(lines)


def grid_lines(grid: Grid) -> list[str]:
    """A grid as a Markdown table; the best of a column is bold."""
    lines = [
        "| method | " + " | ".join(_column(grid, c) for c in grid.columns) + " |",
        "|---" * (1 + len(grid.columns)) + "|",
    ]
    for line in grid.lines:
        cells = []
        for column in grid.columns:
            score = line.scores.get(column)
            text = "" if score is None else _cell_text(score)
            best = score is not None and _is_best(grid, line, column)
            cells.append(f"**{text}**" if best else text)
        lines.append(f"| {line.name} | " + " | ".join(cells) + " |")
    return lines


_COST_HEADS = (
    "method", "after", "steps per size", "teacher", "refinement", "students", "steps in all", "time"
)  # fmt: skip


def _cost_lines(found: Sequence[Cost]) -> list[str]:
    lines = [
        f"| {' | '.join(_COST_HEADS)} |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    return lines + [f"| {' | '.join(_cost_cells(cost))} |" for cost in found]


def _cost_cells(cost: Cost) -> list[str]:
    low, high = cost.own_steps
    name = ", ".join(filter(None, (TITLES[cost.method], cost.variant, cost.scenario)))
    parts = (cost.teacher, cost.refinement, cost.students)
    return [
        name,
        cost.budget,
        f"{low:,}" if low == high else f"{low:,} to {high:,}",
        *(f"{steps:,.0f} ({duration_text(seconds)})" for steps, seconds in parts),
        f"{cost.steps:,.0f} for {cost.sizes} size{'s' if cost.sizes > 1 else ''}",
        duration_text(cost.seconds),
    ]


def facts_lines(rows: Sequence[Row]) -> list[str]:
    """Where the numbers come from, in words."""
    return [f"{name}: {value}." for name, value in _facts(rows).items()]


def _facts(rows: Sequence[Row]) -> dict[str, Any]:
    def all_of(values: Any) -> str:
        return "; ".join(dict.fromkeys(str(value) for value in values if value != ""))

    scores = "accuracy" if any(r.trained and "accuracy" in r.trained for r in rows) else "mAP"
    second = "" if scores == "accuracy" else " / rank-1"
    seeds = sorted({row.seed for row in rows})
    rates = sorted({row.rate for row in rows if row.rate})
    trained_at = all_of(commit for row in rows for commit in _trained_at(row))
    timed = all_of(row.timed for row in rows)
    at_once = "norm statistics measured on 512 training images without labels"
    if any(row.method == "oskt-published" for row in rows):
        at_once += "; the published start has none, as in its code, and a fresh head"
    return {
        "Numbers": f"{scores}{second} in %, mean ± standard deviation over seeds "
        f"{', '.join(map(str, seeds))}",
        "At once": at_once,
        **({"Rates": _rates_text(rates)} if rates else {}),
        "Teacher": all_of(_teacher(row) for row in rows),
        "Data": all_of(title for row in rows for title in row.data),
        "Machine": all_of(f"{row.machine}, {row.threads} threads" for row in rows),
        "Commit": all_of(row.commit for row in rows),
        **({"Trained at": trained_at} if trained_at else {}),
        **({"Seconds": f"steps of all trainings timed in turn: {timed}"} if timed else {}),
        "Dates": f"{min(r.date for r in rows)[:10]} to {max(r.date for r in rows)[:10]}",
    }


def _trained_at(row: Row) -> list[str]:
    """The commits of all trainings behind a row, where it knows them."""
    return [*(part.get("commit", "") for part in row.shared), row.trained_at]


def _rates_text(rates: Sequence[float]) -> str:
    listed = ", ".join(f"{rate:g}" for rate in rates)
    return (
        f"students are trained at {listed}; each method, size and length shows the one with the "
        "better mean over seeds"
    )


def _teacher(row: Row) -> str:
    """The network behind a row, and the size of its images."""
    found = row.settings
    for name in ("start", "source", "teacher"):
        found = found.get(name, found)
    if "network" not in found:
        return ""
    network = " ".join(f"{name} {value}" for name, value in found["network"].items() if value)
    recipe = {**Recipe().to_dict(), **found["recipe"]}
    return f"{network}, images {recipe['height']} x {recipe['width']}"


def _page(table: str, rows: Sequence[Row]) -> str:
    about, said = TABLES[table], verdicts(table, rows)
    found = grids(rows, about.columns)
    lead = "Mean over seeds, its standard deviation, and rank-1 beside it; best of a column marked."
    sections = [section(grid.heading, lead, _grid_html(grid)) for grid in found]
    sections += pictures(rows, found, about.variants)
    sections.append(
        section(
            "What was spent",
            "Optimiser steps and seconds: of one size alone, and of a whole family of sizes with "
            "what its sizes share.",
            _table_html(_COST_HEADS, map(_cost_cells, costs(rows))),
        )
    )
    sections.append(facts_section(_facts(rows)))
    opening = said[0] if said else lead
    if said:
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in said)
        asked = "What was asked of the tables, and whether it holds."
        sections.insert(0, section("What it says", asked, f'<ul class="notes">{items}</ul>'))
    return shell(about.title, opening, "", sections)


def _column(grid: Grid, column: str) -> str:
    name = "full width" if column == FULL_WIDTH else column
    counts = {
        round(line.scores[column].parameters) for line in grid.lines
        if column in line.scores and line.method != "depgraph"  # pruned to nearly as many
    }  # fmt: skip
    return f"{name}, {count_text(counts.pop())}" if len(counts) == 1 else name


def _cell_text(score: Score) -> str:
    return score.text if score.second is None else f"{score.text} / {score.second:.1f}"


def _is_best(grid: Grid, line: Line, column: str) -> bool:
    return (
        line.method != "teacher"
        and round(line.scores[column].first, 1) >= grid.best(column)
    )  # fmt: skip


def _grid_html(grid: Grid) -> str:
    body = []
    for line in grid.lines:
        cells = ""
        for column in grid.columns:
            score = line.scores.get(column)
            if score is None:
                cells += '<td class="number quiet">–</td>'
                continue
            best = _is_best(grid, line, column)
            tag, kind = ("b", " best") if best else ("span", "")
            second = "" if score.second is None else f"<small>{score.second:.1f}</small>"
            cells += f'<td class="number score{kind}"><{tag}>{score.text}</{tag}>{second}</td>'
        body.append(f'<tr><th scope="row">{escape(line.name)}</th>{cells}</tr>')
    heads = "".join(f'<th class="number">{escape(_column(grid, c))}</th>' for c in grid.columns)
    return _scroll(f"<th>Method</th>{heads}", body)


def _table_html(heads: Sequence[str], rows: Any) -> str:
    body = [
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in rest) + "</tr>"
        for first, *rest in rows
    ]  # fmt: skip
    return _scroll("".join(f"<th>{escape(head)}</th>" for head in heads), body)


def _scroll(heads: str, body: Sequence[str]) -> str:
    joined = "\n".join(body)
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{joined}\n</tbody></table></div>"
    )
