"""What the rows say to the questions that the tables were made for, kept or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

from oskt.compare.cells import FULL_WIDTH
from oskt.compare.methods import NESTED, OURS, TITLES
from oskt.compare.rows import Row
from oskt.compare.summary import AT_ONCE, Grid, costs, grids
from oskt.report.duration import duration_text

# Share of the full width's score that nested students must keep at once (issue 5).
KEPT = {"S3": ("a quarter of the width", 0.88), "S5": ("half width", 0.96)}

# How much dearer a family may be to count as of equal cost: the long training makes six sizes
# take about the time of one refinement, and timings move by some percent.
EQUAL = 1.1


def verdicts(table: str, rows: Sequence[Row]) -> list[str]:
    """Sentences, each with its numbers; [] where a table asks nothing or too little is known."""
    if table in ("cross", "few-shot", "depth"):
        return _margins(rows, "variant" if table == "few-shot" else "size")
    scenarios = dict.fromkeys(row.scenario for row in rows)
    if len(scenarios) > 1:  # methods are compared within each
        return [
            f"{scenario}: {sentence}" for scenario in scenarios
            for sentence in verdicts(table, [row for row in rows if row.scenario == scenario])
        ]  # fmt: skip
    if table in ("sizes", "digits"):
        kept = _kept(rows) if table == "sizes" else []
        return [*_at_equal_cost(rows), *_trained(rows), *_times(rows), *kept, *_teachers(rows)]
    if table == "ablation":
        return [*_clusters(rows), *_ingredients(rows)]
    if table == "chain-width":
        return _widths(rows)
    if table == "chains":
        return _three(rows)
    if table == "metric":
        return _metrics(rows)
    raise ValueError(f"verdicts: table must be one of `tables.TABLES`, got {table!r}.")


def _scores(grid: Grid, method: str, variant: str = "") -> dict[str, float]:
    """Column -> mean, rounded as it is printed, of one line."""
    return {
        column: round(score.first, 1)
        for line in grid.lines if (line.method, line.variant) == (method, variant)
        for column, score in line.scores.items()
    }  # fmt: skip


def best_rivals(grid: Grid, variant: str = "") -> dict[str, tuple[float, str]]:
    """Column -> (mean, as it is printed, and name) of the best method that is not ours."""
    best: dict[str, tuple[float, str]] = {}
    for line in grid.lines:
        if line.method not in (*OURS, "teacher") and line.variant == variant:
            for column, score in line.scores.items():
                if column != FULL_WIDTH:  # what a refinement makes of the teacher is no student
                    found = (round(score.first, 1), TITLES[line.method])
                    best[column] = max(best.get(column, found), found)
    return best


def _at_equal_cost(rows: Sequence[Row]) -> list[str]:
    """Nested students at once against every rival trained, family against family of equal cost.

    Cost is steps where the short training makes them equal, seconds where the long one does. A
    rival meets the dearest nested chain that costs at most EQUAL times as much, or the cheapest.
    """
    by_budget = {grid.budget: grid for grid in grids(rows, "size")}
    spent = costs(rows)
    ours = [cost for cost in spent if cost.method.startswith("nested") and cost.budget == AT_ONCE]
    sentences = []
    for budget, unit in (("short", "steps"), ("long", "seconds")):
        price = attrgetter(unit)
        rivals = [cost for cost in spent if cost.budget == budget and cost.method not in OURS]
        if not ours or not rivals:
            continue
        pairs: dict[str, list[str]] = {}
        margins: dict[str, tuple[float, str]] = {}
        for rival in rivals:
            equal = [cost for cost in ours if price(cost) <= EQUAL * price(rival)]
            nested = max(equal, key=price) if equal else min(ours, key=price)
            pairs.setdefault(TITLES[nested.method], []).append(TITLES[rival.method])
            mine = _scores(by_budget[AT_ONCE], nested.method)
            for size, score in _scores(by_budget[budget], rival.method).items():
                if size in mine and size != FULL_WIDTH:
                    margin = (round(mine[size] - score, 1), TITLES[rival.method])
                    margins[size] = min(margins.get(size, margin), margin)
        beside = "; ".join(f"{mine} beside {_listed(theirs)}" for mine, theirs in pairs.items())
        sentences.append(
            f"Families of equal {'steps' if unit == 'steps' else 'time'}, teacher and refinement "
            "included (a rival's beside the dearest of ours that takes at most a tenth more, or "
            f"the cheapest: {beside}): nested students at once against every rival after its "
            f"{budget} training, {_held(margins)}."
        )
    return sentences


def _trained(rows: Sequence[Row]) -> list[str]:
    """Nested students against the best rival, both trained as long."""
    sentences = []
    for grid in grids(rows, "size"):
        best = best_rivals(grid)
        for method in NESTED if grid.budget != AT_ONCE else ():
            mine = _scores(grid, method)
            margins = {c: (round(mine[c] - best[c][0], 1), best[c][1]) for c in best if c in mine}
            if margins:
                sentences.append(
                    f"{TITLES[method]}: students after their {grid.budget} training against the "
                    f"best rival after as long a one, {_held(margins)}."
                )
    return sentences


def _held(margins: Mapping[str, tuple[float, str]]) -> str:
    """At how many sizes the margins, each over a rival named, are no loss."""
    count = sum(margin >= 0 for margin, _ in margins.values())
    listed = ", ".join(f"{size} {_signed(m)} ({rival})" for size, (m, rival) in margins.items())
    return f"at or above at {count} of {len(margins)} sizes: {listed}"


def _times(rows: Sequence[Row]) -> list[str]:
    """Steps and time of whole families: ours before fine-tuning, the rivals after theirs."""
    found = costs(rows)
    ours = [c for c in found if c.method.startswith("nested") and c.budget == AT_ONCE]
    took = "; ".join(
        f"{TITLES[c.method]}: {c.steps:,.0f} steps and {duration_text(c.seconds)}" for c in ours
    )
    sentences = []
    for budget in dict.fromkeys(cost.budget for cost in found if cost.budget != AT_ONCE):
        rivals = [c for c in found if c.budget == budget and c.method not in OURS]
        if ours and rivals:
            spans = [
                f"{text(min(values))} to {text(max(values))}"
                for text, values in (
                    ("{:,.0f}".format, [c.steps for c in rivals]),
                    (duration_text, [c.seconds for c in rivals]),
                )
            ]
            sentences.append(
                f"Whole families before any fine-tuning, teacher and refinement included: {took}. "
                f"The rivals' families, {budget} training: {spans[0]} steps, {spans[1]}."
            )
    return sentences


def _kept(rows: Sequence[Row]) -> list[str]:
    """Nested students at once against the full width of their own chain, which is the harder
    measure where refinement has raised it above the teacher."""
    at_once = next((g for g in grids(rows, "size") if g.budget == AT_ONCE), None)
    if at_once is None:
        return []
    sentences = []
    for method in NESTED:
        scores = _scores(at_once, method)
        for size, (words, wanted) in KEPT.items():
            if FULL_WIDTH in scores and size in scores:
                share = scores[size] / scores[FULL_WIDTH]
                sentences.append(
                    f"{TITLES[method]}: at {words} ({size}) students keep at once {share:.1%} of "
                    f"their chain's full width ({scores[FULL_WIDTH]:.1f}); {wanted:.0%} were "
                    f"wanted: {_met(share >= wanted)}."
                )
    return sentences


def _teachers(rows: Sequence[Row]) -> list[str]:
    """The teacher after every refinement against before."""
    at_once = next((g for g in grids(rows, "size") if g.budget == AT_ONCE), None)
    if at_once is None:
        return []
    before = _scores(at_once, "teacher").get(FULL_WIDTH)
    sentences = []
    for line in at_once.lines:
        after = _scores(at_once, line.method, line.variant).get(FULL_WIDTH)
        if before is None or after is None or line.method == "teacher":
            continue
        sentences.append(
            f"Refinement of {TITLES[line.method]}: teacher {before:.1f} before, {after:.1f} after; "
            f"not below was wanted: {_met(after >= before)}."
        )
    return sentences


def _clusters(rows: Sequence[Row]) -> list[str]:
    """What clusters, or an order by importance, are worth against random ones; the paper: 15 to 20
    points at S1."""
    sentences = []
    for grid in grids(rows, "size"):
        for method in ("oskt-published", "nested"):
            if grid.budget == AT_ONCE and method not in OURS:
                continue  # the published start is of no use before training
            what = "the order of channels" if method == "nested" else "the clustering"
            full, random = (_scores(grid, method, v) for v in ("full", "random clusters"))
            for size in full:
                if size in random and size != FULL_WIDTH:
                    sentences.append(
                        f"{TITLES[method]}, {size}, {grid.budget}: {what} against a random one "
                        f"{_signed(round(full[size] - random[size], 1))} points."
                    )
    return sentences


def _ingredients(rows: Sequence[Row]) -> list[str]:
    """What every change makes of students after their long training, against all as it is."""
    sentences = []
    for grid in grids(rows, "size"):
        for method in ("oskt-published", "nested"):
            full = _scores(grid, method, "full")
            for size in full:
                if grid.budget == AT_ONCE or size == FULL_WIDTH:
                    continue
                changes = [
                    f"{line.variant} {_signed(round(scores[size] - full[size], 1))}"
                    for line in grid.lines
                    if line.method == method and line.variant not in ("full", "random clusters")
                    and size in (scores := _scores(grid, method, line.variant))
                ]  # fmt: skip
                if changes:
                    sentences.append(
                        f"{TITLES[method]}, {size}, {grid.budget}: {full[size]:.1f} as it is; "
                        f"{', '.join(changes)}."
                    )
    return sentences


def moments(method: str, budget: str) -> tuple[str, ...]:
    """When nested students are compared with trained rivals: trained as those were, and at once
    where their chain has seen the data that rivals were trained on."""
    seen = method == "nested-there" or budget != "own"
    return (AT_ONCE, budget) if seen else (budget,)


def _margins(rows: Sequence[Row], columns: str) -> list[str]:
    """Nested students against the best rival in every scenario and variant."""
    found = {(grid.scenario, grid.budget): grid for grid in grids(rows, columns)}
    sentences = []
    for (scenario, budget), grid in found.items():
        for line in grid.lines:
            if budget == AT_ONCE or not line.method.startswith("nested"):
                continue
            best = best_rivals(grid, line.variant)
            head = ", ".join(filter(None, (scenario, line.variant, TITLES[line.method])))
            trained = "trained there" if budget == "own" else f"after the {budget} training"
            for when in moments(line.method, budget):
                mine = _scores(found[scenario, when], line.method, line.variant)
                listed = ", ".join(
                    f"{c} {own:.1f}, {_signed(round(own - best[c][0], 1))} ({best[c][1]})"
                    for c, own in mine.items() if c in best
                )  # fmt: skip
                if listed:
                    sentences.append(
                        f"{head}: students, {AT_ONCE if when == AT_ONCE else trained}, against the "
                        f"best rival {trained}: {listed}."
                    )
    return sentences


def _widths(rows: Sequence[Row]) -> list[str]:
    """Chains of every width: their own students, the full width they give, the refined teacher."""
    return [
        f"{line.name}, {grid.budget}: "
        + ", ".join(f"{column} {score.first:.1f}" for column, score in line.scores.items())
        + "."
        for grid in grids(rows, "variant")
        for line in grid.lines
    ]


def _three(rows: Sequence[Row]) -> list[str]:
    """What three chains are worth against one, and nested ones against published ones."""
    published, ours, nested = (
        (method, "three chains") for method in ("oskt-published", "oskt", "nested")
    )
    pairs = {
        "three published chains against one": (published, ("oskt-published", "one chain")),
        "three of ours against one": (ours, ("oskt", "one chain")),
        "three nested chains against one": (nested, ("nested", "one chain")),
        "three nested chains against three published ones": (nested, published),
    }
    sentences = []
    for grid in grids(rows, "size"):
        for what, (mine, other) in pairs.items() if grid.budget != AT_ONCE else ():
            scores, against = _scores(grid, *mine), _scores(grid, *other)
            margins = [
                f"{c} {_signed(round(scores[c] - against[c], 1))}" for c in scores if c in against
            ]
            if margins:
                sentences.append(f"After the {grid.budget} training, {what}: {', '.join(margins)}.")
    return sentences


def _metrics(rows: Sequence[Row]) -> list[str]:
    """What other rows to cluster are worth against the published, Euclidean ones."""
    sentences = []
    for grid in grids(rows, "size"):
        for line in grid.lines:
            network, metric = line.variant.split(", ")
            if metric != "Euclidean" or grid.budget == AT_ONCE:
                continue
            base = _scores(grid, line.method, line.variant)
            parts = []
            for other in ("cosine", "norm folded in"):
                scores = _scores(grid, line.method, f"{network}, {other}")
                margins = [f"{c} {_signed(round(scores[c] - base[c], 1))}" for c in scores]
                if margins:
                    parts.append(f"{other} {' '.join(margins)}")
            if parts:
                head = f"{network}, {TITLES[line.method]}, {grid.budget}, against Euclidean rows"
                sentences.append(f"{head}: {'; '.join(parts)}.")
    return sentences


def _met(held: bool) -> str:
    return "met" if held else "not met"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")
