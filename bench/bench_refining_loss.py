"""The refining loss of ResNet-50 and of ViT-B against a chain of width 1/8: 53 and 48 weights.

Rows: the fused operator and the same formula in PyTorch autograd, with gradients to both (the
published joint refinement), to the chain alone (a frozen teacher) and to none; and the closed form
of a frozen teacher, prepared before. extra_info holds `bytes`, the compulsory traffic, `roof_s`,
the time of as many at the bandwidth of a copy, and `error`, that of the loss as a share of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import DEVICE, against_copy
from oskt_ext import FrozenTeacher, RefiningPlan, refining_loss
from oskt_ext.reference import refining_loss as refining_loss_reference
from oskt_ext.refining_loss import RefiningItem
from shapes import resnet50_convs, vit_linears

NEEDS = {"both": (True, True), "chain": (False, True), "none": (False, False)}


MODELS = {
    "resnet50": [(rows, (columns, side, side)) for _, rows, columns, side in resnet50_convs()],
    "vit-b": [(rows, (columns,)) for _, rows, columns in vit_linears()],
}


@cache
def problem(model: str = "resnet50") -> tuple[list[Tensor], Tensor, RefiningPlan]:
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    items, teacher, offset = [], [], 0
    for rows, shape in MODELS[model]:
        clusters, length = rows // 8, math.prod(shape)
        labels = np.concatenate([np.arange(clusters), rng.integers(clusters, size=rows - clusters)])
        items.append(RefiningItem(rng.permutation(labels), clusters, length, offset))
        offset += clusters * length
        teacher.append(torch.randn(rows, *shape, generator=generator).to(DEVICE))
    chain = torch.randn(offset, generator=generator).to(DEVICE)
    return teacher, chain, RefiningPlan(items).to(DEVICE)


def run_torch(teacher: list[Tensor], chain: Tensor, plan: RefiningPlan) -> Tensor:
    """The formula as one would write it: a gather, a difference and a sum per weight."""
    total = chain.new_zeros(())
    # One split: backward of a slice writes a gradient of the whole chain.
    parts = chain.split([item.clusters * item.row_length for item in plan.items])
    for tensor, part, item in zip(teacher, parts, plan.items):
        clusters = part.reshape(item.clusters, item.row_length)
        residual = tensor.flatten(1) - clusters.index_select(0, device_labels(item))
        total = total + (residual * residual).sum()
    return total


@cache
def device_labels(item: RefiningItem) -> Tensor:
    return torch.as_tensor(item.labels, dtype=torch.long, device=DEVICE)


PROVIDERS = {"oskt": refining_loss, "torch": run_torch}


def measure(
    benchmark: Any, model: str, needs: str, loss: Callable[[], Tensor], leaves: list[Tensor],
    nbytes: int, rounds: int = 9,
) -> None:  # fmt: skip
    """Time the loss and its gradients, once the loss is known to be right."""

    def step() -> Tensor:
        found = loss()
        if leaves:
            torch.autograd.grad(found, leaves)
        return found.detach()

    with torch.no_grad():
        expected = refining_loss_reference(*problem(model))
    found = step()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)
    benchmark.extra_info["error"] = float((found - expected).abs() / expected)
    benchmark.group = f"refining loss of {model}, gradients to {needs}"
    against_copy(benchmark, nbytes, step, rounds=rounds)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("needs", NEEDS)
@pytest.mark.parametrize("model", MODELS)
def test_refining_loss(benchmark: Any, model: str, needs: str, provider: str) -> None:
    teacher, chain, plan = problem(model)
    of_teacher, of_chain = NEEDS[needs]
    teacher = [t.detach().requires_grad_(of_teacher) for t in teacher]
    chain = chain.detach().requires_grad_(of_chain)
    leaves = [t for t in [*teacher, chain] if t.requires_grad]
    teacher_bytes = 4 * sum(t.numel() for t in teacher)
    nbytes = (1 + of_teacher) * teacher_bytes + (1 + of_chain) * 4 * chain.numel()
    loss = partial(PROVIDERS[provider], teacher, chain, plan)
    rounds = 9 if provider == "oskt" else 5  # half a second each
    measure(benchmark, model, needs, loss, leaves, nbytes, rounds)


@pytest.mark.parametrize("model", MODELS)
def test_frozen_teacher(benchmark: Any, model: str) -> None:
    teacher, chain, plan = problem(model)
    frozen, chain = FrozenTeacher(teacher, plan), chain.detach().requires_grad_()
    loss = partial(frozen.refining_loss, chain)
    measure(benchmark, model, "chain", loss, [chain], 3 * 4 * chain.numel())
