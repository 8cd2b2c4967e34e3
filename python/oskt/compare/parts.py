"""What a comparison is made of, as plain data: each part names the parts that it is made from.

Data -> Teacher -> Chain (-> Moved) -> Start -> Student. A part's digest is that of everything it
stands for, so that equal work has one folder, whichever tables ask for it, and changed settings
have another.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from oskt.compare.scales import Size
from oskt.train import Recipe, RefineRecipe


@dataclass(frozen=True)
class Data:
    """A data set.

    Args:
        name: a drawn world, "digits", or what `at` calls a real one.
        root: of a real one, in the notation of `oskt.data.read_data`; "" draws the world.
        options: of `make_pedestrians`, for a drawn world.
        few_shot: (ratio, seed) of the training identities kept; None keeps all.
    """

    name: str
    root: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    few_shot: tuple[float, int] | None = None

    @staticmethod
    def at(root: str) -> Data:
        """A real data set, called by the last piece of its notation: folder and options.

        Digits of the whole notation keep apart sets of one name in different places.

        Example:
            >>> Data.at("/data/CUHK03-NP?variant=detected").name
            'CUHK03-NP?variant=detected #45bd'
        """
        whole = os.path.abspath(root)
        digits = hashlib.sha256(whole.encode()).hexdigest()[:4]
        return Data(f"{Path(whole).name} #{digits}", whole)


@dataclass(frozen=True)
class Teacher:
    """A full-width network.

    Args:
        data: what it is trained on.
        network: its options, see scales.built.
        recipe: its training; its seed is also that of the first weights.
        trained: False leaves it at random numbers.
        start: a teacher of other data whose weights it begins with.
    """

    data: Data
    network: Mapping[str, Any]
    recipe: Recipe
    trained: bool = True
    start: Teacher | None = None


@dataclass(frozen=True)
class Chain:
    """A weight chain; `recipe` None leaves it as clustering made it, else it is refined.

    Args:
        teacher: what it is made of; refinement takes the same data.
        kind, width, rows, method: of `WeightChain.from_teacher`.
        further: narrowest widths of more chains in one ladder, see `ChainLadder.from_teacher`.
    """

    teacher: Teacher
    kind: str
    width: float
    recipe: RefineRecipe | None
    rows: str = "folded"
    method: str | None = None
    further: tuple[float, ...] = ()

    @property
    def data(self) -> Data:
        return self.teacher.data


@dataclass(frozen=True)
class Moved:
    """A nested chain that is refined on, in its own order, on other data.

    Args:
        chain: as it was refined before.
        data, recipe: of the further refinement.
    """

    chain: Chain
    data: Data
    recipe: RefineRecipe

    @property
    def teacher(self) -> Teacher:
        return self.chain.teacher

    @property
    def width(self) -> float:
        return self.chain.width


@dataclass(frozen=True)
class Start:
    """A student before any training of its own.

    Args:
        how: a key of `workshop.STARTS`.
        source: Teacher, or a chain for "published" and "oskt".
        size: what is asked for.
        seed: of whatever is drawn.
    """

    how: str
    source: Teacher | AnyChain
    size: Size
    seed: int

    @property
    def teacher(self) -> Teacher:
        return self.source if isinstance(self.source, Teacher) else self.source.teacher

    @property
    def knows(self) -> bool:
        """Whether it can be scored before training: random numbers cannot."""
        return self.how != "scratch"


@dataclass(frozen=True)
class Student:
    """A student and its own training.

    Args:
        start: where it begins.
        data: what it is trained and scored on.
        recipe: its training; None leaves it as it starts.
        told_by: teacher of the same identities that distils into it.
        telling: options of `baselines.distill_student`: weight, temperature, norm_direction.
    """

    start: Start
    data: Data
    recipe: Recipe | None
    told_by: Teacher | None = None
    telling: Mapping[str, float] = field(default_factory=dict)


AnyChain = Chain | Moved
Trained = Teacher | AnyChain | Student
Part = Data | Start | Trained

# Settings that do not change what a step of a training does.
NO_WORK = ("seed", "lr", "min_factor", "epochs", "steps", "warmup_epochs", "warmup_factor")


def digest(part: Part) -> str:
    """Eight hex digits that change with anything that the part stands for.

    Recipes count by what differs from their defaults, so that a field which is new changes none.
    """
    text = json.dumps({type(part).__name__: settings(part)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def work(part: Part) -> str:
    """Equal for trainings whose steps are the same work: they differ in seed, rate or length."""

    def kept(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: kept(entry) for name, entry in value.items() if name not in NO_WORK}

    return json.dumps({type(part).__name__: kept(settings(part))}, sort_keys=True)


def folder_name(part: Part) -> str:
    """A name that speaks, and the digest."""
    match part:
        case Data():
            words = ["data", part.name]
        case Teacher():
            words = ["teacher", part.data.name, f"depth{part.network['depth']}", _seed(part.recipe)]
        case Chain():
            teacher = part.teacher
            words = [f"chain-{part.kind}", f"{part.width:g}", teacher.data.name]
            words.append(_seed(part.recipe or teacher.recipe))
        case Moved():
            words = ["moved", f"{part.width:g}", part.teacher.data.name, "to", part.data.name]
            words.append(_seed(part.recipe))
        case Start():
            words = ["start", part.how, part.size.label, part.teacher.data.name, f"s{part.seed}"]
        case Student():
            start = part.start
            told = ["kd"] if part.told_by else []
            words = ["student", start.how, *told, start.size.label, part.data.name]
            if part.recipe is not None:
                words += [f"{part.recipe.epochs}ep", _seed(part.recipe)]
    return re.sub("[/ ?&#]+", "_", "-".join([*words, digest(part)]))


def _seed(recipe: Recipe) -> str:
    return f"s{recipe.seed}"


def trained_parts(part: Part) -> Iterator[Trained]:
    """The trainings behind a part, parents first, each once, the part's own last."""
    seen: dict[str, Trained] = {}

    def visit(one: Part) -> None:
        for spec in fields(one):
            value = getattr(one, spec.name)
            if isinstance(value, Part):
                visit(value)
        if isinstance(one, Trained) and one.recipe is not None and getattr(one, "trained", True):
            seen.setdefault(folder_name(one), one)

    visit(part)
    yield from seen.values()


def settings(value: Any) -> Any:
    """A part as short JSON values: recipes by the fields that differ from their defaults."""
    if isinstance(value, Recipe):
        plain, usual = value.to_dict(), type(value)().to_dict()
        return {name: entry for name, entry in plain.items() if entry != usual[name]}
    if is_dataclass(value):
        own = {spec.name: settings(getattr(value, spec.name)) for spec in fields(value)}
        return {name: entry for name, entry in own.items() if entry not in (None, {}, "")}
    if isinstance(value, Mapping):
        return {name: settings(entry) for name, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value
