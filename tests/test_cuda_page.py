"""The page of the kernels, from a log of ptxas."""

from __future__ import annotations

from tools.check_cuda import parse_ptxas, short
from tools.cuda_page import KernelUse, page

LOG = """ptxas info    : Compiling entry function '_Zk' for 'sm_80'
ptxas info    : Function properties for _Zk
    0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 94 registers, used 1 barriers, 64 bytes smem
"""


def test_log_of_ptxas():
    assert parse_ptxas(LOG) == [KernelUse("_Zk", "sm_80", 94, 64, 0, 12)]


def test_names_keep_their_room():
    tile = "oskt::kmeans::FmaTile<float> "
    long = f"void oskt::kmeans::(anonymous namespace)::mean_kernel<{tile}>(oskt::Batch)"
    assert short(long) == "kmeans::mean_kernel<FmaTile<float>>"


def test_page():
    uses = [
        KernelUse("refine::refining_loss_kernel<float>", arch, registers, 64, 0, 0)
        for arch, registers in (("sm_90", 62), ("sm_80", 64))
    ]
    said = page(uses, "nvcc 13.0")
    assert "1 kernels, none with spills; nvcc 13.0. Cells: sm_80 / sm_90." in said
    assert "| 64 / 62 | 64 / 64 | 0 / 0 | 44 us: ResNet-50, both gradients; 24.4 us:" in said
