"""Merge trees: nested cuts, the channel that a cluster keeps, trees cut off, blocks, errors."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oskt_ext
from oskt.widths import merge_tree
from oskt.widths.merge_tree import MergeTree


@st.composite
def trees(draw, most=24):
    """Any tree: 1 to 3 blocks, clusters that go by their lowest channel or by any other."""
    blocks, count = draw(st.integers(1, 3)), draw(st.integers(1, most // 3))
    order = [draw(st.permutations(range(count))) for _ in range(blocks)]
    parent = [-1, *(draw(st.integers(0, i - 1)) for i in range(1, count))]
    parents = [parent, *([-1, *range(count - 1)] for _ in range(blocks - 1))]
    sizes = draw(st.lists(st.integers(1, 5), min_size=blocks * count, max_size=blocks * count))
    arrays = (np.array(x, dtype=np.int64) for x in (np.ravel(order), np.ravel(parents), sizes))
    return MergeTree(*arrays, blocks, blocks, tuple(range(blocks, blocks * count, blocks)))


def widths_of(tree):
    return range(tree.blocks, tree.rows + 1, tree.blocks)


def cut_by_definition(tree, n):
    """The clusters as sets: begin with everything, split off position after position."""
    count, kept = tree.rows // tree.blocks, n // tree.blocks
    clusters = []
    for block in range(tree.blocks):
        start = block * count
        children = {i: [] for i in range(count)}
        for i in range(1, count):
            children[int(tree.parent[start + i])].append(i)

        def members(i, children=children, start=start):
            below = [members(c) for c in children[i] if c >= kept]
            return {start + int(tree.order[start + i])}.union(*below)

        clusters += [members(i) for i in range(kept)]
    return clusters


@given(trees())
def test_cuts_are_the_splits_of_the_tree(tree):
    for n in widths_of(tree):
        cut = tree.cut(n)
        assert (cut.size, cut.blocks) == (n, tree.blocks)
        found = {frozenset(members.tolist()) for members in cut.members()}
        assert found == set(map(frozenset, cut_by_definition(tree, n)))


@given(trees())
def test_cuts_are_nested_and_the_last_is_the_identity(tree):
    wider = tree.cut(tree.rows).labels
    assert wider.tolist() == list(range(tree.rows))
    for n in reversed(widths_of(tree)):
        labels = tree.cut(n).labels
        for cluster in range(int(wider.max()) + 1):
            assert len(set(labels[wider == cluster])) == 1
        wider = labels


@given(trees())
def test_a_cluster_keeps_its_channel_and_clusters_stand_in_channel_order(tree):
    before = set()
    for n in widths_of(tree):
        kept = tree.kept(n)
        assert tree.cut(n).labels[kept].tolist() == list(range(n))
        assert kept.tolist() == sorted(kept)
        assert before <= set(kept)
        before = set(kept)


@given(trees())
def test_blocks_never_merge(tree):
    per_block = tree.rows // tree.blocks
    for n in widths_of(tree):
        blocks = tree.cut(n).labels.reshape(tree.blocks, per_block) // (n // tree.blocks)
        assert (blocks == np.arange(tree.blocks)[:, None]).all()


@given(trees())
def test_a_truncated_tree_cuts_as_the_whole_one_does(tree):
    for n in widths_of(tree):
        short, labels = tree.truncated(n), tree.cut(n).labels
        assert short.rows == n
        assert short.shares().tolist() == np.bincount(labels, tree.shares()).tolist()
        for v in widths_of(short):
            assert short.cut(v).labels[labels].tolist() == tree.cut(v).labels.tolist()
            assert short.coarsened(n, v).tolist() == tree.coarsened(n, v).tolist()
            again, once = short.truncated(v), tree.truncated(v)
            for name in ("order", "parent", "sizes", "narrowest", "blocks", "measured"):
                assert np.array_equal(getattr(again, name), getattr(once, name)), name


@given(trees(), st.data())
def test_coarsened_names_the_cluster_that_holds_each(tree, data):
    coarse, fine = sorted(data.draw(st.sampled_from(widths_of(tree))) for _ in range(2))
    held = tree.coarsened(fine, coarse)
    assert held[tree.cut(fine).labels].tolist() == tree.cut(coarse).labels.tolist()


def test_a_truncated_tree_keeps_the_narrower_measured_widths():
    positions, ones = np.arange(5), np.ones(5, dtype=np.int64)
    tree = MergeTree(positions, positions - 1, ones, 2, 1, (2, 3, 3, 4))
    assert tree.truncated(4).measured == (2, 3, 3)
    assert tree.truncated(2).measured == ()


def test_shares_follow_channels():
    tree = MergeTree(np.array([2, 0, 1]), np.array([-1, 0, 0]), np.array([7, 5, 6]))
    assert tree.shares().tolist() == [5, 6, 7]


@pytest.mark.parametrize("seed", range(3))
def test_wards_trees_go_by_their_lowest_channel(seed):
    """What merge_trees promises, seen from here: kept channels are the clusters' first members."""
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(seed))
    order, parent, _ = (part[0].numpy() for part in oskt_ext.merge_trees([rows]))
    tree = MergeTree(order, parent, np.ones_like(order))
    for n in widths_of(tree):
        assert tree.kept(n).tolist() == [members[0] for members in tree.cut(n).members()]


def test_a_deep_tree_takes_few_rounds():
    """Every channel split off from the one before: 20,000 levels, far beyond recursion."""
    count = 20_000
    positions = np.arange(count)
    tree = MergeTree(positions, positions - 1, np.ones(count, dtype=np.int64))
    assert tree.cut(2).labels.tolist() == [0] + [1] * (count - 1)


GOOD = {"order": [1, 0, 2], "parent": [-1, 0, 0], "sizes": [1, 1, 1]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"order": [1, 1, 2]},
        {"order": [1, 0, 3]},
        {"order": [1, 0]},
        {"parent": [0, 0, 0]},
        {"parent": [-1, 1, 0]},
        {"parent": [-1, 0, -1]},
        {"sizes": [1, 0, 1]},
        {"sizes": [1, 1]},
        {"blocks": 2},
        {"order": [], "parent": [], "sizes": []},
        {"order": [0, 1, 2, 3], "parent": [-1, 0, -1, 0], "sizes": [1] * 4, "blocks": 2},
    ],
)
def test_arrays_that_are_no_tree(wrong):
    fields = {**GOOD, **wrong}
    blocks = fields.pop("blocks", 1)
    with pytest.raises(ValueError, match=r"^MergeTree: order must be a perm.*The chain file was"):
        MergeTree(*(np.array(v, dtype=np.int64) for v in fields.values()), blocks, blocks)


@pytest.mark.parametrize(("n", "blocks"), [(0, 1), (5, 1), (-1, 1), (3, 2), (0, 2)])
def test_widths_that_do_not_exist(n, blocks):
    parent = np.array([-1, 0, 0, 1] if blocks == 1 else [-1, 0, -1, 0])
    order, ones = np.tile(np.arange(4 // blocks), blocks), np.ones(4, dtype=np.int64)
    with pytest.raises(ValueError, match=rf"narrowest must be from {blocks} to 4 .*got {n}\. Cho"):
        MergeTree(order, parent, ones, n, blocks)
    with pytest.raises(ValueError, match=rf"measured must be from {blocks} to 4 .*got {n}\. Choo"):
        MergeTree(order, parent, ones, blocks, blocks, (n,))
    tree = MergeTree(order, parent, ones, blocks, blocks)
    for method in (tree.cut, tree.kept, tree.truncated):
        with pytest.raises(ValueError, match=rf"n must be from {blocks} to 4 in steps of {blocks}"):
            method(n)


def test_examples():
    assert doctest.testmod(merge_tree).failed == 0
