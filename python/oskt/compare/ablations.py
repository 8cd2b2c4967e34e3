"""Changes of one ingredient of a student, as functions from plain data to plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from oskt.compare.parts import Chain, Student
from oskt.compare.scales import NARROWEST

Change = Callable[[Student], Student]
BOTH = ("oskt-published", "nested")


def unchanged(student: Student) -> Student:
    return student


def _chain(change: Callable[[Chain], Chain]) -> Change:
    """The change of the chain that a student comes from; students without one stay."""

    def changed(student: Student) -> Student:
        source = student.start.source
        if not isinstance(source, Chain):
            return student
        return replace(student, start=replace(student.start, source=change(source)))

    return changed


def chain_width(width: float) -> Change:
    """Every student from one chain of this width."""
    return _chain(lambda chain: replace(chain, width=width, further=()))


one_chain = chain_width(NARROWEST)


def rows(kind: str) -> Change:
    """What is clustered (see oskt.coupling.clustering)."""
    return _chain(lambda chain: replace(chain, rows=kind))


def method(name: str) -> Change:
    """How it is clustered."""
    return _chain(lambda chain: replace(chain, method=name))


def _recipe(**changes: Any) -> Change:
    def changed(chain: Chain) -> Chain:
        assert chain.recipe is not None
        return replace(chain, recipe=replace(chain.recipe, **changes))

    return _chain(changed)


def _untaught(chain: Chain) -> Chain:
    """Of a teacher of random numbers, which nothing should be held to."""
    assert chain.recipe is not None
    teacher = replace(chain.teacher, trained=False)
    return replace(chain, teacher=teacher, recipe=replace(chain.recipe, anchor=0.0))


@dataclass(frozen=True)
class Variant:
    """A line of the ablation table: the change, and the methods for which it makes sense."""

    change: Change
    methods: tuple[str, ...] = BOTH


VARIANTS = {
    "full": Variant(unchanged),
    "random clusters": Variant(method("random")),
    "random teacher": Variant(_chain(_untaught)),
    "no refinement": Variant(_chain(lambda chain: replace(chain, recipe=None))),
    # A nested chain has no weights but the teacher's: without its loss nothing trains them.
    "no teacher loss": Variant(_recipe(teacher_loss=0.0), ("oskt-published",)),
    "swapped metric": Variant(rows("published-cosine"), ("oskt-published",)),
    "norm folded in": Variant(rows("folded"), ("oskt-published",)),
    "k-means": Variant(method("kmeans"), ("oskt-published",)),
    "Ward merge trees": Variant(method("ward"), ("nested",)),
    "no anchor": Variant(_recipe(anchor=0.0), ("nested",)),
}  # fmt: skip
