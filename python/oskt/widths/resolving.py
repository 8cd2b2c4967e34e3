"""Widths of groups, by share and by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from oskt.coupling import ChannelGroup, Coupling

EIGHTHS = tuple(k / 8 for k in range(1, 9))  # shares at which nested chains are trained, measured


def round_width(group: ChannelGroup, fraction: float, lowest: int = 1) -> int:
    """fraction of a group's channels, in whole steps, at least `lowest` and at most N."""
    width = group.step * max(1, round(group.size * fraction / group.step))
    return min(group.size, max(lowest, width))


def resolve(
    coupling: Coupling, widths: Mapping[str, int], lowest: Mapping[str, int]
) -> dict[str, int]:
    """Check widths given by group name (or by any layer that writes the group).

    Returns:
        group -> width, of the groups named and of those that must be alike.

    Raises:
        ValueError: unknown name, a width outside [lowest, N], not in whole steps, or two
            different widths for one group or for groups that must be alike.
    """
    names = {g.name: g.name for g in coupling.groups.values()}
    for group in coupling.groups.values():
        for writer in group.writers:
            names.setdefault(writer.rpartition(".")[0], group.name)
    result: dict[str, int] = {}
    for name, width in widths.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, 3)
            raise ValueError(
                f"widths: name must be a channel group, got {name!r}. "
                f"{'Did you mean ' + ' or '.join(near) if near else 'See chain.groups'}."
            )
        group = coupling.groups[names[name]]
        low = group.size if group.frozen else max(lowest.get(group.name, 1), group.step)
        if not low <= width <= group.size or (width % group.step and not group.frozen):
            raise ValueError(
                f"widths: {name} must be from {low} to {group.size}"
                f"{f' in steps of {group.step}' if group.step > 1 else ''}, got {width}. "
                + (f"It is frozen: {group.frozen}." if group.frozen else
                   "Choose a width between the chain and the teacher.")
            )  # fmt: skip
        first = coupling.groups[group.like or group.name]
        share = width * first.size // group.size
        if result.setdefault(first.name, share) != share:
            raise ValueError(
                f"widths: {name} must be {result[first.name] * group.size // first.size}, as other "
                f"layers of group {first.name} have it, got {width}. Give the group one width."
            )
    return coupling.alike(result)
