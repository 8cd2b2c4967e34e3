"""The sizes that `oskt demo` comes in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from oskt.train import RECIPES, Recipe, RefineRecipe


@dataclass(frozen=True)
class Scale:
    """How large a demo is.

    Attributes:
        data: options of `make_pedestrians`.
        network: a spec, without its identities, of `models.build`.
        teacher, nested, published, student: recipes; the last also from scratch.
        chain_width: narrowest share of the channels that both chains are trained at.
        widths: (label, share) of the students.
        finetuned, scratch: labels of the students that are trained so.
    """

    data: dict[str, Any]
    network: dict[str, Any]
    teacher: Recipe
    nested: RefineRecipe
    published: RefineRecipe
    student: Recipe
    chain_width: float
    widths: tuple[tuple[str, float], ...]
    finetuned: tuple[str, ...]
    scratch: tuple[str, ...]


def _refine_recipe(name: str) -> RefineRecipe:
    recipe = RECIPES[name]
    assert isinstance(recipe, RefineRecipe)
    return recipe


_WIDTHS = (("1/4", 1 / 4), ("3/8", 3 / 8), ("1/2", 1 / 2), ("5/8", 5 / 8), ("3/4", 3 / 4),
           ("15/16", 15 / 16))  # fmt: skip
_RESNETS = {
    "laptop": Scale(
        data={"train_ids": 200, "test_ids": 100, "images_per_id": 12, "cameras": 6},
        network={"family": "resnet", "depth": 50, "layers": (2, 2, 2, 2), "in_planes": 16},
        teacher=RECIPES["demo-teacher"],
        nested=_refine_recipe("demo-nested"),
        published=_refine_recipe("demo-refine"),
        student=RECIPES["demo-student"],
        chain_width=1 / 4,
        widths=_WIDTHS,
        finetuned=("1/4", "1/2", "3/4"),
        scratch=("1/4", "1/2"),
    ),
    # A ten-minute piece of this runs on one GPU; --out the same folder goes on.
    "full": Scale(
        data={"train_ids": 1000, "test_ids": 500, "images_per_id": 16, "cameras": 8,
              "height": 256, "width": 128},
        network={"family": "resnet", "depth": 50, "in_planes": 64},
        teacher=replace(RECIPES["paper-teacher"], epochs=60, steps=(30, 50), lr=1e-3),
        nested=replace(_refine_recipe("nested"), epochs=60, steps=(30, 50), lr=1e-3),
        published=replace(_refine_recipe("paper-refine"), epochs=60, steps=(30, 50), lr=1e-3,
                          alpha=0.05, distill=4.0),
        student=replace(RECIPES["paper-student"], epochs=30, steps=(20,)),
        chain_width=1 / 8,
        widths=(("1/8", 1 / 8), *_WIDTHS),
        finetuned=("1/8", "1/4", "1/2"),
        scratch=("1/8", "1/4"),
    ),
}  # fmt: skip

_VITS = {
    "laptop": replace(
        _RESNETS["laptop"],
        network={"family": "vit", "dim": 96, "depth": 4, "heads": 4, "patch": 8, "image": (64, 32)},
        teacher=RECIPES["demo-vit-teacher"],
        nested=_refine_recipe("demo-vit-nested"),
        published=_refine_recipe("demo-vit-refine"),
        student=RECIPES["demo-vit-student"],
    ),
}

SCALES = {"resnet": _RESNETS, "vit": _VITS}
