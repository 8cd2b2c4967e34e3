"""Budgets: limits of what a student may cost, and the largest student within them.

A *path* is a list of widths, each at least as wide as the one before in every group: shares of the
teacher, or shapes by sensitivity (oskt.widths.shapes). A budget takes the last of a path that keeps
every limit. Needs no torch; what measures latency is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from oskt.widths.costs import Array, Costs

Timer = Callable[[Mapping[str, int]], float]  # group -> width, to milliseconds per image
NEAR = 0.95  # a measured latency this close below its limit ends the search,
FINE = 1.02  # and so do MACs this close above those of one that was fast enough


@dataclass(frozen=True)
class Path:
    """So many widths [G], ascending; `at(i)` makes them as they are needed."""

    length: int
    at: Callable[[int], Array]


@dataclass(frozen=True)
class Budget:
    """At most so much of each; None is no limit.

    Args:
        params: parameters of the backbone, without its head.
        macs: multiply-accumulates per image at the traced size.
        memory_mb: float32 numbers that inference reads, in 10^6 bytes; no activations.
        latency_ms: median milliseconds for one image, measured.

    Raises:
        ValueError: a limit that is not above 0.
    """

    params: float | None = None
    macs: float | None = None
    memory_mb: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            limit = getattr(self, field.name)
            if limit is not None and not limit > 0:
                raise ValueError(
                    f"budget: {field.name} must be > 0, got {limit}. Leave it out for no limit."
                )

    @property
    def given(self) -> dict[str, float]:
        """The limits that there are, by name."""
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: limit for name, limit in limits.items() if limit is not None}

    @property
    def limits(self) -> tuple[float, ...]:
        """Of (parameters, MACs, bytes), which Costs computes; infinite where there is none."""
        given = self.given
        in_bytes = 1e6 * given.get("memory_mb", math.inf)
        return given.get("params", math.inf), given.get("macs", math.inf), in_bytes

    def largest(self, path: Path, costs: Costs, timer: Timer | None = None) -> Array:
        """The last widths of a path that keep every limit.

        Closed forms are bisected. Latency is then searched below what they allow, each step a
        measurement where the limit would be if time went with MACs between the last two, until
        one is within 5 % below the limit, or 2 % more MACs are too slow.

        Args:
            path: candidates, ascending.
            costs: parameters, MACs and bytes.
            timer: measures a student's latency; needed if that is limited.

        Raises:
            ValueError: the smallest is too large; the message says how small it is.
        """

        def fits(place: int) -> bool:
            return all(cost <= limit for cost, limit in zip(costs(path.at(place)), self.limits))

        place = _last(fits, -1, path.length)
        if place >= 0 and self.latency_ms is not None:
            assert timer is not None
            place = self._fast(path, costs, timer, place)
        if place < 0:
            raise ValueError(self._refusal(costs, path.at(0), timer))
        return path.at(place)

    def _fast(self, path: Path, costs: Costs, timer: Timer, last: int) -> int:
        """The place of the largest up to `last` that was measured to be fast; -1 if none was."""
        assert self.latency_ms is not None

        def macs(place: int) -> float:
            return float(costs(path.at(place))[1]) if place >= 0 else 0.0

        times = {-1: 0.0}
        low, high, middle = -1, last + 1, last
        while high - low > 1:
            times[middle] = timer(costs.widths(path.at(middle)))
            low, high = (middle, high) if times[middle] <= self.latency_ms else (low, middle)
            if high > last or times[low] >= NEAR * self.latency_ms or high - low == 1:
                break
            if macs(high) <= FINE * macs(low):
                break
            middle = _between(low, high, macs, times, (1 + NEAR) / 2 * self.latency_ms)
        return low

    def _refusal(self, costs: Costs, smallest: Array, timer: Timer | None) -> str:
        params, macs, memory = costs(smallest)
        least = [f"{params:,.0f} parameters", f"{macs:,.0f} MACs", f"{memory / 1e6:,.4g} MB"]
        if self.latency_ms is not None and timer is not None:
            least.append(f"{timer(costs.widths(smallest)):.3g} ms")
        asked = ", ".join(f"{name}={limit:,.10g}" for name, limit in self.given.items())
        return (
            f"budget must allow the smallest student, {', '.join(least[:-1])} and {least[-1]}, "
            f"got {asked}. "
            "Raise the budget, or make a narrower chain."
        )


def _between(
    low: int, high: int, macs: Callable[[int], float], times: Mapping[int, float], aim: float
) -> int:
    """The place between low and high, both left out, where time reaches `aim` if it goes with
    MACs; at least an eighth of what is between them away from both, so that steps are few."""
    share = (aim - times[low]) / (times[high] - times[low])
    wanted = macs(low) + share * (macs(high) - macs(low))
    margin = (high - low) // 8
    place = _last(lambda place: macs(place) <= wanted, low, high)
    return min(max(place, low + 1 + margin), high - 1 - margin)


def _last(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The last place between low and high, both left out, that fits; low if none does."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
