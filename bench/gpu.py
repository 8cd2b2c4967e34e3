"""The whole session on a GPU machine: build, test, measure, keep the evidence; `make gpu`.

    python3 bench/gpu.py [--seconds 540]

Uses the Python that runs it, whose torch must be built with CUDA, and installs nothing. The suite
runs with OSKT_REQUIRE_CUDA=1, so that a GPU that does not work is a failure and never a skip.
Results lie in bench/results/<gpu>/ and, when OUT is set, are copied there: verified.json (which
sources passed which tests on which GPU) is written as soon as the tests end, <suite>.json after
each benchmark suite. The exit status is 1 when anything failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch

from measure import PYTHONPATH, ROOT, measure, provenance, results_folder, write_json

BUILD_SECONDS = 240
RESERVE_SECONDS = 15  # for copying and a clean end inside the time box


def build() -> None:
    """Build in place, for the GPU of this machine alone, because that is the quickest."""
    major, minor = torch.cuda.get_device_capability()
    environment = {"OSKT_WITH_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, check=True, timeout=BUILD_SECONDS
    )


def run_tests(seconds: float) -> dict[str, int | bool]:
    """Run the suite; how many tests passed, failed and were skipped, and whether it finished."""
    counts: dict[str, int | bool] = dict.fromkeys(("passed", "failed", "skipped"), 0)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}", "--tb=short", "-rf"]
        environment = {"PYTHONPATH": PYTHONPATH, "OSKT_REQUIRE_CUDA": "1"}
        try:
            subprocess.run(command, cwd=ROOT, env=os.environ | environment, timeout=seconds)
        except subprocess.TimeoutExpired:
            print(f"gpu: the tests were stopped after {seconds:.0f} s", file=sys.stderr)
        counts["finished"] = report.exists()
        if report.exists():
            for suite in ElementTree.parse(report).getroot().iter("testsuite"):
                total, *lost = (
                    int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")
                )
                counts["passed"] += total - sum(lost)
                counts["failed"] += lost[0] + lost[1]
                counts["skipped"] += lost[2]
    return counts


def hand_over(folder: Path) -> None:
    """Copy the results to $OUT, if the caller asked for that."""
    if out := os.environ.get("OUT"):
        shutil.copytree(folder, Path(out) / folder.name, dirs_exist_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=540, help="time box of the whole session")
    deadline = time.monotonic() + parser.parse_args().seconds
    if not torch.cuda.is_available():
        print(
            "make gpu: PYTHON must have a torch that sees a GPU, got torch "
            f"{torch.__version__} at {sys.executable} without one. Set PYTHON, or use make test.",
            file=sys.stderr,
        )
        return 1
    build()
    sys.path[:0] = [str(ROOT), str(ROOT / "python")]
    folder = results_folder("cuda")

    # The tests may take all but a quarter of what is left; the benchmarks get the rest.
    counts = run_tests(0.75 * (deadline - time.monotonic()))
    verified = counts["finished"] and counts["failed"] == 0 and counts["passed"] > 0
    write_json(
        folder / "verified.json", provenance("cuda") | {"verified": verified, "tests": counts}
    )
    hand_over(folder)

    incomplete = measure("cuda", deadline - time.monotonic() - RESERVE_SECONDS, [])
    hand_over(folder)
    print(f"gpu: {counts}; results in {folder.relative_to(ROOT)}")
    return int(not verified or incomplete != [])


if __name__ == "__main__":
    sys.exit(main())
