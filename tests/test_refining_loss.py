"""refining_loss: against its definition, exactly where arithmetic is exact, and its gradients."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from oskt_ext import RefiningPlan, refining_loss
from oskt_ext.reference import refining_loss as refining_loss_reference
from oskt_ext.refining_loss import RefiningItem

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# N, M, trailing shape: convolutions, a vector, one huge cluster, a row cut by columns, empties.
SHAPES = [(10, 3, (7,)), (16, 4, (6, 3, 3)), (30, 30, ()), (50, 1, (100,)), (9, 2, (20000,)),
          (4, 6, (5, 1, 1)), (0, 2, (3,))]  # fmt: skip


def make_problem(device, dtype, *, exact, seed=0, requires_grad=False, row_weights=False):
    """Teacher, chain and plan; gaps between the items and behind them."""
    rng = np.random.default_rng(seed)
    items, teacher, offset = [], [], 3
    for n, m, shape in SHAPES:
        length = int(np.prod(shape))
        weight = float(rng.integers(1, 4)) if exact else float(rng.uniform(0.5, 2))
        of_rows = rng.integers(3, size=n) if row_weights and n != 50 else None
        items.append(RefiningItem(rng.integers(m, size=n), m, length, offset, weight, of_rows))
        offset += m * length + 2
        teacher.append(values((n, *shape), exact))
    teacher = [t.to(device, dtype).requires_grad_(requires_grad) for t in teacher]
    chain = values((offset,), exact).to(device, dtype).requires_grad_(requires_grad)
    return teacher, chain, RefiningPlan(items).to(device)


def values(shape, exact):
    return torch.randint(-2, 3, shape).double() if exact else torch.randn(shape).double()


def gradients(function, teacher, chain, plan, **options):
    loss = function(teacher, chain, plan, **options)
    return loss, torch.autograd.grad(loss, [*teacher, chain])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row_weights", [False, True])
def test_exact_arithmetic_is_bit_equal(device, dtype, row_weights):
    teacher, chain, plan = make_problem(device, dtype, exact=True, row_weights=row_weights)
    loss = refining_loss(teacher, chain, plan, scale=0.5)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.shape == ()
    assert torch.equal(loss, refining_loss_reference(teacher, chain, plan, scale=0.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("row_weights", [False, True])
def test_exact_gradients_are_bit_equal(device, dtype, row_weights):
    problem = make_problem(device, dtype, exact=True, requires_grad=True, row_weights=row_weights)
    _, got = gradients(refining_loss, *problem, scale=0.25)
    _, expected = gradients(refining_loss_reference, *problem, scale=0.25)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_a_loss_scale_that_half_cannot_hold(device):
    """The gradient reaching the loss is float32 and must stay so; powers of two are exact."""
    teacher, chain, plan = make_problem(device, torch.float16, exact=True, requires_grad=True)
    small, large = (refining_loss(teacher, chain, plan, scale=2.0**e) for e in (-12, 5))
    got = torch.autograd.grad(small * 2.0**17, [*teacher, chain])
    assert all(map(torch.equal, got, torch.autograd.grad(large, [*teacher, chain])))


def test_loss_is_rounded_once(device):
    """Partials are float64: the float32 loss is the rounded float64 loss, to 1 ulp of slack."""
    teacher, chain, plan = make_problem(device, torch.float32, exact=False)
    loss = refining_loss(teacher, chain, plan)
    exact = refining_loss_reference([t.double() for t in teacher], chain.double(), plan)
    assert abs(loss.double() - exact) <= torch.finfo(torch.float32).eps * exact


def test_gradients_are_rounded_once(device):
    """Both gradients far from the means, float32 against float64."""
    teacher, chain, plan = make_problem(device, torch.float32, exact=False, requires_grad=True)
    _, got = gradients(refining_loss, teacher, chain, plan)
    wide = [t.detach().double().requires_grad_() for t in [*teacher, chain]]
    _, expected = gradients(refining_loss_reference, wide[:-1], wide[-1], plan)
    for a, b in zip(got, expected):
        # One rounding to float32; the last term covers float64 sums that cancel (<= 50 members).
        assert ((a.double() - b).abs() <= torch.finfo(torch.float32).eps * b.abs() + 1e-12).all()


def test_gradient_is_zero_outside_the_items(device):
    problem = make_problem(device, torch.float32, exact=False, requires_grad=True)
    _, (*_, chain_gradient) = gradients(refining_loss, *problem)
    inside = torch.zeros_like(chain_gradient, dtype=torch.bool)
    for item in problem[2].items:
        inside[item.offset : item.end] = True
    assert (chain_gradient[~inside] == 0).all()
    assert (~inside).sum() > 0


def test_gradcheck(device):
    rng = np.random.default_rng(1)
    items = [RefiningItem(rng.integers(2, size=5), 2, 3, 1, 0.7), RefiningItem([0, 2], 3, 1, 7)]
    plan = RefiningPlan(items).to(device)
    options = {"dtype": torch.float64, "device": device, "requires_grad": True}
    inputs = [
        torch.randn(5, 3, **options),
        torch.randn(2, 1, **options),
        torch.randn(11, **options),
    ]
    assert torch.autograd.gradcheck(lambda a, b, c: refining_loss([a, b], c, plan, scale=3), inputs)


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_gradients_on_demand(device, needs):
    teacher, chain, plan = make_problem(device, torch.float32, exact=True, requires_grad=True)
    loss, both = gradients(refining_loss, teacher, chain, plan)
    teacher = [t.detach().requires_grad_(needs[0]) for t in teacher]
    chain = chain.detach().requires_grad_(needs[1])
    alone = refining_loss(teacher, chain, plan)
    assert torch.equal(alone, loss)
    leaves = teacher if needs[0] else [chain]
    expected = both[:-1] if needs[0] else both[-1:]
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(alone, leaves), expected))


def test_backward_twice_over_a_kept_graph(device):
    """The first backward may give its gradients away only when nobody comes after it."""
    teacher, chain, plan = make_problem(device, torch.float32, exact=True, requires_grad=True)
    leaves = [*teacher, chain]
    once = torch.autograd.grad(refining_loss(teacher, chain, plan), leaves)
    loss = refining_loss(teacher, chain, plan)
    for times in (1, 2, 3):
        loss.backward(retain_graph=times < 3)
        assert all(torch.equal(t.grad, times * g) for t, g in zip(leaves, once))


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_scales_the_gradients_where_they_lie(device, dtype):
    """The product is rounded once: torch would cut a float32 factor to half first."""
    teacher, chain, plan = make_problem(device, dtype, exact=False, requires_grad=True)
    for factor in (1.0, 0.3, 0.0, torch.inf):
        loss, of_teacher, of_chain = torch.ops.oskt_ext.refining_loss(
            teacher, chain, plan.table, plan.weight, 1.0, True, True
        )
        own = [*of_teacher, of_chain]
        factor = torch.full_like(loss, factor)
        expected = [(g.to(factor.dtype) * factor).to(dtype) for g in own]
        kept = torch.autograd.grad(loss, [*teacher, chain], factor, retain_graph=True)
        last = torch.autograd.grad(loss, [*teacher, chain], factor)
        for got in (kept, last):
            for a, b in zip(got, expected):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert [g.data_ptr() for g in last] == [g.data_ptr() for g in own]


@pytest.mark.parametrize("length", [2_200_000, 2_200_001])  # whole and broken vectors of 16 bytes
def test_gradients_larger_than_the_caches(device, length):
    plan = RefiningPlan([RefiningItem([0, 1, 0, 1], 2, length, 0)]).to(device)
    teacher = torch.randint(-2, 3, (4, length), device=device).float().requires_grad_()
    chain = torch.randint(-2, 3, (2 * length,), device=device).float()
    (got,) = torch.autograd.grad(refining_loss([teacher], chain, plan), teacher)
    assert torch.equal(got, 2 * (teacher - chain.reshape(2, length).repeat(2, 1)).detach())


def test_second_derivatives_raise(device):
    teacher, chain, plan = make_problem(device, torch.float32, exact=True, requires_grad=True)
    loss = refining_loss(teacher, chain, plan)
    with pytest.raises(RuntimeError, match="refining_loss: backward must be called without create"):
        torch.autograd.grad(loss, chain, create_graph=True)


def test_opcheck(device):
    for requires_grad in (False, True):
        teacher, chain, plan = make_problem(
            device, torch.float32, exact=False, requires_grad=requires_grad
        )
        inputs = (teacher, chain, plan.table, plan.weight, 1.5, requires_grad, requires_grad)
        torch.library.opcheck(torch.ops.oskt_ext.refining_loss.default, inputs)


def test_opcheck_of_the_factor(device):
    gradients = [values((n,), False).float().to(device) for n in (3, 0, 5)]
    arguments = (gradients, torch.tensor(0.5, device=device))
    torch.library.opcheck(torch.ops.oskt_ext.refining_loss_scale_.default, arguments)


def test_direct_calls_of_the_factor_are_checked(device):
    gradient, one = torch.ones(3, device=device), torch.ones((), device=device)
    for gradients, factor, message in (
        ([gradient], one.double(), "factor must be one number"),
        ([gradient], gradient, "factor must be one number, .* got 3"),
        ([gradient, gradient.double()], one, r"gradients\[1\] must be contiguous, of the dtype"),
        ([gradient.expand(2, 3)], one, r"gradients\[0\] must be contiguous"),
    ):
        with pytest.raises((RuntimeError, ValueError), match="refining_loss_scale_: " + message):
            torch.ops.oskt_ext.refining_loss_scale_(gradients, factor)


def test_compiles_in_one_graph(device):
    teacher, chain, plan = make_problem(device, torch.float32, exact=True, requires_grad=True)

    def step(teacher, chain):
        return 2 * refining_loss(teacher, chain, plan)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(teacher, chain), [*teacher, chain])
    expected = torch.autograd.grad(step(teacher, chain), [*teacher, chain])
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_bitwise_repeatable_over_runs_and_threads(device):
    problem = make_problem(device, torch.float32, exact=False, requires_grad=True)
    first, first_gradients = gradients(refining_loss, *problem)
    threads = torch.get_num_threads()
    try:
        for run in range(20):
            torch.set_num_threads(1 + run % 3)
            loss, more = gradients(refining_loss, *problem)
            assert torch.equal(loss, first)
            assert all(torch.equal(a, b) for a, b in zip(more, first_gradients))
    finally:
        torch.set_num_threads(threads)


def test_more_tensors_than_one_launch_takes(device):
    items = [RefiningItem([0, 1, 0], 2, 2, 4 * i) for i in range(300)]
    teacher = list(values((300, 3, 2), True).to(device))
    chain, plan = values((1200,), True).to(device), RefiningPlan(items).to(device)
    expected = refining_loss_reference(teacher, chain, plan)
    assert torch.equal(refining_loss(teacher, chain, plan), expected)


def test_the_mean_has_no_gradient(device):
    """At the clusters' means the chain gradient vanishes."""
    labels, teacher = [0, 1, 0, 1], torch.tensor([[1.0], [2.0], [3.0], [6.0]], device=device)
    plan = RefiningPlan([RefiningItem(labels, 2, 1, 0)]).to(device)
    chain = torch.tensor([2.0, 4.0], device=device, requires_grad=True)
    refining_loss([teacher], chain, plan).backward()
    assert chain.grad.tolist() == [0.0, 0.0]


def test_non_finite_values_propagate(device):
    plan = RefiningPlan([RefiningItem([0], 1, 1, 0)]).to(device)
    one = torch.ones(1, device=device)
    assert refining_loss([one.reshape(1, 1) * torch.inf], one, plan).isinf()
    assert refining_loss([one.reshape(1, 1) * torch.nan], one, plan).isnan()


def test_numpy_in_numpy_out():
    teacher, chain, plan = make_problem("cpu", torch.float32, exact=True)
    loss = refining_loss([t.numpy() for t in teacher], chain.numpy(), plan)
    assert isinstance(loss, np.ndarray)
    assert loss == refining_loss(teacher, chain, plan).numpy()


def test_strided_teacher_is_copied(device):
    plan = RefiningPlan([RefiningItem([0, 1, 1], 2, 8, 0)]).to(device)
    teacher, chain = values((3, 2, 2, 2), True).to(device), values((16,), True).to(device)
    strided = teacher.contiguous(memory_format=torch.channels_last)
    assert torch.equal(refining_loss([strided], chain, plan), refining_loss([teacher], chain, plan))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 2], 2, 1, 0), r"labels must be in \[0, 2\), got values from 0 to 2"),
        (([0.5], 1, 1, 0), "labels must be a one-dimensional array of integers"),
        (([0], 1, 0, 0), "row_length must be at least 1, got 0"),
        (([0], 1, 1, -1), "offset must be at least 0, got -1"),
        (([0, 0], 1, 1, 0, 1.0, [1.0]), r"row_weights must be 2 numbers .*, got shape \(1,\)"),
        (([0], 1, 1, 0, 1.0, [-1.0]), r"row_weights must be 1 numbers .* a least of -1.0"),
    ],
)
def test_bad_items(arguments, message):
    with pytest.raises(ValueError, match="RefiningItem: " + message):
        RefiningItem(*arguments)


def test_row_weights_may_be_a_tensor():
    weights = torch.tensor([0.5, 2.0], dtype=torch.bfloat16, requires_grad=True)
    assert RefiningItem([0, 0], 1, 1, 0, row_weights=weights).row_weights.tolist() == [0.5, 2.0]


def test_overlapping_items():
    with pytest.raises(ValueError, match="RefiningPlan: items must not overlap"):
        RefiningPlan([RefiningItem([0], 2, 3, 0), RefiningItem([0], 1, 1, 5)])


def test_bad_calls():
    plan = RefiningPlan([RefiningItem([0, 0], 1, 3, 0)])
    teacher, chain = [torch.zeros(2, 3)], torch.zeros(3)
    with pytest.raises(
        TypeError, match="refining_loss: chain must be float64, float32, float16 or"
    ):
        refining_loss(teacher, chain.long(), plan)
    with pytest.raises(ValueError, match="refining_loss: chain must be flat with at least 3"):
        refining_loss(teacher, chain[:2], plan)
    with pytest.raises(ValueError, match="refining_loss: teacher must have 1 tensors"):
        refining_loss(teacher * 2, chain, plan)
    with pytest.raises(
        ValueError, match=r"refining_loss: teacher\[0\] must be of shape \(2, ...\)"
    ):
        refining_loss([torch.zeros(3, 2)], chain, plan)
    with forward_ad.dual_level():
        row, flat = (forward_ad.make_dual(value, value) for value in (teacher[0], chain))
        for duals in (([row], chain), (teacher, flat)):
            with pytest.raises(NotImplementedError, match=r"refining_loss: .* have no tangent"):
                refining_loss(*duals, plan)
    with pytest.raises(TypeError, match=r"refining_loss: teacher\[0\] must be torch.float32"):
        refining_loss([teacher[0].double()], chain, plan)


def test_docstring_examples():
    # oskt_ext.refining_loss the name is the function; the module must be asked for.
    result = doctest.testmod(importlib.import_module("oskt_ext.refining_loss"))
    assert result.failed == 0
    assert result.attempted > 0
