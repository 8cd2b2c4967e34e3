"""Joint refinement: a teacher and the S-Students of its chains in one module."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

import oskt_ext
from oskt import reading, students
from oskt.chain import STATISTICS, VECTORS, WEIGHTS, WeightChain, expansion


class JointModel(nn.Module):
    """A teacher and its chains, trained together: gradients reach the teacher, the weights of
    every chain and the vectors (norms, biases) that all share, or that each chain has of its own.

    L = L_ReID(teacher) + sum over chains of L_ReID(S-Student) + alpha * mean over chains of
    L_refine; the caller adds the terms. However many chains, the teacher runs once. A mean, because
    the refining loss pulls the teacher too: summed, three chains cost it 4 points of mAP
    (docs/lab/ladder.md).

    Args:
        teacher: the module that the chains were made from; trained in place.
        chains: at their start, WeightChain.from_teacher(teacher, ...), each of another width.
        form: "sum", the published code's plain sum, or "mean", the paper's 1/L, 1/M_l.
        vectors: "shared" with the teacher (the published code for CNNs), or "own": every chain has
            its vectors, and the refining loss holds them to the teacher's (its code for ViTs).

    Attributes:
        branches: a Branch for every chain, in the order given.

    Raises:
        ValueError: no chain, one of another kind or without all its weights, or an unknown form
            or value of vectors.

    Source: OSKT, arXiv 2511.06016, section 3; published `GeneChain`. Differences: BNNeck's gamma is
    shared like every other norm vector; the S-Student's classifier is a chain weight over
    teacher-width columns, so that it too reaches students of every width; several chains.
    """

    def __init__(
        self, teacher: nn.Module, *chains: WeightChain, form: str = "sum", vectors: str = "shared"
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("form", form, ("sum", "mean")),
            ("vectors", vectors, ("shared", "own")),
        ):
            if value not in known:
                raise ValueError(
                    f"JointModel: {name} must be {known[0]!r} or {known[1]!r}, got {value!r}. "
                    "Choose one of the two."
                )
        if not chains:
            raise ValueError(
                "JointModel: chains must be one or more, got none. "
                "Make one with WeightChain.from_teacher(teacher, ...)."
            )
        self.teacher = teacher
        branches = nn.ModuleList(Branch(chain, form, vectors) for chain in chains)
        self.branches = cast("Sequence[Branch]", branches)  # which a ModuleList forgets

    def forward(self, images: Tensor) -> tuple[object, ...]:
        """The outputs of the teacher and of every S-Student on one batch."""
        teacher = self._tensors_of_teacher()
        return self.teacher(images), *[branch(images, teacher) for branch in self.branches]

    def refining_loss(self, scale: float = 1.0) -> Tensor:
        """scale * mean over chains of the sum over clustered weights and rows k of
        |T_k - C_label(k)|^2, and of the squares between the teacher's vectors and a chain's own."""
        teacher = self._tensors_of_teacher()
        each = scale / len(self.branches)
        first, *others = (branch.refining_loss(teacher, each) for branch in self.branches)
        return sum(others, first)

    def to_chains(self) -> list[WeightChain]:
        """The chains so far."""
        teacher = self._tensors_of_teacher()
        return [branch.to_chain(teacher) for branch in self.branches]

    def s_students(self) -> list[nn.Module]:
        """The S-Students as modules of their own, in evaluation mode."""
        return [chain.student(widths=chain.widths) for chain in self.to_chains()]

    def _tensors_of_teacher(self) -> dict[str, Tensor]:
        return self.teacher.state_dict(keep_vars=True)


class Branch(nn.Module):
    """One chain of a JointModel: its rows, and the S-Student that is read from them.

    The S-Student is the expansion at chain width, run as a real narrow network: its weights come
    from the chain's flat buffer, its gamma, beta and biases from vectors of teacher width (cluster
    means), the teacher's or the chain's own, and it keeps running statistics of its own. Same
    function as the published code, which runs a CNN's chain at teacher width through frozen 0/1
    convolutions, at about 1/80 of that branch's MACs.

    Methods take the teacher's tensors by name: they are the JointModel's, not a branch's.

    Args:
        chain: of kind "oskt", with all its weights.
        form, vectors: see JointModel.

    Attributes:
        weights: the chain's rows, flat, as in WeightChain.
        vectors: the chain's own vectors, flat, or None.
        student: the S-Student without its parameters.
        refined_names: the weights that the refining loss compares with the teacher's.
    """

    def __init__(self, chain: WeightChain, form: str, vectors: str) -> None:
        super().__init__()
        if chain.absent:
            raise ValueError(
                f"JointModel: chain must hold all its weights, got one without {chain.absent[0]}. "
                "Make it with from_teacher, or save it with classifier=True."
            )
        if chain.kind != "oskt":
            raise ValueError(
                f"JointModel: chain must be of kind 'oskt', got {chain.kind!r}. "
                "oskt.train.nested.NestedModel trains nested ones; recipes have chain='nested'."
            )
        coupling = chain.coupling
        self._chain = chain
        self.weights = nn.Parameter(chain.weights.detach().clone())
        own = vectors == "own"
        self.vectors = nn.Parameter(chain.vectors.detach().clone()) if own else None
        self.vector_names = [t.name for t in coupling.layouts_of(VECTORS)]
        self.vector_scale = 1.0 if form == "sum" else 1 / max(1, chain.vectors.numel())
        self.untrained: Tensor  # vectors that stay the teacher's: BNNeck's bias
        assert chain.template is not None
        known = chain.template.state_dict(keep_vars=True)
        marks = [
            torch.full((known[name].numel(),), not known[name].requires_grad)
            for name in self.vector_names
        ]
        untrained = expansion.flat(marks, torch.empty(0, dtype=torch.bool))
        self.register_buffer("untrained", untrained, persistent=False)

        self.shapes, self.plans = [], []
        for roles in (WEIGHTS, VECTORS):  # apart: joining their sources would copy every weight
            layouts = coupling.layouts_of(roles)
            self.shapes.append({t.name: coupling.shape(t.name, chain.widths) for t in layouts})
            items = reading.student(
                coupling, chain.partitions, chain.widths, "interpolate", layouts
            )
            self.plans.append(expansion.plan(items))
        self.refining, self.refined_names = expansion.refining_plan(
            coupling, chain.clusterings, coupling.layouts_of(WEIGHTS), form
        )
        student = chain.student(widths=chain.widths).train()
        self.supplied = [name for name, _ in student.named_parameters()]
        self.student = students.hollow(student, statistics=True)

    def get_extra_state(self) -> Tensor:
        """Whose row every channel reads: rows mean nothing under other clusters."""
        labels = (each.labels for each in self._chain.clusterings.values())
        return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *labels]))

    def set_extra_state(self, state: Tensor) -> None:
        if not torch.equal(state.cpu(), self.get_extra_state()):
            raise ValueError(
                "JointModel: chain must have the clusters that its state was trained with, got "
                "others. Make it as it was made then: of the same teacher, with the same options."
            )

    def _apply(self, fn: Any, recurse: bool = True) -> Branch:
        super()._apply(fn, recurse)
        self.plans = [plan.to(self.weights.device) for plan in self.plans]
        self.refining = self.refining.to(self.weights.device)
        return self

    def tensors(self, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The S-Student's parameters, differentiable in chain and teacher."""
        tensors: dict[str, Tensor] = {}
        sources = (self.weights, self._vectors(teacher))
        for source, plan, shapes in zip(sources, self.plans, self.shapes):
            tensors |= expansion.split(oskt_ext.expand(source, plan), shapes)
        return {**{name: teacher[name] for name in self.supplied}, **tensors}

    def split_weights(self, flat: Tensor) -> dict[str, Tensor]:
        """Named views (M, N, *kernel) of a buffer shaped like `weights`: rows or their gradient."""
        layouts = self._chain.coupling.layouts_of(WEIGHTS)
        return expansion.split(flat, {t.name: self._chain.source_shape(t) for t in layouts})

    def forward(self, images: Tensor, teacher: Mapping[str, Tensor]) -> object:
        """The S-Student's output on one batch."""
        return functional_call(self.student, self.tensors(teacher), (images,))

    def refining_loss(self, teacher: Mapping[str, Tensor], scale: float = 1.0) -> Tensor:
        """scale * sum over clustered weights and rows k of |T_k - C_label(k)|^2, a scalar; plus the
        squares between the teacher's vectors and own ones (form "mean": their mean)."""
        loss = oskt_ext.refining_loss(
            [teacher[name] for name in self.refined_names], self.weights, self.refining, scale=scale
        )
        if self.vectors is None:
            return loss
        apart = self._of_teacher(teacher) - self._vectors(teacher)
        return loss + scale * self.vector_scale * apart.square().sum()

    def _vectors(self, teacher: Mapping[str, Tensor]) -> Tensor:
        """The vectors that students read, flat."""
        theirs = self._of_teacher(teacher)
        return theirs if self.vectors is None else torch.where(self.untrained, theirs, self.vectors)

    def _of_teacher(self, teacher: Mapping[str, Tensor]) -> Tensor:
        """The teacher's vectors, flat."""
        return expansion.flat((teacher[name] for name in self.vector_names), self.weights)

    @torch.no_grad()
    def to_chain(self, teacher: Mapping[str, Tensor]) -> WeightChain:
        """The chain so far: its rows, the vectors, the S-Student's statistics."""
        chain = copy.copy(self._chain)
        buffers = dict(self.student.named_buffers())
        chain.meta = dict(chain.meta)
        chain.weights = self.weights.detach().clone()
        chain.vectors = self._vectors(teacher).detach().clone()
        statistics = (buffers[t.name] for t in chain.coupling.layouts_of(STATISTICS))
        chain.statistics = expansion.flat(statistics, self.weights).detach()
        chain.plain = {
            name: buffers.get(name, teacher.get(name, tensor)).detach().clone()
            for name, tensor in chain.plain.items()
        }
        return chain
