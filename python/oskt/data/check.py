"""`oskt data check`: is this data set whole, and is it the one that papers report on?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oskt.data.market import MarketData, check_images, read_market

# (training identities, training images, query images, gallery images without junk)
KNOWN = {
    "Market-1501": (751, 12936, 3368, 15913),
    "DukeMTMC-reID": (702, 16522, 2228, 17661),
    "CUHK03-NP detected": (767, 7365, 1400, 5332),
    "CUHK03-NP labeled": (767, 7368, 1400, 5328),
    "MSMT17_V1 in the Market layout": (1041, 30248, 11659, 82161),
}


@dataclass(frozen=True)
class DataReport:
    """What `check_data` found.

    Args:
        data: the data set as read.
        known_as: the published data set with exactly these counts, if any.
        resembles: the published data set with the same number of training identities but other
            counts, if any: something is missing or added.
        broken: files that do not decode, with the reason; empty where they were not opened.
        opened: whether the images were decoded.
    """

    data: MarketData
    known_as: str | None
    resembles: str | None
    broken: dict[Path, str]
    opened: bool

    @property
    def ok(self) -> bool:
        """No broken file, and no published data set that only nearly matches."""
        return not self.broken and self.resembles is None

    def describe(self) -> str:
        """The report as text."""
        lines = [self.data.describe()]
        if self.known_as:
            lines.append(f"counts: those of {self.known_as}")
        elif self.resembles:
            expected = KNOWN[self.resembles]
            got = _signature(self.data)
            names = ("training identities", "training images", "query images", "gallery images")
            for name, want, have in zip(names, expected, got):
                if want != have:
                    lines.append(f"counts: {self.resembles} has {want:,} {name}, here are {have:,}")
        else:
            lines.append("counts: of no published data set; a data set of your own")
        if not self.opened:
            lines.append("images: not opened")
        elif not self.broken:
            lines.append("images: all decode")
        else:
            lines.append(f"images: {len(self.broken)} broken")
            lines += [f"  {path}: {reason}" for path, reason in self.broken.items()]
        return "\n".join(lines)


def check_data(root: str | Path, *, images: bool = True, progress: bool = True) -> DataReport:
    """Check a data set in the layout of Market-1501.

    Args:
        root: as in `read_market`.
        images: decode every image, too (a minute for Market-1501).
        progress: show a bar while decoding.

    Returns:
        DataReport; print its `describe()`.

    Raises:
        FileNotFoundError, ValueError: as in `read_market`, where the layout itself is wrong.
    """
    data = read_market(root)
    signature = _signature(data)
    known_as = next((name for name, counts in KNOWN.items() if counts == signature), None)
    near = next((name for name, counts in KNOWN.items() if counts[0] == signature[0]), None)
    splits = (data.train, data.query, data.gallery)
    paths = [path for split in splits for path in split.paths]
    broken = check_images(paths, progress=progress) if images else {}
    return DataReport(data, known_as, None if known_as else near, broken, images)


def _signature(data: MarketData) -> tuple[int, int, int, int]:
    return data.train.num_ids, len(data.train), len(data.query), len(data.gallery)
