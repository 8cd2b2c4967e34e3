"""The sizes that `oskt demo` comes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from oskt import compare
from oskt.train import Recipe, RefineRecipe


@dataclass(frozen=True)
class Scale:
    """How large a demo is.

    Attributes:
        data: options of `make_pedestrians`.
        network: a spec, without its identities, of `models.build`.
        teacher, nested, published: recipes.
        student, scratch: of students that come from a chain, and from random numbers.
        chain_widths: shares of the channels at which nested chains begin; the narrowest is that of
            the published chain, too.
        widths: (label, share) of the students.
        finetuned, from_scratch: labels of the students that are trained by these two.
    """

    data: Mapping[str, Any]
    network: Mapping[str, Any]
    teacher: Recipe
    nested: RefineRecipe
    published: RefineRecipe
    student: Recipe
    scratch: Recipe
    chain_widths: tuple[float, ...]
    widths: tuple[tuple[str, float], ...]
    finetuned: tuple[str, ...]
    from_scratch: tuple[str, ...]


def _as_compared(scale: compare.Scale, network: Mapping[str, Any]) -> dict[str, Any]:
    """Data, network and recipes as `oskt compare` has them at a scale; of its rates students from a
    chain take the lowest, as they start well (docs/lab/nested.md, section 16)."""
    return {
        "data": scale.data, "network": network, "teacher": scale.teacher, "nested": scale.nested,
        "published": scale.refine, "student": replace(scale.student, lr=min(scale.rates)),
        "scratch": scale.student,
    }  # fmt: skip


_WIDTHS = (("1/4", 1 / 4), ("3/8", 3 / 8), ("1/2", 1 / 2), ("5/8", 5 / 8), ("3/4", 3 / 4),
           ("15/16", 15 / 16))  # fmt: skip
_LAPTOP, _FULL = compare.SCALES["laptop"], compare.SCALES["full"]
_RESNETS = {
    "laptop": Scale(
        **_as_compared(_LAPTOP, {"family": "resnet", **_LAPTOP.network}),
        chain_widths=(1 / 4, 1 / 2),
        widths=_WIDTHS,
        finetuned=("1/4", "1/2", "3/4"),
        from_scratch=("1/4", "1/2"),
    ),
    # A ten-minute piece of this runs on one GPU; --out the same folder goes on.
    "full": Scale(
        **_as_compared(_FULL, {"family": "resnet", **_FULL.network}),
        chain_widths=(1 / 8, 1 / 4, 1 / 2),
        widths=(("1/8", 1 / 8), *_WIDTHS),
        finetuned=("1/8", "1/4", "1/2"),
        from_scratch=("1/8", "1/4"),
    ),
}
_VIT = _LAPTOP.of("ViT")
_VITS = {"laptop": replace(_RESNETS["laptop"], **_as_compared(_VIT, _VIT.network))}

SCALES = {"resnet": _RESNETS, "vit": _VITS}
