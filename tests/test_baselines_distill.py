"""Students under a teacher: the losses against their formulas, and what a run writes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from train_fakes import CLASSES, TinyData, TinyNet, recipe

from oskt.baselines import (
    DistilledObjective,
    DistillRecipe,
    class_means,
    distill_student,
    norm_direction_loss,
)
from oskt.baselines.distill import TeacherCopy
from oskt.files.checkpoint import file_hash, load_state
from oskt.train import RECIPES, Recipe, train_teacher
from oskt.train.losses import ReIDLoss, distillation

OPTIONS = {"tensorboard": False, "device": "cpu"}
IDS = torch.tensor([2, 0, 0, 1])


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # bitwise runs; and tiny layers are slower on two threads


def told(**changes):
    base = {f.name: getattr(recipe(), f.name) for f in dataclasses.fields(Recipe)}
    return DistillRecipe(**{**base, **changes})


def batch():
    images, ids, _ = next(TinyData().batches(1))
    return images, ids


def features(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(4, 5, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])  # shorter than the teacher, mixed, longer
def test_norm_direction_is_its_formula(scale):
    student, teacher, means = features(0, scale), features(1), features(2)[:3]
    expected = 0.0
    for s, t, i in zip(student, teacher, IDS.tolist()):
        center = means[i] / means[i].norm()
        expected += (1 - torch.dot(s, center) / max(s.norm(), t.norm())).item() / 4
    loss = norm_direction_loss(student, teacher, IDS, means)
    assert loss.item() == pytest.approx(expected, abs=1e-14)  # 4 terms near 1, 10 roundings each
    half = norm_direction_loss(student.half(), teacher, IDS, means)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(expected, abs=5e-3)  # inputs rounded to 2^-11


def test_norm_direction_asks_for_length_only_below_the_teachers():
    means = torch.tensor([[0.0, 2.0]])
    ids, teacher = torch.zeros(1, dtype=torch.int64), torch.tensor([[1.0, 0.0]])
    short = torch.tensor([[0.0, 0.5]], requires_grad=True)
    norm_direction_loss(short, teacher, ids, means).backward()
    assert short.grad.tolist() == [[0.0, -1.0]]
    long = torch.tensor([[0.0, 3.0]], requires_grad=True)
    norm_direction_loss(long, teacher, ids, means).backward()
    assert long.grad.tolist() == [[0.0, 0.0]]


def test_norm_direction_gradients():
    student, teacher, means = features(0).requires_grad_(), features(1), features(2)[:3]
    assert torch.autograd.gradcheck(lambda s: norm_direction_loss(s, teacher, IDS, means), student)
    teacher.requires_grad_()
    means.requires_grad_()
    norm_direction_loss(student, teacher, IDS, means).backward()
    assert teacher.grad is None
    assert means.grad is None


def test_norm_direction_of_nothing_is_one_without_a_gradient():
    zero = torch.zeros(4, 5, requires_grad=True)
    loss = norm_direction_loss(zero, torch.zeros(4, 5), IDS, torch.zeros(3, 5))
    loss.backward()
    assert loss.item() == 1.0
    assert torch.equal(zero.grad, torch.zeros(4, 5))


@pytest.mark.parametrize(
    "shapes",
    [((4, 5), (4, 6), (4,), (3, 5)), ((4, 5), (4, 5), (3,), (3, 5)), ((4, 5), (4, 5), (4,), (3, 6)),
     ((4,), (4,), (4,), (3, 1)), ((4, 5), (4, 5), (4,), (5,))],
)  # fmt: skip
def test_norm_direction_refuses_other_shapes(shapes):
    student, teacher, ids, means = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"^norm_direction_loss: student, teacher, ids and class_"):
        norm_direction_loss(student, teacher, ids.long(), means)


def test_a_frozen_teacher_speaks_as_it_was_scored():
    network = TinyNet()
    network.bn.running_mean.add_(0.3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    frozen = TeacherCopy(network).train()
    images, _ = batch()
    feature, logits = frozen(images)
    assert not feature.requires_grad
    assert torch.equal(frozen(images)[0], feature)  # no dropout
    alone = frozen(images[:1])[0]
    assert torch.allclose(alone, feature[:1], atol=1e-6)  # whatever else is in the batch
    with torch.no_grad():
        embedding = network.eval()(images)
        assert torch.equal(network.bottleneck(feature), embedding)
        assert torch.equal(network.classifier(embedding), logits)
    assert all(torch.equal(tensor, before[k]) for k, tensor in frozen.network.state_dict().items())
    assert network.conv.weight.requires_grad  # the copy is frozen, not the teacher


def test_class_means_are_the_teachers():
    teacher = TinyNet()
    rows = {i: [] for i in range(CLASSES)}
    for images, ids, _ in TinyData().batches(1):
        with torch.no_grad():
            for row, i in zip(teacher.eval().bn(teacher.conv(images)).relu().mean((2, 3)), ids):
                rows[int(i)].append(row.double())
    means = class_means(teacher.train(), TinyData(), recipe(), device="cpu")
    for i, found in enumerate(means):
        torch.testing.assert_close(found, torch.stack(rows[i]).mean(0).float(), rtol=1e-6, atol=0)
    unseen = class_means(TinyNet(classes=CLASSES + 1), TinyData(), recipe(), device="cpu")
    assert not unseen[CLASSES].any()


@pytest.mark.parametrize("channels", [6, 3])
def test_the_objective_is_the_sum_of_its_parts(channels):
    teacher, student = TinyNet(), TinyNet(channels, dropout=0.0)
    weights = told(distill=16.0, temperature=4.0, norm_direction=0.5)
    means = class_means(teacher, TinyData(), weights, device="cpu")
    objective = DistilledObjective(student, teacher, weights, means)
    images, ids = batch()
    total, parts = objective(images, ids, 0.0)
    expected = parts["id"] + parts["triplet"] + 5e-4 * parts["center"]
    expected = expected + 16.0 * parts["distillation"] + 0.5 * parts["norm_direction"]
    torch.testing.assert_close(total.detach(), expected)

    feature, logits = student(images)
    t_feature, t_logits = TeacherCopy(teacher)(images)
    kl = distillation(logits, t_logits, temperature=4.0)
    torch.testing.assert_close(parts["distillation"], kl.detach())
    projected = feature if channels == 6 else feature @ objective.projection.weight.T
    nd = norm_direction_loss(projected, t_feature, ids, means)
    torch.testing.assert_close(parts["norm_direction"], nd.detach())

    total.backward()
    learning = {name for name, p in objective.named_parameters() if p.grad is not None}
    assert {"network.conv.weight", "network.classifier.weight", "loss.centers"} <= learning
    assert ("projection.weight" in learning) == (channels == 3)
    assert not any(name.startswith("teacher") for name in learning)
    assert objective.scored() == {"": student}


def test_terms_without_weight_are_not_computed():
    objective = DistilledObjective(TinyNet(), TinyNet(), told(distill=0.0))
    _, parts = objective(*batch(), 0.0)
    assert not {"distillation", "norm_direction"} & set(parts)
    assert isinstance(objective.projection, nn.Identity)


def test_a_projection_depends_on_the_recipes_seed_alone():
    def weight(seed):
        torch.manual_seed(seed + 100)
        weights = told(norm_direction=1.0, seed=7)
        means = torch.ones(CLASSES, 6)
        return DistilledObjective(TinyNet(3), TinyNet(), weights, means).projection.weight

    assert torch.equal(weight(0), weight(1))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"^DistilledObjective: teacher .* got 5 and 4 classes"):
        DistilledObjective(TinyNet(), TinyNet(classes=5), told())
    for means, got in ((None, "None"), (torch.zeros(CLASSES, 3), r"\(4, 3\)")):
        with pytest.raises(
            ValueError, match=rf"^DistilledObjective: class_means must be .*\(4, 6\).*got {got}"
        ):
            DistilledObjective(TinyNet(3), TinyNet(), told(norm_direction=1.0), means)
    for wrong, message in (
        ({"distill": -1.0}, "distill must be >= 0"),
        ({"norm_direction": float("inf")}, "norm_direction must be >= 0 and finite"),
        ({"temperature": 0.0}, "temperature must be > 0"),
    ):
        with pytest.raises(ValueError, match=f"^recipe: {message}"):
            told(**wrong)


def test_a_student_file_holds_the_student_alone(tmp_path):
    (tmp_path / "chain").write_bytes(b"chain")
    teacher, student = TinyNet(), TinyNet(3)
    student.widths = {"conv": 3}
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    path = distill_student(
        student, teacher, TinyData(), recipe(), tmp_path / "out", norm_direction=1.0,
        parent=tmp_path / "chain", evaluate=lambda model: {"mAP": float(model is student)},
        **OPTIONS,
    )  # fmt: skip
    state, meta = load_state(path)
    assert path == tmp_path / "out" / "student.safetensors"
    assert state.keys() == student.state_dict().keys()
    assert all(torch.equal(state[name], t) for name, t in student.state_dict().items())
    assert meta["distillation"] == {"weight": 4.0, "temperature": 2.0, "norm_direction": 1.0}
    assert meta["recipe"] == recipe().to_dict()
    assert meta["metrics"] == {"mAP": 1.0}
    assert meta["widths"] == {"conv": 3}
    assert meta["parent"] == file_hash(tmp_path / "chain")
    assert all(torch.equal(t, before[name]) for name, t in teacher.state_dict().items())


def test_a_killed_run_goes_on_with_the_same_numbers(tmp_path):
    torch.manual_seed(3)
    teacher = TinyNet()

    def run(out, **options):
        torch.manual_seed(5)
        path = distill_student(
            TinyNet(3), teacher, TinyData(), recipe(), out,
            **{"norm_direction": 0.5, **OPTIONS, **options},
        )  # fmt: skip
        return load_state(path)[0]

    run(tmp_path / "resumed", max_steps=7)
    with pytest.raises(ValueError, match=r"^resume: recipe.distill must be 4.0 as in .*, got 1.0"):
        run(tmp_path / "resumed", resume=True, weight=1.0)
    resumed = run(tmp_path / "resumed", resume=True)
    whole = run(tmp_path / "whole")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_a_student_believes_its_teacher_more_than_the_labels(tmp_path):
    """The teacher takes every identity for the next one; the weight of the KL decides."""
    changes = recipe(epochs=8, lr=3e-2)
    torch.manual_seed(1)
    teacher = TinyNet(dropout=0.0)
    train_teacher(teacher, TinyData(), changes, tmp_path / "teacher", **OPTIONS)
    teacher.classifier.weight.data.copy_(teacher.classifier.weight.data.roll(1, 0))
    images, ids = batch()
    for weight, shift in ((0.0, 0), (40.0, 1)):
        torch.manual_seed(2)
        student = TinyNet(dropout=0.0)
        distill_student(
            student, teacher, TinyData(), changes, tmp_path / str(weight), weight=weight, **OPTIONS
        )
        said = TeacherCopy(student)(images)[1].argmax(1)
        assert torch.equal(said, (ids + shift) % CLASSES)


def test_the_reid_loss_is_that_of_plain_training():
    weights = told(distill=0.0)
    objective = DistilledObjective(TinyNet(dropout=0.0), TinyNet(), weights)
    images, ids = batch()
    total, _ = objective(images, ids, 0.0)
    expected, _ = ReIDLoss(weights, CLASSES, 6)(*objective.network(images), ids)
    assert torch.equal(total, expected)


def test_any_recipe_can_be_told_more(tmp_path):
    path = distill_student(
        TinyNet(3), TinyNet(), TinyData(), RECIPES["bot"], tmp_path, max_steps=1, **OPTIONS
    )
    assert load_state(path)[1]["recipe"] == RECIPES["bot"].to_dict()
