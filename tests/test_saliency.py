"""What a network would lose with each number, and the order of channels that comes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_nested import SHAPE, nested_chain
from torch import nn
from train_fakes import CLASSES, TinyData

from oskt.models.resnet import ResNet
from oskt.train import RECIPES, saliency
from oskt.train.losses import ReIDLoss
from oskt.train.nested import NestedModel

RECIPE = RECIPES["demo-nested"]


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return ResNet(18, in_planes=8, num_classes=CLASSES, layers=(1, 1, 1, 1))


def test_saliency_is_the_root_mean_square_of_weight_times_gradient(teacher):
    data = TinyData()
    worth = saliency(teacher, data, RECIPE, device="cpu")
    weight = dict(teacher.named_parameters())["layer3.0.conv1.weight"]
    loss, squares = ReIDLoss(RECIPE, CLASSES, 64), []
    for images, ids, _ in data.batches(0):
        total, _ = loss(*teacher.train()(images), ids)
        (gradient,) = torch.autograd.grad(total, [weight])
        squares.append((weight * gradient).square())
    expected = torch.stack(squares).mean(0).sqrt()
    torch.testing.assert_close(worth["layer3.0.conv1.weight"], expected.detach())
    assert set(worth) == {name for name, p in teacher.named_parameters() if p.requires_grad}


def test_network_is_left_as_it_was_and_a_second_call_finds_the_same(teacher):
    before = {name: tensor.clone() for name, tensor in teacher.eval().state_dict().items()}
    first = saliency(teacher, TinyData(), RECIPE, device="cpu")
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())
    teacher.train().bn1.eval()  # a frozen norm stays frozen
    second = saliency(teacher, TinyData(), RECIPE, device="cpu")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert teacher.training
    assert not teacher.bn1.training


def test_channel_that_the_loss_does_not_need_comes_last_however_large(teacher):
    with torch.no_grad():
        block = teacher.layer3[0]
        block.conv1.weight[5] *= 100  # the norm behind takes it back; magnitude does not know that
        block.conv2.weight[:, 5] = 0  # and nobody reads it
    worth = saliency(teacher, TinyData(), RECIPE, device="cpu")
    group = "layer3.0.conv1"
    by_loss = nested_chain(teacher, saliency=lambda _: worth).partitions[group].order
    by_magnitude = nested_chain(teacher).partitions[group].order
    assert by_loss[-1] == 5
    assert by_magnitude[0] == 5
    assert sorted(by_loss) == list(range(32))


def test_default_order_follows_what_is_known(teacher):
    worth = {name: torch.rand_like(p) for name, p in teacher.named_parameters()}
    made = {
        "saliency": nested_chain(teacher, saliency=lambda _: worth),
        "magnitude": nested_chain(teacher, saliency=lambda _: worth, method="magnitude"),
    }
    for method, chain in made.items():
        assert chain.meta["clustering"]["method"] == method
    orders = [c.partitions["layer3.0.conv1"].order for c in (*made.values(), nested_chain(teacher))]
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[1], orders[2])


def test_resumed_run_keeps_its_order_where_saliency_comes_out_differently(teacher):
    orders = [{n: torch.rand_like(p) for n, p in teacher.named_parameters()} for _ in range(2)]
    first, other = (
        NestedModel(
            teacher, nested_chain(teacher, saliency=lambda _, worth=worth: worth), random_widths=0
        ).train()
        for worth in orders
    )
    images = torch.randn(SHAPE)
    assert not torch.equal(other(images)[1][0], first(images)[1][0])
    other.load_state_dict(first.state_dict())
    assert torch.equal(other(images)[1][0], first(images)[1][0])
    theirs, ours = other.to_chain().partitions, first.to_chain().partitions
    assert all(np.array_equal(theirs[name].order, ours[name].order) for name in ours)


def test_errors_name_what_to_do(teacher):
    with pytest.raises(ValueError, match=r"^nest_channels: saliency must be given for method 'sal"):
        nested_chain(teacher, method="saliency")
    worth = {name: torch.ones_like(p) for name, p in teacher.named_parameters()}
    worth["conv1.weight"] = worth["conv1.weight"] * torch.nan
    with pytest.raises(
        ValueError, match=r"^nest_channels: saliency must be finite, got NaN or Inf"
    ):
        nested_chain(teacher, saliency=lambda _: worth)
    other = {"conv1.weight": torch.ones(1, 2)}
    with pytest.raises(ValueError, match=r"^nest_channels: saliency must be of the teacher's par"):
        nested_chain(teacher, saliency=lambda _: other)
    no_classes: nn.Module = ResNet(18, in_planes=8, layers=(1, 1, 1, 1))
    with pytest.raises(TypeError, match=r"^train: model must return"):
        saliency(no_classes, TinyData(), RECIPE, device="cpu")
