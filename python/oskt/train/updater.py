"""One weight update: optimiser of the network, SGD of the centers, loss scaling, clipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from oskt.train.losses import ReIDLoss
from oskt.train.process import World
from oskt.train.recipe import Recipe

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Updater:
    """Turns a loss into an update of the weights, as the recipe says.

    Args:
        objective: the module whose forward gives the loss, on its device.
        recipe: optimiser, weight decay, precision, clipping.
        world: the device, where the objective is, and the processes that average gradients.

    Notes:
        One fused kernel for all tensors of a group where the device has it. Centers are outside
        weight decay, clipping and schedule. With fp16 a step whose gradient overflows is skipped.
    """

    def __init__(self, objective: nn.Module, recipe: Recipe, world: World) -> None:
        self.recipe = recipe
        self.world = world
        self.device = device = world.device
        self.precision = _precision(recipe, device)
        losses = [m for m in objective.modules() if isinstance(m, ReIDLoss)]
        self.centers = [loss.centers for loss in losses if recipe.center_weight]
        apart = {id(center) for center in self.centers}
        trained = {
            name: parameter
            for name, parameter in objective.named_parameters()
            if parameter.requires_grad and id(parameter) not in apart
        }
        self.parameters = list(trained.values())
        groups = _groups(trained, objective, recipe.bias_lr_factor)
        options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
        options["fused"] = device.type in ("cpu", "cuda")
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(groups, betas=(0.9, recipe.beta2), **options)
            if recipe.optimizer == "adam"
            else torch.optim.SGD(groups, momentum=recipe.momentum, **options)
        ]
        if self.centers:
            self.optimizers.append(torch.optim.SGD(self.centers, lr=recipe.center_lr))
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")

    def autocast(self) -> torch.autocast:
        """The context of the forward pass."""
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def step(self, loss: Tensor, rate: float) -> None:
        """Backward, then one update at learning rate `rate`; leaves no gradients behind."""
        for group in self.optimizers[0].param_groups:
            group["lr"] = rate * group["lr_factor"]
        torch.autograd.backward(self.scaler.scale(loss))
        trained = [*self.parameters, *self.centers]
        self.world.average([p.grad for p in trained if p.grad is not None])
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        for center in self.centers:
            if center.grad is not None:
                center.grad /= self.recipe.center_weight  # see losses.center_loss
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()

    def finite(self) -> bool:
        """Whether every weight is a number; costs one pass and one synchronisation."""
        return bool(nn.utils.get_total_norm([*self.parameters, *self.centers]).isfinite())

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def _groups(
    named: dict[str, nn.Parameter], objective: nn.Module, bias_factor: float
) -> list[dict[str, Any]]:
    """Parameter groups by rate: that of the module a parameter belongs to (see
    NestedLadder.rate_factors), and of a bias."""
    factors = {
        id(parameter): factor
        for module in objective.modules()
        for part, factor in getattr(module, "rate_factors", {}).items()
        for parameter in part.parameters()
    }
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named.items():
        factor = factors.get(id(parameter), 1.0) * (bias_factor if name.endswith("bias") else 1.0)
        groups.setdefault(factor, []).append(parameter)
    return [{"params": group, "lr_factor": factor} for factor, group in groups.items()]


def _precision(recipe: Recipe, device: torch.device) -> str:
    if recipe.precision != "auto":
        return recipe.precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
