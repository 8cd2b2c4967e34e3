"""The mean of the weights over the last part of a run, which is what the run keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential mean of weights and norm statistics over the steps of a run.

    mean <- d mean + (1 - d) weights after every step, d = 1 - 1/memory, but at most n / (n + 10)
    after n steps, so that the first weights are soon forgotten. It lets a run end at a rate that
    still moves: the weights of its last steps lie around a point that is better than each of them.

    Args:
        module: what is trained; parameters that are not, and integers, are left alone.
        memory: steps that the mean reaches back; 1 or less keeps the last weights, at no cost.

    Notes:
        Memory: one more copy of the weights. Deterministic. A step costs one pass over them.

    Source: Tarvainen and Valpola 2017, section 2 (mean teacher); the bound on d is that of
    TensorFlow's moving averages, a step later. Difference: norm statistics are averaged, too.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(layer, memory=2)
        >>> for value in (1.0, 2.0, 3.0, 4.0):
        ...     _ = nn.init.constant_(layer.weight, value)
        ...     average.update()
        >>> average.keep()
        >>> 3 < layer.weight.item() < 4
        True
    """

    def __init__(self, module: nn.Module, memory: float) -> None:
        self._memory = memory
        self._steps = 0
        self._live = [
            *(p.data for p in module.parameters() if p.requires_grad),
            *(b for b in module.buffers() if b.is_floating_point()),
        ] if memory > 1 else []  # fmt: skip
        self._mean = [tensor.clone() for tensor in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        if self._live:
            decay = min(1 - 1 / self._memory, self._steps / (self._steps + 10))
            self._steps += 1
            torch._foreach_lerp_(self._mean, self._live, 1 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The module has the mean for as long as this lasts."""
        last = [tensor.clone() for tensor in self._live]
        self.keep()
        try:
            yield
        finally:
            _copy(self._live, last)

    def keep(self) -> None:
        """The module has the mean from now on."""
        _copy(self._live, self._mean)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
        _copy(self._mean, state["mean"])


@torch.no_grad()
def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
