"""Deployment formats: a network as the bytes of a file, and such bytes as a function again."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[Any]
Run = Callable[[Array], Array]  # images (B, 3, H, W) as the file takes them -> embeddings (B, F)

SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript", "torch-export": ".pt2"}
INPUT, OUTPUT = "images", "output0"
OPSET = 18  # what torch writes without converting
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_ABOUT = "oskt.json"


def require(form: str) -> None:
    """Refuse a format that does not exist or whose packages are not installed.

    Raises:
        ValueError: an unknown format.
        ImportError: naming what is missing.
    """
    if form not in SUFFIXES:
        raise ValueError(
            f"export: format must be one of {', '.join(SUFFIXES)}, got {form!r}. Choose one."
        )
    missing = [name for name in PACKAGES if form == "onnx" and find_spec(name) is None]
    if missing:
        raise ImportError(
            f"export: {', '.join(PACKAGES)} must be installed for ONNX files, got no "
            f"{', '.join(missing)}. Run: pip install 'oskt[export]'."
        )


def pack(network: nn.Module, images: Tensor, form: str, about: Mapping[str, Any]) -> bytes:
    """A network as a file's bytes, for any number of images of one size.

    Args:
        network: of oskt.export.network.deployed.
        images: (B, 3, H, W), B >= 2, of the type that it takes; the numbers do not matter.
        form: "onnx" (input `images`, output `output0`), "torchscript" or "torch-export".
        about: JSON values that the file keeps: ONNX as metadata_props, the others as an extra
            file `oskt.json`.

    Notes:
        The same network gives the same ONNX bytes.
    """
    buffer, extra = io.BytesIO(), {_ABOUT: json.dumps(about)}
    batch = ({0: torch.export.Dim("batch")},)
    with quiet():
        if form == "torchscript":
            traced = torch.jit.trace(network, images, check_trace=False)
            torch.jit.save(torch.jit.freeze(traced), buffer, _extra_files=extra)
            return buffer.getvalue()
        if form == "torch-export":
            program = torch.export.export(network, (images,), dynamic_shapes=batch)
            torch.export.save(program, buffer, extra_files=extra)
            return buffer.getvalue()
        exported = torch.onnx.export(
            network, (images,), dynamo=True, dynamic_shapes=batch, verbose=False,
            input_names=[INPUT], output_names=[OUTPUT], opset_version=OPSET,
        )  # fmt: skip
    assert exported is not None
    return serialise(exported.model_proto, about)


def unpack(data: bytes, form: str) -> tuple[Run, dict[str, Any]]:
    """A file's bytes as a function, in the runtime that the format is made for, and its `about`."""
    if form == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors alone
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        texts = session.get_modelmeta().custom_metadata_map
        return (
            lambda images: np.asarray(session.run([OUTPUT], {INPUT: images})[0]),
            {name: _value(text) for name, text in texts.items()},
        )
    module: Any
    extra: dict[str, Any] = {_ABOUT: ""}
    with quiet():
        if form == "torchscript":
            module = torch.jit.load(io.BytesIO(data), _extra_files=extra)
        else:
            module = torch.export.load(io.BytesIO(data), extra_files=extra).module()

    @torch.no_grad()
    def run(images: Array) -> Array:
        return np.asarray(module(torch.from_numpy(images)))

    return run, json.loads(extra[_ABOUT] or "{}")


def serialise(model: Any, about: Mapping[str, Any]) -> bytes:
    """The bytes of an ONNX model, checked: with `about` as its metadata_props (texts, and JSON of
    the rest), without the notes that its writers leave in it, local paths among them."""
    import onnx

    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of torch's and ONNX Runtime's exporters: about themselves, torchvision
    and steps that were taken here already. Errors stay."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
