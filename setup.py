"""Build of the oskt_ext extension; everything else about the project stands in pyproject.toml.

CUDA is chosen by toolkit, never by whether a GPU is seen:
  torch built with CUDA and nvcc found    -> CPU and CUDA kernels
  torch built with CUDA, no nvcc          -> CPU kernels, said loudly
  CPU torch, with or without nvcc         -> CPU kernels (`make cuda` compile-checks the others)
OSKT_WITH_CUDA=0 or 1 (FORCE_CUDA is understood too) overrides; TORCH_CUDA_ARCH_LIST names the
architectures; DEBUG=1 builds with -O0 -g; OSKT_WERROR=0 lets compilers warn of what ours know
nothing of. CMakeLists.txt and tools/check_cuda.py read the sources and flags from here.
"""

import hashlib
import os
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
GENERATED = ROOT / "build" / "generated"
STABLE_ABI = "0x020A000000000000"  # torch 2.10: the oldest release that the binary loads in
DEFAULT_ARCHS = "8.0;9.0+PTX"


def cuda_home() -> str | None:
    """The folder of a CUDA toolkit that has nvcc, or None; torch's own answer is corrected with it.

    torch takes any /usr/local/cuda, with nvcc or without, and the folder above the first nvcc on
    PATH, though a wrapper or ccache link there lies far from the headers.
    """
    found = [Path(home) for home in (cpp_extension.CUDA_HOME, "/usr/local/cuda") if home]
    found = [home for home in found if (home / "bin/nvcc").exists()]
    found.sort(key=lambda home: not (home / "include/cuda_runtime.h").exists())
    cpp_extension.CUDA_HOME = str(found[0]) if found else None
    return cpp_extension.CUDA_HOME


def wants_cuda() -> tuple[bool, str]:
    """Whether to build the CUDA kernels, and the reason that build_info() reports."""
    override = os.environ.get("OSKT_WITH_CUDA", os.environ.get("FORCE_CUDA"))
    if override == "0":
        return False, "switched off by OSKT_WITH_CUDA=0"
    if torch.version.cuda is None:
        if override == "1":
            sys.exit(
                "setup.py: OSKT_WITH_CUDA=1 needs a torch built with CUDA, got "
                f"{torch.__version__}. Install a CUDA build of torch first."
            )
        return False, f"torch {torch.__version__} is a CPU build"
    home = cuda_home()
    if home is None:
        if override == "1":
            sys.exit(
                "setup.py: OSKT_WITH_CUDA=1 needs nvcc, got no CUDA toolkit. Set CUDA_HOME or "
                f"install the toolkit of CUDA {torch.version.cuda}."
            )
        reason = f"torch is built for CUDA {torch.version.cuda} but no toolkit (nvcc) was found"
        bar = "!" * 88
        print(
            f"{bar}\noskt_ext: {reason}.\nCPU kernels only: CUDA tensors will raise. Set CUDA_HOME "
            f"and build again for CUDA.\n{bar}",
            file=sys.stderr,
        )
        return False, reason
    return True, f"CUDA toolkit at {home}"


def sources(with_cuda: bool) -> list[str]:
    """The translation units of csrc/sources.txt, relative to the repository."""
    lines = (CSRC / "sources.txt").read_text().splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    if not with_cuda:
        names = [n for n in names if not n.endswith((".cu", "_cuda.cpp"))]
    return [f"csrc/{n}" for n in names]


def architectures() -> str:
    """The CUDA architectures to build for, in the spelling of TORCH_CUDA_ARCH_LIST."""
    return os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHS)


def system_includes(with_cuda: bool) -> list[str]:
    """The folders of foreign headers, which are not held to our warnings."""
    return [pybind11.get_include(), *cpp_extension.include_paths("cuda" if with_cuda else "cpu")]


def compile_flags(with_cuda: bool, debug: bool = False) -> dict[str, list[str]]:
    """The flags of the host compiler ("cxx") and of nvcc."""
    shared = [
        "-std=c++17",
        *(["-O0", "-g"] if debug else ["-O3"]),
        f"-DTORCH_TARGET_VERSION={STABLE_ABI}",
        *(["-DUSE_CUDA"] if with_cuda else []),
        *(word for path in system_includes(with_cuda) for word in ("-isystem", path)),
    ]
    cxx = ["-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-attributes"]
    nvcc = ["-G" if debug else "-lineinfo", "-Xptxas=-v"]
    if os.environ.get("OSKT_WERROR") != "0":
        cxx.append("-Werror")
        nvcc.append("-Werror=all-warnings")
    # torch's build switches the half and bfloat16 operators off; the kernels use them.
    for kind in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF2_OPERATORS"):
        nvcc.append(f"-U__CUDA_NO_{kind}__")
    return {
        "cxx": [*shared, *cxx, "-Wno-unused-parameter", "-fopenmp-simd"],
        "nvcc": [*shared, *nvcc],
    }


def source_hash() -> str:
    """SHA-256 over the names and bytes of csrc/, the identity that verified.json records."""
    digest = hashlib.sha256()
    for path in sorted(p for p in CSRC.rglob("*") if p.is_file()):
        digest.update(
            path.relative_to(CSRC).as_posix().encode() + b"\0" + path.read_bytes() + b"\0"
        )
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


def extension() -> Extension:
    with_cuda, reason = wants_cuda()
    archs = architectures() if with_cuda else ""
    write_build_info(with_cuda, reason, archs)
    flags = compile_flags(with_cuda, debug=os.environ.get("DEBUG") == "1")
    kind = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    built = kind(
        name="oskt_ext._C",
        sources=sources(with_cuda),
        depends=[str(p) for p in [*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh"), ROOT / "setup.py"]],
        extra_compile_args=flags if with_cuda else {"cxx": flags["cxx"]},
    )
    # torch's headers come through -isystem, and of its libraries only the stable C interface is
    # used: neither libtorch_python nor libc10 ties the binary to one release.
    built.include_dirs = [str(CSRC), str(GENERATED)]
    built.libraries = ["torch_cpu", *(["torch_cuda", "cudart"] if with_cuda else [])]
    return built


if __name__ == "__main__":
    setup(ext_modules=[extension()], cmdclass={"build_ext": cpp_extension.BuildExtension})
