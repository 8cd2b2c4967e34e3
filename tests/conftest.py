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


@pytest.fixture
def golden():
    return GOLDEN
