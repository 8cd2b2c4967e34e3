"""What the compiled library says of itself, and that it leans on torch's stable interface alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import oskt_ext
from oskt_ext import _C

ROOT = Path(__file__).resolve().parent.parent
needs_binutils = pytest.mark.skipif(
    shutil.which("nm") is None or shutil.which("readelf") is None, reason="needs GNU binutils"
)


def printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_keys_and_version():
    info = oskt_ext.build_info()
    assert set(info) == {
        "version", "source_hash", "torch", "compiler", "cuda", "cuda_architectures", "cuda_reason",
    }  # fmt: skip
    assert info["version"] == (ROOT / "version.txt").read_text().strip()
    assert info["cuda_reason"] != ""
    assert (info["cuda"] == "") == (info["cuda_architectures"] == "")


def test_library_is_built_from_these_sources():
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(p for p in (ROOT / "csrc").rglob("*") if p.is_file()):
        name = path.relative_to(ROOT / "csrc").as_posix().encode()
        digest.update(name + b"\0" + path.read_bytes() + b"\0")
    assert oskt_ext.build_info()["source_hash"] == digest.hexdigest()[:16], "build again"


def test_a_copy_is_returned():
    oskt_ext.build_info()["version"] = "changed"
    assert oskt_ext.build_info()["version"] != "changed"


def test_every_operator_has_a_cpu_kernel():
    schemas = re.findall(r'm\.def\(\s*"(\w+)\(', (ROOT / "csrc/library.cpp").read_text())
    keys = ["CPU"] + (["CUDA"] if oskt_ext.build_info()["cuda"] else [])
    for stem in schemas:
        for key in keys:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"oskt_ext::{stem}", key), stem


@needs_binutils
def test_only_the_stable_interface_is_imported():
    symbols = printed("nm", "-D", "-C", "--undefined-only", _C.__file__).splitlines()
    names = [line.split(maxsplit=1)[1] for line in symbols]
    assert [n for n in names if re.search(r"\b(at|c10|torch|caffe2)::", n)] == []
    of_torch = [n for n in names if "torch" in n]
    assert of_torch
    assert [n for n in of_torch if not re.match(r"(aoti_)?torch_\w+$", n)] == []


@needs_binutils
def test_no_library_of_one_torch_release_is_linked():
    printed_libraries = printed("readelf", "-d", _C.__file__)
    needed = re.findall(r"Shared library: \[(lib(?:torch|c10)[^\]]*)\]", printed_libraries)
    assert set(needed) <= {"libtorch_cpu.so", "libtorch_cuda.so"}
