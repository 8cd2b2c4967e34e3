"""Static int8 quantisation of an ONNX file, calibrated on images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oskt.export.formats import INPUT, Array, quiet, serialise

# Products, and what passes their results on. Additions of residuals in int8 win no time and lose
# much: two fifths of the error of a ResNet-50 student (1 - cosine), four fifths of a transformer's.
_QUANTISED = ["Conv", "Gemm", "MatMul", "Relu", "MaxPool", "AveragePool"]


def quantise(data: bytes, batches: Iterable[Array], about: Mapping[str, Any]) -> bytes:
    """Weights and activations of an ONNX file in int8, as pairs of QuantizeLinear and
    DequantizeLinear.

    Weights have a scale per output channel, activations a scale and a zero point per tensor, from
    their least and greatest value on the images. Additions, norms of layers, input and output, and
    what lies before the first product (mean and std) and behind the last (BNNeck, L2) stay float32.

    Args:
        data: of oskt.export.formats.pack.
        batches: images as the file takes them, to calibrate on.
        about: see pack.

    Source: ONNX Runtime's static quantisation.
    """
    import onnx
    from onnxruntime import quantization

    rest = iter(batches)

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, Array] | None:
            batch = next(rest, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder, quiet():
        out = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            onnx.load_from_string(data), out, Reader(), op_types_to_quantize=_QUANTISED,
            per_channel=True,
        )  # fmt: skip
        return serialise(onnx.load(out), about)
