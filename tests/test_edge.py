"""Students without torch: equal to the operator's, from a process that has no torch at all."""

from __future__ import annotations

import copy
import doctest
import json

import nets
import numpy as np
import pytest
import torch
from torchless import without_torch
from typer.testing import CliRunner

from oskt import cli, edge, students
from oskt.chain import WeightChain
from oskt.files.checkpoint import file_hash, load_state
from oskt.models.resnet import ResNet

IMAGES = torch.zeros(2, 3, 64, 32)
WIDTHS = (0.125, 0.3, 0.5, 0.8, 1.0)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return nets.varied(ResNet(50, in_planes=16, num_classes=7, layers=(1, 1, 1, 1)))


@pytest.fixture(scope="module", params=["oskt", "nested"])
def saved(request, teacher, tmp_path_factory):
    """(chain without its classifier, its file)."""
    chain = WeightChain.from_teacher(teacher, IMAGES, request.param, width=1 / 8, check=False)
    path = tmp_path_factory.mktemp("edge") / f"{request.param}.safetensors"
    chain.save(path)
    return chain.lean(), path


def assert_equal_to_rounding(ours, chain, sizes, norm="interpolate"):
    """At most k = 64 terms a list, along rows and columns, each product and sum rounded once by
    each side: 2 * 2 * 64 roundings (2^-24) of the terms' sum of magnitudes, which is the student of
    the chain of magnitudes."""
    theirs = chain.expand(sizes, norm=norm)
    sound = chain.to(chain.weights.dtype)
    sound.weights, sound.vectors = chain.weights.abs(), chain.vectors.abs()
    sound.statistics = chain.statistics.abs()
    magnitude = sound.expand(sizes, norm=norm)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].numpy().dtype
        assert array.shape == theirs[name].shape
        bound = 256 * 2**-24 * magnitude[name].numpy()
        assert (abs(array - theirs[name].numpy()) <= bound).all(), name


def test_students_are_those_of_the_chain(saved):
    chain, path = saved
    here = edge.load(path)
    for width in WIDTHS:
        for norm in ("interpolate", "exact"):
            ours = here.student(width=width, norm=norm)
            assert_equal_to_rounding(ours, chain, chain.resolve(width), norm)


def test_copies_are_equal_bit_for_bit(saved, teacher):
    """Rows of a published chain at its full width, and all of a nested chain, read one number."""
    chain, path = saved
    ours = edge.load(path).student(width=1.0)
    exact = [
        n for n in ours if chain.kind == "nested" or chain.coupling.layouts[n].role == "weight"
    ]
    theirs = teacher.state_dict() if chain.kind == "nested" else chain.expand(chain.groups)
    assert exact
    for name in exact:
        assert np.array_equal(ours[name], theirs[name].numpy()), name


@pytest.mark.parametrize("kind", ["oskt", "nested"])
def test_grouped_depthwise_and_flattened(kind, tmp_path):
    chain = WeightChain.from_teacher(nets.Mixed(), torch.zeros(2, 3, 8, 8), kind, width=1 / 2)
    chain.save(tmp_path / "chain")
    here = edge.load(tmp_path / "chain")
    for width in WIDTHS:
        assert_equal_to_rounding(here.student(width=width), chain.lean(), chain.resolve(width))


def test_sizes_and_costs_are_those_of_the_chain(saved):
    chain, path = saved
    here = edge.load(path)
    assert (here.kind, here.groups, here.widths) == (chain.kind, chain.groups, chain.widths)
    for request in (
        {"width": 0.4},
        {"params": 60_000},
        {"macs": 2e6},
        {"params": 1e9, "macs": 1e6},
    ):
        sizes = chain.resolve(**request)
        assert here.resolve(**request) == sizes
        assert here.costs(sizes) == chain.costs(sizes)
        shapes = {name: array.shape for name, array in here.student(**request).items()}
        assert shapes == {n: tuple(t.shape) for n, t in chain.expand(sizes).items()}


def test_a_student_loads_into_its_module(saved):
    chain, path = saved
    module, images = chain.student(width=0.5), torch.randn(2, 3, 64, 32)
    expected = module(images)
    arrays = edge.load(path).student(width=0.5)
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    missing = module.load_state_dict(state, strict=False).missing_keys
    assert missing == ["classifier.weight"]
    # float32 weights equal to a few roundings, 17 layers: the tolerance of another summation order
    torch.testing.assert_close(module(images), expected, rtol=1e-4, atol=1e-4)


def test_students_are_arrays_of_their_own(saved):
    _, path = saved
    here = edge.load(path)
    for array in here.student(width=1.0).values():
        array *= 0
    assert here.student(width=1.0)["conv1.weight"].any()


def test_half_precision_files(saved, tmp_path):
    chain, _ = saved
    chain.save(tmp_path / "half", dtype=torch.float16)
    here = edge.load(tmp_path / "half")
    ours = here.student(width=0.5)
    assert ours["conv1.weight"].dtype == np.float32
    assert_equal_to_rounding(ours, WeightChain.load(tmp_path / "half"), chain.resolve(0.5))
    chain.save(tmp_path / "brain", dtype=torch.bfloat16)
    # In a process of its own: NumPy knows bfloat16 once anything has imported ml_dtypes.
    ran = without_torch("import oskt.edge; oskt.edge.load(sys.argv[1])", tmp_path / "brain")
    assert "must hold numbers that NumPy knows" in ran.stderr
    assert "torch.float16" in ran.stderr


def test_wrong_requests_and_files(saved, tmp_path):
    _, path = saved
    here = edge.load(path)
    for arguments, message in [
        ({}, "EdgeChain: one of width, widths, preset and a budget must be given, got 0"),
        ({"width": 2}, r"EdgeChain: width must be in \(0, 1\], got 2"),
        ({"params": 1}, "EdgeChain: budget must allow the smallest student, [0-9,]+ parameters"),
        ({"width": 0.5, "norm": "mean"}, "norm must be 'interpolate' or 'exact', got 'mean'"),
        ({"widths": {"layer9": 1}}, "must be a channel group, got 'layer9'"),
    ]:
        with pytest.raises(ValueError, match=message):
            here.student(**arguments)
    data = path.read_bytes()
    for wrong, message in [
        (data[: len(data) // 2], "must be a whole safetensors file"),
        (data[:-4] + bytes([data[-4] ^ 1]) + data[-3:], "must match its checksum"),
    ]:
        (tmp_path / "chain").write_bytes(wrong)
        with pytest.raises(ValueError, match=message):
            edge.load(tmp_path / "chain")
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        edge.load(tmp_path / "none")


# -- without torch ------------------------------------------------------------------------------


def test_a_process_without_torch_makes_the_same_student(saved, tmp_path):
    chain, path = saved
    code = (
        "import numpy, oskt.edge\n"
        "chain = oskt.edge.load(sys.argv[1])\n"
        "numpy.savez(sys.argv[2], **chain.student(params=60_000))\n"
    )
    ran = without_torch(code, path, tmp_path / "student.npz")
    assert ran.returncode == 0, ran.stderr
    with np.load(tmp_path / "student.npz") as ours:
        assert_equal_to_rounding(dict(ours), chain, chain.resolve(params=60_000))


def test_importing_it_imports_little():
    code = (
        "before = set(sys.modules)\n"
        "import oskt.edge\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names)))\n"
    )
    assert without_torch(code).stdout.split() == ["numpy", "oskt", "safetensors"]


def test_torch_is_named_when_it_is_missing():
    ran = without_torch("import oskt; oskt.WeightChain")
    assert "No module named 'torch'" in ran.stderr or "import of torch halted" in ran.stderr


def test_the_command_writes_a_model_file(saved, teacher, tmp_path, capsys):
    chain, path = saved
    out = tmp_path / "student.safetensors"
    edge.main([str(path), "--params", "60000", "--out", str(out)])
    sizes = chain.resolve(params=60_000)
    assert f"{chain.costs(sizes)[0]:,} parameters" in capsys.readouterr().out
    model, meta = students.load_model(out)
    assert (meta["widths"], meta["parent"]) == (sizes, file_hash(path))
    assert students.num_classes(model) == 0
    images = torch.randn(2, 3, 64, 32)
    torch.testing.assert_close(
        model(images), chain.student(widths=sizes)(images), rtol=1e-4, atol=1e-4
    )
    state, _ = load_state(out)
    assert_equal_to_rounding({n: t.numpy() for n, t in state.items()}, chain, sizes)


def test_the_command_keeps_a_classifier_that_is_there(teacher, tmp_path):
    chain = WeightChain.from_teacher(teacher, IMAGES, "nested", check=False)
    chain.save(tmp_path / "chain", classifier=True)
    edge.main([str(tmp_path / "chain"), "--width", "0.5", "--out", str(tmp_path / "student")])
    assert students.num_classes(students.load_model(tmp_path / "student")[0]) == 7


def test_the_command_says_what_is_wrong_in_one_line(saved, tmp_path):
    _, path = saved
    code = "import runpy; runpy.run_module('oskt.edge', run_name='__main__')"
    ran = without_torch(code, path, "--width", "2", "--out", tmp_path / "x")
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: EdgeChain: width must be in (0, 1], got 2.0.")
    assert list(tmp_path.iterdir()) == []
    ran = without_torch(code, path, "--params", "60000", "--out", tmp_path / "x")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(json.dumps(load_state(tmp_path / "x")[1]))["spec"]["family"] == "resnet"


def test_expand_has_it_as_a_backend(saved, tmp_path):
    chain, _ = saved
    chain, path, files = copy.copy(chain), tmp_path / "chain", {}
    chain.meta = {**chain.meta, "recipe": {"height": 64, "width": 32}}  # evaluation reads it
    chain.save(path)
    for backend in ("torch", "numpy"):
        files[backend] = tmp_path / backend
        arguments = ["expand", path, "--width", 0.5, "--norm", "exact", "--out", files[backend]]
        result = CliRunner().invoke(cli.app, [str(a) for a in (*arguments, "--backend", backend)])
        assert result.exit_code == 0, result.output
        assert "parameters" in result.output
    theirs, meta = load_state(files["torch"])
    ours, own = load_state(files["numpy"])
    assert theirs.keys() - ours.keys() == {"classifier.weight"}
    assert_equal_to_rounding(
        {name: tensor.numpy() for name, tensor in ours.items()}, chain, chain.resolve(0.5), "exact"
    )
    assert (own["widths"], own["parent"]) == (meta["widths"], meta["parent"])
    assert own["recipe"] == meta["recipe"] == {"height": 64, "width": 32}
    for wish in (["--recalibrate", "data"], ["--norm", "cosine"]):
        more = [str(a) for a in (*arguments, "--backend", "numpy", *wish)]
        with pytest.raises(ValueError, match=f"--backend must be torch for {wish[0]}.*, got num"):
            CliRunner().invoke(cli.app, more, catch_exceptions=False)


def test_the_oskt_command_expands_without_torch(saved, tmp_path):
    chain, path = saved
    code = "import runpy; runpy.run_module('oskt', run_name='__main__')"
    arguments = ("--backend", "numpy", "--params", "60000", "--out", tmp_path / "x")
    ran = without_torch(code, "expand", path, *arguments)
    assert (ran.returncode, ran.stderr) == (0, "")
    state, meta = load_state(tmp_path / "x")
    assert meta["widths"] == chain.resolve(params=60_000)
    assert_equal_to_rounding({n: t.numpy() for n, t in state.items()}, chain, meta["widths"])
    ran = without_torch(code, "expand", path, "--width", "2", "--out", tmp_path / "y")
    assert ran.stderr.startswith("error: EdgeChain: width must be in (0, 1], got 2.0.")


def test_examples():
    assert doctest.testmod(edge).failed == 0
