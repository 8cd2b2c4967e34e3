"""Compile every CUDA source and its host glue and print what each kernel takes, without a GPU.

    python tools/check_cuda.py [--page]

The kernels are compiled for sm_80 and sm_90 with the flags of setup.py, the glue (*_cuda.cpp) with
the host compiler against the headers of the installed torch, CPU build or not. Warnings are
errors. The exit status is 1 when a file does not compile or a kernel spills registers. `--page`
writes docs/lab/cuda.md, too.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import setup
from tools.cuda_page import KernelUse, page

PAGE = Path(setup.ROOT) / "docs" / "lab" / "cuda.md"
ARCHS = ("80", "90")
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


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


def demangle(uses: list[KernelUse]) -> list[KernelUse]:
    """The same with names as written, without arguments, where c++filt is there."""
    if not uses or shutil.which("c++filt") is None:
        return uses
    names = "\n".join(use.name for use in uses)
    out = subprocess.run(["c++filt"], input=names, capture_output=True, text=True).stdout
    return [replace(use, name=short(name)) for use, name in zip(uses, out.splitlines())]


def short(name: str) -> str:
    """A kernel's name with its room and its template arguments, without what all names share."""
    name = re.sub(r"^void |\(anonymous namespace\)::|\((int|bool)\)", "", name)
    name = re.sub(r"\(.*\)$", "", name).removeprefix("oskt::")
    return re.sub(r"oskt::\w+::", "", name).replace("> >", ">>")


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


def release(home: str) -> str:
    """The version that nvcc says it is."""
    said = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"V([\d.]+)", said)
    return found[1] if found else "of unknown version"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true", help=f"write {PAGE.name}, too")
    options = parser.parse_args()
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
    uses = demangle(uses)
    if options.page and not failures:
        PAGE.write_text(page(uses, f"sources {setup.source_hash()}, nvcc {release(home)}"))
    if uses:
        print(
            f"\n{'arch':6} {'registers':>9} {'shared B':>9} {'stack B':>8} {'spill B':>8}  kernel"
        )
    for use in uses:
        print(
            f"{use.arch:6} {use.registers:9} {use.shared_bytes:9} {use.stack_bytes:8} "
            f"{use.spill_bytes:8}  {use.name[:90]}"
        )
    spilling = sum(use.spill_bytes > 0 for use in uses)
    print(f"\n{len(uses)} kernels, {spilling} with spills, {failures} files that did not compile")
    return int(bool(spilling or failures))


if __name__ == "__main__":
    sys.exit(main())
