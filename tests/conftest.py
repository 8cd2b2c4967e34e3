"""Shared fixtures: devices that cannot hide a dead GPU, seeded generators, the golden folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def pytest_collection_modifyitems(items):
    if os.environ.get("OSKT_REQUIRE_CUDA") == "1":
        return  # a missing or broken GPU turns the run red
    import oskt_ext

    if not (torch.cuda.is_available() and oskt_ext.build_info()["cuda"]):
        skip = pytest.mark.skip(reason="no CUDA device or no CUDA build")
        for item in items:
            if item.get_closest_marker("cuda"):  # keywords would match a folder named so
                item.add_marker(skip)


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


LOST: list[str] = []  # the test after which the GPU took no more work


@pytest.fixture(autouse=True)
def _faults_of_the_gpu_are_those_of_their_test(request):
    """Kernels run late, and after a fault no other runs: the rest would fail for nothing."""
    if LOST:
        pytest.exit(f"The GPU takes no more work of this process since {LOST[0]}.")
    yield
    if request.node.get_closest_marker("cuda"):
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            LOST.append(request.node.nodeid)
            raise


@pytest.fixture
def golden():
    return GOLDEN
