"""The parts of the benchmark harness that must be right before a GPU is there to use it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.rows import comparisons


@pytest.fixture(autouse=True)
def _bench_on_path(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "bench")


@pytest.fixture
def measure():
    import measure

    return measure


def row(name, provider, seconds, **extra):
    parameters = {"name": provider, "size": "small"}
    return {"name": f"{name}[{provider}]", "parameters": parameters, "extra": extra} | {
        "median_s": seconds
    }


def test_a_row_beside_others():
    rows = [
        row("test_a", "ours", 2.0, inertia=9.0),
        row("test_a", "sklearn", 8.0, inertia=10.0),
        row("test_a", "sklearn-ward", 6.0, inertia=12.0),
        row("test_a", "product_alone", 1.0),
        row("test_b", "faiss", 0.1),
    ]
    ours = {"to_floor": 2.0, "to_peer": 3.0, "best_peer": "sklearn-ward", "to_ward": 0.75}
    assert comparisons(rows, rows[0]) == ours
    assert comparisons(rows, rows[1]) == {"to_floor": 8.0, "to_ward": 10 / 12}
    assert comparisons(rows, rows[3]) == {}
    measured_roof = row("test_c", "oskt", 3.0, roof_s=2.0)
    assert comparisons([measured_roof], measured_roof) == {"to_floor": 1.5}


def test_a_copy_is_told_its_commit(measure, monkeypatch):
    monkeypatch.setenv("OSKT_COMMIT", "1234abc")
    assert measure.commit() == "1234abc"


def test_suites_are_those_in_the_folder(measure):
    files = {p.stem.removeprefix("bench_") for p in (measure.ROOT / "bench").glob("bench_*.py")}
    assert set(measure.SUITES) == files


def test_interrupted_or_skipped_benchmarks_cost_their_own_rows_alone(measure, tmp_path):
    (tmp_path / "conftest.py").write_text((measure.ROOT / "bench/conftest.py").read_text())
    suite = tmp_path / "bench_three.py"
    suite.write_text(
        "import os, pytest, signal\n"
        "from harness import timed\n"
        "def test_done(benchmark): timed(benchmark, lambda: None)\n"
        "def test_skipped(benchmark): timed(benchmark, lambda: pytest.skip('no peer'))\n"
        "def test_stopped(benchmark):\n"
        "    timed(benchmark, lambda: os.kill(os.getpid(), signal.SIGINT))\n"
    )
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pytest", str(suite), f"--benchmark-json={report}"]
    paths = f"{measure.PYTHONPATH}:{measure.ROOT / 'bench'}"
    measure.run_within(600, [*command, "--benchmark-enable"], PYTHONPATH=paths)
    assert [row["name"] for row in measure.compact(json.loads(report.read_text()))] == ["test_done"]


def test_a_fault_of_the_gpu_ends_the_tests_where_it_was_made(measure, monkeypatch, tmp_path):
    import gpu

    (tmp_path / "conftest.py").write_text(
        (measure.ROOT / "tests/conftest.py").read_text() + "\n\ndef _fault():\n"
        "    raise RuntimeError('CUDA error: an illegal memory access was encountered')\n\n\n"
        "torch.cuda.synchronize = _fault\n"
    )
    tests = tmp_path / "test_three.py"
    tests.write_text(
        "import pytest\n"
        "def test_before(): pass\n"
        "@pytest.mark.cuda\n"
        "def test_that_faults(): pass\n"
        "@pytest.mark.cuda\n"
        "def test_after(): raise AssertionError\n"
    )
    counts = gpu.run_tests(600, str(tests), "-m", "not slow")
    assert counts == {"passed": 1, "failed": 1, "skipped": 0, "finished": False}


def test_a_line_of_the_table(measure):
    times = {"median_s": 0.002, "p20_s": 0.0019, "p80_s": 0.0021}
    held = {"to_floor": 1.5, "to_peer": 3.0, "best_peer": "faiss", "to_ward": 0.99}
    said = measure.line({"name": "test_a[b]", "extra": {"inertia": 7.0}} | times | held)
    words = "a[b] 2 ms (1.9 to 2.1) 1.50x floor 3x faiss inertia 7, 0.9900 of Ward's"
    assert said.split() == words.split()


def test_the_clock_of_a_gpu(monkeypatch):
    """Two events; the later is waited for, and milliseconds become seconds."""
    from harness import DeviceInstant

    class Event:
        made = 0

        def __init__(self, enable_timing):
            Event.made += 1
            self.at, self.done = 3.0 * Event.made, False

        def record(self):
            pass

        def synchronize(self):
            self.done = True

        def elapsed_time(self, later):
            assert later.done
            return later.at - self.at

    monkeypatch.setattr("torch.cuda.Event", Event)
    start = DeviceInstant()
    assert DeviceInstant() - start == pytest.approx(0.003)


def test_a_session_on_a_gpu_machine(measure, monkeypatch, tmp_path, capsys):
    """What it runs, in which order, and what it leaves and hands over."""
    import gpu

    folder, out, ran, status = tmp_path / "results" / "nvidia-test", tmp_path / "out", [], 0
    folder.mkdir(parents=True)
    out.mkdir()

    def run_within(seconds, command, **environment):
        if command[1] == "setup.py":
            assert environment["OSKT_WITH_CUDA"] == "1"
            return status
        report = Path(next(a for a in command if "=/" in a).partition("=")[2])
        if report.suffix == ".xml":
            ran.append(command[command.index("-m", 2) + 1])
            report.write_text('<testsuite tests="5" failures="0" errors="0" skipped="1"/>')
        else:
            ran.append(command[3])
            report.write_text('{"benchmarks": []}')
        return 0

    for module in (gpu, measure):
        monkeypatch.setattr(module, "run_within", run_within)
        monkeypatch.setattr(module, "provenance", lambda device: {"machine": "a GPU"})
        monkeypatch.setattr(module, "results_folder", lambda device: folder)
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("OUT", str(out))
    assert gpu.main() == 0
    suites = [f"bench/bench_{suite}.py" for suite in measure.SUITES]
    assert ran == ["cuda and not slow", *suites, "not cuda and not slow"]
    verified = json.loads((folder / "verified.json").read_text())
    assert verified["verified"]
    assert verified["tests"] == {"passed": 4, "failed": 0, "skipped": 1, "finished": True}
    assert [path.name for path in out.iterdir()] == ["nvidia-test.zip"]
    ran.clear()
    status = 2
    assert gpu.main() == 1
    assert not ran
    said = capsys.readouterr().err
    assert "make gpu: `setup.py -q build_ext --inplace` must build the extension, got exit" in said


def test_sources_without_a_repository_have_no_commit(measure, monkeypatch):
    monkeypatch.setattr(measure, "output_of", lambda *command: "unknown")
    assert measure.commit() == "unknown"


def test_sources_below_a_foreign_repository_have_no_commit(measure, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "output_of", lambda *command: "theirs")
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    assert measure.commit() == "unknown"
    (tmp_path / ".git").touch()  # of a checkout's own worktree it is a file
    assert measure.commit() == "theirs-modified"
