"""What is done with a chain file: expand, widths, pack, import, info."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from oskt import edge, interop, students
from oskt.chain import ChainLadder
from oskt.cli.flags import SizeOptions, flags, numbers
from oskt.cli.sizes import ask, open_data
from oskt.cli.tables import group_table, part_table, rung_table, size_table, width_table
from oskt.cli.words import Device, console, say
from oskt.files import progressive
from oskt.files.checkpoint import file_hash, save_model
from oskt.files.part_file import PartFile, is_part_file


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
    reads = (recalibrate, size.macs, size.latency_ms, size.shape_data)
    if (height or image_width) and all(given is None for given in reads):
        raise ValueError(
            "expand: --height, --image-width must come with --recalibrate, --macs, --latency-ms or "
            "--shape-data, got none of these. Nothing else depends on images: leave them out."
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
            data = open_data(source, recalibrate, device, height=height, width=image_width)
            if not data.recalibrate(student):
                say("not recalibrated: the network reads no running statistics")
        meta = {
            "spec": getattr(student, "spec", None),
            "widths": students.widths_of(student),
            "parent": file_hash(chain),
            **source.trained_on,
            **answer.measured(),
        }
        save_model(out, student.cpu(), meta)
    if len(ladder.chains) > 1:
        say(f"from {ladder.name_of(source)}")
    if untrained := ladder.untrained(answer.widths):
        say(f"narrower than that chain was trained: {', '.join(untrained)}; fine-tune the student")
    say(f"student: {out}  {answer}")


@flags(size=SizeOptions)
def widths(
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
        if every:
            raise ValueError(
                "widths: --all must come with a size, got it alone. It lists the groups of one "
                "student: give --width, --preset, --group or a limit."
            )
        console.print(size_table(ladder))
        return
    answer = ask(ladder, size, device)
    if every:
        console.print(width_table(ladder.groups, answer.widths))
    say(str(answer))


def pack(
    chain: Annotated[Path, typer.Argument(help="file of a nested chain, or of a ladder of some")],
    out: Annotated[Path, typer.Option(help="progressive file to write")],
    widths: Annotated[
        str, typer.Option(help="shares of the teacher's channels, ascending, one part each")
    ] = "0.125,0.25,0.5,1",
    half: Annotated[bool, typer.Option("--half", help="store in float16")] = False,
) -> None:
    """Write nested chains as a file whose first bytes are a small student; later ones widen it.

    Every command that takes a chain takes this file too, and its first bytes alone up to the end
    of a part: send those first, the rest later. `oskt info` lists the parts again.
    """
    ladder = ChainLadder.load(chain)
    dtype = "float16" if half else None
    shares = numbers("pack: --widths", widths, float, "0.25,0.5,1")
    parts = progressive.write(ladder, out, shares, dtype=dtype)
    console.print(part_table(ladder, parts))


def import_published(
    folder: Annotated[Path, typer.Argument(help="holds gene_matcher.json and its .pth file")],
    out: Annotated[Path, typer.Option(help="chain file to write")],
    half: Annotated[bool, typer.Option("--half", help="store in float16")] = False,
) -> None:
    """Turn a chain of the published OSKT code into a chain file."""
    chain = interop.load_published_chain(folder)
    chain.save(out, dtype=torch.float16 if half else None)
    say(f"chain: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    console.print(group_table(ChainLadder([chain])))


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
