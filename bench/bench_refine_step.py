"""One step of joint refinement against a teacher-only step: ResNet-50 at 256x128, both chain kinds.

A step is forward, backward and Adam of a recipe's whole objective. Published chains: teacher,
S-Student and refining loss. Nested chains: the teacher as it was (forward alone), and the networks
of the Rota: full width and the student in turn, of a ladder on half of the batch each, and two
students of every narrow chain. The two of a pair run in turn in one process, so that
the ratio survives a machine that drifts; extra_info holds it (`ratio`: the median of the rounds'
ratios). Batch 8 on the CPU, 64 on a GPU; images lie in memory as `oskt.train.loop` hands them over.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest
import torch

from harness import CUDA, DEVICE, keep_freed_memory, now, timed
from oskt.chain import ChainLadder
from oskt.models import ResNet
from oskt.train import RECIPES
from oskt.train.joint import JointModel
from oskt.train.nested import NestedLadder
from oskt.train.refine import JointObjective
from oskt.train.teacher import SupervisedObjective

BATCH, INSTANCES, ROUNDS = (64, 4, 20) if CUDA else (8, 2, 9)
CLASSES = 751
PUBLISHED, NESTED = RECIPES["paper-refine"], RECIPES["nested"]


def step_of(objective, precision):
    """A function that takes one optimiser step on a fixed batch."""
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=3.5e-4, weight_decay=5e-4, fused=True)
    images = torch.randn(BATCH, 3, 256, 128, device=DEVICE)
    images = images.contiguous(memory_format=torch.channels_last)
    ids = torch.arange(BATCH // INSTANCES, device=DEVICE).repeat_interleave(INSTANCES)

    def step():
        with torch.autocast(DEVICE.type, precision, enabled=precision is not None):
            total, _ = objective(images, ids, 0.5)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()

    return step


def seconds(call):
    start = now()
    call()
    return now() - start


@pytest.mark.parametrize("precision", [None, torch.bfloat16] if CUDA else [None], ids=str)
@pytest.mark.parametrize(
    ("kind", "widths"),
    [("oskt", (8,)), ("oskt", (16,)), ("oskt", (32,)), ("nested", (8,)), ("nested", (8, 16, 32))],
)
def test_refine_step(benchmark, kind, widths, precision):
    torch.manual_seed(0)
    teacher = ResNet(50, num_classes=CLASSES)
    shares = [width / 64 for width in widths]
    ladder = ChainLadder.from_teacher(
        teacher, torch.zeros(1, 3, 64, 32), shares, kind, method="random", check=False
    )
    nested = kind == "nested"
    recipe = NESTED if nested else replace(PUBLISHED, alpha=0.05)
    joint = (
        NestedLadder(teacher, *ladder.chains, first=BATCH // 2)
        if nested
        else JointModel(teacher, *ladder.chains)
    )
    refine = step_of(JointObjective(joint, recipe).to(DEVICE).train(), precision)
    alone = step_of(SupervisedObjective(joint.teacher, recipe).to(DEVICE).train(), precision)
    keep_freed_memory()
    refine(), alone()
    pairs = [(seconds(alone), seconds(refine)) for _ in range(ROUNDS)]
    ratios = [r / a for a, r in pairs]
    benchmark.extra_info.update(
        batch=BATCH,
        teacher_only_s=median(a for a, _ in pairs),
        ratio=median(ratios),
        ratio_range=[min(ratios), max(ratios)],
    )
    name = "nested" if nested else "chain"
    benchmark.group = "-".join([name, *map(str, widths)])
    timed(benchmark, refine, rounds=2)
