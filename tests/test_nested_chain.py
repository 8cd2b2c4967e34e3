"""The nested chain: every width is a merge of one set of weights, and the widest is the teacher."""

from __future__ import annotations

import json

import nets
import numpy as np
import pytest
import torch
from torch import nn

from oskt import edge, students
from oskt.chain import ChainLadder, WeightChain
from oskt.files.checkpoint import read_tensors, write_tensors
from oskt.files.tensor_file import CHAIN
from oskt.models.resnet import ResNet
from oskt.train.joint import JointModel
from oskt.train.nested import NestedModel
from oskt.widths.merge_tree import MergeTree

SMALL, IMAGES = nets.SMALL, torch.zeros(2, 3, 64, 32)
NETS = {
    **nets.CASES,
    "ResNet": (lambda: ResNet(50, in_planes=8, num_classes=7, layers=(1, 1, 1, 1)), IMAGES),
}


@pytest.fixture(scope="module", params=[(n, m) for n in NETS for m in ("ward", "magnitude")],
                ids="-".join)  # fmt: skip
def pair(request):
    """(teacher, its nested chain), of clusters that merge and of channels that are chosen."""
    torch.manual_seed(0)
    name, method = request.param
    make, images = NETS[name]
    teacher = nets.varied(make())
    return teacher, WeightChain.from_teacher(teacher, images, "nested", width=1 / 4, method=method)


@pytest.fixture(scope="module")
def chain():
    torch.manual_seed(0)
    make, images = NETS["ResNet"]
    return WeightChain.from_teacher(
        nets.varied(make()), images, "nested", width=1 / 4, method="ward"
    )


def some_widths(chain):
    """A quarter, half, all, and two draws with a width of its own for every group."""
    yield from (chain.resolve(0.25), chain.resolve(0.5), chain.groups)
    rng = np.random.default_rng(0)
    for _ in range(2):
        yield {
            name: group.blocks * int(rng.integers(1, group.size // group.blocks + 1))
            for name, group in chain.coupling.free.items()
        }


# -- what a student is --------------------------------------------------------------------------


def merge_matrix(chain, axis, sizes, mean):
    """An axis's merge, dense: one block per run of channels, one copy per entry of its area."""
    blocks = []
    for group, area in axis:
        matrix = torch.eye(chain.coupling.groups[group].size, dtype=torch.float64)
        if group in chain.partitions:
            tree = chain.partitions[group]
            labels = torch.from_numpy(tree.cut(sizes[group]).labels)
            merge = nn.functional.one_hot(labels).T.double().contiguous()
            first = [np.sort(part[: len(merge) // tree.blocks] + len(part) * block)
                     for block, part in enumerate(tree.order.reshape(tree.blocks, -1))]  # fmt: skip
            matrix = merge if tree.merges else matrix[np.concatenate(first)]
        if mean:
            matrix = matrix / matrix.sum(1, keepdim=True)
        blocks.append(torch.kron(matrix, torch.eye(area, dtype=torch.float64)))
    return torch.block_diag(*blocks)


def merged_by_hand(chain, tensor, layout, sizes):
    if not layout.rows:
        return tensor
    rows = merge_matrix(chain, layout.rows, sizes, mean=True)
    if not layout.columns:
        return (rows @ tensor.double().reshape(rows.shape[1], -1)).reshape(
            chain.coupling.shape(layout.name, sizes)
        )
    columns = merge_matrix(chain, layout.columns, sizes, mean=False)
    kernels = tensor.double().reshape(*tensor.shape[:2], -1).unbind(-1)
    count, merged = layout.groups, []
    for kernel in kernels:  # a grouped convolution is block-diagonal
        whole = rows @ torch.block_diag(*kernel.chunk(count)) @ columns.T
        blocks = [part.chunk(count, 1)[g] for g, part in enumerate(whole.chunk(count))]
        merged.append(torch.cat(blocks))
    return torch.stack(merged, -1).reshape(chain.coupling.shape(layout.name, sizes))


def test_full_width_is_the_teacher_bit_for_bit(pair):
    teacher, chain = pair
    tensors = chain.expand(chain.groups)
    assert tensors.keys() == teacher.state_dict().keys()
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensors[name], tensor), name


def test_students_are_merges_by_hand(pair):
    """Means of rows, sums of columns, or the first channels of the order, in float64: one rounding
    per product and sum of at most 640 terms (Mixed's flattened columns) of magnitude 1."""
    teacher, chain = pair
    exact = chain.to(torch.float64)
    for sizes in some_widths(chain):
        for name, tensor in exact.expand(sizes).items():
            by_hand = merged_by_hand(
                chain, teacher.state_dict()[name], chain.coupling.layouts[name], sizes
            )
            torch.testing.assert_close(
                tensor, by_hand.to(tensor.dtype), rtol=0, atol=1280 * 2**-53 * 4
            )


def test_a_student_computes_what_the_tied_network_does(pair, capsys):
    _, chain = pair
    assert chain.verify() < 1e-12
    assert "a random width per group" in capsys.readouterr().out


def test_equal_or_absent_channels_are_left_out_without_loss(pair):
    """A teacher whose channels are equal in clusters, or zero but for the first of an order, and
    the students of those widths."""
    _, chain = pair
    method = chain.meta["clustering"]["method"]
    images = torch.randn(chain.coupling.inputs[0], dtype=torch.float64)
    sizes = chain.resolve(0.5)
    teacher = chain.to(torch.float64).tied(sizes)
    again = WeightChain.from_teacher(teacher, images, "nested", check=False, method=method)
    student = again.student(widths=sizes)
    wide, narrow = teacher(images), student(images)
    ((group, _),) = chain.coupling.outputs[-1][1]
    if group in sizes:  # the features themselves are merged
        tree = again.partitions[group]
        if tree.merges:
            narrow = narrow[:, torch.from_numpy(tree.cut(sizes[group]).labels)]
        else:
            wide = wide[:, torch.from_numpy(tree.kept(sizes[group]))]
    torch.testing.assert_close(narrow, wide, rtol=1e-10, atol=1e-10)


def test_students_run_and_cost_what_is_said(pair):
    _, chain = pair
    images = torch.randn(2, *chain.coupling.inputs[0][1:])
    for sizes in some_widths(chain):
        student = chain.student(widths=sizes)
        out = student(images)
        assert torch.isfinite(out).all()
        head = tuple(f"{name}." for name in chain.meta["head"])
        own = [p.numel() for n, p in student.named_parameters() if not n.startswith(head or ("-",))]
        plain = sum(
            chain.plain[n].numel() for n, _ in student.named_parameters() if n in chain.plain
        )
        assert chain.costs(sizes)[0] == sum(own) - plain


def test_grouped_and_depthwise_students_keep_their_groups():
    chain = WeightChain.from_teacher(nets.Mixed(), SMALL, "nested", width=0.5)
    student = chain.student(widths={"stem": 6, "grouped": 8})
    assert student.depthwise.groups == 6
    assert (student.grouped.groups, student.grouped.in_channels) == (2, 6)
    assert chain.partitions["grouped"].blocks == 2
    with pytest.raises(ValueError, match=r"grouped must be from 2 to 12 in steps of 2, got 3"):
        chain.student(widths={"grouped": 3})


# -- widths -------------------------------------------------------------------------------------


def test_widths_below_the_trained_one_exist(chain):
    """`widths` is the narrowest that training runs; one channel a group is the narrowest of all."""
    assert chain.widths == {g: n // 4 for g, n in chain.groups.items()}
    assert set(chain.least.values()) == {1}
    narrowest = chain.student(widths=chain.least)
    assert narrowest(torch.randn(2, 3, 64, 32)).shape == (2, 1)
    assert chain.resolve(1e-9) == chain.least
    assert chain.resolve(params=chain.costs(chain.least)[0]) == chain.least


def test_trees_are_wards_whatever_the_width():
    teacher = nets.varied(ResNet(18, in_planes=8))
    chains = [
        WeightChain.from_teacher(teacher, IMAGES, "nested", width=w, check=False, method="ward")
        for w in (0.1, 1)
    ]
    for name, tree in chains[0].partitions.items():
        other = chains[1].partitions[name]
        assert np.array_equal(tree.order, other.order)
        assert np.array_equal(tree.parent, other.parent)
        assert (tree.narrowest, other.narrowest) == (max(1, round(0.1 * tree.rows)), tree.rows)
    heights = chains[0].meta["clustering"]["adds"]
    assert {name: len(h) + 1 for name, h in heights.items()} == chains[0].groups
    # shares of the whole, each rounded to 6 digits
    assert all(abs(sum(h) - 1) < 1e-6 * len(h) for h in heights.values())


def test_importance_is_the_mean_relative_square_of_a_channel():
    """By hand: conv1 of a block is written by itself, read by conv2, scaled by bn1."""
    teacher = nets.varied(ResNet(18, in_planes=8))
    chain = WeightChain.from_teacher(teacher, IMAGES, "nested", check=False)
    block = teacher.layer2[0]
    squares = [
        block.conv1.weight.square().sum((1, 2, 3)),
        block.conv2.weight.square().sum((0, 2, 3)),
        block.bn1.weight.square(),
    ]
    score = sum(s / s.mean() for s in squares).detach()
    tree = chain.partitions["layer2.0.conv1"]
    assert tree.order.tolist() == (-score).argsort(stable=True).tolist()
    assert not tree.merges
    adds = chain.meta["clustering"]["adds"]["layer2.0.conv1"]
    assert adds == sorted(adds, reverse=True)
    random = WeightChain.from_teacher(teacher, IMAGES, "nested", check=False, method="random")
    assert random.partitions["layer2.0.conv1"].order.tolist() != tree.order.tolist()
    with pytest.raises(ValueError, match=r"^nest_channels: method must be one of .*got 'kmeans'"):
        WeightChain.from_teacher(teacher, IMAGES, "nested", check=False, method="kmeans")


# -- truncated ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.25, 0.5, 0.8, 1.0])
def test_a_truncated_chain_has_the_narrower_students(pair, width):
    """Merging twice is merging once, but for one rounding of the merge between (float64)."""
    _, chain = pair
    exact = chain.to(torch.float64)
    short = exact.truncated(width)
    assert short.groups == chain.resolve(width)
    assert short.kind == "nested"
    for share in (0.1, 0.25, 0.5, width):
        sizes = {g: min(n, short.groups[g]) for g, n in chain.resolve(share).items()}
        once, twice = exact.expand(sizes), short.expand(sizes)
        for name, tensor in once.items():
            torch.testing.assert_close(twice[name], tensor, rtol=0, atol=1e-12)
    assert short.verify(quiet=True) < 1e-12
    x = torch.randn(2, *chain.coupling.inputs[0][1:], dtype=torch.float64)
    torch.testing.assert_close(
        short.student(widths=short.groups)(x), exact.student(width=width)(x), rtol=0, atol=0
    )


def test_truncated_at_full_width_changes_nothing(pair):
    _, chain = pair
    whole = chain.truncated(1.0)
    for name in ("weights", "vectors", "statistics"):
        assert torch.equal(getattr(whole, name), getattr(chain, name))
    assert whole.coupling == chain.coupling


def test_truncated_twice_is_truncated_once(chain):
    once, twice = chain.truncated(0.25), chain.truncated(0.5).truncated(0.5)
    assert twice.coupling == once.coupling
    assert twice.meta == once.meta
    torch.testing.assert_close(twice.weights, once.weights, rtol=0, atol=1e-6)


def test_a_truncated_chain_travels(chain, tmp_path):
    """The file of chain.truncated(w).save() is as large as that student, and all that it needs."""
    path, short = tmp_path / "chain.safetensors", chain.truncated(0.5)
    short.save(path)
    back = WeightChain.load(path)
    assert (back.groups, back.widths) == (short.groups, short.widths)
    images = torch.randn(2, 3, 64, 32)
    for sizes in (short.groups, short.resolve(0.5), short.least):
        assert torch.equal(back.student(widths=sizes)(images), short.student(widths=sizes)(images))
    chain.save(tmp_path / "whole")
    # numbers shrink to a quarter, the JSON header hardly
    numbers = sum(t.numel() for t in (short.weights, short.vectors, short.statistics))
    assert path.stat().st_size < 4 * numbers + 60_000 < (tmp_path / "whole").stat().st_size
    with pytest.raises(ValueError, match="template must have the tensors of the chain in"):
        WeightChain.load(path, template=chain.student(width=0.5))


def test_a_chain_goes_on_with_other_identities_in_its_own_order(chain, tmp_path):
    """New numbers under the old order, truncated chains too; the file knows the new classifier."""
    for old in (chain, chain.truncated(0.5)):
        whole = old.student(width=1.0)
        students.replace_classifier(whole, 5)
        with torch.no_grad():
            for tensor in whole.parameters():
                tensor.mul_(2)
        new = old.transferred(whole)
        assert [t.order.tolist() for t in new.trees.values()] == [
            t.order.tolist() for t in old.trees.values()
        ]
        assert not any(tree.measured for tree in new.trees.values())
        assert new.coupling.free == old.coupling.free
        new.save(tmp_path / "chain", classifier=True)
        back = WeightChain.load(tmp_path / "chain")
        mine, theirs = (one.student(width=0.25).state_dict() for one in (back, old))
        assert mine.pop("classifier.weight").shape[0] == 5
        for name, tensor in mine.items():
            scale = 2 if name in dict(whole.named_parameters()) else 1
            assert torch.equal(tensor, scale * theirs[name]), name
    with pytest.raises(ValueError, match="transferred: module must have the tensors of the chain"):
        chain.transferred(chain.student(width=0.5))


# -- files --------------------------------------------------------------------------------------


def test_file_round_trip(pair, tmp_path):
    teacher, chain = pair
    path = tmp_path / "chain"
    chain.save(path, classifier=True)
    template = None if isinstance(teacher, ResNet) else teacher
    back = WeightChain.load(path, template=template)
    assert back.coupling == chain.coupling
    assert back.meta == json.loads(json.dumps(chain.meta))
    assert (back.kind, back.widths, back.least) == ("nested", chain.widths, chain.least)
    for sizes in some_widths(chain):
        tensors = back.expand(sizes)
        for name, tensor in chain.expand(sizes).items():
            assert torch.equal(tensors[name], tensor), name


def test_the_classifier_stays_behind(chain, tmp_path):
    chain.save(tmp_path / "chain", dtype=torch.float16)
    back = WeightChain.load(tmp_path / "chain")
    assert back.absent == ("classifier.weight",)
    assert back.weights.dtype == torch.float32
    lean = chain.lean()
    assert torch.equal(back.weights, lean.weights.half().float())
    images = torch.randn(2, 3, 64, 32)
    assert torch.equal(lean.student(width=0.5)(images), chain.student(width=0.5)(images))
    assert torch.equal(lean.lean().weights, lean.weights)


@pytest.mark.parametrize(
    ("field", "edit", "message"),
    [
        ("parent", lambda t: t.roll(1), "parent.i. in 0..i-1 after -1"),
        ("order", lambda t: t.clamp(max=1), "order must be a permutation"),
        ("sizes", lambda t: t * 0, "and sizes positive"),
        ("parent", lambda t: t[:-1], "belong to different groups"),
    ],
)
def test_edited_trees(chain, tmp_path, field, edit, message):
    """Edited and signed again; merely edited files fail their checksum (test_chain)."""
    chain.save(tmp_path / "chain")
    tensors, header = read_tensors(tmp_path / "chain", CHAIN)
    header.pop("format")
    name = f"{field}.layer1.0.conv1"
    write_tensors(tmp_path / "chain", CHAIN, {**tensors, name: edit(tensors[name])}, header)
    with pytest.raises(ValueError, match=rf"^MergeTree: .*{message}.*"):
        WeightChain.load(tmp_path / "chain")


# -- two kinds ----------------------------------------------------------------------------------


def test_what_one_kind_has_and_the_other_not(chain):
    published = WeightChain.from_teacher(nets.varied(ResNet(18, in_planes=4)), IMAGES, check=False)
    assert (published.kind, published.trees) == ("oskt", {})
    assert (chain.kind, chain.clusterings) == ("nested", {})
    assert all(isinstance(tree, MergeTree) for tree in chain.trees.values())
    with pytest.raises(ValueError, match=r"truncated: chain must be nested, got kind 'oskt'"):
        published.truncated(0.5)
    teacher = ResNet(18, in_planes=4)
    with pytest.raises(
        ValueError, match=r"NestedModel: chain must be of kind 'nested', got 'oskt'"
    ):
        NestedModel(teacher, published)
    with pytest.raises(ValueError, match=r"JointModel: chain must be of kind 'oskt', got 'nested'"):
        JointModel(teacher, chain)


@pytest.mark.parametrize("kind", ["oskt", "nested"])
def test_a_chain_of_a_teacher_that_is_frozen_keeps_its_kind(kind, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1), nn.Conv2d(4, 2, 1))
    chain = WeightChain.from_teacher(net, SMALL, kind)
    chain.save(tmp_path / "chain")
    back = WeightChain.load(tmp_path / "chain", template=net)
    for one in (chain, back, edge.load(tmp_path / "chain")):
        assert (one.groups, one.kind) == ({}, kind)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(back.student(width=0.5)(images), net(images))
    with pytest.raises(ValueError, match=r"ladder: chains must have a group whose width can chan"):
        ChainLadder.from_teacher(net, SMALL, kind=kind)


def test_norm_says_nothing_of_a_nested_chain(chain):
    sizes = chain.resolve(0.5)
    exact = chain.expand(sizes, norm="exact")
    assert all(torch.equal(exact[n], t) for n, t in chain.expand(sizes).items())


def test_cosines_of_one_gallery_are_not_to_be_had_of_a_nested_chain(chain):
    for source in (chain, ChainLadder([chain])):
        with pytest.raises(ValueError, match=r"'cosine' must be of a published chain, got kind 'n"):
            source.student(width=0.5, norm="cosine")


def test_truncated_widths_out_of_range(chain):
    with pytest.raises(ValueError, match=r"width must be in \(0, 1\], got 0"):
        chain.truncated(0)


def test_a_chain_without_its_template_can_be_truncated(tmp_path):
    """What only moves numbers needs no module."""
    net = nets.varied(nets.Mixed())
    WeightChain.from_teacher(net, SMALL, "nested", check=False).save(tmp_path / "chain")
    bare = WeightChain.load(tmp_path / "chain")
    bare.truncated(0.5).save(tmp_path / "short")
    short = WeightChain.load(tmp_path / "short", template=net)
    assert short.student(width=0.5)(torch.randn(2, 3, 8, 8)).shape == (2, 10)
