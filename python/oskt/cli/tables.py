"""Tables of a chain file for the terminal: its sizes and what they cost, its groups and parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from oskt.chain import ChainLadder
from oskt.files.part_file import Part
from oskt.widths import EIGHTHS, presets


def size_table(ladder: ChainLadder) -> Table:
    """The presets that fit the network, eighths of the teacher and published chains' own widths,
    with what they cost."""
    chain = ladder.base
    own = [chain.widths for chain in ladder.chains if chain.kind == "oskt"]
    pixels = "x".join(map(str, chain.coupling.inputs[0][2:]))
    table = _table("size", "parameters", f"MACs at {pixels}", "MB")
    table.add_column("")
    for label, widths in _sizes(ladder):
        parameters, macs = ladder.costs(widths)
        note = "as trained" if widths in own else ""
        if ladder.untrained(widths):
            note = "narrower than trained"
        memory = f"{chain.memory(widths) / 1e6:,.2f}"
        table.add_row(label, f"{parameters:,}", f"{macs:,}", memory, note)
    return table


def _sizes(ladder: ChainLadder) -> list[tuple[str, dict[str, int]]]:
    found = []
    for name in presets.NAMES:
        try:
            found.append((name, ladder.resolve(preset=name)))
        except ValueError:  # another family, or a network that is not so wide
            continue
    shares = [(share, ladder.resolve(width=share)) for share in EIGHTHS]
    if ladder.chains[0].kind == "oskt":  # which no student is narrower than
        shares = [(share, widths) for share, widths in shares if widths != ladder.widths]
        shares += [(ladder.share(chain), chain.widths) for chain in ladder.chains]
    for share, widths in sorted(shares, key=lambda one: one[0]):
        if widths not in [known for _, known in found]:
            found.append((f"width {share:.3g}", widths))
    return found


def width_table(groups: Mapping[str, int], widths: Mapping[str, int]) -> Table:
    """Every group's width in one student, beside the teacher's."""
    table = _table("channel group", "width", "teacher N", "share")
    for name, size in groups.items():
        table.add_row(name, str(widths[name]), str(size), f"{widths[name] / size:.3f}")
    return table


def group_table(ladder: ChainLadder) -> Table:
    """Every group, how wide its chains are or why it is frozen, and which layers write it."""
    table = _table("channel group", "teacher N")
    table.add_column("chain M")
    table.add_column("written by")
    for name, group in ladder.coupling.groups.items():
        width = group.frozen or ", ".join(str(chain.widths[name]) for chain in ladder.chains)
        table.add_row(name, str(group.size), width, ", ".join(group.writers))
    return table


def rung_table(ladder: ChainLadder) -> Table:
    """The chains of a ladder, with what the S-Student of each costs, or its full width."""
    full = ladder.base.kind == "nested"
    table = _table("chain", f"parameters of its {'full width' if full else 'S-Student'}", "MACs")
    for chain in ladder.chains:
        parameters, macs = ladder.costs(ladder.own_widths(chain))
        table.add_row(ladder.name_of(chain), f"{parameters:,}", f"{macs:,}")
    return table


def part_table(ladder: ChainLadder, parts: Sequence[Part]) -> Table:
    """The parts of a progressive file: how many bytes to fetch for which student."""
    table = _table("part", "chain", "first bytes", "parameters", "MACs")
    for number, part in enumerate(parts, 1):
        parameters, macs = ladder.costs(part.about["widths"])
        chain = str(part.about["chain"] + 1)
        table.add_row(str(number), chain, f"{part.end:,}", f"{parameters:,}", f"{macs:,}")
    return table


def _table(name: str, *numbers: str) -> Table:
    table = Table(name)
    for head in numbers:
        table.add_column(head, justify="right")
    return table
