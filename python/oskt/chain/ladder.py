"""Several chains of one teacher in one file, refined in one run: students near their chain."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oskt.chain.weight_chain import Saliency, WeightChain, read_contents
from oskt.coupling import Coupling
from oskt.files.checkpoint import write_tensors
from oskt.files.contents import together
from oskt.files.part_file import Source
from oskt.files.tensor_file import CHAIN
from oskt.widths.budget import Timer
from oskt.widths.ladder import Ladder
from oskt.widths.latency import Meter

# A narrow network has no room for the most important channels alone, and begins better with all of
# them merged: 2 to 5 points of mAP up to a quarter of the width; at half, nothing at its own width
# and one point less at a quarter (docs/lab/nested.md, section 23).
FOLDED = 1 / 4


class ChainLadder(Ladder[WeightChain]):
    """Weight chains of one teacher at several widths, usually each twice the one before.

    A published chain is best at its own width, and a nested one is torn between narrow students,
    which want a high rate of training, and wide ones: with several, a student of any size has one
    that fits it (see oskt.widths.ladder.Ladder). `oskt.train.refine_chain` trains them all in one
    run, in which the teacher is shared.

    Example:
        >>> from oskt.models.resnet import ResNet
        >>> teacher, images = ResNet(18, in_planes=8), torch.zeros(2, 3, 64, 32)
        >>> ladder = ChainLadder.from_teacher(teacher, images, (1 / 8, 1 / 4, 1 / 2), check=False)
        >>> ladder.name_of(ladder.chain_for(ladder.resolve(width=0.3)))
        'chain 2 of 3, width 0.25'
        >>> ladder.student(width=0.3)(images).shape
        torch.Size([2, 19])
    """

    @staticmethod
    def from_teacher(
        module: nn.Module,
        example_inputs: Tensor | Sequence[Tensor],
        widths: Sequence[float] = (1 / 8, 1 / 4, 1 / 2),
        kind: str = "oskt",
        **options: Any,
    ) -> ChainLadder:
        """Make a chain of a teacher at each of some widths.

        Args:
            module, example_inputs: the teacher and its forward's arguments.
            widths: shares of the teacher's channels in every free group, distinct, in (0, 1]. Of
                kind "oskt" the chains' own; of kind "nested" the narrowest widths that they are
                trained at: each serves from its own to that of the next, the last to full width.
                The widest is the teacher; one that ends at a quarter or below begins as the teacher
                folded to that width (rows of a cluster averaged, columns summed), any other as the
                most important channels alone.
            kind: "oskt" or "nested".
            options: rows, method, seed, saliency, check, parent of WeightChain.from_teacher.

        Raises:
            ValueError: equal or no widths, others as WeightChain.from_teacher; nested chains of
                which a wider one would be no wider.
        """
        if not widths or len(set(widths)) < len(widths) or not all(0 < w <= 1 for w in widths):
            raise ValueError(
                "ChainLadder.from_teacher: widths must be distinct shares in (0, 1], got "
                f"{list(widths)}. Example: widths=(0.125, 0.25, 0.5)."
            )
        if kind == "nested":
            whole = WeightChain.from_teacher(module, example_inputs, kind, min(widths), **options)
            ends = [*sorted(widths)[1:], 1.0]
            chains = [_stretch(whole, *ends) for ends in zip(sorted(widths), ends)]
            saliency = options.get("saliency")
            return ChainLadder(
                [
                    _folded(chain, module, whole.coupling, saliency) if end <= FOLDED else chain
                    for chain, end in zip(chains, ends)
                ]
            )
        return ChainLadder(
            [
                WeightChain.from_teacher(module, example_inputs, kind, width, **options)
                for width in widths
            ]
        )

    def transferred(self, modules: Sequence[nn.Module]) -> ChainLadder:
        """The nested ladder of other full-width networks, one for each chain; see
        WeightChain.transferred."""
        pairs = zip(self.chains, modules, strict=True)
        return ChainLadder([chain.transferred(module) for chain, module in pairs])

    def expand(
        self, widths: Mapping[str, int] | None = None, *, norm: str = "interpolate"
    ) -> dict[str, Tensor]:
        """The tensors of a student by state-dict name, from the chain that fits; groups not named
        have the narrowest width of the base. Otherwise as WeightChain.expand."""
        sizes = self.resolve(widths=widths or {})
        return self.chain_for(sizes).expand(sizes, norm=norm)

    def student(
        self,
        *,
        width: float | None = None,
        widths: Mapping[str, int] | None = None,
        preset: str | None = None,
        latency_ms: float | None = None,
        device: str | Timer = "cpu",
        norm: str = "interpolate",
        **budget: Any,
    ) -> nn.Module:
        """A student module from the chain that fits; as WeightChain.student.

        Args:
            width, preset, norm: as there.
            widths: group -> channels; groups not named have the narrowest width of the base.
            latency_ms, device: as there; a width is timed once, whichever chain it is tried for.
            budget: params, macs, memory_mb and shape, as there.
        """
        timer: Timer | None = None
        if latency_ms is not None:
            timer = Meter(self.base, device) if isinstance(device, str) else device
            budget |= {"latency_ms": latency_ms, "device": timer}
        sizes = self.resolve(width, widths, preset, **budget)
        student = self.chain_for(sizes).student(widths=sizes, norm=norm)
        if isinstance(timer, Meter):
            student.__dict__["latency"] = timer.latency(sizes)
        return student

    def verify(self, *, quiet: bool = False) -> float:
        """Measure the identity of every chain; see WeightChain.verify."""
        worst = 0.0
        for chain in self.chains:
            if not quiet:
                print(self.name_of(chain))
            worst = max(worst, chain.verify(quiet=quiet))
        return worst

    def to(self, *args: Any, **kwargs: Any) -> ChainLadder:
        """The ladder on another device or in another dtype (as Tensor.to)."""
        return ChainLadder([chain.to(*args, **kwargs) for chain in self.chains])

    def save(
        self, path: str | Path, *, dtype: torch.dtype | None = None, classifier: bool = False
    ) -> None:
        """Write all chains as one file, what they share once; see WeightChain.save."""
        stored = [chain.stored(dtype, classifier) for chain in self.chains]
        write_tensors(path, CHAIN, *together(stored))

    @staticmethod
    def load(source: Source, *, template: nn.Module | None = None) -> ChainLadder:
        """Read a ladder, or a chain of either kind as a ladder of one; see WeightChain.load."""
        contents = read_contents(source)
        return ChainLadder([WeightChain.of_contents(c, source, template) for c in contents])


def _folded(
    part: WeightChain, teacher: nn.Module, coupling: Coupling, saliency: Saliency | None
) -> WeightChain:
    """The part of a nested chain with the teacher folded to its width for a network.

    Its channels are means of clusters of the teacher's, in an order of their own.
    """
    made = part.meta["clustering"]
    merged = WeightChain.of_clusters(
        teacher, coupling, part.groups, {"kind": "oskt", "spec": getattr(teacher, "spec", None)},
        method="random" if made["method"] == "random" else "kmeans", rows="owned",
        seed=made["seed"],
    )  # fmt: skip
    return WeightChain.of_order(
        merged.student(widths=part.groups), part.coupling, part.widths, part.meta,
        method=made["method"], rows=made["rows"], seed=made["seed"], saliency=saliency,
    )  # fmt: skip


def _stretch(whole: WeightChain, start: float, end: float) -> WeightChain:
    """The part of a nested chain that serves the widths from one share to another."""
    narrowest = whole.resolve(start)
    chain = whole if end == 1 else whole.truncated(end)
    part = copy.copy(chain)
    part.partitions = {
        name: replace(tree, narrowest=narrowest[name]) for name, tree in chain.trees.items()
    }
    return part
