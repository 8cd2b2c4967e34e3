"""Which widths of a nested chain every step trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from oskt.widths import round_width
from oskt.widths.sizes import Sizes

Place = Literal["alone", "widest", "narrow"]


class Rota:
    """The students of a nested chain, step by step; all of them come round in a few steps.

    A chain's place says which (docs/lab/nested.md, sections 10, 20, 23 and 24):

    - alone: beside full width the narrowest, 1/2, 1/4, ... and a random one in turn.
    - widest of a ladder: full width, the narrowest and the tapered one.
    - narrow, any other of a ladder: the narrowest in every step, and beside it the tapered one,
      twice, and the middle one. Full width is left to the next chain, which is better there.

    Tapered is full width in the first half of the groups, the middle in the third quarter, the
    narrowest in the last, as the paper's students S2, S4 and S6 are; middle is half-way between the
    narrowest share and 1 in all groups.

    Args:
        chain: a nested chain; its widths and groups are read.
        place: see above.
        random_widths: random students more in every step, >= 0.

    Attributes:
        full: whether full width is trained, too.
        turns: what every step of a round trains: group -> channels of each student; None is a
            random one.
        turn: the index in `turns` of the next step.
    """

    def __init__(self, chain: Sizes, place: Place = "alone", random_widths: int = 0) -> None:
        self._chain = chain
        self._random_widths = random_widths
        self.full = place != "narrow"
        shares = [n / chain.groups[group] for group, n in chain.widths.items()]
        least = min(shares, default=1.0)
        middle_share = (1 + least) / 2
        self._lowest = min(7, max(1, int(8 * least)))
        quarters, count = (1.0, 1.0, middle_share, least), len(shares)
        narrowest, middle = chain.widths, self._uniform(middle_share)
        tapered = self._at([quarters[4 * index // count] for index in range(count)])
        self.turns: list[list[dict[str, int] | None]]
        if place == "narrow":
            self.turns = [[narrowest, second] for second in (tapered, tapered, middle)]
        elif place == "widest":
            self.turns = [[narrowest, tapered]]
        else:
            self.turns, share = [[narrowest]], 1 / 2
            while share >= 1.5 * least:
                self.turns.append([self._uniform(share)])
                share /= 2
            self.turns.append([None])
        self.turn = 0

    @property
    def fixed(self) -> list[dict[str, int]]:
        """All students that are not random, each as often as a round has it."""
        return [student for turn in self.turns for student in turn if student is not None]

    def step(self) -> list[dict[str, int]]:
        """The students of the next step."""
        turn = [*self.turns[self.turn], *[None] * self._random_widths]
        self.turn = (self.turn + 1) % len(self.turns)
        return [self.draw() if student is None else student for student in turn]

    def draw(self) -> dict[str, int]:
        """Widths of a random student, from torch's CPU generator.

        A coin decides between one share for all groups and a share for every group. A share is
        a number of eighths: few values, so that each is trained often (and 1/4, 1/2, 3/4, which
        people ask for, are among them).
        """
        count = len(self._chain.coupling.free)
        per_group = bool(torch.randint(2, ()))
        eighths = torch.randint(self._lowest, 8, (count,) if per_group else (1,))
        return self._at((eighths.expand(count) / 8).tolist())

    def _uniform(self, share: float) -> dict[str, int]:
        return self._at([share] * len(self._chain.coupling.free))

    def _at(self, shares: Sequence[float]) -> dict[str, int]:
        """Widths by the share of every free group, none below the narrowest."""
        chain = self._chain
        widths: Mapping[str, int] = {
            name: round_width(group, share, chain.widths[name])
            for (name, group), share in zip(chain.coupling.free.items(), shares)
        }
        return chain.coupling.alike(widths)
