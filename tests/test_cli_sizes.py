"""`oskt widths` and the size flags that commands share."""

from __future__ import annotations

import copy
import io
import json

import nets
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from oskt import widths
from oskt.chain import ChainLadder, WeightChain
from oskt.cli import app, sizes, tables
from oskt.cli.flags import SizeOptions
from oskt.coupling.grouping import trace_coupling
from oskt.data import make_pedestrians
from oskt.files.checkpoint import load_state
from oskt.models.resnet import ResNet
from oskt.models.vit import VisionTransformer
from oskt.widths import latency

IMAGES = torch.zeros(2, 3, 32, 16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(chain, its file)."""
    torch.manual_seed(0)
    teacher = nets.varied(ResNet(50, in_planes=16, num_classes=5, layers=(1, 1, 1, 1)))
    chain = WeightChain.from_teacher(teacher, IMAGES, "nested", width=1 / 4, check=False)
    path = tmp_path_factory.mktemp("sizes") / "chain.safetensors"
    chain.save(path)
    return chain, path


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_table_has_presets_that_fit_and_eighths(saved):
    chain, path = saved
    output = run("widths", path)
    # a teacher of 16 planes has S1 to S3; S3 is its full width, which is not listed twice
    for name in ("res50-s1", "res50-s2", "res50-s3", "width 0.125", "width 0.875"):
        assert name in output
    assert "res50-s4" not in output
    assert "width 1" not in output
    assert f"{chain.costs(chain.groups)[0]:,}" in output
    rows = {line.split("│")[1].strip(): line for line in output.splitlines() if "│" in line}
    assert "narrower than trained" in rows["width 0.125"]
    assert "narrower than trained" not in rows["width 0.375"]


def test_chains_of_other_networks_have_shares_alone(tmp_path):
    chain = WeightChain.from_teacher(ResNet(18, 8), IMAGES, "nested", check=False)
    output = str([label for label, _ in tables._sizes(ChainLadder([chain]))])
    assert output.count("width") == 8
    assert "vit" not in output


def test_published_chains_stand_under_their_own_widths():
    """Below the narrowest chain there is no student: no share of a row is one that nobody gets."""
    ladder = ChainLadder.from_teacher(ResNet(18, 24), IMAGES, (1 / 3, 1 / 2), check=False)
    screen = io.StringIO()
    Console(width=120, file=screen).print(tables.size_table(ladder))
    rows = {line.split("│")[1].strip(): line for line in screen.getvalue().splitlines()[3:-1]}
    eighths = ["width 0.375", "width 0.5", "width 0.625", "width 0.75", "width 0.875", "width 1"]
    assert list(rows) == ["width 0.333", *eighths]
    trained = [label for label, row in rows.items() if "as trained" in row]
    assert trained == ["width 0.333", "width 0.5"]


def test_a_budget_gives_widths(saved):
    chain, path = saved
    sizes = chain.resolve(params=60_000, macs=8e5)
    parameters, macs = chain.costs(sizes)
    output = run("widths", path, "--params", 60_000, "--macs", 8e5, "--all")
    assert f"{parameters:,} parameters, {macs / 1e6:,.1f} M MACs, " in output
    assert f"{chain.memory(sizes) / 1e6:,.2f} MB" in output
    rows = [line.split("│")[1:4] for line in output.splitlines() if "│" in line]
    shown = {name.strip(): (int(width), int(size)) for name, width, size in rows}
    assert shown == {g: (n, chain.groups[g]) for g, n in sizes.items()}
    assert "conv1" not in run("widths", path, "--params", 60_000)
    uneven = chain.resolve(memory_mb=0.3, shape="sensitivity")
    output = run("widths", path, "--memory-mb", 0.3, "--shape", "sensitivity")
    assert f"{chain.costs(uneven)[0]:,} parameters" in output


def test_expand_takes_every_limit_and_stores_what_it_measured(saved, tmp_path):
    chain, path = saved
    out = tmp_path / "student.safetensors"
    output = run(
        "expand", path, "--out", out, "--memory-mb", 0.3, "--latency-ms", 1e6, "--device", "cpu",
        "--shape", "sensitivity",
    )  # fmt: skip
    assert "runs of 1x3x32x16, torch" in output
    meta = load_state(out)[1]
    assert meta["widths"] == chain.resolve(memory_mb=0.3, macs=1e12, shape="sensitivity")
    assert meta["latency"]["median_ms"] > 0
    assert json.loads(json.dumps(meta["latency"]))["images"] == [1, 3, 32, 16]
    run("expand", path, "--out", out, "--params", 60_000)
    meta = load_state(out)[1]
    assert meta["widths"] == chain.resolve(params=60_000)
    assert "latency" not in meta


def test_limits_hold_for_images_of_the_size_that_is_asked_for(saved, tmp_path):
    chain, path = saved
    out = tmp_path / "student.safetensors"
    run("expand", path, "--out", out, "--macs", 2e6, "--height", 64, "--latency-ms", 1e6,
        "--device", "cpu")  # fmt: skip
    meta = load_state(out)[1]
    larger = trace_coupling(chain.template, torch.zeros(2, 3, 64, 16))
    assert meta["latency"]["images"] == [1, 3, 64, 16]
    assert 0.95 * 2e6 < widths.macs(larger, meta["widths"]) <= 2e6
    chain.meta["recipe"] = {"height": 64}
    assert sizes.ask(ChainLadder([chain]), SizeOptions(macs=2e6)).widths == meta["widths"]
    del chain.meta["recipe"]


def test_limits_for_images_of_another_size_need_the_network(saved):
    chain = copy.copy(saved[0])
    chain.template = None
    ladder = ChainLadder([chain])
    assert sizes.ask(ladder, SizeOptions(params=6e4), height=64).widths
    with pytest.raises(ValueError, match=r"images must be 32 x 16 .*, as traced, .* got 64 x 16\."):
        sizes.ask(ladder, SizeOptions(macs=8e5), height=64)


def test_measured_shapes_read_images(saved, tmp_path):
    _, path = saved
    make_pedestrians(
        tmp_path / "data", train_ids=4, test_ids=2, images_per_id=4, cameras=2, height=32, width=16,
        workers=1,
    )  # fmt: skip
    output = run(
        "expand", path, "--out", tmp_path / "s", "--params", 60_000, "--shape", "measured",
        "--shape-data", tmp_path / "data", "--height", 32, "--image-width", 16, "--device", "cpu",
    )  # fmt: skip
    parameters = int(output.split(" parameters")[0].split()[-1].replace(",", ""))
    assert 0.95 * 60_000 < parameters <= 60_000
    assert load_state(tmp_path / "s")[1]["widths"] != saved[0].resolve(params=60_000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--shape", "measured", "--params", "9e4"],
            "--shape-data must come with --shape measured",
        ),
        (["--shape-data", "x", "--params", "9e4"], "got --shape uniform and --shape-data x"),
        (["--params", "1"], "budget must allow the smallest student, 229 parameters"),
        (["--group", "conv1"], "--group must be NAME=CHANNELS, got 'conv1'"),
        (["--group", "conv1=4", "--group", "conv1=5"], "give conv1 one width, got 4 and 5"),
        (["--params", "9e4", "--width", "0.5"], "must be given, got 2 of them"),
        (["--width", "0.5", "--runtime", "onnxruntime"], "--runtime must come with --latency-ms"),
        (["--latency-ms", "5", "--device", "gpu"], "device must be cpu or a GPU that is here"),
    ],
)
def test_wrong_flags(saved, arguments, message):
    with pytest.raises(ValueError, match=message):
        run("widths", saved[1], *arguments)


def test_flags_without_effect_are_refused(saved, tmp_path):
    _, path = saved
    with pytest.raises(ValueError, match=r"^widths: --all must come with a size, got it alone\."):
        run("widths", path, "--all")
    with pytest.raises(ValueError, match=r"^expand: --height, --image-width must come with --reca"):
        run("expand", path, "--out", tmp_path / "s", "--width", 0.5, "--height", 64)
    with pytest.raises(ValueError, match=r"^--group must be NAME=CHANNELS, got 'conv1=²'"):
        run("widths", path, "--group", "conv1=²")


def test_images_are_of_the_size_that_a_network_was_trained_on_or_takes():
    network = VisionTransformer(12, 1, 2, patch=8, image=(32, 16))
    assert sizes.model_size(network, {"recipe": {"height": 64, "width": 48}}) == (64, 48)
    assert sizes.model_size(network, {}) == (32, 16)
    assert sizes.model_size(ResNet(18, in_planes=4), {}) == (256, 128)


def test_onnx_runs_are_timed_as_deployed(saved, monkeypatch):
    pytest.importorskip("onnxruntime")
    chain, _ = saved
    monkeypatch.setattr(latency, "RUNS", 3)
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    size = SizeOptions(latency_ms=1e6, runtime="onnxruntime")
    answer = sizes.ask(ChainLadder([chain]), size)
    assert answer.latency.runtime.startswith("onnxruntime ")
    assert answer.latency.runs == 3
    assert answer.widths == chain.groups
    assert answer.measured()["latency"]["images"] == (1, 3, 32, 16)
