"""Stage one: train a network on identities, alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oskt import students
from oskt.files.checkpoint import file_hash, save_model
from oskt.train.loop import Batches, fit
from oskt.train.losses import ReIDLoss
from oskt.train.process import World
from oskt.train.recipe import Recipe


class SupervisedObjective(nn.Module):
    """One network and its ReIDLoss; an Objective of `fit`."""

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.network = network
        ((feature_dim, num_classes),) = output_sizes(network, recipe)
        self.loss = ReIDLoss(recipe, num_classes, feature_dim)

    def forward(
        self, images: Tensor, ids: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        feature, logits = self.network(images)
        total, parts = self.loss(feature, logits, ids)
        return total, parts

    def scored(self) -> dict[str, nn.Module]:
        return {"": self.network}


def train_teacher(
    model: nn.Module,
    data: Batches,
    recipe: Recipe,
    out: str | Path,
    *,
    parent: str | Path | None = None,
    name: str = "teacher",
    **options: Any,
) -> Path:
    """Train a network and write it to out/teacher.safetensors.

    Args:
        model: in training mode it returns (feature [B, F] before BNNeck, logits [B, classes]); in
            evaluation mode the embedding. Trained in place. `model.spec`, if there is one, builds
            it again and is stored.
        data: training batches with ids below the number of classes; see `loop.Batches`.
        recipe: for example RECIPES["paper-teacher"].
        out: folder of this run.
        parent: file that the model was initialised from; its hash is stored.
        name: stem of the file.
        options: evaluate, evaluate_every, resume, max_steps, ...: those of `loop.fit`.

    Returns:
        Path of the file, written by the first process.

    Raises:
        TypeError: the outputs of the model are others.
        FileNotFoundError: no parent; before any work.
        ValueError, OSError, FloatingPointError, KeyboardInterrupt: as `loop.fit`.
    """
    out = Path(out)
    origin = origin_of(parent)
    objective = SupervisedObjective(model, recipe)
    metrics = fit(objective, data, recipe, out, **options)
    path = out / f"{name}.safetensors"
    world = World.from_environment(options.get("device"))
    if world.rank == 0:
        save_model(path, model, describe(model, data, recipe, metrics, origin))
    world.wait()  # nobody reads the file before it is there
    return path


def origin_of(parent: str | Path | None) -> str | None:
    """The file_hash of what a network is made from: asked for before the work, so that a file that
    is not there is found then."""
    return None if parent is None else file_hash(parent)


def output_sizes(model: nn.Module, recipe: Recipe) -> list[tuple[int, int]]:
    """(F, classes) of every (feature, logits) pair that a model returns in training mode.

    Tried with two grey images on the model's device; the model stays as it is.
    """
    parameter = next(model.parameters())
    images = torch.zeros(2, 3, recipe.height, recipe.width, device=parameter.device)
    with students.left_alone(model), torch.no_grad():
        outputs = model.train()(images)
    several = isinstance(outputs, tuple) and outputs and isinstance(outputs[0], tuple)
    pairs = outputs if several else (outputs,)
    sizes = []
    for pair in pairs:
        shapes = [tuple(getattr(t, "shape", ())) for t in pair] if isinstance(pair, tuple) else []
        if len(shapes) != 2 or any(len(shape) != 2 for shape in shapes) or 0 in shapes[1]:
            got = f"shapes {shapes}" if shapes else type(pair).__name__
            raise TypeError(
                "train: model must return (feature (B, F), logits (B, classes)) in training mode, "
                f"got {got}. Build it with num_classes = the training identities."
            )
        sizes.append((shapes[0][1], shapes[1][1]))
    return sizes


def describe(
    model: nn.Module,
    data: Batches,
    recipe: Recipe,
    metrics: dict[str, float],
    origin: str | None,
) -> dict[str, Any]:
    """What a model file says about its model, as far as it is known."""
    known = {
        "spec": getattr(model, "spec", None),
        "widths": getattr(model, "widths", None),
        "parent": origin,
        "recipe": recipe.to_dict(),
        "data": getattr(data, "fingerprint", ""),
        "identities": getattr(data, "identities", None),
        "metrics": metrics,
    }
    return {name: value for name, value in known.items() if value is not None}
