"""A killed run, resumed, ends bit for bit as an undisturbed one; wrong resumes are refused."""

import io
import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train_loop import OPTIONS, assert_same
from train_fakes import TinyData, TinyNet, objective, parallel_run, recipe, short_run

from oskt.train import fit
from oskt.train.state import FORMAT, _seal
from oskt.train.teacher import SupervisedObjective

WORKER = Path(__file__).with_name("train_fakes.py")


def worker_environment(**extra):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **extra}


def die(out, moment):
    command = [sys.executable, str(WORKER), str(out)]
    done = subprocess.run(
        command, env=worker_environment(KILL=moment), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    return short_run(out), out


def log_without_times(out):
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    dropped = {"images_per_s"}
    kept = [row for row in rows if row["kind"] in ("step", "epoch", "end")]
    return [{k: v for k, v in row.items() if k not in dropped} for row in kept]


def test_kills_leave_no_trace(tmp_path, undisturbed):
    trained, out = undisturbed
    step = random.randrange(2, 9)  # another one in every run of this test
    die(tmp_path, f"step:{step}")
    die(tmp_path, f"replace:{random.randrange(1, 4)}")
    assert_same(short_run(tmp_path, resume=True), trained)
    epochs = [row for row in log_without_times(tmp_path) if row["kind"] != "step"]
    assert epochs == [row for row in log_without_times(out) if row["kind"] != "step"]
    assert not list(tmp_path.glob(".probe"))


@pytest.mark.parametrize("stop", range(1, 15))
def test_every_step_is_a_place_to_go_on(tmp_path, undisturbed, stop):
    class Enough(Exception):
        pass

    count = iter(range(1, 100))

    def before():
        if next(count) > stop:
            raise Enough

    with pytest.raises(Enough):
        short_run(tmp_path, TinyData(before=before), save_every_steps=1)
    assert_same(short_run(tmp_path, resume=True), undisturbed[0])


def test_a_failing_evaluation_loses_nothing(tmp_path, undisturbed):
    def fails(model):
        raise RuntimeError("no query")

    with pytest.raises(RuntimeError, match="no query"):
        short_run(tmp_path, evaluate=fails)
    data = TinyData(before=lambda: pytest.fail("a step was repeated"))
    data.batches = lambda epoch, start: iter(())  # all 5 steps of the last epoch are done
    scores = []

    def evaluate(model):
        scores.append({n: t.clone() for n, t in model.state_dict().items()})
        return {"mAP": 1.0}

    resumed = short_run(tmp_path, resume=True, evaluate=evaluate)
    assert_same(resumed, undisturbed[0])
    assert len(scores) == 1
    assert torch.equal(scores[0]["conv.weight"], resumed.network.conv.weight)


def test_a_finished_run_resumes_to_its_end(tmp_path):
    trained = short_run(tmp_path, evaluate=lambda model: {"mAP": 0.25})
    data = TinyData(before=lambda: pytest.fail("a step was repeated"))
    fresh = objective()
    metrics = fit(fresh, data, recipe(), tmp_path, resume=True, **OPTIONS)
    assert metrics == {"mAP": 0.25}
    assert_same(fresh, trained)


def test_resume_without_a_state_starts_at_the_beginning(tmp_path, undisturbed):
    assert_same(short_run(tmp_path, resume=True), undisturbed[0])


def test_an_old_run_is_not_overwritten(undisturbed):
    with pytest.raises(ValueError, match=r"^fit: out must be a new folder, .*--resume"):
        short_run(undisturbed[1])


def test_another_recipe_is_refused_by_field(undisturbed):
    changed = replace(recipe(), lr=0.5)
    message = (
        r"^resume: recipe\.lr must be 0\.01 as in '.*state\.pt', got 0\.5\. Give the old value"
    )
    with pytest.raises(ValueError, match=message):
        fit(objective(), TinyData(), changed, undisturbed[1], resume=True, **OPTIONS)


def test_other_data_are_refused(undisturbed):
    data = TinyData()
    data.fingerprint = "other"
    with pytest.raises(ValueError, match=r"^resume: data must be 'tiny' as in .*, got 'other'"):
        fit(objective(), data, recipe(), undisturbed[1], resume=True, **OPTIONS)


def test_another_model_is_refused(undisturbed):
    other = SupervisedObjective(TinyNet(channels=4), recipe())
    with pytest.raises(ValueError, match=r"^resume: the model must be the one of .*size mismatch"):
        fit(other, TinyData(), recipe(), undisturbed[1], resume=True, **OPTIONS)


def foreign(value, seal=lambda body: b""):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue() + seal(buffer.getvalue())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no state",
        foreign({"model": torch.zeros(1)}),
        foreign({"format": os.system}, _seal),  # code instead of tensors: weights_only refuses it
    ],
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"must be a training state of format '{FORMAT}'"):
        short_run(tmp_path, resume=True)


def test_damage_anywhere_is_found(tmp_path, undisturbed):
    whole = (undisturbed[1] / "state.pt").read_bytes()
    generator = random.Random(0)
    for place in [0, len(whole) - 1, *(generator.randrange(len(whole)) for _ in range(20))]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << generator.randrange(8)
        for damaged in (bytes(flipped), whole[:place]):
            (tmp_path / "state.pt").write_bytes(damaged)
            with pytest.raises(ValueError, match=r"^resume: '.*' must be .* or a damaged file\."):
                short_run(tmp_path, resume=True)


def test_two_processes(tmp_path):
    """Equal batches: the run of one process, bit for bit. Other batches: equal weights."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(WORKER), str(tmp_path)],
        env=worker_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    (tmp_path / "alone").mkdir()
    parallel_run(tmp_path / "alone")
    alone = torch.load(tmp_path / "alone" / "rank0.pt")
    for run in ("same", "other"):
        for name, tensor in first[run].items():
            assert torch.equal(tensor, second[run][name]), name
    for name, tensor in first["same"].items():
        assert torch.equal(tensor, alone["same"][name]), name
    assert not torch.equal(first["other"]["joint.weights"], alone["other"]["joint.weights"])
    starts = [json.loads(line) for line in (tmp_path / "same" / "log.jsonl").open()]
    assert [row["world_size"] for row in starts if row["kind"] == "start"] == [2]
