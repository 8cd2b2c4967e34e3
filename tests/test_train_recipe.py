"""Recipes: published rates, refusals that name both flags, JSON."""

import dataclasses
import json

import pytest

import oskt.train.recipe
from oskt.train.recipe import RECIPES, Recipe, RefineRecipe, learning_rate


def rates(name, epochs):
    return [learning_rate(RECIPES[name], epoch - 1) for epoch in epochs]


def test_rates_of_the_published_cnn_code():
    got = rates("paper-teacher", (1, 2, 10, 11, 39, 40, 69, 70, 129, 130, 200))
    expected = [3.815e-5, 7.28e-5, *[3.5e-4] * 3, *[3.5e-5] * 2, *[3.5e-6] * 2, *[3.5e-7] * 2]
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "epochs", "steps"),
    [
        ("bot", 120, (40, 70)),
        ("paper-teacher", 200, (40, 70, 130)),
        ("paper-refine", 100, (50, 70)),
        ("paper-student", 100, (40, 70, 90)),
    ],
)
def test_tables_of_the_published_code(name, epochs, steps):
    recipe = RECIPES[name]
    assert (recipe.epochs, recipe.steps, recipe.gamma) == (epochs, steps, 0.1)
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay) == ("adam", 3.5e-4, 5e-4)
    assert (recipe.identities, recipe.instances) == (16, 4)
    assert (recipe.height, recipe.width, recipe.pad) == (256, 128, 10)
    assert (recipe.flip, recipe.erasing) == (0.5, 0.5)
    for step in steps:
        before, after = rates(name, (step - 1, step))
        assert after == pytest.approx(0.1 * before)


def test_rates_of_the_published_vit_code():
    got = rates("paper-vit-teacher", (1, 20, 21, 60, 120))
    # four digits were recorded from the published scheduler
    assert got == pytest.approx([4.0e-6, 3.80e-4, 3.73e-4, 2.06e-4, 8.7e-7], rel=3e-3)


@pytest.mark.parametrize("stage", ["teacher", "refine", "student"])
def test_table_of_the_published_vit_code(stage):
    recipe = RECIPES[f"paper-vit-{stage}"]
    assert (recipe.optimizer, recipe.momentum, recipe.lr) == ("sgd", 0.9, 4e-4)
    assert (recipe.weight_decay, recipe.bias_lr_factor) == (1e-4, 2.0)
    assert (recipe.triplet, recipe.label_smoothing, recipe.center_weight) == ("soft", 0.0, 0.0)
    assert (recipe.epochs, recipe.warmup_epochs, recipe.schedule) == (120, 20, "cosine")
    assert (recipe.warmup_factor, recipe.min_factor) == (0.01, 0.002)
    assert (recipe.identities, recipe.instances, recipe.pad) == (16, 4, 10)
    assert learning_rate(RECIPES["nested-vit"], 50) == learning_rate(recipe, 50)


def test_smooth_schedules_meet_the_epoch_ones_at_epoch_starts():
    for name in ("paper-teacher", "paper-vit-teacher"):
        recipe = RECIPES[name]
        smooth = dataclasses.replace(recipe, smooth=True)
        for done in range(0, recipe.epochs, 7):
            assert learning_rate(smooth, done) == learning_rate(recipe, done)
            assert learning_rate(recipe, done + 0.5) == learning_rate(recipe, done)
    demo = RECIPES["demo-teacher"]
    assert learning_rate(demo, 0.5) == pytest.approx(1e-2 * 0.55)
    late = [learning_rate(demo, 1 + k / 10) for k in range(110)]
    assert late == sorted(late, reverse=True)


def test_alpha_is_constant_or_a_ramp():
    assert RECIPES["paper-refine"].refining_scale(0.3) == 1.0
    ramp = RECIPES["paper-vit-refine"]
    assert [ramp.refining_scale(p) for p in (0.0, 0.25, 1.0)] == [0.0, 0.25, 1.0]
    assert RECIPES["demo-refine"].alpha == 0.05


def test_every_field_is_a_flag_with_help():
    for spec in dataclasses.fields(RefineRecipe):
        assert spec.metadata["help"]
        assert spec.default is not dataclasses.MISSING


def test_recipes_survive_json():
    for recipe in RECIPES.values():
        assert type(recipe)(**json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosine"}, r"schedule and steps must agree, .*steps=\(40, 70\)\. Empty"),
        ({"min_factor": 0.1}, r"schedule and min_factor must agree, .*Set min_factor 0"),
        ({"epochs": 60}, r"steps and epochs must agree, got steps=\(40, 70\) and epochs=60"),
        ({"epochs": 5, "steps": ()}, r"warmup_epochs and epochs must agree, .*shorten"),
        ({"triplet": "soft"}, r"triplet and margin must agree, .*set margin 0"),
        ({"instances": 1}, r"triplet and instances must agree, .*raise instances"),
        ({"identities": 1}, r"triplet and identities must agree, .*raise identities"),
        ({"alpha": 0.0, "alpha_ramp": "linear"}, r"alpha and alpha_ramp must agree, .*Nothing"),
        ({"chain": "nested"}, r"chain and alpha must agree, .*set alpha 0"),
        (
            {"chain": "nested", "alpha": 0.0, "center_weight": 5e-4},
            r"chain and center_weight must agree, .*set center_weight 0",
        ),
        (
            {"chain": "nested", "alpha": 0.0, "vectors": "own"},
            r"chain and vectors must agree, .*leave vectors 'shared'",
        ),
        ({"random_widths": 2}, r"chain and random_widths must agree, .*set random_widths 0"),
        ({"steps": (70, 40)}, r"steps must be ascending epochs from 1, got \(70, 40\)\. Sort"),
        ({"optimizer": "adamw"}, r"optimizer must be one of \('adam', 'sgd'\), got 'adamw'"),
        ({"epochs": 0}, r"epochs must be >= 1, got 0"),
        ({"lr": 0.0}, r"lr must be > 0 and finite, got 0.0"),
        ({"lr": float("inf")}, r"lr must be > 0 and finite, got inf"),
        ({"weight_decay": -1.0}, r"weight_decay must be >= 0 and finite, got -1.0"),
        ({"erasing": 1.5}, r"erasing must be in \[0, 1\], got 1.5"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"alpha": -1.0}, r"alpha must be >= 0 and finite, got -1.0"),
        ({"teacher_loss": -1.0}, r"teacher_loss must be >= 0 and finite, got -1.0"),
        ({"anchor": -1.0}, r"anchor must be >= 0 and finite, got -1.0"),
        ({"temperature": 0.0}, r"temperature must be > 0 and finite, got 0.0"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^recipe: {message}"):
        RefineRecipe(**changes)


def test_positional_arguments_are_refused():
    with pytest.raises(TypeError):
        Recipe(120)


def test_examples():
    import doctest

    assert doctest.testmod(oskt.train.recipe).failed == 0
