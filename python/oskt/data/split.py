"""What a data set is once it is read: three splits of images with identities and cameras."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "query", "gallery")
COUNTS = ("ids", "images", "cameras", "distractors", "junk", "unread")


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split, in ascending order of their path.

    Args:
        name: "train", "query" or "gallery".
        paths: n files.
        ids: int64 [n]; in training labels 0..num_ids - 1, else the identities of the data set,
            where 0 marks the distractors of the gallery.
        cameras: int64 [n], as the data set numbers them.
    """

    name: str
    paths: tuple[Path, ...]
    ids: NDArray[np.int64]
    cameras: NDArray[np.int64]

    @staticmethod
    def of(name: str, rows: Iterable[tuple[Path, int, int]]) -> Split:
        """The split of (path, identity, camera) rows, which may come in any order.

        Raises:
            ValueError: a number that int64 does not hold, with its image.
        """
        ordered = sorted(rows, key=lambda row: row[0].as_posix())
        for path, identity, camera in ordered:
            if max(abs(identity), abs(camera)) >= 2**63:
                raise ValueError(
                    f"read_data: identity and camera of {path} must be below 2^63, got {identity} "
                    f"and {camera}. Number them anew."
                )
        numbers = np.array([row[1:] for row in ordered], dtype=np.int64).reshape(-1, 2)
        return Split(name, tuple(row[0] for row in ordered), numbers[:, 0], numbers[:, 1])

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_ids(self) -> int:
        """Distinct identities; the distractors of a gallery are none."""
        return len(np.unique(self.ids if self.name == "train" else self.ids[self.ids > 0]))

    @property
    def num_cameras(self) -> int:
        return len(np.unique(self.cameras))

    def select(self, index: NDArray[np.int64] | Sequence[int]) -> Split:
        """The split with the images at `index` only; labels stay as they are."""
        index = np.asarray(index, dtype=np.int64)
        return Split(
            self.name, tuple(self.paths[i] for i in index), self.ids[index], self.cameras[index]
        )


@dataclass(frozen=True, eq=False)
class ReIDSet:
    """A data set: three splits, where it lies, and what its training labels mean.

    Args:
        root: its folder, or the CSV file that lists it.
        name: what it was read as, with the choices that decide its numbers, for example
            "CUHK03-NP detected" or "MSMT17 V1, val out of training".
        train_identities: int64 [train.num_ids], the data set's own identity behind each label.
        counts: per split "ids", "images", "cameras", "distractors" (images of identity 0 in the
            gallery), "junk" (images of negative identity, which are dropped) and "unread" (images
            whose name the layout does not know, which are passed over).
        few_shot: (ratio, seed) where only a share of the training identities was kept.
    """

    root: Path
    name: str
    train: Split
    query: Split
    gallery: Split
    train_identities: NDArray[np.int64]
    counts: dict[str, dict[str, int]]
    few_shot: tuple[float, int] | None = None

    @property
    def title(self) -> str:
        """The name, and the few-shot draw if there was one."""
        if self.few_shot is None:
            return self.name
        ratio, seed = self.few_shot
        return f"{self.name}, few-shot {ratio:g} of the training identities, seed {seed}"

    @cached_property
    def identities(self) -> str:
        """Whom the training labels mean, as a fingerprint: of the first image of every label.

        Sets of equally many identities have another one, however their files are called. It reads
        those images' bytes.
        """
        _, firsts = np.unique(self.train.ids, return_index=True)
        found = hashlib.sha256()
        for first in firsts:
            found.update(hashlib.sha256(self.train.paths[first].read_bytes()).digest())
        return found.hexdigest()[:16]

    def describe(self) -> str:
        """Where it lies, what it is, and the counts as a table."""
        widths = {column: max(9, len(column) + 2) for column in COUNTS}
        head = "".join(f"{column:>{width}}" for column, width in widths.items())
        lines = [f"{self.root}: {self.title}", f"{'split':<8}{head}"]
        for split, count in self.counts.items():
            row = "".join(f"{count[column]:>{width},}" for column, width in widths.items())
            lines.append(f"{split:<8}{row}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Listing:
    """What a layout lists: splits of the data set's own identities, junk included.

    Args:
        root, name: as in ReIDSet.
        splits: one per name in SPLITS.
        unread: per split, how many images were passed over for their name.
    """

    root: Path
    name: str
    splits: dict[str, Split]
    unread: dict[str, int] = field(default_factory=dict)


def shorten(items: Sequence[object], most: int = 5) -> str:
    """The first few of many things, for a message."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")
