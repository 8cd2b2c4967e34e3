"""Whole experiments: demo, compare, report. What they need is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from oskt.cli.words import Device, Out, say


def demo(
    out: Out = Path("demo"),
    seed: Annotated[int, typer.Option(help="of the data and of all training")] = 0,
    device: Device = None,
    scale: Annotated[
        Literal["laptop", "full"], typer.Option(help="laptop: 11 minutes on 2 cores")
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
        typer.Option(
            help="laptop: 2 cores, 20 minutes to an hour for a table and seed, two for table 1; "
            "full: ResNet-50 on a GPU"
        ),
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
    retime: Annotated[
        bool,
        typer.Option(
            "--retime",
            help="when all is found, time every training for a few steps, in turn, so that seconds "
            "are of one hour of the machine",
        ),
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
            say(f"report: {page}")
        return
    complete = run_table(
        table, place, scale=scale, seeds=_seeds(seeds), methods=_names(methods),
        sizes=_names(sizes), variants=_names(variants), data=dict(map(_data_set, data or ())),
        stop_after=stop_after, dry_run=dry_run, retime=retime, device=device,
    )  # fmt: skip
    if not complete and not dry_run:
        raise typer.Exit(3)


def report(folder: Annotated[Path, typer.Argument(help="folder of `oskt demo`")]) -> None:
    """Draw a run's report again from its stored rows."""
    from oskt.report import load_report, write_report

    say(f"report: {write_report(folder, load_report(folder))}")


def _seeds(text: str | None) -> list[int] | None:
    names = _names(text)
    if names and not all(name.isdecimal() for name in names):
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
