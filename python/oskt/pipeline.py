"""What every command needs: a data folder as batches, scores and recalibration images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from oskt import students
from oskt.data import Augment, PKSampler, ReIDLoader, read_data
from oskt.evaluate import Evaluation, evaluate
from oskt.train import Recipe, World


class ReIDData:
    """A data set at a recipe's image size.

    Args:
        root: a data set as `oskt.data.read_data` takes it, options included.
        recipe: its height, width, batch and augmentation fields are read.
        corrupt: "refuse" or "skip" images that do not decode.
        device: where networks run; None for the GPU of this process, else the CPU.
        workers: threads that decode and augment.
    """

    def __init__(
        self,
        root: str | Path,
        recipe: Recipe,
        *,
        corrupt: Literal["refuse", "skip"] = "refuse",
        device: str | None = None,
        workers: int = 2,
    ) -> None:
        self.set = read_data(root, corrupt=corrupt)
        self.size = (recipe.height, recipe.width)
        self.world = World.from_environment(device)
        self.workers = workers

    def training(self, recipe: Recipe, *, progress: bool = False) -> TrainingBatches:
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
        )

    def scores(self, model: nn.Module) -> dict[str, float]:
        """{"mAP": ..., "rank1": ...}: the callback that training evaluates with."""
        result = self.evaluation(model)
        return {"mAP": result.mAP, "rank1": result.cmc[0]}

    def recalibrate(self, model: nn.Module, images: int = 512) -> int:
        """Measure a model's running statistics on the first training images, without labels."""
        loader = ReIDLoader(
            self.set.train.select(range(min(images, len(self.set.train)))),
            self.size,
            batch_size=64,
            workers=self.workers,
        )
        return students.recalibrate(
            model.to(self.world.device),
            (batch.images for batch in loader.batches() if len(batch.images) > 1),
        )


class TrainingBatches:
    """The `Batches` that oskt.train.fit reads; `fingerprint` tells one data set from another."""

    def __init__(self, data: ReIDData, recipe: Recipe, progress: bool) -> None:
        train = data.set.train
        self.num_classes = train.num_ids
        self.loader = ReIDLoader(
            train,
            data.size,
            sampler=PKSampler(recipe.identities * data.world.size, recipe.instances),
            augment=Augment(pad=recipe.pad, flip=recipe.flip, erase=recipe.erasing),
            seed=recipe.seed,
            rank=data.world.rank,
            world_size=data.world.size,
            workers=data.workers,
            progress=progress,
        )
        # The title tells apart what file names do not: both versions of MSMT17 have the same.
        images = (f"{path.name} {label}" for path, label in zip(train.paths, train.ids))
        names = "\n".join([data.set.title, *images])
        self.fingerprint = hashlib.sha256(names.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for batch in self.loader.batches(epoch, start):
            yield batch.images, batch.ids, batch.cameras


def example_images(recipe: Recipe) -> Tensor:
    """What tracing needs of a data set: a shape."""
    return torch.zeros(2, 3, recipe.height, recipe.width)
