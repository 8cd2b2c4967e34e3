"""FrozenTeacher: the loss and the chain's gradient of refining_loss, from the means alone."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest
import torch

from oskt_ext import FrozenTeacher, RefiningItem, RefiningPlan, refining_loss

# N, M, trailing shape: convolutions, a vector, every row a cluster, more clusters than rows, none.
SHAPES = [(24, 5, (7,)), (16, 4, (6, 3, 3)), (30, 30, ()), (4, 6, (5, 1, 1)), (0, 2, (3,))]


def make_problem(device, dtype, *, exact, row_weights=False):
    """Teacher, chain and plan; exact: every mean is an integer, every sum small."""
    rng = np.random.default_rng(0)
    items, teacher, offset = [], [], 3
    for n, m, shape in SHAPES:
        length = int(np.prod(shape))
        labels = rng.permutation(np.arange(n) % min(m, 5))  # at most 30 / 5 = 6 members
        of_rows = rng.integers(1, 3, size=n) if row_weights else None
        weight = float(rng.integers(1, 4))
        items.append(RefiningItem(labels, m, length, offset, weight, of_rows))
        offset += m * length + 2
        # 27720 is a multiple of 1 to 12, the most that the weights of 6 members sum to.
        values = (
            27720 * rng.integers(-2, 3, size=(n, *shape)) if exact else rng.normal(size=(n, *shape))
        )
        teacher.append(torch.from_numpy(values).to(device, dtype))
    values = rng.integers(-9, 10, size=offset) if exact else rng.normal(size=offset)
    chain = torch.from_numpy(values).to(device, dtype).requires_grad_()
    return teacher, chain, RefiningPlan(items).to(device)


def both(teacher, chain, plan, scale=1.0):
    """(loss, gradient of the chain) of the closed form and of the operator."""
    frozen = FrozenTeacher(teacher, plan).refining_loss(chain, scale=scale)
    plain = refining_loss(teacher, chain, plan, scale=scale)
    return [(loss, torch.autograd.grad(loss, chain)[0]) for loss in (frozen, plain)]


@pytest.mark.parametrize("row_weights", [False, True])
def test_exact_arithmetic_is_bit_equal(device, row_weights):
    problem = make_problem(device, torch.float64, exact=True, row_weights=row_weights)
    (loss, gradient), (expected, expected_gradient) = both(*problem, scale=0.5)
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row_weights", [False, True])
def test_differs_by_the_rounding_of_the_means(device, dtype, row_weights):
    """The bounds of the docstring; u also for the one rounding of each result."""
    teacher, chain, plan = make_problem(device, dtype, exact=False, row_weights=row_weights)
    frozen = FrozenTeacher(teacher, plan)
    (loss, gradient), (expected, expected_gradient) = both(teacher, chain, plan)
    unit = torch.finfo(dtype).eps / 2
    slack = torch.zeros_like(chain, dtype=torch.float64)
    for mean, item, original in zip(frozen.means, frozen.plan.items, plan.items):
        count = torch.from_numpy(item.row_weights).to(device)[:, None]
        bound = 2 * original.weight * count * unit * mean.double().abs() * (1 + unit)
        slack[item.offset : item.end] = bound.flatten()
    means = torch.zeros_like(slack)
    for mean, item in zip(frozen.means, frozen.plan.items):
        means[item.offset : item.end] = mean.double().flatten()
    # Two stores, of either gradient; 16 units of float64 for the sums themselves.
    sums = 16 * torch.finfo(torch.float64).eps * (slack / unit + expected_gradient.double().abs())
    error = (gradient.double() - expected_gradient.double()).abs()
    assert (error <= slack + 2.1 * unit * expected_gradient.double().abs() + sums).all()
    of_loss = torch.finfo(loss.dtype).eps * 4 * expected.double()
    apart = (slack * (means - chain.detach().double()).abs()).sum()
    assert (loss.double() - expected.double()).abs() <= apart + of_loss


def test_the_means_have_the_loss_within(device):
    teacher, chain, plan = make_problem(device, torch.float64, exact=True)
    frozen = FrozenTeacher(teacher, plan)
    chain = torch.zeros_like(chain)
    for mean, item in zip(frozen.means, plan.items):
        assert mean.shape == (item.clusters, item.row_length)
        chain[item.offset : item.end] = mean.flatten()
    assert frozen.refining_loss(chain, scale=0.5) == 0.5 * frozen.within
    assert frozen.within == refining_loss(teacher, chain, plan)


def test_gradcheck(device):
    teacher, chain, plan = make_problem(device, torch.float64, exact=False, row_weights=True)
    frozen = FrozenTeacher(teacher, plan)
    assert torch.autograd.gradcheck(lambda c: frozen.refining_loss(c, scale=0.7), chain)


def test_compiles_in_one_graph(device):
    teacher, chain, plan = make_problem(device, torch.float32, exact=False)
    frozen = FrozenTeacher(teacher, plan)
    compiled = torch.compile(frozen.refining_loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(chain), frozen.refining_loss(chain))


def test_numpy_and_an_empty_plan():
    plan = RefiningPlan([RefiningItem([0, 0], 1, 2, 0)])
    frozen = FrozenTeacher([np.array([[1.0, 2.0], [3.0, 6.0]])], plan)
    assert frozen.refining_loss(np.array([2.0, 4.0])) == frozen.within == 10.0
    assert FrozenTeacher([], RefiningPlan([])).refining_loss(torch.zeros(3)) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_made_in_inference_mode_it_serves_training(dtype):
    with torch.inference_mode():
        teacher = [torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=dtype) + 0]
        frozen = FrozenTeacher(teacher, RefiningPlan([RefiningItem([0, 0], 1, 2, 0)]))
    chain = torch.zeros(2, dtype=dtype, requires_grad=True)
    loss = frozen.refining_loss(chain)
    loss.backward()
    assert loss == 50
    assert chain.grad.tolist() == [-8.0, -16.0]


def test_bad_calls():
    plan = RefiningPlan([RefiningItem([0, 0], 1, 3, 0)])
    with pytest.raises(
        ValueError, match=r"FrozenTeacher: teacher\[0\] must not require a gradient"
    ):
        FrozenTeacher([torch.zeros(2, 3, requires_grad=True)], plan)
    with pytest.raises(
        TypeError, match=r"FrozenTeacher: teacher\[0\] must be float64, float32, float16 or"
    ):
        FrozenTeacher([torch.zeros(2, 3, dtype=torch.long)], plan)
    with pytest.raises(ValueError, match="FrozenTeacher: teacher must have 1 tensors"):
        FrozenTeacher([], plan)
    with pytest.raises(ValueError, match=r"FrozenTeacher: teacher\[0\] must be of shape"):
        FrozenTeacher([torch.zeros(3, 2)], plan)
    frozen = FrozenTeacher([torch.zeros(2, 3)], plan)
    with pytest.raises(ValueError, match="refining_loss: chain must be flat with at least 3"):
        frozen.refining_loss(torch.zeros(2))


def test_docstring_examples():
    result = doctest.testmod(importlib.import_module("oskt_ext.frozen_teacher"))
    assert result.failed == 0
    assert result.attempted > 0
