"""How long a table will take, before it is started: a rough guess from a few steps here."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import nn

from oskt.compare.cells import Cell
from oskt.compare.parts import (
    Data,
    Moved,
    Student,
    Teacher,
    Trained,
    folder_name,
    trained_parts,
)
from oskt.compare.scales import SIZES, Scale, built
from oskt.compare.workshop import Workshop
from oskt.data import read_data
from oskt.report.duration import duration_text
from oskt.train import Recipe, World
from oskt.train.losses import ReIDLoss
from oskt.widths import macs

DRAW_S = 0.006  # a picture of 128 x 64, of all processes
RANDOM_WIDTH = 0.5  # work of a student of a nested chain, as a share of its full width's
FORWARD = 1 / 3  # of a training step
TEST_IMAGES = 1500


class Estimate:
    """Seconds of cells, from the time of a training step at two sizes on this machine.

    A step takes a + b * MACs; parts that are already made cost nothing, and each is counted once.
    """

    def __init__(self, scale: Scale, workshop: Workshop) -> None:
        self.scale = scale
        self.workshop = workshop
        self._counted: set[str] = set()
        self._images: dict[str, int] = {}
        self._cost: dict[tuple[str, str], float] = {}
        size = SIZES["S1"]
        whole, small = dict(scale.network), {**scale.network}
        small["in_planes"] = max(1, round(whole["in_planes"] * size.share))
        times = [
            _step_seconds(network, scale.student, workshop.device) for network in (small, whole)
        ]
        work = [self._macs(network, None) for network in (small, whole)]
        self._slope = max(0.0, (times[1] - times[0]) / max(work[1] - work[0], 1))
        self._fixed = max(times[0] - self._slope * work[0], 0.0)

    def show(self, cells: Sequence[Cell], left: Collection[int], console: Console) -> None:
        """List the cells, those in `left` (by id) with their seconds, and the sum."""
        total = 0.0
        for cell in cells:
            seconds = self.seconds(cell) if id(cell) in left else 0.0
            total += seconds
            state = f"about {duration_text(seconds)}" if id(cell) in left else "found"
            labels = (cell.scenario, cell.variant, cell.method, cell.size, cell.budget)
            last = [f"seed {cell.seed}", *([f"rate {cell.rate:g}"] if cell.rate else [])]
            text = "  ".join([*filter(None, labels), *last])
            console.print(f"{text:<60}  {state}", highlight=False, soft_wrap=True)
        console.print(
            f"{len(cells)} cells, {len(left)} to find: about {duration_text(total)} on this machine"
        )

    def seconds(self, cell: Cell) -> float:
        """What a cell adds to those asked for before it."""
        new = [
            part for part in trained_parts(cell.part)
            if folder_name(part) not in self._counted and not self._made(part)
        ]  # fmt: skip
        self._counted |= {folder_name(part) for part in new}
        scored = 2 * TEST_IMAGES / 64 * FORWARD * self._step(cell.part)
        return sum(map(self._training, new)) + scored

    def _made(self, part: Trained) -> bool:
        folder = self.workshop.root / folder_name(part)
        return folder.is_dir() and any(folder.glob("*.safetensors"))

    def _training(self, part: Trained) -> float:
        recipe = part.recipe
        assert recipe is not None
        data = part.data
        batch = recipe.identities * recipe.instances
        steps = recipe.epochs * max(1, self._training_images(data) // batch)
        drawing = self._drawing(data)
        return drawing + steps * self._step(part) * batch / 64

    def _step(self, part: Trained) -> float:
        """Seconds of a training step of 64 images."""

        def network(macs: float) -> float:
            return self._fixed + self._slope * macs

        teacher = part.start.teacher if isinstance(part, Student) else part
        teacher = teacher if isinstance(teacher, Teacher) else teacher.teacher
        whole = self._macs(teacher.network, None)
        if isinstance(part, Teacher):
            return network(whole)
        if isinstance(part, Student):
            told = FORWARD * network(whole) if part.told_by else 0.0
            return told + network(self._macs(teacher.network, part))
        if part.recipe is None:
            return network(whole)
        seconds = FORWARD * network(whole) if part.recipe.anchor else 0.0
        chain = part.chain if isinstance(part, Moved) else part
        if chain.kind == "oskt":
            return seconds + network(whole) + network(whole * chain.width**2)
        # See Rota: every chain of a ladder runs two students, the widest shares its images.
        *narrow, widest = (whole * end**2 for end in (*chain.further, 1.0))
        students = (2 if narrow else 1) + part.recipe.random_widths
        share = 1 / 2 if narrow and part.recipe.anchor else 1.0
        seconds += share * (network(widest) + students * network(widest * RANDOM_WIDTH))
        for reach in narrow:
            seconds += students * network(reach * RANDOM_WIDTH)
        return seconds

    def _macs(self, network: Mapping[str, Any], student: Student | None) -> float:
        size = student.start.size if student else None
        key = (repr(sorted(network.items())), repr(size))
        if key not in self._cost:
            recipe = self.scale.student
            coupling = self.workshop.coupling(built(network, 1), recipe)
            widths = size.widths(coupling, network) if size else {}
            self._cost[key] = macs(coupling, widths)
        return self._cost[key]

    def _training_images(self, data: Data) -> int:
        key = data.root or data.name
        if key not in self._images:
            if data.name == "digits":
                self._images[key] = 1197
            elif data.root:
                self._images[key] = len(read_data(data.root).train)
            else:
                self._images[key] = data.options["train_ids"] * data.options["images_per_id"]
        ratio = data.few_shot[0] if data.few_shot else 1.0
        return round(self._images[key] * ratio)

    def _drawing(self, data: Data) -> float:
        """Seconds of drawing a world that no cell before has needed."""
        if data.root or data.name == "digits" or f"drawn {data.name}" in self._counted:
            return 0.0
        self._counted.add(f"drawn {data.name}")
        if any(self.workshop.root.glob(f"data-{data.name}-*")):
            return 0.0
        options = data.options
        pictures = (options["train_ids"] + options["test_ids"]) * options["images_per_id"]
        pixels = options["height"] * options["width"] / (128 * 64)
        return DRAW_S * pictures * max(pixels, 0.5)


def _step_seconds(network: Mapping[str, Any], recipe: Recipe, device: str | None) -> float:
    """Time of a training step of 64 images: the least of a few, as on an idle machine."""
    place = World.from_environment(device).device
    model: nn.Module = built(network, 200).to(place).train()
    people = 16 if recipe.height * recipe.width <= 64 * 64 else 2  # large ones need much memory
    ids = torch.arange(people, device=place).repeat_interleave(4)
    images = torch.randn(len(ids), 3, recipe.height, recipe.width, device=place)
    times = []
    loss: ReIDLoss | None = None
    for _ in range(6):
        start = time.perf_counter()
        feature, logits = model(images)
        loss = loss or ReIDLoss(recipe, 200, feature.shape[1]).to(place)
        loss(feature, logits, ids)[0].backward()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        times.append(time.perf_counter() - start)
    return min(times) * 64 / len(ids)
