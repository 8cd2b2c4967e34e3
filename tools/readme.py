"""Fill README.md's tables from stored rows: `python tools/readme.py`, or `--check` to compare.

demo: docs/demo/rows.jsonl, copied from a demo folder by `python tools/readme.py --demo FOLDER`.
bench: bench/results/<machine>/*.json. cuda: bench/results/*/verified.json.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "docs" / "demo"
RESULTS = ROOT / "bench" / "results"


def demo_table() -> str:
    """One line per network: at once, fine-tuned, from scratch."""
    rows = [json.loads(line) for line in (DEMO / "rows.jsonl").read_text().splitlines()]
    facts = json.loads((DEMO / "facts.json").read_text())
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = [
        "| network | parameters | MACs | at once | fine-tuned | from scratch |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for model in models:
        own = {row["series"]: row for row in rows if row["model"] == model}
        first = next(iter(own.values()))
        scores = [
            f"{100 * own[s]['mAP']:.1f} / {100 * own[s]['rank1']:.1f}" if s in own else ""
            for s in ("at_once", "finetuned", "scratch")
        ]
        if "teacher" in own:
            scores[0] = f"{100 * first['mAP']:.1f} / {100 * first['rank1']:.1f}"
        size = f"{first['parameters'] / 1e3:,.0f} k | {first['macs'] / 1e6:.1f} M"
        lines.append(f"| {model} | {size} | " + " | ".join(scores) + " |")
    steps = ", ".join(f"{name}: {count}" for name, count in facts["Steps"].items())
    minutes = sum(facts["Wall time, s"].values()) / 60
    lines += [
        "",
        f"mAP / rank-1 in %. Optimiser steps of 64 images: {steps}. {minutes:.1f} minutes in all "
        f"({facts['Machine']}).",
    ]
    return "\n".join(lines)


def keep_demo(folder: Path) -> None:
    """Copy a demo's rows and facts, and draw its trade-off picture."""
    from functools import partial

    from oskt.report import load_report
    from oskt.report.plots import render, trade_off

    data = load_report(folder)
    shutil.copy(folder / "rows.jsonl", DEMO / "rows.jsonl")
    (DEMO / "facts.json").write_text(json.dumps(data.facts, indent=1) + "\n")
    light, _ = render(partial(trade_off, data.rows, "parameters"))
    (DEMO / "trade_off.png").write_bytes(base64.b64decode(light))


def suites() -> dict[str, dict[str, Any]]:
    """Stored benchmark suites of CPUs, by name."""
    found = {}
    for path in sorted(RESULTS.glob("*/*.json")):
        content = json.loads(path.read_text())
        if path.name != "verified.json" and "h200" not in path.parent.name:
            found[path.stem] = content
    return found


def bench_table() -> str:
    """Our median and every peer's, per suite and group."""
    stored = suites()
    if not stored:
        return "No stored rows."
    lines = ["| operator | case | oskt | peers in the same run |", "|---|---|---:|---|"]
    for suite, content in stored.items():
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in content["rows"]:
            groups.setdefault(row["group"] or "", []).append(row)
        for group, rows in groups.items():
            ours = [r for r in rows if provider(r) in ("oskt", "")]
            peers = [r for r in rows if r not in ours]
            if ours:
                cell = ", ".join(f"{provider(r)} {time_text(r['median_s'])}" for r in peers)
                median = time_text(ours[0]["median_s"])
                lines.append(f"| {suite} | {group} | {median} | {cell or extra(ours[0])} |")
    machine = next(iter(stored.values()))
    lines += [
        "",
        f"{machine['machine']}, {machine['cpu_threads']} threads, torch {machine['torch']}.",
    ]
    return "\n".join(lines)


def provider(row: dict[str, Any]) -> str:
    return str((row.get("parameters") or {}).get("provider", ""))


def extra(row: dict[str, Any]) -> str:
    ratio = row.get("extra", {}).get("ratio")
    return f"{ratio:.2f} of a teacher-only step" if ratio else ""


def time_text(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.2f} ms"


def cuda_text() -> str:
    """Which sources ran on which GPU."""
    proofs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/verified.json"))]
    good = [proof for proof in proofs if proof["verified"]]
    if not good:
        return (
            "They have **not run on a GPU yet**: no session with one has verified them, and no GPU "
            "figure is claimed."
        )
    lines = [
        f"Sources {p['source_hash']} passed {p['tests']['passed']} tests on {p['machine']}"
        for p in good
    ]
    return "; ".join(lines) + ". `oskt_ext.build_info()` tells yours."


def filled(text: str) -> str:
    for name, make in (("demo", demo_table), ("bench", bench_table), ("cuda", cuda_text)):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda m, make=make: m[1] + make() + "\n" + m[2], text, flags=re.S)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if README.md is not up to date")
    parser.add_argument("--demo", type=Path, help="copy the rows of this demo folder first")
    options = parser.parse_args()
    if options.demo:
        keep_demo(options.demo)
    path = ROOT / "README.md"
    before = path.read_text()
    after = filled(before)
    if options.check and after != before:
        sys.exit("README.md must be made from the stored rows: run `python tools/readme.py`.")
    path.write_text(after)


if __name__ == "__main__":
    main()
