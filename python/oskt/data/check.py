"""`oskt data check`: is this data set whole, and is it the one that papers report on?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from oskt.data.images import check_images
from oskt.data.read import read_data
from oskt.data.split import ReIDSet

_COUNTED = ("training identities", "training images", "query images", "gallery images")
# Counts in that order; the gallery without junk. The names are those of ReIDSet where it has one.
KNOWN = {
    "Market-1501": (751, 12936, 3368, 15913),
    "DukeMTMC-reID": (702, 16522, 2228, 17661),
    "CUHK03-NP detected": (767, 7365, 1400, 5332),
    "CUHK03-NP labeled": (767, 7368, 1400, 5328),
    "MSMT17 V1, val out of training": (1041, 30248, 11659, 82161),
    "MSMT17 V1, val in training": (1041, 32621, 11659, 82161),
    "MSMT17 V2, val out of training": (1041, 30248, 11659, 82161),
    "MSMT17 V2, val in training": (1041, 32621, 11659, 82161),
}


@dataclass(frozen=True)
class DataReport:
    """What `check_data` found.

    Args:
        data: the data set as read.
        known_as: the published data sets with exactly these counts; several where they share them.
        warnings: where the counts differ from those of the published data set that this seems to
            be, with both numbers; and images passed over.
        broken: files that do not decode, with the reason; empty where they were not opened.
        opened: whether the images were decoded.
    """

    data: ReIDSet
    known_as: tuple[str, ...]
    warnings: tuple[str, ...]
    broken: dict[Path, str]
    opened: bool

    @property
    def ok(self) -> bool:
        """No broken file; warnings are no failure."""
        return not self.broken

    def describe(self) -> str:
        """The report as text."""
        lines = [self.data.describe()]
        if self.data.few_shot is not None:
            lines.append("counts: not compared, because training identities were left out")
        elif self.known_as:
            lines.append(f"counts: those of {' or '.join(self.known_as)}")
        else:
            lines.append("counts: those of no published data set")
        lines += [f"warning: {warning}" for warning in self.warnings]
        if not self.opened:
            lines.append("images: not opened")
        elif not self.broken:
            lines.append("images: all decode")
        else:
            lines.append(f"images: {len(self.broken)} broken")
            lines += [f"  {path}: {reason}" for path, reason in self.broken.items()]
        return "\n".join(lines)


def check_data(root: str | Path, *, images: bool = True, progress: bool = True) -> DataReport:
    """Read a data set and compare its counts with those of the published ones.

    Args:
        root: as in `read_data`, options included.
        images: decode every image, too (a minute for Market-1501).
        progress: show a bar while decoding.

    Returns:
        DataReport; print its `describe()`.

    Raises:
        FileNotFoundError, ValueError: as in `read_data`, where the layout itself is wrong.
    """
    data = read_data(root)
    known_as: tuple[str, ...] = ()
    warnings = []
    if data.few_shot is None:
        counts = (data.train.num_ids, len(data.train), len(data.query), len(data.gallery))
        known_as = tuple(name for name, known in KNOWN.items() if known == counts)
        if data.name in known_as:
            known_as = (data.name,)
        guess = _guess(data, counts)
        if guess is not None and guess not in known_as:
            warnings += [
                f"{guess} has {want:,} {what}, here are {have:,}"
                for what, want, have in zip(_COUNTED, KNOWN[guess], counts)
                if want != have
            ]
    warnings += [
        f"{count['unread']:,} images of {split} have other names and were passed over"
        for split, count in data.counts.items()
        if count["unread"]
    ]
    splits = (data.train, data.query, data.gallery)
    paths = dict.fromkeys(path for split in splits for path in split.paths)
    broken = check_images(list(paths), progress=progress) if images else {}
    return DataReport(data, known_as, tuple(warnings), broken, images)


def _guess(data: ReIDSet, counts: tuple[int, ...]) -> str | None:
    """The published data set that this seems to be: by its layout, its name, or its identities."""
    if data.name in KNOWN:
        return data.name
    if data.name == "drawn pedestrians":
        return None
    if "DukeMTMC-reID" in data.name:
        return "DukeMTMC-reID"
    if re.search("market-?_?1501", data.root.name, re.IGNORECASE):
        return "Market-1501"
    same = [name for name, known in KNOWN.items() if known[0] == counts[0]]
    return min(
        same, key=lambda name: sum(a != b for a, b in zip(KNOWN[name], counts)), default=None
    )
