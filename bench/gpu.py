"""The whole session on a GPU machine: build, test, measure, keep the evidence; `make gpu`.

    python3 bench/gpu.py [--seconds 540]

Uses the Python that runs it, whose torch must be built with CUDA, and installs nothing. What is
worth most comes first: the tests that need a GPU, with OSKT_REQUIRE_CUDA=1, so that a GPU that does
not work is a failure and never a skip; the benchmarks; in what time is left, the other tests. What
must be stopped leaves what it has until then.
Results lie in bench/results/<gpu>/: verified.json (which sources passed which tests on which GPU)
and <suite>.json. When OUT is set, they are copied there as one archive after every step, because
who lends a GPU may hand back a few files alone. The exit status is 1 when anything failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch

from measure import (
    PYTHONPATH,
    ROOT,
    measure,
    provenance,
    results_folder,
    run_within,
    write_json,
)

BUILD_SECONDS = 240
RESERVE_SECONDS = 30  # for stopping, copying and a clean end inside the time box
TESTS_SHARE = 0.5  # of what the build leaves; the benchmarks have the rest
Counts = dict[str, "int | bool"]


def build() -> bool:
    """Build in place, for the GPU of this machine alone, because that is the quickest; whether it
    was built. What the compiler says stands on the terminal, and what only this machine's compiler
    warns of must not cost the session.
    """
    major, minor = torch.cuda.get_device_capability()
    environment = {
        "OSKT_WITH_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}",
        "OSKT_WERROR": "0",
    }
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    status = run_within(BUILD_SECONDS, command, **environment)
    if status == 0:
        return True
    got = f"{BUILD_SECONDS} s without an end" if status is None else f"exit status {status}"
    print(
        f"make gpu: `{' '.join(command[1:])}` must build the extension, got {got}. "
        "The compiler's last lines above say why.",
        file=sys.stderr,
    )
    return False


def run_tests(seconds: float, *chosen: str) -> Counts:
    """Run the tests chosen; how many passed, failed and were skipped, and whether it finished."""
    counts: Counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", *chosen, f"--junitxml={report}"]
        command += ["--tb=short", "-rfE", "--continue-on-collection-errors"]
        status = run_within(seconds, command, PYTHONPATH=PYTHONPATH, OSKT_REQUIRE_CUDA="1")
        if status is None:
            print(f"gpu: the tests were stopped after {seconds:.0f} s", file=sys.stderr)
        counts["finished"] = status in (0, 1) and report.exists()  # others end early
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
        shutil.make_archive(str(Path(out) / folder.name), "zip", folder.parent, folder.name)


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
    if not build():
        return 1
    sys.path[:0] = [str(ROOT), str(ROOT / "python")]
    folder = results_folder("cuda")

    def left() -> float:
        return deadline - time.monotonic() - RESERVE_SECONDS

    counts = run_tests(TESTS_SHARE * left(), "tests", "-m", "cuda and not slow")
    verified = counts["finished"] and counts["failed"] == 0 and counts["passed"] > 0
    evidence = provenance("cuda") | {"verified": verified, "tests": counts}
    write_json(folder / "verified.json", evidence)
    hand_over(folder)

    incomplete = measure("cuda", left(), [], after_each=lambda: hand_over(folder))

    others = run_tests(left(), "-m", "not cuda and not slow") if left() > 0 else {}
    write_json(folder / "verified.json", evidence | {"other_tests": others})
    hand_over(folder)
    print(f"gpu: {counts}, without a GPU {others}; results in {folder.relative_to(ROOT)}")
    return int(not verified or incomplete != [] or others.get("failed", 0) > 0)


if __name__ == "__main__":
    sys.exit(main())
