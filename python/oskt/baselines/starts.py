"""Students of given widths without clustering of ours: fresh, selected, published; and OSKT's own.

Every start takes a trained teacher with its coupling (or the chain made from it), and returns a
network of the teacher's class in evaluation mode that notes its widths, so that `save_model` and
`load_model` store and restore it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from oskt import students
from oskt.chain import WeightChain
from oskt.coupling import AxisRuns, Coupling
from oskt.widths import resolve


def scratch(
    teacher: nn.Module, coupling: Coupling, widths: Mapping[str, int], *, seed: int = 0
) -> nn.Module:
    """The student's structure with fresh random numbers, as its layers initialise themselves.

    Args:
        teacher: the network whose structure is narrowed; left untouched.
        coupling: its channel groups.
        widths: group -> channels; groups not named keep the teacher's width.
        seed: of the random numbers, which are drawn on the CPU: the same for every device.

    Returns:
        The student, on the teacher's device, in evaluation mode.

    Raises:
        ValueError: coupling of another network, widths out of range, or a parameter that no
            `reset_parameters` initialises.

    Notes:
        Tensors that no channel group touches (the exponent of GeM pooling) are the teacher's.

    Example:
        >>> from oskt.coupling.grouping import trace_coupling
        >>> from oskt.models.resnet import ResNet
        >>> teacher = ResNet(18, in_planes=8)
        >>> coupling = trace_coupling(teacher, torch.zeros(2, 3, 64, 32))
        >>> scratch(teacher, coupling, {"conv1": 4}).conv1.weight.shape
        torch.Size([4, 3, 7, 7])
    """
    sizes = complete("scratch", teacher, coupling, widths)
    student = students.narrow(teacher, coupling, sizes).to_empty(device="cpu")
    known = teacher.state_dict()
    with torch.no_grad(), seeded(seed, torch.device("cpu")):
        for name, tensor in student.state_dict().items():
            if coupling.layouts[name].role == "plain":
                tensor.copy_(known[name])
            else:
                tensor.fill_(torch.nan)
        for module in reversed(list(student.modules())):  # a network after its layers
            getattr(module, "reset_parameters", lambda: None)()
    for name, tensor in student.state_dict().items():
        if tensor.isnan().any():
            raise ValueError(
                f"scratch: every layer must initialise its parameters, got {name} that none does. "
                "Give its module a reset_parameters method."
            )
    students.set_widths(student, sizes)
    return student.to(_device(teacher)).eval()


def weight_selection(
    teacher: nn.Module, coupling: Coupling, widths: Mapping[str, int], *, seed: int = 0
) -> nn.Module:
    """Every (N/n)-th channel of the teacher: weight selection by uniform elements.

    W_s[i, j] = W_t[floor(i N_r / n_r), floor(j N_c / n_c)]: all tensors of a channel group take
    the same channels, norm parameters, running statistics and classifier too.

    Args:
        teacher: the trained network; left untouched.
        coupling: its channel groups.
        widths: group -> channels; groups not named keep the teacher's width.
        seed: not read: nothing is drawn.

    Returns:
        The student, on the teacher's device, in evaluation mode.

    Raises:
        ValueError: coupling of another network, or widths out of range.

    Source:
        Xu et al., ICLR 2024 (arXiv 2311.18823), section 3. Differences: the published code rounds
        linspace(0, N, n), whose last index N does not exist, unless n divides N, where the two
        agree; it leaves the classifier out, being for other data.

    Example:
        >>> from oskt.coupling.grouping import trace_coupling
        >>> net = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1))
        >>> student = weight_selection(net, trace_coupling(net, torch.zeros(2, 1)), {"0": 2})
        >>> torch.equal(student[0].weight, net[0].weight[[0, 2]])
        True
    """
    sizes = complete("weight_selection", teacher, coupling, widths)
    chosen = {}
    for name, group in coupling.groups.items():
        # The same channels in every block of a grouped convolution.
        step, count = group.size // group.blocks, sizes.get(name, group.size) // group.blocks
        inside = torch.arange(count) * step // count
        chosen[name] = (torch.arange(group.blocks)[:, None] * step + inside).flatten()
    tensors = {}
    for name, tensor in teacher.state_dict().items():
        layout = coupling.layouts[name]
        if layout.columns:
            kept = _entries(coupling, layout.columns, chosen)
            kept = kept[: len(kept) // layout.groups]
            tensor = tensor.index_select(1, kept.to(tensor.device))
        if layout.rows:
            kept = _entries(coupling, layout.rows, chosen)
            tensor = tensor.index_select(layout.dim, kept.to(tensor.device))
        tensors[name] = tensor
    student = students.fill(students.narrow(teacher, coupling, sizes), tensors)
    students.set_widths(student, sizes)
    return student.eval()


def published(chain: WeightChain, widths: Mapping[str, int], *, seed: int = 0) -> nn.Module:
    """A student as the published OSKT code makes it: weights and norm parameters of the chain,
    running statistics of a new network, a fresh head.

    Args:
        chain: of kind "oskt".
        widths: group -> channels; groups not named stay at chain width.
        seed: of the fresh classifier.

    Returns:
        The student in evaluation mode; of no use before it is trained or recalibrated.

    Raises:
        ValueError: a nested chain, or widths out of range.

    Source:
        OSKT, arXiv 2511.06016, and its code: norm parameters averaged over a copy's own block,
        statistics left as they are initialised, head (BNNeck and classifier) built anew.
    """
    if chain.kind != "oskt":
        raise ValueError(
            f"published: chain must be of kind 'oskt', got {chain.kind!r}. "
            "The published code knows no other: make one with kind='oskt'."
        )
    with seeded(seed, chain.weights.device):
        student = chain.student(widths=widths, norm="interpolate")
        for module in student.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
        student.get_submodule("bottleneck").reset_parameters()  # type: ignore[operator]
        if students.num_classes(student):
            students.replace_classifier(student, students.num_classes(student))
    return student.eval()


def oskt(chain: WeightChain, widths: Mapping[str, int], *, seed: int = 0) -> nn.Module:
    """A student as this library makes it: statistics, BNNeck and classifier travel too.

    Of a published-kind chain it is exact: at every width it begins as the S-Student, which
    interpolated norms do not reach at once (laptop scale, two seeds: S2 68.6 mAP, exact 69.7; S4
    89.0, exact 89.3). A nested chain has one form.

    Args:
        chain: of either kind.
        widths: group -> channels; groups not named stay at chain width.
        seed: of the classifier, if the chain's file left it out.

    Returns:
        The student in evaluation mode, of use at once.

    Raises:
        ValueError: widths out of range.
    """
    with seeded(seed, chain.weights.device):
        return chain.student(widths=widths, norm="exact" if chain.kind == "oskt" else "interpolate")


def complete(
    op: str, teacher: nn.Module, coupling: Coupling, given: Mapping[str, int]
) -> dict[str, int]:
    """The width of every free group: the given ones, checked, and the teacher's for the rest."""
    for name, tensor in teacher.state_dict().items():
        layout = coupling.layouts.get(name)
        if layout is None or layout.shape != tuple(tensor.shape):
            known = "no such tensor" if layout is None else f"shape {layout.shape}"
            raise ValueError(
                f"{op}: coupling must be that of the teacher, got {known} for {name} of shape "
                f"{tuple(tensor.shape)}. Trace it: trace_coupling(teacher, images)."
            )
    whole = {name: group.size for name, group in coupling.free.items()}
    return {**whole, **resolve(coupling, given, {})}


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of a seed inside, the caller's untouched outside."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _entries(coupling: Coupling, axis: AxisRuns, chosen: Mapping[str, Tensor]) -> Tensor:
    """The kept entries of an axis, whose channels are `area` entries each."""
    parts, start = [], 0
    for group, area in axis:
        parts.append((chosen[group][:, None] * area + torch.arange(area)).flatten() + start)
        start += coupling.groups[group].size * area
    return torch.cat(parts)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
