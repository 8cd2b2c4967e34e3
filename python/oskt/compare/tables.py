"""The tables: each is a function that lists its cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from oskt.compare import ablations
from oskt.compare.cells import Cell, Request, family
from oskt.compare.methods import IN_ONE_SCENARIO, METHODS
from oskt.compare.parts import Data
from oskt.compare.scales import SIZES, Scale, Size

PAPER = ("scratch", "weight-selection", "kd++", "depgraph", "oskt-published", "nested")
TRANSFERRED = (*PAPER, "nested-3x", "nested-there")


def sizes(request: Request) -> Iterator[Cell]:
    """Table 1: every method at every size, trained for a short and for a long time, and at each
    of the scale's rates, of which every method's better one stands."""
    methods, labels = request.chosen("methods", IN_ONE_SCENARIO), request.chosen("sizes", SIZES)
    request.chosen("variants", [])
    data, scale = request.single(), request.scale
    for seed in request.seed_list(scale.seeds):
        first = seed == request.seed_list(scale.seeds)[0]
        yield from family(
            "sizes", scale, data, data, seed, methods, [SIZES[n] for n in labels],
            ("short", "long"), rates=scale.rates, curves=labels[:1] if first else (), teacher="",
            refined=True,
        )  # fmt: skip


def cross(request: Request) -> Iterator[Cell]:
    """Table 2: teacher and refinement on one data set, students on another, at each rate."""
    methods, labels = request.chosen("methods", METHODS), request.chosen("sizes", SIZES)
    methods = methods if request.methods else [m for m in methods if m in TRANSFERRED]
    request.chosen("variants", [])
    for seed in request.seed_list(request.scale.seeds):
        for source, target in request.transfers():
            yield from family(
                "cross", request.scale, source, target, seed, methods,
                [SIZES[n] for n in labels], ("own",), rates=request.scale.rates,
            )  # fmt: skip


RATIOS = {"10 %": 0.1, "30 %": 0.3, "50 %": 0.5}


def few_shot(request: Request) -> Iterator[Cell]:
    """Table 3: the smallest student in another scenario with few identities, drawn by the seed,
    at each of the scale's rates: a high one unlearns what few identities cannot teach again.

    Epochs grow as they get shorter, so that a student takes about as many steps as with all
    identities: 0.8 to 1.7 times, as an epoch is whole batches, smaller ones of few identities.
    """
    methods = request.chosen("methods", METHODS)
    methods = methods if request.methods else [m for m in methods if m in PAPER]
    labels = request.chosen("sizes", SIZES) if request.sizes else ["S1"]
    scale = request.scale
    for seed in request.seed_list(5):
        for source, target in request.transfers():
            for variant in request.chosen("variants", RATIOS):
                ratio = RATIOS[variant]
                epochs = round(scale.epochs("own") / ratio)
                yield from family(
                    "few-shot", scale, source, replace(target, few_shot=(ratio, seed)), seed,
                    methods, [SIZES[n] for n in labels], ("own",), variant=variant, epochs=epochs,
                    rates=scale.rates,
                )  # fmt: skip


def ablation(request: Request) -> Iterator[Cell]:
    """Table 4: one ingredient of the published and of the nested chain changed at a time."""
    variants = request.chosen("variants", ablations.VARIANTS)
    methods = request.chosen("methods", ("oskt-published", "nested"))
    labels = request.chosen("sizes", SIZES) if request.sizes else ["S1", "S2"]
    data, scale = request.single(), request.scale
    for seed in request.seed_list(scale.seeds):
        for variant in variants:
            fitting = [m for m in methods if m in ablations.VARIANTS[variant].methods]
            yield from family(
                "ablation", scale, data, data, seed, fitting, [SIZES[n] for n in labels],
                ("long",), variant=variant, change=ablations.VARIANTS[variant].change,
                teacher="" if variant == "full" else None, refined=True,
            )  # fmt: skip


CHAIN_WIDTHS = {f"{w / 10:g}": w / 10 for w in range(1, 10)}


def chain_width(request: Request) -> Iterator[Cell]:
    """Table 5: chains of 0.1 to 0.9 of the teacher: their own width, and full width."""
    methods = request.chosen("methods", ("oskt", "nested"))
    variants = request.chosen("variants", CHAIN_WIDTHS)
    labels = request.chosen("sizes", ("chain width", "teacher width"))
    data, scale = request.single(), request.scale
    for seed in request.seed_list(scale.seeds):
        for variant in variants:
            width = CHAIN_WIDTHS[variant]
            shares = {"chain width": width, "teacher width": 1.0}
            yield from family(
                "chain-width", scale, data, data, seed, methods,
                [Size(n, shares[n]) for n in labels],
                ("short",), variant=variant, change=ablations.chain_width(width), refined=True,
            )  # fmt: skip


def chains(request: Request) -> Iterator[Cell]:
    """Table 6: all sizes from one chain, or from three (published ones serve two sizes each)."""
    methods = request.chosen("methods", ("oskt-published", "oskt", "nested"))
    labels = request.chosen("sizes", SIZES)
    data, scale = request.single(), request.scale
    for seed in request.seed_list(scale.seeds):
        for variant in request.chosen("variants", ("one chain", "three chains")):
            one = variant == "one chain"
            yield from family(
                "chains", scale, data, data, seed, methods, [SIZES[n] for n in labels], ("short",),
                variant=variant, change=ablations.one_chain if one else ablations.unchanged,
            )  # fmt: skip


def depth(request: Request) -> Iterator[Cell]:
    """Table 7: teachers of other depth, and a transformer."""
    methods = request.chosen("methods", IN_ONE_SCENARIO)
    usual = ("scratch", "depgraph", "oskt-published", "nested")
    methods = methods if request.methods else list(usual)
    labels = request.chosen("sizes", SIZES) if request.sizes else ["S1", "S3", "S5"]
    data, scale = request.single(), request.scale
    for seed in request.seed_list(scale.seeds):
        for variant in request.chosen("variants", scale.networks):
            other = scale.of(variant)
            # torch-pruning 1.6 does not follow the heads of a transformer (its issue 393).
            prunable = [m for m in methods if m != "depgraph" or "in_planes" in other.network]
            yield from family(
                "depth", other, data, data, seed, prunable, [SIZES[n] for n in labels],
                ("short",), variant=variant, teacher=variant, refined=True,
            )  # fmt: skip


METRICS = {"Euclidean": "published", "cosine": "published-cosine", "norm folded in": "folded"}


def metric(request: Request) -> Iterator[Cell]:
    """Table 8: by what rows are compared in clustering, for every architecture."""
    methods = request.chosen("methods", ("oskt-published", "oskt"))
    labels = request.chosen("sizes", SIZES) if request.sizes else ["S1", "S2"]
    data, scale = request.single(), request.scale
    architectures = [name for name in scale.networks if name != "ResNet-101"]
    pairs = {f"{a}, {m}": (a, m) for a in architectures for m in METRICS}
    for seed in request.seed_list(scale.seeds):
        for variant in request.chosen("variants", pairs):
            architecture, kind = pairs[variant]
            yield from family(
                "metric", scale.of(architecture), data, data, seed, methods,
                [SIZES[n] for n in labels], ("short",), variant=variant,
                change=ablations.rows(METRICS[kind]),
            )  # fmt: skip


def digits(request: Request) -> Iterator[Cell]:
    """Table 9: another task by the same means, the classification of handwritten digits."""
    methods, labels = request.chosen("methods", IN_ONE_SCENARIO), request.chosen("sizes", SIZES)
    request.chosen("variants", [])
    if request.data:
        raise ValueError(
            "compare: digits must come without data, got --data. The table has its own pictures."
        )
    scale, data = _square(request.scale), Data("digits")
    for seed in request.seed_list(scale.seeds):
        yield from family(
            "digits", scale, data, data, seed, methods, [SIZES[n] for n in labels],
            ("short", "long"), rates=scale.rates, teacher="", refined=True,
        )  # fmt: skip


def _square(scale: Scale) -> Scale:
    """The scale for square pictures of ten classes that must not be mirrored."""
    changes: dict[str, Any] = {
        "height": 32, "width": 32, "pad": 4, "flip": 0.0, "erasing": 0.0, "triplet": "none"
    }  # fmt: skip
    recipes = ("teacher", "refine", "nested", "student")
    return replace(scale, **{name: replace(getattr(scale, name), **changes) for name in recipes})


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        number: in the issue's list.
        title: its heading.
        cells: what it lists.
        variants: what they are, where they and not sizes stand at the top.
    """

    number: int
    title: str
    cells: Callable[[Request], Iterator[Cell]]
    variants: str = ""

    @property
    def columns(self) -> str:
        """What stands at the top: "size" or "variant"."""
        return "variant" if self.variants else "size"


TABLES = {
    "sizes": Table(1, "Students of every size, in one scenario", sizes),
    "cross": Table(2, "Students in another scenario than their teacher's", cross),
    "few-shot": Table(3, "Another scenario with few identities", few_shot, "Identities kept"),
    "ablation": Table(4, "What each ingredient is worth", ablation),
    "chain-width": Table(5, "Chains of different width", chain_width, "Width of the chain"),
    "chains": Table(6, "One chain against three", chains),
    "depth": Table(7, "Teachers of different depth and kind", depth),
    "metric": Table(8, "How rows are compared in clustering", metric),
    "digits": Table(9, "Another task: handwritten digits", digits),
}


def find_table(name: str) -> str:
    """The key of a table that is asked for by name or number."""
    for key, table in TABLES.items():
        if name in (key, str(table.number)):
            return key
    known = ", ".join(f"{table.number} {key}" for key, table in TABLES.items())
    raise ValueError(
        f"compare: table must be one of {known}, got {name!r}. Give its name or number."
    )
