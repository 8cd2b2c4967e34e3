"""The three stages: what they train, what they write, what they say in it."""

import pytest
import torch
from torch import nn
from train_fakes import TinyData, TinyJoint, TinyNet, recipe

import oskt.train.refine
from oskt import WeightChain
from oskt.files.checkpoint import file_hash, load_state
from oskt.models.resnet import ResNet
from oskt.train import finetune_student, refine_chain, train_teacher
from oskt.train.refine import JointObjective
from oskt.train.teacher import output_sizes

OPTIONS = {"tensorboard": False, "device": "cpu"}


def test_a_teacher_file_says_what_it_is(tmp_path):
    (tmp_path / "start").write_bytes(b"weights")
    teacher = TinyNet()
    path = train_teacher(
        teacher, TinyData(), recipe(), tmp_path / "out",
        parent=tmp_path / "start", evaluate=lambda model: {"mAP": 0.5}, **OPTIONS,
    )  # fmt: skip
    state, meta = load_state(path)
    assert path == tmp_path / "out" / "teacher.safetensors"
    assert all(torch.equal(state[name], t) for name, t in teacher.state_dict().items())
    assert meta["spec"] == teacher.spec
    assert meta["parent"] == file_hash(tmp_path / "start")
    assert meta["recipe"] == recipe().to_dict()
    assert meta["metrics"] == {"mAP": 0.5}
    assert meta["data"] == "tiny"


def test_a_missing_parent_is_found_before_the_work(tmp_path):
    data = TinyData(before=lambda: pytest.fail("a step was made"))
    for stage in (train_teacher, finetune_student):
        with pytest.raises(FileNotFoundError, match="nothing"):
            stage(TinyNet(), data, recipe(), tmp_path, parent=tmp_path / "nothing", **OPTIONS)
    with pytest.raises(FileNotFoundError, match="nothing"):
        refine_chain(
            TinyNet(), None, data, recipe(), tmp_path, parent=tmp_path / "nothing", **OPTIONS
        )


def test_identities_that_the_classifier_lacks_are_refused(tmp_path):
    message = r"^train: ids must be from 0 to 2, the model's classes, got 0 to 3\. Build"
    with pytest.raises(ValueError, match=message):
        train_teacher(TinyNet(classes=3), TinyData(), recipe(), tmp_path, **OPTIONS)


def test_fine_tuning_is_the_same_job_from_another_start(tmp_path):
    student = TinyNet(channels=3)
    student.widths = {"conv": 3}
    path = finetune_student(student, TinyData(), recipe(), tmp_path, max_steps=2, **OPTIONS)
    assert path.name == "student.safetensors"
    assert load_state(path)[1]["widths"] == {"conv": 3}


def test_refinement_trains_all_and_scores_both(tmp_path, monkeypatch):
    monkeypatch.setattr(oskt.train.refine, "JointModel", TinyJoint)
    teacher = TinyNet()
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    seen = []

    def evaluate(model):
        seen.append(model(torch.zeros(1, 3, 8, 4)).shape)
        return {"mAP": float(len(seen))}

    changed = recipe(alpha=0.1, distill=4.0)
    path = refine_chain(
        teacher, None, TinyData(), changed, tmp_path, evaluate=evaluate, parent=None, **OPTIONS
    )
    saved = torch.load(path.open("rb"))
    assert seen == [(1, 6), (1, 3)]
    assert saved["meta"]["metrics"] == {"teacher/mAP": 1.0, "student/mAP": 2.0}
    assert saved["meta"]["kind"] == "oskt"
    assert saved["meta"]["recipe"]["alpha"] == 0.1
    state, _ = load_state(tmp_path / "teacher.safetensors")
    assert not torch.equal(state["conv.weight"], before["conv.weight"])
    assert not torch.equal(state["bn.weight"], before["bn.weight"])


def test_a_real_chain_is_refined_and_resumed(tmp_path):
    torch.set_num_threads(1)
    changed = recipe(height=32, width=16, alpha=0.05, distill=4.0)

    def refine(out, method="kmeans", **options):
        torch.manual_seed(0)
        teacher = ResNet(50, 4, num_classes=4, layers=(1, 1, 1, 1))
        chain = WeightChain.from_teacher(
            teacher, torch.zeros(2, 3, 32, 16), width=1 / 2, method=method
        )
        data = LargeData(steps=2)
        return refine_chain(teacher, chain, data, changed, out, **OPTIONS, **options)

    refine(tmp_path / "resumed", max_steps=3)
    with pytest.raises(ValueError, match=r"^resume: the model .* chain must have the clusters"):
        refine(tmp_path / "resumed", "ward", resume=True)
    paths = [refine(tmp_path / "resumed", resume=True), refine(tmp_path / "whole")]
    resumed, whole = map(WeightChain.load, paths)
    assert torch.equal(resumed.weights, whole.weights)
    assert torch.equal(resumed.statistics, whole.statistics)
    assert whole.meta["recipe"] == changed.to_dict()
    with torch.no_grad():
        assert whole.student(width=1 / 2).eval()(torch.zeros(1, 3, 32, 16)).isfinite().all()


def test_the_joint_loss_is_the_sum_of_its_parts():
    changed = recipe(alpha=0.5, distill=4.0, similarity=3.0, alpha_ramp="linear")
    teacher = TinyNet(dropout=0.0)
    joint = JointObjective(TinyJoint(teacher), changed)
    images, ids, _ = next(TinyData().batches(1))
    total, parts = joint(images, ids, progress=0.5)
    expected = parts["refining"] + 4.0 * parts["student/distillation"]
    expected += 3.0 * parts["student/similarity"]
    for name in ("teacher", "student"):
        expected += parts[f"{name}/id"] + parts[f"{name}/triplet"] + 5e-4 * parts[f"{name}/center"]
    torch.testing.assert_close(total.detach(), expected)
    full = joint.joint.refining_loss(1.0).detach()
    torch.testing.assert_close(parts["refining"], 0.25 * full)
    total.backward()
    assert teacher.conv.weight.grad is not None
    assert joint.joint.weights.grad is not None


def test_the_full_width_is_held_to_the_teacher_as_it_was():
    images, ids, _ = next(TinyData().batches(1))
    joint = TinyJoint(TinyNet(dropout=0.0))
    held, free = (JointObjective(joint, recipe(alpha=0.0, anchor=a)) for a in (2.0, 0.0))
    start, parts = held(images, ids, 0.0)
    assert parts["teacher/anchor"] == 0  # nothing has changed yet
    torch.testing.assert_close(start, free(images, ids, 0.0)[0])
    with torch.no_grad():
        joint.teacher.conv.weight[:3].neg_()  # a scale would be lost in the norm
    total, parts = held(images, ids, 0.0)
    assert parts["teacher/anchor"] > 1e-4
    expected = free(images, ids, 0.0)[0] + 2.0 * parts["teacher/anchor"]
    torch.testing.assert_close(total, expected)
    assert not any(p.requires_grad for p in held.before.parameters())
    assert "before.conv.weight" in held.state_dict()  # a resumed run is held to the same


def test_students_are_told_by_the_teacher_as_it_was_where_there_is_an_anchor():
    images, ids, _ = next(TinyData().batches(1))
    joint = TinyJoint(TinyNet(dropout=0.0))
    telling = {"alpha": 0.0, "distill": 1.0, "similarity": 1.0}
    held, free = (JointObjective(joint, recipe(anchor=a, **telling)) for a in (2.0, 0.0))

    def told(by):
        _, parts = by(images, ids, 0.0)
        return parts["student/distillation"], parts["student/similarity"]

    start = told(held)
    assert told(free) == start
    with torch.no_grad():
        joint.teacher.conv.weight[:3].neg_()
    assert told(held) == start
    assert all(new != old for new, old in zip(told(free), start))


def test_the_loss_of_the_full_width_can_be_left_out():
    images, ids, _ = next(TinyData().batches(1))
    joint = TinyJoint(TinyNet(dropout=0.0))
    (whole, parts), (rest, _) = (
        JointObjective(joint, recipe(alpha=0.0, teacher_loss=weight))(images, ids, 0.0)
        for weight in (1.0, 0.0)
    )
    own = parts["teacher/id"] + parts["teacher/triplet"] + 5e-4 * parts["teacher/center"]
    torch.testing.assert_close((whole - own).detach(), rest.detach())


def test_terms_without_weight_are_not_computed():
    joint = TinyJoint(TinyNet())
    joint.refining_loss = lambda scale: pytest.fail("computed")
    images, ids, _ = next(TinyData().batches(1))
    _, parts = JointObjective(joint, recipe(alpha=0.0))(images, ids, 0.0)
    terms = ("refining", "distillation", "similarity", "anchor")
    assert not any(term in name for name in parts for term in terms)


class LargeData(TinyData):
    def batches(self, epoch, start=0):
        for images, ids, cameras in super().batches(epoch, start):
            yield images.repeat(1, 1, 4, 4), ids, cameras


class ThreeNets(TinyJoint):
    """A nested chain's step: the teacher and two students."""

    def forward(self, images):
        teacher, student = super().forward(images)
        return teacher, student, student


def test_several_students_each_have_their_loss():
    images, ids, _ = next(TinyData().batches(1))
    changed = recipe(alpha=0.0, distill=1.0, center_weight=0.0)
    _, parts = JointObjective(ThreeNets(TinyNet()), changed)(images, ids, 0.0)
    assert {"teacher/id", "student/id", "student2/id", "student2/distillation"} <= set(parts)


def test_trying_a_model_leaves_its_statistics():
    model = TinyNet()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert output_sizes(model, recipe()) == [(6, 4)]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class Listing(TinyNet):
    def forward(self, images):
        return list(super().forward(images))


class Naming(TinyNet):
    def forward(self, images):
        return dict(zip(("feature", "logits"), super().forward(images)))


@pytest.mark.parametrize("model", [nn.Conv2d(3, 4, 3), TinyNet(classes=0), Listing(), Naming()])
def test_models_with_other_outputs_are_refused(model):
    with pytest.raises(TypeError, match=r"^train: model must return \(feature \(B, F\), logits"):
        output_sizes(model, recipe())
