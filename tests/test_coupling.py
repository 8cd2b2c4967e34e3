"""Channel groups by tracing: what is tied, what is frozen, and that groups are right."""

from __future__ import annotations

import json

import nets
import numpy as np
import pytest
import torch
from torch import nn

from oskt.chain import WeightChain
from oskt.chain.verification import TOLERANCE, checked, deviations, random_clusterings
from oskt.coupling import Coupling, tracing
from oskt.coupling.grouping import trace_coupling
from oskt.models.resnet import ResNet, widths

IMAGE = torch.zeros(2, 3, 8, 8)
KNOWN = [make for make, _ in nets.CASES.values()]


@pytest.mark.parametrize("net", KNOWN)
def test_known_operators_leave_groups_free_and_right(net):
    module = net()
    coupling = trace_coupling(module, IMAGE)
    assert not coupling.opaque
    assert coupling.free
    assert checked(module, [IMAGE], coupling, WeightChain.of_partitions) == coupling
    chain = WeightChain.from_teacher(module, IMAGE, width=0.5)
    assert set(chain.groups) == set(coupling.free)
    assert max(d for _, d in deviations(chain)) < TOLERANCE


def test_mixed_groups():
    coupling = trace_coupling(nets.Mixed(), IMAGE)
    free = coupling.free
    assert {name: (g.size, g.blocks) for name, g in free.items()} == {
        "stem": (8, 2),  # the grouped convolution reads it in two blocks
        "grouped": (12, 2),
    }
    assert free["stem"].writers == ("stem.weight", "depthwise.weight")
    assert free["grouped"].writers == ("grouped.weight", "side.weight")
    assert coupling.layouts["fc.weight"].columns == (("grouped", 16), ("stem", 16))
    assert coupling.groups["fc"].frozen == "fc.weight writes a model output"
    assert trace_coupling(nets.Mixed(), IMAGE, free_outputs=True).groups["fc"].frozen is None


def test_concatenation_splits_the_group_that_it_is_added_to():
    coupling = trace_coupling(nets.SplitSum(), IMAGE)
    assert [g.size for g in coupling.free.values()] == [4, 6]
    assert coupling.layouts["c.weight"].rows == (("a", 1), ("b", 1))


def test_only_a_norm_of_the_channels_themselves_is_folded_in():
    assert trace_coupling(nets.NormOfFlat(), IMAGE).norms == {}
    assert set(trace_coupling(nets.Mixed(), IMAGE).norms) == {"stem.weight"}
    at_once = nn.Sequential(nn.Conv2d(3, 6, 8), nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 5))
    assert set(trace_coupling(at_once, IMAGE).norms) == {"0.weight"}


def test_a_layer_used_twice_ties_its_two_sides():
    coupling = trace_coupling(nets.Shared(), IMAGE)
    assert list(coupling.free) == ["stem"]
    assert coupling.layouts["twice.weight"].rows == coupling.layouts["twice.weight"].columns


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (nets.Flipped, "aten.flip is not known"),
        (nets.Rolled, "aten.roll is not known"),
        (nets.SoftmaxOverChannels, "softmax spans it"),
    ],
)
def test_what_is_not_exact_freezes_and_is_named(net, reason):
    module = net()
    coupling = trace_coupling(module, IMAGE)
    assert reason in str(coupling.groups["a"].frozen)
    assert coupling.opaque == ((reason.split()[0],) if reason.endswith("known") else ())
    chain = WeightChain.from_teacher(module, IMAGE, width=0.5)
    assert "a" not in chain.groups
    assert max(d for _, d in deviations(chain)) < TOLERANCE


def test_a_wrong_group_fails_the_numerical_check_and_is_frozen(monkeypatch):
    # Take flip for an operator that keeps channels in place, as a careless rule would.
    monkeypatch.setitem(tracing.RULES, tracing.aten.flip, tracing.shapes.same_axes)
    module = nets.Flipped()
    wrong = trace_coupling(module, IMAGE)
    assert set(wrong.free) == {"a", "b"}
    mended = checked(module, [IMAGE], wrong, WeightChain.of_partitions)
    assert set(mended.free) == {"b"}
    assert "failed the numerical check" in str(mended.groups["a"].frozen)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_no_numbers_fail_the_numerical_check(value):
    class Spoiled(nets.Mixed):
        def forward(self, x):
            return super().forward(x) * value

    module = Spoiled()
    coupling = checked(module, [IMAGE], trace_coupling(module, IMAGE), WeightChain.of_partitions)
    assert not coupling.free
    assert coupling.groups["stem"].frozen == "failed the numerical check (deviation inf)"


class Nest(nets.Flipped):
    """Outputs within outputs, and such that are no tensors."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        a = self.norm(self.a(x))
        return {"main": self.out(torch.relu(self.b(a))), "more": [(a.flip(1), None), {"size": 8}]}


def test_outputs_within_outputs_are_traced_and_checked(monkeypatch):
    chain = WeightChain.from_teacher(Nest(), IMAGE, width=0.5)
    assert set(chain.groups) == {"b"}
    assert chain.verify(quiet=True) < TOLERANCE
    # a careless rule, as above: the main output does not show it
    monkeypatch.setitem(tracing.RULES, tracing.aten.flip, tracing.shapes.same_axes)
    chain = WeightChain.from_teacher(Nest(), IMAGE, width=0.5)
    assert set(chain.groups) == {"b"}
    assert "failed the numerical check" in str(chain.coupling.groups["a"].frozen)


class EitherWhole(nn.Module):
    """Right as long as one of two groups has the teacher's width: alone, each looks sound."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)
        self.out = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(a))
        return self.out(b) * (2 if a.shape[1] < 8 and b.shape[1] < 6 else 1)


def test_groups_that_are_sound_one_by_one_are_checked_together():
    module = EitherWhole()
    wrong = trace_coupling(module, IMAGE)
    mended = checked(module, [IMAGE], wrong, WeightChain.of_partitions)
    assert set(wrong.free) == {"a", "b"}
    assert set(mended.free) == {"a"}
    assert "failed the numerical check" in str(mended.groups["b"].frozen)
    assert list(mended.groups) == list(wrong.groups)


def test_value_dependent_branches_are_refused():
    class Branch(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(
        ValueError, match=r"coupling: module must run on meta tensors, got .*\. Rem"
    ):
        trace_coupling(Branch(3, 3, 1), IMAGE)


def test_modules_that_return_no_tensor_are_refused():
    class Silent(nn.Conv2d):
        def forward(self, x):
            return {super().forward(x)}

    with pytest.raises(ValueError, match=r"coupling: module must return tensors, .*, got set\. Wr"):
        trace_coupling(Silent(3, 3, 1), IMAGE)


@pytest.mark.parametrize(("depth", "groups"), [(18, 12), (34, 20), (50, 37), (101, 71), (152, 105)])
def test_residual_families(depth, groups):
    coupling = trace_coupling(ResNet(depth, in_planes=4, num_classes=3), torch.zeros(2, 3, 64, 32))
    assert len(coupling.free) == groups
    assert set(coupling.free) == set(widths(4, layers=depth))
    assert widths(4, layers=depth) == {name: g.size for name, g in coupling.free.items()}


@pytest.mark.parametrize("options", [{"pooling": "gem"}, {"depth": 18}, {"last_stride": 2}])
def test_residual_variants_are_exact(options):
    module = ResNet(
        **{"depth": 50, "in_planes": 4, "num_classes": 3, "layers": (1, 1, 1, 1), **options}
    )
    chain = WeightChain.from_teacher(module, torch.zeros(2, 3, 64, 32), width=0.5)
    assert max(d for _, d in deviations(chain)) < TOLERANCE


def test_coupling_survives_json():
    coupling = trace_coupling(nets.Mixed(), IMAGE)
    assert Coupling.from_json(json.loads(json.dumps(coupling.to_json()))) == coupling


def test_random_clusterings_respect_blocks():
    coupling = trace_coupling(nets.Mixed(), IMAGE)
    for name, clustering in random_clusterings(coupling, np.random.default_rng(1)).items():
        group = coupling.groups[name]
        first, second = np.split(clustering.labels, group.blocks)
        assert not set(first) & set(second)
