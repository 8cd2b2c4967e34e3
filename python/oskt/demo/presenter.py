"""What `oskt demo` shows on the terminal: stages with their times, the table, one last screen."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from oskt.report.data import ResultRow
from oskt.report.duration import duration_text
from oskt.report.table import headline, rich_table


class Presenter:
    """Numbers the stages of a job, times them, and presents the outcome.

    Args:
        stages: how many stages there will be; None leaves the total out.
        console: where to print; None prints to the standard output.

    Attributes:
        seconds: name of a finished stage -> its wall time, for the facts of a report.

    Example:
        >>> presenter = Presenter(1, Console(width=40))
        >>> with presenter.stage("Teacher"):  # doctest: +ELLIPSIS
        ...     presenter.say("18 epochs")
        <BLANKLINE>
        1/1  Teacher
             18 epochs
             done in ... ms
    """

    def __init__(self, stages: int | None = None, console: Console | None = None) -> None:
        self.console = console or Console()
        self.stages = stages
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Head one stage and time it; a stage that raises says that it stopped."""
        number = f"{len(self.seconds) + 1}" + (f"/{self.stages}" if self.stages else "")
        self.console.print(f"\n[bold cyan]{number}[/]  [bold]{escape(name)}[/]", highlight=False)
        start, outcome = time.perf_counter(), "stopped after"
        try:
            yield
            outcome = "done in"
        finally:
            self.seconds[name] = time.perf_counter() - start
            self.say(f"{outcome} {duration_text(self.seconds[name])}", "dim")

    def say(self, text: str, style: str = "") -> None:
        """A line beneath the heading of the stage, as it is: a path in it may hold brackets."""
        line = Padding(Text(text, style), (0, 0, 0, 5), expand=False)
        self.console.print(line, highlight=False)

    def summary(self, rows: Iterable[ResultRow], paths: Mapping[str, Path | str]) -> None:
        """The table, what it shows in words, and where things lie.

        Args:
            rows: the results.
            paths: label -> file or folder, such as {"Report": ".../report.html"}.
        """
        rows = tuple(rows)
        self.console.print()
        self.console.print(rich_table(rows))
        self.console.print()
        places = Table.grid(padding=(0, 2))
        for label, path in paths.items():
            places.add_row(f"[bold]{escape(label)}[/]", escape(str(path)))
        places.add_row("[bold]Time[/]", duration_text(sum(self.seconds.values())))
        self.console.print(Panel(headline(rows), border_style="cyan", padding=(1, 2)))
        self.console.print(Padding(places, (0, 3)))
