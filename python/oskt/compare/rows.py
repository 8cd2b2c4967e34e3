"""Rows: one per cell, kept as JSON lines; what a table shows of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from oskt.files.checkpoint import write_atomic


@dataclass(frozen=True)
class Labels:
    """What tells a cell, and the row that is found for it, from others.

    Args:
        table: key of TABLES.
        scenario: name of the data (see parts.Data), "a -> b" where teacher and student have
            different ones; and of the scale, unless it is the laptop's.
        variant: what the table varies beside method and size; "" if nothing.
        method: key of METHODS, or "teacher".
        size: label of a Size, or FULL_WIDTH.
        budget: how long the student trains (see Scale.epochs); "" where nothing does.
        seed: of the data's draw in few-shot tables, and of all training.
        rate: the student's learning rate where the table tries several; else 0.
    """

    table: str
    scenario: str
    variant: str
    method: str
    size: str
    budget: str
    seed: int
    rate: float = 0.0

    @property
    def labels(self) -> tuple[str | int | float, ...]:
        return tuple(getattr(self, spec.name) for spec in fields(Labels))

    def known_by(self, settings: Mapping[str, Any]) -> str:
        """Equal for equal labels and equal settings: what is found need not be found again."""
        text = json.dumps([self.labels, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Row(Labels):
    """What was found for one cell.

    Args:
        parameters, macs: of the backbone, at the image size of the scale.
        at_once: {"mAP": ..., "rank1": ...} or {"accuracy": ...}, shares, before any training of
            its own; None where a student starts from random numbers.
        trained: the same after it; of a "full" cell the scores of that network; None if none is.
        steps, seconds: spent on this size alone.
        trained_at: commits at which it was trained, which may be earlier ones than `commit`.
        shared: trainings that the sizes of the family share: {"name", "kind", "steps", "seconds",
            "commit"}, kind "teacher" or "refinement".
        curve: (step, score) pairs of the student's training, where it was scored on its way.
        data: what the data sets of source and target are called.
        settings: the part behind the cell; recipes by what differs from their defaults.
        commit, machine, threads, date: where and when it was found, that is scored.
        timed: where and when its seconds were taken, in turn with those of the other rows; ""
            where they are those of the training itself.
    """

    parameters: int
    macs: int
    at_once: dict[str, float] | None
    trained: dict[str, float] | None
    steps: int = 0
    seconds: float = 0.0
    trained_at: str = ""
    shared: list[dict[str, Any]] = field(default_factory=list)
    curve: list[list[float]] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    commit: str = ""
    machine: str = ""
    threads: int = 0
    date: str = ""
    timed: str = ""

    @property
    def key(self) -> str:
        return self.known_by(self.settings)

    @property
    def place(self) -> tuple[str | int | float, ...]:
        """What rows of all seeds share."""
        return replace(self, seed=0).labels

    @property
    def student(self) -> tuple[str | int | float, ...]:
        """What rows share whose student starts alike: it is trained for any time, at any rate."""
        return replace(self, seed=0, budget="", rate=0.0).labels

    @property
    def seedless(self) -> Any:
        """The settings but for seeds."""
        return _without_seeds(self.settings)


def _without_seeds(settings: Any) -> Any:
    if isinstance(settings, list):
        return [_without_seeds(value) for value in settings]
    if not isinstance(settings, Mapping):
        return settings
    kept = {name: value for name, value in settings.items() if name != "seed"}
    if "few_shot" in kept:
        kept["few_shot"] = kept["few_shot"][0]  # the ratio, beside the seed of the draw
    return {name: _without_seeds(value) for name, value in kept.items()}


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file, [] if there is none; the last of equal labels stands.

    Rows that differ in more than their seed are not one method: where a recipe was changed and not
    all seeds were found anew, those of the newest row's settings stand, and no others. Nor are
    students at once, whichever budget and rate their rows are of, that start otherwise.

    Raises:
        ValueError: a line that is no row; file and line are named.
    """
    path = Path(path)
    if not path.is_file():
        return []
    known = {spec.name for spec in fields(Row)}
    rows: dict[tuple[str | int | float, ...], Row] = {}
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
    standing = _of_newest_settings(rows.values(), lambda row: (row.place, row.seedless))
    return _of_newest_settings(standing, lambda row: (row.student, row.seedless.get("start")))


def _of_newest_settings(
    rows: Iterable[Row], told: Callable[[Row], tuple[tuple[str | int | float, ...], Any]]
) -> list[Row]:
    """Of rows that `told` says are of one place those with the settings of the newest."""
    known = [(row, *told(row)) for row in rows]
    newest: dict[tuple[str | int | float, ...], tuple[str, Any]] = {}
    for row, place, settings in known:
        if place not in newest or row.date >= newest[place][0]:
            newest[place] = (row.date, settings)
    return [row for row, place, settings in known if settings == newest[place][1]]


def write_rows(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines; whole or not at all."""
    text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
    write_atomic(path, text.encode())
