"""Weights that are no longer random: a ResNet-50 after a short training, for benchmarks of weights.

    python bench/short_training.py [--steps 100]

writes build/bench/resnet50.pt, a file of the 53 convolutions; bench_kmeans.py makes it where it is
missing. Task: tell 64 drawn textures apart, 64x32, under noise, shift and gain; Adam 1e-3. A minute
or two on two cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from harness import DEVICE
from oskt.models.resnet import ResNet

WEIGHTS = Path(__file__).resolve().parent.parent / "build" / "bench" / "resnet50.pt"
CLASSES, BATCH, STEPS = 64, 24, 100


def train(steps: int) -> ResNet:
    """A ResNet-50 after `steps` Adam steps from its initialisation, seed 0."""
    torch.manual_seed(0)
    model = ResNet(50, num_classes=CLASSES).to(DEVICE).train()
    textures = interpolate(torch.randn(CLASSES, 3, 16, 8), size=(64, 32), mode="bilinear")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    start = time.perf_counter()
    for step in range(steps):
        labels = torch.randint(CLASSES, (BATCH,))
        gain = 0.5 + torch.rand(BATCH, 1, 1, 1)
        shift = int(torch.randint(-8, 9, ()))
        images = (gain * textures[labels]).roll(shift, 2) + 0.5 * torch.randn(BATCH, 3, 64, 32)
        loss = cross_entropy(model(images.to(DEVICE))[1], labels.to(DEVICE))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            spent = time.perf_counter() - start
            print(f"step {step}: loss {loss.item():.3f}, {spent:.0f} s", flush=True)
    return model


def keep(steps: int) -> None:
    """Train, and write the convolutions."""
    model = train(steps)
    convs = {name: value.cpu() for name, value in model.state_dict().items() if value.dim() == 4}
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    unfinished = WEIGHTS.with_suffix(".tmp")
    torch.save(convs, unfinished)
    unfinished.replace(WEIGHTS)
    print(f"wrote {len(convs)} convolutions to {WEIGHTS}")


def trained_convolutions() -> dict[str, Tensor]:
    """The convolutions by their names in the state dict; made first where they are not there."""
    if not WEIGHTS.exists():
        keep(STEPS)
    convs: dict[str, Tensor] = torch.load(WEIGHTS, weights_only=True)
    return convs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    keep(parser.parse_args().steps)


if __name__ == "__main__":
    main()
