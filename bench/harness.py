"""Roofs of this machine, measured in the same run as the numbers that are held against them."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

DEVICE = torch.device(os.environ.get("OSKT_BENCH_DEVICE", "cpu"))


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, where it is glibc.

    Else a loop that frees and allocates tens of megabytes measures the system's page faults, and
    two loops in turn those that each other cause.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mmap_max, trim_threshold = -4, -1  # their numbers in malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


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


def copy_bandwidth(nbytes: int = 128 << 20) -> float:
    """Bytes read plus bytes written per second of a plain copy of `nbytes`."""
    source = torch.ones(nbytes // 4, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), rounds=7)


def against_copy(
    benchmark: Any, nbytes: int, step: Callable[[], Any], setup: Callable[[], Any] | None = None
) -> None:
    """Time `step`; `setup` before each is not timed.

    extra_info gets `bytes`, the traffic that it cannot avoid, `roof_s`, the time of as many bytes
    at the bandwidth of a copy that no cache holds, and the `ratio` of the two.

    The bandwidth is measured right before and right after: other tenants of the machine move it.
    """
    keep_freed_memory()
    before = copy_bandwidth()
    prepare = None if setup is None else lambda: (setup(), None)[1]
    benchmark.pedantic(step, setup=prepare, rounds=9, warmup_rounds=2)
    roof = nbytes * (1 / before + 1 / copy_bandwidth()) / 2
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(bytes=nbytes, roof_s=roof, ratio=median / roof)


@cache
def sgemm_rate(size: int = 2048) -> float:
    """Floating-point operations per second of a square float32 matrix product."""
    a = torch.ones(size, size, device=DEVICE)
    out = torch.empty_like(a)
    return 2 * size**3 / seconds_of(lambda: torch.mm(a, a, out=out), rounds=5)
