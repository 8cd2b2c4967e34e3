"""DepGraph: structural pruning by group magnitude, to the parameters of a given student."""

from __future__ import annotations

import bisect
import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from oskt import models, students
from oskt.baselines.starts import complete
from oskt.coupling import Coupling
from oskt.widths import parameters

_VERSION = "1.6.1"  # that requirements.txt pins


def depgraph(
    teacher: nn.Module, coupling: Coupling, widths: Mapping[str, int], *, seed: int = 0
) -> nn.Module:
    """The teacher pruned at once, by one ratio in every group, to a student's parameter count.

    Of every group the channels of least importance go, the importance being the mean over the
    group's weights, norms and consumers of the squares that belong to a channel.

    Args:
        teacher: the trained network; left untouched.
        coupling: its channel groups.
        widths: group -> channels of the student whose parameters are matched; groups not named
            keep the teacher's width. The pruned widths are others unless the student's share is one
            for all groups.
        seed: not read: nothing is drawn.

    Returns:
        The pruned network, on the teacher's device, in evaluation mode; its head follows. Its
        backbone's parameters are the nearest that a ratio reaches and at most 1 % above.

    Raises:
        ImportError: torch-pruning is not installed.
        ValueError: coupling of another network, widths out of range, or fewer parameters than one
            channel in the narrowest group leaves.
        RuntimeError: torch-pruning and the coupling see different groups.

    Notes:
        Few channels mean coarse steps: a ratio that is the next multiple of 1 / N moves every group
        at once. Deterministic: it runs on the CPU.

    Source:
        Fang et al., CVPR 2023 (arXiv 2301.12900), through torch-pruning: BasePruner, local ranking,
        GroupMagnitudeImportance(p=2). Difference: no training with group sparsity before.
    """
    pruning = _torch_pruning()
    sizes = complete("depgraph", teacher, coupling, widths)
    ratio, expected = _ratio(teacher, coupling, sizes)
    model = copy.deepcopy(teacher).cpu().requires_grad_()
    frozen: list[Any] = [
        model.get_submodule(writer.rpartition(".")[0])
        for group in coupling.groups.values()
        if group.frozen
        for writer in group.writers
    ]
    apart = [p for name, p in model.named_parameters() if coupling.layouts[name].role == "plain"]
    dtype = next(model.parameters()).dtype
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the parameters in `apart`, which it leaves alone
        pruning.pruner.BasePruner(
            model,
            [torch.zeros(shape, dtype=dtype) for shape in coupling.inputs],
            importance=pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=frozen + apart,
            forward_fn=_training_form,
            in_channel_groups={},  # its default dictionaries are shared between calls
            out_channel_groups={},
        ).step()
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != coupling.shape(name, expected):
            raise RuntimeError(
                f"depgraph: torch-pruning must prune the groups of the coupling, got {name} of "
                f"shape {tuple(tensor.shape)} in place of {coupling.shape(name, expected)}. "
                "Prune a residual network of oskt.models."
            )
    student = students.fill(students.narrow(teacher, coupling, expected), tensors)
    students.set_widths(student, expected)
    return student.to(next(teacher.parameters()).device).eval()


def _ratio(
    teacher: nn.Module, coupling: Coupling, sizes: Mapping[str, int]
) -> tuple[float, dict[str, int]]:
    """The pruning ratio whose parameters are nearest to those of `sizes`, and its widths.

    Shares of k / L, L the common multiple of all group sizes, give every reachable set of widths.
    """
    head = models.head_of(teacher)
    counts = [group.size for group in coupling.free.values()]
    steps = math.lcm(*counts)
    narrowest = -(-steps // min(counts))

    def widths_at(step: int) -> dict[str, int]:
        return {name: group.size * step // steps for name, group in coupling.free.items()}

    def cost(step: int) -> int:
        return parameters(coupling, widths_at(step), head)

    target = parameters(coupling, sizes, head)
    above = bisect.bisect_right(range(steps + 1), target, lo=narrowest, key=cost)
    if above == narrowest:
        raise ValueError(
            f"depgraph: widths must leave at least the {cost(narrowest):,} parameters of one "
            f"channel in the narrowest group, got {target:,}. Give wider groups."
        )
    best = above - 1
    if above <= steps and cost(above) <= min(1.01 * target, 2 * target - cost(best)):
        best = above
    # Half a step inside, so that rounding in torch-pruning cannot cross a border.
    return 1 - (best + 0.5) / steps, widths_at(best)


def _training_form(model: nn.Module, inputs: list[torch.Tensor]) -> Any:
    """(feature, logits) on running statistics: the classifier is part of what is pruned."""
    model.training = True
    return model(*inputs)


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise ImportError(
            f"depgraph: torch_pruning must be installed, got '{error}'. "
            f"Run: pip install torch-pruning=={_VERSION} (or oskt[compare])."
        ) from None
    return torch_pruning
