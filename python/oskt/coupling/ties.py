"""Which groups must keep one proportion for a module's own code to run: found by trying.

Code such as `x.chunk(2, 1)` or `y.reshape(B, N, C)` asks for widths to agree though no operator
ties the channels. Students of random widths tell: on the meta device a trial costs milliseconds.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from oskt.coupling import Coupling
from oskt.students import narrow

T = TypeVar("T")
Class = list[str]  # groups that keep one proportion


def tied(module: nn.Module, example_inputs: Sequence[Tensor], coupling: Coupling) -> Coupling:
    """The coupling with `like` and `step` set where groups must be as wide as others.

    The least ties of four kinds are taken: none, within one module, between groups of one size, or
    between all that mind. Where no tie makes students run, the groups are frozen, with the error.

    Args:
        module: what the coupling describes; it runs on the meta device only.
        example_inputs: the forward's arguments; shapes and types alone matter.
        coupling: its channel groups.

    Returns:
        The coupling itself if students of any widths run.
    """
    trial = _Trial(module, example_inputs, coupling)
    if trial.error([[name] for name in coupling.free]) is None:
        return coupling
    minding, loose = [], []
    errors: dict[str, str] = {}
    for kind in _classes(coupling.free, _kind):
        error = trial.error([[name] for name in kind])
        if error is None:
            loose += [[name] for name in kind]
        else:
            minding.append(kind)
            errors.update(dict.fromkeys(kind, error))
    sizes = _classes(errors, lambda name: coupling.groups[name].size)
    for left_out in ([], *sizes, *minding):  # at the worst some layers, then all, keep their width
        rest = [name for name in errors if name not in left_out]
        for key in (_owner, lambda name: coupling.groups[name].size, lambda name: ""):
            ties = _classes(rest, key)
            if trial.error([*loose, *ties]) is None:
                return _applied(coupling, ties, {name: errors[name] for name in left_out})
    return _applied(coupling, [], errors)


def _applied(coupling: Coupling, ties: list[Class], errors: dict[str, str]) -> Coupling:
    groups = dict(coupling.groups)
    for members in ties:
        for name, step in _steps(coupling, members).items():
            like = "" if name == members[0] else members[0]
            groups[name] = replace(groups[name], like=like, step=step)
    for name, error in errors.items():
        groups[name] = replace(groups[name], frozen=f"its students do not run ({error})")
    return replace(coupling, groups=groups)


def _steps(coupling: Coupling, members: Class) -> dict[str, int]:
    """The smallest widths of one proportion, in whole blocks: all others are their multiples."""
    groups = [coupling.groups[name] for name in members]
    common = math.gcd(*(group.size for group in groups))
    parts = [(group.blocks, group.size // common) for group in groups]
    times = math.lcm(*(blocks // math.gcd(blocks, part) for blocks, part in parts))
    return {group.name: group.size // common * times for group in groups}


class _Trial:
    """Students of random widths on the meta device."""

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor], coupling: Coupling) -> None:
        self.module, self.coupling = module, coupling
        self.inputs = [x.to("meta") for x in inputs]
        self.rng = np.random.default_rng(0)

    def error(self, ties: Sequence[Class]) -> str | None:
        """The first line of what a student says, None if it runs: its classes have random widths,
        other groups the teacher's. Few channels leave few widths, so draws then repeat."""
        sizes = [self.coupling.groups[members[0]].size for members in ties]
        for _ in range(1 if min(sizes, default=0) >= 16 else 3):
            try:
                student = narrow(self.module, self.coupling, self.widths(ties)).to("meta").eval()
                student.training = True  # this form reads everything that there is
                with torch.no_grad():
                    student(*self.inputs)
            except Exception as error:  # foreign code says it in its own ways
                return str(error).partition("\n")[0] or type(error).__name__
        return None

    def widths(self, ties: Sequence[Class]) -> dict[str, int]:
        """Shares that differ between classes of one size, as long as there are enough."""
        drawn: dict[str, int] = {}
        for classes in _classes(ties, lambda members: self.coupling.groups[members[0]].size):
            steps = [_steps(self.coupling, members) for members in classes]
            counts = [self.coupling.groups[n].size // s for part in steps for n, s in part.items()]
            shares = np.resize(1 + self.rng.permutation(max(counts)), len(classes))
            for part, share in zip(steps, shares):
                for name, step in part.items():
                    count = self.coupling.groups[name].size // step
                    drawn[name] = step * int((share - 1) % count + 1)
        return drawn


def _classes(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    classes: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        classes[key(item)].append(item)
    return list(classes.values())


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _kind(name: str) -> str:
    """Names that differ in the numbers of blocks alone belong to one kind of layer."""
    return re.sub(r"(?<![A-Za-z])\d+", "*", name)
