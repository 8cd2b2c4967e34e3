"""What a report is made of: plain records that are kept as JSON beside the page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oskt.files.tensor_file import write_atomic

ROWS_FILE = "rows.jsonl"
DATA_FILE = "report.json"


@dataclass(frozen=True)
class ResultRow:
    """One measured network.

    Args:
        model: name of the network; the rows of one model are compared with each other.
        series: "teacher", "at_once" (from the chain, before any training of its own), "finetuned",
            "scratch" (trained alone), or another name, which becomes one more column.
        width: its size in words, such as "1/4".
        parameters, macs: of the backbone at the input size of the run.
        mAP, rank1: shares, 0..1.
        steps: optimiser steps spent on this network alone; 0 at once.
        seconds: wall time of those steps, or of the expansion.
        seed: of the run; rows that differ in the seed alone are averaged.
        settings: anything else worth keeping (rank5, mINP, epochs, data set).
    """

    model: str
    series: str
    width: str
    parameters: int
    macs: int
    mAP: float
    rank1: float
    steps: int = 0
    seconds: float = 0.0
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """How one channel group was clustered.

    Args:
        name: the group, named by its first writer.
        sizes: members of each cluster; their sum is the teacher's width N.
        inertia: share of the rows' variance that the clusters lose, 0..1; None if unknown.
        costs: what each channel less costs, from N channels down to one (N - 1 numbers): of a
            nested chain the importance of the channel that goes.
    """

    name: str
    sizes: tuple[int, ...]
    inertia: float | None = None
    costs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Hit:
    """One retrieved image: its picture and whether it shows the query's person."""

    picture: str
    right: bool


@dataclass(frozen=True)
class Ranking:
    """The first retrieved images of one query, for some models.

    Args:
        query: picture of the query.
        title: what stands beneath it, such as "id 12, camera 3".
        lists: model name -> its hits, best first; every ranking of a report names the same models.
    """

    query: str
    title: str
    lists: dict[str, tuple[Hit, ...]]


@dataclass(frozen=True)
class ReportData:
    """Everything on the page; a part left empty leaves its section out.

    Args:
        title: heading of the page.
        rows: the results.
        curves: name of a training -> its log records; keys with "loss" and "mAP" are drawn.
        groups: the clustering.
        rankings: ranking lists of a few queries (`oskt.report.rankings`; choose the queries by
            `oskt.evaluation.rankings.spread_queries`, so that they are not picked by hand).
        samples: rows of pictures of the data set (`oskt.report.samples`).
        facts: heading -> what to know to repeat the run: text, a list of lines, or a dict.

    Notes:
        A picture is the base64 text of a JPEG (`oskt.report.picture`), so the records are
        plain JSON and the page needs no file beside it.
    """

    title: str
    rows: tuple[ResultRow, ...]
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    rankings: tuple[Ranking, ...] = ()
    samples: tuple[tuple[str, ...], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def write_rows(path: str | Path, rows: Iterable[ResultRow]) -> None:
    """Write rows as JSON lines, one network per line; whole or not at all."""
    text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
    write_atomic(path, text.encode())


def read_rows(path: str | Path) -> tuple[ResultRow, ...]:
    """Read what `write_rows` wrote.

    Raises:
        ValueError: a line that is no result row; file and line are named.
    """
    lines = _json_lines("read_rows", Path(path))
    return tuple(_parse(path, number, record) for number, record in lines)


def _parse(path: str | Path, number: int, record: Any) -> ResultRow:
    try:
        return ResultRow(**record)
    except TypeError as error:
        raise ValueError(
            f"read_rows: '{path}' line {number} must be a result row, got "
            f"{json.dumps(record)[:80]} ({error}). Delete the line or repeat the run."
        ) from error


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Read the records of a log.jsonl, one per line.

    Raises:
        ValueError: a line that is no JSON; file and line are named.
    """
    return [record for _, record in _json_lines("read_log", Path(path))]


def _json_lines(op: str, path: Path) -> list[tuple[int, Any]]:
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            records.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{op}: '{path}' line {number} must be JSON, got {line[:80]!r}. "
                "The run may have stopped while writing it: delete the line."
            ) from error
    return records


def save_report(folder: Path, data: ReportData) -> None:
    """Keep the records in `folder`: rows.jsonl for the results, report.json for the rest."""
    write_rows(folder / ROWS_FILE, data.rows)
    rest = {name: value for name, value in asdict(data).items() if name != "rows"}
    write_atomic(folder / DATA_FILE, json.dumps(rest, indent=1).encode())


def load_report(folder: str | Path) -> ReportData:
    """Read the records that `write_report` left in a folder, to make its page again.

    Raises:
        FileNotFoundError: the folder holds no report.
        ValueError: records that are no report's; the file is named.
    """
    folder = Path(folder)
    for name in (ROWS_FILE, DATA_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"load_report: folder must hold {ROWS_FILE} and {DATA_FILE}, got '{folder}' "
                f"without {name}. Pass the folder of a run that wrote a report."
            )
    rows = read_rows(folder / ROWS_FILE)
    try:
        return _report(json.loads((folder / DATA_FILE).read_text(encoding="utf-8")), rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"load_report: '{folder / DATA_FILE}' must hold the records of a report, got "
            f"{type(error).__name__}: {error}. Run the command that wrote it again."
        ) from error


def _report(rest: Any, rows: tuple[ResultRow, ...]) -> ReportData:
    return ReportData(
        title=rest["title"],
        rows=rows,
        curves=rest["curves"],
        groups=tuple(
            Group(g["name"], tuple(g["sizes"]), g["inertia"], tuple(g.get("costs", ())))
            for g in rest["groups"]
        ),
        rankings=tuple(
            Ranking(
                r["query"],
                r["title"],
                {model: tuple(Hit(**hit) for hit in hits) for model, hits in r["lists"].items()},
            )
            for r in rest["rankings"]
        ),
        samples=tuple(tuple(row) for row in rest["samples"]),
        facts=rest["facts"],
    )
