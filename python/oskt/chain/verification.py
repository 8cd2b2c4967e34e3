"""Numerical checks: of a coupling (on random numbers) and of a chain (on its own)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from oskt.coupling import AxisRuns, ChannelGroup, Coupling, ties
from oskt.coupling.tracing import flatten
from oskt.widths import Clustering, cut
from oskt.widths.merge_tree import MergeTree, Partitions

if TYPE_CHECKING:
    from oskt.chain.weight_chain import WeightChain

    MakeChain = Callable[[nn.Module, Coupling, Partitions, Mapping[str, object]], WeightChain]

# float64 forwards of equal functions differ by the order of sums: about 1e-16 per layer times
# the depth, far below this; a wrong coupling changes the output by its own size.
TOLERANCE = 1e-8


def checked(
    module: nn.Module, example_inputs: Sequence[Tensor], coupling: Coupling, make_chain: MakeChain
) -> Coupling:
    """The coupling with every group that fails the numerical check frozen.

    The check: numbers drawn at random (norm parameters too), channels clustered at random; the
    student of full width, whose channels repeat, must equal the merged student of chain width.
    All groups are checked at once, with two draws (a small group may be symmetric by chance); only
    if that fails are they freed one after the other, with four draws each, and those that fail stay
    frozen: what is returned was checked as a whole. Before, `ties` sees to it that students run.
    """
    coupling = ties.tied(module, example_inputs, coupling)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    trial = randomised(module, random_inputs(coupling, generator, batch=2))

    def deviation_of(trial_coupling: Coupling, draws: int) -> float:
        worst = 0.0
        for _ in range(draws):
            chain = make_chain(trial, trial_coupling, random_clusterings(trial_coupling, rng), {})
            worst = max(
                worst, relative(chain, chain.groups, random_inputs(trial_coupling, generator))
            )
        return worst

    def failure(trial_coupling: Coupling, draws: int) -> str | None:
        try:
            deviation = deviation_of(trial_coupling, draws)
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            return f"its students do not run ({str(error).splitlines()[0]})"
        if deviation < TOLERANCE:
            return None
        return f"failed the numerical check (deviation {deviation:.1e})"

    for candidate in _readings(coupling, coupling.free):
        if failure(candidate, 2) is None:
            return candidate
    sound = _with_groups(
        coupling, {name: replace(group, frozen="later") for name, group in coupling.free.items()}
    )
    for first in [name for name, group in coupling.free.items() if not group.like]:
        members = {
            name: group for name, group in coupling.free.items() if first in (name, group.like)
        }
        reasons = []
        for candidate in _readings(_with_groups(sound, members), members):
            reasons.append(failure(candidate, 4))
            if reasons[-1] is None:
                sound = candidate
                break
        else:
            frozen = {name: replace(group, frozen=reasons[0]) for name, group in members.items()}
            sound = _with_groups(sound, frozen)
    return sound


def _with_groups(coupling: Coupling, groups: Mapping[str, ChannelGroup]) -> Coupling:
    return replace(coupling, groups={**coupling.groups, **groups})


def _readings(coupling: Coupling, groups: Mapping[str, ChannelGroup]) -> Iterator[Coupling]:
    """The coupling, and with scores of these groups that are divided by the root of the head's
    width: whether code computes that factor or keeps the teacher's, no operator tells."""
    yield coupling
    dots = {
        name: replace(group, product="attention")
        for name, group in groups.items()
        if group.product == "dot"
    }
    if dots:
        yield _with_groups(coupling, dots)


def deviations(chain: WeightChain) -> Iterator[tuple[str, float]]:
    """(width label, relative deviation) of the chain's identity at several widths, in float64."""
    inputs = random_inputs(chain.coupling, torch.Generator().manual_seed(0), batch=2)
    exact = chain.to("cpu", torch.float64)
    rng = np.random.default_rng(0)
    mixed = {
        name: int(rng.integers(exact.widths[name], size + 1)) // group.step * group.step
        for name, size in exact.groups.items()
        for group in [exact.coupling.groups[name]]
    }
    trials = {
        "a quarter of the teacher": exact.resolve(0.25),
        "half the teacher": exact.resolve(0.5),
        "a random width per group": exact.coupling.alike(
            {g: max(n, exact.widths[g]) for g, n in mixed.items()}
        ),
        "the teacher's width": exact.groups,
    }
    for label, sizes in trials.items():
        yield label, relative(exact, sizes, inputs)
    if chain.kind == "oskt" and hasattr(chain.template, "scale_features"):
        worst = max(_cosines(exact, sizes, inputs) for sizes in trials.values())
        yield "cosines at all of these", worst


def random_inputs(coupling: Coupling, generator: torch.Generator, batch: int = 1) -> list[Tensor]:
    """Random arguments of the traced shapes, at least `batch` of them; whole numbers are 0 or 1."""
    shapes = [(max(batch, *shape[:1], 0), *shape[1:])[: len(shape)] for shape in coupling.inputs]
    return [
        torch.randint(2, shape, generator=generator)
        if place in coupling.integers
        else torch.randn(shape, dtype=torch.float64, generator=generator)
        for place, shape in enumerate(shapes)
    ]


def _cosines(chain: WeightChain, sizes: Mapping[str, int], inputs: Sequence[Tensor]) -> float:
    """Largest deviation of the cosines between embeddings from those of the S-Student."""

    def cosines(widths: Mapping[str, int]) -> Tensor:
        (embeddings,) = _run(chain.student(widths=widths, norm="cosine"), inputs, (False,))
        unit = torch.nn.functional.normalize(embeddings)
        return unit @ unit.T

    return _number((cosines(sizes) - cosines(chain.widths)).abs().max())


def random_clusterings(coupling: Coupling, rng: np.random.Generator) -> dict[str, Clustering]:
    """Every free group cut at random into half as many clusters, of unequal sizes: with equal ones
    a reversed channel order would go unseen."""
    result = {}
    for name, group in coupling.free.items():
        per_block = group.size // group.blocks
        count = max(group.step, group.size // 2 // group.step * group.step) // group.blocks
        parts = [
            rng.permutation(np.r_[:count, rng.integers(count, size=per_block - count)])
            + block * count
            for block in range(group.blocks)
        ]
        result[name] = Clustering(np.concatenate(parts), group.blocks)
    return result


def randomised(module: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """A float64 copy whose vectors tell channels apart: fresh norms would hide a wrong coupling.
    Batch norms take their statistics from the inputs, or a deep network would forget those."""
    generator = torch.Generator().manual_seed(0)
    trial = copy.deepcopy(module).cpu().double().eval()
    for name, tensor in trial.state_dict().items():
        if tensor.is_floating_point() and tensor.dim():
            noise = torch.rand(tensor.shape, dtype=torch.float64, generator=generator)
            positive = tensor.dim() == 1 and not name.endswith(("bias", "mean"))
            spread = 1.0 if tensor.dim() == 1 else float(np.sqrt(3 / max(1, tensor[0].numel())))
            tensor.copy_(noise + 0.5 if positive else (2 * noise - 1) * spread)
    norms = [m for m in trial.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train().momentum = 1.0
    if norms:
        with torch.no_grad():
            trial(*inputs)
    return trial.eval()


def _run(module: nn.Module, inputs: Sequence[Tensor], forms: Sequence[bool]) -> list[Tensor]:
    """Output tensors of the training form (batch norms still frozen) and of the evaluation form,
    in the order in which tracing lists them."""
    outputs: list[Tensor] = []
    with torch.no_grad():
        for training in forms:
            module.eval()
            module.training = training
            outputs += [t for t in flatten(module(*inputs)) if isinstance(t, Tensor)]
    return outputs


def relative(chain: WeightChain, sizes: Mapping[str, int], inputs: Sequence[Tensor]) -> float:
    """Largest deviation of a wide network from the narrow one whose channels it repeats.

    Published chain: the exact student of the given widths and the S-Student. Nested chain: the tied
    network of full width and the student of the given widths.
    """
    # The training form needs weights that a chain file may leave out.
    forms = (False,) if chain.absent else (True, False)
    if chain.kind == "nested":
        narrow, wide = chain.student(widths=sizes), chain.tied(sizes)
    else:
        narrow = chain.student(widths=chain.widths, norm="exact")
        wide = chain.student(widths=sizes, norm="exact")
    base = _run(narrow, inputs, forms)
    worst = 0.0
    for x, y, axes in zip(_run(wide, inputs, forms), base, chain.coupling.outputs[-len(base) :]):
        for dim, axis in enumerate(axes):
            if axis:
                seen, repeated = _repeats(chain, sizes, axis)
                x, y = x.index_select(dim, seen), y.index_select(dim, repeated)
        if not y.numel():
            continue
        worst = max(worst, _number((x - y).abs().max() / y.abs().max().clamp_min(1e-300)))
    return worst


def _number(deviation: Tensor) -> float:
    """Infinite where outputs are not finite: max() would pass NaN over, which equals nothing."""
    return float(deviation) if bool(deviation.isfinite()) else math.inf


def _repeats(chain: WeightChain, sizes: Mapping[str, int], axis: AxisRuns) -> tuple[Tensor, Tensor]:
    """Entries of the wide network's axis, and the entry of the narrow one's that each repeats."""
    seen, repeated, wide, narrow = [], [], 0, 0
    for group, area in axis:
        size = chain.coupling.groups[group].size
        partition, own = chain.partitions.get(group), np.arange(size)
        if partition is None:
            rows = own
        elif not isinstance(partition, MergeTree):
            rows = cut(partition, sizes[group]).rows
            own = np.arange(len(rows))
        elif partition.merges:
            rows = partition.cut(sizes[group]).labels
        else:
            own = partition.kept(sizes[group])
            rows = np.arange(len(own))
        places = np.arange(area)
        seen.append((own[:, None] * area + places).ravel() + wide)
        repeated.append((rows[:, None] * area + places).ravel() + narrow)
        wide += (sizes[group] if isinstance(partition, Clustering) else size) * area
        narrow += (int(rows.max()) + 1) * area
    return torch.from_numpy(np.concatenate(seen)), torch.from_numpy(np.concatenate(repeated))
