"""Ladders: chains of one teacher, and which of them a student is read from. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from oskt.coupling import Coupling
from oskt.widths.sizes import Sizes

AnyChain = TypeVar("AnyChain", bound=Sizes)


class Ladder(Generic[AnyChain]):
    """Chains of one teacher, each wider than the one before; a student is read from the widest
    that fits.

    A chain fits a student that has at least the chain's width in every group: its rows can be
    copied, not merged. The widest one that fits has most rows of its own. A budget goes to the
    widest chain whose S-Student keeps it, and gives the largest student of that chain.

    A student as wide as its chain is the S-Student that was trained; a wider one repeats rows and
    is about as good before fine-tuning (docs/lab/ladder.md). Where nothing else binds, ask for the
    width of a chain: `oskt info` lists what those cost.

    Args:
        chains: one or more in any order; several must be of kind "oskt".

    Attributes:
        chains: from the narrowest to the widest.

    Raises:
        ValueError: no chain; nested ones among several; of different teachers; or two of which
            neither is at least as wide as the other in every group.
    """

    def __init__(self, chains: Sequence[AnyChain]) -> None:
        if not chains:
            raise ValueError(
                "ladder: chains must be one or more, got none. "
                "Make them with ChainLadder.from_teacher."
            )
        self.chains = tuple(sorted(chains, key=lambda chain: sum(chain.widths.values())))
        for below, above in zip(self.chains, self.chains[1:]):
            if "nested" in (below.kind, above.kind):
                raise ValueError(
                    f"ladder: chains must be of kind 'oskt', got {below.kind!r} and "
                    f"{above.kind!r}. A nested chain serves every width alone."
                )
            if below.coupling != above.coupling:
                raise ValueError(
                    "ladder: chains must have the channel groups of one teacher, got different "
                    "ones. Make them of one module with one check."
                )
            if below.widths == above.widths or not _within(below.widths, above.widths):
                worst = min(below.widths, key=lambda g: above.widths[g] - below.widths[g])
                raise ValueError(
                    "ladder: chains must each be wider than the one before in some group and "
                    f"narrower in none, got {below.widths[worst]} and {above.widths[worst]} "
                    f"channels of {worst}. Use shares further apart."
                )

    @property
    def coupling(self) -> Coupling:
        """The channel groups of the teacher."""
        return self.chains[0].coupling

    @property
    def meta(self) -> dict[str, Any]:
        """What the narrowest chain says of itself: recipe, parent and more."""
        return self.chains[0].meta

    @property
    def groups(self) -> dict[str, int]:
        """Free group -> N, the teacher's width."""
        return self.chains[0].groups

    @property
    def widths(self) -> dict[str, int]:
        """Free group -> the width of the narrowest S-Student."""
        return self.chains[0].widths

    def resolve(
        self,
        width: float | None = None,
        widths: Mapping[str, int] | None = None,
        preset: str | None = None,
        **budget: Any,
    ) -> dict[str, int]:
        """The width of every free group; arguments and errors are those of Sizes.resolve.

        Groups that a mapping does not name have the width of the narrowest chain.
        """
        if width is None and widths is None and preset is None:
            for chain in self.chains[:0:-1]:
                with suppress(ValueError):  # its smallest student exceeds the budget
                    return chain.resolve(**budget)
        return self.chains[0].resolve(width, widths, preset, **budget)

    def chain_for(self, widths: Mapping[str, int]) -> AnyChain:
        """The widest chain that fits a student of these widths, all groups named."""
        fitting = [chain for chain in self.chains[1:] if _within(chain.widths, widths)]
        return fitting[-1] if fitting else self.chains[0]

    def costs(self, widths: Mapping[str, int]) -> tuple[int, int]:
        """(parameters, MACs per image) of a student; see Sizes.costs."""
        return self.chains[0].costs(widths)

    def name_of(self, chain: AnyChain) -> str:
        """For people: "chain 2 of 3, width 0.25"."""
        number = self.chains.index(chain) + 1
        return f"chain {number} of {len(self.chains)}, width {self.share(chain):.3g}"

    def share(self, chain: AnyChain) -> float:
        """Channels of the S-Student of a chain over the teacher's, all groups together."""
        return sum(chain.widths.values()) / max(1, sum(chain.groups.values()))


def _within(inner: Mapping[str, int], outer: Mapping[str, int]) -> bool:
    """Whether no group is wider in `inner`."""
    return all(width <= outer[group] for group, width in inner.items())
