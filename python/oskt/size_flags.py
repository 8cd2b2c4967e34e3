"""Which student of a chain the flags of a command ask for, and tables of sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from oskt.chain import WeightChain
from oskt.flags import SizeOptions
from oskt.ladder import ChainLadder
from oskt.pipeline import ReIDData
from oskt.train import Recipe, World
from oskt.widths import presets, sensitivity
from oskt.widths.latency import RUNTIMES, Latency, Meter
from oskt.widths.shapes import Curves

SHARES = tuple(k / 8 for k in range(1, 9))


@dataclass(frozen=True)
class Answer:
    """Widths that a chain gives, and their latency if it was asked for."""

    chain: WeightChain
    widths: dict[str, int]
    latency: Latency | None = None

    def __str__(self) -> str:
        parameters, macs = self.chain.costs(self.widths)
        memory = self.chain.memory(self.widths)
        text = f"{parameters:,} parameters, {macs / 1e6:,.1f} M MACs, {memory / 1e6:,.2f} MB"
        return f"{text}, {self.latency}" if self.latency else text

    def measured(self) -> dict[str, Any]:
        """What a student's file says of its latency; empty if none was measured."""
        return {"latency": self.latency.to_json()} if self.latency else {}

    def table(self) -> Table:
        """Every group's width."""
        table = Table("channel group", "width", "teacher N", "share")
        for name, size in self.chain.groups.items():
            width = self.widths[name]
            table.add_row(name, str(width), str(size), f"{width / size:.3f}")
        return table


def ask(
    ladder: ChainLadder, size: SizeOptions, device: str | None = None, **pixels: int | None
) -> Answer:
    """The widths that a ladder of chains gives for the flags of a command.

    Args:
        ladder: of one chain or several.
        size: what is asked for.
        device: where latency is measured; default: the GPU if there is one.
        pixels: height and width of images, if not as trained.

    Raises:
        ValueError: see Sizes.resolve.
    """
    chain = ladder.chains[0]
    meter = None
    if size.latency_ms is not None:
        place = World.from_environment(device if size.runtime == "torch" else "cpu").device
        meter = Meter(chain, str(place), timed=RUNTIMES[size.runtime])
    widths = ladder.resolve(
        size.width, dict(map(_assignment, size.group)) if size.group else None, size.preset,
        params=size.params, macs=size.macs, memory_mb=size.memory_mb, latency_ms=size.latency_ms,
        device=meter or "cpu", shape=_shape(chain, size, device, pixels),
    )  # fmt: skip
    return Answer(chain, widths, meter.latency(widths) if meter else None)


def _shape(
    chain: WeightChain, size: SizeOptions, device: str | None, pixels: Mapping[str, int | None]
) -> str | Curves:
    if (size.shape == "measured") != (size.shape_data is not None):
        raise ValueError(
            f"--shape-data must come with --shape measured and not without, got --shape "
            f"{size.shape} and --shape-data {size.shape_data}. Give both or none."
        )
    if size.shape_data is None:
        return size.shape
    data = open_data(chain.meta, size.shape_data, device, **pixels)
    images = torch.cat(list(data.unlabelled(128)))
    return sensitivity.measure(chain, images.to(chain.statistics))


def size_table(ladder: ChainLadder) -> Table:
    """The presets that fit the network, and eighths of the teacher, with what they cost."""
    chain = ladder.chains[0]
    table = Table("size", "parameters", "MACs", "MB", "")
    for label, widths in _sizes(ladder):
        parameters, macs = ladder.costs(widths)
        narrower = any(widths[g] < n for g, n in chain.widths.items())
        note = "narrower than trained" if narrower else ""
        memory = f"{chain.memory(widths) / 1e6:,.2f}"
        table.add_row(label, f"{parameters:,}", f"{macs:,}", memory, note)
    return table


def _sizes(ladder: ChainLadder) -> list[tuple[str, dict[str, int]]]:
    found = []
    for name in presets.NAMES:
        try:
            found.append((name, ladder.resolve(preset=name)))
        except ValueError:  # another family, or a network that is not so wide
            continue
    for share in SHARES:
        widths = ladder.resolve(width=share)
        if widths not in [known for _, known in found]:
            found.append((f"width {share:g}", widths))
    return found


def open_data(
    meta: Mapping[str, Any],
    data: str,
    device: str | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
) -> ReIDData:
    """A data set at the size and with the augmentation that a chain was trained with."""
    trained = meta.get("recipe", {})
    fields = {k: trained[k] for k in ("height", "width", "pad", "flip", "erasing") if trained}
    fields |= {k: pixels for k, pixels in (("height", height), ("width", width)) if pixels}
    return ReIDData(data, Recipe(**fields), device=device)


def _assignment(text: str) -> tuple[str, int]:
    name, _, channels = text.partition("=")
    if not channels.isdigit():
        raise ValueError(f"--group must be NAME=CHANNELS, got {text!r}. Example: layer1.0.conv1=8.")
    return name, int(channels)
