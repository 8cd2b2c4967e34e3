"""What every command needs: a data folder as batches, scores and recalibration images."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from oskt import students
from oskt.data import Augment, ImageStore, PKSampler, ReIDLoader, read_data
from oskt.data.loader import fit_in_memory
from oskt.evaluation import Evaluation, evaluate
from oskt.evaluation.embedding import ImageFiles
from oskt.train import Recipe, World


class ReIDData:
    """A data set at a recipe's image size.

    Args:
        root: a data set as `oskt.data.read_data` takes it, options included.
        recipe: its height, width, batch and augmentation fields are read.
        corrupt: "refuse" or "skip" images that do not decode, for which all are decoded; None
            does not look, for a few images without labels.
        device: where networks run; None for the GPU of this process, else the CPU.
        workers: threads that decode and augment.
    """

    def __init__(
        self,
        root: str | Path,
        recipe: Recipe,
        *,
        corrupt: Literal["refuse", "skip"] | None = "refuse",
        device: str | None = None,
        workers: int = 2,
    ) -> None:
        self.world = World.from_environment(device)  # a wrong one is found before images are read
        self.set = read_data(root, corrupt=corrupt)
        self.size = (recipe.height, recipe.width)
        self.augment = Augment(pad=recipe.pad, flip=recipe.flip, erase=recipe.erasing)
        self.workers = workers
        # Many trainings and evaluations of one set decode its images once.
        self._store: ImageStore | None = None
        self._images: tuple[ImageFiles, ImageFiles] | None = None
        splits = (self.set.query, self.set.gallery)
        if fit_in_memory(sum(map(len, splits)), self.size):
            query, gallery = (ImageFiles(s.paths, *self.size, keep=True) for s in splits)
            self._images = query, gallery

    @property
    def num_classes(self) -> int:
        """Training identities."""
        return self.set.train.num_ids

    @property
    def identities(self) -> str:
        """Who they are, as a fingerprint."""
        return self.set.identities

    @property
    def title(self) -> str:
        """What the data set is called in tables."""
        return self.set.title

    def for_recipe(self, recipe: Recipe) -> ReIDData:
        """The same images, decoded once, with another recipe's augmentation.

        Raises:
            ValueError: the recipe has another image size.
        """
        if (recipe.height, recipe.width) != self.size:
            raise ValueError(
                f"ReIDData.for_recipe: height and width must be {self.size}, got "
                f"{(recipe.height, recipe.width)}. Open the data set again for other sizes."
            )
        self.store()
        other = copy.copy(self)
        other.augment = Augment(pad=recipe.pad, flip=recipe.flip, erase=recipe.erasing)
        return other

    def store(self, *, progress: bool = True) -> ImageStore:
        """The training images, decoded at the first call, under a bar on a terminal."""
        if self._store is None:
            workers = max(self.workers, 2)
            self._store = ImageStore(self.set.train, self.size, workers=workers, progress=progress)
        return self._store

    def training(self, recipe: Recipe, *, progress: bool = True) -> TrainingBatches:
        """Augmented identity-balanced batches of this process, for `oskt.train`."""
        return TrainingBatches(self, recipe, progress)

    def steps(self, recipe: Recipe) -> int:
        """Optimiser steps of a whole training by the recipe."""
        identities = recipe.identities * self.world.size
        sampler = PKSampler(identities, recipe.instances)
        return recipe.epochs * sampler.num_steps(self.set.train.ids)

    def evaluation(self, model: nn.Module, *, keep_features: bool = False) -> Evaluation:
        """Scores of a model on the query and gallery folders."""
        return evaluate(
            model.to(self.world.device),
            self.set,
            height=self.size[0],
            width=self.size[1],
            device=self.world.device,
            workers=0 if self.size[0] <= 128 else self.workers,
            keep_features=keep_features,
            images=self._images,
        )

    def scores(self, model: nn.Module) -> dict[str, float]:
        """{"mAP": ..., "rank1": ...}: the callback that training evaluates with."""
        result = self.evaluation(model)
        return {"mAP": result.mAP, "rank1": result.cmc[0]}

    def unlabelled(self, images: int = 512) -> Iterator[Tensor]:
        """Training images drawn at random, augmented as in training, in batches of 64.

        Norm statistics must be measured on what the network was trained on: on plain images (no
        border, no flip) students lose 1 to 3 points of mAP; docs/lab/nested.md.

        Raises:
            ValueError: fewer than 2 training images, of which nothing can be measured.
        """
        if len(self.set.train) < 2:
            raise ValueError(
                f"ReIDData.unlabelled: {self.set.root} must hold at least 2 training images, got "
                f"{len(self.set.train)}. Give images that the network was trained on."
            )
        # Where no training has decoded them all, only those drawn are decoded.
        store = self._store or ImageStore(self.set.train, self.size, cache=False)
        order = np.random.default_rng(0).permutation(len(self.set.train))[:images]
        generator = torch.Generator().manual_seed(0)
        for index in np.split(order, range(64, len(order), 64)):
            if len(index) > 1:
                draw = self.augment.draw(len(index), *self.size, generator)
                yield self.augment.apply(store[index], draw)

    def recalibrate(self, model: nn.Module, images: int = 512) -> int:
        """Measure a model's running statistics on training images, without labels."""
        return students.recalibrate(model.to(self.world.device), self.unlabelled(images))


class TrainingBatches:
    """The `Batches` that oskt.train.fit reads; `fingerprint` tells one data set from another,
    `identities` those whom a classifier knows from others."""

    def __init__(self, data: ReIDData, recipe: Recipe, progress: bool) -> None:
        train = data.set.train
        self.num_classes = train.num_ids
        self.identities = data.identities
        self.loader = ReIDLoader(
            train,
            data.size,
            sampler=PKSampler(recipe.identities * data.world.size, recipe.instances),
            augment=Augment(pad=recipe.pad, flip=recipe.flip, erase=recipe.erasing),
            seed=recipe.seed,
            rank=data.world.rank,
            world_size=data.world.size,
            workers=data.workers,
            store=data.store(progress=progress),
        )
        # The title tells apart what file names do not: both versions of MSMT17 have the same.
        images = (f"{path.name} {label}" for path, label in zip(train.paths, train.ids))
        names = "\n".join([data.set.title, *images]).encode(errors="surrogateescape")
        self.fingerprint = hashlib.sha256(names).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for batch in self.loader.batches(epoch, start):
            yield batch.images, batch.ids, batch.cameras


def example_images(recipe: Recipe) -> Tensor:
    """What tracing needs of a data set: a shape."""
    return torch.zeros(2, 3, recipe.height, recipe.width)
