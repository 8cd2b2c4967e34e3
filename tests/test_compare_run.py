"""Tables from end to end: made once, kept, gone on with, reported."""

import json
import platform
import re
import shutil
import signal
from collections import Counter
from dataclasses import replace

import pytest
import torch
from compare_scale import tiny
from rich.console import Console
from typer.testing import CliRunner

import oskt.compare.runner
from oskt import baselines, students
from oskt.cli import app
from oskt.compare import SCALES, TABLES, Request, read_rows, run_table
from oskt.compare.logs import curve, spent
from oskt.compare.pace import Stopwatch
from oskt.compare.rows import write_rows
from oskt.compare.workshop import Workshop
from oskt.data import loader, make_pedestrians
from oskt.evaluation import evaluate
from oskt.machine import device_name
from oskt.models import ResNet
from oskt.norms import WeightedNorm
from oskt.report import read_log
from oskt.task import ReIDData

QUIET = {"device": "cpu", "console": Console(quiet=True)}
ASKED = {"methods": ["scratch", "nested"], "sizes": ["S1", "S4"], **QUIET}
# So that short and long are two trainings: refinement of 6 epochs is 1 epoch for each size.
SCALE = tiny(nested=replace(tiny().nested, epochs=6))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a finished table."""
    out = tmp_path_factory.mktemp("compare")
    assert run_table("1", out, scale=SCALE, **ASKED)
    return out


def scores(rows):
    return {row.labels: (row.at_once, row.trained) for row in rows}


def test_a_table_has_a_row_for_every_cell(made):
    rows = read_rows(made / "sizes.jsonl")
    found = {(r.method, r.size, r.budget) for r in rows}
    students = {(m, s, b) for m in ("scratch", "nested") for s in ("S1", "S4")
                for b in ("short", "long")}  # fmt: skip
    assert found == students | {("teacher", "full", ""), ("nested", "full", "")}
    for row in rows:
        assert row.trained is not None
        assert 0 < row.trained["mAP"] <= 1
        assert (row.at_once is None) == (row.method == "scratch" or row.size == "full")
        assert row.scenario == "plain"
        assert row.commit == rows[0].commit
        assert row.trained_at == (row.commit if row.steps else "")
        assert all(part["commit"] == row.commit for part in row.shared)
        assert row.threads == torch.get_num_threads()
        assert re.fullmatch(r".{4,}, \d+ cores", row.machine)
        assert row.parameters > 0 < row.macs
        steps = {"short": 4, "long": 24, "": 0}[row.budget]  # 8 ids x 4 images / batches of 8
        assert row.steps == steps
        assert (row.seconds > 0) == (steps > 0)
    nested = next(r for r in rows if (r.method, r.size, r.budget) == ("nested", "S1", "long"))
    kinds = {part["kind"]: part["steps"] for part in nested.shared}
    assert kinds == {"teacher": 4, "refinement": 24}
    alone = next(r for r in rows if (r.method, r.size, r.budget) == ("scratch", "S1", "long"))
    assert alone.shared == []  # random numbers need no teacher
    assert [step for step, _ in nested.curve] == [4, 8, 12, 16, 20, 24]
    assert nested.curve[-1][1] == nested.trained["mAP"]
    assert nested.settings["recipe"]["epochs"] == 6
    assert nested.settings["start"]["source"]["recipe"]["chain"] == "nested"


def test_a_student_file_is_the_network_of_its_row(made):
    rows = read_rows(made / "sizes.jsonl")
    row = next(r for r in rows if (r.method, r.size, r.budget) == ("nested", "S4", "short"))
    (folder,) = (made / "work").glob("student-oskt-S4-plain-1ep-*")
    model, meta = students.load_model(folder / "student.safetensors")
    head = sum(p.numel() for n, p in model.named_parameters() if n.startswith(model.head))
    assert sum(p.numel() for p in model.parameters()) - head == row.parameters
    assert meta["recipe"]["epochs"] == 1
    assert not (folder / "state.pt").exists()  # three times the weights, of no use any more


def test_the_report_shows_every_method_and_marks_the_best(made):
    text = (made / "sizes.md").read_text()
    rows = read_rows(made / "sizes.jsonl")
    for row in rows:
        if row.size != "full":
            score = 100 * row.trained["mAP"]
            assert re.search(rf"\b{score:.1f} / {100 * row.trained['rank1']:.1f}\b", text)
    long = text.split("After the long training")[1].split("##")[0]
    best = max(r.trained["mAP"] for r in rows if (r.size, r.budget) == ("S1", "long"))
    assert f"**{100 * best:.1f} /" in long
    for heading in ("At once", "After the short training", "What was spent", "What it says"):
        assert heading in text
    page = (made / "sizes.html").read_text()
    assert page.count("<figure>") == 2  # before and after, on the way; two sizes make no curve
    assert "Nested, ours" in page
    assert "http" not in re.sub(r'src(set)?="data:[^"]*"', "", page)


def test_a_finished_table_is_not_made_again(made, monkeypatch):
    monkeypatch.setattr(oskt.compare.runner, "_find", lambda *_: pytest.fail("found again"))
    before = (made / "sizes.jsonl").read_bytes()
    assert run_table("sizes", made, scale=SCALE, **ASKED)
    assert (made / "sizes.jsonl").read_bytes() == before


def test_seconds_are_taken_again_in_turn(made, tmp_path, monkeypatch):
    (tmp_path / "work").symlink_to(made / "work")
    shutil.copy(made / "sizes.jsonl", tmp_path)
    tried, seconds_of_step = [], Stopwatch.seconds_of_step

    def counted(watch, part):
        tried.append((type(part).__name__, seconds_of_step(watch, part)))
        return {"Teacher": 0.1, "Chain": 0.5, "Student": 0.2}[tried[-1][0]]

    monkeypatch.setattr(Stopwatch, "seconds_of_step", counted)
    kept = sorted(path.name for path in (made / "work").iterdir())
    assert run_table("sizes", tmp_path, scale=SCALE, retime=True, **ASKED)
    # One teacher, one chain, two methods at two sizes: short and long are the same work.
    assert Counter(kind for kind, _ in tried) == {"Teacher": 3, "Chain": 3, "Student": 12}
    assert all(0 < seconds < 10 for _, seconds in tried)
    assert sorted(path.name for path in (made / "work").iterdir()) == kept
    rows, before = read_rows(tmp_path / "sizes.jsonl"), read_rows(made / "sizes.jsonl")
    assert scores(rows) == scores(before)
    for row in rows:
        assert row.seconds == pytest.approx(0.2 * row.steps)
        for one in row.shared:
            assert one["seconds"] == pytest.approx({"teacher": 0.4, "refinement": 12}[one["kind"]])
        assert re.fullmatch(r".+ cores, threads \d+, \d{4}-\d\d-\d\d", row.timed)
    assert f"timed in turn: {rows[0].timed}" in (tmp_path / "sizes.md").read_text()
    assert "timed in turn" not in (made / "sizes.md").read_text()


def test_a_lost_row_is_found_from_what_was_made(made, tmp_path, monkeypatch):
    lines = (made / "sizes.jsonl").read_text().splitlines()
    (tmp_path / "work").symlink_to(made / "work")
    (tmp_path / "sizes.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    monkeypatch.setattr(Workshop, "_train", lambda *_, **__: pytest.fail("trained again"))
    run_table("sizes", tmp_path, scale=SCALE, **ASKED)
    assert scores(read_rows(tmp_path / "sizes.jsonl")) == scores(read_rows(made / "sizes.jsonl"))


def test_other_settings_make_new_rows_of_the_same_labels(made, tmp_path):
    (tmp_path / "work").symlink_to(made / "work")
    (tmp_path / "sizes.jsonl").write_bytes((made / "sizes.jsonl").read_bytes())
    changed = replace(SCALE, student=replace(SCALE.student, lr=1e-3))
    only = {"methods": ["scratch"], "sizes": ["S1"], **QUIET}
    run_table("sizes", tmp_path, scale=changed, **only)
    before, after = (read_rows(p / "sizes.jsonl") for p in (made, tmp_path))
    assert len(before) == len(after)
    changed = {r.labels[3:6] for r in after if r.key not in {b.key for b in before}}
    assert changed == {("scratch", "S1", "short"), ("scratch", "S1", "long")}
    assert len(list((tmp_path / "work").glob("student-scratch-S1-*-6ep-*"))) == 2


def test_a_table_stopped_inside_a_training_ends_as_if_it_were_not(made, tmp_path, monkeypatch):
    batches, calls = loader.ReIDLoader._batch, []

    def interrupted(self, planned, epoch, position):
        calls.append(position)
        if len(calls) == 40:  # teacher: 4 steps; its scratch students 4 and 24 a size
            signal.raise_signal(signal.SIGINT)
        return batches(self, planned, epoch, position)

    monkeypatch.setattr(loader.ReIDLoader, "_batch", interrupted)
    # Batches are not made ahead, so that the signal comes between the same two steps each time.
    monkeypatch.setattr(oskt.task.TrainingBatches, "__init__", own_thread)
    with pytest.raises(KeyboardInterrupt, match="Run the same command to go on"):
        run_table("sizes", tmp_path, scale=SCALE, **ASKED)
    kept = len(read_rows(tmp_path / "sizes.jsonl"))
    states = list((tmp_path / "work").glob("*/state.pt"))
    assert 0 < kept < 10
    assert len(states) == 1
    assert run_table("sizes", tmp_path, scale=SCALE, **ASKED)
    assert scores(read_rows(tmp_path / "sizes.jsonl")) == scores(read_rows(made / "sizes.jsonl"))
    starts = [r["step"] for r in read_log(states[0].parent / "log.jsonl") if r["kind"] == "start"]
    assert len(starts) == 2
    assert starts[1] > 0


_BATCHES = oskt.task.TrainingBatches.__init__


def own_thread(self, data, recipe, progress):
    _BATCHES(self, data, recipe, progress)
    self.loader.workers = 0


def test_a_deadline_ends_a_run_that_the_next_one_goes_on_with(made, tmp_path, capsys):
    asked = {**ASKED, "console": Console(width=200), "methods": ["scratch"], "sizes": ["S1"]}
    (tmp_path / "work").mkdir()
    (data,) = (made / "work").glob("data-plain-*")
    (tmp_path / "work" / data.name).symlink_to(data)
    for _ in range(3):  # a step each: the teacher takes four
        assert not run_table("sizes", tmp_path, scale=SCALE, stop_after=0.0, **asked)
        assert "stopped after" in capsys.readouterr().out
    assert not list((tmp_path / "work").glob("teacher-*"))  # nothing is begun that late
    for number in range(1, 4):
        workshop = Workshop(tmp_path / "work", "cpu", end=0.0)
        teacher = next(TABLES["sizes"].cells(Request(SCALE))).part
        with pytest.raises(KeyboardInterrupt):
            workshop.teacher(teacher)
        assert (workshop.folder(teacher) / "state.pt").is_file()
        log = read_log(workshop.folder(teacher) / "log.jsonl")
        assert log[-1]["step"] == number  # a step each, and no step twice
    assert run_table("sizes", tmp_path, scale=SCALE, **asked)
    rows = read_rows(tmp_path / "sizes.jsonl")
    whole = scores(read_rows(made / "sizes.jsonl"))
    assert all(whole[labels] == found for labels, found in scores(rows).items())


def test_a_dry_run_lists_cells_and_makes_nothing(made, tmp_path, capsys):
    console = Console(width=200)
    asked = {**ASKED, "console": console, "dry_run": True}
    assert not run_table("sizes", tmp_path, scale=SCALE, **asked)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert all("about" in line for line in lines)
    assert lines[-1].startswith("10 cells, 10 to find: about ")
    assert not list(tmp_path.iterdir())
    assert run_table("sizes", made, scale=SCALE, **asked)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("found") for line in lines) == 10
    assert lines[-1].startswith("10 cells, 0 to find: about 0.0 s")


def test_missing_packages_are_said_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    asked = {"methods": ["depgraph"], **QUIET}
    message = "torch_pruning must be installed for depgraph, got no such package"
    with pytest.raises(ImportError, match=message):
        run_table("sizes", tmp_path, scale=SCALE, **asked)
    with pytest.raises(ImportError, match="sklearn must be installed for digits"):
        run_table("digits", tmp_path, scale=SCALE, methods=["scratch"], **QUIET)
    assert not list(tmp_path.iterdir())


def test_the_command(made, tmp_path, monkeypatch):
    monkeypatch.setitem(SCALES, "laptop", SCALE)
    asked = ["--methods", "scratch,nested", "--sizes", "S1,S4", "--device", "cpu"]

    def run(*arguments):
        return CliRunner().invoke(app, ["compare", *map(str, arguments)])

    result = run("sizes", "--out", made, *asked, "--dry-run")
    assert result.exit_code == 0
    assert "10 cells, 0 to find" in result.output
    result = run("1", "--out", tmp_path, *asked, "--seeds", "0", "--stop-after", "0")
    assert result.exit_code == 3
    for name in ("sizes.md", "sizes.html"):
        (made / name).unlink()
    result = run("report", made)
    assert result.exit_code == 0
    assert (made / "sizes.md").is_file()
    assert (made / "sizes.html").is_file()
    write_rows(tmp_path / "empty" / "sizes.jsonl", [])
    for arguments, message in (
        (("sizes",), "one folder must be given, got none"),
        (("sizes", made, "--out", made), "one folder must be given, got "),
        (("sizes", made, "--data", "here"), "--data must be NAME=PATH, got 'here'"),
        (("sizes", made, "--seeds", "a"), "--seeds must be numbers, got 'a'"),
        (("report", tmp_path / "none"), "folder must hold rows of a table, got "),
        (("report", tmp_path / "empty"), "folder must hold rows of a table, got "),
    ):
        result = run(*arguments)
        assert result.exit_code == 1
        assert message in str(result.exception)


def test_many_trainings_decode_images_once(made, monkeypatch):
    (root,) = (made / "work").glob("data-plain-*")
    recipe = SCALE.student
    data = ReIDData(root, recipe, device="cpu")
    model = ResNet(50, 8, num_classes=8, layers=(1, 1, 1, 1))
    first, batch = data.scores(model), next(data.training(recipe).batches(1))
    fresh = evaluate(model, data.set, height=32, width=16, device="cpu")
    assert first == {"mAP": fresh.mAP, "rank1": fresh.cmc[0]}
    for module in (loader, oskt.evaluation.embedding):
        monkeypatch.setattr(module, "load_image", lambda *_: pytest.fail("decoded again"))
    other = data.for_recipe(replace(recipe, pad=0, flip=0.0))
    assert other.scores(model) == first
    torch.testing.assert_close(next(other.training(recipe).batches(1))[0], batch[0], rtol=0, atol=0)
    plain = torch.cat(list(other.unlabelled()))
    assert not torch.equal(torch.cat(list(data.unlabelled())), plain)
    with pytest.raises(ValueError, match=r"height and width must be \(32, 16\), got \(64, 16\)"):
        data.for_recipe(replace(recipe, height=64))
    with pytest.raises(ValueError, match="store must hold the 32 images of the split at"):
        loader.ReIDLoader(data.set.train, (16, 8), store=data.store())


def test_time_and_scores_are_read_from_a_log(tmp_path):
    def step(epoch, step, images_per_s):
        return {"kind": "step", "epoch": epoch, "step": step, "images_per_s": images_per_s}

    batch = {"recipe": {"identities": 2, "instances": 2}, "world_size": 2}
    records = [
        {"kind": "start", "commit": "first", **batch},
        step(1, 4, 16.0),  # 4 steps of 8 images: 2 s
        {"kind": "epoch", "epoch": 1, "scored/mAP": 0.25, "scored/seconds": 1.5},
        step(2, 2, 8.0),  # 2 s, the evaluation's 1.5 s among them
        {"kind": "start", "commit": "second", **batch},  # gone on with
        step(2, 4, 16.0),  # 1 s
        {"kind": "epoch", "epoch": 2, "scored/mAP": 0.5, "scored/seconds": 9.0},  # after the end
        {"kind": "end"},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    found = spent(tmp_path)
    assert found.steps == 8
    assert found.seconds == 2 + (2 - 1.5) + 1
    assert found.commit == "first, second"
    assert curve(tmp_path) == [[4, 0.25], [8, 0.5]]


def test_an_evaluation_before_a_stop_costs_the_training_nothing(tmp_path):
    start = {"kind": "start", "recipe": {"identities": 2, "instances": 2}, "world_size": 1}
    records = [
        start,
        {"kind": "step", "epoch": 1, "step": 4, "images_per_s": 16.0},
        {"kind": "epoch", "epoch": 1, "scored/seconds": 5.0},
        start,  # of a training that was killed before it had reported of the second epoch
        {"kind": "step", "epoch": 2, "step": 4, "images_per_s": 16.0},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert spent(tmp_path).seconds == 1 + 1


def test_kd_and_kd_plus_plus_are_told_different_things(tmp_path, monkeypatch):
    told, distill = {}, baselines.distill_student

    def spy(
        student, teacher, data, recipe, out, *, weight, temperature, norm_direction=0.0, **rest
    ):
        told[out.name] = (weight, temperature, norm_direction)
        numbers = {"weight": weight, "temperature": temperature, "norm_direction": norm_direction}
        return distill(student, teacher, data, recipe, out, **numbers, **rest)

    monkeypatch.setattr(baselines, "distill_student", spy)
    asked = {**QUIET, "methods": ["kd", "kd++"], "sizes": ["S1"], "seeds": [0]}
    assert run_table("1", tmp_path, scale=tiny(), **asked)
    assert set(told.values()) == {(4.0, 2.0, 0.0), (16.0, 4.0, 1.0)}
    rows = read_rows(tmp_path / "sizes.jsonl")
    assert {row.method for row in rows if row.size == "S1"} == {"kd", "kd++"}


def test_a_transformer_takes_the_same_table(tmp_path):
    asked = {**QUIET, "variants": ["ViT"], "sizes": ["S3"], "seeds": [0]}
    assert run_table("depth", tmp_path, scale=tiny(), **asked)
    rows = {(row.method, row.size): row for row in read_rows(tmp_path / "depth.jsonl")}
    assert {m for m, _ in rows} == {"teacher", "scratch", "oskt-published", "nested"}
    teacher, student = rows["teacher", "full"], rows["nested", "S3"]
    assert student.parameters < teacher.parameters / 2
    assert 0 < student.at_once["mAP"] <= 1
    assert 0 < student.trained["mAP"] <= 1


def test_exact_students_of_a_transformer_are_trained(tmp_path):
    """Their norms weigh channels: such a student is trained, kept and scored as any other."""
    asked = {**QUIET, "methods": ["oskt"], "variants": ["ViT, Euclidean"], "sizes": ["S6"]}
    assert run_table("metric", tmp_path, scale=tiny(), **asked)
    (row,) = read_rows(tmp_path / "metric.jsonl")
    assert 0 < row.at_once["mAP"] <= 1
    (path,) = (tmp_path / "work").glob("student-*/student.safetensors")
    model, _ = students.load_model(path)
    assert any(isinstance(module, WeightedNorm) for module in model.modules())


def test_few_identities_make_smaller_batches(tmp_path):
    asked = {**QUIET, "methods": ["scratch"], "variants": ["50 %"], "seeds": [0]}
    assert run_table("few-shot", tmp_path, scale=tiny(), **asked)  # half of 4 to 8 ids
    rows = read_rows(tmp_path / "few-shot.jsonl")
    assert {row.scenario for row in rows} == {"a -> b", "a -> c", "b -> c"}
    assert all(row.trained is not None and row.steps > 0 for row in rows)
    batches = set()
    for log in (tmp_path / "work").glob("student-*/log.jsonl"):
        start, *records = [json.loads(line) for line in log.read_text().splitlines()]
        images = start["recipe"]["identities"] * start["recipe"]["instances"]
        batches.add(images)
        epochs = [r for r in records if r["kind"] == "step"]  # one report of each
        seconds = sum(epoch["step"] * images / epoch["images_per_s"] for epoch in epochs)
        assert spent(log.parent).seconds == pytest.approx(seconds)
    assert batches == {4, 8}


def test_a_chain_goes_on_on_the_students_data(tmp_path, monkeypatch):
    """The further refinement is counted with the first, and made once for all sizes."""
    transfers = Request.transfers
    monkeypatch.setattr(Request, "transfers", lambda request: transfers(request)[:1])
    asked = {**QUIET, "methods": ["nested-there"], "sizes": ["S1", "S4"], "seeds": [0]}
    assert run_table("cross", tmp_path, scale=tiny(), **asked)
    rows = read_rows(tmp_path / "cross.jsonl")
    assert [(row.scenario, row.size) for row in rows] == [("a -> b", "S1"), ("a -> b", "S4")]
    for row in rows:
        spent = [(part["kind"], part["steps"]) for part in row.shared]
        # 4 steps an epoch; 3 epochs there are half of 6 students' single ones
        assert spent == [("teacher", 4), ("refinement", 4), ("refinement", 12)]
        assert row.at_once is not None
        assert row.trained is not None
    (chain,) = (tmp_path / "work").glob("moved-0.125-a-to-b-s0-*")
    assert (chain / "teacher.safetensors").is_file()


def test_tables_of_real_data_share_a_folder(tmp_path, monkeypatch):
    """Interrupted, gone on with, and run for another pair, whose data have the same folder name."""
    here, there = (
        make_pedestrians(tmp_path / place / "market", world=world, **tiny().data, progress=False)
        for place, world in (("here", "a"), ("there", "b"))
    )
    out = tmp_path / "out"
    batches, calls = loader.ReIDLoader._batch, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return batches(*arguments)

    def run(source, target):
        asked = {**QUIET, "methods": ["nested"], "sizes": ["S1"], "seeds": [0]}
        data = {"source": str(source), "target": str(target)}
        assert run_table("cross", out, scale=tiny(), data=data, **asked)
        return read_rows(out / "cross.jsonl")

    with monkeypatch.context() as patch:
        patch.setattr(loader.ReIDLoader, "_batch", interrupted)
        with pytest.raises(KeyboardInterrupt, match="Run the same command to go on"):
            run(here, there)
    assert len(list((out / "work").glob("*/state.pt"))) == 1  # inside the teacher's training
    (first,) = run(here, there)
    assert re.fullmatch("market #.{4} -> market #.{4}", first.scenario)
    assert 0 < first.at_once["mAP"] <= 1
    assert 0 < first.trained["mAP"] <= 1
    assert run(here, f"{there}?few_shot=0.5,seed=1")[0] == first
    rows = run(there, here)
    assert [row.settings["data"]["root"] for row in rows] == [
        str(there), f"{there}?few_shot=0.5,seed=1", str(here)
    ]  # fmt: skip
    assert run(here, there) == rows
    assert len(list((out / "work").glob("teacher-*"))) == 2  # of two sources


def test_a_machine_is_called_by_its_processor(tmp_path, monkeypatch):
    cpu, cpuinfo = torch.device("cpu"), tmp_path / "cpuinfo"
    monkeypatch.setattr(oskt.machine, "Path", lambda _: cpuinfo)
    kind = platform.processor() or platform.machine()
    assert device_name(cpu) == kind  # no such file
    cpuinfo.write_text("model\t\t: 85\nmodel name\t: Fast CPU @ 3 GHz\nmodel name\t: Other\n")
    assert device_name(cpu) == "Fast CPU @ 3 GHz"
    cpuinfo.write_text("model name\t:\nstepping\t: 3\n")
    assert device_name(cpu) == kind
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert device_name(torch.device("cuda:1")) == "card 1"
