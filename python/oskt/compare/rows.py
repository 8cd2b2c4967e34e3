"""Rows: one per cell, kept as JSON lines; what a table shows of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from oskt.files.checkpoint import write_atomic


@dataclass(frozen=True)
class Row:
    """What was found for one cell.

    Args:
        table, scenario, variant, method, size, budget, seed: labels of the cell (see cells.Cell).
        rate: the student's, where the table tried several (see summary.best_rates); else 0.
        key: digest of the cell and of all its settings; an equal one need not be found again.
        parameters, macs: of the backbone, at the image size of the scale.
        at_once: {"mAP": ..., "rank1": ...} or {"accuracy": ...}, shares, before any training of
            its own; None where a student starts from random numbers.
        trained: the same after it; of a "full" cell the scores of that network; None if none is.
        steps, seconds: spent on this size alone.
        shared: trainings that the sizes of the family share: {"name", "kind", "steps", "seconds"},
            kind "teacher" or "refinement".
        curve: (step, score) pairs of the student's training, where it was scored on its way.
        data: what the data sets of source and target are called.
        settings: the part behind the cell; recipes by what differs from their defaults.
        commit, machine, threads, date: where and when it was found.
    """

    table: str
    scenario: str
    variant: str
    method: str
    size: str
    budget: str
    seed: int
    key: str
    parameters: int
    macs: int
    at_once: dict[str, float] | None
    trained: dict[str, float] | None
    rate: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    shared: list[dict[str, Any]] = field(default_factory=list)
    curve: list[list[float]] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    commit: str = ""
    machine: str = ""
    threads: int = 0
    date: str = ""

    @property
    def labels(self) -> tuple[str | float, ...]:
        """What tells the row from others of its table."""
        return (
            self.scenario, self.variant, self.method, self.size, self.budget, self.seed, self.rate
        )  # fmt: skip


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file, [] if there is none; the last of equal labels stands.

    Raises:
        ValueError: a line that is no row; file and line are named.
    """
    path = Path(path)
    if not path.is_file():
        return []
    known = {spec.name for spec in fields(Row)}
    rows: dict[tuple[str | float, ...], Row] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            row = Row(**{name: value for name, value in record.items() if name in known})
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise ValueError(
                f"compare: '{path}' line {number} must be a row of a table, got {line[:60]!r} "
                f"({error}). Delete the line; the next run finds it again."
            ) from None
        rows[row.labels] = row
    return list(rows.values())


def write_rows(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines; whole or not at all."""
    text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
    write_atomic(path, text.encode())
