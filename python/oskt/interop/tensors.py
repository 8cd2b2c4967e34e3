"""The tensors of a published checkpoint, taken by name and shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn


class Tensors:
    """What a checkpoint holds; `check` says once what was wanted of it and is not there.

    Args:
        state: name -> tensor, of the file.
        folder: of the file, for errors.
    """

    def __init__(self, state: Mapping[str, Tensor], folder: Path) -> None:
        self._state = state
        self._folder = folder
        self._amiss: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def take(self, shape: Sequence[int], *names: str, default: Tensor | None = None) -> Tensor:
        """The first of `names` that is there, which must be of this shape; `default` if none is."""
        name = next((name for name in names if name in self), names[0])
        found = self._state.get(name, default)
        if found is None:
            self._amiss.append(f"no {name}")
        elif found.shape != torch.Size(shape):
            self._amiss.append(f"{name} of shape {tuple(found.shape)}, not {tuple(shape)}")
        else:
            return found
        return torch.zeros(*shape)

    def fill(self, network: nn.Module) -> None:
        """Give a network its tensors. A head and counts of batches that the checkpoint does not
        have stay as they are: backbones are published alone, too."""
        for name, tensor in network.state_dict().items():
            default = tensor if of_head(name) or name.endswith("num_batches_tracked") else None
            tensor.copy_(self.take(tensor.shape, f"base.{name}", name, default=default))

    def check(self) -> None:
        """Raises a ValueError if something was not there."""
        if self._amiss:
            listed = ", ".join(self._amiss[:4])
            more = f" and {len(self._amiss) - 4} more" if len(self._amiss) > 4 else ""
            raise ValueError(
                f"load_published_chain: checkpoint in {self._folder} must be whole, got "
                f"{listed}{more}. Give the file that the published refinement wrote."
            )


def of_head(name: str) -> bool:
    """Whether a tensor is one of BNNecks or classifiers."""
    return name.startswith(("bottleneck", "classifier"))
