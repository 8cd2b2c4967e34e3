"""Norms over channels that stand for several: exact where a plain norm would count them wrongly.

A layer norm weighs its channels against each other. Where a student repeats a channel m times, a
plain norm counts it m times; one whose mean and variance weigh every copy by 1/m computes what
the norm of the unrepeated channels does.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oskt.coupling import AxisRuns, Coupling


class WeightedNorm(nn.Module):
    """A layer, RMS or group norm whose statistics weigh channel i by share[i].

    mean = sum_i share_i x_i and var = sum_i share_i (x_i - mean)^2 (RMS: mean 0); over space and
    within every group of a group norm. Equal shares give the plain norm.

    Args:
        norm: the norm to stand in for; its parameters are taken over, under their names.
        share: (n,), of every channel; the shares of a group sum to 1.

    Example:
        >>> narrow = nn.LayerNorm(2)
        >>> wide = WeightedNorm(nn.LayerNorm(3), torch.tensor([0.5, 0.25, 0.25]))
        >>> x = torch.tensor([[1.0, 3.0]])
        >>> torch.allclose(narrow(x)[:, [0, 1, 1]], wide(x[:, [0, 1, 1]]))
        True
    """

    def __init__(self, norm: nn.Module, share: Tensor) -> None:
        super().__init__()
        grouped = isinstance(norm, nn.GroupNorm)
        self.groups = norm.num_groups if isinstance(norm, nn.GroupNorm) else 1
        self.over_space = grouped
        self.dim = 1 if grouped or _takes_channels_first(norm) else -1
        self.centred = not isinstance(norm, nn.RMSNorm)
        self.eps: float | None = getattr(norm, "eps", None)
        self.weight, self.bias = norm.weight, getattr(norm, "bias", None)
        self.share: Tensor
        self.register_buffer("share", share)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(self.dim, -1)
        share = self.share.to(x.dtype).unflatten(0, (self.groups, -1))
        parts = x.unflatten(-1, (self.groups, -1))
        centred = parts - self._mean(parts * share) if self.centred else parts
        variance = self._mean(centred.square() * share)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        y = (centred * torch.rsqrt(variance + eps)).flatten(-2)
        if self.weight is not None:
            y = y * self.weight
        if self.bias is not None:
            y = y + self.bias
        return y.movedim(-1, self.dim)

    def _mean(self, parts: Tensor) -> Tensor:
        """(B, *space, groups, n) -> (B, *space or 1s, groups, 1)."""
        total = parts.sum(-1, keepdim=True)
        space = tuple(range(1, parts.dim() - 2))
        return total.mean(space, keepdim=True) if self.over_space and space else total


def _takes_channels_first(norm: nn.Module) -> bool:
    """Subclasses of LayerNorm may norm dimension 1 (LayerNorm2d): then they take (1, n, 1, 1)."""
    if type(norm) in (nn.LayerNorm, nn.RMSNorm):
        return False
    weight = norm.weight
    assert isinstance(weight, Tensor)
    try:
        norm(weight.new_zeros(1, len(weight), 1, 1))
    except RuntimeError:
        return False
    return True


def weigh(
    module: nn.Module, coupling: Coupling, shares: Mapping[str, NDArray[np.float64]]
) -> nn.Module:
    """Put weighted norms where a plain one would count repeated channels wrongly.

    Args:
        module: a network of the coupling's kind; changed in place.
        coupling: says what each norm spans.
        shares: group -> (n,), how much each channel counts; groups that are not named count 1 each.

    Returns:
        The module. Norms whose channels count the same stay as they are, as do functions that are
        no module.
    """
    for name, axis in coupling.layer_norms.items():
        path = name.rpartition(".")[0]
        norm = module.get_submodule(path)
        known = isinstance(norm, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm))
        if not known or not any(group in shares for group, _ in axis):
            continue
        share = _shares(coupling, axis, shares, getattr(norm, "num_groups", 1))
        if not np.allclose(share, share.mean(), rtol=1e-12):
            weight = norm.weight
            assert isinstance(weight, Tensor)
            values = torch.from_numpy(share).to(weight)
            parent, _, leaf = path.rpartition(".")
            module.get_submodule(parent).add_module(leaf, WeightedNorm(norm, values))
    return module


def shares_on(
    coupling: Coupling, axis: AxisRuns, shares: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """How much every entry of an axis counts."""
    return np.concatenate(
        [
            np.repeat(shares.get(group, np.ones(coupling.groups[group].size)), area)
            for group, area in axis
        ]
    )


def _shares(
    coupling: Coupling, axis: AxisRuns, shares: Mapping[str, NDArray[np.float64]], groups: int
) -> NDArray[np.float64]:
    share = shares_on(coupling, axis, shares).reshape(groups, -1)
    return np.asarray((share / share.sum(1, keepdims=True)).ravel())
