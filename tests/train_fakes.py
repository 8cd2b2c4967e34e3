"""Stand-ins for networks and data, and a worker that tests start in processes of their own.

`python train_fakes.py OUT` resumes or starts the run of `short_run`; with KILL=step:7 it dies by
SIGKILL before step 7 of this process, with KILL=replace:2 while it puts its 2nd state in place.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call

from oskt.train import RefineRecipe, World, fit
from oskt.train.refine import JointObjective
from oskt.train.teacher import SupervisedObjective

CLASSES = 4


def recipe(**changes):
    size = {"epochs": 3, "identities": 4, "instances": 2, "height": 8, "width": 4}
    schedule = {"schedule": "cosine", "steps": (), "warmup_epochs": 1, "lr": 1e-2, "smooth": True}
    return RefineRecipe(**{**size, **schedule, "center_weight": 5e-4, **changes})


class TinyNet(nn.Module):
    """Convolution, BN, dropout, BNNeck and classifier: all that can hold state."""

    def __init__(self, channels=6, classes=CLASSES, dropout=0.2):
        super().__init__()
        self.spec = {"family": "tiny", "channels": channels}
        self.conv = nn.Conv2d(3, channels, 3, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.bottleneck = nn.BatchNorm1d(channels)
        self.bottleneck.bias.requires_grad_(False)
        self.classifier = nn.Linear(channels, classes, bias=False)

    def forward(self, images):
        feature = self.dropout(self.bn(self.conv(images)).relu()).mean((2, 3))
        embedding = self.bottleneck(feature)
        return (feature, self.classifier(embedding)) if self.training else embedding


class TinyJoint(nn.Module):
    """The interface of oskt.JointModel: the student is row pairs of the teacher's mean."""

    def __init__(self, teacher, chain=None, vectors="shared"):
        super().__init__()
        self.teacher = teacher
        self.student = TinyNet(3, dropout=0.0)
        self.names = [name for name, p in self.student.named_parameters() if p.requires_grad]
        self.shapes = [self.student.get_parameter(name).shape for name in self.names]
        flat = [self.student.get_parameter(name).detach().flatten() for name in self.names]
        self.weights = nn.Parameter(torch.cat(flat))
        for name in self.names:  # as in JointModel: placeholders without a gradient
            owner, _, leaf = name.rpartition(".")
            empty = nn.Parameter(torch.empty(0), requires_grad=False)
            setattr(self.student.get_submodule(owner), leaf, empty)

    def tensors(self):
        parts = self.weights.split([shape.numel() for shape in self.shapes])
        return {n: p.view(s) for n, p, s in zip(self.names, parts, self.shapes)}

    def forward(self, images):
        return self.teacher(images), functional_call(self.student, self.tensors(), (images,))

    def refining_loss(self, scale=1.0):
        rows = self.teacher.conv.weight.unflatten(0, (3, 2))
        return scale * (rows - self.tensors()["conv.weight"][:, None]).square().sum()

    def s_students(self):
        student = TinyNet(3, dropout=0.0)
        student.load_state_dict({**self.student.state_dict(), **self.tensors()})
        return [student]

    def to_chains(self):
        return [TinyChain(self.weights.detach().clone())]


class TinyChain:
    def __init__(self, weights):
        self.weights = weights
        self.meta = {"kind": "oskt"}

    def save(self, path, *, classifier=False):
        torch.save({"weights": self.weights, "meta": self.meta}, path)


class TinyData:
    """Noise around one picture per identity; a function of (seed, epoch, rank) alone."""

    fingerprint = "tiny"

    def __init__(self, steps=5, rank=0, before=lambda: None):
        self.steps, self.rank, self.before = steps, rank, before

    def __len__(self):
        return self.steps

    def batches(self, epoch, start=0):
        generator = torch.Generator().manual_seed(1000 * epoch + self.rank)
        pictures = torch.randn(CLASSES, 3, 8, 4, generator=torch.Generator().manual_seed(1))
        ids = torch.arange(CLASSES).repeat_interleave(2)
        for step in range(self.steps):
            noise = torch.randn(len(ids), 3, 8, 4, generator=generator)
            if step < start:
                continue
            self.before()
            yield pictures[ids] + noise, ids, torch.zeros_like(ids)


def objective(**changes):
    torch.set_num_threads(1)  # bitwise runs; and tiny layers are slower on two threads
    torch.manual_seed(5)
    return SupervisedObjective(TinyNet(), recipe(**changes))


def short_run(out, data=None, **options):
    """A run of 15 steps; returns the objective."""
    torch.set_num_threads(1)
    trained = objective()
    options = {"save_every_steps": 2, "tensorboard": False, "device": "cpu", **options}
    fit(trained, data or TinyData(), recipe(), out, **options)
    return trained


def parallel_run(out):
    """Two runs under torchrun: equal data in every process, then other data, joint model."""
    torch.set_num_threads(1)
    world = World.from_environment("cpu")
    options = {"tensorboard": False, "device": "cpu"}
    same = objective()
    same.network.dropout.p = 0.0
    fit(same, TinyData(), recipe(), out / "same", **options)
    torch.manual_seed(5)
    joint = JointObjective(TinyJoint(TinyNet()), recipe(alpha=0.1, distill=4.0))
    data = TinyData(rank=world.rank)
    fit(joint, data, recipe(alpha=0.1, distill=4.0), out / "other", **options)
    states = {"same": same.state_dict(), "other": joint.state_dict()}
    torch.save(states, out / f"rank{world.rank}.pt")


def _kill_before(count):
    """A function whose call number `count` does not return."""
    calls = iter(range(1, count + 1))

    def call():
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    return call


def main():
    out = Path(sys.argv[1])
    if "WORLD_SIZE" in os.environ:
        parallel_run(out)
        return
    moment, _, count = os.environ["KILL"].partition(":")
    kill = _kill_before(int(count))
    if moment == "step":
        short_run(out, TinyData(before=kill), resume=True)
        return
    replace = os.replace

    def dying_replace(source, target):
        if str(target).endswith("state.pt"):
            kill()
        replace(source, target)

    os.replace = dying_replace
    short_run(out, resume=True)


if __name__ == "__main__":
    main()
