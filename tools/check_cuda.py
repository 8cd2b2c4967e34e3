"""Compile every CUDA source and its host glue and print what each kernel takes, without a GPU.

The kernels are compiled for sm_80 and sm_90 with the flags of setup.py, the glue (*_cuda.cpp) with
the host compiler against the headers of the installed torch, CPU build or not. Warnings are
errors. The exit status is 1 when a file does not compile or a kernel spills registers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import setup

ARCHS = ("80", "90")
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class KernelUse:
    """What ptxas says of one kernel on one architecture."""

    name: str
    arch: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int


def parse_ptxas(log: str) -> list[KernelUse]:
    """The kernels of one `nvcc -Xptxas=-v` log, names still mangled."""
    uses = []
    for match in ENTRY.finditer(log):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        uses.append(
            KernelUse(
                match["name"],
                f"sm_{match['arch']}",
                int(match["registers"]),
                int(shared[1]) if shared else 0,
                int(match["stack"]),
                int(match["stores"]) + int(match["loads"]),
            )
        )
    return uses


def demangle(names: list[str]) -> list[str]:
    """Kernel names as written, without arguments, where c++filt is there."""
    if not names or shutil.which("c++filt") is None:
        return names
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    plain = [re.sub(r"^void |\(anonymous namespace\)::", "", n) for n in out.stdout.splitlines()]
    return [re.sub(r"\(.*\)$", "", n.replace("(int)", "").replace("(bool)", "")) for n in plain]


def compile_one(source: str, home: str, output: str) -> tuple[str, int, str]:
    """Compile one file; its name, exit status and log."""
    flags = setup.compile_flags(with_cuda=True)
    includes = [f"-I{setup.CSRC}", "-isystem", f"{home}/include"]
    if source.endswith(".cu"):
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHS]
        command = [f"{home}/bin/nvcc", *targets, "--expt-relaxed-constexpr", *flags["nvcc"]]
    else:
        python = sysconfig.get_path("include")
        command = [os.environ.get("CXX", "c++"), *flags["cxx"], "-fPIC", "-isystem", python]
    command += [*includes, "-c", source, "-o", output]
    done = subprocess.run(command, cwd=setup.ROOT, capture_output=True, text=True)
    return source, done.returncode, done.stdout + done.stderr


def main() -> int:
    home = setup.cuda_home()
    if home is None:
        print(
            "make cuda: nvcc must be on PATH or below CUDA_HOME, got neither. Install a CUDA "
            "toolkit (no GPU is needed) and try again.",
            file=sys.stderr,
        )
        return 2
    cuda_sources = [s for s in setup.sources(with_cuda=True) if s.endswith((".cu", "_cuda.cpp"))]
    print(f"{len(cuda_sources)} files with the toolkit at {home}, torch {torch.__version__}")
    uses: list[KernelUse] = []
    failures = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(compile_one, source, home, f"{folder}/{i}.o")
            for i, source in enumerate(cuda_sources)
        ]
        for job in jobs:
            source, status, log = job.result()
            print(f"  {'ok    ' if status == 0 else 'FAILED'} {source}", flush=True)
            if status != 0:
                failures += 1
                print(log, file=sys.stderr)
            uses += parse_ptxas(log)
    if uses:
        print(
            f"\n{'arch':6} {'registers':>9} {'shared B':>9} {'stack B':>8} {'spill B':>8}  kernel"
        )
    for use, name in zip(uses, demangle([use.name for use in uses])):
        print(
            f"{use.arch:6} {use.registers:9} {use.shared_bytes:9} {use.stack_bytes:8} "
            f"{use.spill_bytes:8}  {name[:90]}"
        )
    spilling = sum(use.spill_bytes > 0 for use in uses)
    print(f"\n{len(uses)} kernels, {spilling} with spills, {failures} files that did not compile")
    return int(bool(spilling or failures))


if __name__ == "__main__":
    sys.exit(main())
