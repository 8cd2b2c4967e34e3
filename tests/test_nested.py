"""Training of a nested chain: students merged in every step, and norm statistics of every width."""

from __future__ import annotations

from dataclasses import replace

import nets
import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from train_fakes import CLASSES, TinyData

from oskt import reading, students
from oskt.chain import WeightChain
from oskt.chain.calibration import calibrate
from oskt.models.resnet import ResNet
from oskt.reading import Inputs
from oskt.train import RECIPES, refine_chain
from oskt.train.nested import NestedModel
from oskt.train.recipe import RefineRecipe
from oskt.train.rota import Rota
from oskt.widths import EIGHTHS
from oskt.widths.merge_tree import MergeTree

SHAPE = (4, 3, 32, 16)


def nested_chain(teacher, **options):
    return WeightChain.from_teacher(
        teacher, torch.zeros(SHAPE), "nested", check=False, **{"width": 1 / 4, **options}
    )


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return ResNet(18, in_planes=8, num_classes=CLASSES, layers=(1, 1, 1, 1))


@pytest.fixture
def nested(teacher):
    return NestedModel(teacher, nested_chain(teacher), random_widths=2).train()


def test_every_output_is_that_of_the_chains_student(nested):
    images, chain = torch.randn(SHAPE), nested.to_chain()
    for turn in (chain.widths, chain.resolve(1 / 2), None, chain.widths):
        torch.manual_seed(3)
        outputs = nested(images)
        torch.manual_seed(3)
        in_turn = turn or nested.rota.draw()
        widths = [chain.groups, in_turn, nested.rota.draw(), nested.rota.draw()]
        assert len(outputs) == len(widths)
        for (feature, logits), sizes in zip(outputs, widths):
            expected_feature, expected_logits = chain.student(widths=sizes).train()(images)
            assert torch.equal(feature, expected_feature)
            assert torch.equal(logits, expected_logits)


@pytest.mark.parametrize(
    ("narrowest", "others"),
    [(1 / 8, (1 / 2, 1 / 4)), (1 / 4, (1 / 2,)), (0.3, (1 / 2,)), (0.45, ()), (1.0, ())],
)
def test_narrowest_and_powers_of_a_half_take_turns(teacher, narrowest, others):
    chain = nested_chain(teacher, width=narrowest)
    rota = Rota(chain)
    assert rota.full
    fixed = [chain.widths, *(chain.resolve(share) for share in others)]
    assert rota.turns == [*([widths] for widths in fixed), [None]]
    assert rota.fixed == fixed
    assert [rota.step() for _ in rota.turns][:-1] == rota.turns[:-1]
    assert rota.step() == [chain.widths]


def test_chains_of_a_ladder_train_students_of_three_shapes_in_turn(teacher):
    chain = nested_chain(teacher, width=1 / 2)
    narrow, widest = Rota(chain, "narrow"), Rota(chain, "widest", random_widths=1)
    assert (narrow.full, widest.full) == (False, True)
    (_, tapered), again, (narrowest, middle), first = (narrow.step() for _ in range(4))
    assert first == again == [narrowest, tapered]
    assert narrowest == chain.widths
    assert middle == chain.resolve(3 / 4)
    shares = {group: n / chain.groups[group] for group, n in tapered.items()}
    assert [shares[f"layer{i}.0.conv1"] for i in (1, 2, 3, 4)] == [1, 1, 3 / 4, 1 / 2]
    torch.manual_seed(0)
    steps = [widest.step() for _ in range(2)]
    assert [fixed for *fixed, _ in steps] == [[chain.widths, tapered]] * 2
    assert steps[0][-1] != steps[1][-1]


def test_full_width_and_its_students_share_a_batch_and_fixed_students_are_made_once(teacher):
    chain = nested_chain(teacher, width=1 / 2)
    model = NestedModel(teacher, chain, "widest", first=2).train()
    images = torch.randn(4, *SHAPE[1:])
    made = []
    for _ in range(2):
        whole, *students = model(images)
        [turn] = model.rota.turns
        assert torch.equal(whole[0], teacher(images[:2])[0])
        for widths, student in zip(turn, students, strict=True):
            expected = model.to_chain().student(widths=widths).train()(images[2:])
            assert torch.equal(student[0], expected[0])
        made.append([model._reading(widths) for widths in turn])
    assert all(one is other for one, other in zip(*made))
    with torch.no_grad():
        next(teacher.parameters()).mul_(2)
    assert not torch.equal(model(images)[2][0], student[0])


def test_whose_turn_it_is_survives_a_resumed_run(nested, teacher):
    nested(torch.randn(SHAPE))
    resumed = NestedModel(teacher, nested_chain(teacher), random_widths=0).train()
    resumed.load_state_dict(nested.state_dict())
    images = torch.randn(SHAPE)
    assert torch.equal(resumed(images)[1][0], nested(images)[1][0])
    for other in ({"width": 1 / 2}, {"method": "ward"}):
        model = NestedModel(teacher, nested_chain(teacher, **other))
        with pytest.raises(
            ValueError, match=r"^NestedModel: chain must have the groups and widths"
        ):
            model.load_state_dict(nested.state_dict())


def test_gradients_are_those_of_a_dense_merge(teacher):
    """The student's weight is P W S^T, with the mean and the sum over clusters as 0/1 matrices."""
    chain = nested_chain(teacher.double(), method="ward")
    model = NestedModel(teacher, chain, random_widths=0).train()
    images = torch.randn(SHAPE, dtype=torch.float64)
    chain, widths = model.to_chain(), model.to_chain().widths

    def merge(group, axis_is_column):
        if group not in chain.partitions:
            return torch.eye(chain.coupling.groups[group].size, dtype=torch.float64)
        labels = torch.from_numpy(chain.partitions[group].cut(widths[group]).labels)
        one_hot = nn.functional.one_hot(labels).T.double()
        return one_hot if axis_is_column else one_hot / one_hot.sum(1, keepdim=True)

    tensors = {}
    for name, parameter in teacher.named_parameters():
        layout, value = chain.coupling.layouts[name], parameter
        if layout.rows:
            value = torch.einsum("ij,j...->i...", merge(layout.rows[0][0], False), value)
        if layout.columns:
            value = torch.einsum("kj,ij...->ik...", merge(layout.columns[0][0], True), value)
        tensors[name] = value
    student = chain.student(widths=widths).train()
    functional_call(student, tensors, (images,))[1].square().sum().backward()
    expected = {name: p.grad for name, p in teacher.named_parameters()}
    teacher.zero_grad()
    model(images)[1][1].square().sum().backward()
    for name, parameter in teacher.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_random_widths_are_drawn_from_the_seed_within_range(nested):
    chain = nested.to_chain()
    torch.manual_seed(1)
    drawn = [nested.rota.draw() for _ in range(64)]
    torch.manual_seed(1)
    assert drawn == [nested.rota.draw() for _ in range(64)]
    for widths in drawn:
        assert all(chain.widths[g] <= n < chain.groups[g] for g, n in widths.items())
    wide = [g for g, size in chain.groups.items() if size >= 32]
    shares = [{widths[g] / chain.groups[g] for g in wide} for widths in drawn]
    uniform = sum(max(s) - min(s) <= 1 / 32 for s in shares)
    # A fair coin, 64 times: 5 deviations of 4 around 32. The seed is fixed; the bound is no draw.
    assert 12 < uniform < 52


def test_depthwise_layers_change_width_in_one_structure():
    torch.manual_seed(0)
    module = nets.Mixed()
    images = torch.randn(2, 3, 8, 8)
    chain = WeightChain.from_teacher(module, images, "nested", width=1 / 4)
    model = NestedModel(module, chain, random_widths=2).train()
    for seed in range(2):  # the turns of the narrowest and of 1/2
        torch.manual_seed(seed)
        outputs = model(images)
        torch.manual_seed(seed)
        for output in outputs[2:]:
            student = chain.student(widths=model.rota.draw()).train()
            torch.testing.assert_close(output, student(images))


def test_refinement_writes_a_chain_that_knows_its_statistics(teacher, tmp_path):
    recipe = replace(
        RECIPES["demo-nested"], epochs=2, identities=4, instances=2, height=8, width=4,
        warmup_epochs=0,
    )  # fmt: skip
    images = [torch.randn(SHAPE) for _ in range(2)]
    seen = []

    def evaluate(network):
        seen.append(sum(p.numel() for p in network.parameters()))
        return {"mAP": float(network(images[0]).isfinite().all())}

    before = {name: p.clone() for name, p in teacher.named_parameters()}
    path = refine_chain(
        teacher, nested_chain(teacher), TinyData(), recipe, tmp_path, calibration=lambda: images,
        evaluate=evaluate, tensorboard=False, device="cpu",
    )  # fmt: skip
    chain = WeightChain.load(path)
    assert chain.kind == "nested"
    assert len(seen) == 2
    assert seen[1] < seen[0]
    assert all(not torch.equal(p, before[n]) for n, p in teacher.named_parameters()
               if p.requires_grad)  # fmt: skip
    assert all(tree.measured for tree in chain.partitions.values())
    full = chain.student(width=1.0)
    assert torch.equal(full(images[0]), teacher.eval()(images[0]))
    for width in (1 / 4, 1 / 2):
        at_once, measured = chain.student(width=width), chain.student(width=width)
        students.recalibrate(measured, images)
        assert torch.equal(at_once(images[0]), measured(images[0]))


def dense(tree, n, inputs=None):
    statistic = reading.statistic(tree, n, inputs)
    return statistic.read(np.eye(statistic.size), 0)


def test_statistics_blend_between_measured_widths():
    """Four channels measured at width 2; at 3 each cluster is half its parent, half itself."""
    order, parent = np.array([0, 1, 3, 2]), np.array([-1, 0, 0, 0])
    tree = MergeTree(order, parent, np.ones(4, dtype=int), measured=(2,))
    assert dense(tree, 2).tolist() == [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert dense(tree, 1).tolist() == [[3 / 4, 1 / 4, 0, 0, 0, 0]]
    below, above = 0.5, 0.5
    assert dense(tree, 3).tolist() == [
        [below, 0, above / 2, 0, above / 2, 0],
        [0, below, 0, above, 0, 0],
        [below, 0, 0, 0, 0, above],
    ]
    assert dense(tree, 4)[:, 2:].tolist() == np.eye(4).tolist()


def test_statistics_are_those_of_the_inputs_that_are_read():
    """Eight channels in their own order, measured at widths 2 and 4."""
    parent = np.array([-1, *range(7)])
    tree = MergeTree(np.arange(8), parent, np.ones(8, dtype=int), measured=(2, 4), merges=False)
    at_2, at_4, at_8 = np.eye(14)[:2], np.eye(14)[2:6], np.eye(14)[6:]

    def reads(size):  # of 16 inputs, 4 and 8 at the measured widths
        return Inputs(size, (4, 8, 16))

    # Narrower than what the layer reads: the numbers of that width.
    assert np.array_equal(dense(tree, 2, reads(16)), at_8[:2])
    assert np.array_equal(dense(tree, 2, reads(8)), at_4[:2])
    # Wider: of each channel those of the nearest width that has it.
    assert np.array_equal(dense(tree, 8, reads(4)), [*at_2, *at_4[2:], *at_8[4:]])
    # Between two widths: both, but of a channel that the lower lacks.
    blended = dense(tree, 5, reads(6))
    assert np.array_equal(blended[:2], (at_2 + at_4[:2]) / 2)
    assert np.array_equal(blended[2:], [*at_4[2:], at_8[4]])
    # Of several widths at which a layer reads as much, the nearest: as measured, if that is one.
    assert np.array_equal(dense(tree, 4, Inputs(1, (1, 1, 2))), at_4)
    assert np.array_equal(dense(tree, 2, Inputs(1, (1, 1, 2))), at_2)
    assert np.array_equal(dense(tree, 3, Inputs(1, (1, 1, 2)))[:2], (at_2 + at_4[:2]) / 2)
    # Under the lowest, from above alone.
    assert np.array_equal(dense(tree, 1, reads(2)), at_2[:1])
    # Clusters: the mean of their parts, or what their parent has.
    order, joins = np.array([0, 1, 3, 2]), np.array([-1, 0, 0, 0])
    merging = MergeTree(order, joins, np.ones(4, dtype=int), measured=(2,))
    assert dense(merging, 2, Inputs(4, (2, 4))).tolist() == [
        [0, 0, 1 / 3, 0, 1 / 3, 1 / 3],
        [0, 0, 0, 1, 0, 0],
    ]
    assert dense(merging, 4, Inputs(1, (2, 4))).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
    ]


def test_every_measured_width_is_as_measured():
    """Also where widths are rounded: a layer of four channels has two at 3/8 and at 1/2."""
    images = [torch.randn(SHAPE) for _ in range(4)]
    teacher = ResNet(50, in_planes=4, num_classes=CLASSES, layers=(1, 1, 1, 1))
    chain = calibrate(nested_chain(teacher.eval()), lambda: images)
    for share in EIGHTHS[1:-1]:
        stored, measured = chain.student(width=share), chain.student(width=share)
        students.recalibrate(measured, images)
        for (name, buffer), (_, expected) in zip(stored.named_buffers(), measured.named_buffers()):
            assert torch.equal(buffer, expected) or "num_batches" in name


def test_a_tapered_student_has_the_statistics_of_what_it_reads(teacher):
    """A layer that reads all its inputs but writes few channels: as measured, from the file."""
    images = [torch.randn(SHAPE) for _ in range(4)]
    teacher.train()(images[0])
    chain = calibrate(nested_chain(teacher.eval()), lambda: images, (1 / 4, 1 / 2), full=True)
    widths = {**chain.groups, "layer4.0.conv1": chain.groups["layer4.0.conv1"] // 4}
    stored, measured = chain.student(widths=widths), chain.student(widths=widths)
    students.recalibrate(measured, images)
    norms = [dict(network.named_modules())["layer4.0.bn1"] for network in (stored, measured)]
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(*(getattr(norm, name) for norm in norms), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["magnitude", "ward"])
def test_calibration_keeps_the_identity_and_travels(teacher, tmp_path, method):
    images = [torch.randn(SHAPE) for _ in range(2)]
    teacher.train()(images[0])
    chain = nested_chain(teacher.eval(), method=method)
    chain = calibrate(chain, lambda: images, (1 / 8, 1 / 4, 1 / 2))
    assert {len(tree.measured) for tree in chain.partitions.values()} == {2}  # 1/8 is not trained
    assert chain.verify(quiet=True) < 1e-8
    chain.save(tmp_path / "chain.safetensors")
    loaded = WeightChain.load(tmp_path / "chain.safetensors")
    cut = chain.truncated(1 / 2)
    for width in (1 / 4, 0.4, 1 / 2):
        expected = chain.student(width=width)(images[0])
        assert torch.equal(loaded.student(width=width)(images[0]), expected)
        torch.testing.assert_close(
            cut.student(widths=chain.resolve(width))(images[0]), expected, rtol=1e-4, atol=1e-5
        )


def test_errors(teacher):
    published = WeightChain.from_teacher(teacher, torch.zeros(SHAPE), width=1 / 2, check=False)
    with pytest.raises(ValueError, match=r"^NestedModel: chain must be of kind 'nested', got 'os"):
        NestedModel(teacher, published)
    with pytest.raises(ValueError, match=r"^calibrate: chain must be nested, got kind 'oskt'\. Re"):
        calibrate(published, list)
    nested = nested_chain(teacher)
    nested.absent = ("classifier.weight",)
    with pytest.raises(ValueError, match=r"^NestedModel: chain must hold all its weights, got one"):
        NestedModel(teacher, nested)
    with pytest.raises(ValueError, match=r"^JointModel: chain must be of kind 'oskt', got 'nested"):
        refine_chain(teacher, nested_chain(teacher), TinyData(), RefineRecipe(), "unused")
