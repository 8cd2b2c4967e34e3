"""A deployment file as a network again, and how near it is to the one that it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from oskt.export import formats


class Deployment(nn.Module):
    """A deployment file as a network like any other: normalised images in, embeddings out.

    `oskt.evaluation.evaluate` and `oskt.evaluation.embedding.embed` take it in place of a network,
    whatever the file's own input is. It runs on the CPU.

    Args:
        data: the file's bytes.
        form: its format.

    Attributes:
        about: what the file says about itself.
        size: height and width of the images that it takes.

    Raises:
        ValueError: a damaged file, or one that `oskt export` did not write.
    """

    def __init__(self, data: bytes, form: str) -> None:
        super().__init__()
        try:
            self.run, self.about = formats.unpack(data, form)
        except Exception as error:  # runtimes say it in their own ways
            raise ValueError(
                f"export: the file must be a whole {form} file, got "
                f"'{str(error).strip().partition(chr(10))[0]}'. Copy it again, or export the "
                "network again."
            ) from error
        if not {"input", "mean", "std", "img_size"} <= self.about.keys():
            raise ValueError(
                "export: the file must say how it takes images, got no such metadata. Give a file "
                "that `oskt export` wrote."
            )
        self.size = tuple(self.about["img_size"])
        self.mean, self.std = (
            torch.tensor(self.about[name]).view(1, 3, 1, 1) for name in ("mean", "std")
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), normalised -> (B, F); a ValueError for another size than the file's."""
        if images.shape[2:] != self.size:
            raise ValueError(
                f"export: images must be of the file's size {self.size}, got "
                f"{tuple(images.shape[2:])}. Leave --height and --width out, or export the network "
                "at that size."
            )
        return torch.from_numpy(self.run(self.taken(images).numpy()))

    def taken(self, images: Tensor) -> Tensor:
        """Normalised images as the file takes them."""
        if self.about["input"] == "normalised":
            return images
        rgb = images * self.std + self.mean
        return rgb if self.about["input"] == "rgb" else (255 * rgb).round().to(torch.uint8)


def load(path: str | Path, *, trusted: bool = False) -> Deployment:
    """Read a deployment file to run it here.

    Args:
        path: .onnx, .torchscript or .pt2.
        trusted: read a .pt2 file: torch unpickles and evaluates parts of it, so that opening one
            can run what its writer put there. The other formats hold no Python.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another suffix, a .pt2 file that is not said to be trusted, a damaged file, or
            one that `oskt export` did not write.
        ImportError: the packages for ONNX are missing.
    """
    form = form_of(path)
    if form is None:
        raise ValueError(
            f"export: path must end in {' or '.join(formats.SUFFIXES.values())}, got '{path}'. "
            "Give a file that `oskt export` wrote."
        )
    if form == "torch-export" and not trusted:
        raise ValueError(
            f"export: a .pt2 file must be trusted, got '{path}', and opening one can run code. "
            "Pass trusted=True (--trusted) if you know who wrote it, or export to ONNX."
        )
    formats.require(form)
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"export: path must be a file, got '{path}', which is none. "
            "Give a file that `oskt export` wrote."
        )
    return Deployment(Path(path).read_bytes(), form)


def form_of(path: str | Path) -> str | None:
    """The format that a file's suffix stands for."""
    forms = {suffix: form for form, suffix in formats.SUFFIXES.items()}
    return forms.get(Path(path).suffix)


@dataclass(frozen=True)
class Parity:
    """How near embeddings are to those of a reference.

    Attributes:
        images: how many were compared.
        cosine: least cosine between the two embeddings of an image.
        mean_cosine: mean of these.
        difference: largest absolute difference of an entry.
        relative: that over the largest entry of the reference.
    """

    images: int
    cosine: float
    mean_cosine: float
    difference: float
    relative: float

    @staticmethod
    def of(ours: Tensor, reference: Tensor) -> Parity:
        """Of embeddings (N, F)."""
        cosines = cosine_similarity(ours.double(), reference.double())
        difference = float((ours - reference).abs().max())
        largest = float(reference.abs().max())
        return Parity(
            len(ours), float(cosines.min()), float(cosines.mean()), difference,
            difference / max(largest, 1e-30),
        )  # fmt: skip

    def __str__(self) -> str:
        return (
            f"least cosine {self.cosine:.7f}, largest difference {self.difference:.1e} "
            f"({self.relative:.1e} of the largest entry) on {self.images} images"
        )
