"""What a run tells: a progress bar or plain lines, log.jsonl, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from oskt.train.state import Position


class Journal:
    """Reports of one run; a process that is not the first one says and writes nothing.

    Args:
        out: folder of log.jsonl and tensorboard/.
        position: where the run starts; what log.jsonl holds beyond it is cut off.
        total: optimiser steps of the run.
        steps: optimiser steps of an epoch.
        images: images of one step, of all processes.
        tensorboard: write event files as well.
        active: False in all processes but the first.

    Notes:
        One JSON object per line; "kind" is start, step, epoch or end. On a terminal a bar, else
        one line per report in the form that the tools of the field print.
    """

    def __init__(
        self,
        out: Path,
        position: Position,
        total: int,
        steps: int,
        images: int,
        tensorboard: bool,
        active: bool,
    ) -> None:
        self.active = active
        self.total, self.steps, self.images = total, steps, images
        self._clock = time.monotonic()
        self._seen = self._done(position)
        self._started = (self._clock, self._seen)
        if not active:
            return
        self._log = open(out / "log.jsonl", "ab", buffering=0)  # noqa: SIM115  (see __exit__)
        # Lines of steps that a killed run did after its last save would appear twice.
        self._cut(min(position.log_bytes, self._log.tell()))
        self._bar = tqdm(
            total=total, initial=self._seen, disable=not sys.stderr.isatty(), unit="step"
        )
        self._events = _summary_writer(out, self._seen) if tensorboard else None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            self._log.close()
            self._bar.close()
            self._close_events()

    def say(self, text: str) -> None:
        """A line for the person at the terminal."""
        if self.active:
            tqdm.write(text, file=sys.stderr)

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """A line of log.jsonl, whole or not at all; a full disk is said aloud."""
        if not self.active:
            return
        own = {"kind": kind}  # which no score of the same name hides
        line, start = json.dumps(own | dict(values) | own).encode() + b"\n", self._log.tell()
        try:
            if self._log.write(line) == len(line):
                return
            reason = "the disk is full"
        except OSError as error:
            reason = str(error.strerror)
        self._cut(start)
        self.say(f"A line of log.jsonl was NOT written: {reason}.")

    def _cut(self, length: int) -> None:
        self._log.truncate(length)
        self._log.seek(length)  # writes go to the end anyhow; `tell` does not know

    def length(self) -> int:
        """Bytes of log.jsonl so far."""
        return self._log.tell() if self.active else 0

    def step(self, position: Position, rate: float) -> None:
        """Report the steps since the last report: means of the epoch, rate, speed, time left."""
        if not self.active:
            return
        now, done = time.monotonic(), self._done(position)
        if done == self._seen:
            return
        speed = (done - self._seen) * self.images / max(now - self._clock, 1e-9)
        since, first = self._started
        left = (self.total - done) * (now - since) / (done - first)
        self._bar.update(done - self._seen)
        self._clock, self._seen = now, done
        means = position.means()
        place = {"epoch": position.epoch, "step": position.step, "lr": rate}
        self.write("step", {**place, **means, "images_per_s": round(speed, 1)})
        self._scalars({f"train/{name}": value for name, value in means.items()}, done)
        self._scalars({"train/lr": rate, "train/images_per_s": speed}, done)
        self._bar.set_description(f"epoch {position.epoch}")
        self._bar.set_postfix_str(f"loss {means['loss']:.3f}, lr {rate:.2e}, {speed:.0f} img/s")
        if self._bar.disable:
            accuracy = next((v for k, v in means.items() if k.endswith("accuracy")), 0.0)
            self.say(
                f"Epoch[{position.epoch}] Iteration[{position.step}/{self.steps}] "
                f"Loss: {means['loss']:.3f}, Acc: {accuracy:.3f}, Base Lr: {rate:.2e}, "
                f"{speed:.0f} images/s, {_clock_text(left)} left"
            )

    def epoch(self, position: Position, metrics: dict[str, float]) -> None:
        """Report a finished epoch and its evaluation, if there was one."""
        place = {"epoch": position.epoch}
        self.write("epoch", place | position.means() | metrics | place)
        self._scalars(metrics, self._done(position))
        if metrics:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            self.say(f"Epoch[{position.epoch}] {shown}")

    def _scalars(self, values: dict[str, float], step: int) -> None:
        if self.active and self._events is not None:
            try:
                for name, value in values.items():
                    self._events.add_scalar(name, value, step)
            except OSError as error:  # of its thread, which has ended
                self._close_events()
                self.say(f"TensorBoard's file ends here: {error.strerror}.")

    def _close_events(self) -> None:
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = None

    def _done(self, position: Position) -> int:
        return (position.epoch - 1) * self.steps + position.step


def _summary_writer(out: Path, purge_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # here: slow to import

    return SummaryWriter(out / "tensorboard", purge_step=purge_step)


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
