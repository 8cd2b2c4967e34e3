"""What a stored row is: whose it is, which rows are of the same case, and how it compares to them.

A row is one benchmark of one run, as measure.py stores it. Of the rows of one case (the same
function, the same parameters but for the provider) some are our own, some floors, work that every
answer contains; all others are peers.
"""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

OURS = {
    "", "oskt", "oskt-high", "ours", "ours_in_chunks", "lloyd", "hartigan", "ward", "ward+hartigan",
}  # fmt: skip
FLOORS = {"product_alone", "one_read", "plain"}
WARD = ("sklearn-ward", "ward")  # whose inertia others are held against: the peer's where it runs
PROVIDER = ("provider", "method", "name")


def provider(row: Row) -> str:
    """Who computed a row; "" where the benchmark has ours alone."""
    return next((row["parameters"][key] for key in PROVIDER if key in row["parameters"]), "")


def case(row: Row) -> tuple[Any, ...]:
    """Equal for the rows that did the same work."""
    others = {key: value for key, value in row["parameters"].items() if key not in PROVIDER}
    return row["name"].partition("[")[0], *sorted(others.items())


def beside(rows: list[Row], row: Row) -> list[Row]:
    """The rows of the same case, the row itself among them."""
    return [other for other in rows if case(other) == case(row)]


def best_peer(rows: list[Row], row: Row) -> Row | None:
    """The fastest peer of one of our rows, whatever its answer is worth."""
    if provider(row) not in OURS:
        return None
    peers = [r for r in beside(rows, row) if provider(r) not in OURS | FLOORS]
    return min(peers, key=lambda r: float(r["median_s"]), default=None)


def comparisons(rows: list[Row], row: Row) -> Row:
    """How a row that is no floor compares to others of its run, as far as they are there.

    to_floor: its time over that of the greatest floor, by extra_info's `ratio` or `roof_s` where
        the benchmark knows it better.
    to_peer, best_peer: how many times faster one of ours is than the fastest peer.
    to_ward: its sum of squares over that of Ward's clusters.
    """
    extra: Row = row["extra"]
    found: Row = {}
    if provider(row) in FLOORS:
        return found
    same = beside(rows, row)
    floors = [r["median_s"] for r in same if provider(r) in FLOORS]
    if "ratio" in extra:
        found["to_floor"] = extra["ratio"]
    elif "roof_s" in extra or floors:
        found["to_floor"] = row["median_s"] / extra.get("roof_s", max(floors, default=None))
    if peer := best_peer(rows, row):
        found |= {"to_peer": peer["median_s"] / row["median_s"], "best_peer": provider(peer)}
    ward = {provider(r): r["extra"]["inertia"] for r in same if provider(r) in WARD}
    if ward and "inertia" in extra:
        found["to_ward"] = extra["inertia"] / next(ward[name] for name in WARD if name in ward)
    return found
