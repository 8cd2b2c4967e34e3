"""Makes parts: each once, in a folder that is named after it; a stopped training goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oskt import baselines, models, students
from oskt.chain import ChainLadder
from oskt.compare.digits import Digits
from oskt.compare.parts import (
    AnyChain,
    Data,
    Moved,
    Part,
    Start,
    Student,
    Teacher,
    digest,
    folder_name,
)
from oskt.compare.scales import built
from oskt.compare.training import live, train
from oskt.coupling import Coupling
from oskt.coupling.grouping import trace_coupling
from oskt.data import make_pedestrians
from oskt.files.checkpoint import file_hash, save_model, write_atomic
from oskt.task import ReIDData, example_images
from oskt.train import Recipe, finetune_student, refine_chain, saliency, train_teacher
from oskt.widths import macs, parameters

# A start from the teacher and its coupling, or from a chain alone (see oskt.baselines).
TEACHER_STARTS: dict[str, Callable[..., nn.Module]] = {
    "scratch": baselines.scratch,
    "weight-selection": baselines.weight_selection,
    "depgraph": baselines.depgraph,
    "folding": baselines.folding,
}
CHAIN_STARTS: dict[str, Callable[..., nn.Module]] = {
    "published": baselines.published,
    "oskt": baselines.oskt,
}


class Workshop:
    """The parts of a comparison in one folder.

    Args:
        root: folder of all parts.
        device: cpu or cuda; None for the GPU if there is one.
        end: time (monotonic clock) after which a training stops, its state saved, as by Ctrl-C.
    """

    def __init__(self, root: Path, device: str | None = None, end: float = math.inf) -> None:
        self.root = root
        self.device = device
        self.end = end
        self._tasks: dict[str, ReIDData | Digits] = {}
        self._couplings: dict[str, Coupling] = {}

    def folder(self, part: Part) -> Path:
        """The folder of a part; what the part stands for is written there in full."""
        folder = self.root / folder_name(part)
        if not (folder / "part.json").is_file():
            text = json.dumps(asdict(part), indent=1, default=list)
            write_atomic(folder / "part.json", text.encode())
        return folder

    # -- parts ----------------------------------------------------------------------------------

    def task(self, data: Data, recipe: Recipe) -> ReIDData | Digits:
        """Batches and scores of a data set, and images for statistics, as a recipe has them."""
        key = f"{digest(data)} {recipe.height}x{recipe.width}"
        if key not in self._tasks:
            while len(self._tasks) >= 3:  # decoded images stay in memory
                self._tasks.pop(next(iter(self._tasks)))
            self._tasks[key] = self._open(data, recipe)
        return self._tasks[key].for_recipe(recipe)

    def _open(self, data: Data, recipe: Recipe) -> ReIDData | Digits:
        if data.name == "digits":
            return Digits(recipe, device=self.device)
        source = data.root
        if not source:
            folder = self.root / folder_name(replace(data, few_shot=None))
            if not (folder / "spec.json").is_file():
                make_pedestrians(folder, world=data.name, **data.options, progress=live())
            source = str(folder)
        if data.few_shot is not None:
            ratio, seed = data.few_shot
            source += f"{',' if '?' in source else '?'}few_shot={ratio:g},seed={seed}"
        return ReIDData(source, recipe, device=self.device)

    def teacher(self, part: Teacher) -> Path:
        """The file of a teacher."""
        folder = self.folder(part)
        path = folder / "teacher.safetensors"
        if not path.is_file():
            task = self.task(part.data, part.recipe)
            model = self._fresh(part, task.num_classes)
            if part.trained:
                self._train(train_teacher, model, task=task, recipe=part.recipe, folder=folder)
            else:
                save_model(path, model, {"spec": model.spec})
        return path

    def _fresh(self, part: Teacher, classes: int) -> Any:
        torch.manual_seed(part.recipe.seed)
        if part.start is None:
            return built(part.network, classes)
        model, _ = students.load_model(self.teacher(part.start))
        if part.start.data != part.data:
            students.replace_classifier(model, classes)
        return model

    def chain(self, part: AnyChain) -> Path:
        """The file of a chain; the refined teacher lies beside it."""
        folder = self.folder(part)
        path = folder / "chain.safetensors"
        if not path.is_file():
            parent, teacher, ladder = self._unrefined(part)
            if part.recipe is None:
                ladder.save(path, classifier=True)
            else:
                task = self.task(part.data, part.recipe)
                self._train(
                    refine_chain, teacher, ladder, task=task, recipe=part.recipe, folder=folder,
                    parent=parent,
                )  # fmt: skip
        return path

    def _unrefined(self, part: AnyChain) -> tuple[Path, nn.Module, ChainLadder]:
        """The file that chains are made from, the teacher to train, and the chains before that."""
        if isinstance(part, Moved):
            parent = self.chain(part.chain)
            before = ChainLadder.load(parent)
            networks = [chain.student(width=1.0) for chain in before.chains]
            torch.manual_seed(part.recipe.seed)
            classes = self.task(part.data, part.recipe).num_classes
            for network in networks:
                students.replace_classifier(network, classes)
            return parent, networks[-1], before.transferred(networks)
        parent = self.teacher(part.teacher)
        teacher, _ = students.load_model(parent)
        recipe = part.recipe or part.teacher.recipe
        task, suited = _suited(self.task(part.data, recipe), recipe)
        method = part.method or (part.recipe.nesting if part.recipe else None)
        ladder = ChainLadder.from_teacher(
            teacher, example_images(recipe), (part.width, *part.further), part.kind, rows=part.rows,
            method=method, seed=recipe.seed, parent=file_hash(parent),
            saliency=lambda network: saliency(
                network, task.training(suited), suited, device=self.device
            ),
        )  # fmt: skip
        return parent, teacher, ladder

    def start(self, part: Start, data: Data) -> nn.Module:
        """A student as it starts, its classifier fit for `data`, its statistics measured there.

        Two starts keep their statistics: random numbers, which have none to measure, and the
        published one, whose code builds its students' norms anew.
        """
        recipe, network = part.teacher.recipe, part.teacher.network
        path = self.source(part)
        if isinstance(part.source, AnyChain):
            ladder = ChainLadder.load(path)
            widths = ladder.resolve(widths=part.size.widths(ladder.coupling, network))
            student = CHAIN_STARTS[part.how](ladder.chain_for(widths), widths, seed=part.seed)
        else:
            teacher, _ = students.load_model(path)
            coupling = self.coupling(teacher, recipe)
            widths = part.size.widths(coupling, network)
            student = TEACHER_STARTS[part.how](teacher, coupling, widths, seed=part.seed)
        # Statistics are measured on images as those that the weights were trained on.
        seen = part.source.recipe if isinstance(part.source, AnyChain) else None
        task = self.task(data, seen or recipe)
        if part.source.data != data:
            torch.manual_seed(part.seed)
            students.replace_classifier(student, task.num_classes)
        if part.how not in ("scratch", "published"):
            task.recalibrate(student)
        return student.cpu()

    def source(self, part: Start) -> Path:
        """The file that a student is made from."""
        source = part.source
        return self.chain(source) if isinstance(source, AnyChain) else self.teacher(source)

    def student(self, part: Student, *, curve: bool = False) -> Path:
        """The file of a trained student; `curve` scores it a few times on the way."""
        folder = self.folder(part)
        path = folder / "student.safetensors"
        if not path.is_file():
            assert part.recipe is not None
            student = self.start(part.start, part.data)
            options: dict[str, Any] = {
                "task": self.task(part.data, part.recipe), "recipe": part.recipe,
                "folder": folder, "curve": curve, "parent": self.source(part.start),
            }  # fmt: skip
            if part.told_by is None:
                self._train(finetune_student, student, **options)
            else:
                teacher, _ = students.load_model(self.teacher(part.told_by))
                distil, told = baselines.distill_student, dict[str, Any](part.telling)
                self._train(distil, student, teacher, **told, **options)
        return path

    def _train(self, *made: Any, task: Any, recipe: Recipe, **options: Any) -> None:
        """Run a stage, given first, with the networks that follow it."""
        task, recipe = _suited(task, recipe)
        train(*made, task=task, recipe=recipe, end=self.end, device=self.device, **options)

    # -- sizes and scores -----------------------------------------------------------------------

    def coupling(self, model: nn.Module, recipe: Recipe) -> Coupling:
        """The channel groups of a network, traced once for all that have its spec."""
        key = json.dumps([model.spec, recipe.height, recipe.width], sort_keys=True)
        if key not in self._couplings:
            self._couplings[key] = trace_coupling(model.cpu(), example_images(recipe))
        return self._couplings[key]

    def at_once(self, part: Start, data: Data) -> dict[str, Any]:
        """Scores and costs of a student before any training of its own."""
        task = self.task(data, part.teacher.recipe)
        return self._scored(
            self.folder(part) / f"scores-{digest(data)}.json", lambda: self.start(part, data),
            task, part.teacher,
        )  # fmt: skip

    def trained(self, part: Student) -> dict[str, Any]:
        """Scores and costs of a student after it; trains it first if need be."""
        assert part.recipe is not None
        return self._scored(
            self.folder(part) / "scores.json",
            lambda: students.load_model(self.student(part))[0],
            self.task(part.data, part.recipe), part.start.teacher,
        )  # fmt: skip

    def whole(self, part: Teacher | AnyChain) -> dict[str, Any]:
        """Scores and costs of the full width: a teacher, or what refinement made of it."""
        if isinstance(part, Teacher):
            teacher, path = part, self.teacher(part)
        else:
            teacher, path = part.teacher, self.chain(part).with_name("teacher.safetensors")
        return self._scored(
            self.folder(part) / "scores.json", lambda: students.load_model(path)[0],
            self.task(part.data, teacher.recipe), teacher,
        )  # fmt: skip

    def _scored(
        self,
        path: Path,
        make: Callable[[], nn.Module],
        task: ReIDData | Digits,
        teacher: Teacher,
    ) -> dict[str, Any]:
        """The content of a scores file, which is written at the first call."""
        if not path.is_file():
            model = make()
            recipe = teacher.recipe
            whole = built(teacher.network, 1)
            coupling = self.coupling(whole, recipe)
            widths = students.widths_of(model)
            found = {
                "scores": task.scores(model),
                "parameters": parameters(coupling, widths, models.head_of(whole)),
                "macs": macs(coupling, widths),
            }
            write_atomic(path, json.dumps(found).encode())
        content: dict[str, Any] = json.loads(path.read_text())
        return content


def _suited(task: Any, recipe: Recipe) -> tuple[Any, Recipe]:
    """A data set of few identities makes batches of as many."""
    recipe = replace(recipe, identities=min(recipe.identities, task.num_classes))
    return task.for_recipe(recipe), recipe
