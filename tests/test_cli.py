"""The command line, end to end at the smallest size: each stage reads what the last one wrote."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from oskt.chain import ChainLadder, WeightChain
from oskt.cli import app, main
from oskt.files.checkpoint import load_state

ROOT = Path(__file__).parent.parent
SMALL = ["--identities", "4", "--instances", "2", "--height", "32", "--width", "16", "--pad", "1",
         "--steps", "", "--warmup-epochs", "0", "--device", "cpu", "--workers", "0"]  # fmt: skip


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """data -> teacher -> chain."""
    folder = tmp_path_factory.mktemp("run")
    output = run(
        "data", "make", folder / "data", "--train-ids", 8, "--test-ids", 4, "--images-per-id", 4,
        "--cameras", 2, "--height", 32, "--width", 16, "--workers", 1,
        "--sheet", folder / "sheet.png",
    )  # fmt: skip
    assert "train" in output
    assert (folder / "sheet.png").is_file()
    run(
        "teacher", "--data", folder / "data", "--out", folder / "teacher", "--in-planes", 4,
        "--layers", "1,1,1,1", "--epochs", 2, "--evaluate-every", 1, *SMALL,
    )  # fmt: skip
    run(*refine(folder, folder / "refine"))
    return folder


def refine(folder, out, *more):
    return [
        "refine", "--data", folder / "data", "--out", out,
        "--teacher", folder / "teacher" / "teacher.safetensors", "--chain-width", "0.5",
        "--epochs", "3", "--alpha", "0.01", "--evaluate-every", "1", *SMALL, *more,
    ]  # fmt: skip


def test_refinement_logs_teacher_and_student(work):
    lines = (work / "refine" / "log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert any("teacher/mAP" in r and "student/mAP" in r for r in records)
    chain = WeightChain.load(work / "refine" / "chain.safetensors")
    assert chain.meta["parent"]
    assert chain.verify(quiet=True) < 1e-12


def test_expand_finetune_evaluate(work, tmp_path):
    chain = work / "refine" / "chain.safetensors"
    output = run(
        "expand", chain, "--width", 0.75, "--out", tmp_path / "s.safetensors",
        "--recalibrate", work / "data", "--height", 32, "--image-width", 16, "--device", "cpu",
    )  # fmt: skip
    assert "parameters" in output
    run(
        "finetune", "--data", work / "data", "--out", tmp_path / "tuned", "--epochs", 1,
        "--student", tmp_path / "s.safetensors", *SMALL,
    )  # fmt: skip
    tuned = tmp_path / "tuned" / "student.safetensors"
    _, meta = load_state(tuned)
    assert meta["widths"]["conv1"] == 3
    assert meta["parent"]
    output = run(
        "evaluate", tuned, "--data", work / "data", "--json", tmp_path / "scores.json",
        "--device", "cpu", "--rerank",
    )  # fmt: skip
    assert "mAP:" in output
    assert "re-ranked" in output
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert 0 < scores["mAP"] <= 1
    assert 0 < scores["reranked"]["mAP"] <= 1


def test_expand_per_group_and_info(work, tmp_path):
    chain = work / "refine" / "chain.safetensors"
    run("expand", chain, "--group", "conv1=4", "--group", "layer1.0.conv3=12",
        "--out", tmp_path / "s.safetensors")  # fmt: skip
    widths = load_state(tmp_path / "s.safetensors")[1]["widths"]
    assert (widths["conv1"], widths["layer1.0.conv3"], widths["layer2.0.conv1"]) == (4, 12, 4)
    assert "layer1.0.conv3" in run("info", chain)


def test_a_ladder_is_refined_in_one_run_and_says_which_chain_it_takes(work, tmp_path):
    run(*refine(work, tmp_path / "ladder", "--chain-width", "0.25,0.5"))
    records = (tmp_path / "ladder" / "log.jsonl").read_text().splitlines()
    assert any("student2/mAP" in json.loads(line) for line in records)
    ladder = tmp_path / "ladder" / "chain.safetensors"
    for width, name in ((0.4, "chain 1 of 2, width 0.25"), (0.75, "chain 2 of 2, width 0.5")):
        output = run("expand", ladder, "--width", width, "--out", tmp_path / "s.safetensors")
        assert f"from {name}\n" in output
    output = run("info", ladder)
    assert "chain 2 of 2, width 0.5" in output
    assert "1, 2" in output  # widths of conv1
    for published in (ladder, work / "refine" / "chain.safetensors"):
        with pytest.raises(ValueError, match=r"^progressive.write: chain must be nested, got kin"):
            run("pack", published, "--out", tmp_path / "packed")


def test_nested_chains_of_one_run_each_serve_some_widths(work, tmp_path):
    nested = ["--recipe", "nested", "--alpha", "0", "--epochs", "1"]
    run(*refine(work, tmp_path / "a", *nested, "--chain-width", "0.25,0.5"))
    ladder = tmp_path / "a" / "chain.safetensors"
    for width, name in ((0.4, "chain 1 of 2, up to width 0.5"), (0.5, "chain 2 of 2, up to")):
        output = run("expand", ladder, "--width", width, "--out", tmp_path / "s.safetensors")
        assert f"from {name}" in output
    assert "parameters of its full width" in run("info", ladder)
    output = run("pack", ladder, "--out", tmp_path / "packed", "--widths", "0.25,0.5,1")
    assert [line.split()[1:5:2] for line in output.splitlines() if line[2:3].isdigit()] == [
        ["1", "1"], ["2", "1"], ["3", "2"], ["4", "2"]
    ]  # fmt: skip
    run("expand", tmp_path / "packed", "--width", 0.5, "--out", tmp_path / "s.safetensors")
    run("refine", "--data", work / "data", "--out", tmp_path / "b", "--from-chain", ladder,
        *nested, *SMALL)  # fmt: skip
    before, after = (ChainLadder.load(tmp_path / n / "chain.safetensors") for n in "ab")
    for one, other in zip(before.chains, after.chains):
        assert (one.widths, one.groups) == (other.widths, other.groups)
        assert not torch.equal(one.weights, other.weights)


def test_import_of_a_published_chain(golden, tmp_path):
    out = tmp_path / "chain.safetensors"
    run("import", golden / "official_cnn_a", "--out", out)
    assert WeightChain.load(out).student(width=0.5)(torch.zeros(1, 3, 64, 32)).shape == (1, 64)


def test_evaluation_skips_broken_images_on_request(work, tmp_path):
    shutil.copytree(work / "data", tmp_path / "data")
    broken = sorted((tmp_path / "data" / "query").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:100])
    score = [
        "evaluate", work / "teacher" / "teacher.safetensors", "--data", tmp_path / "data",
        "--device", "cpu",
    ]  # fmt: skip
    assert "mAP:" in run(*score, "--corrupt", "skip")
    for more in ([], ["--corrupt", "refuse"]):
        with pytest.raises(ValueError, match=r"\(--corrupt skip\)"):
            CliRunner().invoke(app, [str(a) for a in (*score, *more)], catch_exceptions=False)


def test_a_nested_chain_goes_on_on_other_data(work, tmp_path):
    nested = ["--recipe", "nested", "--alpha", "0", "--epochs", "1"]
    run(*refine(work, tmp_path / "a", *nested))
    run("data", "make", tmp_path / "data", "--train-ids", 6, "--test-ids", 4, "--images-per-id", 4,
        "--cameras", 2, "--height", 32, "--width", 16, "--workers", 1)  # fmt: skip
    chain = tmp_path / "a" / "chain.safetensors"
    on = ["refine", "--data", tmp_path / "data", "--out", tmp_path / "b", "--from-chain", chain]
    run(*on, *nested, *SMALL)
    before, after = (WeightChain.load(tmp_path / n / "chain.safetensors") for n in "ab")
    assert after.student(width=1.0).classifier.out_features == 6
    assert (after.widths, after.groups) == (before.widths, before.groups)
    for name, tree in before.trees.items():
        assert np.array_equal(after.trees[name].order, tree.order)
    for arguments, message in [
        ([*on, "--teacher", chain], "one of the two, got both"),
        (
            [*on[:-1], work / "refine" / "chain.safetensors", *nested, *SMALL],
            "--from-chain must be a nested chain, got .* of kind 'oskt'",
        ),
        (on[:-2], "one of the two, got neither"),
        (on, "--chain must be nested with --from-chain, got 'oskt'"),
        ([*on, *nested, *SMALL, "--chain-width", "0.5"], "--chain-width must be left out with"),
    ]:
        with pytest.raises(ValueError, match=message):
            CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_other_people_get_a_classifier_of_their_own_however_many_they_are(work, tmp_path):
    """As many identities, of the same names: the images tell them apart."""
    shutil.copytree(work / "data", tmp_path / "copy")
    run("data", "make", tmp_path / "others", "--train-ids", 8, "--test-ids", 4, "--images-per-id",
        4, "--cameras", 2, "--height", 32, "--width", 16, "--workers", 1, "--seed", 1)  # fmt: skip
    nested = [*refine(work, tmp_path / "a", "--recipe", "nested", "--alpha", "0", "--epochs", "1")]
    told = {}
    for name in ("copy", "others"):
        nested[2], nested[4] = tmp_path / name, tmp_path / f"{name}-out"
        told[name] = "anchor 0: of these identities" in run(*nested)
    assert told == {"copy": False, "others": True}
    student = tmp_path / "s.safetensors"
    run("expand", tmp_path / "others-out" / "chain.safetensors", "--width", 0.5, "--out", student)
    known = load_state(student)[1]["identities"]
    assert known == load_state(tmp_path / "others-out" / "teacher.safetensors")[1]["identities"]
    assert known != load_state(work / "teacher" / "teacher.safetensors")[1]["identities"]


def test_a_killed_refinement_resumes_to_the_same_weights(work, tmp_path):
    whole = WeightChain.load(work / "refine" / "chain.safetensors")
    command = [sys.executable, "-m", "oskt", *map(str, refine(work, tmp_path / "cut"))]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums depend on it; other tests set it
    }
    log = tmp_path / "cut" / "log.jsonl"
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while not (log.is_file() and '"epoch"' in log.read_text()):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.Random().uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*command, "--resume"], env=environment, check=True, stdout=subprocess.DEVNULL)
    resumed = WeightChain.load(tmp_path / "cut" / "chain.safetensors")
    assert torch.equal(resumed.weights, whole.weights)
    assert torch.equal(resumed.vectors, whole.vectors)
    assert torch.equal(resumed.statistics, whole.statistics)


def test_two_processes_refine_together(work, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "oskt", *map(str, refine(work, tmp_path / "two")), "--identities", "2"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}", "OMP_NUM_THREADS": "1"},
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    chain = WeightChain.load(tmp_path / "two" / "chain.safetensors")
    assert torch.isfinite(chain.weights).all()
    records = [json.loads(x) for x in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert records[0]["world_size"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["teacher", "--data", "/none", "--out", "x"], "/none"),
        (["expand", "/none.safetensors", "--width", "0.5", "--out", "x"], "does not exist"),
        (["evaluate", "/none.safetensors", "--data", "/none"], "does not exist"),
        (["import", "/none", "--out", "x"], "no folder in /none"),
    ],
)
def test_errors_are_one_line_without_a_traceback(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["oskt", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    error = capsys.readouterr().err.replace("\n", " ")
    assert error.startswith("error:")
    assert message in error


@pytest.mark.parametrize(("said", "shown"), [("fit: [x] saved.", "fit: [x] saved."), ("", "stop")])
def test_an_interrupt_says_what_was_saved(monkeypatch, capsys, said, shown):
    def interrupted(*_, **__):
        raise KeyboardInterrupt(said)

    monkeypatch.setattr("oskt.demo.run_demo", interrupted)
    monkeypatch.setattr(sys, "argv", ["oskt", "demo"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err.startswith(shown)


@pytest.mark.parametrize(
    ("method", "more", "known"),
    [
        ("saliency", (), "kmeans, ward, random for a chain of kind oskt"),
        (
            "kmeans", ("--recipe", "nested", "--alpha", "0"),
            "saliency, magnitude, ward, random for a chain of kind nested",
        ),
    ],
)  # fmt: skip
def test_a_method_of_the_other_kind_is_refused_before_images_are_read(
    work, tmp_path, monkeypatch, method, more, known
):
    monkeypatch.setattr(
        "oskt.cli.stages.ReIDData", lambda *_, **__: pytest.fail("data were opened")
    )
    message = f"^refine: --method must be one of {known}, got '{method}'. Choose one"
    with pytest.raises(ValueError, match=message):
        run(*refine(work, tmp_path / "out", "--method", method, *more))


def test_a_folder_with_a_run_is_refused_before_images_are_read(work, monkeypatch):
    monkeypatch.setattr(
        "oskt.cli.stages.ReIDData", lambda *_, **__: pytest.fail("data were opened")
    )
    command = [
        "teacher", "--data", work / "data", "--out", work / "teacher", "--in-planes", 4, *SMALL,
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"^fit: out must be a new folder, got '.*teacher' with a"):
        run(*command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth", "20"], "ResNet: depth must be one of"),
        (["--model", "vit", "--patch", "7"], "VisionTransformer: image must be"),
        (["--pretrained", "/none.pth"], "path must be an existing file, got '/none.pth'"),
    ],
)
def test_a_wrong_network_is_refused_before_images_are_read(
    work, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr(
        "oskt.cli.stages.ReIDData", lambda *_, **__: pytest.fail("data were opened")
    )
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run("teacher", "--data", work / "data", "--out", tmp_path / "out", *SMALL, *arguments)


def test_rows_that_nothing_compares_are_refused(work, tmp_path):
    nested = ("--chain", "nested", "--alpha", "0", "--rows", "published")
    with pytest.raises(ValueError, match=r"^refine: --rows must be left out of a nested chain by"):
        run(*refine(work, tmp_path / "out", *nested))
    run(*refine(work, tmp_path / "out", *nested, "--method", "ward"))


def test_an_error_is_printed_as_it_is(monkeypatch, capsys):
    """One line however long, and brackets are no markup."""
    message = "load: path must be a file, got [nan] in '/[/x]'. " + "Choose another. " * 10

    def fails():
        raise ValueError(message)

    monkeypatch.setattr("oskt.cli.app", fails)
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == f"error: {message}\n"


def test_help_lists_the_stages_in_order(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = run("--help").splitlines()
    names = [line.split()[1] for line in lines if line.startswith("│ ") and "--" not in line[:4]]
    stages = ["data", "teacher", "refine", "expand", "finetune", "evaluate"]
    assert [name for name in names if name in stages] == stages


def test_help_shows_the_values_of_the_usual_preset(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    output = run("teacher", "--help")
    assert "here paper-teacher's" in output
    lines = {line.split()[1]: line for line in output.splitlines() if line.startswith("│ --")}
    assert "(200)" in lines["--epochs"]
    assert "(40,70,130)" in lines["--steps"]
    assert "paper-refine" not in output
    assert "paper-teacher, of transformers paper-vit-teacher)" in output
    monkeypatch.setenv("COLUMNS", "400")
    assert (
        "(paper-refine, of transformers paper-vit-refine; nested with --chain nested, of "
        "transformers nested-vit)" in run("refine", "--help")
    )


def test_more_bad_input(work, tmp_path):
    chain = work / "refine" / "chain.safetensors"
    for arguments, message in [
        (["expand", chain, "--group", "conv1", "--out", "x"], "--group must be NAME=CHANNELS"),
        (["expand", chain, "--width", "2", "--out", "x"], r"width must be in \(0, 1\]"),
        (
            [
                "evaluate",
                work / "teacher" / "teacher.safetensors",
                "--data",
                work / "data",
                "--device",
                "gpu",
            ],
            "device must be cpu or a GPU that is here, got 'gpu'",
        ),
        ([*refine(work, tmp_path / "y"), "--steps", "a"], "--steps must be whole numbers with"),
        ([*refine(work, tmp_path / "y"), "--evaluate-every", "0"], "evaluate_every must be >= 1"),
        (
            [
                "teacher",
                "--data",
                work / "data",
                "--out",
                tmp_path / "y",
                *SMALL,
                "--multipliers",
                "2,4",
            ],
            r"ResNet: multipliers must be 3 numbers >= 1, got \(2, 4\)",
        ),
        ([*refine(work, tmp_path / "y"), "--recipe", "bot"], "--recipe must be a RefineRecipe"),
        (
            ["teacher", "--data", work / "data", "--out", "y", "--recipe", "nested"],
            r"--recipe must be a Recipe preset, got 'nested'\. Choose one of bot, paper-teacher, p",
        ),
        ([*refine(work, tmp_path / "y"), "--alpha", "-1"], "recipe: alpha must be >= 0"),
        (["evaluate", chain, "--data", work / "data"], "must have format 'oskt-model/1'"),
    ]:
        with pytest.raises(ValueError, match=message):
            CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
