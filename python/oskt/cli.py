"""The `oskt` command. Every subcommand is a few lines over the library."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from oskt import edge, export, interop, models, students
from oskt.chain import WeightChain
from oskt.chain_tables import group_table, part_table, rung_table, size_table, width_table
from oskt.data import check_data, contact_sheet, make_pedestrians, read_data
from oskt.export.command import command as export_command
from oskt.files import progressive
from oskt.files.checkpoint import file_hash, provenance, save_model, write_atomic
from oskt.files.part_file import PartFile, is_part_file
from oskt.flags import RunOptions, SizeOptions, flags, numbers, training_flags
from oskt.ladder import ChainLadder
from oskt.models.pretrained import load_pretrained
from oskt.pipeline import ReIDData, example_images
from oskt.size_flags import ask, open_data
from oskt.train import (
    Recipe,
    RefineRecipe,
    World,
    finetune_student,
    goes_on,
    refine_chain,
    saliency,
    train_teacher,
)

console = Console(markup=False)  # a path may hold brackets
errors = Console(stderr=True, soft_wrap=True)
# Panels of the help.
STAGES = "Stages: each reads the file that the one before it wrote"
FILES = "Chain files and deployment"
TRIALS = "Whole experiments"


class _Commands(TyperGroup):
    """Commands that say why they stop: typer by itself ends in silence on Ctrl-C."""

    def list_commands(self, ctx: Any) -> list[str]:
        """`data` first, where a project begins; typer lists groups last."""
        return sorted(super().list_commands(ctx), key=lambda name: name != "data")

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            errors.print(escape(str(stopped)) or "stopped", highlight=False)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a person re-identification teacher once; get students of any size from its chain.",
    epilog="Start with `oskt demo`; then teacher -> refine -> expand -> finetune -> evaluate on "
    "your own data.",
)
data_app = typer.Typer(no_args_is_help=True, help="Draw a pedestrian data set, or check any.")
app.add_typer(data_app, name="data", rich_help_panel=STAGES)

Data = Annotated[
    str, typer.Option(help="data set, 'PATH' or 'PATH?few_shot=0.1,seed=3'; see data check --help")
]
Out = Annotated[Path, typer.Option(help="folder of this run; made if absent")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: the GPU if there is one")]


@app.command(rich_help_panel=TRIALS)
def demo(
    out: Out = Path("demo"),
    seed: Annotated[int, typer.Option(help="of the data and of all training")] = 0,
    device: Device = None,
    scale: Annotated[
        Literal["laptop", "full"], typer.Option(help="laptop: 10 minutes on 2 cores")
    ] = "laptop",
    model: Annotated[
        Literal["resnet", "vit"], typer.Option(help="residual network or vision transformer")
    ] = "resnet",
) -> None:
    """The whole method on drawn pedestrians: teacher, chain, students of many sizes, report.

    Ends in a table and OUT/report.html. Run again, it goes on where it stopped.
    """
    from oskt.demo import run_demo

    run_demo(out, seed=seed, device=device, scale=scale, model=model)


@data_app.command("make")
def data_make(
    root: Annotated[
        Path, typer.Argument(metavar="PATH", help="folder to make; must not exist or be empty")
    ],
    train_ids: Annotated[int, typer.Option(help="identities to train on")] = 200,
    test_ids: Annotated[int, typer.Option(help="identities to test on")] = 100,
    images_per_id: Annotated[int, typer.Option(help="pictures of each identity")] = 12,
    world: Annotated[
        Literal["plain", "a", "b", "c"],
        typer.Option(help="people and cameras; a: large, varied, b: a campus, c: indoors"),
    ] = "plain",
    cameras: Annotated[
        int | None, typer.Option(help="cameras, >= 2; default: the world's own number")
    ] = None,
    height: Annotated[int, typer.Option(help="of a picture, pixels")] = 128,
    width: Annotated[int, typer.Option(help="of a picture, pixels")] = 64,
    seed: Annotated[int, typer.Option(help="the data set is a function of it")] = 0,
    workers: Annotated[int | None, typer.Option(help="processes; default one per core")] = None,
    sheet: Annotated[Path | None, typer.Option(help="also write a contact sheet here")] = None,
) -> None:
    """Draw a pedestrian data set in the layout of Market-1501."""
    make_pedestrians(
        root, train_ids=train_ids, test_ids=test_ids, images_per_id=images_per_id,
        world=world, cameras=cameras, height=height, width=width, seed=seed, workers=workers,
    )  # fmt: skip
    typer.echo(read_data(root).describe())
    if sheet is not None:
        contact_sheet(root, sheet)
        console.print(f"contact sheet: {sheet}")


@data_app.command("check")
def data_check(
    root: Annotated[
        str, typer.Argument(metavar="PATH", help="data set, 'PATH' or 'PATH?key=value,...'")
    ],
) -> None:
    """Read a data set, decode every image, compare counts with those of the published sets.

    PATH holds Market-1501, DukeMTMC-reID, MSMT17 V1 or V2, CUHK03-NP, a drawn set, or CSV files
    with the columns path, id, camera, split; it may also be such a file.

    Keys behind the question mark, here and in every --data: variant=labeled|detected (CUHK03-NP),
    val=in|out (MSMT17: validation images in training or not; default out), few_shot=RATIO (share
    of the training identities to keep) and seed=N (of that choice). Quote them in the shell.
    """
    report = check_data(root)
    typer.echo(report.describe())
    if not report.ok:
        raise typer.Exit(1)


_RESNET, _VIT = "--model resnet", "--model vit"


@app.command(rich_help_panel=STAGES)
@training_flags("paper-teacher", model={"vit": "paper-vit-teacher"})
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
    folder = _open(data, recipe, run, out)
    torch.manual_seed(recipe.seed)
    network: torch.nn.Module
    if model == "vit":
        network = models.VisionTransformer(
            dim, depth or 12, heads, patch=patch, image=folder.size, parts=parts,
            num_classes=folder.num_classes, drop_path=drop_path,
        )  # fmt: skip
    else:
        network = models.ResNet(
            depth or 50, in_planes, numbers("--multipliers", multipliers, int, "2,4,8"),
            folder.num_classes, pooling=pooling,
            layers=numbers("--layers", layers, int, "2,2,2,2") if layers else None,
        )  # fmt: skip
    if pretrained is not None:
        report = load_pretrained(network, pretrained, min_coverage=min_coverage, pixels=pixels)
        console.print(report.table())
    path = train_teacher(network, folder.training(recipe), recipe, out, **_fit_options(folder, run))
    console.print(f"teacher: {path}")


@app.command(rich_help_panel=STAGES)
@training_flags("paper-refine", chain={"nested": "nested"})
def refine(
    recipe: RefineRecipe,
    run: RunOptions,
    data: Data,
    out: Out,
    teacher: Annotated[Path | None, typer.Option(help="model file of `oskt teacher`")] = None,
    from_chain: Annotated[
        Path | None,
        typer.Option(
            help="in place of --teacher: a nested chain file to go on from, on these data, in its "
            "own order of channels"
        ),
    ] = None,
    chain_width: Annotated[
        str | None,
        typer.Option(
            help="narrowest width that is trained, as a share of the teacher's (default 0.125); "
            "several, such as 0.125,0.25,0.5, make a ladder of published chains, trained in one run"
        ),
    ] = None,
    rows: Annotated[
        Literal["folded", "published", "published-cosine"] | None,
        typer.Option(
            help="rows that clusters compare: with the norm folded in (default), or as published, "
            "raw (CNNs) or of length 1 in each matrix (transformers)"
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

    With several --chain-width the file is a ladder: a student is read from the widest chain in it
    that is nowhere wider than the student. A nested chain serves other data than it was made on
    best when it is refined on there, by --from-chain: one run for all sizes.
    """
    making = {"--chain-width": chain_width, "--rows": rows, "--method": method}
    parent = _one_parent(teacher, from_chain, recipe, making)
    shares = numbers("refine: --chain-width", chain_width or "0.125", float, "0.125,0.25,0.5")
    known = None if from_chain is None else _nested_chain(from_chain)
    model = students.load_model(parent)[0] if known is None else known.student(width=1.0)
    folder = _open(data, recipe, run, out)
    _fit_classifier(model, folder.num_classes)
    training = folder.training(recipe)
    if known is None:
        ladder = ChainLadder.from_teacher(
            model, example_images(recipe), shares, kind=recipe.chain, rows=rows or "folded",
            method=method or recipe.nesting, seed=recipe.seed, parent=file_hash(parent),
            saliency=lambda: saliency(
                model, training, recipe, device=folder.world.device, progress="ranking channels"
            ),
        )  # fmt: skip
        _print_frozen(ladder)
    else:
        ladder = ChainLadder([known.transferred(model)])
    path = refine_chain(
        model, ladder, training, recipe, out, parent=parent, classifier=classifier,
        calibration=folder.unlabelled, **_fit_options(folder, run),
    )  # fmt: skip
    console.print(f"chain: {path} ({path.stat().st_size / 1e6:.1f} MB)")


@app.command(rich_help_panel=STAGES)
@flags(size=SizeOptions)
def expand(
    chain: Annotated[
        Path, typer.Argument(help="chain file of `oskt refine`, `oskt pack` or `oskt import`")
    ],
    out: Annotated[Path, typer.Option(help="model file to write")],
    size: SizeOptions,
    norm: Annotated[
        Literal["interpolate", "exact", "cosine"],
        typer.Option(
            help="norm vectors of a published chain: towards the teacher's as width grows, such "
            "that every width computes the same as the narrowest, or that cosines are the same, "
            "too: students of all sizes then search one gallery"
        ),
    ] = "interpolate",
    recalibrate: Annotated[
        str | None,
        typer.Option(
            help="data set whose training images, without labels, measure norm statistics"
        ),
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=1, help="of images, pixels; default as trained")
    ] = None,
    image_width: Annotated[
        int | None, typer.Option(min=1, help="of images, pixels; default as trained")
    ] = None,
    backend: Annotated[
        Literal["torch", "numpy"],
        typer.Option(
            help="numpy: as where torch is not installed; without a classifier, not recalibrated"
        ),
    ] = "torch",
    device: Device = None,
) -> None:
    """Write a student of any size: a share, a preset, single groups, or within limits."""
    if backend == "numpy" and (recalibrate is not None or norm == "cosine"):
        what = "--recalibrate" if recalibrate is not None else "--norm cosine"
        raise ValueError(
            f"expand: --backend must be torch for {what}, got numpy. Leave one of them out."
        )
    ladder = ChainLadder.load(chain)
    answer = ask(ladder, size, device, height=height, width=image_width)
    source = ladder.chain_for(answer.widths)
    if backend == "numpy":
        arrays = edge.load_ladder(chain)
        edge.write_student(arrays, chain, answer.widths, out, norm=norm, about=answer.measured())
    else:
        student = source.student(widths=answer.widths, norm=norm)
        if recalibrate is not None:
            data = open_data(source.meta, recalibrate, device, height=height, width=image_width)
            data.recalibrate(student)
        meta = {
            "spec": getattr(student, "spec", None),
            "widths": students.widths_of(student),
            "parent": file_hash(chain),
            **source.trained_on,
            **answer.measured(),
        }
        save_model(out, student.cpu(), meta)
    if len(ladder.chains) > 1:
        console.print(f"from {ladder.name_of(source)}")
    console.print(f"student: {out}  {answer}")


@app.command("widths", rich_help_panel=FILES)
@flags(size=SizeOptions)
def show_widths(
    chain: Annotated[Path, typer.Argument(help="chain file of any kind")],
    size: SizeOptions,
    every: Annotated[bool, typer.Option("--all", help="list every channel group's width")] = False,
    device: Device = None,
) -> None:
    """Show the sizes of a chain and what they cost, or the one that a limit gives.

    Parameters and MACs are those of the backbone, without its head; MB are all numbers that
    inference reads, in float32, without activations. Latency is measured on this machine.
    """
    ladder = ChainLadder.load(chain)
    if size == SizeOptions():
        console.print(size_table(ladder))
        return
    answer = ask(ladder, size, device)
    if every:
        console.print(width_table(ladder.groups, answer.widths))
    console.print(str(answer), soft_wrap=True)


@app.command(rich_help_panel=FILES)
def pack(
    chain: Annotated[Path, typer.Argument(help="file of a nested chain")],
    out: Annotated[Path, typer.Option(help="progressive file to write")],
    widths: Annotated[
        str, typer.Option(help="shares of the teacher's channels, ascending, one part each")
    ] = "0.125,0.25,0.5,1",
    half: Annotated[bool, typer.Option("--half", help="store in float16")] = False,
) -> None:
    """Write a nested chain whose first bytes are a small student, and later ones widen it.

    Every command that takes a chain takes this file too, and its first bytes alone up to the end
    of a part: send those first, the rest later. `oskt info` lists the parts again.
    """
    ladder = ChainLadder.load(chain)
    dtype = "float16" if half else None
    shares = numbers("pack: --widths", widths, float, "0.25,0.5,1")
    parts = progressive.write(ladder.chains[0], out, shares, dtype=dtype)
    console.print(part_table(ladder, parts))


@app.command(rich_help_panel=STAGES)
@training_flags("paper-student")
def finetune(
    recipe: Recipe,
    run: RunOptions,
    data: Data,
    out: Out,
    student: Annotated[Path, typer.Option(help="model file of `oskt expand`")],
) -> None:
    """Train a student on a data folder; writes OUT/student.safetensors."""
    model, _ = students.load_model(student)
    folder = _open(data, recipe, run, out)
    _fit_classifier(model, folder.num_classes)
    path = finetune_student(
        model, folder.training(recipe), recipe, out, parent=student, **_fit_options(folder, run)
    )
    console.print(f"student: {path}")


@app.command(rich_help_panel=STAGES)
def evaluate(
    model: Annotated[
        Path, typer.Argument(help="model file, teacher or student, or a file of `oskt export`")
    ],
    data: Data,
    height: Annotated[int | None, typer.Option(min=1, help="pixels; default as trained")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="pixels; default as trained")] = None,
    flip: Annotated[bool, typer.Option("--flip", help="average with the mirrored image")] = False,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="also score the k-reciprocal re-ranking (20, 6, 0.3)")
    ] = False,
    corrupt: Annotated[
        Literal["refuse", "skip"] | None,
        typer.Option(
            help="decode all images first, and refuse or skip those that do not; default: the "
            "first broken one ends the run"
        ),
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="also write scores")] = None,
    device: Device = None,
) -> None:
    """Score a model on the queries and gallery of a data set (Market-1501 protocol)."""
    from oskt.evaluate import evaluate as score

    network, trained = _network(model)
    images = read_data(data, corrupt=corrupt)
    typer.echo(f"data: {images.root}: {images.title}")
    result = score(
        network.to(World.from_environment(device).device),
        images,
        height=height or trained.get("height", 256),
        width=width or trained.get("width", 128),
        flip=flip,
        rerank=rerank,
        console=console,
    )
    if json_out is not None:
        scores = result.summary()
        if result.reranked is not None:
            scores["reranked"] = result.reranked.summary()
        source = {"model": str(model), "data": images.title, **provenance()}
        write_atomic(json_out, json.dumps({**scores, **source}, indent=1).encode())


app.command("export", rich_help_panel=FILES)(export_command)


@app.command(rich_help_panel=TRIALS)
def compare(
    table: Annotated[
        str,
        typer.Argument(
            help="1 sizes, 2 cross, 3 few-shot, 4 ablation, 5 chain-width, 6 chains, 7 depth, "
            "8 metric, 9 digits; or report, to draw the reports of a folder again"
        ),
    ],
    folder: Annotated[Path | None, typer.Argument(help="same as --out")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of all tables and their parts")] = None,
    scale: Annotated[
        Literal["laptop", "full"],
        typer.Option(help="laptop: 2 cores, about an hour a table; full: ResNet-50 on a GPU"),
    ] = "laptop",
    seeds: Annotated[str | None, typer.Option(help="such as 0,1,2; default: the table's")] = None,
    methods: Annotated[str | None, typer.Option(help="such as scratch,nested")] = None,
    sizes: Annotated[str | None, typer.Option(help="such as S1,S2")] = None,
    variants: Annotated[
        str | None, typer.Option(help="what else the table varies, such as '10 %' or ResNet-18")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="source=PATH and target=PATH: real data sets in place of drawn worlds"),
    ] = None,
    stop_after: Annotated[
        float | None,
        typer.Option(help="seconds; exit status 3 then says that the same command goes on"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the cells, with an estimate of time")
    ] = False,
    device: Device = None,
) -> None:
    """One table of every method against every rival; run again, it goes on where it stopped."""
    from oskt.compare import run_table, write_reports

    if (folder is None) == (out is None):
        raise ValueError(
            "compare: one folder must be given, got "
            f"{'none' if out is None else f'{folder} and {out}'}. Pass --out DIR."
        )
    place = folder or out
    assert place is not None
    if table == "report":
        for page in write_reports(place):
            console.print(f"report: {page}")
        return
    complete = run_table(
        table, place, scale=scale, seeds=_seeds(seeds), methods=_names(methods),
        sizes=_names(sizes), variants=_names(variants), data=dict(map(_data_set, data or ())),
        stop_after=stop_after, dry_run=dry_run, device=device,
    )  # fmt: skip
    if not complete and not dry_run:
        raise typer.Exit(3)


@app.command(rich_help_panel=TRIALS)
def report(folder: Annotated[Path, typer.Argument(help="folder of `oskt demo`")]) -> None:
    """Draw a run's report again from its stored rows."""
    from oskt.report import load_report, write_report

    console.print(f"report: {write_report(folder, load_report(folder))}")


@app.command("import", rich_help_panel=FILES)
def import_published(
    folder: Annotated[Path, typer.Argument(help="holds gene_matcher.json and its .pth file")],
    out: Annotated[Path, typer.Option(help="chain file to write")],
    half: Annotated[bool, typer.Option("--half", help="store in float16")] = False,
) -> None:
    """Turn a chain of the published OSKT code into a chain file."""
    chain = interop.load_published_chain(folder)
    chain.save(out, dtype=torch.float16 if half else None)
    console.print(f"chain: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    console.print(group_table(ChainLadder([chain])))


@app.command(rich_help_panel=FILES)
def info(
    chain: Annotated[Path, typer.Argument(help="chain file, or a progressive one in part")],
) -> None:
    """Show what a chain file holds: channel groups and widths, and its chains or its parts."""
    ladder = ChainLadder.load(chain)
    console.print(group_table(ladder))
    if len(ladder.chains) > 1:
        console.print(rung_table(ladder))
    if is_part_file(chain):
        console.print(part_table(ladder, PartFile(chain).whole()))


def _open(data: str, recipe: Recipe, run: RunOptions, out: Path) -> ReIDData:
    """The data set of a training, once it is clear that the training may begin in `out`."""
    goes_on(out, run.resume)
    folder = ReIDData(data, recipe, corrupt=run.corrupt, device=run.device, workers=run.workers)
    typer.echo(folder.set.describe())
    return folder


def _network(path: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A model file's or an exported network, and the size of the images that it was trained on."""
    if export.form_of(path) is None:
        network, meta = students.load_model(path)
        return network, meta.get("recipe", {})
    deployment = export.load(path)
    return deployment, dict(zip(("height", "width"), deployment.about["img_size"]))


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


def _nested_chain(path: Path) -> WeightChain:
    chain = WeightChain.load(path)
    if chain.kind != "nested":
        raise ValueError(
            f"refine: --from-chain must be a nested chain, got {path} of kind {chain.kind!r}. "
            "A published chain does not hold its teacher: make one anew by --teacher."
        )
    return chain


def _fit_classifier(model: torch.nn.Module, classes: int) -> None:
    """Other identities than the model was trained on need a classifier of their own."""
    if students.num_classes(model) != classes:
        students.replace_classifier(model, classes)


def _print_frozen(ladder: ChainLadder) -> None:
    for group in ladder.coupling.groups.values():
        if group.frozen:
            console.print(f"frozen at {group.size}: {group.name} ({group.frozen})")


def _seeds(text: str | None) -> list[int] | None:
    names = _names(text)
    if names and not all(name.isdigit() for name in names):
        raise ValueError(f"compare: --seeds must be numbers, got {text!r}. Example: --seeds 0,1,2.")
    return None if names is None else [int(name) for name in names]


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def _data_set(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not path:
        raise ValueError(
            f"compare: --data must be NAME=PATH, got {text!r}. Example: --data source=market1501."
        )
    return name, path


def main() -> None:
    """Run a command; an error that the user can mend is one line, without a traceback."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError, TypeError, ImportError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
