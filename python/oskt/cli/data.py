"""`oskt data`: draw a pedestrian data set, or check any."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from oskt.cli.words import say
from oskt.data import check_data, contact_sheet, make_pedestrians, read_data


def make(
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
        say(f"contact sheet: {sheet}")


def check(
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
