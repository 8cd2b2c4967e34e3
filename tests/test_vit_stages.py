"""A small vision transformer through every command, for both kinds of chain."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from test_cli import run

from oskt import students
from oskt.chain import ChainLadder, WeightChain
from oskt.files.checkpoint import load_state
from oskt.models.vit import widths
from oskt.train import RECIPES

SMALL = ["--identities", "4", "--instances", "2", "--height", "32", "--width", "16", "--pad", "1",
         "--warmup-epochs", "0", "--device", "cpu", "--workers", "0"]  # fmt: skip
HEADS = [f"blocks.{block}.attn.qkv{part}" for block in (0, 1) for part in ("", "#2")]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """data -> teacher of 12 channels, 2 blocks, 4 patches and 4 tokens."""
    folder = tmp_path_factory.mktemp("vit")
    run(
        "data", "make", folder / "data", "--train-ids", 8, "--test-ids", 4, "--images-per-id", 4,
        "--cameras", 2, "--height", 32, "--width", 16, "--workers", 1,
    )  # fmt: skip
    run(
        "teacher", "--model", "vit", "--data", folder / "data", "--out", folder / "teacher",
        "--dim", 12, "--heads", 2, "--depth", 2, "--patch", 8, "--epochs", 2,
        "--evaluate-every", 1, *SMALL,
    )  # fmt: skip
    return folder


def as_preset(meta, name):
    """Whether a file was trained by a preset, but for what the tests make small."""
    small = {flag.strip("-").replace("-", "_") for flag in SMALL if str(flag).startswith("--")}
    preset = RECIPES[name].to_dict()
    return {
        field for field, value in meta["recipe"].items() if value != preset.get(field)
    } <= small | {"epochs"}


def refine(folder, kind):
    out = folder / kind
    if not out.is_dir():
        run(
            "refine", "--data", folder / "data", "--out", out, "--chain", kind,
            "--teacher", folder / "teacher" / "teacher.safetensors", "--chain-width", "0.5",
            "--epochs", "2", "--evaluate-every", "1", *SMALL,
        )  # fmt: skip
    return out / "chain.safetensors"


def test_the_teacher_knows_its_recipe_and_its_image(work):
    _, meta = load_state(work / "teacher" / "teacher.safetensors")
    assert (meta["spec"]["family"], meta["spec"]["image"]) == ("vit", [32, 16])
    assert as_preset(meta, "paper-vit-teacher")
    model, _ = students.load_model(work / "teacher" / "teacher.safetensors")
    assert model.blocks[1].drop == pytest.approx(0.1)
    assert model(torch.zeros(2, 3, 32, 16)).shape == (2, 24)


def test_a_transformer_has_a_ladder_of_nested_chains_unless_told_otherwise(work, tmp_path):
    run(
        "refine", "--data", work / "data", "--out", tmp_path, "--chain", "nested",
        "--teacher", work / "teacher" / "teacher.safetensors", "--epochs", "1", *SMALL,
    )  # fmt: skip
    ladder = ChainLadder.load(tmp_path / "chain.safetensors")
    ends = [ladder.resolve(share) for share in (1 / 8, 1 / 4, 1 / 2, 1)]
    assert [(c.widths, c.groups) for c in ladder.chains] == list(itertools.pairwise(ends))


@pytest.mark.parametrize("kind", ["oskt", "nested"])
def test_students_of_every_command(work, tmp_path, kind):
    path = refine(work, kind)
    records = [json.loads(line) for line in (path.parent / "log.jsonl").read_text().splitlines()]
    assert any("teacher/mAP" in r and "student/mAP" in r for r in records)
    chain = WeightChain.load(path)
    assert chain.kind == kind
    assert as_preset(chain.meta, {"oskt": "paper-vit-refine", "nested": "nested-vit"}[kind])
    assert chain.widths["patch_embed.proj"] == 6
    frozen = {name for name, group in chain.coupling.groups.items() if group.frozen}
    assert frozen == {"classifier", "patch_embed.proj.columns"}
    assert chain.verify(quiet=True) < 1e-10  # float64, 4 layers: 1e-15 each, times norms' scale
    output = run(
        "expand", path, "--width", 0.75, "--out", tmp_path / "s.safetensors",
        "--recalibrate", work / "data", "--device", "cpu",
    )  # fmt: skip
    assert "not recalibrated: the network reads no running statistics\n" in output
    run(
        "finetune", "--data", work / "data", "--out", tmp_path / "tuned", "--epochs", 1,
        "--student", tmp_path / "s.safetensors", *SMALL,
    )  # fmt: skip
    tuned = tmp_path / "tuned" / "student.safetensors"
    model, meta = students.load_model(tuned)
    assert as_preset(meta, "paper-vit-student")
    assert meta["widths"] == widths(9, 2) | dict.fromkeys(HEADS, 8)  # two heads of 4 channels
    assert model.norm.weight.shape == (9,)
    assert "mAP:" in run("evaluate", tuned, "--data", work / "data", "--device", "cpu")


def test_recipes_follow_the_network_unless_one_is_chosen(work, tmp_path):
    run(
        "refine", "--data", work / "data", "--out", tmp_path / "on", "--chain", "nested",
        "--from-chain", refine(work, "nested"), "--epochs", "1", *SMALL,
    )  # fmt: skip
    assert as_preset(WeightChain.load(tmp_path / "on" / "chain.safetensors").meta, "nested-vit")
    run(
        "finetune", "--data", work / "data", "--out", tmp_path / "chosen", "--epochs", 1,
        "--student", work / "teacher" / "teacher.safetensors", "--recipe", "bot", "--steps", "",
        *SMALL,
    )  # fmt: skip
    _, meta = load_state(tmp_path / "chosen" / "student.safetensors")
    assert (meta["recipe"]["optimizer"], meta["recipe"]["triplet"]) == ("adam", "hard")


def test_a_nested_chain_at_full_width_is_its_teacher(work):
    chain = WeightChain.load(refine(work, "nested"))
    teacher, _ = students.load_model(work / "nested" / "teacher.safetensors")
    images = torch.randn(2, 3, 32, 16)
    student = chain.student(width=1.0)
    torch.testing.assert_close(student(images), teacher(images), rtol=0, atol=0)


def test_a_teacher_starts_from_a_published_file(work, tmp_path):
    state, _ = load_state(work / "teacher" / "teacher.safetensors")
    torch.save({f"module.base.{n}": t for n, t in state.items()}, tmp_path / "published.pth")
    output = run(
        "teacher", "--model", "vit", "--data", work / "data", "--out", tmp_path / "teacher",
        "--dim", 12, "--heads", 2, "--depth", 2, "--patch", 8, "--epochs", 1, "--parts", 3,
        "--pretrained", tmp_path / "published.pth", "--pixels", "half", *SMALL,
    )  # fmt: skip
    assert "published.pth: 100.0% of the tensors" in " ".join(output.split())
