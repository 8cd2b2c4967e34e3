"""Networks for deployment: ONNX, TorchScript and torch.export files, checked before they exist."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from oskt.evaluation.embedding import ImageFiles, embed
from oskt.export import formats, sidecar
from oskt.export.deployment import Deployment, Parity, form_of, load
from oskt.export.int8 import quantise
from oskt.export.network import INPUTS, deployed
from oskt.files.tensor_file import write_atomic
from oskt.pixels import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["Deployment", "Exported", "Parity", "export_model", "form_of", "load"]

# float32 sums in another order, over some hundred layers, leave about 1e-6 of the largest entry.
LEAST_COSINE, MOST_RELATIVE = 1 - 1e-4, 1e-3
LEAST_INT8_COSINE = 0.9  # mean over images; 0.99 is usual, wrong ranges give less than 0.5
NOISE, COMPARED, CALIBRATION = 7, 32, 256  # images
BATCH = 3  # of noise: batches of 3, 3 and 1 show that the file takes any number


@dataclass(frozen=True)
class Exported:
    """A deployment file that was written.

    Attributes:
        path: the file.
        sidecar: the JSON file beside it.
        about: what that says.
        parity: "noise" and, if images were given, "images" -> the float file against the network;
            "int8" -> the quantised file against the float one.
        scores: "float32" and "int8" -> what `evaluate` found; empty without it.
    """

    path: Path
    sidecar: Path
    about: dict[str, Any]
    parity: dict[str, Parity]
    scores: dict[str, dict[str, float]]


def export_model(
    model: nn.Module,
    path: str | Path,
    *,
    size: tuple[int, int] = (256, 128),
    form: str = "onnx",
    inputs: str = "normalised",
    l2: bool = False,
    int8: bool = False,
    images: Sequence[str | Path] = (),
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    about: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a network as a file for inference, with what its user must know beside it.

    The file holds the embedding alone: norms are folded, the classifier is gone. It takes any
    number of images, in ONNX as `images` (N, 3, H, W), and gives `output0` (N, F). Before it is
    written it is run in its own runtime and compared with the network.

    Args:
        model: teacher, student or any network that gives (B, F) embeddings in evaluation mode;
            left untouched.
        path: the file, with the suffix of the format (.onnx, .torchscript, .pt2), or an existing
            folder, where it gets a name such as resnet50_x0_25.onnx.
        size: (height, width) of its images, in pixels.
        form: "onnx", "torchscript" or "torch-export".
        inputs: what it takes: "normalised" float images, as trackers give them, "rgb" in 0..1 or
            "uint8"; the last two are normalised in the file.
        l2: give embeddings of length 1.
        int8: quantise weights and activations (ONNX alone).
        images: image files to compare on (32 of them) and to calibrate int8 on (256 of them).
        evaluate: scores a network; called with the float file and the int8 file if `int8`.
        mean, std: of R, G, B in 0..1, with which the network was trained.
        about: further JSON values for the sidecar, e.g. {"parent": hash}.

    Returns:
        Exported.

    Raises:
        ValueError: an argument out of range, or a file that differs: least cosine below 0.9999 or
            difference above 0.001 of the largest entry; int8 against float mean cosine below 0.9.
        ImportError: the packages for ONNX are missing.
        OSError: the file cannot be written.

    Notes:
        Nothing is written before all checks, and each of the two files whole or not at all; the
        sidecar has the file's SHA-256. Its name, PATH.metadata.json, and its keys model_name,
        img_size and preprocess are BoxMOT's, whose ReID backends then take any file name; older
        versions must find the name of a network that they know in it, e.g. resnet50.

    Example:
        >>> import tempfile
        >>> from oskt.models.resnet import ResNet
        >>> out = Path(tempfile.mkdtemp()) / "small.torchscript"
        >>> student = ResNet(18, in_planes=4, layers=(1, 1, 1, 1)).eval()
        >>> done = export_model(student, out, size=(64, 32), form="torchscript", inputs="uint8")
        >>> torch.jit.load(out)(torch.zeros(5, 3, 64, 32, dtype=torch.uint8)).shape
        torch.Size([5, 32])
    """
    formats.require(form)
    _check(form, inputs, size, int8, images)
    path = _named(Path(path), model, form)
    files = _draw(images, size, mean, std, CALIBRATION if int8 else COMPARED)

    example = torch.zeros(2, 3, *size)
    reference = copy.deepcopy(model).to("cpu", torch.float32)
    feature_dim = _embed(reference, example).shape[1]
    network = deployed(model, example, inputs=inputs, mean=mean, std=std, l2=l2)
    taken = example.to(torch.uint8) if inputs == "uint8" else example
    said = {
        **sidecar.describe(model, size),
        **(about or {}),
        "format": form,
        "precision": "float32",
        "input": inputs,
        "mean": list(mean),
        "std": list(std),
        "normalisation_baked": inputs != "normalised",
        "l2_baked": l2,
        "feature_dim": feature_dim,
    }
    data = formats.pack(network, taken, form, said)
    whole = Deployment(data, form)
    parity = _compare(whole, reference, size, files, l2)
    scores = {}
    if int8:
        assert files is not None
        said = {**said, "precision": "int8"}
        data = quantise(data, _batches(files, whole), said)
        small = Deployment(data, form)
        parity["int8"] = _compare_int8(small, whole, files)
        if evaluate is not None:
            scores = {"float32": evaluate(whole), "int8": evaluate(small)}
    said |= {
        "sha256": hashlib.sha256(data).hexdigest(),
        "parity": {name: asdict(found) for name, found in parity.items()},
        "scores": scores,
    }
    write_atomic(path, data)
    write_atomic(sidecar.path_of(path), json.dumps(said, indent=1).encode())
    return Exported(path, sidecar.path_of(path), said, parity, scores)


def _check(
    form: str, inputs: str, size: tuple[int, int], int8: bool, images: Sequence[str | Path]
) -> None:
    if inputs not in INPUTS:
        raise ValueError(
            f"export: input must be one of {', '.join(INPUTS)}, got {inputs!r}. 'normalised' is "
            "what trackers give; 'uint8' takes pixels as they are."
        )
    if min(size) < 1:
        raise ValueError(
            f"export: size must be (height, width) >= 1, got {tuple(size)}. (256, 128) is usual."
        )
    if int8 and form != "onnx":
        raise ValueError(
            f"export: format must be onnx for int8, got {form!r}. Leave one of the two out."
        )
    if int8 and not images:
        raise ValueError(
            "export: images must be given for int8, got none. They calibrate the ranges of "
            "activations; labels are not needed: --images FOLDER, or --data."
        )


def _named(path: Path, model: nn.Module, form: str) -> Path:
    if path.is_dir():
        return path / f"{sidecar.name_of(model)}{formats.SUFFIXES[form]}"
    if path.suffix != formats.SUFFIXES[form]:
        raise ValueError(
            f"export: path must end in {formats.SUFFIXES[form]} for {form}, got '{path}'. "
            "Runtimes tell formats by it."
        )
    return path


def _draw(
    images: Sequence[str | Path],
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    count: int,
) -> ImageFiles | None:
    """At most `count` of the images, the same at every call; None if there are none."""
    if not images:
        return None
    order = np.random.default_rng(0).permutation(len(images))[:count]
    return ImageFiles([images[i] for i in order], *size, mean=mean, std=std, keep=True)


def _batches(files: ImageFiles, deployment: Deployment) -> Iterator[formats.Array]:
    for start in range(0, len(files), 32):
        stop = min(start + 32, len(files))
        yield deployment.taken(torch.stack([files[i] for i in range(start, stop)])).numpy()


def _embed(network: nn.Module, images: Tensor | ImageFiles, batch: int = 32) -> Tensor:
    return embed(network, images, batch_size=batch, device="cpu", progress=None)


def _compare(
    file: Deployment,
    reference: nn.Module,
    size: tuple[int, int],
    files: ImageFiles | None,
    l2: bool,
) -> dict[str, Parity]:
    """Parity of a float file with the network, on random pixels and on images; both must hold."""
    pixels = torch.randint(0, 256, (NOISE, 3, *size), generator=torch.Generator().manual_seed(0))
    inputs: dict[str, Tensor | ImageFiles] = {"noise": (pixels / 255 - file.mean) / file.std}
    if files is not None:
        inputs["images"] = files
    parity = {}
    for name, images in inputs.items():
        expected = _embed(reference, images)
        if not torch.isfinite(expected).all():
            raise ValueError(
                "export: model must give finite embeddings, got NaN or Inf. It has diverged or its "
                "weights are damaged."
            )
        found = Parity.of(_embed(file, images, BATCH), normalize(expected) if l2 else expected)
        if not (found.cosine >= LEAST_COSINE and found.relative <= MOST_RELATIVE):
            raise ValueError(
                f"export: the file must equal the network (cosine {LEAST_COSINE}, difference "
                f"{MOST_RELATIVE} of the largest entry), got {found} ({name}). Nothing was "
                "written; try another --format, and report the network."
            )
        parity[name] = found
    return parity


def _compare_int8(small: Deployment, whole: Deployment, files: ImageFiles) -> Parity:
    found = Parity.of(_embed(small, files), _embed(whole, files))
    if not found.mean_cosine >= LEAST_INT8_COSINE:
        raise ValueError(
            f"export: int8 must keep a mean cosine of {LEAST_INT8_COSINE} to float32, got "
            f"{found.mean_cosine:.3f} on {found.images} images. Nothing was written: give more "
            "images like those of use, or leave --int8 out."
        )
    return found
