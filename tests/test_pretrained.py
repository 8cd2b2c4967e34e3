"""Foreign checkpoints: every container and prefix users hold, and clear words for bad files."""

from __future__ import annotations

import argparse
import io
from collections import Counter

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

from oskt.models.pretrained import canonical_name, load_pretrained, read_state_dict
from oskt.models.resnet import ResNet


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )


class SmallResNet(nn.Module):
    """Names as torchvision's, BNNeck and classifier beside them as in oskt's ResNet."""

    def __init__(self, classes: int = 5, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Block(width, 2 * width), Block(2 * width, 2 * width))
        self.bottleneck = nn.BatchNorm1d(2 * width)
        self.classifier = nn.Linear(2 * width, classes, bias=False)


def random_weights(classes: int = 5, width: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    state = SmallResNet(classes, width).state_dict()
    return {
        name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in state.items()
    }


def backbone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in weights.items() if not k.startswith(("bottleneck", "classifier"))}


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


def torchvision() -> dict:
    """The 2016 file: no num_batches_tracked, an ImageNet classifier."""
    state = backbone(random_weights())
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    return {**old, "fc.weight": torch.zeros(1000, 8), "fc.bias": torch.zeros(1000)}


def moco() -> dict:
    query = prefixed(backbone(random_weights()), "module.encoder_q.")
    key = {name.replace("_q.", "_k."): value * 0 for name, value in query.items()}
    head = {"module.encoder_q.fc.0.weight": torch.zeros(8, 8), "module.queue": torch.zeros(8, 16)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": {**key, **query, **head}}


def bag_of_tricks() -> dict:
    weights = random_weights()
    heads = {k: v for k, v in weights.items() if k.startswith(("bottleneck", "classifier"))}
    return {**prefixed(backbone(weights), "base."), **heads}


def fast_reid() -> dict:
    weights = random_weights()
    neck = {
        k.replace("bottleneck.", "heads.bottleneck.0."): v
        for k, v in weights.items()
        if k.startswith("bottleneck.")
    }
    model = {
        "pixel_mean": torch.zeros(1, 3, 1, 1),
        **prefixed(backbone(weights), "backbone."),
        **neck,
        "heads.weight": torch.zeros(751, 8),
    }
    scheduler = {"milestones": Counter([40, 90]), "last_epoch": 119}
    return {"model": model, "optimizer": {"state": {}}, "scheduler": scheduler, "epoch": 119}


def torchreid() -> dict:
    weights = prefixed({**random_weights(), "classifier.weight": torch.zeros(751, 8)}, "module.")
    return {"state_dict": weights, "epoch": 60, "rank1": np.float64(0.94)}


FILES = {
    "torchvision": torchvision,
    "torchvision_module": lambda: prefixed(torchvision(), "module."),
    "luperson_nl": lambda: backbone(random_weights()),
    "moco": moco,
    "bag_of_tricks": bag_of_tricks,
    "bag_of_tricks_parallel": lambda: prefixed(bag_of_tricks(), "module."),
    "fast_reid": fast_reid,
    "torchreid": torchreid,
    "dino": lambda: {
        "student": prefixed(backbone(random_weights()), "module.backbone.") | {"x": torch.ones(1)},
        "teacher": prefixed(backbone(random_weights()), "backbone."),
    },
    "ema": lambda: {"ema": random_weights(), "step": 7},
    "clip_reid": lambda: prefixed(backbone(random_weights()), "image_encoder."),
    "nested": lambda: {"model": {"state_dict": random_weights()}},
}


def assert_loaded(module: nn.Module, prefix: str = "") -> None:
    expected, found = backbone(random_weights()), module.state_dict()
    for name, value in expected.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(found[prefix + name], value), name


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", FILES)
def test_every_known_file_loads_whole(tmp_path, kind, zipped):
    path = tmp_path / f"{kind}.pth.tar"
    torch.save(FILES[kind](), path, _use_new_zipfile_serialization=zipped)
    module = SmallResNet()
    classifier = module.classifier.weight.clone()
    report = load_pretrained(module, path)
    assert_loaded(module)
    assert report.tensor_coverage == report.element_coverage == 1
    assert not report.missing
    assert not report.mismatched
    assert torch.equal(module.classifier.weight, classifier)


@pytest.mark.parametrize("kind", ["bag_of_tricks", "fast_reid", "torchreid"])
def test_the_neck_travels(tmp_path, kind):
    torch.save(FILES[kind](), tmp_path / "a.pth")
    module = SmallResNet()
    load_pretrained(module, tmp_path / "a.pth")
    assert torch.equal(module.bottleneck.weight, random_weights()["bottleneck.weight"])


def test_safetensors(tmp_path):
    save_file(random_weights(), tmp_path / "a.safetensors")
    module = SmallResNet()
    assert load_pretrained(module, tmp_path / "a.safetensors").tensor_coverage == 1
    assert_loaded(module)


def test_prefixes_of_the_module_do_not_matter(tmp_path):
    torch.save(backbone(random_weights()), tmp_path / "a.pth")
    module = nn.ModuleDict({"backbone": SmallResNet()})
    load_pretrained(module, tmp_path / "a.pth")
    assert_loaded(module, "backbone.")


def test_the_classifier_loads_on_request_where_it_fits(tmp_path):
    torch.save(random_weights(), tmp_path / "a.pth")
    module = SmallResNet()
    load_pretrained(module, tmp_path / "a.pth", classifier=True)
    assert torch.equal(module.classifier.weight, random_weights()["classifier.weight"])
    other = SmallResNet(classes=9)
    report = load_pretrained(other, tmp_path / "a.pth", classifier=True)
    assert "classifier.weight" in report.ignored


def test_the_plainer_of_two_equal_names_wins(tmp_path):
    weights = backbone(random_weights())
    wrong = {name: value * 0 for name, value in prefixed(weights, "base.").items()}
    torch.save({**wrong, **weights}, tmp_path / "a.pth")
    module = SmallResNet()
    report = load_pretrained(module, tmp_path / "a.pth")
    assert_loaded(module)
    assert set(wrong) == set(report.ignored)


def test_half_precision_files_load_into_float32(tmp_path):
    halves = {k: v.half() if v.is_floating_point() else v for k, v in random_weights().items()}
    torch.save(halves, tmp_path / "a.pth")
    module = SmallResNet()
    load_pretrained(module, tmp_path / "a.pth")
    assert module.conv1.weight.dtype == torch.float32
    assert torch.equal(module.conv1.weight, halves["conv1.weight"].float())


def test_the_report_accounts_for_every_tensor(tmp_path):
    weights = backbone(random_weights())
    weights["layer1.0.conv1.weight"] = torch.zeros(9, 4, 3, 3)
    del weights["layer1.1.bn1.bias"]
    torch.save({**weights, "queue": torch.zeros(3)}, tmp_path / "a.pth")
    module = SmallResNet()
    report = load_pretrained(module, tmp_path / "a.pth", min_coverage=0)
    assert report.mismatched == (("layer1.0.conv1.weight", (9, 4, 3, 3), (8, 4, 3, 3)),)
    assert report.missing == ("layer1.1.bn1.bias",)
    assert report.ignored == ("queue",)
    # The two tensors that are not loaded hold 8 * 4 * 9 = 288 and 8 elements.
    counted = {k: v for k, v in backbone(module.state_dict()).items() if "num_batches" not in k}
    elements = sum(v.numel() for v in counted.values())
    assert report.tensor_coverage == (len(counted) - 2) / len(counted)
    assert report.element_coverage == (elements - 288 - 8) / elements
    assert "1 of another shape, 1 missing, 1 of the file ignored" in str(report)
    console = Console(width=160, file=io.StringIO())
    console.print(report.table())
    printed = console.file.getvalue()
    assert "layer1.0.conv1.weight 9x4x3x3 for 8x4x3x3" in printed
    assert "and 22 more" in printed


def test_low_coverage_fails_with_names_and_leaves_the_module_alone(tmp_path):
    torch.save(random_weights(width=8), tmp_path / "wide.pth")
    module = SmallResNet(width=4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"coverage must be at least 90%, got wide\.pth: 0\.0%"
    ) as e:
        load_pretrained(module, tmp_path / "wide.pth")
    assert "other shapes: " in str(e.value)
    assert "is 8, needs 4" in str(e.value)
    assert "Build the module with the architecture and width of the file" in str(e.value)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_unknown_names_fail_with_both_sides(tmp_path):
    torch.save({"stem.weight": torch.zeros(3), "stages.0.bias": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"missing from the file: conv1\.weight") as error:
        load_pretrained(SmallResNet(), tmp_path / "a.pth")
    assert "not in the module: stem.weight, stages.0.bias" in str(error.value)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    weights = random_weights()
    weights["bn1.running_var"][0] = torch.nan
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"must be finite, got NaN or Inf in bn1\.running_var"):
        load_pretrained(SmallResNet(), tmp_path / "a.pth")


def test_pickles_are_refused_until_allowed(tmp_path):
    state = {"state_dict": random_weights(), "args": argparse.Namespace(lr=0.1)}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"tensors and plain values only, got argparse.Namespace"):
        load_pretrained(SmallResNet(), tmp_path / "a.pth")
    module = SmallResNet()
    assert load_pretrained(module, tmp_path / "a.pth", allow_pickle=True).tensor_coverage == 1
    assert_loaded(module)


def test_a_pickled_module_needs_permission(tmp_path):
    torch.save({"model": SmallResNet()}, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match="if you trust its source, load it in Python with allow_pickle=True"
    ):
        load_pretrained(SmallResNet(), tmp_path / "a.pth")
    assert load_pretrained(SmallResNet(), tmp_path / "a.pth", allow_pickle=True).matched


def test_reading_runs_no_code_of_the_file(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"state_dict": random_weights(), "trap": Trap()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="tensors and plain values only"):
        load_pretrained(SmallResNet(), tmp_path / "a.pth")
    assert not (tmp_path / "sprung").exists()


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match="path must be an existing file, got"):
            load_pretrained(SmallResNet(), path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
def test_truncated_files(tmp_path, suffix, zipped, share):
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        torch.save(random_weights(), path, _use_new_zipfile_serialization=zipped)
    else:
        save_file(random_weights(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"must be a whole checkpoint .* that cannot be read"):
        load_pretrained(SmallResNet(), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must not be empty"),
        (b"<!DOCTYPE html><title>Quota exceeded</title>", "must be a checkpoint, got a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "got a Git LFS pointer"),
        (b"not a checkpoint at all", "must be a whole checkpoint"),
        (bytes(range(256)) * 40, "must be a whole checkpoint"),
    ],
)
def test_files_of_another_kind(tmp_path, content, message):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_pretrained(SmallResNet(), tmp_path / "a.pth")


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], torch.ones(3), {"model": {"lr": 0.1}}])
def test_files_without_named_tensors(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="must hold named tensors, directly or under"):
        read_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("conv1.weight", "conv1.weight"),
        ("module.module.base.bn1.bias", "bn1.bias"),
        ("module.encoder_q.layer1.0.bn1.bias", "layer1.0.bn1.bias"),
        ("image_encoder.conv1.weight", "conv1.weight"),
        ("heads.bottleneck.0.running_mean", "bottleneck.running_mean"),
        ("module.encoder_k.conv1.weight", "encoder_k.conv1.weight"),
        ("baseline.conv1.weight", "baseline.conv1.weight"),
    ],
)
def test_canonical_names(name, canonical):
    assert canonical_name(name) == canonical


def test_our_residual_network_reads_torchvision_and_bag_of_tricks_names(tmp_path):
    source = ResNet(50, 4, layers=(1, 1, 1, 1), num_classes=3)
    weights = source.state_dict()
    torch.save({"state_dict": prefixed(weights, "module.base.")}, tmp_path / "a.pth")
    model = ResNet(50, 4, layers=(1, 1, 1, 1), num_classes=7)
    report = load_pretrained(model, tmp_path / "a.pth")
    assert report.tensor_coverage == report.element_coverage == 1
    assert report.ignored == ("module.base.classifier.weight",)
    images = torch.rand(2, 3, 32, 16)
    assert torch.equal(model.eval()(images), source.eval()(images))
