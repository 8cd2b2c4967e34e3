"""The one clock of the benchmarks, and the roofs of this machine, measured in the same run.

A time is the wall clock's on the CPU and the device's own on a GPU: two events on the stream, put
behind a pause, so that neither launches nor what came before is in it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

DEVICE = torch.device(os.environ.get("OSKT_BENCH_DEVICE", "cpu"))
CUDA = DEVICE.type == "cuda"
PAUSE_CYCLES = 20_000_000  # some 10 ms, in which the host launches all but the slowest peers


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


class DeviceInstant:
    """Where the GPU's stream stands now. A difference is seconds, and waits for the later one."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier: DeviceInstant) -> float:
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) / 1e3


now: Callable[[], Any] = DeviceInstant if CUDA else time.perf_counter


def pause() -> None:
    """Keep the GPU busy without the memory, so that the host can launch ahead of it."""
    if CUDA:
        torch.cuda._sleep(PAUSE_CYCLES)


def timed(
    benchmark: Any, call: Callable[[], Any], *, rounds: int = 9, warmup: int = 1,
    prepare: Callable[[], Any] | None = None,
) -> Any:  # fmt: skip
    """Time `call` (`prepare` before each is not timed); what it returned last."""

    def before() -> None:
        if prepare is not None:
            prepare()
        pause()

    try:
        return benchmark.pedantic(call, setup=before, rounds=rounds, warmup_rounds=warmup)
    except BaseException:  # a skip or Ctrl-C; pytest-benchmark fails to report what has no rounds
        benchmark.has_error = True
        raise


def seconds_of(call: Callable[[], Any], rounds: int = 15) -> float:
    """The median time of one call, after two calls to warm up."""
    times = []
    for _ in range(rounds + 2):
        pause()
        start = now()
        call()
        times.append(now() - start)
    return sorted(times[2:])[rounds // 2]


def waited_for(call: Callable[[], Any], rounds: int = 9) -> float:
    """The median time that a caller on an idle GPU waits: launches and synchronisation too."""
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[rounds // 2]


def copy_bandwidth(nbytes: int = 128 << 20) -> float:
    """Bytes read plus bytes written per second of a plain copy of `nbytes`."""
    source = torch.ones(nbytes // 4, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), rounds=7)


def against_copy(
    benchmark: Any, nbytes: int, step: Callable[[], Any], *, rounds: int = 9,
    prepare: Callable[[], Any] | None = None,
) -> None:  # fmt: skip
    """Time `step`; `prepare` before each is not timed.

    extra_info gets `bytes`, the traffic that it cannot avoid, `roof_s`, the time of as many bytes
    at the bandwidth of a copy that no cache holds, and on a GPU `call_s`, what a caller waits for.

    The bandwidth is measured right before and right after: other tenants of the machine move it.
    """
    keep_freed_memory()
    before = copy_bandwidth()
    timed(benchmark, step, rounds=rounds, warmup=2, prepare=prepare)
    roof = nbytes * (1 / before + 1 / copy_bandwidth()) / 2
    benchmark.extra_info.update(bytes=nbytes, roof_s=roof)
    if CUDA:
        benchmark.extra_info["call_s"] = waited_for(step)


@cache
def sgemm_rate(size: int = 2048) -> float:
    """Floating-point operations per second of a square float32 matrix product."""
    a = torch.ones(size, size, device=DEVICE)
    out = torch.empty_like(a)
    return 2 * size**3 / seconds_of(lambda: torch.mm(a, a, out=out), rounds=5)


def cpu_module(name: str) -> Any:
    """The module of a peer that computes on the CPU.

    Skips where it is not installed, and on a GPU, whose peers are those that run there.
    """
    if CUDA:
        pytest.skip(f"{name} computes on the CPU")
    return pytest.importorskip(name)
