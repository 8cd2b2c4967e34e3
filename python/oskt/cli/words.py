"""What all commands say in the same words: options that mean the same, and where they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console(markup=False)  # a path may hold brackets


def say(text: str) -> None:
    """One line, which is never broken: whoever reads it through a pipe finds paths whole."""
    console.print(text, soft_wrap=True, highlight=False)


Data = Annotated[
    str, typer.Option(help="data set, 'PATH' or 'PATH?few_shot=0.1,seed=3'; see data check --help")
]
Out = Annotated[Path, typer.Option(help="folder of this run; made if absent")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: the GPU if there is one")]
