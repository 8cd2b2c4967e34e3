"""docs/lab/cuda.md: what every kernel takes of a multiprocessor, and the time that an H200 needs at
least for the work that the lab logs ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class KernelUse:
    """What ptxas says of one kernel on one architecture."""

    name: str
    arch: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int


class Peak(NamedTuple):
    """A rate of NVIDIA's data sheet of the H200 SXM, without sparsity."""

    rate: float
    unit: str


MEMORY = Peak(4.8e12, "B")
FLOAT32 = Peak(67e12, "FLOP")
FLOAT64 = Peak(34e12, "FLOP")
TF32 = Peak(495e12, "FLOP")
HALVES = Peak(990e12, "FLOP")


@dataclass(frozen=True)
class Work:
    """What a kernel must move or compute for a task, however it is written."""

    task: str
    amount: float
    peak: Peak

    @property
    def seconds(self) -> float:
        return self.amount / self.peak.rate


# Bytes are those of bench/results (`bytes`); products count 2 FLOP a multiply-add.
ITERATION = "one of Lloyd's iterations, B 32, N 131072, K 1000, D 128"
PRODUCTS = 2 * 32 * 131072 * 1000 * 128
GRAMS = [Work("ResNet-50's 53 Gram matrices, half of each", 19.46e9, FLOAT64)]  # sums in float64
WORK: dict[str, list[Work]] = {
    "expand::expand_kernel<float>": [
        Work("published chain of ResNet-50 to S1", 13_692_512, MEMORY),
        Work("to S6", 50_872_192, MEMORY),
        Work("ViT-B's to 1/2", 127_899_648, MEMORY),
    ],
    "refine::refining_loss_kernel<float>": [
        Work("ResNet-50, both gradients", 211_094_208, MEMORY),
        Work("the chain's alone", 117_274_560, MEMORY),
    ],
    "kmeans::gram_kernel<float, DeviceProblem>": GRAMS,
    "kmeans::gram_kernel<float, TreeProblem>": GRAMS,
    "kmeans::assign_kernel<FmaTile<float>>": [Work(ITERATION, PRODUCTS, FLOAT32)],
    "kmeans::assign_kernel<TensorTile<float>>": [Work(ITERATION, PRODUCTS, TF32)],
    "kmeans::assign_kernel<TensorTile<__half>>": [Work(ITERATION, PRODUCTS, HALVES)],
    "kmeans::assign_kernel<TensorTile<__nv_bfloat16>>": [Work(ITERATION, PRODUCTS, HALVES)],
    "kmeans::mean_kernel<FmaTile<float>>": [Work(ITERATION, 4 * 32 * 131072 * 128, MEMORY)],
    "retrieval::scores_kernel<float>": [
        Work("Market-1501, 2048 numbers", 2 * 3368 * 15913 * 2048, FLOAT32),
        Work("MSMT17", 2 * 11659 * 82161 * 2048, FLOAT32),
        Work("MSMT17, all with all", 2 * 93820**2 * 2048, FLOAT32),
    ],
    "retrieval::nearest_kernel<float>": [
        Work("MSMT17, one reading of all scores", 4 * 93820**2, MEMORY)
    ],
}
HEAD = """# Lab log: the CUDA kernels on paper

Made by `python tools/check_cuda.py --page`; nothing here was measured. Registers and bytes of
static shared memory and of spills are ptxas', with the flags of `setup.py`. A floor is what the
work of one call must move or multiply over a rate of an H200's data sheet: 4.8 TB/s, 34 TFLOP/s in
float64, 67 in float32, 495 in TF32, 990 in halves. A copy reaches about 4.3 TB/s. Floors stand
where a lab log states a goal or a prediction.
"""


def page(uses: Sequence[KernelUse], made_of: str) -> str:
    """The page of kernels, each named once per architecture."""
    archs = sorted({use.arch for use in uses})
    kernels: dict[str, dict[str, KernelUse]] = {}
    for use in uses:
        kernels.setdefault(use.name, {})[use.arch] = use
    spilling = sum(use.spill_bytes > 0 for use in uses)
    lines = [
        HEAD,
        f"{len(kernels)} kernels, {spilling or 'none'} with spills; {made_of}. "
        f"Cells: {' / '.join(archs)}.",
        "",
        "| kernel | registers | shared, bytes | spills, bytes | floor on an H200 |",
        "|---|---:|---:|---:|---|",
    ]
    for name, found in sorted(kernels.items()):
        cells = [
            " / ".join(str(getattr(found[arch], key)) for arch in archs if arch in found)
            for key in ("registers", "shared_bytes", "spill_bytes")
        ]
        cells += ["; ".join(f"{time_text(w.seconds)}: {w.task}" for w in WORK.get(name, []))]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def time_text(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"
