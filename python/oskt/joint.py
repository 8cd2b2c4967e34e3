"""Joint refinement: a teacher and the S-Student of its chain in one module."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import oskt_ext
from oskt import expansion, reading, students
from oskt.chain import VECTORS, WEIGHTS, WeightChain


class JointModel(nn.Module):
    """A teacher and its chain, trained together: gradients reach the teacher, the chain's weights
    and the norm vectors that both share.

    The S-Student is the expansion at chain width, run as a real narrow network: its weights come
    from the chain's flat buffer, its gamma, beta and biases from the teacher's own (cluster means),
    and it keeps running statistics of its own. Same function as the published code, which runs the
    chain at teacher width through frozen 0/1 convolutions, at about 1/80 of that branch's MACs.

    L = L_ReID(teacher) + L_ReID(S-Student) + alpha * refining_loss(); the caller adds the three.

    Args:
        teacher: the module that the chain was made from; trained in place.
        chain: at its start, WeightChain.from_teacher(teacher, ...).
        form: "sum", the published code's plain sum, or "mean", the paper's 1/L, 1/M_l.

    Source: OSKT, arXiv 2511.06016, section 3; published `GeneChain`. Difference: BNNeck's gamma is
    shared like every other norm vector, and the S-Student's classifier is a chain weight over
    teacher-width columns, so that it too reaches students of every width.
    """

    def __init__(self, teacher: nn.Module, chain: WeightChain, form: str = "sum") -> None:
        super().__init__()
        if form not in ("sum", "mean"):
            raise ValueError(
                f"JointModel: form must be 'sum' or 'mean', got {form!r}. Choose one of the two."
            )
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
        self.teacher = teacher
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

    def _apply(self, fn: Any, recurse: bool = True) -> JointModel:
        super()._apply(fn, recurse)
        self.plan = self.plan.to(self.weights.device)
        self.refining = self.refining.to(self.weights.device)
        return self

    def student_tensors(self) -> dict[str, Tensor]:
        """The S-Student's parameters, differentiable in chain and teacher."""
        teacher = dict(self.teacher.named_parameters())
        vectors = [teacher[name].flatten() for name in self.vector_names]
        flat = oskt_ext.expand(torch.cat([self.weights, *vectors]), self.plan)
        tensors = expansion.split(flat, self.shapes)
        return {name: tensors[name] if name in tensors else teacher[name] for name in self.supplied}

    def split_weights(self, flat: Tensor) -> dict[str, Tensor]:
        """Named views (M, N, *kernel) of a buffer shaped like `weights`: rows or their gradient."""
        layouts = self._chain.coupling.layouts_of(WEIGHTS)
        return expansion.split(flat, {t.name: self._chain.source_shape(t) for t in layouts})

    def forward(self, images: Tensor) -> tuple[object, object]:
        """(teacher's output, S-Student's output) on one batch."""
        return self.teacher(images), functional_call(
            self.student, self.student_tensors(), (images,)
        )

    def refining_loss(self, scale: float = 1.0) -> Tensor:
        """scale * sum over clustered weights and rows k of |T_k - C_label(k)|^2, a scalar."""
        teacher = dict(self.teacher.named_parameters())
        return oskt_ext.refining_loss(
            [teacher[name] for name in self.refined_names], self.weights, self.refining, scale=scale
        )

    @torch.no_grad()
    def to_chain(self) -> WeightChain:
        """The chain so far: its rows, the teacher's vectors, the S-Student's statistics."""
        chain = copy.copy(self._chain)
        teacher = dict(self.teacher.named_parameters())
        buffers = dict(self.student.named_buffers())
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

    def s_student(self) -> nn.Module:
        """The S-Student as a module of its own, in evaluation mode."""
        return self.to_chain().student(widths=self._chain.widths)


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors]) if tensors else torch.empty(0)
