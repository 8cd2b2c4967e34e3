"""Norms over channels that stand for several: exact where a plain norm would count them wrongly.

A layer norm weighs its channels against each other. Where a student repeats a channel m times, a
plain norm counts it m times; one whose mean and variance weigh every copy by 1/m computes what
the norm of the unrepeated channels does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from oskt import reading


class WeightedNorm(nn.Module):
    """A layer, RMS or group norm whose statistics weigh channel i by share[i].

    mean = sum_i share_i x_i and var = sum_i share_i (x_i - mean)^2 (RMS: mean 0); over space and
    within every group of a group norm. Equal shares give the plain norm. Halves are computed with
    in float32, as torch's norms do (autocast leaves that alone), and the result is of x's dtype.

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
        self.over_space = isinstance(norm, nn.GroupNorm)
        self.groups = int(getattr(norm, "num_groups", 1))
        self.dim = 1 if self.over_space or _takes_channels_first(norm) else -1
        self.centred = not isinstance(norm, nn.RMSNorm)
        self.eps: float | None = getattr(norm, "eps", None)
        self.weight, self.bias = norm.weight, getattr(norm, "bias", None)
        self.share: Tensor
        self.register_buffer("share", share)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        share = self.share.to(wide).unflatten(0, (self.groups, -1))
        share = share / share.sum(-1, keepdim=True)  # in half precision they do not sum to 1
        parts = x.to(wide).movedim(self.dim, -1).unflatten(-1, (self.groups, -1))
        centred = parts - self._mean(parts * share) if self.centred else parts
        variance = self._mean(centred.square() * share)
        eps = torch.finfo(wide).eps if self.eps is None else self.eps
        y = (centred * torch.rsqrt(variance + eps)).flatten(-2)
        if self.weight is not None:
            y = y * self.weight
        if self.bias is not None:
            y = y + self.bias
        return y.movedim(-1, self.dim).to(x.dtype)

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


def weigh(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Put weighted norms where a student's tensors say that channels count differently.

    Args:
        module: changed in place; its own numbers do not matter.
        tensors: by state-dict name; `PATH.share` belongs to the weighted norm at PATH.

    Returns:
        The module. Norms of other classes than torch's stay as they are; a share that belongs to no
        norm, or is not as long, is left for load_state_dict to refuse.
    """
    known = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
    modules = dict(module.named_modules())
    for name in set(tensors).difference(module.state_dict()):
        path, _, leaf = name.rpartition(".")
        norm = modules.get(path)
        if leaf == reading.SHARE and isinstance(norm, known) and norm.weight is not None:
            parent, _, own = path.rpartition(".")
            share = torch.empty_like(norm.weight, device="meta")
            module.get_submodule(parent).add_module(own, WeightedNorm(norm, share))
    return module
