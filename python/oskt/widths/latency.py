"""How long a student takes for one image, measured on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from oskt.machine import device_name

if TYPE_CHECKING:
    from oskt.chain import WeightChain

WARM_UP = 5
RUNS, MOST = 30, 1000  # timed, at least and at most
SECONDS = 0.3  # of all timed runs, unless the least or the most take longer or less


@dataclass(frozen=True)
class Latency:
    """Time of one forward of one network, and what was timed.

    Args:
        median_ms, low_ms, high_ms: median and quartiles over the runs.
        runs: timed ones, after the warm-up.
        images: shape of the batch.
        device: name of the processor or card.
        threads: of torch, on a CPU.
        runtime: what ran it.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    images: tuple[int, ...]
    device: str
    threads: int
    runtime: str

    @staticmethod
    def of(
        times: Sequence[float], images: Tensor, runtime: str, device: str, threads: int
    ) -> Latency:
        """Of milliseconds, one per run."""
        low, median, high = statistics.quantiles(times, n=4)
        shape = tuple(images.shape)
        return Latency(median, low, high, len(times), shape, device, threads, runtime)

    def __str__(self) -> str:
        spread = f"{self.low_ms:.3g} to {self.high_ms:.3g}"
        shape = "x".join(map(str, self.images))
        threads = f", {self.threads} threads" if self.threads > 1 else ", 1 thread"
        return (
            f"{self.median_ms:.3g} ms (quartiles {spread}, {self.runs} runs of {shape}, "
            f"{self.runtime} on {self.device}{threads if self.threads else ''})"
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values, for a model file."""
        return asdict(self)


def measure(network: nn.Module, images: Tensor) -> Latency:
    """Time the evaluation forward of a network: median of repeats, after a warm-up.

    Args:
        network: its mode is set to evaluation.
        images: (B, 3, H, W) on the network's device.

    Returns:
        The time of whole calls, on a GPU to the end of its work: of 30 runs, and of up to 1000 as
        long as they take less than 0.3 s.

    Notes:
        What else runs on the machine is measured too. Eager torch, no compilation.

    Example:
        >>> found = measure(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 16, 16))
        >>> found.runs >= 30 and 0 < found.low_ms <= found.median_ms <= found.high_ms
        True
    """
    network.eval()
    cuda = images.is_cuda

    def once() -> None:
        network(images)
        if cuda:
            torch.cuda.synchronize(images.device)

    with torch.inference_mode():
        times = _times(once)
    return Latency.of(
        times, images, f"torch {torch.__version__}",
        device_name(images.device), 0 if cuda else torch.get_num_threads(),
    )  # fmt: skip


def measure_onnx(network: nn.Module, images: Tensor) -> Latency:
    """Time a network as `oskt export` deploys it: as an ONNX graph with norms folded, in
    onnxruntime on this CPU. Otherwise as `measure`; seconds go into writing the graph.

    Raises:
        ImportError: the packages for ONNX are missing.
    """
    from oskt.export import formats
    from oskt.export.network import deployed

    formats.require("onnx")
    import onnxruntime

    example = images.cpu().float().expand(2, *images.shape[1:])
    graph = deployed(network, example, inputs="normalised", mean=(0, 0, 0), std=(1, 1, 1), l2=False)
    run, _ = formats.unpack(formats.pack(graph, example, "onnx", {}), "onnx")
    pixels = images.cpu().float().numpy()
    return Latency.of(
        _times(lambda: run(pixels)), images, f"onnxruntime {onnxruntime.__version__}",
        device_name(torch.device("cpu")), torch.get_num_threads(),
    )  # fmt: skip


RUNTIMES = {"torch": measure, "onnxruntime": measure_onnx}


def _times(once: Callable[[], object]) -> list[float]:
    """Milliseconds of every timed run."""
    times: list[float] = []
    for _ in range(WARM_UP):
        once()
    end = time.perf_counter() + SECONDS
    while len(times) < RUNS or (len(times) < MOST and time.perf_counter() < end):
        start = time.perf_counter()
        once()
        times.append(1e3 * (time.perf_counter() - start))
    return times


class Meter:
    """Times students of a chain on one device, and remembers every width that it timed.

    Args:
        chain: with a template.
        device: where students run: cpu, cuda or cuda:1.
        timed: how one is timed: network, images -> Latency; `measure` or `measure_onnx`.

    Raises:
        ValueError: a device that is not here.

    Example:
        >>> from oskt import WeightChain
        >>> from oskt.models.resnet import ResNet
        >>> teacher, images = ResNet(18, in_planes=4), torch.zeros(1, 3, 32, 16)
        >>> chain = WeightChain.from_teacher(teacher, images, "nested", check=False)
        >>> meter = Meter(chain)
        >>> limit = meter(chain.groups)  # milliseconds of the teacher
        >>> widths = chain.resolve(latency_ms=limit, device=meter)
        >>> len(meter.results), meter(widths) <= limit
        (1, True)
    """

    def __init__(
        self,
        chain: WeightChain,
        device: str = "cpu",
        *,
        timed: Callable[[nn.Module, Tensor], Latency] = measure,
    ) -> None:
        shape = (1, *chain.coupling.inputs[0][1:])
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        images = images.to(chain.statistics.dtype)
        try:
            self.images = images.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"latency: device must be cpu or a GPU that is here, got {device!r}. "
                "Measure on the machine that the student is for."
            ) from error
        self.chain = chain
        self.timed = timed
        self.results: dict[tuple[int, ...], Latency] = {}

    def __call__(self, widths: Mapping[str, int]) -> float:
        """Milliseconds for one image, of the student of these widths."""
        return self.latency(widths).median_ms

    def latency(self, widths: Mapping[str, int]) -> Latency:
        """The measurement, made at most once for each widths."""
        key = tuple(widths[group] for group in self.chain.groups)
        if key not in self.results:
            student = self.chain.student(widths=widths).to(self.images.device)
            self.results[key] = self.timed(student, self.images)
        return self.results[key]
