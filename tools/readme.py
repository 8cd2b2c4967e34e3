"""Fill README.md and docs/compare/README.md from stored rows; `--check` only compares.

demo: docs/demo/rows.jsonl, copied from a demo folder by `python tools/readme.py --demo FOLDER`.
sizes, tables: docs/compare/*.jsonl, joined from folders of `oskt compare` by `--compare FOLDER...`.
bench: bench/results/<machine>/*.json. cuda: bench/results/*/verified.json.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.rows import OURS, Row, beside, comparisons, provider

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/compare/README.md")
DEMO = ROOT / "docs" / "demo"
COMPARE = ROOT / "docs" / "compare"
RESULTS = ROOT / "bench" / "results"
sys.path.insert(1, str(ROOT / "python"))


def demo_table() -> str:
    """One line per network: nested at once and fine-tuned, published at once, from scratch."""
    rows = [json.loads(line) for line in (DEMO / "rows.jsonl").read_text().splitlines()]
    facts = json.loads((DEMO / "facts.json").read_text())
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = [
        "| network | parameters | MACs | at once | fine-tuned | published, at once | scratch |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for model in models:
        own = {row["series"]: row for row in rows if row["model"] == model}
        first = next(iter(own.values()))
        scores = [
            f"{100 * own[s]['mAP']:.1f} / {100 * own[s]['rank1']:.1f}" if s in own else ""
            for s in ("at_once", "finetuned", "published", "scratch")
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
    from oskt.report.plots import LIGHT, png, trade_off

    data = load_report(folder)
    shutil.copy(folder / "rows.jsonl", DEMO / "rows.jsonl")
    (DEMO / "facts.json").write_text(json.dumps(data.facts, indent=1) + "\n")
    draw = partial(trade_off, data.rows, "parameters")
    (DEMO / "trade_off.png").write_bytes(png(draw, LIGHT, opaque=True))


def _short(commit: str) -> str:
    """A commit's first ten digits, and the mark of one that was changed."""
    return commit[:10] + commit[40:]


def sizes_table() -> str:
    """Every method at every size: at once, after equal steps, after equal time."""
    from oskt.compare.cells import FULL_WIDTH
    from oskt.compare.methods import NESTED
    from oskt.compare.rows import read_rows
    from oskt.compare.summary import AT_ONCE, costs, grids
    from oskt.compare.verdicts import verdicts
    from oskt.report.duration import duration_text
    from oskt.report.table import count_text

    rows = read_rows(COMPARE / "sizes.jsonl")
    by_budget = {grid.budget: grid for grid in grids(rows, "size")}
    columns = by_budget["long"].columns
    scores = {
        (budget, line.method): {c: f"{score.first:.1f}" for c, score in line.scores.items()}
        for budget, grid in by_budget.items()
        for line in grid.lines
    }
    parameters = {
        column: line.scores[column].parameters
        for line in by_budget["long"].lines
        if line.method in ("nested", "teacher")
        for column in line.scores
    }
    heads = [
        f"{'teacher' if c == FULL_WIDTH else c}<br>{count_text(parameters[c])}" for c in columns
    ]
    lines = [f"| mAP, % | {' | '.join(heads)} |", "|---" + "|---:" * len(columns) + "|"]
    counts = {
        line.method: max(score.seeds for score in line.scores.values())
        for line in by_budget["long"].lines
    }
    seeds = max(counts.values())
    names = {
        line.method: line.name + (f" ({counts[line.method]} of {seeds} seeds)"
                                  if counts[line.method] < seeds else "")
        for line in by_budget["long"].lines
    }  # fmt: skip
    blank: dict[str, str] = {}
    ours = [m for m in (*NESTED, "oskt") if (AT_ONCE, m) in scores]
    for method in ours:
        own = scores[AT_ONCE, method]
        cells = [f"**{own[c]}**" if c in own else "" for c in columns]
        lines.append(f"| **{names[method]}, at once** | " + " | ".join(cells) + " |")
    for method in sorted(names, key=lambda m: m not in ours):
        short, long = (scores.get((b, method), blank) for b in ("short", "long"))
        cells = [
            f"{short[c]} → {long.get(c, '')}" if c in short and c != FULL_WIDTH else long.get(c, "")
            for c in columns
        ]
        lines.append(f"| {names[method]} | " + " | ".join(cells) + " |")
    spreads = [score.deviation for line in by_budget["long"].lines
               for score in line.scores.values() if score.deviation is not None]  # fmt: skip
    spent = {(c.budget, c.method): c for c in costs(rows)}
    refinement = spent[AT_ONCE, "nested"].refinement
    alone = [m for b, m in spent if b == "long" and m not in (*ours, "oskt-published")]
    times = [spent["long", method].students[1] for method in alone]
    epochs = {b: spent[b, alone[0]].own_steps[1] for b in ("short", "long")}
    lines += [
        "",
        f"Cells of two numbers: after {epochs['short']} steps of a size's own training (six sizes "
        f"take as many steps as one nested refinement) → after {epochs['long']} steps (six sizes "
        f"take {duration_text(min(times))} to {duration_text(max(times))}, one nested refinement "
        f"{duration_text(refinement[1])}){_rates(rows)}. Mean of {seeds} seeds; standard deviation "
        f"{statistics.median(spreads):.1f} in the median, {max(spreads):.1f} at most.",
        "",
        *(f"- {said}" for said in verdicts("sizes", rows) if _weighs(said)),
        "",
        "[docs/compare/sizes.md](docs/compare/sizes.md) has rank-1, spreads and what each family "
        f"spent{', timed in turn (`--retime`)' if all(row.timed for row in rows) else ''}. "
        "Drawn pedestrians at 64x32, a bottleneck network of "
        f"{count_text(max(parameters.values()))} parameters; "
        f"{' and '.join(sorted({row.machine for row in rows}))}, {rows[0].threads} thread, "
        f"commit {', '.join(sorted({_short(row.commit) for row in rows}))}.",
    ]
    return "\n".join(lines)


def _rates(rows: list[Any]) -> str:
    """That every method had the choice of its rate, where it had."""
    rates = sorted({f"{row.rate:g}" for row in rows if row.rate}, reverse=True)
    return f", at rate {' or '.join(rates)}, the better for each cell" if rates else ""


def _weighs(said: str) -> bool:
    """What README says beside the table: who is ahead, and what it took; sizes.md says all."""
    return said.startswith("Families of equal") or "long training" in said


def keep_compare(folders: list[Path]) -> None:
    """Join the rows of several folders (seeds run side by side), and draw their picture."""
    from dataclasses import replace
    from functools import partial

    from oskt.compare.methods import METHODS
    from oskt.compare.pictures import size_plot
    from oskt.compare.report import write_report
    from oskt.compare.rows import read_rows, write_rows
    from oskt.compare.tables import TABLES
    from oskt.report.plots import LIGHT, png

    COMPARE.mkdir(exist_ok=True)
    places = {method: place for place, method in enumerate(["teacher", *METHODS])}
    for table in TABLES:
        paths = [path for folder in folders if (path := folder / f"{table}.jsonl").is_file()]
        # Of rows for the same cell the one of the last folder stands.
        rows = list({row.labels: row for path in paths for row in read_rows(path)}.values())
        if not rows:
            continue
        rows.sort(key=lambda row: (row.seed, places[row.method]))  # else in the order of folders
        # One run draws curves of its first seed; of several runs each had one.
        drawn = {row.method: row.seed for row in reversed(rows) if row.curve}
        rows = [
            row if row.seed == drawn.get(row.method) else replace(row, curve=[]) for row in rows
        ]
        write_rows(COMPARE / f"{table}.jsonl", rows)
        write_report(COMPARE, table).unlink()  # the page is large; its text stays
        if table == "sizes":
            picture = png(partial(size_plot, rows), LIGHT, opaque=True)
            (COMPARE / "sizes.png").write_bytes(picture)


def other_tables() -> str:
    """What the tables but the first say, where they have been run."""
    from oskt.compare.rows import read_rows
    from oskt.compare.tables import TABLES
    from oskt.compare.verdicts import verdicts

    beside = {
        "cross": ("size", "own", "trained there"),
        "few-shot": ("variant", "own", "trained there"),
        "depth": ("size", "short", "fine-tuned"),
        "digits": ("size", "long", "fine-tuned"),
    }
    lines = []
    for table in TABLES:
        path = COMPARE / f"{table}.jsonl"
        if table == "sizes" or not path.is_file():
            continue
        rows = read_rows(path)
        seeds = len({row.seed for row in rows})
        lines += [
            f"## {TABLES[table].title}",
            "",
            f"[{table}.md]({table}.md): {len(rows)} cells, {seeds} seed{'s' if seeds > 1 else ''}.",
            "",
            *(
                _beside_rivals(rows, *beside[table]) if table in beside
                else _by_width(rows) if table == "chain-width"
                else [f"- {said}" for said in verdicts(table, rows)]
            ),
            "",
        ]  # fmt: skip
    return "\n".join(lines[:-1])


def _beside_rivals(rows: list[Any], columns: str, budget: str, what: str) -> list[str]:
    """Nested students in every scenario and variant, bold where they are at or above the best
    rival, which stands beside them."""
    from oskt.compare.cells import FULL_WIDTH
    from oskt.compare.methods import TITLES
    from oskt.compare.summary import AT_ONCE, grids
    from oskt.compare.verdicts import best_rivals, moments

    found = {(grid.scenario, grid.budget): grid for grid in grids(rows, columns)}
    names = [c for c in next(iter(found.values())).columns if c != FULL_WIDTH]
    score = "mAP" if "mAP" in (rows[0].trained or {}) else "accuracy"
    lines = [f"| {score}, % | {' | '.join(names)} |", "|---" + "|---:" * len(names) + "|"]
    for (scenario, own), grid in found.items():
        if own != budget:
            continue
        for variant in dict.fromkeys(line.variant for line in grid.lines):
            head = scenario if columns == "variant" else variant or scenario
            best = best_rivals(grid, variant)
            cells = [f"{best[c][0]:.1f}<br>{best[c][1]}" if c in best else "" for c in names]
            lines.append(f"| {head}: best rival, {what} | {' | '.join(cells)} |")
            for when in [when for when in (AT_ONCE, budget) if (scenario, when) in found]:
                for line in found[scenario, when].lines:
                    nested = line.variant == variant and line.method.startswith("nested")
                    if not nested or when not in moments(line.method, budget):
                        continue
                    scores = {c: round(score.first, 1) for c, score in line.scores.items()}
                    cells = [
                        f"**{scores[c]}**" if c in best and scores[c] >= best[c][0]
                        else str(scores.get(c, "")) for c in names
                    ]  # fmt: skip
                    title = f"{TITLES[line.method]}, {what if when == budget else when}"
                    lines.append(f"| {head}: {title} | {' | '.join(cells)} |")
    return lines


def _by_width(rows: list[Any]) -> list[str]:
    """What chains of every width give at once."""
    from oskt.compare.summary import AT_ONCE, grids

    lines: list[str] = []
    for grid in grids(rows, "variant"):
        if grid.budget == AT_ONCE:
            lines += [f"| mAP, %, at once | {' | '.join(grid.columns)} |"]
            lines += ["|---" + "|---:" * len(grid.columns) + "|"]
            for line in grid.lines:
                cells = [
                    f"{line.scores[c].first:.1f}" if c in line.scores else "" for c in grid.columns
                ]
                lines.append(f"| {line.name} | {' | '.join(cells)} |")
    return lines


def suites() -> dict[str, dict[str, Any]]:
    """The stored benchmark suites of one CPU, by name: that with the most complete ones, or newest.

    One alone, because times of two machines in one table would be read against each other.
    """
    machines = []
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        if found and not any("cuda" in content for content in found.values()):
            machines.append(found)
    return max(
        machines,
        key=lambda found: (
            sum(content["complete"] for content in found.values()),
            max(content["date"] for content in found.values()),
        ),
    )


# suite -> (our row, the rows to show: words that all stand in its group or case)
SHOWN = {
    "expand": ("oskt", ["forward res50-s1", "forward res50-s3", "forward res50-s6",
                        "forward and backward res50-s3", "forward vit-b-1/2",
                        "forward select-1/2", "forward merge-1/2"]),
    "kmeans": ("ward+hartigan", ["gauss", "low-rank", "clustered", "trained", "vit-b"]),
    "merge_trees": ("ours", ["gauss", "low-rank", "clustered"]),
    "refining_loss": ("oskt", ["resnet50, gradients to both", "resnet50, gradients to chain",
                               "vit-b, gradients to both"]),
    "retrieval_metrics": ("ours", ["market_2048", "msmt17_2048"]),
    "k_reciprocal": ("ours", ["small_2048", "market_2048", "msmt17_2048"]),
    "refine_step": ("", ["chain-8", "chain-16", "chain-32", "nested-8", "nested-8-16-32"]),
}  # fmt: skip
WHAT = {
    "expand": "`expand` (select, merge: nested chains)",
    "kmeans": "`kmeans`, 53 ResNet-50 convolutions (vit-b: 48 linears), K = rows/8",
    "merge_trees": "`merge_trees`, ResNet-50's",
    "refining_loss": "`refining_loss`",
    "retrieval_metrics": "`retrieval_metrics`",
    "k_reciprocal": "`k_reciprocal` and its metrics",
    "refine_step": "refinement step, ResNet-50, batch 8, 256x128",
}


def bench_table() -> str:
    """Our median and all others of the same run; the inertia of k-means, the memory of rankings."""
    stored = suites()
    lines = [
        "| work | case | oskt | faster than the best peer | others in the same run |",
        "|---|---|---:|---:|---|",
    ]
    for suite, (our_name, cases) in SHOWN.items():
        rows = stored[suite]["rows"] if suite in stored else []
        for case in cases:
            ours = [r for r in rows if provider(r) == our_name and title_of(r).endswith(case)]
            if not ours:
                continue
            others = [r for r in beside(rows, ours[0]) if provider(r) not in OURS]
            held = comparisons(rows, ours[0])
            times = held.get("to_peer", 0.0)
            faster = f"{times:.{0 if times >= 10 else 1}f}x" if times else ""
            cell = "; ".join(f"{provider(r)} {measured(r)}" for r in others)
            if suite == "refine_step":
                cell = f"{held['to_floor']:.2f} of a teacher-only step"
            lines.append(f"| {WHAT[suite]} | {case} | {measured(ours[0])} | {faster} | {cell} |")
    first = next(iter(stored.values()))
    where = f"{first['machine']}, {first['cpu_threads']} threads, torch {first['torch']}"
    commits = sorted({_short(content["commit"]) for content in stored.values()})
    lines += [
        "",
        f"{where}, commit {', '.join(commits)}. In brackets: inertia (k-means), MiB in use at the "
        "peak (rankings).",
    ]
    return "\n".join(lines)


def title_of(row: Row) -> str:
    """The words by which SHOWN names a case."""
    given = row["parameters"]
    group, kind = row["group"] or "", given.get("kind", given.get("size", ""))
    return group if kind in ("oskt", "nested") else f"{group} {kind}".strip()  # a chain's is in it


def measured(row: Row) -> str:
    extra, notes = row["extra"], []
    notes += [f"{extra['inertia']:,.0f}"] if "inertia" in extra else []
    notes += [f"{extra['peak_mib']:,.0f} MiB"] if "peak_mib" in extra else []
    return time_text(row["median_s"]) + (f" ({', '.join(notes)})" if notes else "")


def time_text(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


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
    tables = {
        "demo": demo_table, "sizes": sizes_table, "tables": other_tables, "bench": bench_table,
        "cuda": cuda_text,
    }  # fmt: skip
    for name, make in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda m, make=make: m[1] + make() + "\n" + m[2], text, flags=re.S)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if a page is not up to date")
    parser.add_argument("--demo", type=Path, help="copy the rows of this demo folder first")
    parser.add_argument("--compare", type=Path, nargs="+", help="join these folders' rows first")
    options = parser.parse_args()
    if options.compare:
        keep_compare(options.compare)
    if options.demo:
        keep_demo(options.demo)
    for page in PAGES:
        path = ROOT / page
        before = path.read_text()
        after = filled(before)
        if options.check and after != before:
            sys.exit(f"{page} must be made from the stored rows: run `python tools/readme.py`.")
        path.write_text(after)


if __name__ == "__main__":
    main()
