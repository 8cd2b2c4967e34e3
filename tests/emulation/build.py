"""Compiles the CUDA kernels and their glue for the CPU, against cuda.h in this folder.

The operators are registered as torch.ops.oskt_emulated.*, with the schemas of oskt_ext.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import setup

HERE = Path(__file__).resolve().parent
BUILD = setup.ROOT / "build" / "emulation"
LAUNCH = re.compile(r"(\w+(?:<[\w, ()]+>)?)<<<(.+?)>>>\(", re.DOTALL)
SHARED = re.compile(r"__shared__ (?:alignas\(\d+\) )?([^;\[]+?) (\w+(?:\[[^;]*|, \w+)?);")
DECLARED = re.compile(r"(\w+)((?:\[[^\]]+\])*)(?:, |$)")
WORDS = {
    "#include <cuda_runtime_api.h>\n": "",
    "#include <cuda_bf16.h>\n": "",
    "#include <cuda_fp16.h>\n": "",
    '#include "common/mma.cuh"\n': "",
    "LIBRARY_IMPL(oskt_ext, CUDA,": "LIBRARY_IMPL(oskt_emulated, CPU,",
    "torch::stable::accelerator::DeviceGuard": "emulation::DeviceGuard",
    "aoti_torch_get_current_cuda_stream": "emulation::current_stream",
    ".is_cuda()": ".is_cpu()",
    # Small machines and launches, so that a small case has several of them.
    "kBlocks = 132 * 8": "kBlocks = 3",
    "kChunk = 128": "kChunk = 2",
    "kChunkScores = int64_t{1} << 26": "kChunkScores = int64_t{1} << 14",
}


def shared(match: re.Match[str]) -> str:
    """A reference for every array of a shared declaration."""
    return " ".join(
        f"static const char key_of_{name} = 0; "
        f"auto& {name} = emulation::shared<{match[1]}{sides}>(&key_of_{name});"
        for name, sides in DECLARED.findall(match[2])
    )


def emulated(text: str) -> str:
    """A source of csrc/ in the words of cuda.h; lines keep their numbers."""
    for word, other in WORDS.items():
        text = text.replace(word, other + "\n" * (word.count("\n") - other.count("\n")))
    text = SHARED.sub(shared, text)
    return LAUNCH.sub(r"emulation::Launch(\2).run([](const auto&... a) { \1(a...); }, ", text)


def build(*flags: str) -> Path:
    """The library, compiled anew where a source or this folder has changed."""
    name = "".join(c if c.isalnum() else "_" for c in "".join(flags))
    library = BUILD / f"emulated{name}.so"
    sources = [p for p in setup.CSRC.rglob("*") if p.suffix in (".h", ".cuh", ".cu", ".cpp")]
    newest = max(p.stat().st_mtime for p in [*sources, *HERE.glob("*.*")])
    if library.exists() and library.stat().st_mtime > newest:
        return library
    texts = {path: path.read_text() for path in sources}
    for word in WORDS:
        assert any(word in text for text in texts.values()), f"csrc/ no longer says {word}"
    units = []
    for path, text in texts.items():
        copy = BUILD / "csrc" / path.relative_to(setup.CSRC)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(f'#line 1 "{path}"\n' + emulated(text))
        if path.name.endswith(("_kernel.cu", "_cuda.cpp")):
            units.append(copy)
    compiler = [os.environ.get("CXX", "c++"), *flags]
    command = [*compiler, "-std=c++17", "-O1", "-fPIC", "-w", "-fvisibility=hidden", "-x", "c++"]
    command += ["-U_FORTIFY_SOURCE"]  # which takes a jump to another fiber for an attack
    command += [f"-DTORCH_TARGET_VERSION={setup.STABLE_ABI}", "-include", str(HERE / "cuda.h")]
    command += [f"-I{BUILD / 'csrc'}"]
    command += [f"-isystem{path}" for path in setup.system_includes(with_cuda=False)]

    def compiled(unit: Path) -> str:
        target = str(unit.with_suffix(".o"))
        subprocess.run([*command, "-c", str(unit), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, units))
    torch_libraries = Path(torch.__file__).parent / "lib"
    linked = ["-shared", "-o", str(library), f"-L{torch_libraries}", "-ltorch_cpu"]
    subprocess.run([*compiler, *objects, *linked], check=True)
    return library


if __name__ == "__main__":
    print(build(*sys.argv[1:]))
