"""How large a comparison is: data, network, recipes, sizes and budgets, all plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn

from oskt import models
from oskt.coupling import Coupling
from oskt.models import resnet
from oskt.train import RECIPES, Recipe, RefineRecipe
from oskt.widths import round_width

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


@dataclass(frozen=True)
class Size:
    """A student's size.

    Args:
        label: its name in tables.
        share: of the teacher's stem, in (0, 1].
        multipliers: planes of stages 2 to 4 over the student's stem, as the paper's presets give
            them; None, or a network that is not residual, takes the share of every channel group.
    """

    label: str
    share: float
    multipliers: tuple[int, int, int] | None = None

    def widths(self, coupling: Coupling, network: Mapping[str, Any]) -> dict[str, int]:
        """Channel group -> width in a network of these options (see `built`)."""
        if self.multipliers is None or "in_planes" not in network:
            return {n: round_width(group, self.share) for n, group in coupling.free.items()}
        depth = network["depth"]
        layers = network.get("layers") if depth >= 50 else None
        return resnet.widths(
            round(network["in_planes"] * self.share), self.multipliers, layers=layers or depth
        )


# The paper's students of a residual network, as shares of its in_planes.
SIZES = {
    size.label: size
    for size in (
        Size("S1", 1 / 8, (2, 4, 8)),
        Size("S2", 1 / 4, (2, 3, 4)),
        Size("S3", 1 / 4, (2, 4, 8)),
        Size("S4", 1 / 2, (2, 3, 4)),
        Size("S5", 1 / 2, (2, 4, 8)),
        Size("S6", 1, (2, 3, 4)),
    )
}
# The published method serves two sizes with each of its three chains.
CHAIN_OF = {"S1": 1 / 8, "S2": 1 / 8, "S3": 1 / 4, "S4": 1 / 4, "S5": 1 / 2, "S6": 1 / 2}
NARROWEST = 1 / 8


@dataclass(frozen=True)
class Scale:
    """One scale of all tables.

    Args:
        data: options of `make_pedestrians`; the world is the table's.
        network: the teacher, see `built`.
        teacher, refine, nested, student: recipes; `refine` of published chains, `nested` of ours.
        rates: learning rates that the students of tables 1, 2, 3 and 9 are trained at, each of
            them; empty for the recipe's own alone.
        equal_time: epochs of a student over epochs of a nested refinement such that a student of
            every size, one after the other, takes about the time of the refinement (measured for
            Model Folding: docs/lab/nested.md, section 21; 140 s beside 164 in section 28's timing).
        further: where nested chains beside the narrowest begin.
        seeds: how many, from 0 on; few-shot tables take five.
        networks: table "depth": name -> what this network replaces of the scale.
        name: said in scenarios, so that seeds of two scales are not averaged; "" says nothing.
    """

    data: Mapping[str, Any]
    network: Mapping[str, Any]
    teacher: Recipe
    refine: RefineRecipe
    nested: RefineRecipe
    student: Recipe
    networks: Mapping[str, Mapping[str, Any]]
    rates: tuple[float, ...] = ()
    equal_time: float = 1.15
    further: tuple[float, ...] = (1 / 4, 1 / 2)
    seeds: int = 3
    name: str = ""

    def of(self, network: str) -> Scale:
        """This scale with another of its networks."""
        return replace(self, **self.networks[network])

    def epochs(self, budget: str) -> int:
        """Epochs of one student's training.

        "short": those of refinement divided by the sizes of the family, so that a family trained
        size by size takes as many steps as one refinement. "long": a share of those of refinement
        for every size, so that such a family takes about the time of one refinement (rows hold
        the seconds of both).
        "own": the student recipe's, for other data than the teacher's.
        """
        whole = self.nested.epochs
        return {
            "short": max(1, round(whole / len(SIZES))),
            "long": max(1, round(whole * self.equal_time)),
            "own": self.student.epochs,
        }[budget]


def stretched(recipe: AnyRecipe, epochs: int) -> AnyRecipe:
    """The recipe with another number of epochs; falls of the rate move along, a warm-up ends in
    the first third.

    Example:
        >>> short = stretched(Recipe(epochs=100, steps=(40, 70)), 10)
        >>> short.steps, short.warmup_epochs
        ((4, 7), 3)
    """
    falls = {max(1, round(step * epochs / recipe.epochs)) for step in recipe.steps}
    warmup = min(recipe.warmup_epochs, epochs // 3)
    return replace(recipe, epochs=epochs, steps=tuple(sorted(falls)), warmup_epochs=warmup)


def _refine(name: str, **changes: Any) -> RefineRecipe:
    recipe = RECIPES[name]
    assert isinstance(recipe, RefineRecipe)
    return replace(recipe, **changes)


def built(network: Mapping[str, Any], classes: int) -> nn.Module:
    """A fresh network of these options, those of `models.ResNet` unless they name a family."""
    return models.build({"family": "resnet", **network, "num_classes": classes})


def _depths(in_planes: int) -> dict[str, dict[str, Any]]:
    return {
        f"ResNet-{depth}": {"network": {"depth": depth, "layers": None, "in_planes": in_planes}}
        for depth in (18, 50, 101)
    }


_VIT = {
    "network": {
        "family": "vit", "dim": 96, "depth": 4, "heads": 4, "patch": 8, "image": [64, 32],
    },
    "teacher": RECIPES["demo-vit-teacher"],
    "refine": _refine("demo-vit-refine"),
    "nested": _refine("demo-vit-nested"),
    "student": RECIPES["demo-vit-student"],
    "rates": (1e-3, 3e-4),
}  # fmt: skip
_VIT_S = {
    "network": {"family": "vit", "dim": 384, "depth": 12, "heads": 6, "image": [256, 128]},
    "teacher": RECIPES["paper-vit-teacher"],
    "refine": _refine("paper-vit-refine", epochs=60, alpha=0.05, distill=4.0),
    "nested": _refine("nested-vit", epochs=60),
    "student": replace(RECIPES["paper-vit-student"], epochs=30),
    "rates": (4e-4, 1e-4),
}  # fmt: skip

SCALES = {
    # Two cores, 20 minutes to an hour of training for a table and seed, two for table 1.
    "laptop": Scale(
        data={"train_ids": 200, "test_ids": 100, "images_per_id": 12, "height": 128, "width": 64},
        network={"depth": 50, "layers": (2, 2, 2, 2), "in_planes": 16},
        teacher=RECIPES["demo-teacher"],
        refine=_refine("demo-refine"),
        nested=_refine("demo-nested"),
        student=RECIPES["demo-student"],
        # What suits a network from random numbers unlearns what a wide student starts with.
        rates=(1e-2, 3e-3),
        # Bottlenecks, two in each stage, are 26 layers: the network of the other tables.
        networks={"ResNet-26": {}, **_depths(16), "ViT": _VIT},
    ),
    # One GPU, in pieces (--stop-after 600) that go on across runs. Teachers are trained for twice
    # as long as chains are refined, so that they are done (docs/lab/nested.md, section 18).
    "full": Scale(
        data={"train_ids": 1000, "test_ids": 500, "images_per_id": 16, "height": 256, "width": 128},
        network={"depth": 50, "in_planes": 64},
        teacher=replace(RECIPES["paper-teacher"], epochs=120, steps=(60, 100), lr=1e-3),
        refine=_refine(
            "paper-refine", epochs=60, steps=(30, 50), lr=1e-3, alpha=0.05, distill=4.0
        ),
        nested=_refine("nested", epochs=60, steps=(30, 50), lr=1e-3),
        student=replace(RECIPES["paper-student"], epochs=30, steps=(20,)),
        rates=(1e-3, 3.5e-4),
        networks={**_depths(64), "ViT-S": _VIT_S},
        name="full scale",
    ),
}  # fmt: skip
