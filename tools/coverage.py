"""Trace many architectures and write docs/coverage.md: `python tools/coverage.py [PATTERN...]`.

Rows are kept in docs/coverage.jsonl and replaced model by model, so that models can be done apart
and in several environments: torchvision's and timm's where those import, ours and the tests' zoo
everywhere. `--times` measures tracing alone (on an idle machine), `--page` writes the page alone.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "python"), str(ROOT / "tests")]
ROWS, PAGE = ROOT / "docs" / "coverage.jsonl", ROOT / "docs" / "coverage.md"

TORCHVISION = (
    "resnet50 mobilenet_v2 mobilenet_v3_large convnext_tiny swin_t densenet121 efficientnet_b0 "
    "regnet_y_400mf shufflenet_v2_x1_0 vit_b_16"
)
TIMM = "vit_small_patch16_224 swin_tiny_patch4_window7_224 convnext_tiny resnet50"

PERSON, WHOLE = torch.zeros(1, 3, 256, 128), torch.zeros(1, 3, 224, 224)


def models() -> Iterator[tuple[str, str, Callable[[], nn.Module], torch.Tensor]]:
    """Family, name, how to make it, example inputs."""
    import zoo_tokens

    from oskt.models import OSNet, ResNet, VisionTransformer

    person, image = torch.zeros(1, 3, 64, 32), torch.zeros(1, 3, 64, 64)
    yield "oskt", "ResNet-50", lambda: ResNet(50, num_classes=751), person
    yield "oskt", "ResNet-50 IBN-a", lambda: ResNet(50, num_classes=751, ibn=True), person
    yield "oskt", "OSNet x1.0", lambda: OSNet(1.0, 751), person
    yield "oskt", "OSNet x0.25", lambda: OSNet(0.25, 751), person
    yield "oskt", "ViT-S", lambda: VisionTransformer(num_classes=751), PERSON
    for family, names in (("torchvision", TORCHVISION), ("timm", TIMM)):
        try:
            library: Any = importlib.import_module(family)
        except ImportError:
            continue
        make = library.models.get_model if family == "torchvision" else library.create_model
        options = {"weights": None} if family == "torchvision" else {"pretrained": False}
        for name in names.split():
            fixed = "vit" in name or "swin" in name
            yield (
                family,
                name,
                lambda m=make, n=name, o=options: m(n, **o),
                WHOLE if fixed else image,
            )
    for name, (zoo_model, inputs) in zoo_tokens.CASES.items():
        yield "tests/zoo", name, zoo_model, inputs


def times(make: Callable[[], nn.Module], inputs: torch.Tensor) -> dict[str, float]:
    """Seconds to trace and to try widths, each the median of three."""
    from oskt.coupling import ties
    from oskt.coupling.grouping import trace_coupling

    module = make().eval()
    spans: dict[str, list[float]] = {"trace_s": [], "ties_s": []}
    for _ in range(3):
        start = time.perf_counter()
        coupling = trace_coupling(module, inputs)
        spans["trace_s"].append(time.perf_counter() - start)
        start = time.perf_counter()
        ties.tied(module, [inputs], coupling)
        spans["ties_s"].append(time.perf_counter() - start)
    return {name: round(statistics.median(span), 2) for name, span in spans.items()}


def facts(make: Callable[[], nn.Module], inputs: torch.Tensor) -> dict[str, Any]:
    """Groups, reasons, the deviation that is measured, the smallest student."""
    from oskt.chain import WeightChain, verification

    torch.manual_seed(0)
    module = make().eval()
    start = time.perf_counter()
    chain = WeightChain.from_teacher(module, inputs, "nested", method="random")
    seconds = time.perf_counter() - start
    groups = chain.coupling.groups.values()
    reasons = Counter(shortened(g.frozen) for g in groups if g.frozen)
    least = {name: chain.coupling.groups[name].step for name in chain.groups}
    student = chain.student(widths=least)
    student(inputs)
    # Fresh numbers make deep networks forget their input; these do not, and clusters merge.
    drawn = verification.random_inputs(chain.coupling, torch.Generator().manual_seed(0), batch=2)
    numbers = verification.randomised(module, drawn)
    clusters = verification.random_clusterings(chain.coupling, np.random.default_rng(0))
    merged = WeightChain.of_partitions(numbers, chain.coupling, clusters, {})
    parameters = [sum(p.numel() for p in m.parameters()) for m in (module, student)]
    return {
        "parameters": parameters[0],
        "groups": len(chain.coupling.groups),
        "free": len(chain.groups),
        "alike": sum(bool(g.like) for g in groups),
        "frozen": dict(reasons.most_common()),
        "deviation": verification.relative(merged, merged.groups, drawn),
        "least": parameters[1],
        "chain_s": round(seconds, 1),
    }


def shortened(reason: str) -> str:
    """A reason without the layer's name, for counting."""
    if reason.endswith("reads a model input or a plain axis"):
        return "model input or plain axis"
    if reason.endswith("writes a model output"):
        return "model output"
    if "students do not run" in reason:
        return "its code asks for the teacher's width"
    return re.sub(r"^[\w.]+\.(\w+) (is|has) ", r"\2 ", re.sub(r"^aten\.", "", reason))


def kept() -> dict[str, dict[str, Any]]:
    lines = ROWS.read_text().splitlines() if ROWS.is_file() else []
    rows = [json.loads(line) for line in lines]
    return {f"{row['family']} {row['name']}": row for row in rows}


def page(rows: list[dict[str, Any]]) -> str:
    """docs/coverage.md."""
    lines = [
        "# Architectures",
        "",
        "What `WeightChain.from_teacher` makes of networks that it was told nothing about, written "
        "by `tools/coverage.py` from `coverage.jsonl`. Columns:",
        "",
        "- **free**: channel groups whose width can change, of all groups. **alike**: free groups "
        "that must keep the proportion of another one, because the network's own code asks for it.",
        "- **frozen**: groups that keep the teacher's width, and why. Pixels that a first layer "
        "reads and logits that a last one writes are always so.",
        "- **deviation**: the largest relative difference, in float64, between a student with half "
        "of the channels, merged at random, and the wide network that must compute the same.",
        "- **smallest**: parameters of the narrowest student, and their share of the teacher's.",
        "- **trace**, **ties**: seconds for reading the groups from a pass without numbers, and "
        "for trying which widths its code wants equal. **chain**: all of `from_teacher`, the "
        "numerical check included, while other programs ran.",
        "",
        "| | parameters | free | alike | frozen | deviation | smallest | trace, s | ties, s "
        "| chain, s |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        frozen = ", ".join(f"{count} {reason}" for reason, count in row["frozen"].items())
        lines.append(
            f"| {row['family']} {row['name']} | {number(row['parameters'])} "
            f"| {row['free']} of {row['groups']} | {row['alike'] or ''} | {frozen} "
            f"| {row['deviation']:.0e} | {number(row['least'])} "
            f"({100 * row['least'] / row['parameters']:.2g} %) "
            f"| {row.get('trace_s', '')} | {row.get('ties_s', '')} | {row['chain_s']} |"
        )
    versions = sorted({row["versions"] for row in rows if row.get("versions")})
    lines += [
        "",
        f"Environments: {'; '.join(versions)}. CPU, two cores; networks of random numbers. Images "
        "are small where a network takes any size: 64 x 64, ours 64 x 32.",
    ]
    return "\n".join(lines) + "\n"


def number(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count / 1e3:.3g} k"


def versions(family: str) -> str:
    names = ["torch", *({family} & {"torchvision", "timm"})]
    return ", ".join(f"{name} {sys.modules[name].__version__}" for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("patterns", nargs="*", help="models to do, e.g. 'timm *'; default all")
    parser.add_argument("--times", action="store_true", help="measure tracing alone")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    given = parser.parse_args()
    rows, order = kept(), []
    for family, name, make, inputs in models():
        key = f"{family} {name}"
        order.append(key)
        if given.page or not any(fnmatch.fnmatch(key, p) for p in given.patterns or ["*"]):
            continue
        found = times(make, inputs) if given.times else facts(make, inputs)
        found |= {"family": family, "name": name, "versions": versions(family)}
        rows[key] = rows.get(key, {}) | found
        print(key, found, flush=True)
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    listed = [rows[key] for key in dict.fromkeys([*order, *rows]) if "free" in rows.get(key, {})]
    if listed:
        PAGE.write_text(page(listed))


if __name__ == "__main__":
    main()
