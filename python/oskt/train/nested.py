"""Joint training of nested chains: one set of weights each, several widths in every step."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

import oskt_ext
from oskt import reading, students
from oskt.chain import VECTORS, WEIGHTS, WeightChain, expansion
from oskt.widths import round_width
from oskt.widths.merge_tree import MergeTree
from oskt_ext import ExpansionPlan

# oneDNN compiles a kernel for every shape of a layer, which takes longer than running it, and keeps
# 1024 of them unless it is told otherwise before the first.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")


class NestedModel(nn.Module):
    """A teacher and, in every step, students read from its own weights.

    There is no tensor but the teacher's: a student's weights are read from them (the channels that
    it has, or means of rows and sums of columns over its clusters) by one differentiable operator
    call, so that its gradient trains the teacher's weights. Each step runs full width and, in turn,
    one of the narrowest, 1/2, 1/4, ..., and a random one in between; and `random_widths` more.

    Args:
        teacher: the module that the chain was made from; trained in place.
        chain: WeightChain.from_teacher(teacher, ..., kind="nested").
        random_widths: random students per step beside the one in turn, >= 0.

    Attributes:
        turns: the widths that take turns with a random one, group -> channels each: the narrowest,
            then every power of 1/2 that is at least half as wide again.

    Raises:
        ValueError: a chain of kind "oskt", or one without all its weights.

    Source: universally slimmable networks (Yu & Huang 2019, section 3.2). Differences: their
    sandwich rule trains the narrowest width in every step; turns are worth 2 to 7 points of mAP
    from 1/4 to 1/2 of the width for 4 at 1/8 (docs/lab/nested.md, section 10). Channels in the
    order of what they are worth or nested clusters in place of leading channels, and no norm
    statistics of students in training but the narrowest's.
    """

    def __init__(self, teacher: nn.Module, chain: WeightChain, random_widths: int = 0) -> None:
        super().__init__()
        if chain.kind != "nested":
            raise ValueError(
                f"NestedModel: chain must be of kind 'nested', got {chain.kind!r}. "
                "Published chains are trained by a RefineRecipe, such as paper-refine."
            )
        if chain.absent:
            raise ValueError(
                f"NestedModel: chain must hold all its weights, got one without {chain.absent[0]}. "
                "Make it with from_teacher, or save it with classifier=True."
            )
        self._chain = chain
        self.teacher = teacher
        self.random_widths = random_widths
        shares = [n / chain.groups[group] for group, n in chain.widths.items()]
        least = min(shares, default=1.0)
        self._lowest = min(7, max(1, int(8 * least)))
        self.turns, share = [chain.widths], 1 / 2
        while share >= 1.5 * least:
            self.turns.append(self._widths_at([share] * len(shares)))
            share /= 2
        self._turn = 0
        self.layouts = chain.coupling.layouts_of(WEIGHTS + VECTORS)
        self.plan = self.plan_of(chain.widths)
        student = chain.student(widths=chain.widths).train()
        self.supplied = [name for name, _ in student.named_parameters()]
        self.student = students.hollow(student, statistics=True)
        self.other_student = students.hollow(copy.deepcopy(student), statistics=False)

    def _apply(self, fn: Any, recurse: bool = True) -> NestedModel:
        super()._apply(fn, recurse)
        self.plan = self.plan.to(next(self.teacher.parameters()).device)
        return self

    def plan_of(self, widths: Mapping[str, int]) -> ExpansionPlan:
        chain = self._chain
        items = reading.student(
            chain.coupling, chain.partitions, widths, "interpolate", self.layouts
        )
        return expansion.plan(items)

    def get_extra_state(self) -> Tensor:
        """Whose turn it is, and the order of channels: a run that is resumed goes on with both. A
        saliency measured anew on a GPU may differ in its last digits, and so the order."""
        arrays = [array for tree in self._trees.values() for array in (tree.order, tree.parent)]
        return torch.from_numpy(np.concatenate([[self._turn], *arrays]))

    def set_extra_state(self, state: Tensor) -> None:
        words, partitions, start = state.cpu().numpy(), dict(self._chain.partitions), 1
        for name, tree in self._trees.items():
            order, parent = words[start : start + 2 * tree.rows].reshape(2, -1)
            partitions[name] = replace(tree, order=order, parent=parent)
            start += 2 * tree.rows
        self._turn = int(words[0])
        self._chain = copy.copy(self._chain)
        self._chain.partitions = partitions
        self.plan = self.plan_of(self._chain.widths).to(next(self.teacher.parameters()).device)

    @property
    def _trees(self) -> dict[str, MergeTree]:
        return cast("dict[str, MergeTree]", self._chain.partitions)

    def _widths_at(self, shares: Sequence[float]) -> dict[str, int]:
        """Widths by the share of every free group, none below the narrowest."""
        chain = self._chain
        widths = {
            name: round_width(group, share, chain.widths[name])
            for (name, group), share in zip(chain.coupling.free.items(), shares)
        }
        return chain.coupling.alike(widths)

    def draw_widths(self) -> dict[str, int]:
        """Widths of a random student, from torch's CPU generator.

        A coin decides between one share for all groups and a share for every group. A share is
        a number of eighths: few values, so that each is trained often (and 1/4, 1/2, 3/4, which
        people ask for, are among them).
        """
        count = len(self._chain.coupling.free)
        per_group = bool(torch.randint(2, ()))
        eighths = torch.randint(self._lowest, 8, (count,) if per_group else (1,))
        return self._widths_at((eighths.expand(count) / 8).tolist())

    def forward(self, images: Tensor) -> tuple[object, ...]:
        """The outputs of the teacher, of the student in turn, and of the random ones."""
        chain = self._chain
        teacher = dict(self.teacher.named_parameters())
        flat = torch.cat([teacher[layout.name].flatten() for layout in self.layouts])
        rest = {name: teacher[name] for name in self.supplied if name in chain.plain}

        def run(widths: Mapping[str, int]) -> object:
            if widths == chain.widths:
                module, plan = self.student, self.plan
            else:
                module, plan = self.other_student, self.plan_of(widths).to(flat.device)
                students.resize(module, chain.coupling, widths)
            shapes = {t.name: chain.coupling.shape(t.name, widths) for t in self.layouts}
            tensors = expansion.split(oskt_ext.expand(flat, plan), shapes)
            return functional_call(module, {**tensors, **rest}, (images,))

        turn = self._turn
        self._turn = (turn + 1) % (len(self.turns) + 1)
        in_turn = self.turns[turn] if turn < len(self.turns) else self.draw_widths()
        drawn = (self.draw_widths() for _ in range(self.random_widths))
        return self.teacher(images), run(in_turn), *map(run, drawn)

    @torch.no_grad()
    def to_chain(self) -> WeightChain:
        """The chain so far: the teacher's weights, vectors and statistics under the same trees."""
        chain = self._chain
        return WeightChain.of_partitions(self.teacher, chain.coupling, chain.partitions, chain.meta)

    def s_students(self) -> list[nn.Module]:
        """The narrowest student alone, as a module of its own, in evaluation mode."""
        student = self.to_chain().student(widths=self._chain.widths)
        buffers = {name: buffer.detach() for name, buffer in self.student.named_buffers()}
        student.load_state_dict({**student.state_dict(), **buffers})
        return [student]


class NestedLadder(nn.Module):
    """The nested chains of one ladder, trained in one run: a NestedModel for each.

    The widest chain is the teacher itself; every other one begins as its students of some width and
    is a network of its own from then on. In a step each runs its full width and its students, so
    that a narrow chain, of a few percent of the teacher's MACs, costs a few percent of the step.

    Args:
        teacher: the module that the chains were made from; trained in place.
        chains: from the narrowest to the widest, one or more, as of ChainLadder.
        random_widths: of each, see NestedModel.

    Attributes:
        rate_factors: module -> its learning rate as a multiple of the recipe's, 1/sqrt(share of
            the teacher's channels): what suits a narrow network unlearns what a wide one knows
            (docs/lab/nested.md, section 18).

    Raises:
        ValueError: as NestedModel.
    """

    def __init__(self, teacher: nn.Module, *chains: WeightChain, random_widths: int = 0) -> None:
        super().__init__()
        *narrow, widest = chains
        models = [NestedModel(c.student(width=1.0).train(), c, random_widths) for c in narrow]
        models.append(NestedModel(teacher, widest, random_widths))
        self.models = cast("Sequence[NestedModel]", nn.ModuleList(models))
        reach = [sum(chain.groups.values()) for chain in chains]
        self.rate_factors = {m: math.sqrt(reach[-1] / n) for m, n in zip(models, reach)}

    @property
    def teacher(self) -> nn.Module:
        return self.models[-1].teacher

    def forward(self, images: Tensor) -> tuple[object, ...]:
        """The outputs of the teacher, of its chain's students, and of those of every other chain,
        the full width before the others."""
        first, *others = (model(images) for model in reversed(self.models))
        return sum(others, first)

    def to_chains(self) -> list[WeightChain]:
        """The chains so far, from the narrowest to the widest."""
        return [model.to_chain() for model in self.models]

    def s_students(self) -> list[nn.Module]:
        """The narrowest student of the narrowest chain."""
        return self.models[0].s_students()
