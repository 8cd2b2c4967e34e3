"""Training a student on what its teacher says: logits, and the norm and direction of features."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oskt.baselines.starts import seeded
from oskt.files.checkpoint import save_model
from oskt.train.loop import Batches, fit
from oskt.train.losses import ReIDLoss, distillation
from oskt.train.process import World
from oskt.train.recipe import Recipe, flag
from oskt.train.teacher import describe, origin_of, output_sizes


@dataclass(frozen=True, kw_only=True)
class DistillRecipe(Recipe):
    """How a student is trained under a teacher: a Recipe and the weights of what it is told.

    Source:
        KD: Hinton et al. 2015; KD++: Wang et al., arXiv 2305.17007, whose code uses distill 16 at
        temperature 4 and norm_direction 1 on CIFAR-100. Difference: no warm-up of the KL.

    Example:
        >>> DistillRecipe(norm_direction=1.0).distill
        4.0
    """

    distill: float = flag(4.0, "weight of KL(teacher || student), >= 0; temperature^2 is usual")
    temperature: float = flag(2.0, "temperature of that KL, > 0")
    norm_direction: float = flag(0.0, "weight of the norm and direction loss, >= 0; 0 = left out")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("distill", "norm_direction"):
            finite = 0 <= getattr(self, name) < float("inf")
            self._require(finite, name, ">= 0 and finite", "Use 0 to leave it out.")
        finite = 0 < self.temperature < float("inf")
        self._require(finite, "temperature", "> 0 and finite", "2 is usual.")


def norm_direction_loss(
    student: Tensor, teacher: Tensor, ids: Tensor, class_means: Tensor
) -> Tensor:
    """The ND loss of KD++: large features that point to the teacher's mean of their class.

    mean over i of 1 - s_i . e_i / max(|s_i|, |t_i|), e_i = m / |m| with m the mean of class id_i.
    A student's feature that is longer than its teacher's is judged by its direction alone.

    Args:
        student: [B, F] floating point, projected to the teacher's length.
        teacher: [B, F], features of the same images; detached here.
        ids: [B] int64, 0 <= id < classes.
        class_means: [classes, F]; a class of mean zero (never seen) gives the constant 1.

    Returns:
        Scalar in [0, 2], float32 (float64 for a float64 student), differentiable in `student`.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        Wang et al., arXiv 2305.17007, and its code, which loops over the samples.

    Example:
        >>> s, t = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
        >>> norm_direction_loss(s, t, torch.tensor([0]), torch.tensor([[2.0, 0.0]])).item()
        0.25
    """
    shapes = [tuple(tensor.shape) for tensor in (student, teacher, ids, class_means)]
    if student.dim() != 2 or shapes[:3] != [shapes[0]] * 2 + [shapes[0][:1]] or (
        class_means.dim() != 2 or shapes[3][1] != shapes[0][1]
    ):  # fmt: skip
        raise ValueError(
            "norm_direction_loss: student, teacher, ids and class_means must be of shapes (B, F), "
            f"(B, F), (B,) and (classes, F), got {', '.join(map(str, shapes))}. "
            "Project the student's feature to the teacher's length."
        )
    with torch.autocast(student.device.type, enabled=False):
        student = student if student.dtype == torch.float64 else student.float()
        teacher = teacher.detach().to(student.dtype)
        ids = ids.to(student.device, non_blocking=True)
        means = class_means.detach().to(student).index_select(0, ids)
        length = torch.maximum(student.norm(dim=1), teacher.norm(dim=1)).clamp_min(1e-12)
        return (1 - (student * F.normalize(means, dim=1)).sum(1) / length).mean()


class TeacherCopy(nn.Module):
    """A copy of a network that only speaks: (feature, logits), without gradients.

    Its batch norms use the running statistics, although it answers in the training form. So what it
    says of an image is what it was trained and scored to say, whatever else is in the batch, and
    nothing about it changes. Statistics of the batch would make the target depend on the other
    images, and on how hard the student's recipe erases them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> TeacherCopy:
        super().train(False)
        self.network.training = True  # of the network alone: what form its outputs have
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        feature, logits = self.network(images)
        return feature, logits


class DistilledObjective(nn.Module):
    """The ReID loss of one network and what its teacher adds; an Objective of `fit`.

    L = L_ReID + distill KL(teacher || student) + norm_direction ND(P student, teacher)

    The features are those before BNNeck. P is a linear layer, trained along, where the student's
    feature is not as long as the teacher's, else the identity; it is no part of the student.

    Args:
        network: the student; trained in place.
        teacher: it is copied and never changes. Both return (feature, logits) of the same classes.
        recipe: the weights of the terms, and the ReID loss.
        class_means: [classes, F] of the teacher (see `class_means`), for the ND term.

    Raises:
        TypeError: the outputs of a model are others.
        ValueError: different classes, or an ND term without class means.

    Source:
        KD: Hinton et al. 2015. KD++: Wang et al., arXiv 2305.17007. Differences: the feature is the
        one before BNNeck; its code projects by batch norm, dropout and linear.
    """

    class_means: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module,
        recipe: DistillRecipe,
        class_means: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.teacher = TeacherCopy(teacher)
        self.recipe = recipe
        ((feature_dim, classes),) = output_sizes(network, recipe)
        ((teacher_dim, teacher_classes),) = output_sizes(self.teacher, recipe)
        if classes != teacher_classes:
            raise ValueError(
                f"DistilledObjective: teacher and network must tell the same identities apart, got "
                f"{teacher_classes} and {classes} classes. Train the teacher on the same data."
            )
        self.loss = ReIDLoss(recipe, classes, feature_dim)
        self.projection: nn.Module = nn.Identity()
        if recipe.norm_direction:
            expected = (classes, teacher_dim)
            if class_means is None or tuple(class_means.shape) != expected:
                got = None if class_means is None else tuple(class_means.shape)
                raise ValueError(
                    f"DistilledObjective: class_means must be of shape {expected} with "
                    f"norm_direction {recipe.norm_direction}, got {got}. "
                    "Compute them: oskt.baselines.distill.class_means(teacher, data, recipe)."
                )
            if feature_dim != teacher_dim:
                with seeded(recipe.seed, torch.device("cpu")):
                    self.projection = nn.Linear(feature_dim, teacher_dim, bias=False)
        self.register_buffer("class_means", class_means)

    def forward(
        self, images: Tensor, ids: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        recipe = self.recipe
        feature, logits = self.network(images)
        total, parts = self.loss(feature, logits, ids)
        teacher_feature, teacher_logits = self.teacher(images)
        if recipe.distill:
            kl = distillation(logits, teacher_logits, temperature=recipe.temperature)
            total = total + recipe.distill * kl
            parts["distillation"] = kl.detach()
        if self.class_means is not None and recipe.norm_direction:
            projected = self.projection(feature)
            nd = norm_direction_loss(projected, teacher_feature, ids, self.class_means)
            total = total + recipe.norm_direction * nd
            parts["norm_direction"] = nd.detach()
        return total, parts

    def scored(self) -> dict[str, nn.Module]:
        return {"": self.network}


@torch.no_grad()
def class_means(
    teacher: nn.Module,
    data: Batches,
    recipe: Recipe,
    *,
    device: str | torch.device | None = None,
) -> Tensor:
    """Mean feature (before BNNeck) of every class over the first epoch of the training batches.

    Args:
        teacher: returns (feature, logits) in training mode; left untouched.
        data: training batches, augmented as the student will see them.
        recipe: its image size is read.
        device: None for the GPU of this process, else the CPU. Processes add up their shares.

    Returns:
        float32 [classes, F] on the device; a class that the epoch leaves out has mean zero.

    Source:
        KD++ (arXiv 2305.17007) takes the mean over the training set.
    """
    world = World.from_environment(device)
    world.join()
    frozen = TeacherCopy(teacher).to(world.device)
    ((feature_dim, classes),) = output_sizes(frozen, recipe)
    sums = torch.zeros(classes, feature_dim, dtype=torch.float64, device=world.device)
    counts = torch.zeros(classes, 1, dtype=torch.float64, device=world.device)
    for images, ids, _ in data.batches(1):
        feature, _ = frozen(images.to(world.device))
        members = F.one_hot(ids.to(world.device), classes).T.double()
        sums += members @ feature.double()  # a product: index_add is not repeatable on a GPU
        counts += members.sum(1, keepdim=True)
    world.average([sums, counts])
    return torch.where(counts > 0, sums / counts, 0.0).float()


def distill_student(
    student: nn.Module,
    teacher: nn.Module,
    data: Batches,
    recipe: Recipe,
    out: str | Path,
    *,
    weight: float = 4.0,
    temperature: float = 2.0,
    norm_direction: float = 0.0,
    parent: str | Path | None = None,
    **options: Any,
) -> Path:
    """Train a student under its teacher and write it alone to out/student.safetensors.

    Args:
        student: of any size and from any start; trained in place. `student.spec` and
            `student.widths`, if there, are stored.
        teacher: trained on the same identities; left untouched.
        data: training batches.
        recipe: for example RECIPES["paper-student"].
        out: folder of this run.
        weight: of KL(teacher || student), >= 0; 0 leaves it out.
        temperature: of the KL, > 0.
        norm_direction: weight of the ND loss, >= 0. Above 0, the teacher first runs over an epoch
            for its class means; 1, with weight 16 at temperature 4, is KD++.
        parent: file that the student was made from; its hash is stored.
        options: those of `loop.fit`. A resumed run must have the same three numbers.

    Returns:
        Path of the file, written by the first process.

    Raises:
        As `train_teacher`, and ValueError: numbers out of range, or a teacher of other classes.

    Notes:
        A step costs the teacher's forward on top; state.pt holds teacher and projection too.
    """
    out, origin = Path(out), origin_of(parent)
    told = DistillRecipe(
        **{spec.name: getattr(recipe, spec.name) for spec in fields(Recipe)},
        distill=weight,
        temperature=temperature,
        norm_direction=norm_direction,
    )
    means = None
    if norm_direction:
        means = class_means(teacher, data, recipe, device=options.get("device"))
    metrics = fit(DistilledObjective(student, teacher, told, means), data, told, out, **options)
    path = out / "student.safetensors"
    world = World.from_environment(options.get("device"))
    if world.rank == 0:
        numbers = {"weight": weight, "temperature": temperature, "norm_direction": norm_direction}
        meta = describe(student, data, recipe, metrics, origin)
        save_model(path, student, {**meta, "distillation": numbers})
    world.wait()  # nobody reads the file before it is there
    return path
