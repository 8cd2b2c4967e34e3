"""Plots that compare methods: accuracy against size, on the way, and before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from oskt.report.plots import Theme, plain_count, title_left

MARKERS = "os^Dv<>pPX"


@dataclass(frozen=True)
class Series:
    """One method in a plot.

    Args:
        name: for the legend.
        x: parameters, or steps.
        y: scores in percent, as long as x.
        deviations: standard deviations of y over seeds; 0 where there is one seed.
        ours: drawn strongly, on top.
        dashed: another line style, for the same method in another state.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    deviations: Sequence[float] = ()
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
    for label, parameters in sizes.items():
        axes.text(
            parameters, 0.012, label, transform=axes.get_xaxis_transform(), ha="center",
            va="bottom", fontsize=8.5, color=theme.quiet,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain_count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("Parameters")
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
    groups: Mapping[str, Mapping[str, tuple[float, float]]], score: str, theme: Theme
) -> Figure:
    """At once against fine-tuned: per size and method a stem from the one to the other.

    Args:
        groups: size -> method -> (score at once, score after training), in percent.
        score: what they are.
    """
    figure, axes = _axes()
    methods = list(dict.fromkeys(name for group in groups.values() for name in group))
    pitch = 0.8 / max(len(methods), 1)
    for number, method in enumerate(methods):
        colour = _colour(theme, number)
        for place, group in enumerate(groups.values()):
            if method not in group:
                continue
            x = place + (number - (len(methods) - 1) / 2) * pitch
            before, after = group[method]
            axes.plot([x, x], [before, after], color=colour, linewidth=2)
            axes.plot(
                x, before, "o", color=theme.page, markeredgecolor=colour, markersize=6,
                markeredgewidth=1.6,
            )  # fmt: skip
            label = method if place == 0 else None
            axes.plot(x, after, "o", color=colour, markersize=7, label=label)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_xlabel("Size; hollow: at once, full: after its own training")
    _finish(axes, score, theme)
    return figure


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.6, 4.8), layout="constrained")
    return figure, figure.subplots()


def _lines(axes: Axes, series: Sequence[Series], theme: Theme) -> None:
    for number, one in enumerate(series):
        colour = _colour(theme, number)
        if any(one.deviations):
            axes.errorbar(
                one.x, one.y, one.deviations, fmt="none", ecolor=colour, capsize=2.5, alpha=0.7
            )
        axes.plot(
            one.x,
            one.y,
            color=colour,
            label=one.name,
            marker=MARKERS[number % len(MARKERS)],
            markersize=7 if one.ours else 5.5,
            markeredgecolor=theme.page,
            markeredgewidth=1.2,
            linewidth=2.8 if one.ours else 1.5,
            linestyle=(0, (4, 2)) if one.dashed else "solid",
            zorder=3 if one.ours else 2,
        )


def _colour(theme: Theme, number: int) -> str:
    palette = (*theme.series, theme.ink, theme.quiet)
    return palette[number % len(palette)]


def _finish(axes: Axes, score: str, theme: Theme) -> None:
    axes.tick_params(which="both", length=0)
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.06, y=0.12)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    title_left(axes, f"{score}, %", theme)
