"""Data sets on the command line: one notation for every command."""

from __future__ import annotations

import json

import pytest
import torch
from data_layouts import make_cuhk03, make_market, make_msmt17, write_broken
from typer.testing import CliRunner

from oskt.cli import app
from oskt.data import loader
from oskt.task import ReIDData
from oskt.train import Recipe

SMALL = ("--identities", "2", "--instances", "2", "--height", "32", "--width", "16", "--pad", "1",
         "--steps", "", "--warmup-epochs", "0", "--device", "cpu", "--workers", "0",
         "--in-planes", "4", "--layers", "1,1,1,1", "--epochs", "1")  # fmt: skip
RECIPE = Recipe(height=32, width=16, identities=2, instances=2)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def run(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def open_data(root):
    return ReIDData(root, RECIPE, corrupt=None, device="cpu")


def test_check_prints_the_report(tmp_path):
    root = make_msmt17(tmp_path / "m")
    output = run("data", "check", f"{root}?val=in")
    assert f"{root}: MSMT17 V1, val in training\n" in output
    assert "warning: MSMT17 V1, val in training has 32,621 training images, here are 5\n" in output
    assert "images: all decode" in output


def test_check_fails_on_broken_images(tmp_path):
    root = make_market(tmp_path / "m")
    path = write_broken(root / "query" / "0001_c1s1_02.jpg")
    result = invoke("data", "check", root)
    assert result.exit_code == 1
    assert str(path) in result.output


def test_training_and_evaluation_take_the_options(tmp_path):
    train = [f"{identity:04}_c{camera}_1.jpg" for identity in range(1, 9) for camera in (1, 2)]
    root = make_market(tmp_path / "m", train=train)
    output = run("teacher", "--data", f"{root}?few_shot=0.5,seed=2", "--out", tmp_path, *SMALL)
    assert "few-shot 0.5 of the training identities, seed 2" in output
    assert [line.split()[1:3] for line in output.splitlines() if line.startswith("train ")] == [
        ["4", "8"]
    ]
    cuhk03 = make_cuhk03(tmp_path / "c")
    scores = tmp_path / "scores.json"
    output = run(
        "evaluate", tmp_path / "teacher.safetensors", "--data", f"{cuhk03}?variant=detected",
        "--device", "cpu", "--json", scores,
    )  # fmt: skip
    assert "CUHK03-NP detected" in output
    assert json.loads(scores.read_text())["data"] == "CUHK03-NP detected"
    result = invoke("evaluate", tmp_path / "teacher.safetensors", "--data", cuhk03)
    assert isinstance(result.exception, ValueError)
    assert "both labeled and detected" in str(result.exception)


@pytest.mark.parametrize("command", ["teacher", "refine", "finetune", "evaluate"])
def test_help_shows_the_notation(command):
    assert "few_shot" in invoke(command, "--help").output


def test_unlabelled_images_are_the_only_ones_decoded(tmp_path, monkeypatch):
    root = make_market(tmp_path / "m", train=[f"{i:04}_c1_0" for i in range(8)])
    write_broken(root / "query" / "0001_c1_1.jpg")
    data, decoded = open_data(root), []
    load = loader.load_image
    monkeypatch.setattr(loader, "load_image", lambda *a: decoded.append(a) or load(*a))
    (few,) = data.unlabelled(3)
    assert len(decoded) == 3
    data.store()
    (same,) = data.unlabelled(3)
    assert len(decoded) == 3 + 8
    assert torch.equal(few, same)


def test_nothing_is_measured_of_one_image(tmp_path):
    root = make_market(tmp_path / "m", train=["0002_c1_0"])
    with pytest.raises(ValueError, match=r"must hold at least 2 training images, got 1\. Give im"):
        next(open_data(root).unlabelled())


def test_file_names_need_not_be_utf8(tmp_path):
    root = make_market(tmp_path / "m", train=("0002_c1_\udce9", "0002_c1_\udce8", "0007_c2_1"))
    batches = open_data(root).training(RECIPE)
    assert len(batches.fingerprint) == 16


def test_versions_of_msmt17_are_different_training_data(tmp_path):
    """Their file names are the same, so a resumed training tells them apart by the name."""
    prints = {
        open_data(make_msmt17(tmp_path / str(n), folders)).training(RECIPE).fingerprint
        for n, folders in enumerate((("train", "test"), ("mask_train_v2", "mask_test_v2")))
    }
    assert len(prints) == 2
