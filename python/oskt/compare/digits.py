"""A task that is no re-identification: the handwritten digits that scikit-learn carries."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oskt import students
from oskt.data import Augment
from oskt.train import Recipe, World

_STREAM = 17  # keeps these random numbers apart from others of the same seed
_TEST = 600


class Digits:
    """1797 pictures of 8 x 8, upscaled; 600 of them, the same ones always, are for testing.

    It has the interface of `oskt.task.ReIDData`, and accuracy in place of mAP.

    Args:
        recipe: its height and width are read.
        device: where networks run; None for the GPU of this process, else the CPU.

    Raises:
        ImportError: scikit-learn is not installed.

    Source:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), as bundled.
    """

    num_classes = 10
    title = "handwritten digits of scikit-learn"

    def __init__(self, recipe: Recipe, *, device: str | None = None) -> None:
        self.world = World.from_environment(device)
        self.augment = _augment(recipe)
        bundled = _load()
        pixels = torch.from_numpy(bundled.images).float()[:, None] / 16
        size = (recipe.height, recipe.width)
        larger = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        images = (255 * larger).round().to(torch.uint8).expand(-1, 3, -1, -1)
        labels = torch.from_numpy(bundled.target).long()
        order = torch.from_numpy(np.random.default_rng(_STREAM).permutation(len(labels)))
        test, train = order[:_TEST], order[_TEST:]
        self.train_images, self.train_labels = images[train], labels[train]
        self.test_labels = labels[test]
        self.test_images = _normalised(images[test])

    def for_recipe(self, recipe: Recipe) -> Digits:
        """The same pictures with another recipe's augmentation."""
        other = copy.copy(self)
        other.augment = _augment(recipe)
        return other

    def training(self, recipe: Recipe) -> DigitBatches:
        """Shuffled batches under random crops, for `oskt.train`."""
        return DigitBatches(self.train_images, self.train_labels, recipe)

    def steps(self, recipe: Recipe) -> int:
        """Optimiser steps of a whole training by the recipe."""
        return recipe.epochs * len(self.training(recipe))

    @torch.no_grad()
    def scores(self, model: nn.Module) -> dict[str, float]:
        """{"accuracy": share of the test pictures that the classifier names rightly}."""
        model = model.to(self.world.device).eval()
        classifier = model.get_submodule("classifier")
        batches = self.test_images.split(200)
        guesses = [classifier(model(b.to(self.world.device))).argmax(1).cpu() for b in batches]
        right = torch.cat(guesses) == self.test_labels
        return {"accuracy": float(right.float().mean())}

    def recalibrate(self, model: nn.Module, images: int = 512) -> int:
        """Measure a model's running statistics on training pictures, without labels."""
        generator = torch.Generator().manual_seed(0)
        batches = self.augment(self.train_images[:images], generator).split(64)
        return students.recalibrate(model.to(self.world.device), batches)


class DigitBatches:
    """The `Batches` that oskt.train.fit reads: a function of (seed, epoch, position) alone."""

    fingerprint = "scikit-learn digits/1"
    num_classes = Digits.num_classes

    def __init__(self, images: Tensor, labels: Tensor, recipe: Recipe) -> None:
        self.images, self.labels, self.seed = images, labels, recipe.seed
        self.size = recipe.identities * recipe.instances
        self.augment = _augment(recipe)

    def __len__(self) -> int:
        return len(self.labels) // self.size

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor, None]]:
        order = np.random.default_rng([_STREAM, self.seed, epoch]).permutation(len(self.labels))
        parts = torch.from_numpy(order)[: len(self) * self.size].split(self.size)
        for position, index in islice(enumerate(parts), start, None):
            dice = np.random.SeedSequence([_STREAM, self.seed, epoch, position])
            generator = torch.Generator().manual_seed(int(dice.generate_state(1)[0]))
            yield self.augment(self.images[index], generator), self.labels[index], None


def _augment(recipe: Recipe) -> Augment:
    return Augment(pad=recipe.pad, flip=recipe.flip, erase=recipe.erasing)


def _normalised(images: Tensor) -> Tensor:
    return Augment.evaluation()(images, torch.Generator())


def _load() -> Any:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            f"digits: scikit-learn must be installed, got '{error}'. "
            "Run: pip install scikit-learn (or oskt[compare])."
        ) from None
    return load_digits()
