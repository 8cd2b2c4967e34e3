"""Static int8 quantisation of an ONNX file, calibrated on images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oskt.export.formats import INPUT, Array, quiet, serialise

# Products of weights and activations, and what lies between them.
_QUANTISED = ["Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "AveragePool", "Concat"]


def quantise(data: bytes, batches: Iterable[Array], about: Mapping[str, Any]) -> bytes:
    """Weights and activations of an ONNX file in int8, as pairs of QuantizeLinear and
    DequantizeLinear.

    Weights have a scale per output channel, activations a scale and a zero point per tensor, from
    their least and greatest value on the images. What normalises the input and what follows the
    last product (pooling, BNNeck, L2) stays in float32, and so do input and output.

    Args:
        data: of oskt.export.formats.pack.
        batches: images as the file takes them, to calibrate on.
        about: see pack.

    Source: ONNX Runtime's static quantisation.
    """
    import onnx
    from onnxruntime import quantization

    model = onnx.load_from_string(data)
    stored = {tensor.name for tensor in model.graph.initializer}
    shifts = [n.name for n in model.graph.node if n.op_type == "Add" and stored & set(n.input)]
    rest = iter(batches)

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, Array] | None:
            batch = next(rest, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder, quiet():
        out = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            model, out, Reader(), op_types_to_quantize=_QUANTISED, nodes_to_exclude=shifts,
            per_channel=True,
        )  # fmt: skip
        return serialise(onnx.load(out), about)
