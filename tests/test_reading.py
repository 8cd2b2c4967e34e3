"""Lists of weighted sources in NumPy: against dense matrices, and against the expand operator."""

from __future__ import annotations

import doctest

import nets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oskt_ext
from oskt import reading
from oskt.chain import WeightChain, expansion
from oskt.chain.verification import random_clusterings
from oskt.coupling.grouping import trace_coupling
from oskt.models.resnet import ResNet
from oskt.reading import Item, Reading, lists


def dense(a_reading):
    return a_reading.read(np.eye(a_reading.size), 0)


@st.composite
def readings(draw, blocks=1):
    """Any lists whose entries stay in their block: weighted, unsorted, some sources unread."""
    entries, size = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    triples = []
    for block in range(blocks):
        for entry in range(entries):
            for source in draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=3)):
                weight = draw(st.integers(-4, 4))
                triples.append((block * entries + entry, block * size + source, weight))
    triples = draw(st.permutations(triples))
    entry, index, weight = (np.array(x) for x in zip(*triples))
    return Reading.of(entry, index, weight.astype(float), blocks * size)


@given(readings())
def test_of_sums_its_triples(a_reading):
    matrix = np.zeros((len(a_reading), a_reading.size))
    np.add.at(matrix, (a_reading.entry, a_reading.index), a_reading.weight)
    assert np.array_equal(dense(a_reading), matrix)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=12), st.data())
def test_sums_and_means_by_label(labels, data):
    labels = np.unique(labels, return_inverse=True)[1]
    one_hot = np.eye(labels.max() + 1)[:, labels]
    assert np.array_equal(dense(Reading.sum(labels)), one_hot)
    integers = st.lists(st.integers(1, 9), min_size=len(labels), max_size=len(labels))
    for shares in (None, np.array(data.draw(integers))):
        weighted = one_hot * (1 if shares is None else shares)
        # a quotient of small integers, rounded once in both
        assert np.array_equal(
            dense(Reading.mean(labels, shares)), weighted / weighted.sum(1, keepdims=True)
        )


@given(readings(), st.data())
def test_take_repeats_and_drops_entries(a_reading, data):
    entries = data.draw(st.lists(st.integers(0, len(a_reading) - 1), min_size=1, max_size=6))
    assert np.array_equal(dense(a_reading.take(entries)), dense(a_reading)[entries])


@given(st.lists(readings(), min_size=1, max_size=3))
def test_joined_is_block_diagonal(parts):
    matrix = np.zeros((sum(map(len, parts)), sum(p.size for p in parts)))
    row = column = 0
    for part in parts:
        matrix[row : row + len(part), column : column + part.size] = dense(part)
        row, column = row + len(part), column + part.size
    assert np.array_equal(dense(Reading.joined(parts)), matrix)


@given(readings(), st.integers(1, 3))
def test_area_is_a_kronecker_product(a_reading, area):
    assert np.array_equal(dense(a_reading.with_area(area)), np.kron(dense(a_reading), np.eye(area)))


@given(readings(blocks=3))
def test_blocks_join_to_the_whole(a_reading):
    parts = a_reading.blocks(3)
    assert len({part.size for part in parts}) == 1
    assert np.array_equal(dense(Reading.joined(parts)), dense(a_reading))


def test_reading_never_changes_the_source():
    source = np.arange(6.0).reshape(2, 3)
    for a_reading in (Reading.identity(2), Reading.mean(np.array([0, 0]), [1, 3])):
        a_reading.read(source, 0)
    assert source.tolist() == [[0, 1, 2], [3, 4, 5]]


NETS = {
    **{net.__name__: net for net in (nets.Mixed, nets.SplitSum, nets.Shared, nets.Scaled)},
    "ResNet": lambda: ResNet(50, in_planes=8, num_classes=3, layers=(1, 1, 1, 1)),
}


@pytest.mark.parametrize("kind", ["oskt", "nested"])
@pytest.mark.parametrize("net", NETS)
def test_numpy_and_the_operator_agree(net, kind):
    """In float64, where each rounds every product and every sum once: at most 64 terms down the
    rows and 64 along the columns, on both sides."""
    side = torch.zeros(2, 3, *((64, 32) if net == "ResNet" else (8, 8)))
    chain = WeightChain.from_teacher(NETS[net](), side, kind, width=1 / 2, check=False)
    rng = np.random.default_rng(0)
    for width in (0.3, 0.5, 0.8, 1.0):
        sizes = chain.resolve(width)
        for norm in ("interpolate", "exact"):
            items = reading.student(chain.coupling, chain.partitions, sizes, norm, chain.layouts)
            flat = rng.standard_normal(sum(r.size * c.size * area for r, c, area in items))
            ours = reading.apply(items, flat)
            theirs = oskt_ext.expand(torch.from_numpy(flat), expansion.plan(items)).numpy()
            bound = reading.apply(
                [Item(*map(_absolute, item[:2]), item.area) for item in items], abs(flat)
            )
            assert (abs(ours - theirs) <= 2 * (64 + 64) * 2**-53 * bound).all()


def _absolute(a_reading):
    weight = np.abs(a_reading.weight)
    return Reading(a_reading.offsets, a_reading.index, weight, a_reading.size)


def test_equal_axes_share_one_list():
    """The operator's table holds a list once: ResNet-50's must not grow with its layers."""
    chain = WeightChain.from_teacher(
        ResNet(50, in_planes=8), torch.zeros(2, 3, 64, 32), "nested", check=False
    )
    items = reading.student(
        chain.coupling, chain.partitions, chain.resolve(0.5), "interpolate", chain.layouts
    )
    # four per group (rows, columns, vectors and statistics), and one for absent columns
    assert len({id(r) for i in items for r in i[:2]}) <= 4 * len(chain.coupling.groups) + 1


def test_a_chain_reads_each_teacher_row_once():
    coupling = trace_coupling(nets.Mixed(), torch.zeros(2, 3, 8, 8))
    parts = random_clusterings(coupling, np.random.default_rng(0))
    for rows, _, _ in reading.chain(coupling, parts, coupling.layouts_of(("weight",))):
        assert sorted(rows.index) == list(range(rows.size))


def test_examples():
    assert doctest.testmod(lists).failed == 0
