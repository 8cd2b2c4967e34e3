"""The demo, small enough for a test: every stage, and what a second run does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from oskt import demo
from oskt.chain import ChainLadder
from oskt.report import load_report

NETWORKS = {
    "resnet": {"family": "resnet", "depth": 50, "layers": (1, 1, 1, 1), "in_planes": 8},
    "vit": {"family": "vit", "dim": 16, "depth": 2, "heads": 2, "patch": 16, "image": (64, 32)},
}


@pytest.fixture
def tiny(monkeypatch):
    short = {"epochs": 1, "identities": 4, "instances": 2, "warmup_epochs": 0}
    for model, network in NETWORKS.items():
        laptop = demo.SCALES[model]["laptop"]
        scale = replace(
            laptop,
            data={"train_ids": 6, "test_ids": 6, "images_per_id": 4, "cameras": 2},
            network=network,
            teacher=replace(laptop.teacher, **short),
            nested=replace(laptop.nested, **short),
            published=replace(laptop.published, **short),
            student=replace(laptop.student, **short),
            scratch=replace(laptop.scratch, **short),
            widths=(("1/4", 1 / 4), ("1/2", 1 / 2)),
            finetuned=("1/4", "1/2"),
            from_scratch=("1/4",),
        )
        monkeypatch.setitem(demo.SCALES[model], "laptop", scale)


def test_the_demo_runs_and_goes_on_where_it_stopped(tiny, tmp_path, capsys):
    report = demo.run_demo(tmp_path / "demo", device="cpu")
    assert report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    rows = load_report(tmp_path / "demo").rows
    assert [(row.model, row.series) for row in rows] == [
        *((name, "teacher") for name in ("teacher", "teacher, nested", "teacher, published")),
        *((f"student {w}", s) for w in ("1/4", "1/2") for s in ("at_once", "published")),
        *((f"student {w}", "finetuned") for w in ("1/4", "1/2")),
        ("student 1/4", "scratch"),
    ]
    ladders = (ChainLadder.load(tmp_path / "demo" / kind / "chain.safetensors")
               for kind in ("nested", "published"))  # fmt: skip
    kinds = [[chain.kind for chain in ladder.chains] for ladder in ladders]
    assert kinds == [["nested", "nested"], ["oskt"]]
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    demo.run_demo(tmp_path / "demo", device="cpu")
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    again = load_report(tmp_path / "demo").rows
    assert [(row.mAP, row.rank1) for row in again] == [(row.mAP, row.rank1) for row in rows]
    with pytest.raises(
        ValueError, match=r"^demo: out must be a new folder or hold a demo of the s"
    ):
        demo.run_demo(tmp_path / "demo", device="cpu", seed=1)


def test_the_demo_of_a_transformer(tiny, tmp_path, capsys):
    demo.run_demo(tmp_path / "demo", device="cpu", model="vit")
    rows = load_report(tmp_path / "demo").rows
    assert len(rows) == 3 + 2 * 2 + 2 + 1
    assert all(0 < row.mAP <= 1 for row in rows)
    for kind in ("nested", "published"):
        ladder = ChainLadder.load(tmp_path / "demo" / kind / "chain.safetensors")
        assert ladder.widths["patch_embed.proj"] == 4
    shown = capsys.readouterr().out
    assert "norm statistics" not in shown  # layer norms have none
    with pytest.raises(ValueError, match=r"^demo: scale must be laptop for model vit, got 'full'"):
        demo.run_demo(tmp_path / "other", model="vit", scale="full")
