"""Allocation of copies, and what students cost."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from oskt.coupling import Coupling
from oskt.coupling.grouping import trace_coupling
from oskt.models.resnet import PRESETS, ResNet, widths
from oskt.widths import Clustering, allocate, cut, macs, parameters, resolve

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(SIZES, st.data())
def test_allocation_by_definition(sizes, data):
    n = data.draw(st.integers(len(sizes), sum(sizes)))
    rows = list(range(len(sizes)))
    while len(rows) < n:
        share = [Fraction(rows.count(r), s) for r, s in enumerate(sizes)]
        rows.append(share.index(min(share)))
    assert allocate(sizes, n).tolist() == rows


@given(SIZES)
def test_rows_of_a_width_are_a_prefix_of_the_next(sizes):
    full = allocate(sizes, sum(sizes))
    assert np.bincount(full).tolist() == sizes
    for n in range(len(sizes), sum(sizes)):
        assert allocate(sizes, n).tolist() == full[:n].tolist()


@given(st.lists(st.integers(0, 4), min_size=5, max_size=30), st.data())
def test_blocks_deal_every_member_once_in_contiguous_runs(labels, data):
    clustering = Clustering(np.unique(labels, return_inverse=True)[1].astype(np.int64))
    n = data.draw(st.integers(clustering.size, len(labels)))
    copies = cut(clustering, n)
    assert sorted(np.concatenate(copies.blocks)) == list(range(len(labels)))
    members = clustering.members()
    for row in range(clustering.size):
        blocks = [b for r, b in zip(copies.rows, copies.blocks) if r == row]
        assert np.concatenate(blocks).tolist() == members[row].tolist()
        lengths = [len(b) for b in blocks]
        assert lengths == sorted(lengths, reverse=True)
        assert max(lengths) - min(lengths) <= 1


def test_allocation_out_of_range():
    with pytest.raises(ValueError, match=r"allocate: n must be from 2 \(clusters\) to 5 .*got 6\."):
        allocate([2, 3], 6)


@pytest.mark.parametrize(
    ("preset", "millions", "giga_macs"),
    # reference/elastic.md 0.2: the paper's parameter counts; MACs at last stride 1, 256x128
    [("res50-s1", 0.37, 0.072), ("res50-s2", 0.61, 0.156), ("res50-s3", 1.48, 0.268),
     ("res50-s4", 2.42, 0.586), ("res50-s5", 5.89, 1.033), ("res50-s6", 9.64, 2.268)],
)  # fmt: skip
def test_presets_have_the_papers_sizes(preset, millions, giga_macs):
    with torch.device("meta"):
        coupling = trace_coupling(ResNet(50, num_classes=751), torch.zeros(1, 3, 256, 128))
    sizes = widths(*PRESETS[preset])
    assert round(parameters(coupling, sizes, ("bottleneck", "classifier")) / 1e6, 2) == millions
    assert round(macs(coupling, sizes) / 1e9, 3) == giga_macs


def test_costs_equal_real_counts():
    model = ResNet(50, in_planes=8, num_classes=5, layers=(1, 2, 1, 1))
    coupling = trace_coupling(model, torch.zeros(1, 3, 64, 32))
    small = ResNet(50, in_planes=4, num_classes=5, layers=(1, 2, 1, 1), multipliers=(2, 3, 4))
    sizes = widths(4, (2, 3, 4), layers=(1, 2, 1, 1))
    assert parameters(coupling, sizes) == sum(p.numel() for p in small.parameters())
    own = trace_coupling(small, torch.zeros(1, 3, 64, 32))
    assert macs(coupling, sizes) == macs(own, {})


def test_widths_are_checked_by_name_and_range():
    coupling = trace_coupling(ResNet(50, in_planes=8, num_classes=5), torch.zeros(1, 3, 64, 32))
    lowest = {"layer1.0.conv3": 8}
    by_writer = resolve(coupling, {"layer1.0.downsample.0": 12}, lowest)
    assert by_writer == {"layer1.0.conv3": 12}
    for given_widths, message in [
        ({"layer1.0.conv9": 4}, r"must be a channel group, got 'layer1.0.conv9'. Did you mean"),
        ({"layer1.0.conv3": 4}, r"layer1.0.conv3 must be from 8 to 32, got 4\."),
        ({"layer1.0.conv3": 33}, r"from 8 to 32, got 33\. Choose a width between"),
        ({"classifier": 3}, r"must be from 5 to 5, got 3\. It is frozen: classifier.weight writes"),
        ({"layer1.0.conv3": 8, "layer1.1.conv3": 9}, r"must be 8, as other layers of group"),
    ]:
        with pytest.raises(ValueError, match=message):
            resolve(coupling, given_widths, lowest)


class Unknown(nn.Module):
    """Parameters of layers that the tracer does not know, and a scalar, beside a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.slope = nn.PReLU()
        self.register_buffer("steps", torch.zeros(3))

    def forward(self, images):
        return self.last(self.slope(self.up(self.first(images))).mean((2, 3)))


def test_parameters_that_no_group_touches_count():
    net = Unknown()
    coupling = trace_coupling(net, torch.zeros(2, 3, 4, 4))
    assert parameters(coupling, {}) == sum(p.numel() for p in net.parameters())
    assert parameters(coupling, {}, ["up"]) == parameters(coupling, {}) - 8 * 8 * 4 - 8
    value = json.loads(json.dumps(coupling.to_json()))
    assert Coupling.from_json(value) == coupling
    del value["loose"]  # as in files of before
    assert parameters(Coupling.from_json(value), {}) < parameters(coupling, {})
