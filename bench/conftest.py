"""Has pytest-benchmark read the clock of harness.py."""

from __future__ import annotations

import pytest

from harness import now


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=now))
