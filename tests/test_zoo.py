"""Any architecture: families of networks trace, their groups are right, and what is not understood
is frozen with its reason. Never silently wrong."""

from __future__ import annotations

import copy
import functools
import json
import re

import nets
import pytest
import torch
import zoo
import zoo_tokens

from oskt.chain import WeightChain
from oskt.chain.verification import TOLERANCE
from oskt.coupling import Coupling
from oskt.coupling.clustering import ROWS
from oskt.students import recalibrate

CASES = zoo_tokens.CASES
KINDS = ["oskt", "nested"]

# What keeps the teacher's width beside model inputs and outputs: group -> why.
FROZEN = {
    "GeM": {"conv.1.0": "linalg_vector_norm is not known"},  # the embedding's length
    "tied embedding": {
        "fc2": "embedding.weight is used in two ways",  # rows are averaged, columns summed
        "embedding": "is a table",
    },
    "the trap": {
        "right.0": "aten.flip is not known",
        "qkv": r"do not run \(shape '\[2, 16, 3, 3, 4\]'",  # its code says 4
        "qkv#2": r"do not run \(shape '\[2, 16, 3, 3, 4\]'",
    },
}
# Pairs of groups that must keep one proportion though nothing ties their channels.
ALIKE = {
    "Swin": ("first.0.attn.qkv", "first.0.attn.qkv#2"),
    "timm ViT": ("patches", "blocks.1.attn.qkv#2"),
    "MultiheadAttention": ("patches", "layers.layers.0.self_attn"),
    "ShuffleNetV2": ("backbone.1.side.2.0", "backbone.1.side.2.0#3"),
}


def example(name):
    _, like = CASES[name]
    if like.dtype == torch.int64:
        return torch.arange(like.numel()).reshape(like.shape) % 11
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1))


@functools.cache
def teacher(name):
    torch.manual_seed(0)
    module = nets.varied(CASES[name][0]())
    recalibrate(module, [example(name)])  # a deep network forgets its input otherwise
    return module


@functools.cache
def chain(name, kind):
    """The check of a coupling, most of the work, does not know the kind: it is made once."""
    with pytest.MonkeyPatch.context() as patch:
        if kind == "nested":
            checked = chain(name, "oskt").coupling
            patch.setattr("oskt.chain.verification.checked", lambda *_: checked)
        return WeightChain.from_teacher(teacher(name), CASES[name][1], kind, 1 / 2)


@pytest.mark.parametrize("name", CASES)
def test_what_is_understood_is_free_and_what_is_not_says_why(name):
    coupling, expected = chain(name, "oskt").coupling, FROZEN.get(name, {})
    ends = ("reads a model input or a plain axis", "writes a model output")
    frozen = {g.name: g.frozen for g in coupling.groups.values() if g.frozen}
    frozen = {name: reason for name, reason in frozen.items() if not reason.endswith(ends)}
    assert set(frozen) == set(expected)
    for group, pattern in expected.items():
        assert re.search(pattern, frozen[group]), frozen[group]
    assert len(coupling.free) >= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_groups_are_right(name, kind):
    """At widths that differ between groups, a student computes what the wide network whose channels
    repeat computes; the randomised teacher's output depends on its input."""
    whole = chain(name, kind)
    assert whole.verify(quiet=True) < TOLERANCE
    x = example(name)
    with torch.no_grad():
        out = teacher(name)(x)
    assert not torch.allclose(out[0], out[1], rtol=1e-2)


@pytest.mark.parametrize("name", CASES)
def test_a_nested_student_of_full_width_is_the_teacher(name):
    x, whole = example(name), chain(name, "nested")
    with torch.no_grad():
        assert torch.equal(whole.student(width=1.0)(x), teacher(name)(x))


@pytest.mark.parametrize("width", [0.5, 1e-9])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_students_train(name, kind, width):
    whole = chain(name, kind)
    student = whole.student(width=width)
    sizes = student.widths
    assert all(sizes[g] < n or whole.coupling.groups[g].step == n for g, n in whole.groups.items())
    for tensor, values in student.state_dict().items():
        assert tuple(values.shape) == whole.coupling.shape(tensor, sizes), tensor
    student.train()(example(name)).square().mean().backward()
    used = [p for p in student.parameters() if p.grad is not None]
    assert len(used) == len(list(student.parameters()))
    assert all(p.grad.isfinite().all() for p in used)


@pytest.mark.parametrize("name", CASES)
def test_students_export(name):
    """The program that torch.export makes of a student computes what the student does."""
    student, x = chain(name, "nested").student(width=0.5), example(name)
    with torch.no_grad():
        exported = torch.export.export(student, (x,)).module()(x)
        torch.testing.assert_close(exported, student(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_students_compile(name):
    student, x = chain(name, "nested").student(width=0.5), example(name)
    with torch.no_grad():
        compiled = torch.compile(student, fullgraph=True)(x)
        torch.testing.assert_close(compiled, student(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALIKE)
def test_widths_that_code_wants_equal_keep_one_proportion(name):
    first, other = ALIKE[name]
    whole = chain(name, "oskt")
    groups = whole.coupling.groups
    width = groups[other].size - groups[other].step
    sizes = whole.resolve(widths={other: width})
    assert sizes[first] * groups[other].size == width * groups[first].size
    whole.student(widths={other: width})(example(name))
    with pytest.raises(ValueError, match=r"widths: .* must be \d+, as other layers of group"):
        whole.resolve(widths={first: groups[first].size, other: width})


@pytest.mark.parametrize("shape", ["uniform", "sensitivity"])
@pytest.mark.parametrize("name", ALIKE)
def test_budgets_keep_the_proportion(name, shape):
    whole = chain(name, "nested")
    limit = whole.costs(whole.groups)[0] / 2
    sizes = whole.resolve(params=limit, shape=shape)
    assert sizes == whole.coupling.alike(sizes) != whole.groups
    student = whole.student(widths=sizes)
    counted = sum(p.numel() for p in student.parameters())
    assert whole.costs(sizes)[0] == counted <= limit
    student(example(name))


@pytest.mark.parametrize("name", CASES)
def test_couplings_survive_json(name):
    coupling = chain(name, "oskt").coupling
    assert Coupling.from_json(json.loads(json.dumps(coupling.to_json()))) == coupling


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["timm ViT", "tied embedding"])
def test_chains_of_float64_teachers_are_float64(name, rows):
    """Groups that no weight writes, too: of them nothing but the order of channels is known."""
    module, images = copy.deepcopy(teacher(name)).double(), CASES[name][1]
    if images.is_floating_point():
        images = images.double()
    chain = WeightChain.from_teacher(module, images, width=1 / 2, rows=rows, check=False)
    assert chain.weights.dtype == chain.vectors.dtype == chain.statistics.dtype == torch.float64


def test_groups_of_a_shuffle_are_the_true_ones():
    """Two groups shuffled: channels i and i + N/2 lie side by side afterwards."""
    coupling = chain("the trap", "oskt").coupling
    layout = coupling.layouts["left.0.weight"]
    assert layout.rows == (("left.0", 1), ("left.0", 1))
    assert coupling.layouts["right.0.weight"].columns == (("left.0", 2),)


def test_pixel_shuffle_makes_units_of_neighbouring_channels():
    coupling = chain("PixelShuffle", "oskt").coupling
    assert coupling.groups["body.1.0"].size == 6
    assert coupling.layouts["body.1.0.weight"].rows == (("body.1.0", 4),)
    assert coupling.layouts["out.weight"].columns == (("body.1.0", 1),)


def test_the_zoo_is_whole():
    assert len(CASES) == len(zoo.CONVOLUTIONAL) + len(zoo_tokens.TOKENS) == 15
