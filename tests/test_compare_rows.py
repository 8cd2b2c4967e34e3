"""Rows: kept, averaged, added up, judged."""

from dataclasses import replace

import pytest

from oskt.compare import Row, markdown, read_rows
from oskt.compare.rows import write_rows
from oskt.compare.summary import AT_ONCE, best_rates, costs, grids
from oskt.compare.verdicts import verdicts


def row(method, size, budget="short", seed=0, at_once=None, trained=0.5, **changes):
    def scores(value):
        return None if value is None else {"mAP": value, "rank1": value / 2}

    shared = [{"name": f"teacher-s{seed}", "kind": "teacher", "steps": 10, "seconds": 1.0}]
    refined = {"nested": (20, 4.0), "nested-3x": (60, 12.0), "oskt-published": (60, 12.0)}
    if method in refined:
        steps, seconds = refined[method]
        name = f"chain-{method}-s{seed}"
        shared.append({"name": name, "kind": "refinement", "steps": steps, "seconds": seconds})
    values = {
        "table": "sizes", "scenario": "plain", "variant": "",
        "parameters": 1000, "macs": 10, "steps": 3, "seconds": 0.5, "shared": shared,
        "date": "2026-01-01", **changes,
    }  # fmt: skip
    return Row(
        method=method, size=size, budget=budget, seed=seed, at_once=scores(at_once),
        trained=scores(trained), **values,
    )  # fmt: skip


ROWS = [
    row("teacher", "full", "", trained=0.8, steps=0),
    row("nested", "full", "", trained=0.81, steps=0),
    row("oskt-published", "full", "", trained=0.79, steps=0),
    *(row("nested", "S3", "short", seed, 0.70 + 0.02 * seed, 0.74) for seed in (0, 1)),
    *(row("nested", "S3", "long", seed, 0.70 + 0.02 * seed, 0.75) for seed in (0, 1)),
    *(row("nested", "S5", "short", seed, 0.76, 0.79) for seed in (0, 1)),
    *(row("scratch", "S3", "short", seed, None, 0.60 + 0.04 * seed) for seed in (0, 1)),
    *(row("kd", "S3", "short", seed, None, 0.72) for seed in (0, 1)),
    *(row("kd", "S5", "short", seed, None, 0.765) for seed in (0, 1)),
]


def test_grids_show_mean_and_spread_and_the_best():
    at_once, short, long = grids(ROWS, "size")
    assert [g.budget for g in (at_once, short, long)] == [AT_ONCE, "short", "long"]
    assert short.columns == ("S3", "S5", "full")
    lines = {line.method: line.scores for line in short.lines}
    assert list(lines) == ["teacher", "nested", "oskt-published", "scratch", "kd"]
    score = lines["scratch"]["S3"]
    assert score.text == "62.0 ± 2.8"  # sqrt(8) points: two seeds, 2 points from their mean
    assert (score.seeds, score.second) == (2, pytest.approx(31.0))
    assert lines["teacher"]["full"].text == "80.0"
    assert (short.best("S3"), short.best("S5"), short.best("full")) == (74.0, 79.0, 81.0)
    once = {line.method: line.scores for line in at_once.lines}
    assert set(once) == {"teacher", "nested", "oskt-published"}
    # The budgets of a seed share its start: it counts once.
    assert once["nested"]["S3"].text == "71.0 ± 1.4"
    assert once["nested"]["S3"].seeds == 2


def test_costs_count_what_is_shared_once():
    found = {(cost.method, cost.budget): cost for cost in costs(ROWS)}
    family = found["nested", "short"]
    assert (family.sizes, family.own_steps) == (2, (3, 3))
    assert (family.teacher, family.refinement) == ((10, 1.0), (20, 4.0))
    assert family.students == (6, 1.0)  # two sizes, mean over two seeds
    assert (family.steps, family.seconds) == (36, 6.0)
    at_once = found["nested", AT_ONCE]
    assert (at_once.sizes, at_once.steps, at_once.seconds, at_once.own_steps) == (
        2,
        30,
        5.0,
        (0, 0),
    )
    assert found["scratch", "short"].refinement == (0, 0)
    assert ("scratch", AT_ONCE) not in found
    begun = row("nested", "S3", "short", 2, 0.70, 0.74)  # its other size is not found yet
    assert costs([*ROWS, begun]) == costs(ROWS)


def test_every_method_and_size_stands_at_its_best_rate():
    low = [row("kd", "S3", "short", seed, None, 0.73, rate=1e-3, steps=9) for seed in (0, 1)]
    high = [row("kd", "S3", "short", seed, None, 0.72 + 0.04 * seed, rate=1e-2) for seed in (0, 1)]
    other = [row("kd", "S5", "short", 0, None, score, rate=score / 10) for score in (0.6, 0.5)]
    once = row("scratch", "S3", "short", 0, None, 0.4)  # of one rate, which is not named
    kept = best_rates([*low, *high, *other, once])
    assert kept == [*high, other[0], once]  # 0.74 in the mean, though seed 0 alone says 0.73
    (grid,) = grids([*low, *high], "size")
    assert grid.lines[0].scores["S3"].text == "74.0 ± 2.8"
    assert costs([*low, *high])[0].own_steps == (3, 3)
    disturbed = [replace(row, seconds=8.0) for row in high]
    assert costs([*low, *disturbed])[0].students == (3, 0.5)  # a rate changes no work
    # A rate that is not run for all seeds yet does not win over one that is.
    assert best_rates([*high, row("kd", "S3", "short", 0, None, 0.9, rate=1e-3)]) == high
    said = markdown("sizes", [*low, *high])
    assert "Rates: students are trained at 0.001, 0.01; each method, size and length" in said


def test_verdicts_say_what_holds_and_what_does_not():
    said = verdicts("sizes", ROWS)
    text = "\n".join(said)
    assert (
        "Families of equal steps, teacher and refinement included (a rival's beside the dearest of "
        "ours that takes at most a tenth more, or the cheapest: Nested, ours beside From scratch "
        "and KD): nested students at once against every rival after its short training, at or "
        "above at 0 of 2 sizes: S3 −1.0 (KD), S5 −0.5 (KD)." in text
    )
    assert (
        "Nested, ours: students after their short training against the best rival after as "
        "long a one, at or above at 2 of 2 sizes: S3 +2.0 (KD), S5 +2.5 (KD)." in text
    )
    assert "included: Nested, ours: 30 steps and 5.0 s. The rivals" in text
    assert "at a quarter of the width (S3) students keep at once 87.7% of their chain's full " \
        "width (81.0); 88% were wanted: not met." in text  # fmt: skip
    assert "at half width (S5) students keep at once 93.8%" in text
    assert "teacher 80.0 before, 81.0 after; not below was wanted: met." in text
    long = [
        row("kd", "S3", "long", 0, None, 0.715),
        row("nested-3x", "S3", "long", 0, 0.74, 0.75),
        row("oskt-published", "S3", "long", 0, 0.1, 0.73),  # as dear as the one before
    ]
    beside = "the cheapest: Nested, ours beside KD; Nested, refined 3x beside OSKT, published)"
    text = "\n".join(verdicts("sizes", ROWS + long))
    assert f"a tenth more, or {beside}: " in text
    assert "long training, at or above at 0 of 1 sizes: S3 −0.5 (KD)." in text  # 71.0 and 71.5
    ablated = [
        row(method, "S1", "long", 0, start, end, variant=variant)
        for method, variant, start, end in (
            ("oskt-published", "full", 0.1, 0.6), ("oskt-published", "random clusters", 0.1, 0.45),
            ("nested", "full", 0.5, 0.6), ("nested", "random clusters", 0.4, 0.55),
            ("nested", "no refinement", 0.1, 0.4),
        )
    ]  # fmt: skip
    assert verdicts("ablation", ablated) == [
        "Nested, ours, S1, at once: the order of channels against a random one +10.0 points.",
        "OSKT, published, S1, long: the clustering against a random one +15.0 points.",
        "Nested, ours, S1, long: the order of channels against a random one +5.0 points.",
        "Nested, ours, S1, long: 60.0 as it is; no refinement −20.0.",
    ]
    moved = [
        row(method, "S1", "own", 0, 0.1, end, scenario="a -> b")
        for method, end in (("nested", 0.5), ("kd", 0.45), ("depgraph", 0.52), ("oskt", 0.9))
    ]
    moved.append(row("nested-there", "S1", "own", 0, 0.51, 0.55, scenario="a -> b"))
    rival = "against the best rival trained there: "
    assert verdicts("cross", moved) == [
        f"a -> b, Nested, ours: students, trained there, {rival}S1 50.0, −2.0 (DepGraph).",
        f"a -> b, Nested, refined there: students, at once, {rival}S1 51.0, −1.0 (DepGraph).",
        f"a -> b, Nested, refined there: students, trained there, {rival}S1 55.0, +3.0 (DepGraph).",
    ]
    few = [replace(r, variant="10 %") for r in moved[:-1]]
    assert verdicts("few-shot", few) == [
        f"a -> b, S1, Nested, ours: students, trained there, {rival}10 % 50.0, −2.0 (DepGraph)."
    ]
    deep = [replace(r, scenario="plain", variant="ViT", budget="short") for r in moved[:-1]]
    rival = "against the best rival after the short training: S1"
    assert verdicts("depth", deep) == [
        f"plain, ViT, Nested, ours: students, at once, {rival} 10.0, −42.0 (DepGraph).",
        f"plain, ViT, Nested, ours: students, after the short training, {rival} 50.0, −2.0 "
        "(DepGraph).",
    ]
    one, three = (
        [row(m, "S3", "short", 0, 0.1, end, variant=variant) for m, end in ends.items()]
        for variant, ends in (
            ("one chain", {"oskt-published": 0.4, "nested": 0.55}),
            ("three chains", {"oskt-published": 0.6, "nested": 0.65}),
        )
    )
    assert verdicts("chains", one + three) == [
        "After the short training, three published chains against one: S3 +20.0.",
        "After the short training, three nested chains against one: S3 +10.0.",
        "After the short training, three nested chains against three published ones: S3 +5.0.",
    ]
    clustered = [
        row("oskt", "S1", "short", 0, 0.1, end, variant=f"ViT, {metric}")
        for metric, end in (("Euclidean", 0.5), ("cosine", 0.52), ("norm folded in", 0.47))
    ]
    assert verdicts("metric", clustered) == [
        "ViT, OSKT, ours, short, against Euclidean rows: cosine S1 +2.0; norm folded in S1 −3.0."
    ]
    wide = [row("oskt", "chain width", "short", 0, 0.1, 0.5, variant=w) for w in ("0.1", "0.2")]
    assert verdicts("chain-width", wide) == [
        "OSKT, ours, chain width, at once: 0.1 10.0, 0.2 10.0.",
        "OSKT, ours, chain width, short: 0.1 50.0, 0.2 50.0.",
    ]
    with pytest.raises(ValueError, match="table must be one of"):
        verdicts("11", ROWS)


def test_scenarios_are_judged_one_by_one():
    other = [replace(r, scenario="market", trained=r.trained and {"mAP": 0.1}) for r in ROWS]
    apart = [
        [f"{rows[0].scenario}: {s}" for s in verdicts("sizes", rows)] for rows in (ROWS, other)
    ]
    assert verdicts("sizes", ROWS + other) == apart[0] + apart[1]


def test_markdown_names_data_and_machine():
    rows = [replace(r, data=["drawn pedestrians, world plain"], machine="m", commit="c", threads=2)
            for r in ROWS]  # fmt: skip
    text = markdown("sizes", rows)
    assert "Data: drawn pedestrians, world plain." in text
    assert "Machine: m, 2 threads." in text
    assert "| From scratch | 62.0 ± 2.8 / 31.0 |" in text
    assert "mean ± standard deviation over seeds 0, 1" in text
    assert "Trained at" not in text  # older rows do not know
    shared = [{**part, "commit": "t"} for part in rows[0].shared]
    text = markdown("sizes", [replace(r, trained_at="s", shared=shared) for r in rows])
    assert "Commit: c.\nTrained at: t; s." in text


def test_rows_come_back_and_the_last_of_equal_labels_stands(tmp_path):
    path = tmp_path / "sizes.jsonl"
    assert read_rows(path) == []
    write_rows(path, ROWS)
    assert read_rows(path) == ROWS
    newer = replace(ROWS[2], trained={"mAP": 0.9, "rank1": 0.9})
    write_rows(path, [*ROWS, newer])
    assert read_rows(path) == [*ROWS[:2], newer, *ROWS[3:]]
    changed = [replace(r, date="2026-02-01", settings={"recipe": {"temperature": 6}}) for r in ROWS]
    write_rows(path, [*ROWS[:3], changed[3], *ROWS[4:]])  # of two seeds one was found anew
    assert read_rows(path) == [*ROWS[:3], changed[3], *ROWS[5:]]
    start = {"start": {"source": {"recipe": {"temperature": 6}}}}
    changed = replace(ROWS[3], date="2026-02-01", settings=start)
    write_rows(path, [*ROWS[:3], changed, *ROWS[4:]])  # of two seeds and budgets one was found anew
    assert read_rows(path) == [*ROWS[:3], changed, *ROWS[7:]]
    seeds = [
        replace(r, settings={"data": {"few_shot": [0.1, r.seed]}, "seed": r.seed}) for r in ROWS
    ]
    write_rows(path, seeds)
    assert read_rows(path) == seeds
    for line in ("[1]", '{"table": "sizes"}', "{"):
        path.write_text(path.read_text().splitlines()[0] + f"\n{line}\n")
        with pytest.raises(ValueError, match=r"sizes.jsonl' line 2 must be a row of a table, got"):
            read_rows(path)
