"""The methods that are compared: each says, as plain data, how it makes a student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from oskt.compare.parts import AnyChain, Chain, Data, Moved, Start, Student, Teacher
from oskt.compare.scales import CHAIN_OF, NARROWEST, SIZES, Scale, Size, stretched
from oskt.train import Recipe


@dataclass(frozen=True)
class Setting:
    """What is the same for all methods of one cell.

    Args:
        scale: recipes of teachers and chains.
        network: options of the teacher, see scales.built.
        source, target: data of teacher and refinement, and of the student.
        size: of the student.
        seed: of everything that is trained or drawn.
        recipe: the student's training; None scores it as it starts.
    """

    scale: Scale
    network: Mapping[str, Any]
    source: Data
    target: Data
    size: Size
    seed: int
    recipe: Recipe | None

    @property
    def teacher(self) -> Teacher:
        return Teacher(self.source, self.network, replace(self.scale.teacher, seed=self.seed))

    @property
    def structure(self) -> Teacher:
        """An untrained teacher: what a student from random numbers is narrowed from."""
        return replace(self.teacher, data=self.target, trained=False)

    @property
    def target_teacher(self) -> Teacher:
        """A teacher of the target's identities: the source's, trained on as long as a student."""
        if self.target == self.source or self.recipe is None:
            return self.teacher
        recipe = stretched(self.scale.teacher, self.recipe.epochs)
        return Teacher(
            self.target, self.network, replace(recipe, seed=self.seed), start=self.teacher
        )

    def student(self, how: str, source: Teacher | AnyChain, **told: Any) -> Student:
        start = Start(how, source, self.size, self.seed)
        return Student(start, self.target, self.recipe, **told)

    def chain(self, width: float, **options: Any) -> Chain:
        """Ours, of the published kind: rows with the norm folded in, distillation."""
        recipe = replace(self.scale.refine, seed=self.seed)
        return Chain(self.teacher, "oskt", width, recipe, **options)

    def published_chain(self, width: float) -> Chain:
        """As the published code makes it: Ward on raw rows, the refining loss alone."""
        chain = self.chain(width, rows="published", method="ward")
        recipe = replace(self.scale.refine, seed=self.seed, distill=0.0, similarity=0.0)
        return replace(chain, recipe=recipe)

    def nested_chain(self) -> Chain:
        recipe = replace(self.scale.nested, seed=self.seed)
        return Chain(self.teacher, "nested", NARROWEST, recipe, further=self.scale.further)


def scratch(s: Setting) -> Student:
    return s.student("scratch", s.structure)


def weight_selection(s: Setting) -> Student:
    return s.student("weight-selection", s.teacher)


def kd(s: Setting) -> Student:
    # From random weights the nested recipe's temperature is no gain (docs/lab/nested.md, 29).
    telling = {"weight": 4.0, "temperature": 2.0}
    return s.student("scratch", s.structure, told_by=s.target_teacher, telling=telling)


def kd_plus(s: Setting) -> Student:
    telling = {"weight": 16.0, "temperature": 4.0, "norm_direction": 1.0}  # those of its code
    return s.student("scratch", s.structure, told_by=s.target_teacher, telling=telling)


def depgraph(s: Setting) -> Student:
    return s.student("depgraph", s.teacher)


def folding(s: Setting) -> Student:
    return s.student("folding", s.teacher)


def published(s: Setting) -> Student:
    return s.student("published", s.published_chain(chain_width(s.size)))


def oskt(s: Setting) -> Student:
    return s.student("oskt", s.chain(chain_width(s.size)))


def nested(s: Setting, times: int = 1) -> Student:
    """Refined `times` as long as one published chain.

    The published method takes three for six sizes: 3 is as many steps, 2 about as much time.
    """
    chain = s.nested_chain()
    assert chain.recipe is not None
    recipe = stretched(chain.recipe, times * chain.recipe.epochs)
    return s.student("oskt", replace(chain, recipe=recipe))


def nested_there(s: Setting) -> Student:
    """Refined on on the students' data for half of the steps that a family trained size by size
    takes there; each student is trained for the other half."""
    assert s.recipe is not None
    recipe = stretched(s.scale.nested, max(1, len(SIZES) * s.recipe.epochs // 2))
    # Of other people the teacher has had nothing to say: its classifier there is new.
    source = Moved(s.nested_chain(), s.target, replace(recipe, seed=s.seed, anchor=0.0))
    own = stretched(s.recipe, max(1, s.recipe.epochs // 2))
    return replace(s, recipe=own).student("oskt", source)


def chain_width(size: Size) -> float:
    """Width of the published chain that serves a size; its own width for a size of no name."""
    return CHAIN_OF.get(size.label, size.share)


METHODS: dict[str, Callable[[Setting], Student]] = {
    "scratch": scratch,
    "weight-selection": weight_selection,
    "kd": kd,
    "kd++": kd_plus,
    "depgraph": depgraph,
    "folding": folding,
    "oskt-published": published,
    "oskt": oskt,
    "nested": nested,
    "nested-2x": partial(nested, times=2),
    "nested-3x": partial(nested, times=3),
    "nested-there": nested_there,
}
IN_ONE_SCENARIO = tuple(name for name in METHODS if name != "nested-there")
TITLES = {
    "scratch": "From scratch",
    "weight-selection": "Weight Selection",
    "kd": "KD",
    "kd++": "KD++",
    "depgraph": "DepGraph",
    "folding": "Model Folding",
    "oskt-published": "OSKT, published",
    "oskt": "OSKT, ours",
    "nested": "Nested, ours",
    "nested-2x": "Nested, refined 2x",
    "nested-3x": "Nested, refined 3x",
    "nested-there": "Nested, refined there",
    "teacher": "Teacher",
}
NESTED = ("nested", "nested-2x", "nested-3x")
OURS = ("oskt", *NESTED, "nested-there")
