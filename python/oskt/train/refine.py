"""Stage two: train teacher and weight chain together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from oskt.chain import ChainLadder
from oskt.chain.calibration import calibrate
from oskt.files.checkpoint import provenance, save_model
from oskt.train.joint import JointModel
from oskt.train.loop import Batches, fit
from oskt.train.losses import ReIDLoss, distillation, similarity_distillation
from oskt.train.nested import NestedLadder
from oskt.train.process import World
from oskt.train.recipe import RefineRecipe
from oskt.train.teacher import describe, origin_of, output_sizes

if TYPE_CHECKING:
    from oskt.chain import WeightChain


class JointObjective(nn.Module):
    """The ReID loss of every network, the refining loss and distillation; an Objective of `fit`.

    L = teacher_loss L_ReID(teacher) + anchor KL(before || teacher)
        + alpha (mean over chains of L_refine)
        + sum over students of (L_ReID(student) + distill KL(told || student)
                                + similarity (cosines of told - cosines of student)^2).

    `before` is the teacher as it came here: a copy that is not trained, and part of the state, so
    that a resumed run has the same one. With an anchor students are told by it, which costs nothing
    more and knows better than a teacher at a high rate of training; else by the teacher.

    Args:
        joint: oskt.JointModel, or any module with its interface: in training mode it returns the
            (feature, logits) of the teacher and then of each student (the S-Student of every chain,
            or one per width of the step), and it has `refining_loss(scale)`, `teacher` and
            `s_students()`, those to evaluate. Where it returns fewer rows than there are images,
            the teacher's are of the first images, a student's of the last.
        recipe: alpha and its ramp, distill, temperature, similarity, anchor, the ReID loss.
    """

    def __init__(self, joint: Any, recipe: RefineRecipe) -> None:
        super().__init__()
        self.joint: Any = joint
        self.recipe = recipe
        self.losses = nn.ModuleList(
            ReIDLoss(recipe, classes, dim) for dim, classes in output_sizes(joint, recipe)
        )
        self.before: nn.Module | None = None
        if recipe.anchor:
            self.before = copy.deepcopy(joint.teacher).requires_grad_(False)

    def forward(
        self, images: Tensor, ids: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        recipe = self.recipe
        outputs = self.joint(images)
        told = outputs[0] if self.before is None else self.before(images)
        total = images.new_zeros(())
        parts: dict[str, Tensor] = {}
        for index, ((feature, logits), loss) in enumerate(zip(outputs, self.losses)):
            name, rows = _name(index), slice(-len(feature), None) if index else slice(len(feature))
            one, its_parts = loss(feature, logits, ids[rows])
            total = total + (one if index else recipe.teacher_loss * one)
            parts.update({f"{name}/{part}": value for part, value in its_parts.items()})
            if index and recipe.distill:
                kl = distillation(logits, told[1][rows], temperature=recipe.temperature)
                total = total + recipe.distill * kl
                parts[f"{name}/distillation"] = kl.detach()
            if index and recipe.similarity:
                gap = similarity_distillation(feature, told[0][rows])
                total = total + recipe.similarity * gap
                parts[f"{name}/similarity"] = gap.detach()
        if self.before is not None:
            logits = outputs[0][1]
            kl = distillation(logits, told[1][: len(logits)], temperature=recipe.temperature)
            total = total + recipe.anchor * kl
            parts["teacher/anchor"] = kl.detach()
        if recipe.alpha:
            refining = self.joint.refining_loss(recipe.refining_scale(progress))
            total = total + refining
            parts["refining"] = refining.detach()
        return total, parts

    def scored(self) -> dict[str, nn.Module]:
        networks = [self.joint.teacher, *self.joint.s_students()]
        return {_name(index): network for index, network in enumerate(networks)}


def _name(index: int) -> str:
    """teacher, student, student2, student3, ..."""
    return "teacher" if index == 0 else "student" if index == 1 else f"student{index}"


def _first(recipe: RefineRecipe) -> int:
    """Images of a batch that the teacher sees and its students do not: whole identities, half of
    them. 0 where students are told by the teacher of the step, or half has no two identities."""
    splits = recipe.anchor and recipe.identities >= 4
    return recipe.identities // 2 * recipe.instances if splits else 0


def refine_chain(
    teacher: nn.Module,
    chain: WeightChain | ChainLadder,
    data: Batches,
    recipe: RefineRecipe,
    out: str | Path,
    *,
    parent: str | Path | None = None,
    classifier: bool = True,
    calibration: Callable[[], Iterable[Tensor]] | None = None,
    **options: Any,
) -> Path:
    """Train teacher and chain together; write out/chain.safetensors and out/teacher.safetensors.

    Of a ladder all chains are trained at once: every step runs the teacher once and the students
    of each, and the one file holds them all.

    Args:
        teacher: as in `train_teacher`; trained in place.
        chain: WeightChain.from_teacher(teacher, ...), or several as
            ChainLadder.from_teacher(teacher, ...); the result is a new one.
        data: training batches.
        recipe: for example RECIPES["paper-refine"].
        out: folder of this run.
        parent: the teacher's file; its hash is stored.
        classifier: keep the S-Student's classifier in the file, so that students start with it.
        calibration: of a nested chain: images on which norm statistics are measured at the end
            (see oskt.chain.calibration.calibrate), so that students of every width work at once.
        options: those of `loop.fit`; `evaluate` sees teacher and S-Students, which metrics name
            student, student2, ... from the narrowest.

    Returns:
        Path of the chain file, written by the first process.

    Raises:
        ValueError: a recipe for the other kind of chain. Others as `train_teacher`.

    Source:
        OSKT, arXiv 2511.06016, section 3. Differences: the S-Student runs as a real narrow network
        (the same function); it is evaluated too; distillation and nested chains are ours.
    """
    out = Path(out)
    origin = origin_of(parent)
    chains = chain.chains if isinstance(chain, ChainLadder) else (chain,)
    nested = recipe.chain == "nested"
    joint = (
        NestedLadder(teacher, *chains, random_widths=recipe.random_widths, first=_first(recipe))
        if nested
        else JointModel(teacher, *chains, vectors=recipe.vectors)
    )
    metrics = fit(JointObjective(joint, recipe), data, recipe, out, **options)
    path = out / "chain.safetensors"
    world = World.from_environment(options.get("device"))
    if world.rank == 0:
        meta = describe(teacher, data, recipe, metrics, origin)
        save_model(out / "teacher.safetensors", joint.teacher, meta)
        refined = joint.to_chains()
        if nested and calibration is not None:
            refined = [calibrate(c, calibration, full=c is not refined[-1]) for c in refined]
        for each in refined:
            each.meta = {**each.meta, **provenance(), **meta}
        whole = refined[0] if len(refined) == 1 else ChainLadder(refined)
        whole.save(path, classifier=classifier)
    world.wait()  # nobody reads the files before they are there
    return path
