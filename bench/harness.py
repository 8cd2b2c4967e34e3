"""Roofs of this machine, measured in the same run as the numbers that are held against them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

DEVICE = torch.device(os.environ.get("OSKT_BENCH_DEVICE", "cpu"))


def synchronize(device: torch.device = DEVICE) -> None:
    """Wait for the device; nothing to wait for on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], rounds: int = 15) -> float:
    """The median time of one call, after two calls to warm up."""
    times = []
    for _ in range(rounds + 2):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times[2:])[rounds // 2]


@cache
def copy_bandwidth(nbytes: int = 128 << 20) -> float:
    """Bytes read plus bytes written per second of a plain copy of `nbytes`."""
    source = torch.ones(nbytes // 4, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source))


@cache
def sgemm_rate(size: int = 2048) -> float:
    """Floating-point operations per second of a square float32 matrix product."""
    a = torch.ones(size, size, device=DEVICE)
    out = torch.empty_like(a)
    return 2 * size**3 / seconds_of(lambda: torch.mm(a, a, out=out), rounds=5)
