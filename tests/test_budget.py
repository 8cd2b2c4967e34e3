"""Students by budget: closed forms against real counts, searches against every candidate."""

from __future__ import annotations

import doctest
import io
import itertools
import math

import nets
import numpy as np
import pytest
import torch
import zoo
import zoo_tokens
from rich.console import Console
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from oskt import edge, widths
from oskt.chain import WeightChain
from oskt.cli.tables import size_table
from oskt.coupling import ChannelGroup, Coupling
from oskt.coupling.grouping import trace_coupling
from oskt.models.resnet import ResNet
from oskt.models.vit import VisionTransformer
from oskt.widths import Clustering, latency, presets, sensitivity, shapes
from oskt.widths.budget import Budget, Path
from oskt.widths.ladder import Ladder
from oskt.widths.latency import Latency, Meter
from oskt.widths.merge_tree import MergeTree
from oskt.widths.sizes import Sizes

SMALL = torch.zeros(2, 3, 64, 32)
NETS = {
    **{name: (make, images) for name, (make, images) in nets.CASES.items()},
    "ResNet": (lambda: ResNet(50, 16, num_classes=7, layers=(1, 1, 1, 1)), SMALL),
    "ResNet18": (lambda: ResNet(18, 8, num_classes=7), SMALL),
    "ShuffleNetV2": (zoo.shufflenet_v2, zoo.IMAGES),  # with groups that must be alike
    "Swin": (zoo_tokens.Swin, zoo.IMAGES),
    "ViT": (
        lambda: VisionTransformer(24, 2, heads=2, patch=16, image=(64, 32), num_classes=5),
        SMALL,
    ),
}
# parameters of the paper's Table (reference/elastic.md 0.2, exact there)
PAPER = {"res50-s1": 374_152, "res50-s2": 611_088, "res50-s3": 1_480_976,
         "res50-s4": 2_421_280, "res50-s5": 5_892_640, "res50-s6": 9_638_976}  # fmt: skip


@pytest.fixture(scope="module")
def chain():
    torch.manual_seed(0)
    teacher = nets.varied(ResNet(50, in_planes=16, num_classes=7, layers=(1, 1, 1, 1)))
    return WeightChain.from_teacher(teacher, SMALL, "nested", width=1 / 4, check=False)


def nested_sizes(coupling, adds=None, narrowest=1 / 8):
    """A nested chain without its numbers: every order of channels costs the same."""
    trees = {
        g.name: MergeTree(
            np.tile(np.arange(g.size // g.blocks), g.blocks),
            np.tile(np.r_[-1, np.zeros(g.size // g.blocks - 1, int)], g.blocks),
            np.ones(g.size, int),
            widths.round_width(g, narrowest),
            g.blocks,
        )
        for g in coupling.free.values()
    }
    return Sizes(coupling, trees, meta={"clustering": {"adds": adds}} if adds else {})


@pytest.fixture(scope="module")
def resnet50():
    with torch.device("meta"):
        model = ResNet(50, num_classes=751)
        coupling = trace_coupling(model, torch.zeros(1, 3, 256, 128))
    adds = {g: list(np.linspace(2, 1, n.size - 1)) for g, n in coupling.free.items()}
    sizes = nested_sizes(coupling, adds)
    sizes.meta |= {"spec": model.spec, "head": ["bottleneck", "classifier"]}
    return sizes


def drawn_widths(coupling, rng):
    drawn = {
        g.name: int(g.step * rng.integers(1, g.size // g.step + 1))
        for g in coupling.free.values()
        if not g.like
    }
    return coupling.alike(drawn)


# -- closed forms -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_costs_are_real_counts_of_uniform_and_uneven_students(name):
    make, images = NETS[name]
    torch.manual_seed(0)
    net = make().eval()
    chain = WeightChain.from_teacher(net, images, "nested")
    rng = np.random.default_rng(0)
    uneven = [drawn_widths(chain.coupling, rng) for _ in range(3)]
    for sizes in [chain.resolve(0.25), chain.resolve(0.5), chain.groups, *uneven]:
        student = chain.student(widths=sizes)
        head = tuple(f"{layer}." for layer in chain.meta["head"])
        counted = sum(
            p.numel() for n, p in student.named_parameters()
            if not n.startswith(head or ("\0",))
        )  # fmt: skip
        # the counter knows attention as matrix products alone
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            student(images[:1])
        read = [
            t for n, t in student.state_dict().items()
            if t.dim() and n not in chain.coupling.training_only
        ]  # fmt: skip
        assert chain.costs(sizes) == (counted, counter.get_total_flops() // 2)
        assert chain.memory(sizes) == 4 * sum(t.numel() for t in read)
        assert chain.costs(sizes)[1] == widths.macs(chain.coupling, sizes)
        assert chain.costs(sizes)[0] == widths.parameters(chain.coupling, sizes, chain.meta["head"])


def test_many_widths_at_once_and_slopes(resnet50):
    forms, rng = resnet50.forms, np.random.default_rng(0)
    many = np.stack([forms.array(drawn_widths(resnet50.coupling, rng)) for _ in range(5)])
    assert np.array_equal(forms(many), np.stack([forms(one) for one in many]))
    assert forms.widths(many[0]) == {g: int(n) for g, n in zip(resnet50.groups, many[0])}
    # No ResNet axis pair belongs to one group, so one more channel costs the slope, exactly.
    for place in range(len(forms.groups)):
        wider = many[0].copy()
        wider[place] += 1
        assert np.array_equal(forms(wider) - forms(many[0]), forms.slopes(many[0])[place])


def test_slopes_are_derivatives_where_one_group_is_both_rows_and_columns():
    coupling = trace_coupling(nets.Shared(), torch.zeros(1, 3, 8, 8))
    forms = nested_sizes(coupling).forms
    [group] = [place for place, name in enumerate(forms.groups) if name == "stem"]
    at = forms.array({})
    below, above = at.copy(), at.copy()
    below[group] -= 1
    above[group] += 1
    # of a quadratic, the central difference is the derivative
    assert np.array_equal((forms(above) - forms(below)) / 2, forms.slopes(at)[group])


def test_presets_have_the_papers_parameters(resnet50):
    assert resnet50.costs(resnet50.groups) == (23_508_032, 4_053_270_528)
    for preset, parameters in PAPER.items():
        assert resnet50.costs(resnet50.resolve(preset=preset))[0] == parameters
    screen = io.StringIO()
    Console(width=120, file=screen).print(size_table(Ladder([resnet50])))
    shown = screen.getvalue()
    for preset, parameters in PAPER.items():
        assert preset in shown
        assert f"{parameters:,}" in shown


def test_memory_is_what_a_file_of_the_student_holds(chain, tmp_path):
    chain.save(tmp_path / "chain")
    for sizes in (chain.resolve(0.3), chain.groups):
        arrays = edge.load(tmp_path / "chain").student(widths=sizes)
        counters = [a.nbytes for n, a in arrays.items() if n.endswith("num_batches_tracked")]
        assert chain.memory(sizes) == sum(a.nbytes for a in arrays.values()) - sum(counters)


# -- searches -----------------------------------------------------------------------------------

BUDGETS = [{"params": 60_000}, {"macs": 9e5}, {"memory_mb": 0.4}, {"params": 9e4, "macs": 1e6},
           {"params": 9e4, "memory_mb": 0.3, "macs": 1e7}, {"params": 1e12}]  # fmt: skip


def within(chain, sizes, budget):
    costs = dict(zip(("params", "macs"), chain.costs(sizes)))
    costs["memory_mb"] = chain.memory(sizes) / 1e6
    return all(costs[name] <= limit for name, limit in budget.items())


@pytest.mark.parametrize("budget", BUDGETS)
def test_uniform_students_are_the_largest_share_that_fits(chain, budget):
    sizes = chain.resolve(**budget)
    most = max(chain.groups.values())
    shares = [chain.resolve(k / most / 2) for k in range(1, 2 * most + 1)]
    fitting = [share for share in shares if within(chain, share, budget)]
    assert sizes == fitting[-1]
    assert chain.student(**budget).widths == sizes


@pytest.mark.parametrize("budget", BUDGETS)
def test_uneven_students_keep_the_budget_and_use_it(chain, budget):
    sizes = chain.resolve(**budget, shape="sensitivity")
    assert within(chain, sizes, budget)
    assert all(sizes[g] >= n for g, n in chain.widths.items())
    if sizes != chain.groups:  # one step of 1/32 in some group more would be too much
        steps = {
            g: {**sizes, g: min(n, sizes[g] + max(1, n // 32))} for g, n in chain.groups.items()
        }
        assert not all(within(chain, wider, budget) for wider in steps.values())
        assert len({round(n / chain.groups[g], 2) for g, n in sizes.items()}) > 3


def test_groups_go_below_the_trained_widths_only_together(chain):
    least = chain.costs(chain.widths)[0]
    assert chain.resolve(params=least, shape="sensitivity") == chain.widths
    below = chain.resolve(params=least // 2, shape="sensitivity")
    assert all(below[g] <= n for g, n in chain.widths.items())


def test_every_step_of_a_path_loses_least_per_cost(chain):
    curves = shapes.kept(chain.partitions, chain.meta["clustering"])
    forms, price = chain.forms, np.array([0.0, 1.0, 0.0])
    floor = forms.array(chain.widths)
    path = shapes.by_sensitivity(forms, curves, price, [floor])
    assert np.array_equal(path.at(0), floor)
    assert np.array_equal(path.at(path.length - 1), forms.whole)
    for place in range(1, path.length, 17):
        here, there = path.at(place), path.at(place - 1)
        ratios = {}
        for g, (name, n) in enumerate(zip(forms.groups, here)):
            lower = here.copy()
            lower[g] -= min(max(1, chain.groups[name] // 32), n - floor[g])
            if lower[g] < n:
                loss = curves[name][int(n) - 1] - curves[name][int(lower[g]) - 1]
                ratios[g] = loss / (forms(here) - forms(lower))[1]
        [moved] = np.flatnonzero(here != there)
        # the ratio of exact differences; slopes round otherwise, by 2^-50 or so
        assert ratios[moved] <= min(ratios.values()) * (1 + 1e-12)


def test_groups_that_must_be_alike_move_together():
    groups = {
        "a": ChannelGroup("a", 8, step=2),
        "b": ChannelGroup("b", 12, like="a"),
        "c": ChannelGroup("c", 8),
    }
    sizes = nested_sizes(Coupling(groups, {}, {}, {}))
    curves = {"a": np.zeros(8), "b": np.arange(12.0), "c": np.arange(8.0)}
    terms = [widths.Term(lambda w: (w.get("a", 8), w.get("c", 8)), (1, 1, 1))]
    costs = shapes.Costs(sizes.coupling, terms)
    path = shapes.by_sensitivity(costs, curves, [1, 0, 0], [costs.array({"a": 1, "c": 1})])
    found = [costs.widths(path.at(place)) for place in range(path.length)]
    assert found[0] == {"a": 2, "b": 3, "c": 1}
    assert all(2 * w["b"] == 3 * w["a"] for w in found)
    # b counts: without its curve `a` would be worth nothing, and be the first to go
    assert costs.widths(path.at(path.length - 2))["a"] == 8


def test_data_free_curves():
    tree = MergeTree(np.array([1, 0, 2]), np.array([-1, 0, 0]), np.ones(3, int))
    curve = shapes.kept({"g": tree}, {"adds": {"g": [3.0, 1.0]}})["g"]
    np.testing.assert_allclose(np.exp(curve), [3 / 7, 6 / 7, 1])  # the first counts like the second
    pairs = MergeTree(
        np.array([0, 1, 1, 0]), np.array([-1, 0, -1, 0]), np.ones(4, int), 2, blocks=2
    )
    curve = shapes.kept({"g": pairs}, {"adds": {"g": [0.3, 0.7]}})["g"]
    np.testing.assert_allclose(np.exp(curve), [1 / 4, 1 / 2, 3 / 4, 1])
    clusters = Clustering(np.array([0, 0, 1, 1]))
    curve = shapes.kept({"g": clusters}, {"loss": {"g": 0.4}})["g"]
    np.testing.assert_allclose(np.exp(curve), [0.6, 0.6, 0.8, 1])
    alone = MergeTree(np.zeros(1, int), np.array([-1]), np.ones(1, int))
    assert shapes.kept({"g": alone}, {"adds": {"g": []}})["g"].tolist() == [0.0]


def test_published_and_truncated_chains_have_shapes_too(chain):
    teacher = ResNet(18, 8)
    published = WeightChain.from_teacher(teacher, SMALL, width=1 / 4, check=False)
    half = published.costs(published.resolve(0.5))[0]
    uneven = published.resolve(params=half, shape="sensitivity")
    assert half * 0.95 <= published.costs(uneven)[0] <= half
    assert all(published.widths[g] <= n <= published.groups[g] for g, n in uneven.items())
    short = chain.truncated(0.5)
    assert within(short, short.resolve(params=6e4, shape="sensitivity"), {"params": 6e4})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"params": 1}, r"must allow the smallest student, 229 parameters, [\d,]+ MACs and "
                        r"0\.\d+ MB, got params=1\. Raise the budget, or make a narrower chain\."),
        ({"params": 1e9, "memory_mb": 1e-6}, r"got params=1,000,000,000, memory_mb=1e-06\."),
        ({"macs": -1}, r"budget: macs must be > 0, got -1\. Leave it out for no limit\."),
        ({"memory_mb": math.nan}, "memory_mb must be > 0, got nan"),
        ({"params": 1e5, "width": 0.5}, "must be given, got 2"),
        ({"params": 1e5, "shape": "round"}, "shape must be 'uniform', 'sensitivity' or curves"),
        ({"width": 0.5, "shape": "sensitivity"}, "shape must come with a budget, got 'sens"),
        ({"latency_ms": 1, "device": "gpu"}, "device must be cpu or a GPU that is here, got 'gpu'"),
    ],
)  # fmt: skip
def test_wrong_budgets(chain, arguments, message):
    with pytest.raises(ValueError, match=message):
        chain.student(**arguments)


def test_chains_that_do_not_say_what_they_lose(resnet50):
    silent = nested_sizes(resnet50.coupling)
    with pytest.raises(ValueError, match=r"that says what its groups lose, got one without\."):
        silent.resolve(params=1e6, shape="sensitivity")
    with pytest.raises(ValueError, match=r"latency_ms must be measured with torch, got a chain"):
        silent.resolve(latency_ms=5)


# -- latency ------------------------------------------------------------------------------------


class Clock:
    """Stands in for `measure`: a millisecond for every 10,000 parameters."""

    def __init__(self):
        self.count = 0

    def __call__(self, network, images):
        self.count += 1
        ms = sum(p.numel() for p in network.parameters()) / 1e4
        return Latency(ms, ms, ms, 30, tuple(images.shape), "a clock", 1, "nothing")


def test_latency_is_searched_with_few_measurements(chain):
    clock = Clock()
    meter = Meter(chain, timed=clock)
    student = chain.student(latency_ms=9, device=meter)
    # within 5 % below the limit, or the last step of the path that keeps it
    assert 0.95 * 9 <= student.latency.median_ms <= 9
    assert student.latency == meter.latency(student.widths)
    assert clock.count <= 5  # of 256 places
    before = clock.count
    assert chain.resolve(latency_ms=9, device=meter) == student.widths
    assert clock.count == before  # remembered, width by width
    assert meter.images.shape == (1, 3, 64, 32)


def test_latency_goes_with_other_limits_and_shapes(chain):
    meter = Meter(chain, timed=Clock())
    sizes = chain.resolve(latency_ms=9, macs=8e5, device=meter)
    assert sizes == chain.resolve(macs=8e5)  # latency does not bind
    assert len(meter.results) == 1
    for shape in shapes.NAMES:
        sizes = chain.resolve(latency_ms=6, params=1e6, device=meter, shape=shape)
        assert 0.9 * 6 <= meter(sizes) <= 6
    with pytest.raises(ValueError, match=r"MB and 0\.\d+ ms, got latency_ms=0\.0001\."):
        chain.resolve(latency_ms=1e-4, device=meter)


def test_a_search_at_a_jump_ends_within_two_percent_of_macs(chain):
    border, count = chain.costs(chain.resolve(0.5))[1], 0

    def timer(sizes):
        nonlocal count
        count += 1
        return 1.0 if chain.costs(sizes)[1] <= border else 9.0

    macs = chain.costs(chain.resolve(latency_ms=4, device=timer))[1]
    assert border / 1.02 <= macs <= border
    # between 1.02 and a factor of 130 in MACs: an eighth of the 128 places left goes every time
    assert count <= 1 + math.log(128) / math.log(8 / 7)


def test_one_that_never_fits_below_a_fast_one_is_passed_over():
    """Latency need not grow with the width; what comes out was measured to fit."""
    times = [1.0, 9.0, 2.0, 9.0, 3.0, 9.0, 9.0, 9.0]

    class Forms:
        def __call__(self, widths):
            return (0.0, float(widths), 0.0)

        def widths(self, place):
            return {"g": int(place)}

    path = Path(len(times), lambda place: place)
    place = Budget(latency_ms=4).largest(path, Forms(), lambda widths: times[widths["g"]])
    assert times[place] <= 4


def test_measure_counts_runs_and_says_what_it_measured():
    calls = []

    class Counted(nn.Module):
        def forward(self, x):
            calls.append((self.training, torch.is_inference_mode_enabled()))
            return x

    found = latency.measure(Counted().train(), torch.zeros(1, 3, 4, 4))
    assert len(calls) == found.runs + latency.WARM_UP
    assert found.runs >= latency.RUNS
    assert set(calls) == {(False, True)}
    assert found.low_ms <= found.median_ms <= found.high_ms
    text = str(found)
    assert f"{found.runs} runs of 1x3x4x4, torch {torch.__version__}" in text
    assert found.to_json()["images"] == (1, 3, 4, 4)


# -- measured sensitivity -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def silent_chain():
    """layer2's inner channels beyond the first four write nothing."""
    torch.manual_seed(0)
    teacher = nets.varied(ResNet(50, in_planes=16, num_classes=0, layers=(1, 1, 1, 1)))
    with torch.no_grad():
        teacher.layer2[0].conv3.weight[:, 4:] = 0
        teacher.layer2[0].conv2.weight[:4] *= 10  # important
    return WeightChain.from_teacher(teacher, SMALL, "nested", width=1 / 4, check=False)


def test_groups_that_do_not_matter_are_narrowed_first(silent_chain):
    torch.manual_seed(1)
    images = torch.randn(6, 3, 64, 32)
    curves = sensitivity.measure(silent_chain, images, points=2)
    assert curves.keys() == silent_chain.groups.keys()
    for name, curve in curves.items():
        assert len(curve) == silent_chain.groups[name]
        assert (np.diff(curve) >= 0).all()
        assert curve[-1] == 0
    quiet = curves.pop("layer2.0.conv2")
    # 8 of 32 channels hold the four that write: cosines move by rounding alone, 2^-20 squared
    assert quiet[7] > -1e-10
    assert all(curve[0] < -1e-6 for curve in curves.values())
    curves["layer2.0.conv2"] = quiet
    share = silent_chain.resolve(0.75)
    macs = silent_chain.costs(share)[1]
    sizes = silent_chain.student(macs=macs, shape=curves).widths
    assert sizes["layer2.0.conv2"] == silent_chain.widths["layer2.0.conv2"]
    assert 0.95 * macs <= silent_chain.costs(sizes)[1] <= macs
    again = sensitivity.measure(silent_chain, images, points=2)
    assert all(np.array_equal(again[g], curve) for g, curve in curves.items())


def test_curves_below_the_measured_widths_go_on_straight():
    curve = sensitivity._curve([2, 4], [0.6, 0.2], 6)
    np.testing.assert_allclose(curve, [-0.8, -0.6, -0.4, -0.2, -0.1, 0])
    assert sensitivity._curve([2, 4], [0.1, 0.2], 5).tolist()[:4] == [-0.2, -0.2, -0.2, -0.2]
    assert sensitivity._curve([], [], 3).tolist() == [0, 0, 0]


def test_too_few_images_or_points(silent_chain):
    with pytest.raises(ValueError, match="images must be 2 or more and points >= 1, got 1 and 4"):
        sensitivity.measure(silent_chain, torch.zeros(1, 3, 64, 32))
    with pytest.raises(ValueError, match="got 2 and 0"):
        sensitivity.measure(silent_chain, torch.zeros(2, 3, 64, 32), points=0)


# -- without torch ------------------------------------------------------------------------------


def test_the_edge_gives_the_same_widths(chain, tmp_path):
    chain.save(tmp_path / "chain")
    here = edge.load(tmp_path / "chain")
    for budget, shape in itertools.product(BUDGETS, shapes.NAMES):
        sizes = chain.resolve(**budget, shape=shape)
        assert here.resolve(**budget, shape=shape) == sizes
        assert here.memory(sizes) == chain.memory(sizes)
    arrays = here.student(memory_mb=0.3, shape="sensitivity")
    assert (
        arrays["conv1.weight"].shape[0]
        == chain.resolve(memory_mb=0.3, shape="sensitivity")["conv1"]
    )
    edge.main([str(tmp_path / "chain"), "--memory-mb", "0.3", "--shape", "sensitivity",
               "--out", str(tmp_path / "student")])  # fmt: skip
    assert (tmp_path / "student").is_file()


@pytest.mark.parametrize("module", [sensitivity, shapes, latency])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


def test_names_of_presets_are_those_of_the_paper():
    assert set(PAPER) == set(presets.PRESETS)
