"""Teacher and S-Student in one module, and running statistics of students."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from oskt.chain import WeightChain
from oskt.models.resnet import ResNet
from oskt.students import recalibrate, replace_classifier
from oskt.train.joint import JointModel
from oskt.train.nested import NestedModel

SHAPE = (4, 3, 64, 32)


@pytest.fixture
def joint():
    torch.manual_seed(0)
    teacher = ResNet(50, in_planes=8, num_classes=5, layers=(1, 1, 1, 1))
    chain = WeightChain.from_teacher(teacher, torch.zeros(SHAPE), width=1 / 4, check=False)
    return JointModel(teacher, chain).train()


def chain_of(joint):
    (chain,) = joint.to_chains()
    return chain


def test_s_student_is_the_expansion_at_chain_width(joint):
    images = torch.randn(SHAPE)
    chain = chain_of(joint)
    student = chain.student(widths=chain.widths).train()
    _, (feature, logits) = joint(images)
    expected_feature, expected_logits = student(images)
    assert torch.equal(feature, expected_feature)
    assert torch.equal(logits, expected_logits)


def test_gradients_reach_chain_teacher_and_shared_norms(joint):
    (branch,) = joint.branches
    (_, _), (_, logits) = joint(torch.randn(SHAPE))
    logits.square().sum().backward()
    assert branch.weights.grad.abs().sum() > 0
    gradients = {name: p.grad for name, p in joint.teacher.named_parameters()}
    shared = {name for name, g in gradients.items() if g is not None}
    # the S-Student's loss moves the norms that it shares, and no weight of the teacher
    assert shared == {n for n in gradients if ".bn" in n or "bn1" in n or "downsample.1" in n} | {
        "bottleneck.weight"
    }


def test_refining_loss_pulls_rows_together(joint):
    teacher = dict(joint.teacher.named_parameters())
    (branch,), chain = joint.branches, chain_of(joint)
    rows = branch.split_weights(branch.weights)
    expected = 0.0
    for name in branch.refined_names:
        labels = torch.from_numpy(chain.partitions[chain.coupling.layouts[name].rows[0][0]].labels)
        expected += (teacher[name].double() - rows[name].double()[labels]).square().sum()
    assert "classifier.weight" not in branch.refined_names
    torch.testing.assert_close(joint.refining_loss().double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(joint.refining_loss(0.5).double(), expected / 2, rtol=1e-6, atol=0)


def test_paper_form_divides_by_layers_and_clusters(joint):
    chain = chain_of(joint)
    mean = JointModel(joint.teacher, chain, form="mean")
    loss = 0.0
    teacher = dict(mean.teacher.named_parameters())
    (branch,) = mean.branches
    rows = branch.split_weights(branch.weights)
    for name in branch.refined_names:
        labels = torch.from_numpy(chain.partitions[chain.coupling.layouts[name].rows[0][0]].labels)
        residual = (teacher[name] - rows[name][labels]).square().sum()
        loss += residual / len(rows[name]) / len(branch.refined_names)
    torch.testing.assert_close(mean.refining_loss(), loss)


def test_state_dict_is_complete(joint):
    joint(torch.randn(SHAPE))
    other = JointModel(ResNet(50, in_planes=8, num_classes=5, layers=(1, 1, 1, 1)), chain_of(joint))
    other.load_state_dict(joint.state_dict())
    images = torch.randn(SHAPE)
    assert torch.equal(other.s_students()[0](images), joint.s_students()[0](images))
    assert torch.equal(other.eval().teacher(images), joint.eval().teacher(images))


def test_statistics_of_the_s_student_travel(joint):
    for _ in range(3):
        joint(torch.randn(SHAPE))
    chain = chain_of(joint)
    student = chain.student(width=0.5)
    assert not torch.equal(student.bn1.running_mean, torch.zeros_like(student.bn1.running_mean))
    assert chain.verify(quiet=True) < 1e-12


def test_own_vectors_are_trained_apart_and_held_to_the_teachers(joint):
    own = JointModel(joint.teacher, chain_of(joint), vectors="own")
    (branch,) = own.branches
    rows = joint.refining_loss().item()
    assert own.refining_loss().item() == rows  # they begin as the teacher's
    branch.vectors.data.add_(0.5)
    moved = int((~branch.untrained).sum())
    assert 0 < moved < len(branch.vectors)  # BNNeck's bias does not take part
    # a sum of `moved` squares of 1/4 in float32: one rounding of 6e-8 for each level of the sum
    assert own.refining_loss().item() - rows == pytest.approx(moved / 4, rel=1e-5)
    student, teacher = own.s_students()[0], own.teacher
    assert torch.equal(student.bottleneck.bias, torch.zeros_like(student.bottleneck.bias))
    labels = torch.from_numpy(chain_of(own).clusterings["conv1"].labels)
    means = torch.stack(
        [teacher.bn1.weight[labels == k].mean() for k in range(int(labels.max()) + 1)]
    )
    torch.testing.assert_close(student.bn1.weight, means + 0.5)


def test_wrong_arguments(joint, tmp_path):
    with pytest.raises(ValueError, match="form must be 'sum' or 'mean', got 'max'"):
        JointModel(joint.teacher, chain_of(joint), form="max")
    with pytest.raises(ValueError, match="vectors must be 'shared' or 'own', got 'none'"):
        JointModel(joint.teacher, chain_of(joint), vectors="none")
    chain_of(joint).save(tmp_path / "chain")
    with pytest.raises(ValueError, match="chain must hold all its weights, got one without class"):
        JointModel(joint.teacher, WeightChain.load(tmp_path / "chain"))


def test_recalibration_is_the_plain_average(joint):
    student = chain_of(joint).student(width=0.5)
    batches = [torch.randn(SHAPE) for _ in range(3)]
    seen = []
    student.bn1.register_forward_hook(lambda m, i, o: seen.append(i[0].detach()))
    assert recalibrate(student, batches) == 3
    means = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(student.bn1.running_mean, means)
    assert not any(m.training for m in student.modules())
    assert student.bn1.momentum == 0.1
    before = student.bn1.running_mean.clone()
    assert recalibrate(student, []) == 0
    assert torch.equal(student.bn1.running_mean, before)


def test_recalibration_measures_without_dropout_and_leaves_every_mode():
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.Dropout(0.5), norm, nn.ReLU()).train()
    model[2].eval()
    model.weight = nn.Parameter(torch.zeros(1))
    images = torch.randn(SHAPE)
    assert recalibrate(model, [images]) == 1
    torch.testing.assert_close(norm.running_mean, images.mean((0, 2, 3)))
    assert [module.training for module in model] == [True, True, False]

    def fails():
        yield images
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        recalibrate(model, fails())
    assert [module.training for module in model] == [True, True, False]
    assert norm.momentum == 0.1
    assert recalibrate(model.double(), [images]) == 1


class Unusual(nn.Module):
    """One weight in two places, and a buffer with channels that is no statistic."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second, self.third = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.third.weight = self.second.weight
        self.register_buffer("scale", torch.rand(8, 1, 1) + 1)
        self.last = nn.Conv2d(8, 6, 1)
        self.bottleneck = nn.BatchNorm1d(6)
        self.classifier = nn.Linear(6, 5, bias=False)

    def forward(self, images):
        feature = self.scale * self.third(self.second(self.first(images)).relu())
        feature = self.last(feature).mean((2, 3))
        embedding = self.bottleneck(feature)
        return (feature, self.classifier(embedding)) if self.training else embedding


@pytest.mark.parametrize("kind", ["oskt", "nested"])
def test_tied_weights_and_buffers_of_channels_are_trained(kind):
    torch.manual_seed(0)
    teacher, images = Unusual(), torch.randn(4, 3, 16, 8)
    chain = WeightChain.from_teacher(teacher, images, kind, width=1 / 2)
    assert "scale" in {t.name for t in chain.coupling.layouts_of(("vector",))}
    assert chain.coupling.training_only == {"classifier.weight"}
    joint = (JointModel if kind == "oskt" else NestedModel)(teacher, chain).train()
    outputs = joint(images)
    (now,) = [joint.to_chain()] if kind == "nested" else joint.to_chains()
    expected, logits = now.student(widths=chain.widths).train()(images)
    assert torch.equal(outputs[1][0], expected)
    assert torch.equal(outputs[1][1], logits)
    outputs[0][1].square().sum().backward()
    assert teacher.second.weight.grad.abs().sum() > 0


def test_replace_classifier(joint):
    student = chain_of(joint).student(width=0.5).train()
    replace_classifier(student, 9)
    assert student(torch.randn(SHAPE))[1].shape == (4, 9)
    assert student.spec["num_classes"] == 9
    replace_classifier(student.double(), 7)
    assert student(torch.randn(SHAPE).double())[1].shape == (4, 7)
