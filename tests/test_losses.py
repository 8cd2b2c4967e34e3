"""Losses against their definitions written as loops."""

import math

import pytest
import torch

import oskt.train.losses
from oskt.train.losses import (
    ReIDLoss,
    batch_hard_triplet,
    center_loss,
    distillation,
    similarity_distillation,
    smoothed_cross_entropy,
)
from oskt.train.recipe import RECIPES, Recipe

IDS = torch.tensor([3, 3, 0, 0, 1, 1, 1, 0])


def features(dtype=torch.float32):
    return torch.randn(len(IDS), 5, dtype=dtype, generator=torch.Generator().manual_seed(3))


def triplet_loop(feature, ids, margin, hard_factor):
    total = 0.0
    for a in range(len(ids)):
        distance = [math.dist(feature[a].tolist(), other.tolist()) for other in feature]
        positive = max(d for d, i in zip(distance, ids) if i == ids[a])
        negative = min(d for d, i in zip(distance, ids) if i != ids[a])
        gap = positive * (1 + hard_factor) - negative * (1 - hard_factor)
        total += math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin)
    return total / len(ids)


@pytest.mark.parametrize("margin", [0.3, 0.0, None])
@pytest.mark.parametrize("hard_factor", [0.0, 0.2])
def test_triplet_is_its_definition(device, margin, hard_factor):
    loss = batch_hard_triplet(
        features().to(device), IDS, margin=margin, hard_factor=hard_factor
    ).item()
    # Sums of 5 squares and 8 terms in float32: 20 roundings of 2^-24 are 1.2e-6.
    assert loss == pytest.approx(triplet_loop(features(), IDS, margin, hard_factor), rel=2e-6)


def test_triplet_of_integers_is_exact():
    feature = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [0.0, 2.0]])
    # gaps + 1: 5 - 1, 5 - sqrt 13 (third side), 1 - 1, 1 - 2
    expected = (5.0 + 6 - math.sqrt(13) + 1 + 0) / 4
    loss = batch_hard_triplet(feature, torch.tensor([0, 0, 1, 1]), margin=1.0)
    assert loss.item() == pytest.approx(expected, rel=2e-7)


def test_triplet_gradient_is_finite_where_images_repeat():
    feature = torch.zeros(4, 3, requires_grad=True)
    batch_hard_triplet(feature, torch.tensor([0, 0, 1, 1])).backward()
    assert torch.equal(feature.grad, torch.zeros(4, 3))


def test_gradients_match_finite_differences():
    # float64 inputs are summed in float32, so the step is large and the tolerance float32's.
    feature = features().requires_grad_()
    centers = torch.randn(4, 5).requires_grad_()
    for loss in (
        lambda f: batch_hard_triplet(f, IDS, margin=None, hard_factor=0.2),
        lambda f: center_loss(f, IDS, centers),
        lambda f: distillation(f, features()[:, [1, 0, 2, 3, 4]]),
        lambda f: similarity_distillation(f, features()[:, [1, 0, 2]]),
    ):
        (grad,) = torch.autograd.grad(loss(feature), feature)
        direction = torch.randn_like(feature)
        direction /= direction.norm()
        step = 1e-2
        slope = (loss(feature + step * direction) - loss(feature - step * direction)) / (2 * step)
        # Truncation step^2 * third derivative (about 1) plus 2^-24 * loss / step.
        assert slope.item() == pytest.approx((grad * direction).sum().item(), abs=1e-3)


def test_cross_entropy_is_its_definition(device):
    logits = torch.randn(8, 5)
    expected = 0.0
    for row, i in zip(logits.double(), IDS):
        log_p = row - row.exp().sum().log()
        expected -= (0.9 * log_p[i] + 0.1 * log_p.mean()).item() / 8
    loss = smoothed_cross_entropy(logits.to(device), IDS, smoothing=0.1)
    assert loss.item() == pytest.approx(expected, rel=2e-6)


def test_center_loss_of_integers_is_exact():
    centers = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    feature = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    loss = center_loss(feature, torch.tensor([0, 1, 1, 0]), centers)
    loss.backward()
    assert loss.item() == (4 + 4 + 1 + 0) / 4
    # gradient 2 / B * sum over members of (center - feature)
    assert centers.grad.tolist() == [[-1.0, 0.0], [0.0, 0.5]]


def test_distillation_is_kl_and_spares_the_teacher():
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    p, q = (logits.detach().double().div(2).softmax(1) for logits in (teacher, student))
    expected = (p * (p.log() - q.log())).sum(1).mean().item()
    loss = distillation(student, teacher, temperature=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert teacher.grad is None
    assert student.grad is not None


def test_similarity_is_of_cosines_and_spares_the_teacher():
    student = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 5.0]], requires_grad=True)
    loss = similarity_distillation(student, teacher)
    loss.backward()
    # Two pairs of cosine sqrt(1/2) that should be 0, counted in both orders, over nine.
    assert loss.item() == pytest.approx(4 * 0.5 / 9, rel=1e-6)
    assert teacher.grad is None
    assert student.grad is not None
    wide = torch.cat([7 * student, torch.zeros(3, 4)], 1)  # lengths and zeros change nothing
    assert similarity_distillation(wide, student).item() == pytest.approx(0.0, abs=1e-12)


def test_losses_are_float32_in_autocast():
    feature, logits = features(torch.bfloat16), torch.randn(8, 5, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [
            batch_hard_triplet(feature, IDS),
            center_loss(feature, IDS, torch.randn(4, 5)),
            smoothed_cross_entropy(logits, IDS),
            distillation(logits, logits.flip(1)),
            similarity_distillation(feature, logits),
        ]
    assert {loss.dtype for loss in losses} == {torch.float32}
    outside = batch_hard_triplet(feature.float(), IDS)
    assert losses[0].item() == outside.item()


def test_reid_loss_adds_its_parts():
    recipe = Recipe(center_weight=5e-4, hard_factor=0.2)
    loss = ReIDLoss(recipe, num_classes=5, feature_dim=5)
    logits = torch.randn(8, 5)
    total, parts = loss(features(), logits, IDS)
    expected = parts["id"] + parts["triplet"] + 5e-4 * parts["center"]
    torch.testing.assert_close(total.detach(), expected)
    assert parts["accuracy"] == (logits.argmax(1) == IDS).float().mean()
    assert not any(part.requires_grad for part in parts.values())
    again = ReIDLoss(recipe, num_classes=5, feature_dim=5)
    assert torch.equal(again.centers, loss.centers)


def test_reid_loss_leaves_out_what_has_no_weight():
    recipe = Recipe(triplet="none", instances=1)
    loss = ReIDLoss(recipe, num_classes=5, feature_dim=5)
    total, parts = loss(features(), torch.randn(8, 5), IDS)
    assert sorted(parts) == ["accuracy", "id"]
    assert total.item() == parts["id"].item()
    assert not list(loss.parameters())


def test_published_recipes_name_the_published_losses():
    paper, vit = RECIPES["paper-teacher"], RECIPES["paper-vit-teacher"]
    assert (paper.label_smoothing, paper.margin, paper.hard_factor) == (0.1, 0.3, 0.2)
    assert (paper.center_weight, paper.center_lr) == (5e-4, 0.5)
    assert (vit.label_smoothing, vit.triplet, vit.center_weight) == (0.0, "soft", 0.0)


@pytest.mark.parametrize(
    ("ids", "got"),
    [
        ([1, 1, 1, 1], r"got 1 identities of \[4\] images"),
        ([0, 0, 1, 2], r"got 3 identities of \[1, 1, 2\] images"),
    ],
)
def test_batches_without_pairs_are_refused(ids, got):
    with pytest.raises(ValueError, match=rf"^batch_hard_triplet: ids must hold 2 .*{got}.*Draw"):
        batch_hard_triplet(torch.zeros(4, 2), torch.tensor(ids))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"feature and ids must be of shapes \(B, F\) and \(B,\)"):
        batch_hard_triplet(torch.zeros(4, 2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"got \(4, 0\) and \(4,\).*num_classes"):
        smoothed_cross_entropy(torch.zeros(4, 0), torch.zeros(4, dtype=torch.long))


def test_examples():
    import doctest

    assert doctest.testmod(oskt.train.losses).failed == 0


def test_gradients_repeat_bit_by_bit_at_the_size_of_a_batch():
    """64 x 512 numbers are enough for torch's indexing backward to add in the order of threads."""
    feature, ids = torch.randn(64, 512), torch.arange(16).repeat_interleave(4)
    centers = torch.randn(16, 512)
    first = None
    for _ in range(20):
        x, c = feature.clone().requires_grad_(), centers.clone().requires_grad_()
        (batch_hard_triplet(x, ids, margin=0.3) + center_loss(x, ids, c)).backward()
        first = first or (x.grad, c.grad)
        assert torch.equal(x.grad, first[0])
        assert torch.equal(c.grad, first[1])
