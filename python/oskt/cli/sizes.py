"""Which student of a chain the flags of a command ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from oskt.chain import ChainLadder, WeightChain
from oskt.cli.flags import SizeOptions
from oskt.task import ReIDData
from oskt.train import Recipe, World
from oskt.widths import sensitivity
from oskt.widths.latency import RUNTIMES, Latency, Meter
from oskt.widths.shapes import Curves


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
    chain = ladder.base
    meter = None
    if size.runtime != "torch" and size.latency_ms is None:
        raise ValueError(
            f"--runtime must come with --latency-ms, got {size.runtime} alone. Give a limit, or "
            "leave it out."
        )
    if size.latency_ms is not None:
        place = World.from_environment(device if size.runtime == "torch" else "cpu").device
        meter = Meter(chain, str(place), timed=RUNTIMES[size.runtime])
    widths = ladder.resolve(
        size.width, _assignments(size.group) if size.group else None, size.preset,
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


def _assignments(texts: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        name, _, channels = text.partition("=")
        if not channels.isdigit():
            raise ValueError(
                f"--group must be NAME=CHANNELS, got {text!r}. Example: layer1.0.conv1=8."
            )
        if found.setdefault(name, int(channels)) != int(channels):
            raise ValueError(
                f"--group must give {name} one width, got {found[name]} and {channels}. Drop one."
            )
    return found
