"""The stages that train: teacher, refine, finetune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from oskt import models, students
from oskt.chain import ChainLadder
from oskt.cli.flags import RunOptions, numbers, training_flags
from oskt.cli.words import Data, Out, console, say
from oskt.coupling.clustering import METHODS, NESTINGS
from oskt.files.checkpoint import file_hash, load_state
from oskt.files.part_file import is_part_file
from oskt.files.tensor_file import CHAIN, MODEL, format_of
from oskt.models.pretrained import load_pretrained
from oskt.task import ReIDData, example_images
from oskt.train import (
    Recipe,
    RefineRecipe,
    finetune_student,
    goes_on,
    refine_chain,
    saliency,
    train_teacher,
)

_RESNET, _VIT = "--model resnet", "--model vit"


@training_flags("paper-teacher", lambda flags: flags["model"])
def teacher(
    recipe: Recipe,
    run: RunOptions,
    data: Data,
    out: Out,
    model: Annotated[
        Literal["resnet", "vit"], typer.Option(help="residual network or vision transformer")
    ] = "resnet",
    depth: Annotated[
        int | None,
        typer.Option(min=1, help="18, 34, 50 (default), 101 or 152; blocks of a transformer (12)"),
    ] = None,
    in_planes: Annotated[
        int, typer.Option(help="width of the stem; 64 is standard", rich_help_panel=_RESNET)
    ] = 64,
    multipliers: Annotated[
        str, typer.Option(help="planes of stages 2-4 over in_planes", rich_help_panel=_RESNET)
    ] = "2,4,8",
    layers: Annotated[
        str | None, typer.Option(help="blocks per stage, e.g. 2,2,2,2", rich_help_panel=_RESNET)
    ] = None,
    pooling: Annotated[
        Literal["avg", "gem"], typer.Option(help="over space", rich_help_panel=_RESNET)
    ] = "avg",
    dim: Annotated[
        int, typer.Option(help="channels; 384 is ViT-S, 768 ViT-B", rich_help_panel=_VIT)
    ] = 384,
    heads: Annotated[
        int, typer.Option(help="attention heads; 6 of ViT-S, 12 of ViT-B", rich_help_panel=_VIT)
    ] = 6,
    patch: Annotated[int, typer.Option(help="side of a patch, px", rich_help_panel=_VIT)] = 16,
    parts: Annotated[
        int, typer.Option(help="part tokens; 3 as PASS, 0 as timm", rich_help_panel=_VIT)
    ] = 3,
    drop_path: Annotated[
        float,
        typer.Option(help="share of branches left out in the last block", rich_help_panel=_VIT),
    ] = 0.1,
    pretrained: Annotated[Path | None, typer.Option(help="checkpoint to start from")] = None,
    min_coverage: Annotated[float, typer.Option(help="share of it that must match")] = 0.9,
    pixels: Annotated[
        Literal["imagenet", "half"],
        typer.Option(
            help="how its network normalised images: ImageNet's mean and std (PASS, DeiT, residual "
            "networks), or 0.5 and 0.5 (timm's ViTs, TransReID, OSKT_ViT)"
        ),
    ] = "imagenet",
) -> None:
    """Train a network on a data folder; writes OUT/teacher.safetensors."""

    def network(num_classes: int, *, report: bool = False) -> torch.nn.Module:
        made: torch.nn.Module
        if model == "vit":
            made = models.VisionTransformer(
                dim, depth or 12, heads, patch=patch, image=(recipe.height, recipe.width),
                parts=parts, num_classes=num_classes, drop_path=drop_path,
            )  # fmt: skip
        else:
            made = models.ResNet(
                depth or 50, in_planes, numbers("--multipliers", multipliers, int, "2,4,8"),
                num_classes, pooling=pooling,
                layers=numbers("--layers", layers, int, "2,2,2,2") if layers else None,
            )  # fmt: skip
        if pretrained is not None:
            found = load_pretrained(made, pretrained, min_coverage=min_coverage, pixels=pixels)
            if report:
                console.print(found.table())
        return made

    network(0, report=True)  # wrong sizes, or a wrong file, are found before images are read
    folder = _open(data, recipe, run, out)
    torch.manual_seed(recipe.seed)
    made = network(folder.num_classes)
    path = train_teacher(made, folder.training(recipe), recipe, out, **_fit_options(folder, run))
    say(f"teacher: {path}")


@training_flags(
    "paper-refine",
    lambda flags: _family(flags["teacher"] or flags["from_chain"]),
    chain={"nested": "nested"},
)
def refine(
    recipe: RefineRecipe,
    run: RunOptions,
    data: Data,
    out: Out,
    teacher: Annotated[Path | None, typer.Option(help="model file of `oskt teacher`")] = None,
    from_chain: Annotated[
        Path | None,
        typer.Option(
            help="in place of --teacher: a file of nested chains to go on from, on these data, in "
            "their own order of channels"
        ),
    ] = None,
    chain_width: Annotated[
        str | None,
        typer.Option(
            help="narrowest width that is trained, as a share of the teacher's (default 0.125); "
            "several, such as 0.125,0.25,0.5 (default of nested chains), make a ladder of chains, "
            "trained in one run"
        ),
    ] = None,
    rows: Annotated[
        Literal["folded", "owned", "published", "published-cosine"] | None,
        typer.Option(
            help="rows that clusters compare: with the norm folded in (default), beside all else "
            "that a channel owns (owned), or as published: raw (CNNs), of length 1 in each matrix "
            "(transformers)"
        ),
    ] = None,
    method: Annotated[
        Literal["kmeans", "ward", "random", "saliency", "magnitude"] | None,
        typer.Option(
            help="how: kmeans (default), ward or random; a nested chain orders channels by "
            "saliency (what the loss would lose with them; default of CNNs' recipes), magnitude "
            "(default of transformers'), ward or random"
        ),
    ] = None,
    classifier: Annotated[
        bool, typer.Option(help="keep the classifier in the file, for fine-tuning on this data")
    ] = True,
) -> None:
    """Make a chain of a teacher and train the two together; writes OUT/chain.safetensors.

    With several --chain-width the file is a ladder, and a student is read from the widest chain
    that was trained as narrow as it is. Published chains are as wide as these say. Nested chains
    begin at these widths, each serving up to the next, the last up to the teacher: narrow students
    have small weights of their own and leave the wide ones alone. They serve other data than they
    were made on best when they are refined on there, by --from-chain: one run for all sizes.
    """
    making = {"--chain-width": chain_width, "--rows": rows, "--method": method}
    parent = _one_parent(teacher, from_chain, recipe, making)
    _check_method(method, recipe.chain)
    _check_rows(rows, method or recipe.nesting, recipe.chain)
    usual = "0.125,0.25,0.5" if recipe.chain == "nested" else "0.125"
    shares = numbers("refine: --chain-width", chain_width or usual, float, "0.125,0.25,0.5")
    known = None if from_chain is None else _nested_chains(from_chain)
    if known is None:
        model, meta = students.load_model(parent)
        networks = [model]
    else:
        networks, meta = [chain.student(width=1.0) for chain in known.chains], known.meta
        model = networks[-1]
    folder = _open(data, recipe, run, out)
    others = [_fit_classifier(network, meta, folder) for network in networks]
    if any(others) and recipe.anchor:
        say("anchor 0: of these identities the teacher has had nothing to say")
        recipe = replace(recipe, anchor=0.0)
    training = folder.training(recipe)
    if known is None:
        ladder = ChainLadder.from_teacher(
            model, example_images(recipe), shares, kind=recipe.chain, rows=rows or "folded",
            method=method or recipe.nesting, seed=recipe.seed, parent=file_hash(parent),
            saliency=lambda network: saliency(
                network, training, recipe, device=folder.world.device, progress="ranking channels"
            ),
        )  # fmt: skip
        _print_frozen(ladder)
    else:
        ladder = known.transferred(networks)
    path = refine_chain(
        model, ladder, training, recipe, out, parent=parent, classifier=classifier,
        calibration=folder.unlabelled, **_fit_options(folder, run),
    )  # fmt: skip
    say(f"chain: {path} ({path.stat().st_size / 1e6:.1f} MB)")


@training_flags("paper-student", lambda flags: _family(flags["student"]))
def finetune(
    recipe: Recipe,
    run: RunOptions,
    data: Data,
    out: Out,
    student: Annotated[Path, typer.Option(help="model file of `oskt expand`")],
) -> None:
    """Train a student on a data folder; writes OUT/student.safetensors."""
    model, meta = students.load_model(student)
    folder = _open(data, recipe, run, out)
    _fit_classifier(model, meta, folder)
    path = finetune_student(
        model, folder.training(recipe), recipe, out, parent=student, **_fit_options(folder, run)
    )
    say(f"student: {path}")


def _family(path: Path | None) -> str:
    """That of the network in a model or chain file; "" without one, which the command refuses."""
    meta: Mapping[str, Any] = {}
    if path is not None and format_of(path) == MODEL:
        _, meta = load_state(path)
    elif path is not None and (is_part_file(path) or format_of(path) == CHAIN):
        meta = ChainLadder.load(path).base.meta
    return (meta.get("spec") or {}).get("family", "")


def _open(data: str, recipe: Recipe, run: RunOptions, out: Path) -> ReIDData:
    """The data set of a training, once it is clear that the training may begin in `out`."""
    goes_on(out, run.resume)
    folder = ReIDData(data, recipe, corrupt=run.corrupt, device=run.device, workers=run.workers)
    typer.echo(folder.set.describe())
    return folder


def _fit_options(folder: ReIDData, run: RunOptions) -> dict[str, Any]:
    return {
        "evaluate": folder.scores,
        "evaluate_every": run.evaluate_every,
        "resume": run.resume,
        "device": folder.world.device,
    }


def _one_parent(
    teacher: Path | None, chain: Path | None, recipe: RefineRecipe, making: Mapping[str, str | None]
) -> Path:
    """The file that a refinement starts from: a teacher, or a nested chain as it was made."""
    parent = teacher or chain
    if parent is None or (teacher and chain):
        raise ValueError(
            f"refine: --teacher or --from-chain must be given, one of the two, got "
            f"{'both' if parent else 'neither'}. A teacher makes a new chain; a nested chain goes "
            "on."
        )
    if chain and recipe.chain != "nested":
        raise ValueError(
            f"refine: --chain must be nested with --from-chain, got {recipe.chain!r}. Only a "
            "nested chain holds its teacher; make a published one anew by --teacher."
        )
    given = [flag for flag, value in making.items() if value is not None]
    if chain and given:
        raise ValueError(
            f"refine: {given[0]} must be left out with --from-chain, got it. The chain stays in "
            "the order, and down to the width, that it was made with."
        )
    return parent


def _check_method(method: str | None, kind: str) -> None:
    """A method of the other kind of chain is found before images are read."""
    known = NESTINGS if kind == "nested" else METHODS
    if method is not None and method not in known:
        raise ValueError(
            f"refine: --method must be one of {', '.join(known)} for a chain of kind {kind}, got "
            f"{method!r}. Choose one, or the other kind by --chain."
        )


def _check_rows(rows: str | None, method: str | None, kind: str) -> None:
    """Channels that are put in order are not clustered."""
    if rows is not None and kind == "nested" and method != "ward":
        raise ValueError(
            f"refine: --rows must be left out of a nested chain by {method}, got {rows!r}. Rows "
            "are compared by --method ward, and in published chains."
        )


def _nested_chains(path: Path) -> ChainLadder:
    ladder = ChainLadder.load(path)
    kind = ladder.base.kind
    if kind != "nested":
        raise ValueError(
            f"refine: --from-chain must be a nested chain, got {path} of kind {kind!r}. "
            "A published chain does not hold its teacher: make one anew by --teacher."
        )
    return ladder


def _fit_classifier(model: torch.nn.Module, meta: Mapping[str, Any], folder: ReIDData) -> bool:
    """Whether there are other identities than the model was trained on: it gets a classifier of
    their own. A file that does not say whom it knows is told by their number alone."""
    others = students.num_classes(model) != folder.num_classes
    others |= meta.get("identities", folder.identities) != folder.identities
    if others:
        students.replace_classifier(model, folder.num_classes)
    return others


def _print_frozen(ladder: ChainLadder) -> None:
    for group in ladder.coupling.groups.values():
        if group.frozen:
            say(f"frozen at {group.size}: {group.name} ({group.frozen})")
