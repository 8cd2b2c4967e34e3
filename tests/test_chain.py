"""The weight chain: from a teacher, to a file and back, to students of any width."""

from __future__ import annotations

import json

import nets
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from oskt.chain import ChainLadder, WeightChain
from oskt.coupling.clustering import ROWS
from oskt.models.resnet import ResNet
from oskt.students import replace_classifier

IMAGES = torch.zeros(2, 3, 64, 32)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    model = ResNet(50, in_planes=8, num_classes=7, layers=(1, 1, 1, 1))
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
            if name.endswith(("bias", "mean")):
                tensor.sub_(1.0)
    return model


@pytest.fixture(scope="module")
def chain(teacher):
    return WeightChain.from_teacher(teacher, IMAGES, width=1 / 4)


def rows_of(chain, name):
    from oskt.chain import expansion

    layouts = chain.coupling.layouts_of(("weight",), chain.absent)
    return expansion.split(chain.weights, {t.name: chain.source_shape(t) for t in layouts})[name]


def test_chain_rows_are_means_of_raw_teacher_rows(teacher, chain):
    weight = teacher.layer1[0].conv2.weight.detach()
    labels = torch.from_numpy(chain.partitions["layer1.0.conv2"].labels)
    assert rows_of(chain, "layer1.0.conv2.weight").shape == (2, 8, 3, 3)
    for cluster in range(2):
        expected = weight[labels == cluster].double().mean(0)
        # the mean of at most 8 float32 numbers: 3 roundings
        torch.testing.assert_close(
            rows_of(chain, "layer1.0.conv2.weight")[cluster].double(), expected, rtol=0, atol=4e-7
        )


def test_a_chain_as_wide_as_the_teacher_is_the_teacher(teacher):
    whole = WeightChain.from_teacher(teacher, IMAGES, width=1.0)
    for name, tensor in whole.expand(whole.groups).items():
        assert torch.equal(tensor, teacher.state_dict()[name]), name


def test_interpolate_reaches_the_teachers_norms_at_its_width(teacher, chain):
    student = chain.expand(chain.groups)
    copies = torch.from_numpy(np.concatenate(_blocks(chain, "layer1.0.conv1")))
    assert torch.equal(student["layer1.0.bn1.weight"], teacher.layer1[0].bn1.weight[copies])


def _blocks(chain, group):
    from oskt.widths import cut

    return cut(chain.partitions[group], chain.groups[group]).blocks


def test_columns_are_dealt_without_loss(chain):
    """Whatever the width, a student's columns sum to the chain row's."""
    total = rows_of(chain, "layer2.0.conv1.weight").sum(1)
    for width in (0.3, 0.5, 0.9):
        student = chain.expand(chain.resolve(width))
        from oskt.widths import cut

        copies = cut(chain.partitions["layer2.0.conv1"], len(student["layer2.0.bn1.weight"]))
        torch.testing.assert_close(student["layer2.0.conv1.weight"].sum(1), total[copies.rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_verify_prints_and_holds(chain, dtype, capsys):
    assert chain.to(dtype).verify() < 1e-12
    assert "half the teacher" in capsys.readouterr().out


def test_a_chain_that_is_not_finite_fails_its_verification(chain):
    broken = chain.to(torch.float64)
    broken.weights[0] = float("nan")
    assert broken.verify(quiet=True) == float("inf")
    assert ChainLadder([broken]).verify(quiet=True) == float("inf")


def test_students_run_with_the_right_attributes(chain):
    student = chain.student(width=0.5)
    assert not student.training
    assert student(torch.randn(2, 3, 64, 32)).shape == (2, 128)
    convolution = student.layer1[0].conv2
    assert (convolution.in_channels, convolution.out_channels) == (4, 4)
    assert student.bottleneck.num_features == 128
    assert not student.bottleneck.bias.requires_grad
    feature, logits = student.train()(torch.randn(2, 3, 64, 32))
    assert (feature.shape, logits.shape) == ((2, 128), (2, 7))
    assert sum(p.numel() for p in student.parameters()) == sum(
        t.numel() for n, t in chain.expand(chain.resolve(0.5)).items()
        if n in dict(student.named_parameters())
    )  # fmt: skip


def test_students_by_budget(chain):
    for params, macs in [(30_000, None), (None, 400_000), (40_000, 500_000), (1e9, None)]:
        student = chain.student(params=params, macs=macs)
        sizes = student.widths
        own = sum(
            p.numel() for n, p in student.named_parameters()
            if not n.startswith(("bottleneck", "classifier"))
        )  # fmt: skip
        assert chain.costs(sizes)[0] == own
        limits = (params or np.inf, macs or np.inf)
        assert all(cost <= limit for cost, limit in zip(chain.costs(sizes), limits))
        wider = chain.resolve(min(1.0, max(n / chain.groups[g] for g, n in sizes.items()) + 0.05))
        fits = all(cost <= limit for cost, limit in zip(chain.costs(wider), limits))
        assert sizes == chain.groups or not fits or chain.costs(wider) == chain.costs(sizes)


def test_grouped_and_depthwise_students_run():
    chain = WeightChain.from_teacher(nets.Mixed(), torch.zeros(1, 3, 8, 8), width=0.5)
    student = chain.student(widths={"stem": 6, "grouped": 8})
    assert student.depthwise.groups == 6
    assert (student.grouped.groups, student.grouped.in_channels) == (2, 6)
    assert student(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_file_round_trip(chain, tmp_path):
    path = tmp_path / "chain.safetensors"
    chain.save(path, classifier=True)
    back = WeightChain.load(path)
    assert back.coupling == chain.coupling
    assert back.meta == json.loads(json.dumps(chain.meta))
    for name, tensor in chain.expand(chain.resolve(0.7)).items():
        assert torch.equal(back.expand(chain.resolve(0.7))[name], tensor), name

    chain.save(path)
    back = WeightChain.load(path)
    assert back.absent == ("classifier.weight",)
    images = torch.randn(2, 3, 64, 32)
    assert torch.equal(back.student(width=0.5)(images), chain.student(width=0.5)(images))
    assert back.student(width=0.5).classifier.weight.std() < 0.002

    chain.save(path, dtype=torch.float16)
    half = WeightChain.load(path)
    assert half.weights.dtype == torch.float32
    assert torch.equal(half.weights, back.weights.half().float())


def test_a_chain_8_of_resnet50_fits_in_12_megabytes(tmp_path):
    teacher = ResNet(50, num_classes=751)
    chain = WeightChain.from_teacher(
        teacher, torch.zeros(1, 3, 64, 32), width=1 / 8, method="random", check=False
    )
    path = tmp_path / "chain.safetensors"
    chain.save(path)
    whole = path.stat().st_size
    assert whole <= 12 * 2**20
    chain.save(path, dtype=torch.float16)
    assert path.stat().st_size <= 6 * 2**20


def test_modules_of_ones_own_need_their_template(tmp_path):
    net = nets.Mixed()
    chain = WeightChain.from_teacher(net, torch.zeros(1, 3, 8, 8), width=0.5)
    chain.save(tmp_path / "chain")
    images = torch.randn(2, 3, 8, 8)
    loaded = WeightChain.load(tmp_path / "chain", template=net)
    assert torch.equal(loaded.student(width=1.0)(images), chain.student(width=1.0)(images))
    with pytest.raises(ValueError, match=r"student: template must be known .* Pass template="):
        WeightChain.load(tmp_path / "chain").student(width=0.5)
    with pytest.raises(ValueError, match=r"load: template must have the tensors of the chain in"):
        WeightChain.load(tmp_path / "chain", template=nn.Linear(2, 2))


@pytest.mark.parametrize("kind", ["oskt", "nested"])
def test_what_becomes_of_the_teacher_is_nothing_to_its_chain(kind, tmp_path):
    teacher = ResNet(18, in_planes=4, num_classes=3)
    chain = WeightChain.from_teacher(teacher, IMAGES, kind, check=False)
    again = chain.transferred(teacher)
    replace_classifier(teacher, 5)
    chain.meta["spec"]["pooling"] = "gem"
    assert teacher.spec["pooling"] == again.meta["spec"]["pooling"] == "avg"
    for one in (chain, again):
        assert one.meta["spec"]["num_classes"] == 3
    again.save(tmp_path / "chain", classifier=True)
    assert WeightChain.load(tmp_path / "chain").student(width=0.5).classifier.out_features == 3


class Fixed(nn.Module):
    """Tensors that no group touches: a filter that no state dict has, a scale, a whole number."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.scale = nn.Parameter(torch.rand(1))
        self.register_buffer("blur", torch.rand(3, 1, 3, 3), persistent=False)
        self.register_buffer("count", torch.tensor([3]))

    def forward(self, x):
        x = nn.functional.conv2d(x, self.blur, groups=3)
        return self.out(torch.relu(self.conv(x))).mean((2, 3)) * self.scale * self.count


@pytest.mark.parametrize("kind", ["oskt", "nested"])
def test_all_of_a_chain_moves_and_whole_numbers_stay_whole(kind):
    """`meta` is a device, too: what stays behind cannot be read there."""
    chain = WeightChain.from_teacher(Fixed(), nets.SMALL, kind, width=0.5)
    assert chain.verify(quiet=True) < 1e-12  # in float64
    exact = chain.to(torch.float64)
    assert exact.plain["scale"].dtype == torch.float64
    assert exact.plain["count"].dtype == torch.int64
    assert exact.student(width=0.5)(nets.SMALL.double()).dtype == torch.float64
    [away] = ChainLadder([chain]).to("meta").chains
    numbers = (away.weights, away.vectors, away.statistics, *away.plain.values())
    assert all(tensor.is_meta for tensor in (*numbers, *away.template.buffers()))
    assert chain.plain["scale"].dtype == torch.float32  # the chain itself is as it was
    assert chain.template.blur.dtype == torch.float32


@pytest.mark.parametrize("kind", ["oskt", "nested"])
def test_chains_without_statistics_have_the_dtype_of_their_teacher(kind, tmp_path):
    teacher, images = nets.Gate().double(), nets.SMALL.double()
    chain = WeightChain.from_teacher(teacher, images, kind, width=0.5)
    chain.save(tmp_path / "chain")
    for one in (chain, WeightChain.load(tmp_path / "chain", template=teacher)):
        sections = (one.weights, one.vectors, one.statistics)
        assert {section.dtype for section in sections} == {torch.float64}
    assert torch.equal(one.weights, chain.weights)


def test_damaged_files(chain, tmp_path):
    path = tmp_path / "chain.safetensors"
    chain.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        WeightChain.load(path)
    path.write_bytes(data[:-4] + bytes(4))
    with pytest.raises(ValueError, match="must match its checksum"):
        WeightChain.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="must have format 'oskt-chain/1', got None"):
        WeightChain.load(path)
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        WeightChain.load(tmp_path / "none")


def test_nothing_of_the_file_is_pickled(chain, tmp_path):
    chain.save(tmp_path / "chain")
    with safe_open(tmp_path / "chain", "pt") as file:
        content = json.loads(json.loads(file.metadata()["oskt"])["content"])
    assert {"coupling", "absent", "meta", "blocks"} <= set(content)
    assert content["meta"]["spec"]["family"] == "resnet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of width, widths, preset and a budget must be given, got 0"),
        ({"width": 0.5, "preset": "res50-s1"}, "must be given, got 2"),
        ({"params": 100}, r"budget must allow the smallest student, [\d,]+ parameters"),
        ({"width": 1.5}, r"width must be in \(0, 1\], got 1.5"),
        ({"preset": "res50-s9"}, "preset must be one of res50-s1"),
        ({"preset": "vit-s-s1"}, "on a chain of that family, got 'vit-s-s1' on one of resnet"),
        ({"preset": "res50-s6"}, "preset must fit the chain, got 'res50-s6', of which widths: "),
        ({"width": 0.5, "norm": "mean"}, "norm must be 'interpolate' or 'exact', got 'mean'"),
        ({"widths": {"layer9": 1}}, "must be a channel group, got 'layer9'"),
    ],
)
def test_wrong_requests(chain, arguments, message):
    with pytest.raises(ValueError, match=message):
        chain.student(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "other"}, "kind must be one of .'oskt', 'nested'., got 'other'"),
        ({"width": 0.0}, r"width must be in \(0, 1\], got 0.0"),
        ({"rows": "raw"}, "rows must be one of"),
        ({"widths": {"conv1": 99}}, "conv1 must be from 1 to 8, got 99"),
    ],
)
def test_wrong_teachers_and_options(teacher, arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightChain.from_teacher(teacher, IMAGES, **arguments)


def test_a_diverged_teacher_is_refused():
    teacher = ResNet(18, in_planes=4)
    teacher.layer3[0].conv1.weight.data[0, 0] = float("nan")
    with pytest.raises(
        ValueError, match=r"teacher must be finite, got NaN or Inf in layer3\.0\.con"
    ):
        WeightChain.from_teacher(teacher, IMAGES)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("method", ["kmeans", "ward", "random"])
def test_every_clustering_option_gives_a_sound_chain(teacher, rows, method):
    chain = WeightChain.from_teacher(
        teacher, IMAGES, width=0.5, rows=rows, method=method, check=False
    )
    assert chain.widths == {g: max(1, round(n / 2)) for g, n in chain.groups.items()}
    assert all(np.bincount(c.labels).min() > 0 for c in chain.partitions.values())


def test_better_clusterings_lose_less(teacher):
    loss = {
        method: sum(
            WeightChain.from_teacher(teacher, IMAGES, width=0.5, method=method, check=False)
            .meta["clustering"]["loss"]
            .values()
        )
        for method in ("kmeans", "ward", "random")
    }
    assert loss["kmeans"] <= loss["ward"] < loss["random"]
