"""One step of joint refinement against a teacher-only step: ResNet-50, chain 8, 16, 32, 256x128.

A step is forward, backward and Adam. Rows: the teacher alone, teacher + S-Student + refining loss.
The two of a pair run in turn in one process, so that the ratio survives a machine that drifts;
extra_info holds it (`ratio`: the median of the rounds' ratios). Batch 16 on the CPU, 64 on a GPU.
"""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch

from harness import DEVICE, synchronize
from oskt.chain import WeightChain
from oskt.joint import JointModel
from oskt.losses import ReIDLoss
from oskt.models import ResNet
from oskt.train import RECIPES

CUDA = DEVICE.type == "cuda"
BATCH, INSTANCES, CLASSES, ROUNDS = (64 if CUDA else 16), 4, 751, (20 if CUDA else 5)


def step_of(model, losses, precision):
    """A function that takes one optimiser step on a fixed batch."""
    optimizer = torch.optim.Adam(
        [*model.parameters(), *(p for loss in losses for p in loss.parameters())],
        lr=3.5e-4, weight_decay=5e-4, fused=True,
    )  # fmt: skip
    images = torch.randn(BATCH, 3, 256, 128, device=DEVICE)
    ids = torch.arange(BATCH // INSTANCES, device=DEVICE).repeat_interleave(INSTANCES)

    def step():
        with torch.autocast(DEVICE.type, precision, enabled=precision is not None):
            outputs = model(images)
            pairs = outputs if isinstance(outputs[0], tuple) else (outputs,)
            total = sum(loss(*pair, ids)[0] for loss, pair in zip(losses, pairs))
        if isinstance(model, JointModel):
            total = total + model.refining_loss(0.05)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        synchronize()

    return step


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.parametrize("precision", [None, torch.bfloat16] if CUDA else [None], ids=str)
@pytest.mark.parametrize("chain_width", [8, 16, 32])
def test_refine_step(benchmark, chain_width, precision):
    torch.manual_seed(0)
    recipe = RECIPES["paper-refine"]
    teacher = ResNet(50, num_classes=CLASSES)
    chain = WeightChain.from_teacher(
        teacher, torch.zeros(1, 3, 64, 32), width=chain_width / 64, method="random", check=False
    )
    joint = JointModel(teacher, chain).to(DEVICE).train()
    both = [ReIDLoss(recipe, CLASSES, 2048), ReIDLoss(recipe, CLASSES, 32 * chain_width)]
    both = [loss.to(DEVICE) for loss in both]
    refine = step_of(joint, both, precision)
    alone = step_of(joint.teacher, both[:1], precision)
    refine(), alone()
    pairs = [(seconds(alone), seconds(refine)) for _ in range(ROUNDS)]
    benchmark.extra_info.update(
        batch=BATCH,
        teacher_only_s=median(a for a, _ in pairs),
        ratio=median(r / a for a, r in pairs),
        ratio_range=[min(r / a for a, r in pairs), max(r / a for a, r in pairs)],
    )
    benchmark.group = f"chain-{chain_width}"
    benchmark.pedantic(refine, rounds=2, iterations=1)
