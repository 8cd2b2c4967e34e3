"""`oskt evaluate`: a network's scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from oskt import export, students
from oskt.cli.sizes import model_size
from oskt.cli.words import Data, Device, console
from oskt.data import read_data
from oskt.evaluation import evaluate as score
from oskt.files.checkpoint import provenance, write_atomic
from oskt.train import World


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
    trusted: Annotated[
        bool,
        typer.Option("--trusted", help="open a .pt2 file: that can run code, so know who wrote it"),
    ] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="also write scores")] = None,
    device: Device = None,
) -> None:
    """Score a model on the queries and gallery of a data set (Market-1501 protocol)."""
    network, trained = _network(model, trusted)
    images = read_data(data, corrupt=corrupt)
    typer.echo(f"data: {images.root}: {images.title}")
    result = score(
        network.to(World.from_environment(device).device),
        images,
        height=height or trained[0],
        width=width or trained[1],
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


def _network(path: Path, trusted: bool) -> tuple[torch.nn.Module, tuple[int, int]]:
    """A model file's or an exported network, with height and width of its images."""
    if export.form_of(path) is None:
        network, meta = students.load_model(path)
        return network, model_size(network, meta)
    deployment = export.load(path, trusted=trusted)
    return deployment, deployment.size
