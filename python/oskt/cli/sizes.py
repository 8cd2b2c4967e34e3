"""Which student of a chain the flags of a command ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from oskt.chain import ChainLadder, WeightChain
from oskt.cli.flags import SizeOptions
from oskt.coupling.grouping import trace_coupling
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


def image_size(
    chain: WeightChain, height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """Height and width of a chain's images: as asked for, else as trained, else as traced."""
    trained = chain.meta.get("recipe") or {}
    traced = chain.coupling.inputs[0][-2:]
    return height or trained.get("height", traced[0]), width or trained.get("width", traced[1])


def model_size(network: nn.Module, meta: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of a model file's images: as trained, else the only ones that the network
    takes, else 256 x 128."""
    trained = meta.get("recipe") or {}
    own = getattr(network, "spec", {}).get("image") or (256, 128)
    return trained.get("height", own[0]), trained.get("width", own[1])


def ask(
    ladder: ChainLadder, size: SizeOptions, device: str | None = None, **pixels: int | None
) -> Answer:
    """The widths that a ladder of chains gives for the flags of a command.

    Args:
        ladder: of one chain or several.
        size: what is asked for.
        device: where latency is measured; default: the GPU if there is one.
        pixels: height and width of images, which MACs and latency are limited for; see image_size.

    Raises:
        ValueError: see Sizes.resolve.
    """
    if size.macs is not None or size.latency_ms is not None:
        images = image_size(ladder.base, **pixels)
        ladder = ChainLadder([_costed(chain, images) for chain in ladder.chains])
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


def _costed(chain: WeightChain, images: tuple[int, int]) -> WeightChain:
    """The chain with the costs of images of this size."""
    traced = chain.coupling.inputs[0][-2:]
    if images == traced:
        return chain
    if chain.template is None:
        raise ValueError(
            f"--macs, --latency-ms: images must be {traced[0]} x {traced[1]} (height x width), as "
            f"traced, for a network that oskt does not build, got {images[0]} x {images[1]}. Limit "
            "--params or --memory-mb, which do not depend on it."
        )
    found = trace_coupling(chain.template, torch.zeros(2, 3, *images))
    return WeightChain(
        replace(
            chain.coupling,
            positions=found.positions,
            products=found.products,
            inputs=found.inputs,
        ),
        chain.partitions,
        chain.weights,
        chain.vectors,
        chain.statistics,
        chain.plain,
        absent=chain.absent,
        template=chain.template,
        meta=chain.meta,
    )


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
    data = open_data(chain, size.shape_data, device, **pixels)
    images = torch.cat(list(data.unlabelled(128)))
    return sensitivity.measure(chain, images.to(chain.statistics))


def open_data(
    chain: WeightChain, data: str, device: str | None = None, **pixels: int | None
) -> ReIDData:
    """A data set with the augmentation that a chain was trained with; see image_size."""
    height, width = image_size(chain, **pixels)
    trained = chain.meta.get("recipe") or {}
    fields = {k: trained[k] for k in ("pad", "flip", "erasing") if k in trained}
    return ReIDData(data, Recipe(height=height, width=width, **fields), corrupt=None, device=device)


def _assignments(texts: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        name, _, channels = text.partition("=")
        if not channels.isdecimal():
            raise ValueError(
                f"--group must be NAME=CHANNELS, got {text!r}. Example: layer1.0.conv1=8."
            )
        if found.setdefault(name, int(channels)) != int(channels):
            raise ValueError(
                f"--group must give {name} one width, got {found[name]} and {channels}. Drop one."
            )
    return found
