"""The `oskt` command. Every subcommand is a few lines over the library."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from oskt.cli import chains, data, evaluation, export, stages, trials

errors = Console(stderr=True, soft_wrap=True)


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
data_app.command("make")(data.make)
data_app.command("check")(data.check)

STAGES = "Stages: each reads the file that the one before it wrote"
# Panel of the help -> its commands.
COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    STAGES: {
        "teacher": stages.teacher,
        "refine": stages.refine,
        "expand": chains.expand,
        "finetune": stages.finetune,
        "evaluate": evaluation.evaluate,
    },
    "Chain files and deployment": {
        "widths": chains.widths,
        "pack": chains.pack,
        "export": export.export,
        "import": chains.import_published,
        "info": chains.info,
    },
    "Whole experiments": {
        "demo": trials.demo,
        "compare": trials.compare,
        "report": trials.report,
    },
}
app.add_typer(data_app, name="data", rich_help_panel=STAGES)
for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)


def main() -> None:
    """Run a command; an error that the user can mend is one line, without a traceback."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError, TypeError, ImportError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
