"""`oskt demo`: the whole method on drawn pedestrians, from nothing to a report.

data -> teacher -> nested chain, and the published one beside it -> students of many sizes, scored
at once -> some of them fine-tuned, beside the same networks from scratch -> report. Every stage
leaves its files; run again, the demo goes on where it stopped.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from oskt import baselines, models, students
from oskt.chain import ChainLadder
from oskt.data import contact_sheet, make_pedestrians
from oskt.demo.presenter import Presenter
from oskt.demo.scales import SCALES, Scale
from oskt.evaluation import Evaluation
from oskt.evaluation.rankings import ranking_lists, spread_queries
from oskt.files.checkpoint import file_hash, load_state, provenance
from oskt.machine import device_name
from oskt.report import Group, ReportData, ResultRow, rankings, read_log, samples, write_report
from oskt.task import ReIDData, example_images
from oskt.train import (
    Recipe,
    RefineRecipe,
    finetune_student,
    refine_chain,
    saliency,
    train_teacher,
)


def run_demo(
    out: str | Path,
    *,
    seed: int = 0,
    device: str | None = None,
    scale: str = "laptop",
    model: str = "resnet",
) -> Path:
    """Run the demo into a folder; returns the path of its report.

    Args:
        out: folder of all stages. A folder with a finished stage goes on after it.
        seed: of the data and of all training.
        device: cpu or cuda; None for the GPU if there is one.
        scale: a key of SCALES[model].
        model: "resnet" or "vit".

    Raises:
        ValueError: the folder holds a demo with other settings, or there is no such scale.
    """
    scales = SCALES[model]
    if scale not in scales:
        raise ValueError(
            f"demo: scale must be {' or '.join(scales)} for model {model}, got {scale!r}. "
            f"Train a large one by the stages: oskt teacher --model {model}."
        )
    return _Demo(Path(out), scales[scale], seed, device).run()


class _Demo:
    def __init__(self, out: Path, scale: Scale, seed: int, device: str | None) -> None:
        self.out, self.scale, self.seed = out, scale, seed
        self.model = scale.network["family"]
        self.present = Presenter(8)
        self.rows: list[ResultRow] = []
        self.evaluations: dict[str, Evaluation] = {}
        self.device = device

    def run(self) -> Path:
        scale, stage = self.scale, self.present.stage
        with stage("Draw a pedestrian data set"):
            self.draw_data()
        with stage("Train the teacher"):
            teacher = self.train("teacher", "teacher", scale.teacher, self.fresh_teacher)
        with stage("Order its channels; train the nested chain: all sizes at once"):
            nested = self.refine("nested", scale.nested)
        with stage("Train the published chain for as many steps, to compare"):
            published = self.refine("published", scale.published)
        with stage(f"Expand both to {len(scale.widths)} sizes and score each at once"):
            self.score_teacher("teacher", teacher, nested)
            for kind in ("nested", "published"):
                refined, _ = students.load_model(self.out / kind / "teacher.safetensors")
                self.score_teacher(f"teacher, {kind}", refined, nested, kind)
            if self.measures_norms:
                self.present.say("norm statistics measured on 512 training images, without labels")
            for label, _ in scale.widths:
                self.at_once(nested, label, "at_once")
                self.at_once(published, label, "published")
        with stage(f"Fine-tune {len(scale.finetuned)} students of the nested chain"):
            for label in scale.finetuned:
                self.finetune(nested, label)
        with stage("Train the same networks from scratch, for as many steps in all"):
            for label in scale.from_scratch:
                self.scratch(nested, label)
        with stage("Write the report"):
            report = write_report(self.out, self.report_data(nested, published))
        self.present.summary(
            self.rows, {"Report": report, "Chain": self.out / "nested" / "chain.safetensors"}
        )
        return report

    # -- stages ---------------------------------------------------------------------------------

    def draw_data(self) -> None:
        root, options = self.out / "data", {**self.scale.data, "seed": self.seed}
        if (root / "spec.json").is_file():
            spec = json.loads((root / "spec.json").read_text())
            _same(self.out, "data set", {k: spec.get(k) for k in options}, options)
        else:
            make_pedestrians(root, **options)
            contact_sheet(root, self.out / "contact_sheet.png")
        self.data = ReIDData(root, self.scale.nested, device=self.device)
        self.present.say(self.data.set.describe())

    def fresh_teacher(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return models.build({**self.scale.network, "num_classes": self.data.num_classes})

    def train(
        self,
        folder: str,
        name: str,
        recipe: Recipe,
        start: Callable[[], nn.Module],
        parent: Path | None = None,
    ) -> nn.Module:
        """A trained network: from its file if the stage is done, else trained (or gone on with)."""
        recipe = replace(recipe, seed=self.seed)
        path = self.out / folder / f"{name}.safetensors"
        if path.is_file():
            _same(self.out, folder, load_state(path)[1].get("recipe"), recipe.to_dict())
            return students.load_model(path)[0]
        stage = train_teacher if name == "teacher" else finetune_student
        stage(
            start(), self.data.training(recipe), recipe, path.parent, parent=parent,
            **self.fit_options(recipe),
        )  # fmt: skip
        return students.load_model(path)[0]

    def fit_options(self, recipe: Recipe) -> dict[str, Any]:
        """A lively bar on a terminal, a line per epoch in a log file; always resumable."""
        lively = sys.stderr.isatty()
        return {
            "evaluate": self.data.scores,
            "evaluate_every": max(1, recipe.epochs // 3),
            "resume": True,
            "report_every": 5 if lively else self.data.steps(recipe) // recipe.epochs,
            "device": self.data.world.device,
        }

    def refine(self, folder: str, recipe: RefineRecipe) -> ChainLadder:
        recipe = replace(recipe, seed=self.seed)
        path = self.out / folder / "chain.safetensors"
        if not path.is_file():
            parent = self.out / "teacher" / "teacher.safetensors"
            teacher, _ = students.load_model(parent)
            start = time.perf_counter()
            data, device = self.data.training(recipe), self.data.world.device
            chain = ChainLadder.from_teacher(
                teacher, example_images(recipe), self.widths_of(recipe), recipe.chain,
                saliency=lambda network: saliency(
                    network, data, recipe, device=device, progress="ranking channels"
                ),
                method=recipe.nesting, parent=file_hash(parent),
            )  # fmt: skip
            self.present.say(
                f"{len(chain.groups)} channel groups traced, checked and grouped in "
                f"{time.perf_counter() - start:.1f} s"
            )
            refine_chain(
                teacher, chain, data, recipe, path.parent, parent=parent,
                calibration=self.data.unlabelled, **self.fit_options(recipe),
            )  # fmt: skip
        chain = ChainLadder.load(path)
        _same(self.out, folder, chain.meta.get("recipe"), recipe.to_dict())
        identity = {
            "nested": "students compute what the full network without the other channels computes",
            "oskt": "exact students of every width equal the S-Student",
        }[chain.base.kind]
        self.present.say(
            f"chain file {path.stat().st_size / 1e6:.2f} MB; {identity}, to "
            f"{chain.verify(quiet=True):.0e}"
        )
        return chain

    def widths_of(self, recipe: RefineRecipe) -> tuple[float, ...]:
        """Where nested chains begin; the one published chain is as wide as the first of them."""
        return self.scale.chain_widths[: None if recipe.chain == "nested" else 1]

    # -- scores ---------------------------------------------------------------------------------

    def add_row(
        self, model: nn.Module, name: str, series: str, width: str, costs: tuple[int, int],
        *, steps: int = 0, seconds: float = 0.0,
    ) -> None:  # fmt: skip
        result = self.data.evaluation(model, keep_features=True)
        self.evaluations[f"{name} {series}"] = result
        self.rows.append(
            ResultRow(
                name,
                series,
                width,
                *costs,
                mAP=result.mAP,
                rank1=result.cmc[0],
                steps=steps,
                seconds=seconds,
                seed=self.seed,
                settings={"mINP": result.mINP},
            )
        )
        self.present.say(
            f"{name:<22} {series:<10} mAP {100 * result.mAP:5.1f}   "
            f"rank-1 {100 * result.cmc[0]:5.1f}"
        )

    def score_teacher(
        self, name: str, teacher: nn.Module, chain: ChainLadder, kind: str | None = None
    ) -> None:
        """The teacher as trained, or as refined together with a chain of this kind."""
        steps = self.data.steps(self.scale.teacher)
        if kind is not None:
            steps += self.data.steps(getattr(self.scale, kind))
        self.add_row(teacher, name, "teacher", "1", chain.costs(chain.groups), steps=steps)

    def student(self, chain: ChainLadder, label: str) -> nn.Module:
        return chain.student(width=dict(self.scale.widths)[label])

    @property
    def measures_norms(self) -> bool:
        """Layer norms keep no statistics."""
        return bool(self.model == "resnet")

    def at_once(self, chain: ChainLadder, label: str, series: str) -> None:
        start = time.perf_counter()
        student = self.student(chain, label)
        seconds = time.perf_counter() - start
        if self.measures_norms:
            self.data.recalibrate(student)
        costs = chain.costs(students.widths_of(student))
        self.add_row(student, f"student {label}", series, label, costs, seconds=seconds)

    def finetune(self, chain: ChainLadder, label: str) -> None:
        parent = self.out / "nested" / "chain.safetensors"
        folder = f"finetune-{_slug(label)}"
        start = time.perf_counter()
        student = self.train(
            folder, "student", self.scale.student, lambda: self.student(chain, label), parent
        )
        self.add_row(
            student, f"student {label}", "finetuned", label,
            chain.costs(students.widths_of(student)),
            steps=self.data.steps(self.scale.student), seconds=time.perf_counter() - start,
        )  # fmt: skip

    def scratch(self, chain: ChainLadder, label: str) -> None:
        """The same network from random numbers, as long as refinement and fine-tuning together."""
        epochs = self.scale.nested.epochs + self.scale.student.epochs
        recipe = replace(self.scale.scratch, epochs=epochs)
        start = time.perf_counter()
        model = self.train(
            f"scratch-{_slug(label)}", "student", recipe, lambda: self.fresh_student(chain, label)
        )
        self.add_row(
            model, f"student {label}", "scratch", label, chain.costs(students.widths_of(model)),
            steps=self.data.steps(recipe), seconds=time.perf_counter() - start,
        )  # fmt: skip

    def fresh_student(self, chain: ChainLadder, label: str) -> nn.Module:
        widths = chain.resolve(dict(self.scale.widths)[label])
        return baselines.scratch(self.fresh_teacher(), chain.coupling, widths, seed=self.seed)

    # -- report ---------------------------------------------------------------------------------

    def report_data(self, nested: ChainLadder, published: ChainLadder) -> ReportData:
        runs = {name: name for name in ("teacher", "nested", "published")}
        runs |= {f"{n}, fine-tuned": f"finetune-{_slug(n)}" for n in self.scale.finetuned}
        runs |= {f"{n}, from scratch": f"scratch-{_slug(n)}" for n in self.scale.from_scratch}
        groups = tuple(
            Group(
                name,
                tuple(int(n) for n in np.bincount(clustering.labels)),
                published.meta["clustering"]["loss"].get(name),
                tuple(reversed(nested.meta["clustering"]["adds"][name])),
            )
            for name, clustering in published.base.clusterings.items()
        )
        return ReportData(
            title="One teacher, students of every size",
            rows=tuple(self.rows),
            curves={name: read_log(self.out / run / "log.jsonl") for name, run in runs.items()},
            groups=groups,
            rankings=self.ranking_pictures(),
            samples=samples(self.data.set.train),
            facts=self.facts(),
        )

    def ranking_pictures(self) -> tuple[Any, ...]:
        query, gallery = self.data.set.query, self.data.set.gallery
        sizes = self.scale.finetuned
        shown = {"teacher, nested teacher": "teacher"}
        shown |= {f"student {label} at_once": f"student {label}" for label in sizes[:2]}
        narrow = self.evaluations[f"student {sizes[0]} at_once"]
        chosen = spread_queries(narrow.average_precision, 6)
        lists = {}
        for key, title in shown.items():
            features = self.evaluations[key].features
            assert features is not None
            lists[title] = ranking_lists(*features, query, gallery, k=8, queries=chosen)
        return rankings(lists, query, gallery)

    def facts(self) -> dict[str, Any]:
        scale, measured = self.scale, ""
        if self.measures_norms:
            measured = ", norm statistics measured on 512 training images without labels"
        return {
            "Command": f"oskt demo --model {self.model} --out {self.out} --seed {self.seed}",
            "Data": "drawn pedestrians (oskt data make), not a real data set: "
            + json.dumps({**scale.data, "seed": self.seed}),
            "Steps": {
                "teacher": self.data.steps(scale.teacher),
                "each chain, once for all sizes": self.data.steps(scale.nested),
                "fine-tuning, per size": self.data.steps(scale.student),
                "from scratch, per size": self.data.steps(scale.nested)
                + self.data.steps(scale.student),
            },
            "At once": f"read from a nested chain{measured}, no step of training; Published: "
            "expanded from a chain of the published kind",
            "Nested chains": f"from the widths {', '.join(map(str, scale.chain_widths))} on, "
            f"distillation {scale.nested.distill} at temperature {scale.nested.temperature}, "
            f"similarity {scale.nested.similarity}, anchor {scale.nested.anchor}",
            "Published chain": f"width {scale.chain_widths[0]}, alpha {scale.published.alpha}, "
            f"distillation {scale.published.distill} (ours)",
            "Machine": f"{device_name(self.data.world.device)}, "
            f"{torch.get_num_threads()} threads, {self.data.world.device}",
            "Versions": provenance()["versions"],
            "Wall time, s": {name: round(s, 1) for name, s in self.present.seconds.items()},
        }


def _slug(label: str) -> str:
    return label.replace("/", "_")


def _same(out: Path, what: str, found: Any, wanted: Any) -> None:
    if json.loads(json.dumps(found)) != json.loads(json.dumps(wanted)):
        raise ValueError(
            f"demo: out must be a new folder or hold a demo of the same settings, got another "
            f"{what} in {out}. Choose another --out, or delete the folder."
        )
