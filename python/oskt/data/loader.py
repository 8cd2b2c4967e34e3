"""Batches of a split: decoded once, planned, augmented, and the same after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from oskt.data.ahead import ahead
from oskt.data.augment import Augment
from oskt.data.images import load_image
from oskt.data.memory import free_bytes
from oskt.data.sampler import PKSampler
from oskt.data.split import Split

_STREAM = 13  # keeps the augmentation's random numbers apart from the sampler's


@dataclass(frozen=True)
class Batch:
    """images float32 [B, 3, H, W]; ids and cameras int64 [B]; index int64 [B] into the split."""

    images: Tensor
    ids: Tensor
    cameras: Tensor
    index: Tensor


class ImageStore:
    """The images of a split as uint8 [3, H, W], in memory if they fit.

    Args:
        split: what to read.
        size: (height, width) in px; images are resized with the bilinear filter.
        cache: True decodes all images now and keeps them; False decodes at every access; "auto"
            keeps them if they take less than a quarter of the free memory.
        workers: threads that decode.
        progress: show a bar while decoding.

    Raises:
        CorruptImageError: an image cannot be decoded; the message holds its path.
    """

    def __init__(
        self,
        split: Split,
        size: tuple[int, int],
        *,
        cache: bool | Literal["auto"] = "auto",
        workers: int = 2,
        progress: bool = False,
    ) -> None:
        if min(size) < 1:
            raise ValueError(f"ImageStore: size must be positive, got {size}. Raise it.")
        self.split, self.size = split, size
        shape = (len(split), 3, *size)
        if cache == "auto":
            cache = fit_in_memory(len(split), size)
        self._pixels: Tensor | None = None
        if cache:
            pixels = torch.empty(shape, dtype=torch.uint8)
            with ThreadPoolExecutor(max(1, workers)) as pool:
                decoded = pool.map(lambda path: load_image(path, size), split.paths)
                bar = tqdm(
                    decoded,
                    total=len(split),
                    desc="decoding",
                    unit="image",
                    disable=None if progress else True,
                )
                for row, image in zip(pixels, bar):
                    row.copy_(torch.from_numpy(image))
            self._pixels = pixels

    def __getitem__(self, index: NDArray[np.int64]) -> Tensor:
        """uint8 [n, 3, H, W] of the images at `index`."""
        if self._pixels is not None:
            return self._pixels[torch.from_numpy(index)]
        images = [load_image(self.split.paths[i], self.size) for i in index]
        return torch.from_numpy(np.stack(images))


class ReIDLoader:
    """Batches of a split as a function of (seed, epoch, position) alone.

    A training that was killed goes on with `batches(epoch, start)` and sees the same batches: there
    is no hidden random state. All ranks draw one plan, and each takes its own consecutive part of
    every batch, so the union over ranks does not depend on their number.

    Args:
        split: what to read.
        size: (height, width) in px.
        sampler: PK batches for training; None reads all images in order, `batch_size` at a time.
        augment: None only normalises.
        batch_size: over all ranks; with a sampler P * K holds instead.
        seed: >= 0.
        rank, world_size: which part of each batch is read; P must divide by world_size.
        workers: threads that prepare batches ahead; 0 prepares them when asked.
        cache, progress: as in ImageStore.
        store: the split's decoded images, if another loader has them; `cache` is then not read.

    Raises:
        ValueError: an argument outside its range, or a store of other images or of another size.
        CorruptImageError: an image cannot be decoded; the message holds its path.

    Example:
        >>> loader = ReIDLoader(data.train, (64, 32), sampler=PKSampler(16, 4))  # doctest: +SKIP
        >>> for batch in loader.batches(epoch=0):  # doctest: +SKIP
        ...     loss = train_step(batch.images, batch.ids)
    """

    def __init__(
        self,
        split: Split,
        size: tuple[int, int] = (256, 128),
        *,
        sampler: PKSampler | None = None,
        augment: Augment | None = None,
        batch_size: int = 128,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        cache: bool | Literal["auto"] = "auto",
        progress: bool = False,
        store: ImageStore | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(
                f"ReIDLoader: rank must be in [0, world_size), got {rank} of {world_size}. "
                "Pass the process's own rank."
            )
        if sampler is not None and sampler.num_ids % world_size:
            raise ValueError(
                f"ReIDLoader: num_ids must be a multiple of world_size {world_size}, got "
                f"{sampler.num_ids}. Change P or the number of processes."
            )
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            if value < least:
                raise ValueError(
                    f"ReIDLoader: {name} must be at least {least}, got {value}. Raise it."
                )
        self.split, self.sampler, self.seed = split, sampler, seed
        self.augment = Augment.evaluation() if augment is None else augment
        self.batch_size = batch_size
        self.rank, self.world_size, self.workers = rank, world_size, workers
        if store is not None and (store.split.paths != split.paths or store.size != size):
            raise ValueError(
                f"ReIDLoader: store must hold the {len(split)} images of the split at {size}, got "
                f"{len(store.split)} at {store.size}. Share stores between loaders of one split."
            )
        self.store = store or ImageStore(
            split, size, cache=cache, workers=max(workers, 2), progress=progress
        )

    def __len__(self) -> int:
        """Batches of an epoch."""
        if self.sampler is None:
            return -(-len(self.split) // self.batch_size)
        return self.sampler.num_steps(self.split.ids)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from position `start` on, in order."""
        plan = self._plan(epoch)

        def batch(position: int) -> Batch:
            return self._batch(plan[position], epoch, position)

        return ahead(batch, range(start, len(plan)), self.workers, 2 * self.workers)

    def _plan(self, epoch: int) -> list[NDArray[np.int64]]:
        if self.sampler is not None:
            return list(self.sampler.plan(self.split.ids, seed=self.seed, epoch=epoch))
        order = np.arange(len(self.split))
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def _batch(self, planned: NDArray[np.int64], epoch: int, position: int) -> Batch:
        dice = np.random.SeedSequence([_STREAM, self.seed, epoch, position])
        generator = torch.Generator().manual_seed(int(dice.generate_state(1, np.uint64)[0] >> 1))
        draw = self.augment.draw(len(planned), *self.store.size, generator)
        share = slice(
            len(planned) * self.rank // self.world_size,
            len(planned) * (self.rank + 1) // self.world_size,
        )
        index = planned[share]
        return Batch(
            self.augment.apply(self.store[index], draw[share]),
            torch.from_numpy(self.split.ids[index]),
            torch.from_numpy(self.split.cameras[index]),
            torch.from_numpy(index.copy()),
        )


def fit_in_memory(images: int, size: tuple[int, int]) -> bool:
    """Whether so many decoded images take less than a quarter of the free memory."""
    return images * 3 * size[0] * size[1] < free_bytes() // 4
