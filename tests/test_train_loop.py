"""The loop: reports, evaluation, numbers that are none, disks, signals, refusals."""

import json
import os
import re
import resource
import shutil
import signal
from collections import namedtuple

import pytest
import torch
from torch import nn
from train_fakes import TinyData, TinyNet, objective, recipe, short_run

import oskt.train.loop
from oskt.train import Recipe, fit
from oskt.train.average import WeightAverage
from oskt.train.process import StopRequest, World, seed_step
from oskt.train.teacher import SupervisedObjective
from oskt.train.updater import Updater

OPTIONS = {"tensorboard": False, "device": "cpu"}


def lines(out, kind):
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == kind]


def test_a_network_learns(tmp_path):
    trained = objective()
    fit(trained, TinyData(steps=10), recipe(epochs=6), tmp_path, **OPTIONS)
    epochs = lines(tmp_path, "epoch")
    assert [row["epoch"] for row in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[-1]["accuracy"] > 0.8 > 0.6 > epochs[0]["accuracy"]
    assert epochs[-1]["loss"] < epochs[0]["loss"]


def test_one_step_is_the_textbook_step(tmp_path, device):
    """SGD of the network and of the centers, by hand; a GPU would take halves by itself."""
    changes = {"weight_decay": 0.0, "momentum": 0.0, "warmup_epochs": 0}
    changes |= {"optimizer": "sgd", "precision": "fp32"}
    trained = objective(**changes)
    plain = {n: p.detach().clone() for n, p in trained.named_parameters() if p.requires_grad}
    images, ids, _ = next(TinyData().batches(1))
    seed_step(0, 0, 1, 1)
    trained.to(device).train()
    images = images.to(device, memory_format=torch.channels_last)  # as fit hands them over
    loss, _ = trained(images, ids, 0.0)
    grads = dict(
        zip(plain, torch.autograd.grad(loss, [p for p in trained.parameters() if p.requires_grad]))
    )
    trained = objective(**changes)
    fit(
        trained, TinyData(), trained.loss.recipe, tmp_path, max_steps=1,
        tensorboard=False, device=device,
    )  # fmt: skip
    for name, parameter in trained.named_parameters():
        if not parameter.requires_grad:
            assert torch.count_nonzero(parameter) == 0
            continue
        rate = 0.5 / 5e-4 if name == "loss.centers" else 1e-2
        expected = plain[name] - rate * grads[name].cpu()
        torch.testing.assert_close(parameter.detach().cpu(), expected, rtol=1e-5, atol=1e-6)


def test_evaluation_sees_every_network_in_evaluation_mode(tmp_path):
    seen = []

    def evaluate(model):
        seen.append((model.training, torch.is_grad_enabled(), type(model)))
        return {"mAP": len(seen) / 10}

    trained = objective(epochs=5)
    metrics = fit(
        trained,
        TinyData(),
        recipe(epochs=5),
        tmp_path,
        evaluate=evaluate,
        evaluate_every=2,
        **OPTIONS,
    )
    assert seen == [(False, False, TinyNet)] * 3
    assert metrics == {"mAP": 0.3}
    assert [row.get("mAP") for row in lines(tmp_path, "epoch")] == [None, 0.1, None, 0.2, 0.3]
    assert trained.training


def test_max_steps_ends_inside_an_epoch(tmp_path):
    trained = short_run(tmp_path, max_steps=7, evaluate=lambda model: {"mAP": 0.5})
    (row,) = lines(tmp_path, "end")
    assert row["mAP"] == 0.5
    assert [r["epoch"] for r in lines(tmp_path, "epoch")] == [1, 2]
    # a larger number goes on from there and ends where an undisturbed run ends
    longer = short_run(tmp_path, max_steps=11, resume=True)
    undisturbed = short_run(tmp_path / "other", max_steps=11)
    assert_same(longer, undisturbed)
    assert not torch.equal(longer.network.conv.weight, trained.network.conv.weight)


def assert_same(a, b):
    states = a.state_dict(), b.state_dict()
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_plain_lines_have_the_form_of_the_field(tmp_path, capsys):
    short_run(tmp_path, report_every=5)
    told = capsys.readouterr().err
    pattern = (
        r"Epoch\[1\] Iteration\[5/5\] Loss: [\d.]+, Acc: [\d.]+, Base Lr: [\de.-]+, "
        r"\d+ images/s, 0:00:0\d left"
    )
    assert re.search(pattern, told)


def test_the_log_names_what_ran(tmp_path):
    short_run(tmp_path)
    (start,) = lines(tmp_path, "start")
    assert start["recipe"] == recipe().to_dict()
    assert start["data"] == "tiny"
    assert start["world_size"] == 1
    assert start["versions"]["torch"] == torch.__version__
    step = lines(tmp_path, "step")[0]
    assert {"epoch", "step", "lr", "loss", "id", "triplet", "center", "images_per_s"} <= set(step)


def test_tensorboard_events(tmp_path):
    fit(objective(), TinyData(), recipe(), tmp_path, max_steps=2, device="cpu")
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_no_numbers_stop_the_run_and_keep_the_state(tmp_path):
    class Poisoned(TinyData):
        def batches(self, epoch, start=0):
            for step, (images, ids, cameras) in enumerate(super().batches(epoch, start), start):
                yield images * (float("nan") if (epoch, step) == (2, 3) else 1.0), ids, cameras

    message = (
        r"^fit: loss must be finite, got loss nan, .*in epoch 2, step 4; '.*state\.pt' still holds "
        r"the last good state\. Try a lower lr \(it is 0\.01\), more warmup_epochs"
    )
    with pytest.raises(FloatingPointError, match=message):
        short_run(tmp_path, Poisoned())
    healthy = short_run(tmp_path, resume=True)  # the kept state is whole
    assert_same(healthy, short_run(tmp_path / "other"))


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    class Infinite(nn.Module):
        """A finite loss with a gradient that is not."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, images, ids, progress):
            return self.weight.sqrt().sum(), {}

    message = r"weights must be finite, .* in epoch 1, step 1; nothing was saved"
    with pytest.raises(FloatingPointError, match=message):
        fit(Infinite(), TinyData(), recipe(), tmp_path, save_every_steps=1, **OPTIONS)
    assert not (tmp_path / "state.pt").exists()


def test_a_folder_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    data = TinyData(before=lambda: pytest.fail("a batch was read"))
    with pytest.raises(OSError, match=r"write: .* must be writable .*choose another folder"):
        short_run(tmp_path / "file" / "out", data)


def test_a_small_disk_is_found_at_once(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(OSError, match=r"^fit: out must have 0\.\d MB free .*, got 0\.0 MB in "):
        short_run(tmp_path)


def test_a_disk_that_fills_up_is_said_and_training_goes_on(tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = TinyData(
        before=lambda: (
            (tmp_path / "state.pt").exists()
            and resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, hard))
        )
    )
    try:
        trained = short_run(tmp_path, data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "The training state was NOT saved: write: '" in capsys.readouterr().err
    assert_same(trained, short_run(tmp_path / "other"))
    assert_same(trained, short_run(tmp_path, resume=True))  # the kept state is whole


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_log_without_room_is_said_and_training_goes_on(tmp_path, capsys, tensorboard):
    """No file can grow by more than 20 bytes: lines of the log are whole or not there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = tmp_path / "log.jsonl"
    data = TinyData(
        before=lambda: (
            (tmp_path / "state.pt").exists()
            and resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 20, hard))
        )
    )
    try:
        trained = short_run(tmp_path, data, report_every=1, tensorboard=tensorboard)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "A line of log.jsonl was NOT written: " in capsys.readouterr().err
    assert 0 < len(lines(tmp_path, "step")) < 15
    assert_same(trained, short_run(tmp_path / "other"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_save_and_say_how_to_go_on(tmp_path, number):
    handler = signal.getsignal(number)
    count = iter(range(1, 100))
    data = TinyData(before=lambda: next(count) == 8 and os.kill(os.getpid(), number))
    message = r"^fit: stopped in epoch 2 after step 3, state saved\. .*--resume to go on in '"
    with pytest.raises(KeyboardInterrupt, match=message):
        short_run(tmp_path, data)
    assert signal.getsignal(number) is handler
    assert_same(short_run(tmp_path, resume=True), short_run(tmp_path / "other"))


def test_an_interrupt_in_the_last_evaluation_is_kept(tmp_path):
    def evaluate(model):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"mAP": 0.25}

    with pytest.raises(KeyboardInterrupt, match="after step 0, state saved"):
        short_run(tmp_path, evaluate=evaluate, evaluate_every=3)
    data = TinyData(before=lambda: pytest.fail("a step was repeated"))
    assert fit(objective(), data, recipe(), tmp_path, resume=True, **OPTIONS) == {"mAP": 0.25}


def test_scores_may_have_the_names_of_other_things(tmp_path):
    scores = {"kind": 1.0, "epoch": 2.0, "loss": 3.0}
    assert fit(objective(), TinyData(), recipe(), tmp_path, evaluate=lambda _: scores, **OPTIONS)
    assert [row["epoch"] for row in lines(tmp_path, "epoch")] == [1, 2, 3]
    (row,) = lines(tmp_path, "end")
    assert row["loss"] == 3.0


def test_numbers_out_of_range_are_refused(tmp_path):
    for name in ("evaluate_every", "report_every"):
        with pytest.raises(ValueError, match=rf"^fit: {name} must be >= 1, got 0\. Give"):
            short_run(tmp_path, **{name: 0})
    with pytest.raises(ValueError, match=r"^fit: data must hold a batch or more, got none\."):
        fit(objective(), TinyData(steps=0), recipe(), tmp_path, **OPTIONS)


def test_the_second_interrupt_is_not_held_back():
    # A shell starts its background jobs with SIGINT ignored, this test run perhaps among them.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_data_that_ends_early_is_refused(tmp_path):
    data = TinyData(steps=3)
    data.steps = 3
    type_ = type("Short", (TinyData,), {"__len__": lambda self: 5})
    with pytest.raises(ValueError, match=r"^fit: data\.batches\(epoch\) must yield .* got 3 of 5"):
        short_run(tmp_path, type_(steps=3))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns(tmp_path, precision):
    trained = objective(precision=precision)
    changed = recipe(precision=precision, epochs=4)
    fit(trained, TinyData(), changed, tmp_path, **OPTIONS)
    rows = lines(tmp_path, "epoch")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert trained.network.conv.weight.dtype == torch.float32


def test_clipping_bounds_the_gradient():
    trained = objective()
    changed = recipe(optimizer="sgd", momentum=0.0, weight_decay=0.0, clip_norm=1e-3)
    updater = Updater(trained, changed, World.from_environment("cpu"))
    before = torch.cat([p.detach().flatten() for p in updater.parameters])
    images, ids, _ = next(TinyData().batches(1))
    loss, _ = trained(images, ids, 0.0)
    updater.step(loss, rate=1.0)
    after = torch.cat([p.detach().flatten() for p in updater.parameters])
    # The norm is divided by (norm + 1e-6); float32 sums of 100 squares add 1e-6 relative.
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_biases_have_their_own_rate():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    changed = Recipe(bias_lr_factor=2.0, optimizer="sgd", momentum=0.0, weight_decay=0.0)
    updater = Updater(network, changed, World.from_environment("cpu"))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    updater.step(sum(p.sum() for p in network.parameters()), rate=0.5)
    for name, parameter in network.named_parameters():
        moved = before[name] - parameter.detach()
        expected = torch.full_like(moved, 1.0 if name.endswith("bias") else 0.5)
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)


def test_the_place_among_processes_comes_from_torchrun(monkeypatch):
    assert World.from_environment("cpu") == World(0, 1, torch.device("cpu"))
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert World.from_environment("cpu") == World(3, 4, torch.device("cpu"))
    for device in ("gpu", "mps", "meta", f"cuda:{torch.cuda.device_count()}"):
        with pytest.raises(ValueError, match=f"^World: device must be .* got '{device}'"):
            World.from_environment(device)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert World.from_environment("cuda").device == torch.device("cuda", 1)


def test_processes_agree_on_what_lies_on_the_device(monkeypatch):
    """Extra state lies on the CPU, which nccl cannot send; every process counts it alike."""

    class Turning(nn.BatchNorm1d):
        def get_extra_state(self):
            return torch.tensor(3)

        def set_extra_state(self, state):
            pass

    sent = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, _: sent.append(tensor))
    net = Turning(2)
    World(0, 2, torch.device("cpu")).agree(net)
    own = [*net.parameters(), *net.buffers()]
    assert [tensor.data_ptr() for tensor in sent] == [tensor.data_ptr() for tensor in own]


def test_processes_find_that_they_do_not_see_one_file(monkeypatch):
    def reduce(bounds, op):
        assert op is torch.distributed.ReduceOp.MAX
        torch.maximum(bounds, torch.tensor([3, 0, -3, 0]), out=bounds)

    monkeypatch.setattr(torch.distributed, "all_reduce", reduce)
    assert World(0, 2, torch.device("cpu")).same(3, 0)
    assert not World(0, 2, torch.device("cpu")).same(1, 0)
    assert not World(0, 2, torch.device("cpu")).same(4, 0)
    assert World(0, 1, torch.device("cpu")).same(1, 0)


def test_steps_are_seeded_apart():
    draws = set()
    for place in [(0, 0, 1, 1), (1, 0, 1, 1), (0, 1, 1, 1), (0, 0, 2, 1), (0, 0, 1, 2)]:
        seed_step(*place)
        draws.add(torch.rand(()).item())
        seed_step(*place)
        assert torch.rand(()).item() in draws
    assert len(draws) == 5


def test_examples():
    import doctest

    assert doctest.testmod(oskt.train.loop).failed == 0
    assert doctest.testmod(oskt.train.process).failed == 0


def test_what_is_kept_is_the_mean_of_the_last_weights(tmp_path):
    """A memory of 0.4 * 10 steps; decays worked out by hand: min(3/4, n / (n + 10)), n from 0."""
    seen, scored = [], []

    class Watched(SupervisedObjective):
        def forward(self, images, ids, progress):
            seen.append(self.network.conv.weight.detach().clone())  # before its step
            return super().forward(images, ids, progress)

    def evaluate(network):
        scored.append(network.conv.weight.detach().clone())
        return {"mAP": 0.0}

    changes = recipe(epochs=2, averaging=0.4)
    torch.manual_seed(5)
    trained = Watched(TinyNet(), changes)
    plain = objective(epochs=2)
    fit(plain, TinyData(), recipe(epochs=2), tmp_path / "plain", **OPTIONS)
    fit(trained, TinyData(), changes, tmp_path / "mean", evaluate=evaluate, **OPTIONS)

    weights = [*seen[1:], plain.network.conv.weight.detach()]
    mean = torch.zeros_like(weights[0], dtype=torch.float64)
    for n, after in enumerate(weights):
        decay = min(3 / 4, n / (n + 10))
        mean = decay * mean + (1 - decay) * after.double()
    # Ten lerps of float32, each with three roundings of numbers below 1.
    torch.testing.assert_close(trained.network.conv.weight.double(), mean, rtol=0, atol=30 * 2**-24)
    assert torch.equal(scored[-1], trained.network.conv.weight)
    assert not torch.equal(plain.network.bn.running_var, trained.network.bn.running_var)


def test_a_mean_of_weights_survives_a_stop(tmp_path):
    changes = recipe(averaging=0.3)

    class Enough(Exception):
        pass

    def stops():
        if next(count) > 7:
            raise Enough

    count = iter(range(1, 100))
    whole, stopped, resumed = (objective(averaging=0.3) for _ in range(3))
    fit(whole, TinyData(), changes, tmp_path / "whole", **OPTIONS)
    every = {**OPTIONS, "save_every_steps": 1}
    with pytest.raises(Enough):
        fit(stopped, TinyData(before=stops), changes, tmp_path / "parts", **every)
    fit(resumed, TinyData(), changes, tmp_path / "parts", resume=True, **every)
    assert_same(resumed, whole)


def test_showing_the_mean_changes_nothing():
    network = TinyNet()
    average = WeightAverage(network, memory=5)
    for _ in range(3):
        nn.init.normal_(network.conv.weight)
        average.update()
    last = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with average.shown():
        assert not torch.equal(network.conv.weight, last["conv.weight"])
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, last[name])
