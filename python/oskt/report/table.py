"""The comparison table: rows of one network side by side; in words, for terminal and page."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from oskt.report.data import ResultRow

TITLES = {"at_once": "At once", "finetuned": "Fine-tuned", "scratch": "From scratch"}


@dataclass(frozen=True)
class Cell:
    """The mean over seeds of one network in one series; mAP and rank-1 in percent."""

    mAP: float
    rank1: float
    deviation: float | None
    steps: int
    seeds: int

    @property
    def text(self) -> str:
        spread = "" if self.deviation is None else f" ±{self.deviation:.1f}"
        return f"{self.mAP:.1f}{spread}"


@dataclass(frozen=True)
class Line:
    """One network: its size and what it reached in every series."""

    model: str
    width: str
    parameters: int
    macs: int
    cells: dict[str, Cell]

    @property
    def best(self) -> str:
        return max(self.cells, key=lambda series: self.cells[series].mAP)

    def difference(self, series: str) -> float | None:
        """mAP points above training from scratch; negative where the method does not win."""
        if series not in self.cells or "scratch" not in self.cells:
            return None
        # From the rounded numbers on show, so that a reader's subtraction agrees.
        return round(self.cells[series].mAP, 1) - round(self.cells["scratch"].mAP, 1)

    @property
    def unfair(self) -> bool:
        """Whether the network from scratch had fewer steps than the fine-tuned one."""
        pair = self.cells.get("scratch"), self.cells.get("finetuned")
        return pair[0] is not None and pair[1] is not None and pair[0].steps < pair[1].steps


@dataclass(frozen=True)
class Comparison:
    """Teachers, students from small to large, and the series that occur."""

    teachers: tuple[Line, ...]
    students: tuple[Line, ...]
    series: tuple[str, ...]

    @property
    def differences(self) -> tuple[str, ...]:
        """The series that are compared with training from scratch."""
        if "scratch" not in self.series:
            return ()
        return tuple(s for s in ("at_once", "finetuned") if s in self.series)


def compare(rows: Iterable[ResultRow]) -> Comparison:
    """Group rows by network and series and average over seeds."""
    groups: dict[str, dict[str, list[ResultRow]]] = {}
    for row in rows:
        groups.setdefault(row.model, {}).setdefault(row.series, []).append(row)
    lines = []
    for model, by_series in groups.items():
        first = next(iter(by_series.values()))[0]
        cells = {series: _cell(members) for series, members in by_series.items()}
        lines.append(Line(model, first.width, first.parameters, first.macs, cells))
    lines.sort(key=lambda line: (line.parameters, line.macs))
    teachers = tuple(line for line in lines if "teacher" in line.cells)
    students = tuple(line for line in lines if "teacher" not in line.cells)
    found = {series: None for line in students for series in line.cells}
    known = [series for series in TITLES if series in found]
    return Comparison(teachers, students, (*known, *(s for s in found if s not in TITLES)))


def _cell(rows: Sequence[ResultRow]) -> Cell:
    scores = [100 * row.mAP for row in rows]
    return Cell(
        mAP=statistics.fmean(scores),
        rank1=100 * statistics.fmean(row.rank1 for row in rows),
        deviation=statistics.stdev(scores) if len(rows) > 1 else None,
        steps=round(statistics.fmean(row.steps for row in rows)),
        seeds=len(rows),
    )


def series_title(series: str) -> str:
    """The name of a series as people read it."""
    return TITLES.get(series, series.replace("_", " ").capitalize())


def count_text(value: float) -> str:
    """A count with three digits and a unit.

    Example:
        >>> count_text(370_000), count_text(23_500_000), count_text(71_800_000)
        ('370 k', '23.5 M', '71.8 M')
    """
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size * 0.9995:
            scaled = value / size
            digits = max(0, 2 - (scaled >= 9.995) - (scaled >= 99.95))
            return f"{scaled:.{digits}f}{unit}"
    return f"{value:.0f}"


def difference_text(points: float | None) -> str:
    """Signed mAP points with a true minus sign."""
    return "" if points is None else f"{points:+.1f}".replace("-", "−")


def headline(rows: Iterable[ResultRow]) -> str:
    """Say in plain words what the numbers show, losses as well as wins.

    Example:
        >>> rows = [
        ...     ResultRow("teacher", "teacher", "1", 1_400_000, 10**8, mAP=0.9, rank1=0.95),
        ...     ResultRow("S", "at_once", "1/4", 90_000, 10**7, mAP=0.81, rank1=0.9),
        ...     ResultRow("S", "scratch", "1/4", 90_000, 10**7, mAP=0.53, rank1=0.7, steps=700),
        ... ]
        >>> for sentence in headline(rows).split(". "):
        ...     print(sentence)
        One teacher of 1.40 M parameters (90.0 mAP) gave 1 student of 90.0 k parameters
        At once, before any training of its own, it reaches 81.0 mAP
        Trained from scratch the same size reaches 53.0: the student wins at once (+28.0 points).
    """
    table = compare(rows)
    students = table.students
    if not students:
        return "No student has been measured yet."
    one = len(students) == 1
    teacher = ""
    if table.teachers:
        best = max(table.teachers, key=lambda line: line.cells["teacher"].mAP)
        score = best.cells["teacher"].mAP
        teacher = f" of {count_text(best.parameters)} parameters ({score:.1f} mAP)"
    sizes = _span([line.parameters for line in students], count_text)
    who = "1 student" if one else f"{len(students)} students"
    sentences = [f"One teacher{teacher} gave {who} of {sizes} parameters."]
    at_once, finetuned, scratch = (_scores(students, series) for series in TITLES)
    they, own = ("it reaches", "its own") if one else ("they reach", "their own")
    if at_once:
        after = f", and {finetuned} after fine-tuning" if finetuned else ""
        opening = f"At once, before any training of {own}, {they}"
        sentences.append(f"{opening} {at_once} mAP{after}.")
    elif finetuned:
        sentences.append(f"After fine-tuning {they} {finetuned} mAP.")
    verdicts = [
        _verdict(students, series, when)
        for series, when in (("at_once", "at once"), ("finetuned", "after fine-tuning"))
        if any(line.difference(series) is not None for line in students)
    ]
    if verdicts:
        same = "the same size reaches" if one else "the same sizes reach"
        who = "the student" if one else "the students"
        outcome = " and ".join(verdicts)
        sentences.append(f"Trained from scratch {same} {scratch}: {who} {outcome}.")
    return " ".join(sentences)


def _scores(students: Sequence[Line], series: str) -> str:
    found = [line.cells[series].mAP for line in students if series in line.cells]
    return _span(found, "{:.1f}".format) if found else ""


def _span(values: Sequence[float], text: Callable[[float], str]) -> str:
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"


def _verdict(students: Sequence[Line], series: str, when: str) -> str:
    """How often, and by how much, a series is above training from scratch."""
    found = [line.difference(series) for line in students]
    points = [p for p in found if p is not None]
    wins, mean = sum(p > 0 for p in points), difference_text(statistics.fmean(points))
    if len(points) == 1:
        outcome = "wins" if points[0] > 0 else "does not win"
        return f"{outcome} {when} ({mean} points)"
    every = "both sizes" if len(points) == 2 else f"all {len(points)} sizes"
    where = every if wins == len(points) else f"{wins or 'none'} of the {len(points)} sizes"
    return f"win on {where} {when} ({mean} points on average)"


def notes(rows: Iterable[ResultRow]) -> list[str]:
    """What a reader must know to read the table fairly."""
    table = compare(rows)
    lines = ["mAP in large type, rank-1 beside it, in percent; the best of each line is marked."]
    for series in table.series:
        cells = [line.cells[series] for line in table.students if series in line.cells]
        if any(cell.steps for cell in cells):
            spent = _span([cell.steps for cell in cells], "{:,.0f}".format)
            lines.append(f"{series_title(series)}: {spent} optimiser steps for each network.")
        elif series == "at_once":
            lines.append("At once: straight from the chain, no step of training.")
    shared = [line.cells["teacher"].steps for line in table.teachers]
    if any(shared):
        spent = _span(shared, "{:,.0f}".format)
        lines.append(f"Teacher and chain: {spent} steps, spent once for all sizes.")
    seeds = {cell.seeds for line in table.students for cell in line.cells.values()}
    if max(seeds, default=1) > 1:
        lines.append(f"± is the standard deviation over {max(seeds)} seeds.")
    if any(line.unfair for line in table.students):
        lines.append("† The network from scratch had fewer steps than the fine-tuned one.")
    return lines


def rich_table(rows: Iterable[ResultRow]) -> Table:
    """The table for the terminal, narrow enough for 80 columns."""
    rows = tuple(rows)
    table = compare(rows)
    # The width alone names a student where no two have one width.
    named = len({line.width for line in table.students}) < len(table.students)
    result = Table(
        header_style="bold", caption_justify="left", title_justify="left", box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    for line in table.teachers:
        cell = line.cells["teacher"]
        size = f"{count_text(line.parameters)} parameters, {count_text(line.macs)} MACs"
        text = f"{line.model}: {size}, mAP {cell.text}, rank-1 {cell.rank1:.1f}"
        result.title = f"{result.title}\n{text}" if result.title else text
    if named:
        result.add_column("Model")
    result.add_column("Width", no_wrap=True)
    for name in ("Params", "MACs"):
        result.add_column(name, justify="right", no_wrap=True)
    both = len(table.series) <= 3  # there is no room for rank-1 beside more
    for series in table.series:
        title = f"{series_title(series)}\n{'mAP / R1' if both else 'mAP'}"
        result.add_column(title, justify="right", no_wrap=True)
    for series in table.differences:
        short = {"at_once": "once", "finetuned": "tuned"}.get(series, series)
        result.add_column(f"Δ\n{short}", justify="right", no_wrap=True)
    for line in table.students:
        cells = [_rich_cell(line, series, both) for series in table.series]
        for series in table.differences:
            points = line.difference(series)
            style = "" if not points else "green" if points > 0 else "red"
            cells.append(Text(difference_text(points), style))
        costs = count_text(line.parameters), count_text(line.macs)
        names = (line.model, line.width) if named else (line.width,)
        result.add_row(*names, *costs, *cells)
    gain = ["Δ: points of mAP above the same network from scratch."] if table.differences else []
    result.caption = "\n".join(gain + notes(rows)[1:])
    return result


def _rich_cell(line: Line, series: str, both: bool) -> Text:
    if series not in line.cells:
        return Text("–", "dim")
    cell = line.cells[series]
    mark = "†" if series == "scratch" and line.unfair else ""
    text = Text(f"{cell.text}{mark}", "bold green" if series == line.best else "")
    return text.append(f" / {cell.rank1:.1f}", "dim") if both else text


def html_table(rows: Iterable[ResultRow]) -> str:
    """The table for the page."""
    table = compare(rows)
    heads = ["<th>Model</th><th>Width</th>"]
    heads += [f'<th class="number">{name}</th>' for name in ("Parameters", "MACs")]
    heads += [f'<th class="number">{escape(series_title(s))}</th>' for s in table.series]
    heads += [
        f'<th class="number">{escape(series_title(s))}<br>− scratch</th>' for s in table.differences
    ]
    body = []
    for line in table.teachers:
        cell = line.cells["teacher"]
        score = f"<b>{cell.text}</b><small>{cell.rank1:.1f}</small>"
        span = len(table.series) + len(table.differences)
        note = '<span class="quiet">full width</span>'
        body.append(
            f'<tr class="teacher">{_html_size(line)}'
            f'<td colspan="{span}" class="score">{score} {note}</td></tr>'
        )
    for line in table.students:
        html = "".join(_html_cell(line, series) for series in table.series)
        for series in table.differences:
            points = line.difference(series)
            kind = "" if not points else " win" if points > 0 else " loss"
            html += f'<td class="number{kind}">{difference_text(points)}</td>'
        body.append(f"<tr>{_html_size(line)}{html}</tr>")
    joined = "\n".join(body)
    return (
        f'<div class="scroll"><table><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>\n{joined}\n</tbody></table></div>"
    )


def _html_size(line: Line) -> str:
    return (
        f'<th scope="row">{escape(line.model)}</th><td>{escape(line.width)}</td>'
        f'<td class="number">{count_text(line.parameters)}</td>'
        f'<td class="number">{count_text(line.macs)}</td>'
    )


def _html_cell(line: Line, series: str) -> str:
    if series not in line.cells:
        return '<td class="number quiet">–</td>'
    cell = line.cells[series]
    mark = "<sup>†</sup>" if series == "scratch" and line.unfair else ""
    kind = "best" if series == line.best else ""
    tag = "b" if kind else "span"
    return (
        f'<td class="number score {kind}"><{tag}>{cell.text}{mark}</{tag}>'
        f"<small>{cell.rank1:.1f}</small></td>"
    )
