"""The progressive file: every prefix is a chain, all of it is the chain, and no byte is wasted."""

from __future__ import annotations

import doctest
import itertools
import json
from dataclasses import replace

import nets
import numpy as np
import pytest
import torch
from torchless import without_torch
from typer.testing import CliRunner

from oskt import edge
from oskt.chain import WeightChain
from oskt.chain.calibration import calibrate
from oskt.cli import app
from oskt.files import part_file, progressive
from oskt.files.part_file import PartFile
from oskt.files.progressive import extend, outline, read, write
from oskt.files.widening import lacking, widened
from oskt.models.resnet import ResNet
from oskt.students import load_model

SMALL, IMAGES = nets.SMALL, torch.zeros(2, 3, 64, 32)
NETS = {
    **nets.CASES,
    "ResNet": (lambda: ResNet(50, in_planes=16, num_classes=7, layers=(1, 1, 1, 1)), IMAGES),
}
WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1)


def make_chain(name, method="ward"):
    """Nested, without a classifier, with statistics measured at widths between the parts'."""
    torch.manual_seed(0)
    make, images = NETS[name]
    chain = WeightChain.from_teacher(
        nets.varied(make()), images, "nested", width=1 / 8, check=False, method=method
    )
    if name == "ResNet":
        batch = torch.randn(4, *images.shape[1:])
        chain = calibrate(chain, lambda: [batch], (1 / 4, 3 / 8, 3 / 4))
    return chain.lean()


@pytest.fixture(scope="module", params=[(n, m) for n in NETS for m in ("ward", "magnitude")],
                ids="-".join)  # fmt: skip
def any_chain(request):
    return make_chain(*request.param)


@pytest.fixture(scope="module")
def chain():
    return make_chain("ResNet")


@pytest.fixture(scope="module")
def data(chain, tmp_path_factory):
    """The bytes of its progressive file."""
    path = tmp_path_factory.mktemp("progressive") / "chain"
    write(chain, path)
    return path.read_bytes()


def weights(*source):
    """Those of the only chain."""
    [contents] = read(*source)
    return contents.weights


def levels_of(chain):
    """The float64 contents of the chain at every part's width."""
    exact = chain.to(torch.float64)
    return [exact.truncated(width).contents().mapped(np.asarray) for width in WIDTHS]


# -- the equation -------------------------------------------------------------------------------


def test_a_student_and_what_it_lacks_are_the_chain(any_chain):
    """In float64, where the student is a sum of at most 640 terms of magnitude 1 (Mixed's
    flattened columns), solved for by a division by a share of at least 1/64."""
    for narrow, wide in itertools.pairwise(levels_of(any_chain)):
        widths = {name: group.size for name, group in narrow.coupling.free.items()}
        others = lacking(wide, widths)
        assert len(others) + len(narrow.weights) == len(wide.weights)
        again = widened(replace(wide, weights=None), widths, narrow.weights, others)
        assert abs(again - wide.weights).max(initial=0) < 640 * 64 * 2**-53
        assert np.count_nonzero(again == wide.weights) >= len(others)


# -- what comes back ----------------------------------------------------------------------------


def bounds(levels, unit):
    """Per part, how far its weights may be from the chain's.

    Stored numbers are off by `unit` of themselves. In A = sum of a W, solved for one W, all errors
    add up: (E_A + sum of a E_W) / a, which is `widened` of -E_A and E_W but for the sign. float64
    in between adds less than 1 %; the result is rounded once more.
    """
    error = unit * abs(levels[0].weights)
    yield 1.01 * error
    for narrow, wide in itertools.pairwise(levels):
        widths = {name: group.size for name, group in narrow.coupling.free.items()}
        stored = unit * abs(lacking(wide, widths))
        error = abs(widened(replace(wide, weights=None), widths, -error, stored))
        yield 1.01 * error + 2**-24 * abs(wide.weights)


def assert_is_the_level(contents, level, bound):
    """Equal to the float64 contents of the chain's truncation, but for float32."""
    assert contents.coupling == level.coupling
    assert contents.absent == level.absent
    assert contents.meta == json.loads(json.dumps(level.meta))
    for name, tree in level.trees.items():
        mine = contents.trees[name]
        for field in ("order", "parent", "sizes", "narrowest", "blocks", "measured"):
            assert np.array_equal(getattr(mine, field), getattr(tree, field)), field
    for name in ("vectors", "statistics"):
        assert np.array_equal(getattr(contents, name), getattr(level, name).astype(np.float32))
    assert contents.plain.keys() == level.plain.keys()
    assert all(np.array_equal(array, level.plain[n]) for n, array in contents.plain.items())
    assert contents.weights.dtype == np.float32
    assert (abs(contents.weights.astype(float) - level.weights) <= bound).all()


def test_every_part_is_the_truncated_chain(any_chain, tmp_path):
    parts = write(any_chain, tmp_path / "chain", WIDTHS)
    data, levels = (tmp_path / "chain").read_bytes(), levels_of(any_chain)
    assert parts[-1].end == len(data)
    for number, (level, bound) in enumerate(zip(levels, bounds(levels, 2**-24))):
        # 2 u times the entries of a cluster pair, of which these nets have at most 128
        assert bound.max() < 2 * 2**-24 * 128 * abs(level.weights).max()
        for source in (data[: parts[number].end], data):
            assert_is_the_level(*read(source, number + 1), level, bound)


def test_the_whole_file_is_the_chain(any_chain, tmp_path):
    """All but the numbers that were solved for: bit for bit."""
    write(any_chain, tmp_path / "chain", WIDTHS)
    [back] = read(tmp_path / "chain")
    for name in ("vectors", "statistics"):
        assert np.array_equal(getattr(back, name), getattr(any_chain, name).numpy())
    known = any_chain.weights.numel() - any_chain.truncated(WIDTHS[-2]).weights.numel()
    assert np.count_nonzero(back.weights == any_chain.weights.numpy()) >= known


def test_parts_hold_the_numbers_of_the_weights_once(any_chain, tmp_path):
    write(any_chain, tmp_path / "chain")
    file = PartFile(tmp_path / "chain")
    numbers = [len(file.read(part)["weights"]) for part in file.parts]
    assert sum(numbers) == any_chain.weights.numel()
    ends = [any_chain.truncated(width).weights.numel() for width in WIDTHS]
    assert np.cumsum(numbers).tolist() == ends


def test_half_precision(chain, tmp_path):
    """Unit 2^-11, and 2^-25 for numbers below half's normal range."""
    write(chain, tmp_path / "half", dtype="float16")
    write(chain, tmp_path / "single")
    sizes = [(tmp_path / name).stat().st_size for name in ("half", "single")]
    assert sizes[1] - sizes[0] > 2 * chain.weights.numel()
    levels = levels_of(chain)
    *_, bound = bounds(levels, 2**-11)
    *_, smallest = bounds([replace(x, weights=np.full_like(x.weights, 2**-25)) for x in levels], 1)
    [back] = read(tmp_path / "half")
    assert back.weights.dtype == np.float32
    assert (abs(back.weights - chain.weights.numpy()) <= bound + smallest).all()
    error = np.square(back.weights - chain.weights.numpy()).mean() ** 0.5
    assert 0 < error < 2**-9 * np.square(chain.weights.numpy()).mean() ** 0.5


def test_students_of_every_prefix(chain, data):
    """Loaded by WeightChain and by the edge: the same chain, and students that run."""
    images = torch.randn(2, 3, 64, 32)
    for width, part in zip(WIDTHS, outline(data)):
        here, there = WeightChain.load(data[: part.end]), edge.load(data[: part.end])
        assert here.groups == there.groups == chain.resolve(width) == part.about["widths"]
        assert here.widths == there.widths
        assert here.verify(quiet=True) < 1e-12
        for share in (0.5, 1.0):
            student = here.student(width=share)
            arrays = there.student(width=share)
            for name, tensor in student.state_dict().items():
                if name not in here.absent:
                    torch.testing.assert_close(torch.from_numpy(arrays[name]), tensor)
            expected = chain.student(widths=student.widths)
            # float32 weights equal to a few roundings, 13 layers
            torch.testing.assert_close(student(images), expected(images), rtol=1e-4, atol=1e-4)


def test_modules_of_ones_own_need_their_template(tmp_path):
    net = nets.varied(nets.Mixed())
    write(WeightChain.from_teacher(net, SMALL, "nested", check=False), tmp_path / "chain")
    data = (tmp_path / "chain").read_bytes()
    first = data[: outline(data)[0].end]
    assert WeightChain.load(first, template=net).student(width=1)(SMALL).shape == (2, 10)
    with pytest.raises(ValueError, match="template must be known"):
        WeightChain.load(first).student(width=1)
    with pytest.raises(ValueError, match="tensors of the chain in these bytes, got"):
        WeightChain.load(first, template=torch.nn.Linear(2, 2))


def test_a_chain_cut_before_and_a_classifier_that_stays(tmp_path):
    torch.manual_seed(0)
    teacher = nets.varied(ResNet(18, in_planes=8, num_classes=5))
    chain = WeightChain.from_teacher(teacher, IMAGES, "nested", check=False)
    write(chain.truncated(0.5), tmp_path / "chain", (0.5, 1.0), classifier=True)
    back = WeightChain.load(tmp_path / "chain")
    assert (back.groups, back.absent) == (chain.truncated(0.5).groups, ())
    assert back.meta["whole"] == chain.groups
    assert back.expand(back.groups)["classifier.weight"].shape == (5, 32)


def test_equal_chains_are_equal_files(chain, data, tmp_path):
    write(chain, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == data


def test_what_a_later_version_adds_is_no_obstacle(data, tmp_path):
    """Arrays, values and parts that this version does not know."""
    file = PartFile(data)
    parts = [({**p.about, "new": 1}, {**file.read(p), "new.array": np.ones(3)}) for p in file.parts]
    part_file.write(tmp_path / "later", {**file.shared, "new": {}}, parts)
    assert np.array_equal(weights(tmp_path / "later"), weights(data))


# -- prefixes -----------------------------------------------------------------------------------


def test_a_prefix_gives_its_whole_parts(chain, data):
    ends = [part.end for part in outline(data)]
    for count, (end, following) in enumerate(itertools.pairwise([*ends, len(data) + 1]), 1):
        for size in {end, (end + following) // 2, following - 1}:
            widths = {n: g.size for n, g in read(data[:size])[0].coupling.free.items()}
            assert widths == chain.resolve(WIDTHS[count - 1])


def test_too_little(data, tmp_path):
    first = outline(data)[0]
    header = first.end - first.size
    for size, wanted in [(0, 59), (5, 59), (58, 59), (59, header), (header - 1, header)]:
        with pytest.raises(ValueError, match=rf"must hold at least its header, {wanted:,} bytes, "):
            outline(data[:size])
        with pytest.raises(ValueError, match=rf"got {size:,}\. Fetch more of the file\."):
            read(data[:size])
    assert outline(data[:header]) == outline(data)
    for size in (header, first.end - 1):
        with pytest.raises(ValueError, match=rf"hold from {first.end:,} bytes, its first part, .*"
                                             rf"got {size:,}\. Fetch more"):  # fmt: skip
            read(data[:size])
    with pytest.raises(ValueError, match=r"got .*\. Fetch it again\."):
        read(data + b"\0")
    (tmp_path / "chain").write_bytes(data[: first.end - 1])
    with pytest.raises(ValueError, match=rf"load: '.*chain' must hold from {first.end:,} bytes"):
        WeightChain.load(tmp_path / "chain")


def test_parts_on_request(data):
    assert len(weights(data, 1)) < len(weights(data, 2))
    first = data[: outline(data)[0].end]
    for parts, there in [(0, 4), (5, 4), (-1, 4)]:
        with pytest.raises(ValueError, match=rf"parts must be from 1 to {there}, .*got {parts}\."):
            read(data, parts)
    with pytest.raises(ValueError, match=r"parts must be from 1 to 1, .* bytes, got 2\. Its 4 par"):
        read(first, 2)


def test_reading_the_first_part_reads_its_bytes_alone(data, tmp_path):
    """From a path, what lies behind is not even looked at."""
    first, last = outline(data)[0], outline(data)[-1]
    (tmp_path / "chain").write_bytes(data[: first.end] + bytes(last.end - first.end))
    assert np.array_equal(weights(tmp_path / "chain", 1), weights(data, 1))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (0, r"must begin with b'oskt-progressive/1\\n', got b'n"),
        (20, r"must hold at least its header|header of .* must match"),  # its length
        (30, "the header of .* bytes must match its checksum, .*fetch the first "),
        (100, "the header of .* bytes must match its checksum, .*fetch the first "),
    ],
)
def test_edited_headers(data, place, message):
    edited = bytearray(data)
    edited[place] ^= 1
    with pytest.raises(ValueError, match=message):
        read(bytes(edited))


def test_a_damaged_length_reads_no_more_than_there_is(data, tmp_path):
    start = len(part_file.MAGIC)
    for length in (2**40, 2**64 - 1):
        edited = data[:start] + length.to_bytes(8, "little") + data[start + 8 :]
        (tmp_path / "chain").write_bytes(edited)
        for source in (edited, tmp_path / "chain"):
            with pytest.raises(ValueError, match="must hold at least its header"):
                read(source)


@pytest.mark.parametrize("number", range(4))
def test_edited_parts(data, number):
    part = outline(data)[number]
    edited = bytearray(data)
    edited[part.end - 1] ^= 1
    edited = bytes(edited)
    with pytest.raises(
        ValueError, match=rf"part {number + 1} of .* bytes {part.start:,} to {part.end:,} again"
    ):
        read(edited)
    if number:
        with pytest.raises(ValueError, match=rf"read the {number} before it with parts={number}\."):
            read(edited)
        assert np.array_equal(weights(edited, number), weights(data, number))


def test_other_files(chain, tmp_path):
    chain.save(tmp_path / "chain")
    assert not part_file.is_part_file(tmp_path / "chain")
    with pytest.raises(ValueError, match="must begin with b'oskt-progressive/1"):
        read(tmp_path / "chain")
    with pytest.raises(FileNotFoundError, match=r"must be a progressive file, got '.*none', which"):
        read(tmp_path / "none")
    assert not part_file.is_part_file(tmp_path / "none")


# -- widening what lies here --------------------------------------------------------------------


def test_further_bytes_widen_the_file(data, tmp_path):
    """In three deliveries, of which one ends within a part."""
    path, ends = tmp_path / "chain", [part.end for part in outline(data)]
    path.write_bytes(data[: ends[0]])
    middle = (ends[1] + ends[2]) // 2
    assert len(extend(path, data[ends[0] : middle])) == 2
    assert len(extend(path, data[middle : ends[2]])) == 3
    whole = extend(path, data[ends[2] :])
    assert [part.end for part in whole] == ends
    assert path.read_bytes() == data


def test_wrong_further_bytes_change_nothing(data, tmp_path):
    path, (first, second, *_, last) = tmp_path / "chain", outline(data)
    path.write_bytes(data[: first.end])
    edited = bytearray(data)
    edited[second.end - 1] ^= 1
    for more, message in [
        (bytes(edited[first.end : second.end]), "part 2 of .* must match its checksum"),
        (data[second.end : last.end], "part 2 of .* must match its checksum"),  # a gap
        (data[first.end :] + b"\0", r"bytes must hold from .* Fetch it again\."),
    ]:
        with pytest.raises(ValueError, match=message):
            extend(path, more)
        assert path.read_bytes() == data[: first.end]
    with pytest.raises(FileNotFoundError):
        extend(tmp_path / "none", data)
    assert [p.name for p in tmp_path.iterdir()] == ["chain"]


# -- requests that cannot be met ----------------------------------------------------------------


@pytest.mark.parametrize(
    "widths", [(), (0, 1), (0.5, 0.5), (0.5, 0.25), (0.5, 1.5), (-0.5, 1), (float("nan"),)]
)
def test_widths_must_ascend(chain, tmp_path, widths):
    with pytest.raises(ValueError, match=r"write: widths must ascend in \(0, 1\], got \["):
        write(chain, tmp_path / "chain", widths)
    assert list(tmp_path.iterdir()) == []


def test_chains_that_cannot_be_written(chain, tmp_path):
    published = WeightChain.from_teacher(ResNet(18, in_planes=4), IMAGES, check=False)
    with pytest.raises(ValueError, match=r"write: chain must be nested, got kind 'oskt'"):
        write(published, tmp_path / "chain")
    with pytest.raises(ValueError, match=r"dtype that NumPy has, got torch\.bfloat16"):
        write(chain.to(torch.bfloat16), tmp_path / "chain")
    assert list(tmp_path.iterdir()) == []


# -- the bytes ----------------------------------------------------------------------------------


def test_arrays_come_back_in_their_dtypes_and_shapes(tmp_path):
    arrays = {
        "bytes": np.arange(5, dtype=np.uint8),  # leaves what follows unaligned
        "scalar": np.array(7, dtype=np.int64),
        "empty": np.empty((0, 3), dtype=np.float32),
        "half": np.array([[1, 2], [3, 4]], dtype=np.float16).T,
        "big": np.arange(3, dtype=">f8"),
    }
    part_file.write(tmp_path / "file", {"a": 1}, [({"b": 2}, arrays), ({}, {})])
    file = PartFile(tmp_path / "file")
    assert (file.shared, file.parts[0].about, str(file)) == ({"a": 1}, {"b": 2}, f"'{file.source}'")
    assert file.read(file.parts[1]) == {}
    for name, array in file.read(file.parts[0]).items():
        assert array.dtype == arrays[name].dtype.newbyteorder("=")
        assert array.flags.aligned
        assert array.flags.writeable
        assert np.array_equal(array, arrays[name])
        assert array.shape == arrays[name].shape


def test_a_process_without_torch_reads_a_prefix(chain, data, tmp_path):
    (tmp_path / "chain").write_bytes(data[: outline(data)[1].end])
    code = (
        "import numpy, oskt.edge\n"
        "chain = oskt.edge.load(sys.argv[1])\n"
        "numpy.savez(sys.argv[2], **chain.student(width=1.0))\n"
    )
    ran = without_torch(code, tmp_path / "chain", tmp_path / "student.npz")
    assert ran.returncode == 0, ran.stderr
    expected = WeightChain.load(tmp_path / "chain")
    with np.load(tmp_path / "student.npz") as arrays:
        for name, tensor in expected.expand(expected.groups).items():
            assert np.array_equal(arrays[name], tensor.numpy()), name


# -- commands -----------------------------------------------------------------------------------


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_pack_expand_info(chain, data, tmp_path):
    chain.save(tmp_path / "chain")
    output = run("pack", tmp_path / "chain", "--out", tmp_path / "packed")
    assert (tmp_path / "packed").read_bytes() == data
    first, second, *_ = outline(data)
    assert f"{first.end:,}" in output
    (tmp_path / "packed").write_bytes(data[: second.end + 1])
    output = run("info", tmp_path / "packed")
    assert "layer1.0.conv3" in output
    assert f"{second.end:,}" in output
    run("expand", tmp_path / "packed", "--width", 1, "--out", tmp_path / "student")
    model, meta = load_model(tmp_path / "student")
    [arrays] = read(data, 2)
    assert meta["widths"] == second.about["widths"]
    weight = model.conv1.weight.detach().numpy().ravel()
    assert np.array_equal(weight, arrays.weights[: weight.size])
    run("pack", tmp_path / "chain", "--out", tmp_path / "two", "--widths", "0.25,1", "--half")
    assert len(outline(tmp_path / "two")) == 2
    with pytest.raises(ValueError, match="--widths must be numbers with commas between, got '1/4'"):
        run("pack", tmp_path / "chain", "--out", tmp_path / "no", "--widths", "1/4")


def test_the_edge_command_reads_a_prefix(data, tmp_path, capsys):
    (tmp_path / "chain").write_bytes(data[: outline(data)[0].end])
    edge.main([str(tmp_path / "chain"), "--width", "1", "--out", str(tmp_path / "student")])
    model, meta = load_model(tmp_path / "student")
    assert meta["widths"] == outline(data)[0].about["widths"]
    assert f"{WeightChain.load(tmp_path / 'chain').costs(meta['widths'])[0]:,} parameters" in (
        capsys.readouterr().out
    )
    assert model(torch.randn(2, 3, 64, 32)).shape == (2, 64)


@pytest.mark.parametrize("module", [progressive, part_file])
def test_examples(module):
    assert doctest.testmod(module).failed == 0
