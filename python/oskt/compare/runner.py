"""`oskt compare`: finds the cells of a table one by one, and goes on where it was stopped."""

from __future__ import annotations

import datetime
import importlib.util
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from oskt.compare import logs
from oskt.compare.cells import Cell, Request
from oskt.compare.estimate import Estimate
from oskt.compare.logs import Spent
from oskt.compare.pace import retimed
from oskt.compare.parts import (
    AnyChain,
    Data,
    Student,
    Teacher,
    Trained,
    folder_name,
    settings,
    trained_parts,
)
from oskt.compare.report import write_report
from oskt.compare.rows import Labels, Row, read_rows, write_rows
from oskt.compare.scales import SCALES, Scale
from oskt.compare.tables import TABLES, find_table
from oskt.compare.workshop import Workshop
from oskt.files.checkpoint import provenance
from oskt.machine import device_name
from oskt.report.duration import duration_text
from oskt.train import World


def run_table(
    table: str,
    out: str | Path,
    *,
    scale: str | Scale = "laptop",
    seeds: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    sizes: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
    data: Mapping[str, str] | None = None,
    stop_after: float | None = None,
    dry_run: bool = False,
    retime: bool = False,
    device: str | None = None,
    console: Console | None = None,
) -> bool:
    """Find every cell of a table that is not found yet, and draw the table's report.

    Args:
        table: name or number, see `tables.TABLES`.
        out: folder of all tables: OUT/TABLE.jsonl holds the rows, OUT/work what was made for them,
            each once for all tables. The same call goes on where it was stopped, also inside a
            training.
        scale: a key of SCALES, or a Scale.
        seeds, methods, sizes, variants: what of the table is wanted; None for all of it.
        data: {"source": PATH, "target": PATH} real data sets in place of drawn worlds.
        stop_after: seconds after which the run stops: a training saves its state and ends there.
        dry_run: only list the cells and say how long they will take.
        retime: when all cells are found, take the seconds of all trainings in turn (see
            `pace.retimed`), so that they are of one hour of the machine.
        device: cpu or cuda; None for the GPU if there is one.
        console: where to print; None for the standard output.

    Returns:
        Whether all cells are found.

    Raises:
        ValueError: a name that the table does not know, or data that do not fit it.
        ImportError: a method's package is not installed; said before anything is made.
        KeyboardInterrupt: stopped by hand; everything found so far is kept.
    """
    request = Request(_scale(scale), seeds, methods, sizes, variants, data or {})
    name, out, console = find_table(table), Path(out), console or Console()
    cells = list(TABLES[name].cells(request))
    path = out / f"{name}.jsonl"
    found = {row.key: row for row in read_rows(path)}
    left = [cell for cell in cells if cell.key not in found]
    end = time.monotonic() + (math.inf if stop_after is None else stop_after)
    workshop = Workshop(out / "work", device, end)
    if dry_run:
        Estimate(request.scale, workshop).show(cells, {id(cell) for cell in left}, console)
        return not left
    _require_packages(left)
    console.print(f"{TABLES[name].title}: {len(cells)} cells, {len(cells) - len(left)} found")
    complete = False
    try:
        for number, cell in enumerate(left, len(cells) - len(left) + 1):
            if time.monotonic() > end:
                break
            start = time.perf_counter()
            row = _find(cell, workshop)
            found[row.key] = row
            write_rows(path, found.values())
            line = _line(row, number, len(cells), time.perf_counter() - start)
            console.print(line, highlight=False, soft_wrap=True)
        else:
            complete = True
            if retime:
                at = f"{_machine(device)}, threads {torch.get_num_threads()}, {_now()[:10]}"
                write_rows(path, retimed(found.values(), cells, workshop, at))
    except KeyboardInterrupt:
        if time.monotonic() <= end:
            raise KeyboardInterrupt(
                f"compare: stopped; what was found is kept in '{out}'. "
                "Run the same command to go on."
            ) from None
    if not complete:
        console.print(f"stopped after {duration_text(stop_after or 0)}: the same command goes on")
    if found:
        console.print(f"report: {write_report(out, name)}")
    return complete


def _scale(scale: str | Scale) -> Scale:
    if isinstance(scale, Scale):
        return scale
    if scale not in SCALES:
        raise ValueError(
            f"compare: scale must be one of {', '.join(SCALES)}, got {scale!r}. Choose one."
        )
    return SCALES[scale]


def _find(cell: Cell, workshop: Workshop) -> Row:
    """Make what a cell asks for, and score it."""
    part, own, curve = cell.part, Spent(), []
    at_once = None
    if isinstance(part, Student):
        if part.start.knows:
            at_once = workshop.at_once(part.start, part.data)
        workshop.student(part, curve=cell.curve)
        trained = workshop.trained(part)
        folder = workshop.folder(part)
        own, curve = logs.spent(folder), logs.curve(folder)
        data = [_title(workshop, part.start.teacher, part.start.teacher.data)]
        data += [_title(workshop, part.start.teacher, part.data)]
    else:
        trained = workshop.whole(part)
        teacher = part if isinstance(part, Teacher) else part.teacher
        data = [_title(workshop, teacher, part.data)]
    own_training = part if isinstance(part, Student) else None
    labels: dict[str, Any] = {spec.name: getattr(cell, spec.name) for spec in fields(Labels)}
    return Row(
        **labels,
        parameters=trained["parameters"],
        macs=trained["macs"],
        at_once=at_once and at_once["scores"],
        trained=trained["scores"],
        steps=own.steps,
        seconds=round(own.seconds, 2),
        trained_at=own.commit,
        shared=[_shared(one, workshop) for one in trained_parts(part) if one is not own_training],
        curve=curve,
        data=list(dict.fromkeys(data)),
        settings=settings(part),
        commit=provenance()["commit"],
        machine=_machine(workshop.device),
        threads=torch.get_num_threads(),
        date=_now(),
    )


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _shared(part: Trained, workshop: Workshop) -> dict[str, Any]:
    spent = logs.spent(workshop.folder(part))
    kind = "refinement" if isinstance(part, AnyChain) else "teacher"
    return {
        "name": folder_name(part), "kind": kind, "steps": spent.steps,
        "seconds": round(spent.seconds, 2), "commit": spent.commit,
    }  # fmt: skip


def _title(workshop: Workshop, teacher: Teacher, data: Data) -> str:
    title = workshop.task(data, teacher.recipe).title
    drawn = not data.root and data.name != "digits"
    return f"{title}, world {data.name}" if drawn else title


def _machine(device: str | None) -> str:
    place = World.from_environment(device).device
    cores = f", {os.cpu_count()} cores" if place.type == "cpu" else ""
    return device_name(place) + cores


def _line(row: Row, number: int, total: int, seconds: float) -> str:
    labels = [row.scenario, row.variant, row.method, row.size, row.budget, f"seed {row.seed}"]
    labels += [f"rate {row.rate:g}"] if row.rate else []
    scores = [
        f"{100 * next(iter(found.values())):5.1f}"
        for found in (row.at_once, row.trained) if found is not None
    ]  # fmt: skip
    text = "  ".join(label for label in labels if label)
    return f"{number:>4}/{total}  {text:<52}  {' -> '.join(scores):>14}  {duration_text(seconds)}"


def _require_packages(cells: Sequence[Cell]) -> None:
    """Missing packages are said before hours of work, not after."""
    needed = {"torch_pruning": "depgraph", "sklearn": "digits"}
    used = {cell.method for cell in cells} | {cell.table for cell in cells}
    for package, user in needed.items():
        if user in used and importlib.util.find_spec(package) is None:
            raise ImportError(
                f"compare: {package} must be installed for {user}, got no such package. "
                "Run: pip install oskt[compare], or leave the method or table out."
            )
