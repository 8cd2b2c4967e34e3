"""Cells: what is asked for, and the ones of a family of sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from oskt.compare import ablations
from oskt.compare.methods import METHODS, Setting
from oskt.compare.parts import AnyChain, Data, Student, Teacher, settings
from oskt.compare.rows import Labels
from oskt.compare.scales import Scale, Size, stretched
from oskt.train import Recipe

FULL_WIDTH = "full"  # size of the cells that score a teacher or a refined teacher


@dataclass(frozen=True, kw_only=True)
class Cell(Labels):
    """One number to find: its labels, and the part that answers it.

    Args:
        part: what is made and scored.
        curve: score the training a few times on its way.
    """

    part: Student | Teacher | AnyChain
    curve: bool = False

    @property
    def key(self) -> str:
        """That of the row to find."""
        return self.known_by(settings(self.part))


@dataclass(frozen=True)
class Request:
    """What of a table is asked for; None takes all that the table has.

    Args:
        scale: how large everything is.
        seeds, methods, sizes, variants: the rows and columns wanted.
        data: "source" and "target" -> real data sets, in place of drawn worlds.
    """

    scale: Scale
    seeds: Sequence[int] | None = None
    methods: Sequence[str] | None = None
    sizes: Sequence[str] | None = None
    variants: Sequence[str] | None = None
    data: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        strange = [name for name in self.data if name not in ("source", "target")]
        if strange:
            raise ValueError(
                f"compare: data must be named source and target, got {', '.join(strange)}. "
                "Give --data source=PATH, and target=PATH for tables in two scenarios."
            )

    def chosen(self, what: str, known: Iterable[str]) -> list[str]:
        """The asked-for ones of `known`, in its order."""
        known, asked = list(known), getattr(self, what)
        strange = [name for name in asked or () if name not in known]
        if strange and not known:
            raise ValueError(
                f"compare: {what} must be left out, for this table has none, got "
                f"{', '.join(strange)}. Drop the option."
            )
        if strange:
            raise ValueError(
                f"compare: {what} must be of {', '.join(known)}, got {', '.join(strange)}. "
                "Choose among those, or leave the option out for all."
            )
        return [name for name in known if asked is None or name in asked]

    def seed_list(self, usual: int) -> list[int]:
        return list(range(usual)) if self.seeds is None else list(self.seeds)

    def world(self, name: str) -> Data:
        """A drawn world; "c" is the small one."""
        options = dict(self.scale.data)
        if name == "c":
            options["train_ids"] = max(options["train_ids"] // 2, self.scale.student.identities)
        return Data(name, options=options)

    def single(self) -> Data:
        """The one data set of a table in a single scenario."""
        if "target" in self.data:
            raise ValueError(
                "compare: data must name the source alone in this table, got a target. "
                "Leave it out, or take a table in two scenarios: cross, few-shot."
            )
        return Data.at(self.data["source"]) if self.data else self.world("plain")

    def transfers(self) -> list[tuple[Data, Data]]:
        """(source, target) of every transfer."""
        if self.data:
            if set(self.data) != {"source", "target"}:
                raise ValueError(
                    f"compare: data must name source and target, got {', '.join(self.data)}. "
                    "Give --data source=PATH --data target=PATH."
                )
            return [(Data.at(self.data["source"]), Data.at(self.data["target"]))]
        return [(self.world(a), self.world(b)) for a, b in (("a", "b"), ("a", "c"), ("b", "c"))]


def family(
    table: str,
    scale: Scale,
    source: Data,
    target: Data,
    seed: int,
    methods: Sequence[str],
    sizes: Sequence[Size],
    budgets: Sequence[str],
    *,
    variant: str = "",
    epochs: int | None = None,
    rates: Sequence[float] = (),
    change: Callable[[Student], Student] = ablations.unchanged,
    curves: Sequence[str] = (),
    teacher: str | None = None,
    refined: bool = False,
) -> Iterator[Cell]:
    """The cells of some methods at some sizes in one scenario, for one seed.

    Args:
        epochs: of a student, in place of what the budget says.
        rates: learning rates of a student, each a cell; empty for the recipe's own.
        change: an ablation.
        curves: sizes whose long trainings are scored on their way.
        teacher: score the teacher, too, as this variant.
        refined: score what every refinement makes of the teacher, too.
    """
    data = source.name if source == target else f"{source.name} -> {target.name}"
    scenario = ", ".join(filter(None, (data, scale.name)))
    if teacher is not None:
        whole = Teacher(source, scale.network, replace(scale.teacher, seed=seed))
        yield Cell(table, scenario, teacher, "teacher", FULL_WIDTH, "", seed, part=whole)
    for method in methods:
        due = refined
        for size in sizes:
            for budget, rate in product(budgets, rates or (0.0,)):
                recipe = _recipe(scale, budget, epochs, seed, rate)
                student = METHODS[method](
                    Setting(scale, scale.network, source, target, size, seed, recipe)
                )
                student = change(student)
                chain = student.start.source
                if due and isinstance(chain, AnyChain) and chain.recipe is not None:
                    due = False
                    yield Cell(table, scenario, variant, method, FULL_WIDTH, "", seed, part=chain)
                curve = size.label in curves and budget == "long"
                labels = (table, scenario, variant, method, size.label, budget, seed, rate)
                yield Cell(*labels, part=student, curve=curve)


def _recipe(scale: Scale, budget: str, epochs: int | None, seed: int, rate: float) -> Recipe:
    recipe = stretched(scale.student, scale.epochs(budget) if epochs is None else epochs)
    return replace(recipe, seed=seed, lr=rate or recipe.lr)
