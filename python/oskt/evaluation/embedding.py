"""Embeddings of images: reading ahead on threads, one forward per batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from oskt.data.ahead import ahead
from oskt.data.images import load_image
from oskt.pixels import IMAGENET_MEAN, IMAGENET_STD


class ImageFiles:
    """Image files as normalised tensors (3, height, width): resized bilinearly, no augmentation.

    Args:
        paths: image files; a broken one raises CorruptImageError.
        height, width: size of the tensors, in pixels.
        mean, std: of R, G, B in 0..1; the defaults are ImageNet's, (0.5,) * 3 suits most ViTs.
        keep: hold what was decoded, 3 * height * width bytes an image, for the next time.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        height: int,
        width: int,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        keep: bool = False,
    ) -> None:
        self.paths = paths
        self._kept: dict[int, NDArray[np.uint8]] | None = {} if keep else None
        self.size = (height, width)
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        pixels = None if self._kept is None else self._kept.get(index)
        if pixels is None:
            pixels = load_image(Path(self.paths[index]), self.size)
            if self._kept is not None:
                self._kept[index] = pixels
        tensor = torch.from_numpy(pixels).float().div_(255)
        return tensor.sub_(self.mean).div_(self.std)


def embed(
    model: nn.Module,
    images: Tensor | ImageFiles,
    *,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    amp: bool = False,
    flip: bool = False,
    workers: int = 4,
    progress: str | None = "embedding",
) -> Tensor:
    """Embed every image with the model in evaluation mode; its modes are restored afterwards.

    Args:
        model: gives (B, F) embeddings for (B, 3, H, W) images in evaluation mode; images come in
            the dtype of its parameters.
        images: a tensor [N, 3, H, W], or anything with a length whose items are tensors [3, H, W].
        batch_size: images per forward, >= 1.
        device: where the model is and images are sent; None takes that of the model's parameters.
        amp: automatic mixed precision, float16 on CUDA and bfloat16 on the CPU.
        flip: average the embeddings of an image and of its mirror image.
        workers: threads that read the next images while the network works.
        progress: label of the progress bar, None for no bar; a bar is drawn on terminals only.

    Returns:
        float32 [N, F] on `device`, in the order of `images`.

    Raises:
        ValueError: no images, batch_size < 1, or a model that does not give (B, F) embeddings.

    Example:
        >>> embed(nn.Flatten(), torch.ones(3, 3, 2, 2), device="cpu", progress=None).shape
        torch.Size([3, 12])
    """
    count = len(images)
    if count == 0:
        raise ValueError("embed: images must hold at least 1 image, got 0. Check the data folder.")
    if batch_size < 1:
        raise ValueError(f"embed: batch_size must be at least 1, got {batch_size}. Raise it.")
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    device = torch.device(device)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    parts = []
    # disable=None: tqdm draws on a terminal and is silent in a log file.
    bar = tqdm(total=count, desc=progress, unit=" images", disable=None if progress else True)
    try:
        with torch.inference_mode(), torch.autocast(device.type, half, enabled=amp), bar:
            for batch in _batches(images, batch_size, workers):
                wanted = dtype if batch.is_floating_point() else None  # whole numbers stay so
                batch = batch.to(device, wanted, non_blocking=True)
                output = _embeddings(model, batch)
                if flip:
                    output = (output + _embeddings(model, batch.flip(-1))) / 2
                parts.append(output)
                bar.update(len(batch))
    finally:
        for module, training in modes:
            module.training = training
    return torch.cat(parts)


def _batches(images: Tensor | ImageFiles, batch_size: int, workers: int) -> Iterator[Tensor]:
    """The batches in order, a few of them read ahead."""
    if isinstance(images, Tensor):
        return iter(torch.split(images, batch_size))

    def read(start: int) -> Tensor:
        return torch.stack([images[i] for i in range(len(images))[start : start + batch_size]])

    threads = max(workers, 1)
    return ahead(read, range(0, len(images), batch_size), threads, threads)


def _embeddings(model: nn.Module, batch: Tensor) -> Tensor:
    output = model(batch)
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(batch):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"embed: model must give embeddings of shape ({len(batch)}, F) in evaluation mode, "
            f"got {got}. Return the feature after BNNeck alone when not self.training."
        )
    return output.float()
