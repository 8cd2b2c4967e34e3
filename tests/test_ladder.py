"""Several chains of one teacher: refined in one run, kept in one file, routed by width."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import safetensors
import torch
from train_fakes import CLASSES, TinyData, recipe

from oskt import ChainLadder, JointModel, WeightChain, edge
from oskt.baselines import folding
from oskt.compare.scales import CHAIN_OF, SIZES
from oskt.files import progressive
from oskt.files.checkpoint import load_state
from oskt.models.resnet import ResNet
from oskt.train import refine_chain
from oskt.train.nested import NestedLadder
from oskt.train.refine import JointObjective
from oskt.widths.latency import Latency, Meter

SHAPE = (8, 3, 32, 16)
NETWORK = {"depth": 50, "in_planes": 16, "layers": (1, 1, 1, 1)}
SHARES = (1 / 8, 1 / 4, 1 / 2)
OPTIONS = {"tensorboard": False, "device": "cpu"}


def make_teacher(in_planes=4):
    torch.manual_seed(0)
    return ResNet(50, in_planes, num_classes=CLASSES, layers=(1, 1, 1, 1))


def make_chain(teacher, width, **options):
    return WeightChain.from_teacher(
        teacher, torch.zeros(SHAPE), width=width, **{"check": False, **options}
    )


@pytest.fixture(scope="module")
def ladder():
    torch.manual_seed(0)
    teacher = ResNet(num_classes=CLASSES, **NETWORK)
    return ChainLadder.from_teacher(teacher, torch.zeros(SHAPE), SHARES, check=False)


@pytest.fixture(scope="module")
def pair():
    """A small teacher and its chains of a quarter and half its width."""
    teacher = make_teacher()
    return teacher, [make_chain(teacher, width) for width in (1 / 4, 1 / 2)]


@pytest.fixture(scope="module")
def path(ladder, tmp_path_factory):
    path = tmp_path_factory.mktemp("ladder") / "ladder.safetensors"
    ladder.save(path, classifier=True)
    return path


def assert_same_student(one, other):
    assert one.widths == other.widths
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


# -- training -------------------------------------------------------------------------------------


@pytest.fixture
def objectives(pair):
    """(of two chains at once, of each alone), in float64, on copies of one teacher."""
    teacher, chains = pair
    changed = recipe(height=32, width=16, center_weight=0.0, alpha=0.05, distill=4.0)

    def make(*several):
        joint = JointModel(copy.deepcopy(teacher), *several)
        return JointObjective(joint, changed).double().train()

    return make(*chains), [make(chain) for chain in chains]


def test_students_are_those_of_each_chain_alone(objectives):
    both, alone = objectives
    images = torch.randn(SHAPE, dtype=torch.float64)
    teacher, *students = both.joint(images)
    for student, objective in zip(students, alone):
        own_teacher, own_student = objective.joint(images)
        assert all(map(torch.equal, student, own_student))
        assert all(map(torch.equal, teacher, own_teacher))


def test_gradients_are_the_sum_of_reid_losses_and_the_mean_of_refining_losses(objectives):
    """Each chain alone, at half its alpha; the teacher's own loss counts once."""
    both, alone = objectives
    images, ids = torch.randn(SHAPE, dtype=torch.float64), torch.arange(CLASSES).repeat(2)
    for objective in alone:
        objective.recipe = replace(objective.recipe, alpha=objective.recipe.alpha / 2)
    teacher_only = copy.deepcopy(alone[0])
    shared, _ = teacher_only.losses[0](*teacher_only.joint.teacher(images), ids)
    whole, *losses = (objective(images, ids, progress=0.5)[0] for objective in (both, *alone))
    torch.testing.assert_close(whole, sum(losses) - shared)

    for loss in (shared, whole, *losses):
        loss.backward()
    for branch, objective in zip(both.joint.branches, alone):
        torch.testing.assert_close(branch.weights.grad, objective.joint.branches[0].weights.grad)
    for name, parameter in both.joint.teacher.named_parameters():
        if parameter.requires_grad:
            once, *parts = (
                objective.joint.teacher.get_parameter(name).grad
                for objective in (teacher_only, *alone)
            )
            # float64 sums of a few thousand terms around 1: errors far below 1e-10
            torch.testing.assert_close(parameter.grad, sum(parts) - once, rtol=1e-7, atol=1e-10)


def test_refining_loss_is_the_mean_over_chains(objectives):
    both, alone = objectives
    expected = sum(objective.joint.refining_loss(0.5) for objective in alone) / 2
    torch.testing.assert_close(both.joint.refining_loss(0.5), expected)


class Pictures(TinyData):
    def batches(self, epoch, start=0):
        for images, ids, cameras in super().batches(epoch, start):
            yield images.repeat(1, 1, 4, 4), ids, cameras


PUBLISHED = recipe(height=32, width=16, alpha=0.05, distill=4.0)


def refine(out, wrap, changed=PUBLISHED, **options):
    torch.set_num_threads(1)  # bitwise runs
    teacher = make_teacher()
    path = refine_chain(
        teacher, wrap(teacher), Pictures(steps=2), changed, out, **OPTIONS, **options
    )
    return ChainLadder.load(path)


def two(teacher):
    return ChainLadder.from_teacher(teacher, torch.zeros(SHAPE), (1 / 2, 1 / 4), check=False)


def assert_same_chains(one, other):
    assert len(one.chains) == len(other.chains)
    for a, b in zip(one.chains, other.chains):
        for name in ("weights", "vectors", "statistics"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_a_stopped_refinement_of_a_ladder_goes_on(tmp_path):
    refine(tmp_path / "cut", two, max_steps=3)
    scores = {"mAP": 0.5}
    seen = []

    def evaluate(network):
        seen.append(network.conv1.out_channels)
        return scores

    whole = refine(tmp_path / "whole", two, evaluate=evaluate)
    assert_same_chains(refine(tmp_path / "cut", two, resume=True), whole)
    assert seen == [4, 1, 2]
    below, above = whole.chains
    assert set(below.meta["metrics"]) == {"teacher/mAP", "student/mAP", "student2/mAP"}
    assert below.meta["clustering"] != above.meta["clustering"]
    assert torch.equal(below.vectors, above.vectors)  # the teacher's
    assert not torch.equal(below.statistics, above.statistics[: len(below.statistics)])
    assert whole.verify(quiet=True) < 1e-12


def test_a_ladder_of_one_is_refined_as_its_chain(tmp_path):
    one = refine(tmp_path / "chain", lambda teacher: make_chain(teacher, 1 / 2))
    same = refine(tmp_path / "ladder", lambda teacher: ChainLadder([make_chain(teacher, 1 / 2)]))
    assert_same_chains(one, same)
    files = [tmp_path / name / "chain.safetensors" for name in ("chain", "ladder")]
    assert_same_student(*(WeightChain.load(file).student(width=1 / 2) for file in files))


# -- routing --------------------------------------------------------------------------------------


def test_the_sizes_of_the_paper_go_to_its_chains(ladder):
    shares = {}
    for label in CHAIN_OF:
        sizes = SIZES[label].widths(ladder.chains[0].coupling, NETWORK)
        shares[label] = SHARES[ladder.chains.index(ladder.chain_for(sizes))]
    assert shares == CHAIN_OF


@pytest.mark.parametrize(
    ("width", "number"),
    [(0.01, 0), (1 / 8, 0), (0.24, 0), (1 / 4, 1), (0.49, 1), (1 / 2, 2), (1.0, 2)],
)
def test_a_share_goes_to_the_widest_chain_that_fits(ladder, width, number):
    sizes = ladder.resolve(width)
    chain = ladder.chain_for(sizes)
    assert chain is ladder.chains[number]
    assert_same_student(ladder.student(width=width), chain.student(widths=sizes))
    tensors = ladder.expand(sizes)
    assert all(torch.equal(tensors[n], t) for n, t in chain.expand(sizes).items())


def test_one_narrow_group_decides(ladder):
    half = ladder.chains[2].widths
    narrow = {**half, "layer1.0.conv2": ladder.chains[0].widths["layer1.0.conv2"]}
    assert ladder.chain_for(half) is ladder.chains[2]
    assert ladder.chain_for(narrow) is ladder.chains[0]
    # Groups that are not named have the width of the narrowest chain.
    assert ladder.student(widths={"conv1": 16}).widths == {**ladder.widths, "conv1": 16}


def test_a_budget_gives_the_largest_student_and_the_widest_chain(ladder):
    for chain in ladder.chains:
        exactly, _ = ladder.costs(chain.widths)
        sizes = ladder.resolve(params=exactly)
        assert ladder.costs(sizes)[0] <= exactly
        assert ladder.chain_for(sizes) is chain
        assert_same_student(ladder.student(params=exactly), chain.student(params=exactly))
        if chain is not ladder.chains[0]:
            below = ladder.chain_for(ladder.resolve(params=exactly - 1))
            assert below is ladder.chains[ladder.chains.index(chain) - 1]


def test_a_budget_finds_a_chain_of_unequal_shares(pair):
    """No uniform share keeps the budget and has the wide stem of the second chain."""
    teacher, (quarter, _) = pair
    wide = make_chain(teacher, 1 / 4, widths={"conv1": 4})
    ladder = ChainLadder([quarter, wide])
    parameters, macs = ladder.costs(wide.widths)
    sizes = ladder.resolve(params=parameters, macs=macs)
    assert sizes == wide.widths
    assert ladder.chain_for(sizes) is wide
    assert ladder.chain_for(quarter.resolve(params=parameters, macs=macs)) is quarter


def test_a_limit_of_latency_is_timed_once_per_width(ladder):
    timed = []

    def seconds(network, images):
        timed.append(dict(network.widths))
        milliseconds = sum(network.widths.values())
        return Latency(milliseconds, 0, 0, 1, tuple(images.shape), "", 1, "")

    meter = Meter(ladder.chains[0], timed=seconds)
    limit = sum(ladder.chains[1].widths.values())
    student = ladder.student(latency_ms=limit, device=meter)
    assert student.widths == ladder.chains[1].widths
    assert student.latency.median_ms == limit
    assert all(timed.count(widths) == 1 for widths in timed)


def test_a_ladder_of_one_gives_the_students_of_its_chain(ladder):
    chain = ladder.chains[1]
    for request in (
        {"width": 0.4}, {"widths": {"conv1": 9}}, {"params": 2e5, "macs": 1e7}, {"width": 0.01},
        {"width": 0.7, "norm": "exact"},
    ):  # fmt: skip
        assert_same_student(ChainLadder([chain]).student(**request), chain.student(**request))


def test_chains_are_sorted_and_named(ladder):
    shuffled = ChainLadder([ladder.chains[i] for i in (2, 0, 1)])
    assert shuffled.chains == ladder.chains
    names = [ladder.name_of(chain) for chain in ladder.chains]
    assert names == [f"chain {i} of 3, width {share:g}" for i, share in enumerate(SHARES, 1)]


# -- files ----------------------------------------------------------------------------------------


def test_a_file_holds_what_chains_share_once(ladder, path):
    back = ChainLadder.load(path)
    assert_same_chains(back, ladder)
    for mine, stored in zip(ladder.chains, back.chains):
        assert stored.meta == mine.meta
        assert_same_student(stored.student(width=0.6), mine.student(width=0.6))
    with safetensors.safe_open(path, "pt") as file:
        names = set(file.keys())
    assert {"vectors", "0.weights", "1.weights", "2.weights", "2.labels.conv1"} <= names
    assert not {name for name in names if name.endswith(".vectors")}


def test_what_differs_is_kept_apart(ladder, tmp_path):
    """As after a refinement of each chain alone."""
    below, above = (copy.copy(chain) for chain in ladder.chains[:2])
    above.vectors = above.vectors + 1
    above.meta = {**above.meta, "note": "of another run"}
    mixed = ChainLadder([below, above])
    mixed.save(tmp_path / "ladder", classifier=True)
    back = ChainLadder.load(tmp_path / "ladder")
    assert_same_chains(back, mixed)
    assert [chain.meta.get("note") for chain in back.chains] == [None, "of another run"]


def test_half_precision_without_the_classifier(ladder, path, tmp_path):
    ladder.save(tmp_path / "half", dtype=torch.float16)
    back = ChainLadder.load(tmp_path / "half")
    assert (tmp_path / "half").stat().st_size < 0.6 * path.stat().st_size
    expected = ladder.to(torch.float16).to(torch.float32).chains[2]
    assert torch.equal(back.chains[2].weights, expected.lean().weights)
    assert back.chains[0].absent == ("classifier.weight",)


def test_a_chain_file_is_a_ladder_of_one(ladder, tmp_path):
    ladder.chains[0].save(tmp_path / "chain", classifier=True)
    assert_same_chains(ChainLadder.load(tmp_path / "chain"), ChainLadder(ladder.chains[:1]))
    ChainLadder(ladder.chains[:1]).save(tmp_path / "one")
    assert WeightChain.load(tmp_path / "one").widths == ladder.widths


def test_the_edge_reads_ladders_too(ladder, path, capsys, tmp_path):
    light = edge.load_ladder(path)
    for width in (0.2, 0.5):
        sizes = light.resolve(width)
        assert sizes == ladder.resolve(width)
        tensors = light.chain_for(sizes).student(widths=sizes)
        for name, tensor in ladder.expand(sizes).items():
            # NumPy adds in another order: see EdgeChain.student
            np.testing.assert_allclose(tensors[name], tensor.numpy(), rtol=1e-5, atol=1e-6)
    edge.main([str(path), "--width", "0.3", "--out", str(tmp_path / "student")])
    assert "from chain 2 of 3, width 0.25\n" in capsys.readouterr().out


# -- nested ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stretches():
    """Nested chains of a teacher that serve 1/8 to 1/4, 1/4 to 1/2, and 1/2 to all of its width."""
    torch.manual_seed(0)
    teacher = ResNet(num_classes=CLASSES, **NETWORK)
    return ChainLadder.from_teacher(teacher, torch.zeros(SHAPE), SHARES, "nested", check=False)


def test_nested_chains_each_serve_from_their_width_to_that_of_the_next(stretches):
    whole = stretches.base
    assert whole is stretches.chains[-1]
    ends = [whole.resolve(share) for share in (*SHARES, 1.0)]
    for chain, start, end in zip(stretches.chains, ends, ends[1:]):
        assert (chain.widths, chain.groups) == (start, end)
    assert (stretches.widths, stretches.groups) == (ends[0], ends[-1])
    assert stretches.name_of(stretches.chains[0]) == "chain 1 of 3, up to width 0.25"


@pytest.mark.parametrize(
    ("width", "number"),
    [(0.01, 0), (1 / 8, 0), (0.24, 0), (1 / 4, 1), (0.49, 1), (1 / 2, 2), (1, 2)],
)
def test_a_nested_student_is_read_from_the_widest_chain_that_fits(stretches, width, number):
    sizes = stretches.resolve(width=width)
    assert stretches.chain_for(sizes) is stretches.chains[number]
    student = stretches.student(width=width)
    assert_same_student(student, stretches.chains[number].student(widths=sizes))
    if number:  # nothing has been trained: selections of the teacher are the same from any
        assert_same_student(student, stretches.base.student(widths=sizes))


def logits(network):
    images = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network.train()(images)[1]


def test_a_narrow_nested_chain_begins_as_the_teacher_folded_to_its_width(stretches):
    teacher = stretches.base.student(width=1.0)
    for number, chain in enumerate(stretches.chains):
        network = chain.student(width=1.0)
        folded = folding(teacher, stretches.coupling, chain.groups)
        # Channels of the two are in different orders, and so are float32 sums over them.
        alike = torch.allclose(logits(network), logits(folded), rtol=1e-3, atol=1e-4)
        assert alike is (number != 1)
    assert stretches.chains[0].meta["clustering"].keys() == stretches.base.meta["clustering"].keys()


@pytest.mark.parametrize("method", [None, "magnitude", "ward", "random"])
def test_channels_of_a_folded_network_are_ordered_by_what_they_are_worth_there(method):
    asked = []

    def worth(network):
        asked.append(network.conv1.weight.shape[0])
        return {name: p.detach().abs() for name, p in network.named_parameters()}

    teacher, images = make_teacher(in_planes=16), torch.zeros(SHAPE)
    options = {"method": method, "saliency": worth, "check": False}
    ladder = ChainLadder.from_teacher(teacher, images, SHARES, "nested", **options)
    assert asked == ([] if method else [16, 4])
    for chain in ladder.chains:
        assert chain.meta["clustering"]["method"] == (method or "saliency")
    narrow = ladder.chains[0]
    network = narrow.student(width=1.0)  # its channels in the order of the file
    alone = WeightChain.from_teacher(network, images, "nested", **options)
    again = ChainLadder.from_teacher(teacher, images, SHARES, "nested", **options).chains[0]
    for group, tree in narrow.trees.items():
        assert np.array_equal(tree.order, alone.trees[group].order)
        assert np.array_equal(tree.order, again.trees[group].order)
    assert torch.equal(narrow.weights, again.weights)


def test_a_narrow_group_takes_a_nested_student_to_the_chain_that_was_trained_so(stretches):
    narrow, middle, wide = stretches.chains
    for chain, below in ((wide, middle), (middle, narrow)):
        sizes = {**chain.widths, "layer4.0.conv2": below.widths["layer4.0.conv2"]}
        assert stretches.chain_for(sizes) is below
    # No chain was trained so narrow beside so wide a stem: the narrowest that is wide enough.
    mixed = {**narrow.widths, "conv1": wide.widths["conv1"]}
    assert stretches.chain_for(mixed) is middle


def test_a_budget_of_a_nested_ladder_is_that_of_its_widest_chain(stretches):
    for limit in ({"params": 30_000}, {"macs": 2e6, "memory_mb": 1.0}):
        assert stretches.resolve(**limit) == stretches.base.resolve(**limit)
    assert stretches.costs(stretches.widths) == stretches.base.costs(stretches.widths)


def test_a_budget_of_unequal_shares_stays_within_what_one_chain_was_trained_at(stretches):
    for limit in (400_000, 120_000, 40_000, 15_000):
        sizes = stretches.resolve(params=limit, shape="sensitivity")
        assert 0.8 * limit < stretches.costs(sizes)[0] <= limit
        assert stretches.untrained(sizes) == []
    assert len({n / stretches.groups[g] for g, n in sizes.items()}) > 2
    mixed = {**stretches.widths, "conv1": stretches.groups["conv1"]}
    assert "conv1" not in stretches.untrained(mixed)
    assert len(stretches.untrained(mixed)) == len(mixed) - 1


def test_curves_of_the_teacher_shape_the_students_of_every_chain(stretches):
    """A group that is worth nothing goes first, in the chains that end below the teacher, too."""
    curves = {g: np.linspace(-1.0, 0.0, n) for g, n in stretches.groups.items()}
    spared = "layer4.0.conv1"
    curves[spared] = np.zeros(stretches.groups[spared])
    for limit in (300_000, 60_000, 15_000):
        sizes = stretches.resolve(params=limit, shape=curves)
        chain = stretches.chain_for(sizes)
        assert 0.8 * limit < stretches.costs(sizes)[0] <= limit
        assert sizes[spared] < sizes["layer4.0.conv2"]  # as wide in the teacher
    assert chain is stretches.chains[0]


def test_nested_ladders_are_files_that_the_edge_reads(stretches, tmp_path):
    path = tmp_path / "ladder.safetensors"
    stretches.save(path, classifier=True)
    for width in (1 / 8, 0.4, 1):
        sizes = stretches.resolve(width=width)
        assert_same_student(
            ChainLadder.load(path).student(width=width), stretches.student(width=width)
        )
        arrays = edge.load_ladder(path).chain_for(sizes).student(widths=sizes)
        for name, tensor in stretches.expand(sizes).items():
            assert np.array_equal(arrays[name], tensor.numpy())


def test_a_progressive_ladder_is_read_chain_by_chain(stretches, tmp_path):
    stretches = ChainLadder([copy.copy(chain) for chain in stretches.chains])
    for chain, number in zip(stretches.chains, (1, 2, 3)):
        chain.weights = number * chain.weights  # weights of its own
    parts = progressive.write(stretches, tmp_path / "packed", classifier=True)
    ends = [stretches.resolve(width) for width in (*SHARES, 1.0)]
    assert [(part.about["chain"], part.about["widths"]) for part in parts] == [
        (0, ends[0]), (0, ends[1]), (1, ends[1]), (1, ends[2]), (2, ends[2]), (2, ends[3])
    ]  # fmt: skip
    data = (tmp_path / "packed").read_bytes()
    for part in parts:
        here = ChainLadder.load(data[: part.end])
        number, widest = part.about["chain"], part.about["widths"]
        assert (len(here.chains), here.groups) == (number + 1, widest)
        for sizes in ends[: ends.index(widest) + 1]:
            chain = stretches.chains[here.chains.index(here.chain_for(sizes))]
            assert_same_student(here.student(widths=sizes), chain.student(widths=sizes))
            arrays = edge.load_ladder(data[: part.end])
            assert arrays.chains.index(arrays.chain_for(sizes)) == stretches.chains.index(chain)
    whole = ChainLadder.load(data)
    for one, other in zip(whole.chains, stretches.chains):
        assert (one.widths, one.groups) == (other.widths, other.groups)
    assert progressive.write(stretches, tmp_path / "few", (0.3, 1))[0].about["chain"] == 1


NESTED = recipe(
    chain="nested", alpha=0.0, distill=4.0, anchor=2.0, center_weight=0.0, random_widths=1,
    height=32, width=16,
)  # fmt: skip


def nested_two(teacher):
    images = torch.zeros(SHAPE)
    return ChainLadder.from_teacher(teacher, images, (1 / 4, 1 / 2), "nested", check=False)


def test_a_step_of_a_nested_ladder_runs_every_chain_and_the_teacher_first():
    teacher = make_teacher()
    narrow, widest = nested_two(teacher).chains
    model = NestedLadder(teacher, narrow, widest, random_widths=1).train()
    outputs = model(torch.randn(SHAPE))
    # Full width, narrowest, tapered, a random one; the narrow chain's the same without full width.
    widths = [feature.shape[1] for feature, _ in outputs]
    assert (len(outputs), widths[:3], widths[4:6]) == (7, [128, 64, 64], [32, 32])
    assert model.teacher is teacher
    sum(logits.sum() for _, logits in outputs[4:]).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert model.s_students()[0].conv1.out_channels == 1


def test_the_widest_of_several_chains_shares_a_batch_between_teacher_and_students():
    chains = nested_two(make_teacher()).chains
    rows = []
    for ladder in (chains, chains[-1:]):
        model = NestedLadder(make_teacher(), *ladder, first=3).train()
        rows.append([len(feature) for feature, _ in model(torch.randn(SHAPE))])
    assert rows == [[3, 5, 5, 8, 8], [8, 8]]


def test_losses_are_of_the_images_that_a_network_has_seen():
    """Half of a batch each, or all of it to all: the same where both halves are the same."""
    images = torch.randn(4, *SHAPE[1:]).repeat(2, 1, 1, 1)
    ids = torch.tensor([0, 0, 1, 1]).repeat(2)
    totals = []
    for first in (0, 4):
        teacher = make_teacher()
        joint = NestedLadder(teacher, *nested_two(teacher).chains, first=first)
        objective = JointObjective(joint, NESTED).train()
        total, parts = objective(images, ids, 0.5)
        totals.append({**parts, "total": total.detach()})
    assert totals[0].keys() == totals[1].keys()
    for name, value in totals[0].items():
        torch.testing.assert_close(totals[1][name], value, rtol=1e-4, atol=1e-5)


def test_nested_chains_are_refined_in_one_run_each_with_weights_of_its_own(tmp_path):
    refine(tmp_path / "cut", nested_two, changed=NESTED, max_steps=3)
    whole = refine(tmp_path / "whole", nested_two, changed=NESTED)
    assert_same_chains(refine(tmp_path / "cut", nested_two, changed=NESTED, resume=True), whole)
    narrow, widest = whole.chains
    assert not torch.equal(narrow.weights, widest.truncated(1 / 2).weights)
    full = widest.student(width=1.0).state_dict()
    trained = load_state(tmp_path / "whole" / "teacher.safetensors")[0]
    assert all(torch.equal(tensor, full[name]) for name, tensor in trained.items())
    assert whole.verify(quiet=True) < 1e-12


# -- errors ---------------------------------------------------------------------------------------


def test_errors(ladder, pair, path):
    one = ladder.chains[0]
    teacher, (_, half) = pair
    with pytest.raises(ValueError, match=r"^ladder: chains must be one or more, got none\. Make"):
        ChainLadder([])
    with pytest.raises(ValueError, match=r"^ladder: chains must be of one kind, got 'oskt' and 'n"):
        ChainLadder([one, make_chain(teacher, 1 / 4, kind="nested")])
    with pytest.raises(ValueError, match=r"narrower in none, got 1 and 1 channels of conv1\. Use"):
        ChainLadder([make_chain(teacher, 1 / 4, kind="nested") for _ in range(2)])
    with pytest.raises(ValueError, match=r"^ladder: chains must have the channel groups of one te"):
        ChainLadder([one, half])
    with pytest.raises(ValueError, match=r"narrower in none, got 2 and 2 channels of conv1\. Use"):
        ChainLadder([one, one])
    crossed = make_chain(teacher, 1 / 2, widths={"layer1.0.conv2": 1})
    with pytest.raises(ValueError, match=r"got 2 and 1 channels of layer1.0.conv2\. Use shares fu"):
        ChainLadder([make_chain(teacher, 1 / 4, widths={"layer1.0.conv2": 2}), crossed])
    with pytest.raises(ValueError, match=r"^WeightChain: .*must allow the smallest student, "):
        ladder.student(params=10)
    with pytest.raises(
        ValueError, match=r"^WeightChain: one of width, widths, preset and a budget"
    ):
        ladder.student()
    for widths in ((), (1 / 4, 1 / 4), (0, 1 / 2)):
        with pytest.raises(ValueError, match=r"^ChainLadder.from_teacher: widths must be distinct"):
            ChainLadder.from_teacher(teacher, torch.zeros(SHAPE), widths)
    for load in (WeightChain.load, edge.load):
        with pytest.raises(ValueError, match=r"must hold one chain, got a ladder of 3\. Read it w"):
            load(path)
    with pytest.raises(ValueError, match=r"^JointModel: chains must be one or more, got none\. Ma"):
        JointModel(teacher)
    nested = replace(recipe(alpha=0.0, center_weight=0.0), chain="nested")
    with pytest.raises(
        ValueError, match=r"^NestedModel: chain must be of kind 'nested', got 'oskt"
    ):
        refine_chain(teacher, two(teacher), TinyData(), nested, "unused")
