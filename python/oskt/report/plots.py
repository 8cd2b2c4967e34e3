"""The plots of a report, each drawn twice: for light pages and for dark ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from oskt.report.data import Group, ResultRow
from oskt.report.table import Comparison, compare, count_text, series_title


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance; the background is the page's own."""

    ink: str
    quiet: str
    grid: str
    page: str
    series: tuple[str, ...]
    ramp: tuple[str, str]

    def colour(self, series: str, others: Sequence[str] = ()) -> str:
        """The colour of a series: the same one in every plot."""
        known = ("at_once", "finetuned", "scratch")
        if series in known:
            return self.series[known.index(series)]
        return self.series[3 + list(others).index(series) % (len(self.series) - 3)]

    @property
    def colours(self) -> LinearSegmentedColormap:
        return LinearSegmentedColormap.from_list("ramp", self.ramp)


LIGHT = Theme(
    ink="#1d2129",
    quiet="#6b7280",
    grid="#e7e9ee",
    page="#ffffff",
    series=("#2563eb", "#e8590c", "#8b929e", "#0d9488", "#9333ea",
            "#ca8a04", "#db2777", "#65a30d", "#92400e", "#0891b2"),
    ramp=("#bfd4fb", "#1740a6"),
)  # fmt: skip
DARK = Theme(
    ink="#eceef2",
    quiet="#9aa1ad",
    grid="#2c313b",
    page="#15181e",
    series=("#6ea2ff", "#ff9350", "#8b929e", "#3fd0c0", "#c38bff",
            "#e6b93f", "#ff7ab8", "#a8d65c", "#d19a66", "#5cc8f2"),
    ramp=("#24407f", "#a9c6ff"),
)  # fmt: skip

_INSTALLED = {font.name for font in font_manager.fontManager.ttflist}
_FONTS = [
    name for name in ("Inter", "Helvetica Neue", "Arial", "DejaVu Sans") if name in _INSTALLED
]


def render(draw: Callable[[Theme], Figure]) -> tuple[str, str]:
    """Draw a figure for light and for dark pages; base64 PNG, transparent background."""
    light, dark = (base64.b64encode(png(draw, theme)).decode("ascii") for theme in (LIGHT, DARK))
    return light, dark


def png(draw: Callable[[Theme], Figure], theme: Theme, *, opaque: bool = False) -> bytes:
    """A figure as a PNG file; opaque for pages that may be light or dark, as those on GitHub."""
    style: Any = {
        "font.family": _FONTS,
        "font.size": 10,
        "text.color": theme.ink,
        "axes.facecolor": theme.page,
        "axes.labelcolor": theme.quiet,
        "axes.edgecolor": theme.grid,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "figure.facecolor": theme.page,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.grid,
        "ytick.color": theme.grid,
        "xtick.labelcolor": theme.quiet,
        "ytick.labelcolor": theme.quiet,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
    }
    buffer, margin = io.BytesIO(), 0.2 if opaque else 0.05
    with matplotlib.rc_context(style):
        draw(theme).savefig(
            buffer, dpi=170, transparent=not opaque, bbox_inches="tight", pad_inches=margin
        )
    return buffer.getvalue()


def trade_off(rows: Sequence[ResultRow], cost: str, theme: Theme) -> Figure:
    """mAP against a cost ("parameters" or "macs") on a log axis, one line per series."""
    table = compare(rows)
    figure = Figure(figsize=(6.8, 4.4), layout="constrained")
    axes = figure.subplots()
    others = [s for s in table.series if s not in ("at_once", "finetuned", "scratch")]
    for series in reversed(table.series):  # the first series is drawn last, on top
        lines = [line for line in table.students if series in line.cells]
        x = [getattr(line, cost) for line in lines]
        y = [line.cells[series].mAP for line in lines]
        colour = theme.colour(series, others)
        deviations = [line.cells[series].deviation or 0 for line in lines]
        if any(deviations):
            axes.errorbar(x, y, deviations, fmt="none", ecolor=colour, capsize=2.5)
        axes.plot(
            x,
            y,
            color=colour,
            label=series_title(series),
            marker="o",
            markersize=7,
            markeredgecolor=theme.page,
            markeredgewidth=1.4,
            linewidth=2.2,
            linestyle=(0, (4, 2)) if series == "scratch" else "solid",
        )
    name_sizes(axes, [(line.width, getattr(line, cost)) for line in table.students], theme)
    for line in table.teachers:
        score = line.cells["teacher"].mAP
        axes.axhline(score, color=theme.ink, linewidth=1, linestyle=(0, (1, 2)))
        axes.plot(getattr(line, cost), score, "*", color=theme.ink, markersize=13)
    log_axis(axes, "x", plain_count)
    axes.tick_params(which="both", length=0)
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.08, y=0.14)
    _name_teachers(axes, table, theme)
    axes.set_xlabel("Parameters" if cost == "parameters" else "Multiply-accumulates per image")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="upper right", ncols=4, borderaxespad=0.2,
        handlelength=1.6, columnspacing=1.0,
    )  # fmt: skip
    title_left(axes, "mAP, %", theme)
    return figure


def plain_count(value: float) -> str:
    """A round count without idle zeros, for an axis."""
    number, _, unit = count_text(value).partition(" ")
    return f"{float(number):g} {unit}".strip()


def log_axis(axes: Axes, which: str, text: Callable[[float], str]) -> None:
    """Make the axis "x" or "y" logarithmic, named at 1, 2 and 5 of every decade."""
    axes.set(**{f"{which}scale": "log"})
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())


def name_sizes(axes: Axes, sizes: Iterable[tuple[str, float]], theme: Theme) -> None:
    """Write (label, count) pairs along the bottom."""
    for label, count in sizes:
        axes.text(
            count, 0.012, label, transform=axes.get_xaxis_transform(), ha="center", va="bottom",
            fontsize=8.5, color=theme.quiet,
        )  # fmt: skip


def _name_teachers(axes: Axes, table: Comparison, theme: Theme) -> None:
    """Beside the right ends of their lines, from below, moved up where they would touch."""
    low, high = axes.get_ylim()
    place = low
    for line in sorted(table.teachers, key=lambda line: line.cells["teacher"].mAP):
        score = line.cells["teacher"].mAP
        place = max(score, place + 0.06 * (high - low))
        axes.text(
            1.015, place, f"{line.model} {score:.1f}", transform=axes.get_yaxis_transform(),
            va="center", color=theme.ink,
        )  # fmt: skip


def title_left(axes: Axes, text: str, theme: Theme) -> None:
    """What the vertical axis shows, above it."""
    axes.set_title(text, loc="left", fontsize=10, color=theme.quiet, pad=9)


def training_curves(curves: dict[str, list[dict[str, Any]]], theme: Theme) -> Figure:
    """Loss and mAP over the epochs of every training."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    palette = [theme.ink, *theme.series[:2], *theme.series[3:], theme.series[2]]
    for number, (name, records) in enumerate(curves.items()):
        epochs = [r for r in records if r.get("kind", "epoch") == "epoch"]
        colour = palette[number % len(palette)]
        x, y = _curve(epochs, "loss")
        left.plot(x, y, color=colour, linewidth=2, label=name)
        keys = sorted({key for record in epochs for key in record if key.endswith("mAP")})
        for key, dashes in zip(keys, ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))):
            part = key.removesuffix("mAP").strip("/_ .")
            x, y = _curve(epochs, key)
            label = f"{name}: {part}" if part and part != name else name
            style: dict[str, Any] = {"color": colour, "linestyle": dashes, "label": label}
            marker = "o" if len(x) < 8 else None  # few points: show where they are
            right.plot(x, [100 * v for v in y], linewidth=2, marker=marker, markersize=5, **style)
    if all(value > 0 for line in left.lines for value in line.get_ydata()):
        log_axis(left, "y", "{:g}".format)  # that of a refinement holds more terms than others
    for axes, title in ((left, "Loss"), (right, "mAP, %")):
        axes.set_xlabel("Epoch")
        axes.tick_params(which="both", length=0)
        axes.grid(visible=False, axis="x")
        axes.margins(x=0.02)
        title_left(axes, title, theme)
    handles, labels = (right if right.lines else left).get_legend_handles_labels()
    right.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    return figure


def _curve(records: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [(r.get("epoch", n), r[key]) for n, r in enumerate(records, 1) if key in r]
    return [x for x, _ in points], [y for _, y in points]


def cluster_sizes(groups: Sequence[Group], theme: Theme) -> Figure:
    """Per channel group a bar cut into its clusters, large to small, and the variance they lose."""
    known = [group for group in groups if group.inertia is not None]
    pitch = 0.3 if len(groups) <= 24 else 0.2
    figure = Figure(figsize=(11, 0.9 + pitch * len(groups)), layout="constrained")
    panels = figure.subplots(
        1, 2 if known else 1, width_ratios=(3.4, 1) if known else None, sharey=True, squeeze=False
    )[0]
    largest = max(max(group.sizes) for group in groups)
    for row, group in enumerate(groups):
        sizes = np.sort(np.array(group.sizes))[::-1]
        share = sizes / sizes.sum()
        shade = np.log(sizes) / max(np.log(largest), 1)
        panels[0].barh(
            row,
            share,
            left=np.cumsum(share) - share,
            height=0.74,
            color=theme.colours(shade),
            edgecolor=theme.page,
            linewidth=0.7 if len(sizes) <= 64 else 0.25,
        )
        panels[0].text(
            1.008,
            row,
            f"{sizes.sum()} → {len(sizes)}",
            va="center",
            fontsize=8.5,
            color=theme.quiet,
        )
        if known and group.inertia is not None:
            panels[1].barh(row, 100 * group.inertia, height=0.5, color=theme.series[1])
    panels[0].set_yticks(range(len(groups)), [group.name for group in groups], fontsize=8.5)
    panels[0].set_ylim(len(groups) - 0.4, -0.6)
    panels[0].set_xlim(0, 1.1 if known else 1.07)
    panels[0].set_xticks([])
    title_left(panels[0], "Channels of each group, cut into clusters", theme)
    if known:
        panels[1].set_xlim(left=0)
        panels[1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
        title_left(panels[1], "Variance lost by merging", theme)
    for axes in panels:
        axes.grid(visible=axes is not panels[0], axis="x")
        axes.grid(visible=False, axis="y")
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def costs(groups: Sequence[Group], theme: Theme) -> Figure:
    """What is left of a group's importance while it goes from N channels to one."""
    trees = [group for group in groups if group.costs]
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots()
    for number, group in enumerate(trees):
        costs = np.array(group.costs)
        kept = 1 - np.concatenate([[0], np.cumsum(costs)]) / max(costs.sum(), 1e-12)
        clusters = np.arange(len(costs) + 1, 0, -1) / (len(costs) + 1)
        colour = theme.colours(number / max(len(trees) - 1, 1))
        ends = number in (0, len(trees) - 1)
        axes.plot(
            100 * clusters,
            100 * kept,
            color=colour,
            linewidth=2.4 if ends else 1.3,
            label=group.name if ends else None,
        )
    axes.set_xscale("log", base=2)
    axes.set_xlim(100, 100 / max(len(group.costs) + 1 for group in trees))
    halvings = range(1, max(len(group.costs) for group in trees).bit_length() + 1)
    axes.set_xticks([100 / 2**n for n in (0, *halvings)], ["all", *(f"1/{2**n}" for n in halvings)])
    axes.set_ylim(-2, 103)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.tick_params(length=0)
    axes.set_xlabel("Channels left, as a share of the teacher's")
    title_left(axes, "Importance kept, one line per channel group from input to output", theme)
    axes.legend(loc="lower left")
    return figure
