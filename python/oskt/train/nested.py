"""Joint training of nested chains: one set of weights each, several widths in every step."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

import oskt_ext
from oskt import reading, students
from oskt.chain import VECTORS, WEIGHTS, WeightChain, expansion
from oskt.train.rota import Place, Rota
from oskt.widths.merge_tree import MergeTree
from oskt_ext import ExpansionPlan

# oneDNN compiles a kernel for every shape of a layer, which takes longer than running it, and keeps
# 1024 of them unless it is told otherwise before the first.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")


class _Reading(NamedTuple):
    """How a student is read from a chain."""

    widths: dict[str, int]
    module: nn.Module  # without weights
    plan: ExpansionPlan
    shapes: dict[str, tuple[int, ...]]


class NestedModel(nn.Module):
    """A teacher and, in every step, students read from its own weights.

    There is no tensor but the teacher's: a student's weights are read from them (the channels that
    it has, or means of rows and sums of columns over its clusters) by one differentiable operator
    call, so that its gradient trains the teacher's weights. Which students, the Rota says.

    Args:
        teacher: the module that the chain was made from; trained in place.
        chain: WeightChain.from_teacher(teacher, ..., kind="nested").
        place: of the chain in its ladder, see Rota.
        random_widths: random students per step beside those of the rota, >= 0.
        first: images of a batch that the full width sees, where its students see the others, which
            halves the step's cost; 0, or no fewer than there are: all see all.

    Attributes:
        rota: the Rota.

    Raises:
        ValueError: a chain of kind "oskt", or one without all its weights.

    Source: universally slimmable networks (Yu & Huang 2019, section 3.2). Differences: their
    sandwich rule trains the narrowest width in every step; turns are worth 2 to 7 points of mAP
    from 1/4 to 1/2 of the width for 4 at 1/8 (docs/lab/nested.md, section 10). Channels in the
    order of what they are worth or nested clusters in place of leading channels, and no norm
    statistics of students in training but the narrowest's.
    """

    def __init__(
        self,
        teacher: nn.Module,
        chain: WeightChain,
        place: Place = "alone",
        *,
        random_widths: int = 0,
        first: int = 0,
    ) -> None:
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
        self.rota = Rota(chain, place, random_widths)
        self.first = first
        self.layouts = chain.coupling.layouts_of(WEIGHTS + VECTORS)
        student = chain.student(widths=chain.widths).train()
        self.supplied = [name for name, _ in student.named_parameters()]
        self.student = students.hollow(student, statistics=True)
        self.other_student = students.hollow(copy.deepcopy(student), statistics=False)
        self._readings: list[_Reading] = []

    def _apply(self, fn: Any, recurse: bool = True) -> NestedModel:
        self._readings = []
        return super()._apply(fn, recurse)

    def get_extra_state(self) -> Tensor:
        """Whose turn it is, and the order of channels: a run that is resumed goes on with both. A
        saliency measured anew on a GPU may differ in its last digits, and so the order. Beside
        them, what the trees must share with those of the run."""
        orders = [array for tree in self._trees.values() for array in (tree.order, tree.parent)]
        return torch.from_numpy(
            np.concatenate([[self.rota.turn], self._shapes_of_trees(), *orders])
        )

    def set_extra_state(self, state: Tensor) -> None:
        shapes, words = self._shapes_of_trees(), state.cpu().numpy()
        if not np.array_equal(words[1 : 1 + len(shapes)], shapes):
            raise ValueError(
                "NestedModel: chain must have the groups and widths that its state was trained "
                "with, and merge clusters as they did, got another. Make it as it was made then."
            )
        partitions, start = dict(self._chain.partitions), 1 + len(shapes)
        for name, tree in self._trees.items():
            order, parent = words[start : start + 2 * tree.rows].reshape(2, -1)
            partitions[name] = replace(tree, order=order, parent=parent)
            start += 2 * tree.rows
        self.rota.turn = int(words[0])
        self._chain = copy.copy(self._chain)
        self._chain.partitions = partitions
        self._readings = []

    @property
    def _trees(self) -> dict[str, MergeTree]:
        return cast("dict[str, MergeTree]", self._chain.partitions)

    def _shapes_of_trees(self) -> NDArray[np.int64]:
        """All of them but their order."""
        trees = self._trees.values()
        each = [[t.rows, t.narrowest, t.blocks, t.merges, *t.sizes] for t in trees]
        return np.array([len(each), *itertools.chain(*each)])

    def forward(self, images: Tensor) -> tuple[object, ...]:
        """The outputs of the teacher, if the rota has it, and of this step's students."""
        chain = self._chain
        teacher = self.teacher.state_dict(keep_vars=True)
        flat = torch.cat([teacher[layout.name].flatten() for layout in self.layouts])
        rest = {name: teacher[name] for name in self.supplied if name in chain.plain}
        first = self.first if self.first < len(images) else 0
        outputs = [self.teacher(images[: first or None])] if self.rota.full else []
        for widths in self.rota.step():
            student = self._reading(widths)
            tensors = expansion.split(oskt_ext.expand(flat, student.plan), student.shapes)
            outputs.append(functional_call(student.module, {**tensors, **rest}, (images[first:],)))
        return tuple(outputs)

    def _reading(self, widths: dict[str, int]) -> _Reading:
        """How a student is read; of the fixed ones it is made once, which takes as long as an
        eighth of its step."""
        for known in self._readings:
            if known.widths == widths:
                return known
        chain, fixed = self._chain, widths in self.rota.fixed
        if widths == chain.widths:
            module = self.student
        else:
            module = copy.deepcopy(self.other_student) if fixed else self.other_student
            students.resize(module, chain.coupling, widths)
        items = reading.student(
            chain.coupling, chain.partitions, widths, "interpolate", self.layouts
        )
        plan = expansion.plan(items).to(next(self.teacher.parameters()).device)
        shapes = {t.name: chain.coupling.shape(t.name, widths) for t in self.layouts}
        made = _Reading(widths, module, plan, shapes)
        if fixed:
            self._readings.append(made)
        return made

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

    The widest chain is the teacher itself; every other one begins as what the teacher is at some
    width and is a network of its own from then on. In a step every chain runs two students, the
    widest full width, too; see Rota.

    Args:
        teacher: the module that the chains were made from; trained in place.
        chains: from the narrowest to the widest, one or more, as of ChainLadder.
        random_widths: of each, see NestedModel.
        first: of the widest of several, see NestedModel.

    Attributes:
        rate_factors: module -> its learning rate as a multiple of the recipe's, (share of the
            teacher's channels)^-0.75: what suits a narrow network unlearns what a wide one knows
            (docs/lab/nested.md, sections 18 and 25).

    Raises:
        ValueError: as NestedModel.
    """

    def __init__(
        self, teacher: nn.Module, *chains: WeightChain, random_widths: int = 0, first: int = 0
    ) -> None:
        super().__init__()
        *narrow, widest = chains
        models = [
            NestedModel(c.student(width=1.0).train(), c, "narrow", random_widths=random_widths)
            for c in narrow
        ]
        last: dict[str, Any] = {"place": "widest", "first": first} if narrow else {}
        models.append(NestedModel(teacher, widest, random_widths=random_widths, **last))
        self.models = cast("Sequence[NestedModel]", nn.ModuleList(models))
        reach = [sum(chain.groups.values()) for chain in chains]
        self.rate_factors = {m: (reach[-1] / n) ** 0.75 for m, n in zip(models, reach)}

    @property
    def teacher(self) -> nn.Module:
        return self.models[-1].teacher

    def forward(self, images: Tensor) -> tuple[object, ...]:
        """The outputs of the teacher, of its chain's students, and of those of every other."""
        first, *others = (model(images) for model in reversed(self.models))
        return sum(others, first)

    def to_chains(self) -> list[WeightChain]:
        """The chains so far, from the narrowest to the widest."""
        return [model.to_chain() for model in self.models]

    def s_students(self) -> list[nn.Module]:
        """The narrowest student of the narrowest chain."""
        return self.models[0].s_students()
