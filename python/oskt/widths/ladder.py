"""Ladders: chains of one teacher, and which of them a student is read from. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from oskt.coupling import Coupling
from oskt.widths.sizes import Sizes

AnyChain = TypeVar("AnyChain", bound=Sizes)


class Ladder(Generic[AnyChain]):
    """Chains of one teacher, each wider than the one before; a student is read from the one that
    fits it best.

    The rule: a chain fits a student that is in no group narrower than the chain was trained at, nor
    wider than the chain is. The widest chain that fits is the best: a chain is strongest at its
    narrow end, which nothing narrower shares weights with (docs/lab/nested.md, section 20). Of the
    chains that are wide enough for a student that none fits, it is the narrowest.

    Kind "oskt": no chain is too narrow, rows of the student are copies of the chain's. A budget
    goes to the widest chain whose S-Student keeps it, and gives the largest student of that chain.
    A student as wide as its chain is the S-Student that was trained; a wider one repeats rows and
    is about as good before fine-tuning (docs/lab/ladder.md). Where nothing else binds, ask for the
    width of a chain: `oskt info` lists what those cost.

    Kind "nested": a chain serves from the narrowest width it was trained at to its full width. The
    widest is the teacher; the others have weights of their own, so that narrow students and wide
    ones are not in each other's way (section 18), and are small.

    Args:
        chains: one or more of one kind, in any order.

    Attributes:
        chains: from the narrowest to the widest.

    Raises:
        ValueError: no chain; chains of both kinds; of different teachers; or two of which neither
            is at least as wide as the other in every group.
    """

    def __init__(self, chains: Sequence[AnyChain]) -> None:
        if not chains:
            raise ValueError(
                "ladder: chains must be one or more, got none. "
                "Make them with ChainLadder.from_teacher."
            )
        self.chains = tuple(
            sorted(chains, key=lambda c: (sum(self.own_widths(c).values()), sum(c.widths.values())))
        )
        for below, above in zip(self.chains, self.chains[1:]):
            if below.kind != above.kind:
                raise ValueError(
                    f"ladder: chains must be of one kind, got {below.kind!r} and {above.kind!r}. "
                    "Make a ladder of each."
                )
            nested = below.kind == "nested"
            same = above.coupling.resized(below.groups) if nested else above.coupling
            if below.coupling != same:
                raise ValueError(
                    "ladder: chains must have the channel groups of one teacher, got different "
                    "ones. Make them of one module with one check."
                )
            if not below.groups:
                raise ValueError(
                    "ladder: chains must have a group whose width can change, got none. "
                    "Their coupling.groups say why each is frozen; one chain is the teacher."
                )
            narrow, wide = self.own_widths(below), self.own_widths(above)
            if narrow == wide:  # nested chains may differ in where they begin
                narrow, wide = below.widths, above.widths
            if narrow == wide or not within(narrow, wide):
                worst = min(narrow, key=lambda g: wide[g] - narrow[g])
                raise ValueError(
                    "ladder: chains must each be wider than the one before in some group and "
                    f"narrower in none, got {narrow[worst]} and {wide[worst]} channels of {worst}. "
                    "Use shares further apart."
                )

    @staticmethod
    def own_widths(chain: Sizes) -> dict[str, int]:
        """The widths that tell a chain from others: its S-Student's, or a nested one's full."""
        return chain.groups if chain.kind == "nested" else chain.widths

    @property
    def base(self) -> AnyChain:
        """The chain that has students of every width: the narrowest published, the widest
        nested."""
        return self.chains[-1 if self.chains[0].kind == "nested" else 0]

    @property
    def coupling(self) -> Coupling:
        """The channel groups of the teacher."""
        return self.base.coupling

    @property
    def meta(self) -> dict[str, Any]:
        """What the base says of itself: recipe, parent and more."""
        return self.base.meta

    @property
    def groups(self) -> dict[str, int]:
        """Free group -> N, the teacher's width."""
        return self.base.groups

    @property
    def widths(self) -> dict[str, int]:
        """Free group -> the narrowest width that is trained, that of the narrowest S-Student."""
        return self.chains[0].widths

    def resolve(
        self,
        width: float | None = None,
        widths: Mapping[str, int] | None = None,
        preset: str | None = None,
        **budget: Any,
    ) -> dict[str, int]:
        """The width of every free group; arguments and errors are those of Sizes.resolve.

        Groups that a mapping does not name have the narrowest width that the base was trained at.
        """
        by_budget = width is None and widths is None and preset is None
        if by_budget and self.base is self.chains[0]:
            for chain in self.chains[:0:-1]:
                with suppress(ValueError):  # its smallest student exceeds the budget
                    return chain.resolve(**budget)
        if by_budget and budget.get("shape", "uniform") != "uniform":
            # Groups of unequal shares must all be such as one chain was trained at.
            for chain in self.chains[:0:-1]:
                sizes = chain.resolve(**budget)
                if within(chain.widths, sizes):
                    return sizes
            return self.chains[0].resolve(**budget)
        return self.base.resolve(width, widths, preset, **budget)

    def chain_for(self, widths: Mapping[str, int]) -> AnyChain:
        """The chain for a student of these widths, all groups named."""
        holding = [chain for chain in self.chains if within(widths, chain.groups)]
        trained = [chain for chain in holding if within(chain.widths, widths)]
        return trained[-1] if trained else holding[0]

    def untrained(self, widths: Mapping[str, int]) -> list[str]:
        """The groups that are narrower in a student of these widths than its chain was trained at:
        those of a nested chain alone can be."""
        trained = self.chain_for(widths).widths
        return [group for group, n in trained.items() if widths[group] < n]

    def costs(self, widths: Mapping[str, int]) -> tuple[int, int]:
        """(parameters, MACs per image) of a student; see Sizes.costs."""
        return self.base.costs(widths)

    def name_of(self, chain: AnyChain) -> str:
        """For people: "chain 2 of 3, width 0.25"; of a nested one up to which width it serves."""
        number = self.chains.index(chain) + 1
        reach = "up to width" if chain.kind == "nested" else "width"
        return f"chain {number} of {len(self.chains)}, {reach} {self.share(chain):.3g}"

    def share(self, chain: AnyChain) -> float:
        """Channels of a published chain's S-Student, or of a nested chain at its full width, over
        the teacher's, all groups together; 1 where no width can change."""
        channels = sum(self.groups.values())
        return sum(self.own_widths(chain).values()) / channels if channels else 1.0


def within(inner: Mapping[str, int], outer: Mapping[str, int]) -> bool:
    """Whether no group is wider in `inner`."""
    return all(width <= outer[group] for group, width in inner.items())
