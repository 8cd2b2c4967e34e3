"""How much a student loses by each channel group, measured on a few images without labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from oskt import students
from oskt.chain import WeightChain
from oskt.widths.costs import Array


def measure(
    chain: WeightChain,
    images: Tensor,
    *,
    points: int = 4,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Array]:
    """Curves for `shape=` of chain.student: what every width of every group is worth.

    One group at a time is narrowed, the others stay as wide as the teacher. What is lost is how far
    the cosines between images move, which is what retrieval ranks by:

        loss_g(n) = mean over pairs of images of (cosine_n - cosine_N)^2,

    with norm statistics measured on the same images. Between measured widths, and below the
    narrowest, it is linear.

    Args:
        chain: of either kind, with a template.
        images: (B, 3, H, W), B >= 2, on the chain's device, normalised and augmented as in training
            (see ReIDData.unlabelled); 128 are enough.
        points: widths measured per group, from the narrowest that was trained, evenly.
        progress: called with every group's name.

    Returns:
        Free group -> float64 [N], minus the loss at widths 1..N, 0 at N and never falling. Groups
        that must be as wide as others are narrowed together, under the first one's name.

    Raises:
        ValueError: fewer than 2 images, or points < 1.

    Notes:
        Two forwards over the images per group and point. Deterministic on one machine.

    Example:
        >>> from oskt.models.resnet import ResNet
        >>> teacher, images = ResNet(18, in_planes=4), torch.randn(4, 3, 32, 16)
        >>> chain = WeightChain.from_teacher(teacher, images, "nested", check=False)
        >>> curves = measure(chain, images, points=1)
        >>> curves["conv1"].shape, float(curves["conv1"][-1])
        ((4,), 0.0)
        >>> chain.costs(chain.resolve(macs=1e5, shape=curves))[1] <= 1e5
        True
    """
    if len(images) < 2 or points < 1:
        raise ValueError(
            f"sensitivity: images must be 2 or more and points >= 1, got {len(images)} and "
            f"{points}. Take 128 training images, without labels."
        )
    whole = _cosines(chain, chain.groups, images)
    curves = {}
    for name, group in chain.coupling.free.items():
        if group.like:
            continue
        if progress is not None:
            progress(name)
        least = chain.widths[name]
        spaced = np.linspace(least, group.size, points + 1)[:-1] / group.step
        widths = sorted({group.step * round(width) for width in spaced} - {group.size})
        sizes = [chain.coupling.alike({**chain.groups, name: n}) for n in widths]
        losses = [float((_cosines(chain, s, images) - whole).square().mean()) for s in sizes]
        curves[name] = _curve(widths, losses, group.size)
    return curves


def _curve(widths: list[int], losses: list[float], size: int) -> Array:
    """[size]: minus the losses, never falling with the width, 0 at the last."""
    if not widths:
        return np.zeros(size)
    worth = 0.0 - np.maximum.accumulate([0.0, *losses[::-1]])[::-1]
    known = np.array([*widths, size], dtype=float)
    curve: Array = np.interp(np.arange(1, size + 1), known, worth)
    below = np.arange(1, widths[0])
    slope = (worth[1] - worth[0]) / (known[1] - known[0])
    curve[: len(below)] = worth[0] - slope * (widths[0] - below)
    return curve


def _cosines(chain: WeightChain, widths: dict[str, int], images: Tensor) -> Tensor:
    """(B, B), between the embeddings that a student gives."""
    student = chain.student(widths=widths).to(images.device)
    students.recalibrate(student, [images])
    with torch.inference_mode():
        embedding = F.normalize(student(images).flatten(1).double(), dim=1)
    return embedding @ embedding.T
