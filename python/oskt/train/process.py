"""The process that trains: its place among others, its random numbers, its signals."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """Which of how many training processes this is, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @staticmethod
    def from_environment(device: str | torch.device | None = None) -> World:
        """The place that torchrun gave this process; alone without it.

        Args:
            device: None takes the GPU of the local rank if there is one, else the CPU; "cuda" is
                that GPU, too.

        Raises:
            ValueError: a device that torch does not know, or a GPU that is not here.

        Example:
            >>> World.from_environment("cpu").size
            1
        """
        local = int(os.environ.get("LOCAL_RANK", 0))
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        with contextlib.suppress(RuntimeError):
            chosen = torch.device(device)
            if chosen == torch.device(
                "cuda"
            ):  # without an index, which torch.cuda.set_device wants
                chosen = torch.device("cuda", local)
            here = {"cpu": 1, "cuda": torch.cuda.device_count()}  # the kernels know no others
            if (chosen.index or 0) < here.get(chosen.type, 0):
                return World(rank, size, chosen)
        raise ValueError(
            f"World: device must be cpu or a GPU that is here, got '{device}'. "
            "Leave it out to take the GPU if there is one."
        )

    def join(self) -> None:
        """Connect the processes (nccl on CUDA, gloo elsewhere) until they end; alone, nothing."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.size > 1 and not dist.is_initialized():
            # The others wait in their next step while the first one evaluates.
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(hours=2))
            # Not after each run: a second connection through torchrun's store can fail.
            atexit.register(dist.destroy_process_group)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, of equal shapes everywhere, by their mean over the processes.

        One all-reduce of one flat buffer: bitwise the same result in every process, and no demands
        on how the gradients came about.
        """
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            parts = flat.div_(self.size).split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts):
                tensor.copy_(part.view_as(tensor))

    def same(self, *numbers: int) -> bool:
        """Whether every process has these numbers; all have joined."""
        bounds = torch.tensor([*numbers, *(-n for n in numbers)], device=self.device)
        if self.size > 1:
            dist.all_reduce(bounds, dist.ReduceOp.MAX)
        most, least = bounds.chunk(2)
        return torch.equal(most, -least)

    def wait(self) -> None:
        """Until every process is here; all have joined."""
        if self.size > 1:
            dist.barrier()

    def agree(self, module: nn.Module) -> None:
        """Give every process the weights and running statistics of the first one."""
        if self.size > 1:
            for tensor in (*module.parameters(), *module.buffers()):  # all on the device
                dist.broadcast(tensor.data, 0)


def seed_step(seed: int, rank: int, epoch: int, step: int) -> None:
    """Make everything random from here on a function of these four numbers.

    Called before every step, so that a resumed run needs no stored generator states: dropout or a
    random width of a step does not depend on what ran before it.
    """
    value = int(np.random.SeedSequence((seed, rank, epoch, step)).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a flag that the loop reads between two steps.

    The second one acts as usual: it ends the process at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # signals exist there only
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self._previous[number])
