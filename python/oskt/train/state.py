"""The state of a run on disk: everything a killed run needs to end as if it had not been killed."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oskt.files.checkpoint import write_atomic
from oskt.train.average import WeightAverage
from oskt.train.updater import Updater

FORMAT = "oskt-training/2"  # ends the file, before the SHA-256 of all that stands before


@dataclass
class Position:
    """Where a run stands: the next step, and the means of the epoch so far.

    Args:
        epoch: 1-based number of the epoch of the next step.
        step: steps of that epoch already done.
        totals: sum of every part of the loss over the epoch's steps.
        metrics: the latest evaluation.
        log_bytes: length of log.jsonl at this point.
    """

    epoch: int = 1
    step: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    log_bytes: int = 0
    _window: list[tuple[list[str], Tensor]] = field(default_factory=list, repr=False)

    def advance(self, loss: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Count a step; its losses stay on the device until `settle`."""
        parts = {"loss": loss.detach(), **parts}
        self._window.append((list(parts), torch.stack([v.float() for v in parts.values()])))
        self.step += 1

    def settle(self) -> None:
        """Fetch the losses since the last call, in one synchronisation.

        Raises:
            FloatingPointError: one of them is no number; names the step.
        """
        if not self._window:
            return
        rows = torch.stack([values for _, values in self._window]).tolist()
        first = self.step - len(rows) + 1
        for offset, ((names, _), row) in enumerate(zip(self._window, rows)):
            parts = dict(zip(names, row))
            if not all(map(math.isfinite, row)):
                shown = ", ".join(f"{name} {value:.4g}" for name, value in parts.items())
                raise FloatingPointError(
                    f"loss must be finite, got {shown} in epoch {self.epoch}, step {first + offset}"
                )
            for name, value in parts.items():  # one by one, so that a resumed sum is the same
                self.totals[name] = self.totals.get(name, 0.0) + value
        self._window.clear()

    def means(self) -> dict[str, float]:
        """Mean of every part over the steps of this epoch that are settled."""
        steps = max(1, self.step - len(self._window))
        return {name: total / steps for name, total in self.totals.items()}

    def next_epoch(self) -> None:
        self.epoch, self.step, self.totals = self.epoch + 1, 0, {}

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if not k.startswith("_")}


class StateFile:
    """The file `state.pt` of a run.

    Args:
        path: the file.
        objective: the module that is trained, losses with centers included.
        updater: its optimisers.
        average: the mean of its weights.
        identity: JSON values that a resumed run must share ("recipe", "data", "world_size").
    """

    def __init__(
        self,
        path: Path,
        objective: nn.Module,
        updater: Updater,
        average: WeightAverage,
        identity: dict[str, Any],
    ) -> None:
        self.path = path
        self.objective = objective
        self.updater = updater
        self.average = average
        self.identity = identity

    def prepare(self) -> None:
        """Refuse a folder that cannot hold the state, before any work is done.

        Raises:
            OSError: the folder cannot be written, or has too little space left.
        """
        write_atomic(self.path.with_name(".probe"), b"oskt")
        self.path.with_name(".probe").unlink()
        held = sum(tensor.nbytes for tensor in self.objective.state_dict().values())
        needed = 2 * 4 * held  # weights, mean, two moments; old and new file stand side by side
        free = shutil.disk_usage(self.path.parent).free
        if free < needed:
            raise OSError(
                f"fit: out must have {needed / 1e6:.1f} MB free for the training state, got "
                f"{free / 1e6:.1f} MB in '{self.path.parent}'. Free space or choose another folder."
            )

    def save(self, position: Position) -> None:
        """Write the state; the old file stays whole until the new one is.

        Raises:
            FloatingPointError: a weight is no number; nothing is written.
            OSError: the file cannot be written; the old one is unchanged.
        """
        if not self.updater.finite():
            raise FloatingPointError(
                f"weights must be finite, got NaN or Inf in epoch {position.epoch}, "
                f"step {position.step}"
            )
        buffer = io.BytesIO()
        torch.save(
            {
                "identity": self.identity,
                "position": position.to_dict(),
                "objective": self.objective.state_dict(),
                "updater": self.updater.state_dict(),
                "average": self.average.state_dict(),
            },
            buffer,
        )
        buffer.write(_seal(buffer.getbuffer()))
        write_atomic(self.path, buffer.getbuffer())

    def load(self) -> Position:
        """Restore objective, updater and average, and say where the run stands.

        Raises:
            ValueError: no training state, or one of another run; names the field that differs.
        """
        saved = self._read()
        for name, was, now in _differences(saved["identity"], self.identity):
            raise ValueError(
                f"resume: {name} must be {was!r} as in '{self.path}', got {now!r}. "
                "Give the old value, or start a new run in another folder."
            )
        try:
            self.objective.load_state_dict(saved["objective"])
            self.updater.load_state_dict(saved["updater"])
            self.average.load_state_dict(saved["average"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"resume: the model must be the one of '{self.path}', got another: "
                f"{str(error).splitlines()[-1].strip()}. Build the same model, or start a new run."
            ) from None
        return Position(**saved["position"])

    def _read(self) -> dict[str, Any]:
        data = self.path.read_bytes()
        body, seal = data[: -len(_seal(b""))], data[-len(_seal(b"")) :]
        try:
            if seal != _seal(body):
                raise ValueError("damaged")
            # weights_only: a state file can hold tensors and plain values, never code.
            saved: dict[str, Any] = torch.load(
                io.BytesIO(body), map_location="cpu", weights_only=True
            )
        except (ValueError, RuntimeError, pickle.UnpicklingError):
            raise ValueError(
                f"resume: '{self.path}' must be a training state of format '{FORMAT}', got another "
                "or a damaged file. Start again in a new folder."
            ) from None
        return saved


def _seal(body: bytes | memoryview) -> bytes:
    return f"\n{FORMAT} {hashlib.sha256(body).hexdigest()}".encode()


def _differences(was: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, was, now) of every value that differs, nested ones as recipe.lr."""
    found: list[tuple[str, Any, Any]] = []
    for name in {**was, **now}:
        a, b = was.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [(f"{name}.{inner}", x, y) for inner, x, y in _differences(a, b)]
        elif a != b:
            found.append((name, a, b))
    return found
