"""The page of a report: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from oskt.files.tensor_file import write_atomic
from oskt.report import plots
from oskt.report.data import Ranking, ReportData, save_report
from oskt.report.table import Comparison, compare, count_text, headline, html_table, notes

PAGE_FILE = "report.html"


def write_report(folder: str | Path, data: ReportData) -> Path:
    """Write report.html, and the records that it is made of, into a folder.

    Args:
        folder: made if it does not exist.
        data: the records; `load_report(folder)` reads them back.

    Returns:
        The path of the page: one file, no scripts, no links to other places.

    Raises:
        OSError: a file cannot be written; the old one is unchanged.
    """
    path = Path(folder) / PAGE_FILE
    save_report(path.parent, data)
    write_atomic(path, html_page(data).encode())
    return path


def html_page(data: ReportData) -> str:
    """The text of the page."""
    parts = [
        _results(data),
        _trade_offs(data),
        _rankings(data),
        _training(data),
        _clusters(data),
        _samples(data),
        facts_section(data.facts),
    ]
    return shell(
        data.title,
        headline(data.rows),
        _tiles(compare(data.rows)),
        [part for part in parts if part],
    )


def shell(title: str, opening: str, tiles: str, sections: Sequence[str]) -> str:
    """A whole page.

    Args:
        title: plain text, of the window and the heading.
        opening: plain text beneath it, what the page shows.
        tiles: HTML beneath that, or "".
        sections: HTML, such as `section` makes.
    """
    style = (files("oskt.report") / "style.css").read_text(encoding="utf-8")
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<header><p class="eyebrow">One-shot knowledge transfer</p>\n<h1>{escape(title)}</h1>'
        f'\n<p class="headline">{escape(opening)}</p>\n{tiles}'
        f"</header>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, lead: str, content: str) -> str:
    """A part of a page: heading, what it is, and its HTML."""
    return (
        f'<section>\n<h2>{escape(title)}</h2>\n<p class="lead">{escape(lead)}</p>\n'
        f"{content}\n</section>"
    )


def _tiles(table: Comparison) -> str:
    """The few numbers to remember."""
    tiles = []
    if table.teachers:
        best = max(table.teachers, key=lambda line: line.cells["teacher"].mAP)
        size = f"mAP of the teacher, {count_text(best.parameters)} parameters"
        tiles.append((f"{best.cells['teacher'].mAP:.1f}", size))
    if table.students:
        smallest = table.students[0]
        words = f"best mAP of the smallest student, {count_text(smallest.parameters)} parameters"
        tiles.append((f"{smallest.cells[smallest.best].mAP:.1f}", words))
    for series, words in (
        ("at_once", "points of mAP at once, against training from scratch, on average"),
        ("finetuned", "points of mAP after fine-tuning, against training from scratch, on average"),
    ):
        found = [line.difference(series) for line in table.students]
        points = [p for p in found if p is not None]
        if points:
            mean = sum(points) / len(points)
            tiles.append((f"{mean:+.1f}".replace("-", "−"), words))
    items = "".join(f"<li><b>{number}</b><span>{words}</span></li>" for number, words in tiles)
    return f'<ul class="tiles">{items}</ul>\n' if tiles else ""


def figure(draw: Callable[[plots.Theme], Figure], caption: str) -> str:
    """A picture that follows the page into dark mode, with a caption in plain text."""
    light, dark = plots.render(draw)
    source = "data:image/png;base64,"
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{source}{dark}">'
        f'<img src="{source}{light}" alt="{escape(caption)}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _results(data: ReportData) -> str:
    if not data.rows:
        return ""
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes(data.rows))
    lead = "Each line is one network. The columns differ only in where its weights came from."
    return section("Results", lead, f'{html_table(data.rows)}\n<ul class="notes">{listed}</ul>')


def _trade_offs(data: ReportData) -> str:
    if not compare(data.rows).students:
        return ""
    figures = [
        figure(partial(plots.trade_off, data.rows, "parameters"), "Accuracy against size."),
        figure(partial(plots.trade_off, data.rows, "macs"), "Accuracy against work per image."),
    ]
    lead = (
        "Up and to the left is better. The fractions along the bottom are widths; a dotted line "
        "and a star are a teacher."
    )
    return section("Accuracy for its price", lead, f'<div class="pair">{"".join(figures)}</div>')


def _training(data: ReportData) -> str:
    if not data.curves:
        return ""
    names = ", ".join(data.curves)
    drawing = figure(partial(plots.training_curves, data.curves), f"Trainings: {names}.")
    return section("Training", "How the loss fell and the accuracy rose.", drawing)


def _clusters(data: ReportData) -> str:
    if not data.groups:
        return ""
    caption = "The stronger the colour of a piece, the more channels share one row." + (
        " Where the bar on the right is long, the group is hard to shrink."
        if any(group.inertia is not None for group in data.groups)
        else ""
    )
    figures = [figure(partial(plots.cluster_sizes, data.groups), caption)]
    if any(group.costs for group in data.groups):
        caption = "A line that stays high lets many channels go before much is lost."
        figures.append(figure(partial(plots.costs, data.groups), caption))
    lead = (
        "Channels that must stay together form a group. A published chain merges those with alike "
        "weights into clusters, its rows; a nested chain keeps the most important ones."
    )
    return section("Which channels go together", lead, "".join(figures))


def _rankings(data: ReportData) -> str:
    if not data.rankings:
        return ""
    lead = (
        "Who does the network find? The query stands on the left, its nearest images follow, best "
        "first. Green with a tick is the same person, red with a cross another."
    )
    return section("Ranking lists", lead, "\n".join(map(_ranking, data.rankings)))


def _ranking(ranking: Ranking) -> str:
    lists = []
    for model, hits in ranking.lists.items():
        items = "".join(
            f'<li class="{"right" if hit.right else "wrong"}">'
            f"{_photo(hit.picture, 'same person' if hit.right else 'another person')}</li>"
            for hit in hits
        )
        share = f"{sum(hit.right for hit in hits)} of {len(hits)}"
        label = f"<span>{escape(model)}<small>{share}</small></span>"
        lists.append(f'<div class="list">{label}<ol>{items}</ol></div>')
    query = f"{_photo(ranking.query, 'query')}<figcaption>{escape(ranking.title)}</figcaption>"
    return (
        f'<div class="ranking"><figure class="query">{query}</figure>'
        f"<div>{''.join(lists)}</div></div>"
    )


def _photo(picture: str, alt: str) -> str:
    return f'<img src="data:image/jpeg;base64,{picture}" alt="{escape(alt)}">'


def _samples(data: ReportData) -> str:
    if not data.samples:
        return ""
    rows = "".join(
        f"<li>{''.join(_photo(p, f'person {number}') for p in row)}</li>"
        for number, row in enumerate(data.samples, 1)
    )
    lead = "Some people of the data, a group of pictures for each, from as many cameras as exist."
    return section("The data", lead, f'<ul class="samples">{rows}</ul>')


def facts_section(facts: Mapping[str, Any]) -> str:
    """What to know to repeat a run: heading -> text, a list of lines, or a dict."""
    if not facts:
        return ""
    entries = "".join(
        f"<dt>{escape(name)}</dt><dd>{_fact(value)}</dd>" for name, value in facts.items()
    )
    lead = "What stands behind these numbers."
    return section("How it was made", lead, f'<dl class="facts">{entries}</dl>')


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        rows = "".join(
            f'<tr><th scope="row">{escape(str(k))}</th><td>{escape(str(v))}</td></tr>'
            for k, v in value.items()
        )
        return f"<table>{rows}</table>"
    if isinstance(value, (list, tuple)):
        return f"<pre><code>{escape(chr(10).join(map(str, value)))}</code></pre>"
    return escape(str(value))
