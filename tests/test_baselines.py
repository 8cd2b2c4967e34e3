"""The rivals' students: what each start takes from the teacher, and that it can be stored."""

from __future__ import annotations

import sys

import nets
import pytest
import torch
from torch import nn

from oskt import WeightChain
from oskt.baselines import depgraph, folding, oskt, published, scratch, weight_selection
from oskt.baselines.fold import _variance_of_means
from oskt.coupling.grouping import trace_coupling
from oskt.files.checkpoint import save_model
from oskt.models.resnet import ResNet, widths
from oskt.students import load_model
from oskt.widths import Clustering, parameters

IMAGES = torch.zeros(2, 3, 64, 32)
LAYERS = (1, 1, 1, 1)
HEAD = ("bottleneck", "classifier")
SIZES = widths(3, (2, 3, 4), layers=LAYERS)  # 3/8, 3/8, 9/32, 3/16 of the teacher's stages


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return nets.varied(ResNet(50, 8, num_classes=7, layers=LAYERS, pooling="gem"))


@pytest.fixture(scope="module")
def coupling(teacher):
    return trace_coupling(teacher, IMAGES)


@pytest.fixture(scope="module")
def chain(teacher):
    return WeightChain.from_teacher(teacher, IMAGES, width=1 / 8)


def start(name, teacher, coupling, chain, sizes, seed=0):
    if name in ("published", "oskt"):
        return {"published": published, "oskt": oskt}[name](chain, sizes, seed=seed)
    if name == "depgraph":
        pytest.importorskip("torch_pruning")
    functions = {"scratch": scratch, "weight_selection": weight_selection, "folding": folding}
    return {**functions, "depgraph": depgraph}[name](teacher, coupling, sizes, seed=seed)


STARTS = ["scratch", "weight_selection", "folding", "depgraph", "published", "oskt"]


@pytest.mark.parametrize("name", STARTS)
def test_a_start_runs_repeats_and_is_stored(name, teacher, coupling, chain, tmp_path):
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    random_state = torch.get_rng_state()
    student = start(name, teacher, coupling, chain, SIZES)
    again = start(name, teacher, coupling, chain, SIZES)
    assert torch.equal(torch.get_rng_state(), random_state)
    state = student.state_dict()
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in state.items())
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())
    assert type(student) is ResNet
    assert not any(module.training for module in student.modules())
    assert [n for n, p in student.named_parameters() if not p.requires_grad] == ["bottleneck.bias"]
    if name != "depgraph":
        assert student.widths == {**chain.groups, **SIZES}

    images = torch.randn(2, 3, 64, 32)
    path = save_model(tmp_path / "s", student, {"spec": student.spec, "widths": student.widths})
    restored, _ = load_model(path)
    with torch.no_grad():
        assert torch.equal(restored(images), student(images))
        feature, logits = student.train()(images)
    assert feature.shape == (2, student.widths["layer4.0.conv3"])
    assert logits.shape == (2, 7)
    assert feature.isfinite().all()


def test_scratch_is_fresh(teacher, coupling):
    student, other = (scratch(teacher, coupling, SIZES, seed=seed) for seed in (0, 1))
    assert not torch.equal(student.conv1.weight, other.conv1.weight)
    for norm in (student.bn1, student.layer3[0].bn2, student.bottleneck):
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.running_var, torch.ones_like(norm.weight))
        assert not norm.running_mean.any()
        assert not norm.num_batches_tracked
    # He over the fan out: 1152 numbers have a deviation within 5 / sqrt(2 * 1152) = 10 % of it.
    conv = student.layer4[0].conv2.weight
    assert conv.numel() == 1296
    assert conv.std().item() == pytest.approx((2 / (12 * 9)) ** 0.5, rel=0.1)
    assert student.classifier.weight.std() < 0.002


def test_scratch_refuses_parameters_that_nothing_initialises():
    net = nets.Scaled()
    with pytest.raises(ValueError, match=r"^scratch: every layer must initialise .* got scale"):
        scratch(net, trace_coupling(net, torch.zeros(2, 3, 8, 8)), {})


def test_weight_selection_takes_evenly_spaced_channels(teacher, coupling):
    student = weight_selection(teacher, coupling, {"conv1": 3, "layer1.0.conv1": 4})
    stem, inner = [0, 2, 5], [0, 2, 4, 6]  # floor(i 8 / 3), floor(i 8 / 4)
    assert torch.equal(student.conv1.weight, teacher.conv1.weight[stem])
    for name, tensor in student.bn1.state_dict().items():
        whole = teacher.bn1.state_dict()[name]
        assert torch.equal(tensor, whole[stem] if whole.dim() else whole)
    block, whole_block = student.layer1[0], teacher.layer1[0]
    assert torch.equal(block.conv1.weight, whole_block.conv1.weight[inner][:, stem])
    assert torch.equal(block.downsample[0].weight, whole_block.downsample[0].weight[:, stem])
    assert torch.equal(block.conv2.weight, whole_block.conv2.weight[:, inner])
    assert torch.equal(student.layer2[0].conv2.weight, teacher.layer2[0].conv2.weight)

    narrow = weight_selection(teacher, coupling, {"layer4.0.conv3": 64})
    assert torch.equal(narrow.classifier.weight, teacher.classifier.weight[:, ::4])
    assert torch.equal(narrow.bottleneck.running_var, teacher.bottleneck.running_var[::4])


def test_weight_selection_keeps_groups_and_flattened_areas():
    net = nets.Mixed()
    coupling = trace_coupling(net, torch.zeros(2, 3, 8, 8))
    groups = {writer: g.name for g in coupling.free.values() for writer in g.writers}
    sizes = {groups["stem.weight"]: 4, groups["grouped.weight"]: 6}
    student = weight_selection(net, coupling, sizes)
    stem, grouped = [0, 2, 4, 6], [0, 2, 4, 6, 8, 10]
    assert torch.equal(student.depthwise.weight, net.depthwise.weight[stem])
    assert torch.equal(student.grouped.weight, net.grouped.weight[grouped][:, [0, 2]])
    columns = net.fc.weight.unflatten(1, (20, 16))[:, [*grouped, *(12 + i for i in stem)]]
    assert torch.equal(student.fc.weight, columns.flatten(1))
    assert student(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


def doubled(model, coupling):
    """The same function with every channel twice: rows repeated, columns repeated and halved."""
    wide = ResNet(50, 8, num_classes=7, layers=LAYERS).double()
    state = {}
    for name, tensor in model.state_dict().items():
        layout = coupling.layouts[name]
        if layout.rows and layout.rows[0][0] in coupling.free:
            tensor = tensor.repeat_interleave(2, 0)
        if layout.columns and layout.columns[0][0] in coupling.free:
            tensor = tensor.repeat_interleave(2, 1) / 2
        state[name] = tensor
    wide.load_state_dict(state)
    return wide.eval()


class Placed(nn.Module):
    """Channels that nothing but their positions (1, places, channels) tells apart."""

    def __init__(self):
        super().__init__()
        self.lift, self.read = nn.Linear(3, 4), nn.Linear(4, 2)
        self.places = nn.Parameter(torch.tensor([[[1.0, -2.0, 1.0, -2.0], [3.0, 0.5, 3.0, 0.5]]]))
        with torch.no_grad():
            for tensor in (self.lift.weight, self.lift.bias):
                tensor.copy_(tensor[:1].expand_as(tensor))
            self.read.weight.copy_(self.read.weight[:, :1].expand(2, 4))

    def forward(self, x):
        return self.read(torch.relu(self.lift(x) + self.places))


def test_positions_are_channels_of_their_last_dimension():
    torch.manual_seed(0)
    net, x = Placed(), torch.randn(5, 2, 3)
    coupling = trace_coupling(net, x)
    (group,) = coupling.free
    selected = weight_selection(net, coupling, {group: 2})
    assert torch.equal(selected.places, net.places[:, :, [0, 2]])
    folded = folding(net, coupling, {group: 2})  # 0 with 2 and 1 with 3: exact
    torch.testing.assert_close(folded(x), net(x))


@pytest.mark.parametrize("approximate_repair", [False, True])
def test_folding_of_repeated_channels_is_exact(approximate_repair):
    narrow = nets.varied(ResNet(50, 4, num_classes=7, layers=LAYERS)).double()
    wide = doubled(narrow, trace_coupling(narrow, IMAGES))
    sizes = widths(4, layers=LAYERS)
    student = folding(
        wide, trace_coupling(wide, IMAGES), sizes, approximate_repair=approximate_repair
    )
    images = torch.randn(2, 3, 64, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = narrow(images)
        assert (wide(images)[:, ::2] - expected).abs().max() < 1e-9 * expected.abs().max()
        # 17 layers of a few hundred roundings of 1e-16 each
        assert (student(images) - expected).abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.parametrize("approximate_repair", [False, True])
def test_folding_at_full_width_is_the_teacher(teacher, coupling, approximate_repair):
    student = folding(teacher, coupling, {}, approximate_repair=approximate_repair)
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        expected = teacher(images)
        # float32: 17 layers, each divided by sigma and multiplied again
        assert (student(images) - expected).abs().max() < 1e-5 * expected.abs().max()


class PreActivated(nn.Module):
    """A block whose residual reads the stem as the block's norm does."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, images):
        x = self.stem(images)
        return (x + self.conv(self.norm(x).relu())).mean((2, 3))


def test_folding_refuses_to_repair_what_more_than_the_norm_reads():
    net = nets.varied(PreActivated()).eval()
    coupling = trace_coupling(net, torch.zeros(2, 3, 8, 8))
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(folding(net, coupling, {})(images), net(images))
    with pytest.raises(ValueError, match=r"^folding: approximate_repair must be of a network in w"):
        folding(net, coupling, {}, approximate_repair=True)


def test_variance_of_a_mean_is_the_papers_formula():
    owned = torch.randn(6, 5, dtype=torch.float64)
    found = _variance_of_means(owned, Clustering(torch.tensor([0, 1, 0, 0, 2, 1]).numpy()))
    for variance, members in zip(found.tolist(), ([0, 2, 3], [1, 5], [4])):
        n = len(members)
        cosines = [
            torch.dot(owned[a], owned[b]) / (owned[a].norm() * owned[b].norm())
            for a in members
            for b in members
            if a != b
        ]
        mean = float(sum(cosines)) / max(1, len(cosines))
        assert variance == pytest.approx((1 + (n - 1) * mean) / n, abs=1e-14)


def test_approximate_repair_measures_what_it_predicts_for_orthogonal_filters():
    """Two filters at right angles on white noise: their mean has half the variance."""
    net = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU(),
                        nn.Conv2d(2, 4, 1))  # fmt: skip
    rows = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    with torch.no_grad():
        net[0].weight.copy_(rows[:, :, None, None])
        net[3].weight.zero_()
        net[1].weight.copy_(torch.tensor([1e-6, 1e-6]))  # so that rows alone decide the cosine
        net[1].running_var.copy_(rows.square().sum(1) - 1e-5)
    coupling = trace_coupling(net.eval(), torch.zeros(2, 3, 4, 4))
    student = folding(net, coupling, {"0": 1}, approximate_repair=True)
    assert student[0].weight.flatten().tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert student[1].running_var.item() == pytest.approx(0.5 - 1e-5, rel=1e-5)


@pytest.mark.parametrize("multipliers", [(2, 4, 8), (2, 3, 4), (3, 4, 5)])
def test_depgraph_meets_the_parameters_of_the_student(multipliers):
    pytest.importorskip("torch_pruning")
    teacher = ResNet(50, 16, num_classes=7, layers=LAYERS, pooling="gem")
    coupling = trace_coupling(teacher, IMAGES)
    wanted = widths(8, multipliers, layers=LAYERS)
    target = parameters(coupling, {**wanted, "layer4.0.conv3": 256}, HEAD)
    student = depgraph(teacher, coupling, {**wanted, "layer4.0.conv3": 256})
    counted = sum(p.numel() for name, p in student.named_parameters() if not name.startswith(HEAD))
    assert counted == parameters(coupling, student.widths, HEAD)
    assert abs(counted - target) <= 0.01 * target
    # One ratio, rounded down to whole channels: no share is a channel of the narrowest below it.
    shares = [n / coupling.groups[name].size for name, n in student.widths.items()]
    assert max(shares) - min(shares) < 1 / 16
    if multipliers == (2, 4, 8):  # the student has one share itself
        assert student.widths == wanted
    assert torch.equal(student.pool.p, teacher.pool.p)


@pytest.mark.parametrize("in_planes", [3, 4, 5, 7])
def test_depgraph_takes_the_nearest_count_that_one_ratio_reaches(teacher, coupling, in_planes):
    """Against every ratio in turn; steps are coarse where the stem has 8 channels."""
    pytest.importorskip("torch_pruning")
    target = parameters(coupling, widths(in_planes, (2, 3, 4), layers=LAYERS), HEAD)
    counts = []
    for step in range(32, 257):  # the last stage has 256 channels
        sizes = {name: group.size * step // 256 for name, group in coupling.free.items()}
        counts.append(parameters(coupling, sizes, HEAD))
    allowed = [count for count in counts if count <= 1.01 * target]
    nearest = min(abs(count - target) for count in allowed)
    student = depgraph(teacher, coupling, widths(in_planes, (2, 3, 4), layers=LAYERS))
    found = parameters(coupling, student.widths, HEAD)
    assert found <= 1.01 * target
    assert abs(found - target) == nearest


def test_depgraph_keeps_the_channels_of_largest_group_magnitude(teacher, coupling):
    pytest.importorskip("torch_pruning")
    student = depgraph(teacher, coupling, widths(4, layers=LAYERS))
    block = teacher.layer1[0]
    importance = block.conv1.weight.square().sum((1, 2, 3)) + block.bn1.weight.square()
    importance = importance + block.conv2.weight.square().sum((0, 2, 3))
    kept = importance.topk(4).indices.sort().values
    assert torch.equal(student.layer1[0].bn1.weight, block.bn1.weight[kept])
    assert torch.equal(student.layer1[0].bn1.running_mean, block.bn1.running_mean[kept])


def test_depgraph_at_full_width_is_the_teacher(teacher, coupling):
    pytest.importorskip("torch_pruning")
    student = depgraph(teacher, coupling, {})
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name


def test_depgraph_says_what_to_install(teacher, coupling, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ImportError, match=r"^depgraph: torch_pruning must be installed.*pip ins"):
        depgraph(teacher, coupling, SIZES)


def test_depgraph_refuses_what_it_cannot_reach(teacher, coupling):
    pytest.importorskip("torch_pruning")
    with pytest.raises(ValueError, match=r"^depgraph: widths must leave at least the .* got 230\."):
        depgraph(teacher, coupling, dict.fromkeys(coupling.free, 1))
    net = nets.Mixed()  # grouped channels go in pairs, which one ratio for all does not foresee
    coupled = trace_coupling(net, torch.zeros(2, 3, 8, 8))
    with pytest.raises(RuntimeError, match=r"^depgraph: torch-pruning must prune the groups of"):
        depgraph(net, coupled, {"stem": 4, "grouped": 8})


def test_published_carries_no_statistics_and_no_head(chain):
    student, other = (published(chain, SIZES, seed=seed) for seed in (0, 1))
    expected = chain.expand(SIZES, norm="interpolate")
    fresh = ("bottleneck.", "classifier.", "pool.")
    for name, tensor in student.state_dict().items():
        layout = chain.coupling.layouts[name]
        if layout.role in ("weight", "vector") and not name.startswith(fresh):
            assert torch.equal(tensor, expected[name]), name
        elif layout.role == "statistic":
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("var")))), name
    assert torch.equal(student.bottleneck.weight, torch.ones_like(student.bottleneck.weight))
    assert student.classifier.weight.shape == (7, SIZES["layer4.0.conv3"])
    assert 0 < student.classifier.weight.std() < 0.002
    assert not torch.equal(student.classifier.weight, other.classifier.weight)


def test_published_knows_one_kind_of_chain(teacher):
    nested = WeightChain.from_teacher(teacher, IMAGES, kind="nested", width=1 / 4)
    with pytest.raises(ValueError, match=r"^published: chain must be of kind 'oskt', got 'nested'"):
        published(nested, SIZES)
    assert oskt(nested, SIZES).widths == {**nested.widths, **SIZES}


def test_oskt_carries_everything(chain, tmp_path):
    student = oskt(chain, SIZES)
    for name, tensor in chain.expand(SIZES, norm="exact").items():
        assert torch.equal(student.state_dict()[name], tensor), name
    chain.save(tmp_path / "chain", classifier=False)
    headless = WeightChain.load(tmp_path / "chain")
    first, same, other = (oskt(headless, SIZES, seed=seed).classifier.weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["scratch", "weight_selection", "folding", "depgraph"])
def test_a_coupling_of_another_network_is_refused(name, teacher, chain):
    other = ResNet(50, 4, num_classes=7, layers=LAYERS)
    foreign = trace_coupling(other, IMAGES)
    with pytest.raises(ValueError, match=rf"^{name}: coupling must be that of the teacher, got sh"):
        start(name, teacher, foreign, chain, {})
    lean = trace_coupling(ResNet(50, 8, layers=LAYERS), IMAGES)
    with pytest.raises(ValueError, match=rf"^{name}: coupling .* got no such tensor for pool.p"):
        start(name, teacher, lean, chain, {})


@pytest.mark.parametrize("name", ["scratch", "weight_selection", "folding", "depgraph"])
def test_widths_out_of_range_are_refused(name, teacher, coupling, chain):
    with pytest.raises(ValueError, match=r"^widths: conv1 must be from 1 to 8, got 9"):
        start(name, teacher, coupling, chain, {"conv1": 9})
