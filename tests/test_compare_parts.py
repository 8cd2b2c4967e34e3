"""What tables are made of: cells, parts, digests, sizes, refusals; and the digits."""

import os
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from compare_scale import tiny

from oskt.compare import SCALES, SIZES, TABLES, Request, Size
from oskt.compare.digits import Digits
from oskt.compare.parts import Chain, Data, Student, Teacher, digest, folder_name, trained_parts
from oskt.compare.runner import run_table
from oskt.compare.scales import stretched
from oskt.compare.tables import find_table
from oskt.coupling.grouping import trace_coupling
from oskt.models import ResNet
from oskt.models.resnet import PRESETS, widths
from oskt.train import RECIPES, Recipe, fit
from oskt.train.teacher import SupervisedObjective

LAPTOP = SCALES["laptop"]


def cells(table, **asked):
    return list(TABLES[table].cells(Request(asked.pop("scale", LAPTOP), **asked)))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("scale", SCALES)
def test_every_table_lists_cells_of_its_own(table, scale):
    found = cells(table, scale=SCALES[scale])
    labels = [(c.scenario, c.variant, c.method, c.size, c.budget, c.seed, c.rate) for c in found]
    assert len(set(labels)) == len(labels) > 20
    assert len({cell.key for cell in found}) == len(found)
    assert {cell.table for cell in found} == {table}
    assert {c.seed for c in found} == set(range(5 if table == "few-shot" else 3))
    for cell in found:
        assert isinstance(cell.part, Student) == (cell.size != "full")


def test_table_one_is_what_its_title_says():
    found = [c for c in cells("sizes") if c.size != "full"]
    assert len(found) == 11 * 6 * 2 * 3 * 2  # methods, sizes, budgets, seeds, rates
    assert {c.rate for c in found} == set(LAPTOP.rates) == {c.part.recipe.lr for c in found}
    first, second = LAPTOP.rates
    other = {(c.method, c.size, c.budget, c.seed): c.part for c in found if c.rate == second}
    found = [c for c in found if c.rate == first]
    by_label = {(c.method, c.size, c.budget, c.seed): c.part for c in found}
    assert other == {
        label: replace(part, recipe=replace(part.recipe, lr=second))
        for label, part in by_label.items()
    }
    assert LAPTOP.epochs("short") == round(LAPTOP.nested.epochs / 6)
    for (method, size, budget, seed), student in by_label.items():
        assert student.start.size == SIZES[size]
        assert student.recipe.epochs == LAPTOP.epochs(budget)
        assert student.recipe.seed == student.start.seed == seed
        # Rivals train as ours do: data, augmentation, optimiser, schedule.
        ours = by_label["nested", size, budget, seed]
        assert (student.recipe, student.data) == (ours.recipe, ours.data)
        assert (student.told_by is not None) == method.startswith("kd")
    chains = {
        size: (by_label["oskt-published", size, "short", 0].start.source,
               by_label["nested", size, "short", 0].start.source)
        for size in SIZES
    }  # fmt: skip
    assert [c.width for c, _ in chains.values()] == [1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 2, 1 / 2]
    assert len({digest(nested) for _, nested in chains.values()}) == 1
    once = chains["S1"][1]
    for times in (2, 3):
        longer = by_label[f"nested-{times}x", "S1", "short", 0].start.source
        epochs = times * once.recipe.epochs
        assert longer == replace(once, recipe=replace(once.recipe, epochs=epochs))
    published = chains["S1"][0]
    assert (published.rows, published.method) == ("published", "ward")
    assert (published.recipe.distill, published.recipe.similarity) == (0, 0)
    assert published.recipe.alpha > 0
    assert {c.size for c in found if c.seed == 0 and c.curve} == {"S1"}
    assert not any(c.curve for c in found if c.seed)


def test_scratch_needs_no_teacher_and_kd_one_of_the_target():
    found = {(c.method, c.scenario): c.part for c in cells("cross", seeds=[0], sizes=["S1"])}
    alone, told = found["scratch", "a -> c"], found["kd++", "a -> c"]
    assert list(trained_parts(alone)) == [alone]
    source, target, student = trained_parts(told)
    assert (source.data.name, target.data.name) == ("a", "c")
    assert (target.start, student) == (source, told)
    assert told.telling["norm_direction"] == 1
    teacher, chain, student = trained_parts(found["nested", "a -> c"])
    assert (teacher.data.name, chain.teacher, student.data.name) == ("a", teacher, "c")
    # The small world is small.
    assert student.data.options["train_ids"] * 2 == teacher.data.options["train_ids"]


def test_a_chain_refined_there_takes_half_of_the_steps_of_a_family():
    found = {
        (c.method, c.size): c.part for c in cells("cross", seeds=[0]) if c.scenario == "a -> c"
    }
    teacher, before, moved, student = trained_parts(found["nested-there", "S3"])
    assert (before, moved.data, student.start.source) == (moved.chain, student.data, moved)
    assert before == found["nested", "S3"].start.source
    assert (teacher.data.name, moved.data.name, moved.teacher) == ("a", "c", teacher)
    family = 6 * found["scratch", "S3"].recipe.epochs
    assert (2 * moved.recipe.epochs, 2 * 6 * student.recipe.epochs) == (family, family)
    # As before, but that nothing is held to what the teacher says of other people.
    assert replace(moved.recipe, epochs=before.recipe.epochs) == replace(before.recipe, anchor=0.0)
    with pytest.raises(ValueError, match="methods must be of scratch, "):
        cells("sizes", methods=["nested-there"])


def test_few_shot_draws_are_seeded_and_take_equal_steps():
    found = [c for c in cells("few-shot", methods=["nested"]) if c.scenario == "a -> b"]
    assert {(c.variant, *c.part.data.few_shot) for c in found} == {
        (f"{p} %", p / 100, seed) for p in (10, 30, 50) for seed in range(5)
    }
    for cell in found:
        ratio, _ = cell.part.data.few_shot
        assert cell.part.recipe.epochs * ratio == pytest.approx(LAPTOP.student.epochs, abs=0.5)
        assert cell.part.start.source.teacher.data.few_shot is None


def test_an_ablation_changes_one_thing():
    found = cells("ablation", seeds=[0], sizes=["S1"])
    students = {(c.method, c.variant): c.part for c in found if c.size != "full"}
    teachers = [c.variant for c in found if c.method == "teacher"]
    assert teachers == [""]

    def changed(method, variant):
        full, other = (students[method, v].start.source for v in ("full", variant))
        return {
            name: getattr(other, name) for name in vars(full)
            if getattr(other, name) != getattr(full, name)
        }  # fmt: skip

    for method in ("oskt-published", "nested"):
        full = students[method, "full"].start.source
        assert changed(method, "random clusters") == {"method": "random"}
        other = students[method, "random teacher"].start.source
        assert other.teacher == replace(full.teacher, trained=False)
        assert other.recipe == replace(full.recipe, anchor=0.0)  # none to be held to
        assert changed(method, "no refinement") == {"recipe": None}
    recipe = students["oskt-published", "full"].start.source.recipe
    loss = changed("oskt-published", "no teacher loss")
    assert loss == {"recipe": replace(recipe, teacher_loss=0.0)}
    assert changed("oskt-published", "norm folded in") == {"rows": "folded"}
    assert changed("oskt-published", "k-means") == {"method": "kmeans"}
    assert changed("oskt-published", "swapped metric") == {"rows": "published-cosine"}
    assert changed("nested", "Ward merge trees") == {"method": "ward"}
    recipe = students["nested", "full"].start.source.recipe
    assert recipe.anchor > 0
    assert changed("nested", "no anchor") == {"recipe": replace(recipe, anchor=0.0)}
    assert ("nested", "no teacher loss") not in students  # nothing would train its weights


def test_the_other_tables_vary_what_they_name():
    own = [c for c in cells("chain-width", sizes=["chain width"]) if c.size != "full"]
    widths_ = {(c.variant, c.part.start.source.width, c.part.start.size.share) for c in own}
    assert widths_ == {(f"{w / 10:g}", w / 10, w / 10) for w in range(1, 10)}
    chains = cells("chains", seeds=[0], methods=["oskt"])
    assert {c.part.start.source.width for c in chains if c.variant == "one chain"} == {1 / 8}
    assert len({c.part.start.source.width for c in chains if c.variant == "three chains"}) == 3
    depths = {(c.variant, c.part.network["depth"])
              for c in cells("depth") if c.method == "teacher"}  # fmt: skip
    assert depths >= {("ResNet-18", 18), ("ResNet-50", 50), ("ResNet-101", 101), ("ViT", 4)}
    vit = [c for c in cells("depth", variants=["ViT"]) if c.size == "S3"]
    assert {c.part.start.teacher.network["family"] for c in vit} == {"vit"}
    assert "depgraph" not in {c.method for c in vit}
    rows = {(c.variant, c.part.start.source.rows) for c in cells("metric")}
    assert {("ResNet-18, cosine", "published-cosine"), ("ResNet-50, Euclidean", "published")} < rows
    recipes = [c.part.recipe for c in cells("digits") if c.size != "full"]
    assert {(r.triplet, r.flip, r.height, r.width) for r in recipes} == {("none", 0.0, 32, 32)}


@pytest.mark.parametrize("scale", SCALES)
def test_teachers_are_done_before_they_are_refined(scale):
    """docs/lab/nested.md, section 18: else refinement seems to cost nothing."""
    whole = SCALES[scale]
    for network in whole.networks:
        one = whole.of(network)
        assert one.teacher.epochs >= 5 / 3 * one.nested.epochs
        assert one.teacher.erasing > one.nested.erasing == 0


def test_scales_are_told_apart():
    found = {name: cells("cross", scale=scale) for name, scale in SCALES.items()}
    assert {c.scenario for c in found["laptop"]} == {"a -> b", "a -> c", "b -> c"}
    assert {c.scenario for c in found["full"]} == {
        f"{s}, full scale" for s in ("a -> b", "a -> c", "b -> c")
    }
    labels = [{c.labels for c in one} for one in found.values()]
    assert not labels[0] & labels[1]


def test_equal_work_has_one_folder_and_changed_settings_another():
    one, two = (cells(t, seeds=[0], sizes=["S1"], methods=["nested"]) for t in ("sizes", "chains"))
    shared = {folder_name(c.part) for c in one} & {folder_name(c.part) for c in two}
    assert len(shared) == 1  # the short student of table 1 is that of table 6, three chains
    part = one[-1].part
    other = replace(part, recipe=replace(part.recipe, lr=1.0))
    assert folder_name(other) != folder_name(part)
    assert digest(other.start) == digest(part.start)
    teacher = part.start.teacher
    assert folder_name(teacher) == f"teacher-plain-depth50-s0-{digest(teacher)}"
    assert "/" not in folder_name(replace(part, start=replace(part.start, size=Size("1/8", 1 / 8))))


def test_a_new_field_of_a_recipe_redoes_nothing():
    @dataclass(frozen=True, kw_only=True)
    class Newer(Recipe):
        added: float = 0.0

    part = cells("sizes", seeds=[0])[0].part
    newer = Newer(**part.recipe.to_dict())
    assert digest(replace(part, recipe=newer)) == digest(part)
    assert digest(replace(part, recipe=replace(newer, added=1.0))) != digest(part)


def test_real_data_take_the_place_of_drawn_worlds():
    found = cells("cross", seeds=[0], sizes=["S1"], data={"source": "M", "target": "C?val=in"})
    source, target = found[-1].part.start.teacher.data, found[-1].part.data
    assert {c.scenario for c in found} == {f"{source.name} -> {target.name}"}
    assert re.fullmatch("M #[0-9a-f]{4}", source.name)
    assert re.fullmatch(r"C\?val=in #[0-9a-f]{4}", target.name)
    assert (source.root, target.root) == (os.path.abspath("M"), os.path.abspath("C?val=in"))
    assert {c.scenario for c in cells("sizes", data={"source": "M"})} == {source.name}
    assert Data.at("./M") == source
    assert Data.at("other/M").name != source.name
    assert not set("/ ?&#").intersection(folder_name(target) + folder_name(found[-1].part))


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_paper(name):
    network = {"depth": 50, "layers": (1, 1, 1, 1), "in_planes": 64}
    coupling = trace_coupling(ResNet(num_classes=2, **network), torch.zeros(2, 3, 32, 16))
    expected = widths(*PRESETS[f"res50-{name.lower()}"], layers=network["layers"])
    assert SIZES[name].widths(coupling, network) == expected
    if SIZES[name].multipliers == (2, 4, 8):  # one share for all groups
        assert Size("", SIZES[name].share).widths(coupling, network) == expected


def test_a_stretched_recipe_keeps_its_shape():
    recipe = RECIPES["paper-student"]
    for epochs in (1, 2, 10, 30, 300):
        short = stretched(recipe, epochs)
        assert short.epochs == epochs
        assert all(step <= epochs for step in short.steps)
        assert short.warmup_epochs <= epochs / 3
        assert replace(short, epochs=100, steps=recipe.steps, warmup_epochs=10) == recipe


def test_wrong_requests_are_refused(tmp_path):
    def refuse(message, table="sizes", **asked):
        with pytest.raises(ValueError, match=message):
            run_table(table, tmp_path / "out", **asked)
        assert not (tmp_path / "out").exists()

    refuse("table must be one of 1 sizes, .*9 digits, got 'ten'", "ten")
    refuse("scale must be one of laptop, full, got 'huge'", scale="huge")
    refuse(
        r"methods must be of scratch, .*nested-3x, got kdd, x\. Choose", methods=["kdd", "kd", "x"]
    )
    refuse("sizes must be of S1, S2, .*, got S7", sizes=["S7"])
    refuse(r"variants must be of 10 %, 30 %, 50 %, got 20 %", "few-shot", variants=["20 %"])
    refuse("variants must be left out, for this table has none, got x", variants=["x"])
    refuse("variants must be of ResNet-26, .*, ViT, got Swin", "depth", variants=["Swin"])
    refuse("digits must come without data, got --data", "digits", data={"source": "M"})
    refuse("data must name the source alone in this table, got a target",
           data={"source": "M", "target": "C"})  # fmt: skip
    refuse("data must name source and target, got source", "cross", data={"source": "M"})
    refuse("data must be named source and target, got market", data={"market": "M"})
    assert [find_table(str(n)) for n in range(1, 10)] == list(TABLES)


# -- the task that is no re-identification -------------------------------------------------------

SQUARE = replace(
    tiny().student, height=16, width=16, triplet="none", flip=0.0, erasing=0.0, instances=8,
    identities=8, lr=5e-3,
)  # fmt: skip


def test_digits_are_a_task_like_the_others(tmp_path):
    data = Digits(SQUARE, device="cpu")
    assert len(data.train_labels) + len(data.test_labels) == 1797
    batches = data.training(SQUARE)
    assert len(batches) == 1197 // 64 == data.steps(SQUARE)
    images, labels, _ = next(batches.batches(1))
    assert images.shape == (64, 3, 16, 16)
    later = list(batches.batches(1))[3]
    again, its_labels, _ = next(batches.batches(1, start=3))
    torch.testing.assert_close(again, later[0], rtol=0, atol=0)
    assert torch.equal(its_labels, later[1])
    assert not torch.equal(next(batches.batches(2))[1], labels)
    model = ResNet(50, 8, num_classes=10, layers=(1, 1, 1, 1))
    before = data.scores(model)["accuracy"]
    assert before < 0.3  # untrained: about a tenth
    fit(
        SupervisedObjective(model, SQUARE), batches, replace(SQUARE, epochs=2), tmp_path,
        tensorboard=False, device="cpu",
    )  # fmt: skip
    assert data.scores(model)["accuracy"] > 0.5
    shifted = model.bn1.running_mean.clone()
    assert data.recalibrate(model) == 8
    assert not torch.equal(model.bn1.running_mean, shifted)
    assert data.for_recipe(replace(SQUARE, pad=0)).augment.pad == 0
    assert data.augment.pad == SQUARE.pad


def test_digits_need_their_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"scikit-learn must be installed, .*pip install"):
        Digits(SQUARE, device="cpu")


def test_random_trees_know_nothing_of_the_weights():
    from oskt import WeightChain

    teacher = ResNet(50, 8, num_classes=2, layers=(1, 1, 1, 1))
    other = ResNet(50, 8, num_classes=2, layers=(1, 1, 1, 1))
    images = torch.zeros(2, 3, 32, 16)

    def orders(module, seed, method="random"):
        chain = WeightChain.from_teacher(module, images, "nested", method=method, seed=seed)
        return np.concatenate([tree.order for tree in chain.partitions.values()])

    assert np.array_equal(orders(teacher, 0), orders(other, 0))
    assert not np.array_equal(orders(teacher, 0), orders(teacher, 1))
    assert not np.array_equal(orders(teacher, 0), orders(teacher, 0, None))


def test_parts_know_their_teacher():
    found = cells("sizes", seeds=[0], sizes=["S1"])
    kinds = {type(c.part) for c in found}
    assert kinds == {Student, Teacher, Chain}
    for cell in found:
        if isinstance(cell.part, Student):
            assert isinstance(cell.part.start.teacher, Teacher)
            assert cell.part.start.knows == (cell.method not in ("scratch", "kd", "kd++"))
