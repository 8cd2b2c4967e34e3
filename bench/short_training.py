"""Weights that are no longer random: a ResNet-50 after a short training, for benchmarks of weights.

    python bench/short_training.py [--steps 120]

writes build/bench/resnet50.safetensors, a file of the 53 convolutions. Task: tell 64 drawn
textures apart, 64x32, under noise, shift and gain; Adam 1e-3. Some minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, interpolate

from oskt.models.resnet import ResNet

WEIGHTS = Path(__file__).resolve().parent.parent / "build" / "bench" / "resnet50.safetensors"
CLASSES, BATCH = 64, 24


def train(steps: int) -> ResNet:
    """A ResNet-50 after `steps` Adam steps from its initialisation, seed 0."""
    torch.manual_seed(0)
    model = ResNet(50, num_classes=CLASSES).train()
    textures = interpolate(torch.randn(CLASSES, 3, 16, 8), size=(64, 32), mode="bilinear")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    start = time.perf_counter()
    for step in range(steps):
        labels = torch.randint(CLASSES, (BATCH,))
        gain = 0.5 + torch.rand(BATCH, 1, 1, 1)
        shift = int(torch.randint(-8, 9, ()))
        images = (gain * textures[labels]).roll(shift, 2) + 0.5 * torch.randn(BATCH, 3, 64, 32)
        loss = cross_entropy(model(images)[1], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            spent = time.perf_counter() - start
            print(f"step {step}: loss {loss.item():.3f}, {spent:.0f} s", flush=True)
    return model


def main() -> None:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    model = train(parser.parse_args().steps)
    convs = {name: value for name, value in model.state_dict().items() if value.dim() == 4}
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    unfinished = WEIGHTS.with_suffix(".tmp")
    save_file(convs, unfinished)
    unfinished.replace(WEIGHTS)
    print(f"wrote {len(convs)} convolutions to {WEIGHTS}")


if __name__ == "__main__":
    main()
