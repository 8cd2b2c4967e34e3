"""Python code in a process that has no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from oskt import edge


def without_torch(code, *arguments):
    """Run Python code in a process in which torch and oskt_ext cannot be imported."""
    block = "import sys; sys.modules['torch'] = sys.modules['oskt_ext'] = None\n"
    root = Path(edge.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", block + code, *map(str, arguments)],
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
