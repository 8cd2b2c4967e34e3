"""Build of the oskt_ext extension; everything else about the project stands in pyproject.toml.

CUDA is chosen by toolkit, never by whether a GPU is seen:
  torch built with CUDA and nvcc found    -> CPU and CUDA kernels
  torch built with CUDA, no nvcc          -> CPU kernels, said loudly
  CPU torch, with or without nvcc         -> CPU kernels (`make cuda` compile-checks the others)
OSKT_WITH_CUDA=0 or 1 (FORCE_CUDA=1 is understood too) overrides; DEBUG=1 builds with -O0 -g.
"""

import hashlib
import os
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
GENERATED = ROOT / "build" / "generated"
STABLE_ABI = "0x020A000000000000"  # torch 2.10: the oldest release that the binary loads in
DEFAULT_ARCHS = "8.0;9.0+PTX"


def wants_cuda() -> tuple[bool, str]:
    """Whether to build the CUDA kernels, and the reason that build_info() reports."""
    override = os.environ.get("OSKT_WITH_CUDA", os.environ.get("FORCE_CUDA"))
    if override == "0":
        return False, "switched off by OSKT_WITH_CUDA=0"
    if torch.version.cuda is None:
        if override == "1":
            sys.exit("setup.py: OSKT_WITH_CUDA=1 needs a torch built with CUDA, got "
                     f"{torch.__version__}. Install a CUDA build of torch first.")
        return False, f"torch {torch.__version__} is a CPU build"
    if CUDA_HOME is None:
        if override == "1":
            sys.exit("setup.py: OSKT_WITH_CUDA=1 needs nvcc, got no CUDA toolkit. Set CUDA_HOME or "
                     "install the toolkit of the version in torch.version.cuda.")
        reason = f"torch is built for CUDA {torch.version.cuda} but no toolkit (nvcc) was found"
        bar = "!" * 88
        print(f"{bar}\noskt_ext: {reason}.\nCPU kernels only: CUDA tensors will raise. Set CUDA_HOME "
              f"and build again for CUDA.\n{bar}", file=sys.stderr)
        return False, reason
    return True, f"CUDA toolkit at {CUDA_HOME}"


def source_hash() -> str:
    """SHA-256 over the names and bytes of csrc/, the identity that verified.json records."""
    digest = hashlib.sha256()
    for path in sorted(p for p in CSRC.rglob("*") if p.is_file()):
        digest.update(path.relative_to(CSRC).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def write_build_info(with_cuda: bool, reason: str, archs: str) -> None:
    """The header that only library.cpp includes, rewritten only when its text changes."""
    values = {
        "OSKT_VERSION": (ROOT / "version.txt").read_text().strip(),
        "OSKT_SOURCE_HASH": source_hash(),
        "OSKT_TORCH_AT_BUILD": torch.__version__,
        "OSKT_CUDA_AT_BUILD": (torch.version.cuda or "") if with_cuda else "",
        "OSKT_CUDA_ARCHS": archs if with_cuda else "",
        "OSKT_CUDA_REASON": reason,
    }
    text = "#pragma once\n" + "".join(f'#define {k} "{v}"\n' for k, v in values.items())
    header = GENERATED / "oskt_build_info.h"
    if not header.exists() or header.read_text() != text:
        GENERATED.mkdir(parents=True, exist_ok=True)
        header.write_text(text)


def extension():
    with_cuda, reason = wants_cuda()
    archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHS) if with_cuda else ""
    write_build_info(with_cuda, reason, archs)
    lines = (CSRC / "sources.txt").read_text().splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    if not with_cuda:
        names = [n for n in names if not n.endswith((".cu", "_cuda.cpp"))]
    debug = os.environ.get("DEBUG") == "1"
    define = [f"-DTORCH_TARGET_VERSION={STABLE_ABI}"] + (["-DUSE_CUDA"] if with_cuda else [])
    cxx = ["-std=c++17", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wno-attributes",
           "-Wno-unused-parameter", "-fopenmp-simd", *(["-O0", "-g"] if debug else ["-O3"]), *define]
    nvcc = ["-std=c++17", "-lineinfo", "-Werror=all-warnings", "-Xptxas=-v",
            *(["-O0", "-g", "-G"] if debug else ["-O3"]), *define]
    cls = CUDAExtension if with_cuda else CppExtension
    return cls(
        name="oskt_ext._C",
        sources=[f"csrc/{n}" for n in names],
        include_dirs=[str(CSRC), str(GENERATED), pybind11.get_include()],
        depends=[str(p) for p in CSRC.rglob("*.h")] + [str(p) for p in CSRC.rglob("*.cuh")],
        extra_compile_args={"cxx": cxx, "nvcc": nvcc} if with_cuda else {"cxx": cxx},
    )


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExtension})
