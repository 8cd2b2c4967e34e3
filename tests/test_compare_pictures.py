"""Pictures of tables: what is drawn where."""

from __future__ import annotations

import pytest
from test_compare_rows import row

from oskt.compare import TABLES, pictures
from oskt.compare.pictures import size_plot
from oskt.compare.summary import grids
from oskt.report.plots import LIGHT

COUNTS = {"S1": 1000, "S2": 3000, "S3": 9000}
SIZED = [
    row("teacher", "full", "", trained=0.9, steps=0, parameters=50000),
    row("nested", "full", "", trained=0.88, steps=0, parameters=50000),
    *(
        row("nested", size, "long", seed, 0.5 + n / 10, 0.6 + n / 10 + seed / 50, parameters=count)
        for n, (size, count) in reversed(list(enumerate(COUNTS.items()))) for seed in (0, 1)
    ),
    *(
        row("kd", size, "long", 0, None, 0.4 + n / 10, parameters=count)
        for n, (size, count) in enumerate(COUNTS.items())
    ),
    *(row("scratch", size, "long", 0, None, 0.3, parameters=COUNTS[size]) for size in ("S1", "S2")),
]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """Draw the pictures of a table as {caption: axes}."""

    def draw(table, rows):
        found = {}
        monkeypatch.setattr(
            pictures, "figure",
            lambda plot, caption: found.update({caption: plot(LIGHT).axes[0]}) or "",
        )  # fmt: skip
        pictures.pictures(rows, grids(rows, TABLES[table].columns), TABLES[table].variants)
        return found

    return draw


def lines(axes):
    """Legend entry -> (x, y, dashed) of a line."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()), line.is_dashed())
        for line in axes.lines if not line.get_label().startswith("_")
    }  # fmt: skip


def near(*values):
    return pytest.approx(list(values))


def test_scores_stand_against_parameters_one_line_a_method():
    axes = size_plot(SIZED, LIGHT).axes[0]
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "Parameters")
    assert lines(axes) == {  # two sizes make no line, the full width is no size
        "Nested, ours": ([1000, 3000, 9000], near(61, 71, 81), False),  # means of two seeds
        "Nested, ours, at once": ([1000, 3000, 9000], near(50, 60, 70), True),
        "KD": ([1000, 3000, 9000], near(40, 50, 60), False),
    }
    texts = {text.get_text() for text in axes.texts}
    assert texts == {"teacher 90.0", *COUNTS}
    (spread,) = axes.containers  # of the two seeds alone
    low, high = spread[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(2**0.5)  # of 60 and 62


def test_a_method_keeps_its_colour_in_all_pictures(drawn):
    colours = {}
    for axes in drawn("sizes", SIZED).values():
        for line in axes.lines:
            name = line.get_label().removesuffix(", at once")
            if line.get_linestyle() != "None" and not name.startswith("_"):
                colours.setdefault(name, set()).add(line.get_color())
    assert {name: len(found) for name, found in colours.items()} == {"Nested, ours": 1, "KD": 1}


def test_before_and_after_are_a_stem_at_every_size(drawn):
    found = drawn("sizes", SIZED)
    (axes,) = (axes for caption, axes in found.items() if caption.startswith("At once, and after"))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["S3", "S2", "S1"]
    (stems,) = axes.collections  # of nested alone: nothing else knows anything at once
    assert [segment[:, 1].tolist() for segment in stems.get_segments()] == [
        near(70, 81), near(60, 71), near(50, 61)
    ]  # fmt: skip


def test_a_curve_begins_with_what_a_student_has_at_once(drawn):
    curve = [[10, 0.55], [20, 0.6]]
    rows = [
        row("nested", "S1", "long", 0, 0.5, 0.6, curve=curve),
        row("kd", "S1", "long", 0, None, 0.4, curve=[[10, 0.3], [20, 0.4]]),
        row("kd", "S1", "long", 0, None, 0.2, scenario="market", curve=[[10, 0.1], [20, 0.2]]),
    ]
    found = drawn("sizes", rows)
    here, there = (
        found[f"The long training of S1 on its way, first seed ({name})."]
        for name in ("plain", "market")
    )
    assert lines(here) == {
        "Nested, ours": ([0, 10, 20], near(50, 55, 60), False),
        "KD": ([10, 20], near(30, 40), False),
    }
    assert lines(there) == {"KD": ([10, 20], near(10, 20), False)}


def test_variants_stand_side_by_side(drawn):
    rows = [
        row(method, "S1", "own", 0, once, once + 0.1 + n / 10, variant=f"{share} %")
        for n, share in enumerate((10, 30, 50))
        for method, once in (("nested", 0.3), ("kd", 0.2))
    ]
    rows = [*rows, row("scratch", "S1", "own", 0, None, 0.1, variant="10 %")]
    axes = drawn("few-shot", rows)["After training on the students' data (plain)."]
    assert axes.get_xlabel() == "Identities kept"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10 %", "30 %", "50 %"]
    assert lines(axes) == {
        "Nested, ours, S1": ([0, 1, 2], near(40, 50, 60), False),
        "KD, S1": ([0, 1, 2], near(30, 40, 50), False),
    }
