"""The training loop of all stages: one objective, one recipe, one folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from oskt.files.checkpoint import provenance
from oskt.train.average import WeightAverage
from oskt.train.journal import Journal
from oskt.train.process import StopRequest, World, seed_step
from oskt.train.recipe import Recipe, learning_rate
from oskt.train.state import Position, StateFile
from oskt.train.updater import Updater

Evaluate = Callable[[nn.Module], dict[str, float]]
STATE = "state.pt"  # of a run's folder


class Batches(Protocol):
    """A source of training batches; epoch e is the same whenever and wherever it is read."""

    def __len__(self) -> int:
        """Batches of an epoch, of this process."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor, Any]]:
        """(images [B, 3, H, W] float32, ids [B] int64, cameras) of epoch 1, 2, ..., without the
        first `start` batches, which a resumed run has seen."""


class Objective(Protocol):
    """An nn.Module that is trained: everything with weights, centers included.

    forward(images, ids, progress) returns (loss, parts): what to minimise and detached scalars to
    report; `progress`, 0 to 1, is the share of the run that is done.
    """

    def scored(self) -> dict[str, nn.Module]:
        """Name -> network that an evaluation looks at; "" for the only one."""


def fit(
    objective: Any,
    data: Batches,
    recipe: Recipe,
    out: str | Path,
    *,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 10,
    resume: bool = False,
    max_steps: int | None = None,
    save_every_s: float = 300.0,
    save_every_steps: int | None = None,
    report_every: int = 10,
    tensorboard: bool = True,
    device: str | torch.device | None = None,
) -> dict[str, float]:
    """Train an objective as a recipe says; a run that was killed goes on with resume=True.

    Args:
        objective: the Objective, an nn.Module; trained in place, moved to the device.
        data: the Batches of this process. If it has `fingerprint: str`, a resumed run must have
            the same one.
        recipe: what to do.
        out: folder of state.pt, log.jsonl and tensorboard/; made if absent.
        evaluate: called with each scored network in evaluation mode, in the first process only.
        evaluate_every: epochs between evaluations, >= 1; the last epoch is always evaluated.
        resume: go on from out/state.pt; without such a file start at the beginning.
        max_steps: end after so many steps in all, whatever the recipe says.
        save_every_s: seconds between saves inside an epoch; an epoch's end is always saved.
        save_every_steps: save also every so many steps of an epoch.
        report_every: steps between reports, which each cost one synchronisation.
        tensorboard: write out/tensorboard.
        device: None for the GPU of this process, else the CPU.

    Returns:
        The last evaluation, {"mAP": ...} or {"student/mAP": ...}; empty without `evaluate`.

    Raises:
        ValueError: out holds a run and resume is False; resume with another recipe, data, model
            or number of processes, or a damaged state; no data, or data that ends early;
            evaluate_every, report_every or device out of range.
        OSError: out cannot be written or is too small, found before the first step.
        FloatingPointError: NaN or Inf; out/state.pt still holds the last good state.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state was saved.

    Notes:
        The random numbers of a step depend on (seed, rank, epoch, step) alone. On the CPU with the
        same number of threads a resumed run ends bit for bit as an uninterrupted one. Under
        torchrun each process has its own batches and batch statistics; gradients are averaged.

    Example:
        >>> import tempfile
        >>> class Line(nn.Linear):
        ...     def forward(self, images, ids, progress):
        ...         return super().forward(images).square().mean(), {}
        ...     def scored(self):
        ...         return {"": self}
        >>> class Ones:
        ...     def __len__(self):
        ...         return 3
        ...     def batches(self, epoch, start=0):
        ...         return ((torch.ones(4, 2), torch.zeros(4), None) for _ in range(start, 3))
        >>> recipe = Recipe(epochs=1, steps=(), warmup_epochs=0)
        >>> fit(Line(2, 1), Ones(), recipe, tempfile.mkdtemp(), tensorboard=False, device="cpu")
        {}
    """
    every = {"evaluate_every": evaluate_every, "report_every": report_every}
    for name, count in every.items():
        if count < 1:
            raise ValueError(
                f"fit: {name} must be >= 1, got {count}. Give a large number to have it seldom."
            )
    out, world, steps = Path(out), World.from_environment(device), len(data)
    if not steps:
        raise ValueError("fit: data must hold a batch or more, got none. Give it more images.")
    total = recipe.epochs * steps
    last = total if max_steps is None else min(max_steps, total)
    objective.to(world.device)
    updater = Updater(objective, recipe, world)
    identity = {
        "recipe": recipe.to_dict(),
        "data": getattr(data, "fingerprint", ""),
        "world_size": world.size,
    }
    average = WeightAverage(objective, recipe.averaging * total)
    state = StateFile(out / STATE, objective, updater, average, identity)
    rate = learning_rate(recipe, 0)

    def done() -> int:
        return (at.epoch - 1) * steps + at.step

    def report() -> None:
        at.settle()
        journal.step(at, rate)

    def save() -> bool:
        """Report, then save; a full disk is said aloud and the run goes on."""
        report()
        try:
            if world.rank == 0:
                state.save(replace(at, log_bytes=journal.length()))
        except OSError as error:
            journal.say(f"The training state was NOT saved: {error}")
            return False
        return True

    with ExitStack() as scope:
        world.join()
        scope.enter_context(_advice(recipe, state.path))
        stop = scope.enter_context(StopRequest())
        at = _start(state, resume, world)
        world.agree(objective)
        images_per_step = recipe.identities * recipe.instances * world.size
        journal = scope.enter_context(
            Journal(out, at, last, steps, images_per_step, tensorboard, active=world.rank == 0)
        )
        here = {"device": str(world.device), "step": done()}
        journal.write("start", {**identity, **provenance(), **here})
        while at.epoch <= math.ceil(last / steps):
            end = min(steps, last - (at.epoch - 1) * steps)
            seed_step(recipe.seed, world.rank, at.epoch, 0)
            objective.train()
            saved_at = time.monotonic()
            for images, ids, _ in islice(data.batches(at.epoch, at.step), max(0, end - at.step)):
                seed_step(recipe.seed, world.rank, at.epoch, at.step + 1)
                rate = learning_rate(recipe, at.epoch - 1 + at.step / steps)
                layout = torch.channels_last if images.dim() == 4 else torch.preserve_format
                images = images.to(world.device, non_blocking=True, memory_format=layout)
                with updater.autocast():
                    loss, parts = objective(images, ids, done() / total)
                updater.step(loss, rate)
                average.update()
                at.advance(loss, parts)
                if at.step % report_every == 0:
                    report()
                late = time.monotonic() - saved_at > save_every_s
                if late or (save_every_steps and at.step % save_every_steps == 0):
                    save()
                    saved_at = time.monotonic()
                if stop.requested:
                    raise KeyboardInterrupt(_farewell(at, out, save()))
            _check_length(at.step, end)
            report()
            due = at.epoch % evaluate_every == 0 or done() >= last
            if evaluate and due and world.rank == 0:
                save()  # a failing evaluation costs no training
                with average.shown():
                    at.metrics = _score(objective, evaluate)
            journal.epoch(at, at.metrics if due else {})
            if at.step == steps:
                at.next_epoch()
            saved = save()
            if stop.requested:
                raise KeyboardInterrupt(_farewell(at, out, saved))
            if end < steps:
                break
        average.keep()
        world.agree(objective)
        journal.write("end", at.metrics)
    return at.metrics


def _start(state: StateFile, resume: bool, world: World) -> Position:
    """The position of the saved run, or the beginning of a new one in a folder that can hold it."""
    if world.rank == 0:
        state.prepare()
    found = goes_on(state.path.parent, resume)
    world.wait()  # nobody saves before everybody has looked
    position = state.load() if found else Position()
    if not world.same(position.epoch, position.step):
        raise ValueError(
            f"resume: '{state.path}' must be one file that all processes see, got different ones. "
            "Give them a folder that they share."
        )
    return position


def goes_on(out: str | Path, resume: bool) -> bool:
    """Whether a run in this folder goes on with the state of an earlier one.

    Raises:
        ValueError: there is one, and resume is False.
    """
    found = (Path(out) / STATE).exists()
    if found and not resume:
        raise ValueError(
            f"fit: out must be a new folder, got '{out}' with a training state. "
            "Pass resume=True (--resume) to go on with that run, or choose another folder."
        )
    return found


def _score(objective: Any, evaluate: Evaluate) -> dict[str, float]:
    """Evaluate every scored network, metric names prefixed by its name."""
    scores = {}
    for name, network in objective.scored().items():
        prefix = f"{name}/" if name else ""
        with torch.no_grad():
            found = evaluate(network.eval())
        scores.update({prefix + metric: float(value) for metric, value in found.items()})
    return scores


def _check_length(step: int, end: int) -> None:
    if step < end:
        raise ValueError(
            f"fit: data.batches(epoch) must yield len(data) batches, got {step} of {end}. "
            "Make the two agree, in every process."
        )


def _farewell(at: Position, out: Path, saved: bool) -> str:
    where = f"stopped in epoch {at.epoch} after step {at.step}"
    if not saved:
        return f"fit: {where}; this state could not be saved, an older one may be in '{out}'."
    return f"fit: {where}, state saved. Run the same command with --resume to go on in '{out}'."


@contextmanager
def _advice(recipe: Recipe, path: Path) -> Iterator[None]:
    """Say what is still good and what to try when a number is none."""
    try:
        yield
    except FloatingPointError as error:
        kept = f"'{path}' still holds the last good state" if path.exists() else "nothing was saved"
        raise FloatingPointError(
            f"fit: {error}; {kept}. Try a lower lr (it is {recipe.lr}), more warmup_epochs "
            f"({recipe.warmup_epochs}), clip_norm=5, precision='fp32', or in refinement a lower "
            "alpha."
        ) from None
