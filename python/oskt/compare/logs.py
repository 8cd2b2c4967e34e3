"""What the log of a finished training says: steps, seconds, commit, scores on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oskt.report import read_log

SCORED = "scored/"  # before what an evaluation on the way found, and the seconds it took


@dataclass(frozen=True)
class Spent:
    """What a training took.

    Args:
        steps: of the optimiser.
        seconds: that they took, evaluations left out.
        commit: of oskt, when it ran; with commas between where it went on at another.
    """

    steps: int = 0
    seconds: float = 0.0
    commit: str = ""


def spent(folder: Path) -> Spent:
    """Add up the reports of a training's log: each covers the steps since the one before it.

    The report after an evaluation covers its seconds, too, unless the training was stopped between
    the two; they are taken off.
    """
    records = read_log(folder / "log.jsonl")
    steps, seconds, images, before, evaluated = 0, 0.0, 0, (0, 0), 0.0
    for record in records:
        if record["kind"] == "start":
            images, evaluated = _images_of_step(record), 0.0
        elif record["kind"] == "step":
            epoch, step = record["epoch"], record["step"]
            new = step - (before[1] if epoch == before[0] else 0)
            before = (epoch, step)
            steps += new
            seconds += new * _seconds_of_step(images, record) - evaluated
            evaluated = 0.0
        elif record["kind"] == "epoch":
            evaluated = record.get(f"{SCORED}seconds", 0.0)
    commits = dict.fromkeys(r.get("commit", "") for r in records if r["kind"] == "start")
    return Spent(steps, seconds, ", ".join(filter(None, commits)))


def seconds_of_last_steps(folder: Path) -> float:
    """Of each step since the last report but one."""
    *_, start = (r for r in read_log(folder / "log.jsonl") if r["kind"] == "start")
    *_, step = (r for r in read_log(folder / "log.jsonl") if r["kind"] == "step")
    return _seconds_of_step(_images_of_step(start), step)


def _images_of_step(start: Mapping[str, Any]) -> int:
    """Of all processes; fewer than the table's recipe has where identities are few."""
    recipe = start["recipe"]
    return int(recipe["identities"] * recipe["instances"] * start["world_size"])


def _seconds_of_step(images: int, step: Mapping[str, Any]) -> float:
    return float(images / max(step["images_per_s"], 0.05))


def curve(folder: Path) -> list[list[float]]:
    """[steps done, first score] of every evaluation during a training."""
    records = read_log(folder / "log.jsonl")
    steps = max((record["step"] for record in records if record["kind"] == "step"), default=0)
    return [
        [steps * record["epoch"], record[name]]
        for record in records if record["kind"] == "epoch"
        for name in (f"{SCORED}mAP", f"{SCORED}accuracy") if name in record
    ]  # fmt: skip
