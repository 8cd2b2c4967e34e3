"""Readers of what the published OSKT code writes; nothing is unpickled but tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oskt import models
from oskt.chain import WeightChain, expansion
from oskt.coupling.grouping import trace_coupling
from oskt.coupling.tracing import on_meta
from oskt.interop import cnn, vit
from oskt.interop.tensors import Tensors

IMAGE = (256, 128)  # what published CNNs are trained on; costs and latency are of it


def load_published_chain(folder: str | Path) -> WeightChain:
    """Read the weight chain of a published refinement: `gene_matcher.json` and its .pth file.

    Args:
        folder: holds gene_matcher.json and one checkpoint (resnet50_*.pth or transformer_*.pth).

    Returns:
        The WeightChain. Of a CNN with the teacher's norm vectors, the chain's running statistics
        and, where the checkpoint has one, the chain's head; of a transformer with the chain's own
        vectors; its students have the layer `dw`, which models.vit_stem.fold_dw multiplies out,
        and its patch embedding takes images of ImageNet's normalisation, not of mean and std 0.5.

    Raises:
        ValueError: files missing, truncated, of neither kind, labels that do not fit, or tensors of
            the backbone that are missing or of another shape.
    """
    return load_published(folder)[1]


def load_published(
    folder: str | Path, *, as_published: bool = False
) -> tuple[nn.Module, WeightChain]:
    """(teacher, chain) of a published refinement; see load_published_chain.

    Args:
        folder: as there.
        as_published: leave a transformer's patch embedding as it is, for images of mean and std
            0.5; it takes ImageNet's normalisation, as every network here does, otherwise.
    """
    folder = Path(folder)
    matcher, state = _read(folder)
    family = vit if "base.patch_embed.proj.weight" in state else cnn
    spec = family.spec(folder, matcher, state)
    with torch.device("meta"):
        template = models.build(spec)
    coupling = trace_coupling(template, torch.zeros(2, 3, *spec.get("image", IMAGE)))
    clusterings = family.clusterings(folder, coupling, matcher)

    found = Tensors(state, folder)
    teacher = models.build(spec)
    found.fill(teacher)
    if family is vit and not as_published:
        vit.take_imagenet_pixels(teacher)
    tensors, absent = family.chain_tensors(teacher.state_dict(), found, coupling, clusterings)
    found.check()

    def section(role: str) -> Tensor:
        layouts = coupling.layouts_of((role,), absent)
        return expansion.flat((tensors[layout.name] for layout in layouts), torch.empty(0))

    return teacher, WeightChain(
        coupling,
        clusterings,
        section("weight"),
        section("vector"),
        section("statistic"),
        {t.name: tensors[t.name] for t in coupling.layouts_of(("plain",))},
        absent=absent,
        template=on_meta(template, buffers=False),
        meta={
            "kind": "oskt", "spec": spec, "parent": "", "clustering": {"rows": family.ROWS},
        },
    )  # fmt: skip


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    checkpoints = sorted(folder.glob("*.pth"))
    if not (folder / "gene_matcher.json").is_file() or len(checkpoints) != 1:
        raise ValueError(
            f"load_published_chain: folder must hold gene_matcher.json and one .pth file, got "
            f"{sorted(p.name for p in folder.glob('*')) if folder.is_dir() else 'no folder'} in "
            f"{folder}. Give the folder that the published refinement wrote."
        )
    try:
        matcher = json.loads((folder / "gene_matcher.json").read_text())
        state = torch.load(checkpoints[0], map_location="cpu", weights_only=True)
        if not isinstance(matcher, dict) or not all(map(torch.is_tensor, state.values())):
            raise TypeError("no mapping of groups to labels, or of names to tensors")
    except Exception as error:
        raise ValueError(
            f"load_published_chain: files in {folder} must be whole, got {type(error).__name__}: "
            f"{error}. Copy them again; files that hold more than tensors are refused."
        ) from error
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if "base.conv1.weight" not in state and "base.patch_embed.proj.weight" not in state:
        raise ValueError(
            f"load_published_chain: {folder} must hold a CNN's or a transformer's chain, got "
            f"neither ({', '.join(list(state)[:3])}). Give the folder that the published "
            "refinement wrote."
        )
    return matcher, state
