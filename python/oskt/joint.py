"""Joint refinement: a teacher and the S-Students of its chains in one module."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

import oskt_ext
from oskt import expansion, reading, students
from oskt.chain import VECTORS, WEIGHTS, WeightChain


class JointModel(nn.Module):
    """A teacher and its chains, trained together: gradients reach the teacher, the weights of
    every chain and the norm vectors that all share.

    L = L_ReID(teacher) + sum over chains (L_ReID(S-Student) + alpha * L_refine); the caller adds
    the terms, `refining_loss` has summed its own. However many chains, the teacher runs once.

    Args:
        teacher: the module that the chains were made from; trained in place.
        chains: at their start, WeightChain.from_teacher(teacher, ...), each of another width.
        form: "sum", the published code's plain sum, or "mean", the paper's 1/L, 1/M_l.

    Attributes:
        branches: a Branch for every chain, in the order given.

    Raises:
        ValueError: no chain, one of another kind or without all its weights, or an unknown form.

    Source: OSKT, arXiv 2511.06016, section 3; published `GeneChain`. Differences: BNNeck's gamma is
    shared like every other norm vector; the S-Student's classifier is a chain weight over
    teacher-width columns, so that it too reaches students of every width; several chains.
    """

    def __init__(self, teacher: nn.Module, *chains: WeightChain, form: str = "sum") -> None:
        super().__init__()
        if form not in ("sum", "mean"):
            raise ValueError(
                f"JointModel: form must be 'sum' or 'mean', got {form!r}. Choose one of the two."
            )
        if not chains:
            raise ValueError(
                "JointModel: chains must be one or more, got none. "
                "Make one with WeightChain.from_teacher(teacher, ...)."
            )
        self.teacher = teacher
        branches = nn.ModuleList(Branch(chain, form) for chain in chains)
        self.branches = cast("Sequence[Branch]", branches)  # which a ModuleList forgets

    def forward(self, images: Tensor) -> tuple[object, ...]:
        """The outputs of the teacher and of every S-Student on one batch."""
        teacher = self._parameters_of_teacher()
        return self.teacher(images), *[branch(images, teacher) for branch in self.branches]

    def refining_loss(self, scale: float = 1.0) -> Tensor:
        """scale * sum over chains, clustered weights and rows k of |T_k - C_label(k)|^2."""
        teacher = self._parameters_of_teacher()
        first, *others = (branch.refining_loss(teacher, scale) for branch in self.branches)
        return sum(others, first)

    def to_chains(self) -> list[WeightChain]:
        """The chains so far."""
        teacher = self._parameters_of_teacher()
        return [branch.to_chain(teacher) for branch in self.branches]

    def s_students(self) -> list[nn.Module]:
        """The S-Students as modules of their own, in evaluation mode."""
        return [chain.student(widths=chain.widths) for chain in self.to_chains()]

    def _parameters_of_teacher(self) -> dict[str, Tensor]:
        return dict(self.teacher.named_parameters())


class Branch(nn.Module):
    """One chain of a JointModel: its rows, and the S-Student that is read from them.

    The S-Student is the expansion at chain width, run as a real narrow network: its weights come
    from the chain's flat buffer, its gamma, beta and biases from the teacher's own (cluster means),
    and it keeps running statistics of its own. Same function as the published code, which runs the
    chain at teacher width through frozen 0/1 convolutions, at about 1/80 of that branch's MACs.

    Methods take the teacher's parameters by name: they are the JointModel's, not a branch's.

    Args:
        chain: of kind "oskt", with all its weights.
        form: of the refining loss, see JointModel.

    Attributes:
        weights: the chain's rows, flat, as in WeightChain.
        student: the S-Student without its parameters.
        refined_names: the weights that the refining loss compares with the teacher's.
    """

    def __init__(self, chain: WeightChain, form: str) -> None:
        super().__init__()
        if chain.absent:
            raise ValueError(
                f"JointModel: chain must hold all its weights, got one without {chain.absent[0]}. "
                "Make it with from_teacher, or save it with classifier=True."
            )
        if chain.kind != "oskt":
            raise ValueError(
                f"JointModel: chain must be of kind 'oskt', got {chain.kind!r}. "
                "Nested chains are trained by oskt.nested.NestedModel; recipes have chain='nested'."
            )
        coupling = chain.coupling
        self._chain = chain
        self.weights = nn.Parameter(chain.weights.detach().clone())
        self.vector_names = [t.name for t in coupling.layouts_of(VECTORS)]

        layouts = coupling.layouts_of(WEIGHTS + VECTORS)
        self.shapes = {t.name: coupling.shape(t.name, chain.widths) for t in layouts}
        self.plan = expansion.plan(
            reading.student(coupling, chain.partitions, chain.widths, "interpolate", layouts)
        )
        self.refining, self.refined_names = expansion.refining_plan(
            coupling, chain.clusterings, coupling.layouts_of(WEIGHTS), form
        )
        student = chain.student(widths=chain.widths).train()
        self.supplied = [name for name, _ in student.named_parameters()]
        self.student = students.hollow(student, statistics=True)

    def _apply(self, fn: Any, recurse: bool = True) -> Branch:
        super()._apply(fn, recurse)
        self.plan = self.plan.to(self.weights.device)
        self.refining = self.refining.to(self.weights.device)
        return self

    def tensors(self, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The S-Student's parameters, differentiable in chain and teacher."""
        vectors = [teacher[name].flatten() for name in self.vector_names]
        flat = oskt_ext.expand(torch.cat([self.weights, *vectors]), self.plan)
        tensors = expansion.split(flat, self.shapes)
        return {name: tensors[name] if name in tensors else teacher[name] for name in self.supplied}

    def split_weights(self, flat: Tensor) -> dict[str, Tensor]:
        """Named views (M, N, *kernel) of a buffer shaped like `weights`: rows or their gradient."""
        layouts = self._chain.coupling.layouts_of(WEIGHTS)
        return expansion.split(flat, {t.name: self._chain.source_shape(t) for t in layouts})

    def forward(self, images: Tensor, teacher: Mapping[str, Tensor]) -> object:
        """The S-Student's output on one batch."""
        return functional_call(self.student, self.tensors(teacher), (images,))

    def refining_loss(self, teacher: Mapping[str, Tensor], scale: float = 1.0) -> Tensor:
        """scale * sum over clustered weights and rows k of |T_k - C_label(k)|^2, a scalar."""
        return oskt_ext.refining_loss(
            [teacher[name] for name in self.refined_names], self.weights, self.refining, scale=scale
        )

    @torch.no_grad()
    def to_chain(self, teacher: Mapping[str, Tensor]) -> WeightChain:
        """The chain so far: its rows, the teacher's vectors, the S-Student's statistics."""
        chain = copy.copy(self._chain)
        buffers = dict(self.student.named_buffers())
        chain.meta = dict(chain.meta)
        chain.weights = self.weights.detach().clone()
        chain.vectors = _flat([teacher[name] for name in self.vector_names])
        chain.statistics = _flat(
            [buffers[t.name] for t in chain.coupling.layouts_of(("statistic",))]
        )
        chain.plain = {
            name: teacher.get(name, buffers.get(name, tensor)).detach().clone()
            for name, tensor in chain.plain.items()
        }
        return chain


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors]) if tensors else torch.empty(0)
