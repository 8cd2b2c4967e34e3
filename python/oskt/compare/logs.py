"""What the log of a finished training says: steps, seconds, commit, scores on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oskt.report import read_log
from oskt.train import Recipe

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


def spent(folder: Path, recipe: Recipe) -> Spent:
    """Add up the reports of a training's log: each covers the steps since the one before it.

    The report after an evaluation covers its seconds, too; they are taken off.

    Args:
        folder: of the training.
        recipe: of the training; its batch is read.
    """
    records = read_log(folder / "log.jsonl")
    images = recipe.identities * recipe.instances
    last = max((n for n, record in enumerate(records) if record["kind"] == "step"), default=0)
    steps, seconds, before = 0, 0.0, (0, 0)
    for number, record in enumerate(records):
        if record["kind"] == "step":
            epoch, step = record["epoch"], record["step"]
            new = step - (before[1] if epoch == before[0] else 0)
            before = (epoch, step)
            steps += new
            seconds += new * images / max(record["images_per_s"], 0.05)
        elif record["kind"] == "epoch" and number < last:
            seconds -= record.get(f"{SCORED}seconds", 0.0)
    commits = dict.fromkeys(r.get("commit", "") for r in records if r["kind"] == "start")
    return Spent(steps, seconds, ", ".join(filter(None, commits)))


def curve(folder: Path) -> list[list[float]]:
    """[steps done, first score] of every evaluation during a training."""
    records = read_log(folder / "log.jsonl")
    steps = max((record["step"] for record in records if record["kind"] == "step"), default=0)
    return [
        [steps * record["epoch"], record[name]]
        for record in records if record["kind"] == "epoch"
        for name in (f"{SCORED}mAP", f"{SCORED}accuracy") if name in record
    ]  # fmt: skip
