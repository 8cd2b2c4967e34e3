"""Omni-scale networks, and the parts that they share with residual ones: IBN and the head."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from oskt import models
from oskt.chain import WeightChain
from oskt.chain.verification import TOLERANCE
from oskt.models.layers import IBN
from oskt.models.osnet import OSNet
from oskt.models.pretrained import load_pretrained
from oskt.models.resnet import ResNet

IMAGES = torch.zeros(2, 3, 64, 32)


def backbone_parameters(model):
    return sum(p.numel() for n, p in model.named_parameters() if not n.startswith(model.head))


@pytest.mark.parametrize(
    ("width", "torchreid"),
    [(1.0, 2_193_616), (0.25, 203_568)],
)
def test_sizes_are_the_published_ones(width, torchreid):
    """torchreid reports the shared gate once for each of its four uses."""
    with torch.device("meta"):
        model = OSNet(width, num_classes=11)
    gates = sum(p.numel() for n, p in model.named_parameters() if ".gate." in n)
    assert backbone_parameters(model) == torchreid - 3 * gates


def torchreid_names(stages=(2, 2, 1)):
    """The module paths of torchreid's checkpoint, written down from its layout."""
    lite = ["conv1", "conv2", "bn"]
    block = ["conv1.conv", "conv1.bn", "gate.fc1", "gate.fc2", "conv3.conv", "conv3.bn"]
    block += [f"conv2a.{part}" for part in lite]
    block += [
        f"conv2{s}.{i}.{part}" for s, n in zip("bcd", (2, 3, 4)) for i in range(n) for part in lite
    ]
    names = {"conv1.conv", "conv1.bn", "conv5.conv", "conv5.bn", "fc.0", "fc.1", "classifier"}
    for stage in (2, 3, 4):
        names |= {f"conv{stage}.{i}.{part}" for i in (0, 1) for part in block}
        names |= {f"conv{stage}.0.downsample.{part}" for part in ("conv", "bn")}
        if stage < 4:
            names |= {f"conv{stage}.2.0.{part}" for part in ("conv", "bn")}
    return names


def test_names_are_torchreids():
    with torch.device("meta"):
        plain, ibn = OSNet(0.25, 11), OSNet(0.25, 11, ibn=True)
    names = {name.rpartition(".")[0] for name in plain.state_dict()}
    assert names - {"bottleneck"} == torchreid_names()
    extra = {name.rpartition(".")[0] for name in ibn.state_dict()} - names
    assert extra == {"conv2.0.IN", "conv2.1.IN"}
    assert "conv1.bn.running_mean" not in ibn.state_dict()


def test_a_torchreid_file_loads_whole_with_its_fc(tmp_path):
    source = OSNet(1 / 16, 11, feature_dim=24)
    for tensor in source.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor))
    state = {f"module.{n}": t for n, t in source.state_dict().items() if "bottleneck" not in n}
    state["module.classifier.bias"] = torch.zeros(11)
    torch.save({"state_dict": state, "epoch": 150}, tmp_path / "osnet.pth.tar")
    model = OSNet(1 / 16, 5, feature_dim=24)
    report = load_pretrained(model, tmp_path / "osnet.pth.tar")
    assert report.tensor_coverage == report.element_coverage == 1
    assert torch.equal(model.fc[0].weight, source.fc[0].weight)
    images = torch.randn(2, 3, 64, 32)
    model.eval()
    # A fresh BNNeck divides by sqrt(1 + eps) alone: directions are those of the feature.
    torch.testing.assert_close(model(images) * (1 + 1e-5) ** 0.5, model.feature(images))


@pytest.mark.parametrize("options", [{}, {"ibn": True}, {"pooling": "gem"}, {"feature_dim": 0}])
def test_contract_and_spec(options):
    model = OSNet(1 / 16, 5, **{"feature_dim": 24, **options})
    feature, logits = model(torch.randn(2, 3, 64, 32))
    size = model.spec["feature_dim"] or 32
    assert (feature.shape, logits.shape) == ((2, size), (2, 5))
    assert model.eval()(torch.randn(2, 3, 64, 32)).shape == (2, size)
    again = models.build(model.spec)
    again.load_state_dict(model.state_dict())
    assert not again.bottleneck.bias.requires_grad


def test_the_output_stride_is_16():
    assert OSNet(1 / 16).conv4(torch.zeros(1, 24, 4, 2)).shape[2:] == (4, 2)
    sizes = []
    model = OSNet(1 / 16).eval()
    model.conv5.register_forward_hook(lambda m, i, out: sizes.append(tuple(out.shape[2:])))
    model(torch.zeros(1, 3, 256, 128))
    assert sizes == [(16, 8)]


def test_ibn_normalises_its_first_half_per_image():
    norm = IBN(5)
    assert (norm.IN.num_features, norm.BN.num_features) == (2, 3)
    x = torch.randn(4, 5, 6, 6) * torch.tensor([1.0, 9.0, 0.1, 5.0]).view(4, 1, 1, 1)
    out = norm(x)
    # biased variance with eps 1e-5 of inputs of deviation 0.1 at least: 1e-3 below 1 at most
    torch.testing.assert_close(
        out[:, :2].std((2, 3), correction=0), torch.ones(4, 2), atol=1e-3, rtol=0
    )
    expected = nn.functional.batch_norm(x[:, 2:], None, None, training=True)
    torch.testing.assert_close(out[:, 2:], expected)


def test_ibn_networks_have_the_usual_names():
    with torch.device("meta"):
        model = ResNet(50, ibn=True)
    names = {n.partition(".bn1.")[2] for n in model.state_dict() if ".bn1." in n}
    assert {"IN.weight", "IN.bias", "BN.running_var"} <= names
    assert isinstance(model.layer3[5].bn1, IBN)
    assert isinstance(model.layer4[0].bn1, nn.BatchNorm2d)
    assert isinstance(model.bn1, nn.BatchNorm2d)
    assert models.build(model.spec).spec == model.spec


@pytest.mark.parametrize("kind", ["oskt", "nested"])
@pytest.mark.parametrize(
    "model",
    [
        OSNet(1 / 8, 5, feature_dim=24, ibn=True),  # has all that the one of batch norms has
        ResNet(50, 4, num_classes=5, layers=(1, 1, 1, 1), ibn=True),
        ResNet(18, 4, num_classes=5, layers=(1, 1, 1, 1), ibn=True),
    ],
    ids=["osnet-ibn", "resnet50-ibn", "resnet18-ibn"],
)
def test_chains(model, kind):
    chain = WeightChain.from_teacher(model, IMAGES, kind, 1 / 2)
    assert not chain.coupling.opaque
    frozen = {g.name: g.frozen for g in chain.coupling.groups.values() if g.frozen}
    assert set(frozen) <= {"classifier", "conv1.columns", "conv1.conv.columns"} | {
        n for n, reason in frozen.items() if chain.coupling.groups[n].size == 1
    }
    assert chain.verify(quiet=True) < TOLERANCE
    student = chain.student(width=1 / 2).train()
    feature, logits = student(torch.randn(4, 3, 64, 32))
    (feature.square().mean() + logits.square().mean()).backward()
    assert logits.shape == (4, 5)
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OSNet(0.001), r"OSNet: width must be at least 1/64, got 0\.001\. Published"),
        (lambda: OSNet(feature_dim=-1), r"OSNet: feature_dim must be >= 0, got -1\. 512 is"),
        (lambda: OSNet(pooling="max"), r"OSNet: pooling must be 'avg' or 'gem', got 'max'\. Choo"),
        (lambda: ResNet(18, pooling="max"), r"ResNet: pooling must be 'avg' or 'gem', got 'max'"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
