"""Reports: the comparison in numbers and words, the page, its records, the terminal."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import resource
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from oskt.compare.methods import METHODS
from oskt.demo.presenter import Presenter
from oskt.evaluation.rankings import RankingLists
from oskt.report import (
    Group,
    ReportData,
    ResultRow,
    headline,
    load_report,
    picture,
    rankings,
    read_log,
    read_rows,
    rich_table,
    samples,
    write_report,
    write_rows,
)
from oskt.report.methods import _colour
from oskt.report.plots import DARK, LIGHT, trade_off
from oskt.report.table import compare, count_text, difference_text, notes

VOID = {"meta", "img", "source", "br", "link", "hr", "input"}


def student(model, series, mAP, *, parameters=90_000, **options) -> ResultRow:
    return ResultRow(model, series, "1/4", parameters, 4_000_000, mAP, mAP + 0.05, **options)


TEACHER = ResultRow("Teacher <T>", "teacher", "1", 1_410_000, 58_400_000, 0.877, 0.931, steps=648)
ROWS = (
    TEACHER,
    student("large & slow", "at_once", 0.922, parameters=800_000),
    student("large & slow", "finetuned", 0.924, parameters=800_000, steps=216),
    student("large & slow", "scratch", 0.929, parameters=800_000, steps=648),
    student("small", "at_once", 0.810),
    student("small", "finetuned", 0.841, steps=216),
    student("small", "scratch", 0.527, steps=648),
    student("small", "magnitude_pruning", 0.602, steps=216),
)


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """Four people, three images each on two cameras, every image of its own colour."""
    folder = tmp_path_factory.mktemp("images")
    paths: list[Path] = []
    for index in range(12):
        paths.append(folder / f"{index}.png")
        Image.new("RGB", (16, 32), (20 * index, 255 - 20 * index, 90)).save(paths[-1])
    ids, cameras = np.repeat([1, 2, 3, 4], 3), np.tile([0, 0, 1], 4)
    return SimpleNamespace(paths=paths, ids=ids, cameras=cameras)


@pytest.fixture(scope="module")
def data(part) -> ReportData:
    lists = RankingLists(
        torch.tensor([0, 5]),
        torch.tensor([[2, 7, -1], [9, 3, 8]]),
        torch.tensor([[True, False, False], [False, True, False]]),
    )
    return ReportData(
        title="Drawn <pedestrians>",
        rows=ROWS,
        curves={
            "teacher": [
                {"kind": "start", "seed": 0},
                {"kind": "epoch", "epoch": 1, "loss": 3.0},
                {"kind": "epoch", "epoch": 2, "loss": 2.0, "teacher/mAP": 0.4, "student/mAP": 0.3},
            ]
        },
        groups=(
            Group("conv1", (2, 1, 1), 0.25, (0.1, 0.2, 0.3)),
            Group("layer1.0.conv1", (5, 3)),
        ),
        rankings=rankings({"Teacher": lists, "small": lists}, part, part),
        samples=samples(part, identities=3, images=2),
        facts={
            "Commands": ["oskt demo --out <folder>"],
            "Versions": {"torch": torch.__version__},
            "Seed": 0,
        },
    )


@pytest.fixture(scope="module")
def page(data, tmp_path_factory) -> Path:
    return write_report(tmp_path_factory.mktemp("run") / "new" / "folder", data)


class Structure(HTMLParser):
    """Checks that tags nest, and collects texts and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "srcset", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def parse(page: Path) -> Structure:
    structure = Structure()
    structure.feed(page.read_text(encoding="utf-8"))
    structure.close()
    assert not structure.open
    return structure


def test_the_page_is_well_formed_and_needs_nothing_else(page):
    structure = parse(page)
    assert structure.sources
    assert all(re.match(r"data:image/(png|jpeg);base64,", s) for s in structure.sources)
    assert not {"script", "link", "iframe"} & set(structure.tags)
    style = page.read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"https?:|url\(|@import", style)
    for source in structure.sources:
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).verify()


def test_the_page_shows_every_row(page):
    text = parse(page).text
    for row in ROWS:
        assert row.model in text
        assert f"{100 * row.mAP:.1f}" in text
        assert f"{100 * row.rank1:.1f}" in text
    for word in ("90.0 k", "1.41 M", "Magnitude pruning", "+31.4", "−0.5", "−0.7"):
        assert word in text
    assert headline(ROWS) in text
    assert all(note in text for note in notes(ROWS))


def test_the_page_shows_every_picture_and_fact(page, data):
    structure = parse(page)
    shown = {s.partition(",")[2] for s in structure.sources}
    for ranking in data.rankings:
        assert ranking.query in shown
        assert all(hit.picture in shown for hits in ranking.lists.values() for hit in hits)
    assert all(p in shown for row in data.samples for p in row)
    # Two trade-offs, the training, the clusters, the merge costs: each for light and dark pages.
    assert sum(s.startswith("data:image/png") for s in structure.sources) == 2 * 5
    for text in ("oskt demo --out <folder>", torch.__version__, "Drawn <pedestrians>", "id 2"):
        assert text in structure.text


def test_right_and_wrong_hits_are_told_apart(page):
    html = page.read_text(encoding="utf-8")
    assert html.count('<li class="right">') == 2 * 2
    assert html.count('<li class="wrong">') == 2 * 3


def test_the_page_is_made_again_from_its_records(page, data, tmp_path):
    loaded = load_report(page.parent)
    assert loaded == data
    again = write_report(tmp_path, loaded)
    assert again.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_a_full_disk_keeps_the_old_report(tmp_path):
    """A limit on file sizes stops a write half-way, as a full disk does."""
    path = write_report(tmp_path, ReportData("Old", (TEACHER,)))
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="The previous file is unchanged"):
            write_report(tmp_path, ReportData("New", ROWS))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old
    assert "Old" in parse(path).text


def test_empty_parts_are_left_out(tmp_path):
    text = parse(write_report(tmp_path, ReportData("Only rows", ROWS))).text
    assert "Results" in text
    for heading in (
        "Ranking lists",
        "Training",
        "Which channels go together",
        "The data",
        "How it was made",
    ):
        assert heading not in text
    assert "No student" in parse(write_report(tmp_path, ReportData("Nothing", ()))).text
    assert "No student" in parse(write_report(tmp_path, ReportData("Teacher", (TEACHER,)))).text


def test_rows_keep_every_field(tmp_path):
    rows = (*ROWS, student("x", "scratch", 0.1, seed=3, seconds=1.5, settings={"epochs": 4}))
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["settings"] == {"epochs": 4}


def test_broken_records_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"model": "a"}\n')
    with pytest.raises(ValueError, match=r"read_rows: .*rows.jsonl' line 1 must be a result row"):
        read_rows(path)
    path.write_text('{"epoch": 1}\n\n{"epoch": 2')
    with pytest.raises(ValueError, match=r"read_log: .*rows.jsonl' line 3 must be JSON"):
        read_log(path)
    with pytest.raises(FileNotFoundError, match=r"load_report: folder must hold .* report\.json"):
        load_report(tmp_path)


@pytest.mark.parametrize("text", ["", '{"title": "T', "[]", "null", '{"title": "T"}'])
def test_broken_reports_are_named(text, tmp_path):
    write_rows(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ValueError, match=r"^load_report: '.*report.json' must hold the records"):
        load_report(tmp_path)


def test_the_comparison_sorts_by_size_and_subtracts_what_it_shows():
    table = compare(ROWS)
    assert [line.model for line in table.students] == ["small", "large & slow"]
    assert table.series == ("at_once", "finetuned", "scratch", "magnitude_pruning")
    small, large = table.students
    assert small.difference("finetuned") == pytest.approx(31.4)
    assert large.difference("at_once") == pytest.approx(-0.7)
    assert (small.best, large.best) == ("finetuned", "scratch")


def test_seeds_are_averaged_with_their_deviation():
    rows = [student("a", "scratch", m, seed=s) for s, m in enumerate((0.50, 0.60, 0.70))]
    (line,) = compare(rows).students
    assert line.cells["scratch"].text == "60.0 ±10.0"
    assert any("3 seeds" in note for note in notes(rows))


def test_an_unfair_comparison_is_marked(tmp_path):
    rows = [student("a", "finetuned", 0.8, steps=300), student("a", "scratch", 0.7, steps=200)]
    assert any(note.startswith("† ") for note in notes(rows))
    assert "†" in parse(write_report(tmp_path, ReportData("t", tuple(rows)))).text
    fair = [rows[0], replace(rows[1], steps=300)]
    assert not any("†" in note for note in notes(fair))


def test_the_headline_tells_wins_and_losses():
    text = headline(ROWS)
    assert text.startswith("One teacher of 1.41 M parameters (87.7 mAP) gave 2 students of 90.0 k")
    assert "they reach 81.0 to 92.2 mAP, and 84.1 to 92.4 after fine-tuning." in text
    assert "win on 1 of the 2 sizes at once (+13.8 points on average)" in text
    lost = [student("a", "at_once", 0.4), student("a", "scratch", 0.5)]
    assert "the student does not win at once (−10.0 points)" in headline(lost)
    both = [*lost, student("b", "at_once", 0.3), student("b", "scratch", 0.4)]
    assert "win on none of the 2 sizes" in headline(both)
    won = [replace(row, mAP=1 - row.mAP) for row in both]
    assert "the students win on both sizes at once (+10.0 points" in headline(won)
    three = [*won, student("c", "at_once", 0.7), student("c", "scratch", 0.6)]
    assert "the students win on all 3 sizes at once" in headline(three)


def test_names_of_close_teachers_do_not_touch():
    rows = [replace(TEACHER, model=f"teacher {n}", mAP=0.87 + 0.001 * n) for n in range(4)]
    figure = trade_off([*rows, *ROWS[1:]], "parameters", LIGHT)
    figure.draw_without_rendering()
    names = [text for text in figure.axes[0].texts if text.get_text().startswith("teacher")]
    boxes = sorted((text.get_window_extent() for text in names), key=lambda box: box.y0)
    assert len(boxes) == 4
    assert all(below.y1 < above.y0 for below, above in itertools.pairwise(boxes))


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_method_has_a_colour_of_its_own(theme):
    assert len({_colour(theme, place) for place in range(len(METHODS))}) == len(METHODS)


def test_texts_of_numbers():
    assert [count_text(n) for n in (7, 999, 1000, 95_000, 999_900, 5.89e6, 1.033e9)] == [
        *("7", "999", "1.00 k", "95.0 k", "1.00 M", "5.89 M", "1.03 G")
    ]
    assert [difference_text(p) for p in (1.25, -0.5, None)] == ["+1.2", "−0.5", ""]


def test_the_terminal_table_holds_the_same_numbers():
    def printed(rows):
        console = Console(file=io.StringIO(), width=160)
        console.print(rich_table(rows))
        return console.file.getvalue()

    words = ("small", "large & slow", "84.1", "+31.4", "−0.5", "Teacher <T>", "87.7")
    few = [row for row in ROWS if row.series in ("teacher", "at_once", "finetuned", "scratch")]
    assert all(word in printed(ROWS) for word in words)
    assert "84.1 / 89.1" in printed(few)
    assert "84.1 / 89.1" not in printed(ROWS)  # four series have no room for rank-1


def test_pictures_have_the_asked_size(part):
    image = Image.open(io.BytesIO(base64.b64decode(picture(part.paths[0], height=40, width=20))))
    assert image.size == (20, 40)
    assert image.format == "JPEG"


def test_rankings_refuse_lists_of_different_queries(part):
    def one(query: int) -> RankingLists:
        return RankingLists(
            torch.tensor([query]), torch.zeros(1, 1).long(), torch.zeros(1, 1).bool()
        )

    with pytest.raises(ValueError, match=r"rankings: lists of 'b' must be of the queries \[0\]"):
        rankings({"a": one(0), "b": one(1)}, part, part)


def test_samples_show_every_camera_first(part):
    rows = samples(part, identities=9, images=2)
    assert len(rows) == 4
    # Images 0 and 2 of a person are from different cameras, image 1 repeats the first camera.
    assert rows[0] == (picture(part.paths[0]), picture(part.paths[2]))
    assert samples(part, identities=2, seed=1) == samples(part, identities=2, seed=1)


def test_the_presenter_times_stages_and_ends_on_one_screen():
    console = Console(file=io.StringIO(), width=130)
    presenter = Presenter(2, console)
    with presenter.stage("Teacher [big]"):
        presenter.say("18 epochs [/a]")
    with pytest.raises(KeyError), presenter.stage("Chain"):
        raise KeyError
    presenter.summary(ROWS, {"Report": Path("demo/report.html")})
    printed = console.file.getvalue()
    for word in ("1/2  Teacher [big]", "18 epochs [/a]", "done in", "2/2  Chain", "stopped after"):
        assert word in printed
    assert "demo/report.html" in printed
    assert list(presenter.seconds) == ["Teacher [big]", "Chain"]
