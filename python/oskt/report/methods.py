"""Plots that compare methods: against size or columns, on the way, and before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oskt.report.plots import Theme, log_axis, name_sizes, plain_count, title_left

MARKERS = "os^Dv<>pPXhd"


@dataclass(frozen=True)
class Series:
    """One method in a plot.

    Args:
        name: for the legend.
        x: parameters, or steps.
        y: scores in percent, as long as x.
        deviations: standard deviations of y over seeds; 0 where there is one seed.
        place: number of its colour and marker, the same in all plots of a report.
        ours: drawn strongly, on top.
        dashed: another line style, for the same method in another state.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    deviations: Sequence[float] = ()
    place: int = 0
    ours: bool = False
    dashed: bool = False


def against_size(
    series: Sequence[Series],
    score: str,
    teacher: float | None,
    sizes: Mapping[str, float],
    theme: Theme,
) -> Figure:
    """Scores against parameters on a log axis, one line per method.

    Args:
        series: the methods.
        score: what y is, "mAP" or "accuracy".
        teacher: its score in percent, a dotted line; None draws none.
        sizes: label -> parameters, named along the bottom.
    """
    figure, axes = _axes()
    _lines(axes, series, theme)
    if teacher is not None:
        axes.axhline(teacher, color=theme.ink, linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(
            f"teacher {teacher:.1f}", (0.005, teacher), xycoords=("axes fraction", "data"),
            xytext=(0, 4), textcoords="offset points", color=theme.ink,
        )  # fmt: skip
    name_sizes(axes, sizes.items(), theme)
    log_axis(axes, "x", plain_count)
    axes.set_xlabel("Parameters")
    _finish(axes, score, theme)
    return figure


def against_columns(
    series: Sequence[Series], score: str, columns: Sequence[str], what: str, theme: Theme
) -> Figure:
    """Scores against the columns of a table, evenly spaced, one line per method.

    Args:
        series: the methods; x is the index of the column.
        score: what y is.
        columns: their labels.
        what: they are, the name of the axis.
    """
    figure, axes = _axes()
    _lines(axes, series, theme)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_xlabel(what)
    _finish(axes, score, theme)
    return figure


def convergence(series: Sequence[Series], score: str, theme: Theme) -> Figure:
    """Scores on the way of a training: x is optimiser steps."""
    figure, axes = _axes()
    _lines(axes, series, theme)
    axes.set_xlabel("Optimiser steps of the student")
    axes.set_xlim(left=0)
    _finish(axes, score, theme)
    return figure


def before_after(
    before: Sequence[Series],
    after: Sequence[Series],
    sizes: Sequence[str],
    score: str,
    theme: Theme,
) -> Figure:
    """At once against fine-tuned: per size and method a stem from the one to the other.

    Args:
        before, after: the same methods in the same order; x is the index of the size.
        sizes: their labels.
        score: what y is.
    """
    figure, axes = _axes()
    pitch = 0.8 / max(len(after), 1)
    for number, (start, end) in enumerate(zip(before, after, strict=True)):
        colour = _colour(theme, end.place)
        x = [place + (number - (len(after) - 1) / 2) * pitch for place in end.x]
        axes.vlines(x, start.y, end.y, color=colour, linewidth=2)
        hollow: Any = {"color": theme.page, "markeredgecolor": colour, "markeredgewidth": 1.6}
        axes.plot(x, start.y, "o", markersize=6, **hollow)
        axes.plot(x, end.y, "o", color=colour, markersize=7, label=end.name)
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_xlabel("Size; hollow: at once, full: after its own training")
    _finish(axes, score, theme)
    return figure


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.6, 4.8), layout="constrained")
    return figure, figure.subplots()


def _lines(axes: Axes, series: Sequence[Series], theme: Theme) -> None:
    for one in series:
        colour = _colour(theme, one.place)
        if any(one.deviations):
            axes.errorbar(
                one.x, one.y, one.deviations, fmt="none", ecolor=colour, capsize=2.5, alpha=0.7
            )
        axes.plot(
            one.x,
            one.y,
            color=colour,
            label=one.name,
            marker=MARKERS[one.place % len(MARKERS)],
            markersize=7 if one.ours else 5.5,
            markeredgecolor=theme.page,
            markeredgewidth=1.2,
            linewidth=2.8 if one.ours else 1.5,
            linestyle=(0, (4, 2)) if one.dashed else "solid",
            zorder=3 if one.ours else 2,
        )


def _colour(theme: Theme, place: int) -> str:
    first, second, grey, *others = theme.series
    palette = (first, second, *others, theme.ink, theme.quiet, grey)
    return palette[place % len(palette)]


def _finish(axes: Axes, score: str, theme: Theme) -> None:
    axes.tick_params(which="both", length=0)
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.06, y=0.12)
    handles, labels = axes.get_legend_handles_labels()  # ours, which come last, on top
    axes.legend(
        handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0
    )
    title_left(axes, f"{score}, %", theme)
