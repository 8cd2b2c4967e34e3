"""Run every bench_*.py on one device and keep compact tables in bench/results/<machine>/.

    python bench/measure.py [--device cuda] [--seconds 600] [expand kmeans ...]

<suite>.json says where its numbers come from (machine, source_hash, torch, commit, date), whether
the suite ran to its end within its share of the time ("complete"), and holds one row per benchmark:
name, group, parameters, extra_info, rounds, the median, 20th and 80th percentile of one call in
seconds, and what rows.py says of it beside the other rows. The same is printed as a table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rows import Row, comparisons

ROOT = Path(__file__).resolve().parent.parent
PYTHONPATH = os.pathsep.join(
    [str(ROOT), str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# Suite -> its share of the time; in order of value, so that a short session has the best of it.
SUITES = {
    "kmeans": 8, "expand": 3, "refining_loss": 2, "retrieval_metrics": 4, "merge_trees": 2,
    "k_reciprocal": 5, "refine_step": 4, "distance_metrics": 2,
}  # fmt: skip
GRACE_SECONDS = 20


def output_of(*command: str) -> str:
    """What a command prints, or "unknown" where it cannot run."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def commit() -> str:
    """The commit of the checkout, marked when its sources (results aside) were changed since.

    A copy without its repository, as one sends to a machine, is told it by OSKT_COMMIT.
    """
    if known := os.environ.get("OSKT_COMMIT"):
        return known
    # Sources that were unpacked below somebody's checkout are not of its commit.
    head = output_of("git", "rev-parse", "HEAD") if (ROOT / ".git").exists() else "unknown"
    changes = output_of("git", "diff", "HEAD", "--name-only", "--", ".", ":!bench/results")
    return head + ("-modified" if changes and head != "unknown" else "")


def machine_name(device: str) -> str:
    """The name of the GPU, or of the processor."""
    import torch

    from oskt.machine import device_name

    return device_name(torch.device(device))


def results_folder(device: str) -> Path:
    """bench/results/<machine>, the name in lower case with dashes."""
    slug = re.sub(r"[^a-z0-9]+", "-", machine_name(device).lower()).strip("-")
    folder = ROOT / "bench" / "results" / slug
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def provenance(device: str) -> dict[str, Any]:
    """What a number must be read with: machine, source, versions, commit and date."""
    import torch

    import oskt_ext

    info = oskt_ext.build_info()
    facts: dict[str, Any] = {
        "machine": machine_name(device),
        "cpu_threads": torch.get_num_threads(),
        "version": info["version"],
        "source_hash": info["source_hash"],
        "compiler": info["compiler"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if device == "cuda":
        driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        facts |= {
            "driver": driver.splitlines()[0],
            "cuda": info["cuda"],
            "cuda_architectures": info["cuda_architectures"],
        }
    return facts


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def compact(report: dict[str, Any]) -> list[Row]:
    """The rows of one pytest-benchmark report, its single timings reduced to three quantiles."""
    rows = []
    for one in report["benchmarks"]:
        times = one["stats"]["data"]
        low, high = quantiles(times)
        rows.append(
            {
                "name": one["name"],
                "group": one["group"],
                "parameters": {k: str(v) for k, v in (one["params"] or {}).items()},
                "extra": one["extra_info"],
                "rounds": len(times),
                "median_s": statistics.median(times),
                "p20_s": low,
                "p80_s": high,
            }
        )
    return [row | comparisons(rows, row) for row in rows]


def quantiles(times: list[float]) -> tuple[float, float]:
    """The 20th and the 80th percentile."""
    if len(times) == 1:
        return times[0], times[0]
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return fifths[0], fifths[3]


def run_within(seconds: float, command: list[str], **environment: str) -> int | None:
    """The exit status of a command, None where it had to be stopped.

    It is stopped as by Ctrl-C, on which pytest still reports what has run until then.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment)
    try:
        return process.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return None


def run_suite(suite: str, device: str, seconds: float) -> tuple[bool, list[Row]]:
    """Whether the whole suite ran well within the time, and the rows that it left."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pytest", f"bench/bench_{suite}.py", "--benchmark-enable"]
        command += ["--benchmark-columns=median,iqr,rounds", f"--benchmark-json={report}"]
        status = run_within(seconds, command, PYTHONPATH=PYTHONPATH, OSKT_BENCH_DEVICE=device)
        if not report.exists() or report.stat().st_size == 0:
            return False, []
        return status == 0, compact(json.loads(report.read_text()))


ANSWERS = {
    "inertia": "inertia {:.6g}", "to_ward": "{:.4f} of Ward's", "error": "error {:.2g}",
    "mAP": "mAP {:.6g}", "peak_mib": "{:,.0f} MiB", "call_s": "{:.3g} s waited for",
}  # fmt: skip


def line(row: Row) -> str:
    """A row of the table: the time and its spread, what it is held against, its answer and cost."""
    median, low, high = (1e3 * row[key] for key in ("median_s", "p20_s", "p80_s"))
    floor = f"{row['to_floor']:.2f}x floor" if "to_floor" in row else ""
    peer = f"{row['to_peer']:.3g}x {row['best_peer']}" if "to_peer" in row else ""
    known = row["extra"] | row
    answer = ", ".join(text.format(known[key]) for key, text in ANSWERS.items() if key in known)
    name, spread = row["name"].removeprefix("test_"), f"({low:.4g} to {high:.4g})"
    return f"{name:44} {median:10.4g} ms {spread:22} {floor:13} {peer:22} {answer}"


def measure(
    device: str, seconds: float, suites: list[str], after_each: Callable[[], None] = lambda: None
) -> list[str]:
    """Run the suites (all if none is named) within the time box; the names of those that failed.

    A suite has its share of what is left, so that a slow one takes nothing from the others, and
    what a quick one leaves is theirs.
    """
    folder = results_folder(device)
    facts = provenance(device)
    deadline = time.monotonic() + seconds
    waiting = [suite for suite in SUITES if not suites or suite in suites]
    failed, table = [], []
    while waiting:
        share = SUITES[waiting[0]] / sum(SUITES[suite] for suite in waiting)
        suite = waiting.pop(0)
        started = time.monotonic()
        print(f"bench: {suite} on {facts['machine']}", flush=True)
        complete, rows = run_suite(suite, device, share * (deadline - started))
        if not complete:
            failed.append(suite)
        if rows:
            write_json(folder / f"{suite}.json", facts | {"complete": complete, "rows": rows})
        table += [f"\n{suite}, {time.monotonic() - started:.0f} s", *map(line, rows)]
        after_each()
    print("\n".join(table))
    print(f"bench: results in {folder.relative_to(ROOT)}, not complete: {failed or 'none'}")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", help="bench_<suite>.py; all if none is named")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seconds", type=float, default=1800, help="time box of the whole run")
    options = parser.parse_args()
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"suites must be of {', '.join(SUITES)}, got {', '.join(sorted(unknown))}")
    return int(measure(options.device, options.seconds, options.suites) != [])


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "python")]
    sys.exit(main())
