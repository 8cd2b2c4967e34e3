"""What a trained network would lose with each of its numbers."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor, nn
from tqdm import tqdm

from oskt import students
from oskt.train.loop import Batches
from oskt.train.process import World, seed_step
from oskt.train.recipe import Recipe
from oskt.train.teacher import SupervisedObjective

BATCHES = 32  # 2048 images at the usual batch; other numbers were not compared


def saliency(
    model: nn.Module,
    data: Batches,
    recipe: Recipe,
    *,
    device: str | torch.device | None = None,
    progress: str | None = None,
) -> dict[str, Tensor]:
    """The first-order change of the loss if a number were 0, for every number of every parameter.

    s = sqrt(mean over batches of (w dL/dw)^2), L the ReID loss of the recipe, in training mode.

    Args:
        model: a trained network with (feature, logits) outputs; left as it is.
        data: training batches; the first 32 of an epoch that no training sees (number 0).
        recipe: the loss, and the seed of dropout.
        device: where to compute; None for the GPU of this process, else the CPU.
        progress: label of the progress bar, None for no bar; a bar is drawn on terminals only.

    Returns:
        parameter name -> s, of its shape, float32 or the parameter's dtype; in several processes
        the same in all, from the batches of all.

    Notes:
        Costs 32 forward and backward passes, and twice the memory of the weights. Deterministic on
        the CPU; on CUDA as far as torch's convolutions are, so that channels that are nearly alike
        may change places.

    Source: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", eq. 8, there
    summed over a filter; WeightChain.from_teacher orders channels by it.
    """
    world = World.from_environment(device)
    world.join()
    home = next(model.parameters()).device
    objective = SupervisedObjective(model, recipe).to(world.device)
    world.agree(objective)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    squares = {name: torch.zeros_like(p) for name, p in named.items()}
    count = min(BATCHES, len(data))
    hidden = progress is None or world.rank > 0
    bar = tqdm(total=count, desc=progress, unit=" batches", disable=hidden or None)
    with bar, students.left_alone(model):
        objective.train()
        for place, (images, ids, _) in enumerate(islice(data.batches(0), count)):
            seed_step(recipe.seed, world.rank, 0, place)
            loss, _ = objective(images.to(world.device), ids, 0.0)
            gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for (name, parameter), gradient in zip(named.items(), gradients):
                if gradient is not None:
                    squares[name] += (parameter.detach() * gradient).square()
            bar.update()
    model.to(home)
    world.average(list(squares.values()))
    return {name: (square / count).sqrt().to(home) for name, square in squares.items()}
