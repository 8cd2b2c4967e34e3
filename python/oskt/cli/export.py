"""`oskt export`: a model file, or a student straight from a chain, as a file for inference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from torch import nn

from oskt import students
from oskt.chain import ChainLadder
from oskt.cli.flags import SizeOptions, flags
from oskt.cli.sizes import ask, image_size, model_size
from oskt.cli.words import say
from oskt.data import read_data
from oskt.data.images import SUFFIXES
from oskt.evaluation import evaluate
from oskt.export import Exported, export_model, formats
from oskt.files.part_file import is_part_file
from oskt.files.tensor_file import CHAIN, file_hash, format_of


@flags(size=SizeOptions)
def export(
    model: Annotated[
        Path, typer.Argument(help="model file, or with a size below a chain file to make it from")
    ],
    out: Annotated[
        Path, typer.Option(help="file to write, or a folder: it gets a name as trackers know it")
    ],
    size: SizeOptions,
    form: Annotated[
        Literal["onnx", "torchscript", "torch-export"],
        typer.Option("--format", help=".onnx, .torchscript or .pt2"),
    ] = "onnx",
    inputs: Annotated[
        Literal["normalised", "rgb", "uint8"],
        typer.Option(
            "--input",
            help="images that the file takes: normalised (as trackers give them), RGB in 0..1 or "
            "uint8 pixels; with the last two it subtracts mean and divides by std itself",
        ),
    ] = "normalised",
    l2: Annotated[bool, typer.Option("--l2", help="embeddings of length 1")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="quantise; needs --data or --images (ONNX alone)")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="data set: its training images calibrate int8 and are compared, and its query and "
            "gallery give the mAP of int8 beside that of float32"
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="folder of images without labels, in place of --data")
    ] = None,
    height: Annotated[int | None, typer.Option(min=1, help="pixels; default as trained")] = None,
    image_width: Annotated[
        int | None, typer.Option(min=1, help="pixels; default as trained")
    ] = None,
    device: Annotated[str | None, typer.Option(help="where --latency-ms is measured")] = None,
) -> None:
    """Write a network for inference: ONNX, TorchScript or torch.export, checked as it runs.

    Norms are folded, the classifier is dropped, any number of images is taken at once. The file is
    compared with the network before it is written; OUT.metadata.json says what it is.

    BoxMOT and trackers like it take the file as it is (--input normalised, RGB, ImageNet's mean
    and std). Their older versions want the name of a network that they know in the file's, such as
    resnet50 or osnet_x0_25; with a folder as --out the file is named so.
    """
    network, meta, trained = _open(model, size, device, height=height, width=image_width)
    pixels = (height or trained[0], image_width or trained[1])
    found = read_data(data) if data is not None else None
    if images is not None:
        paths: list[Path] = _pictures(images)
    else:
        paths = list(found.train.paths) if found is not None else []

    def score(deployment: nn.Module) -> dict[str, float]:
        scores = evaluate(deployment, found, height=pixels[0], width=pixels[1])
        return {"mAP": scores.mAP, "rank1": scores.rank1}

    kept: dict[str, Any] = {name: meta[name] for name in ("metrics", "latency") if name in meta}
    if found is not None:
        typer.echo(f"data: {found.root}: {found.title}")
    done = export_model(
        network, out, size=pixels, form=form, inputs=inputs, l2=l2, int8=int8, images=paths,
        evaluate=score if found is not None else None,
        about={"parent": file_hash(model), **kept},
    )  # fmt: skip
    _show(done)


def _open(
    path: Path, size: SizeOptions, device: str | None, **pixels: int | None
) -> tuple[nn.Module, dict[str, Any], tuple[int, int]]:
    """A model file's network, or with a size the student of a chain file; its meta, and the height
    and width of images that it was trained on."""
    chain = path.is_file() and (is_part_file(path) or format_of(path) == CHAIN)
    asked = size != SizeOptions()
    if not chain and not asked:
        network, meta = students.load_model(path)
        return network, meta, model_size(network, meta)
    if not asked:
        raise ValueError(
            f"export: a chain must come with a size, got '{path}' alone. Add --width, --preset, "
            "--group or a limit such as --params."
        )
    ladder = ChainLadder.load(path)
    answer = ask(ladder, size, device, **pixels)
    student = ladder.chain_for(answer.widths).student(widths=answer.widths)
    return student, answer.measured(), image_size(ladder.base)


def _pictures(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise FileNotFoundError(
            f"export: --images must be a folder with {', '.join(sorted(SUFFIXES))} files in it or "
            f"below, got none in '{folder}'. Check the path."
        )
    return found


def _show(done: Exported) -> None:
    about = done.about
    for name, parity in done.parity.items():
        of = "int8 against float32" if name == "int8" else f"parity on {name}"
        say(f"{of}: {parity}")
    for name, scores in done.scores.items():
        say(f"{name}: mAP {scores['mAP']:.1%}, rank-1 {scores['rank1']:.1%}")
    say(
        f"{about['format']}: {done.path} ({done.path.stat().st_size / 1e6:.2f} MB)  "
        f"{about['parameters']:,} parameters, {about['macs'] / 1e6:,.1f} M MACs, "
        f"{formats.INPUT} (N, 3, {about['img_size'][0]}, {about['img_size'][1]}) "
        f"-> {formats.OUTPUT} (N, {about['feature_dim']})"
    )
