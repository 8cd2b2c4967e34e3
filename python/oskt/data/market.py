"""Reading a person re-identification data set in the layout of Market-1501."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
_NAME = re.compile(r"([-\d]+)_c(\d+)")
_SUFFIXES = {".jpg", ".jpeg", ".png"}
_LAYOUT = (
    "The Market-1501 layout is <root>/{bounding_box_train,query,bounding_box_test}/"
    "<id>_c<camera>*.jpg, for example 0002_c1s1_000451_03.jpg"
)


class CorruptImageError(ValueError):
    """An image file that cannot be decoded to its end; the message names it."""


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split, in ascending order of their path.

    Args:
        name: "train", "query" or "gallery".
        paths: n files.
        ids: int64 [n]; labels 0..num_ids - 1 in training, the identity of the file name else.
        cameras: int64 [n], the camera of the file name.
    """

    name: str
    paths: tuple[Path, ...]
    ids: NDArray[np.int64]
    cameras: NDArray[np.int64]

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
class MarketData:
    """A data set: three splits, where it lies, and what its training labels mean.

    Args:
        train_identities: int64 [train.num_ids], the identity of the file names behind each label.
        counts: per split "ids", "images", "cameras"; for the gallery also "distractors" (images of
            identity 0) and for every split "junk" (files of identity -1, which are dropped).
    """

    root: Path
    train: Split
    query: Split
    gallery: Split
    train_identities: NDArray[np.int64]
    counts: dict[str, dict[str, int]]

    def describe(self) -> str:
        """The counts as a table."""
        columns = ("ids", "images", "cameras", "distractors", "junk")
        lines = [f"{self.root}", f"{'split':<8}" + "".join(f"{c:>13}" for c in columns)]
        for split, count in self.counts.items():
            lines.append(f"{split:<8}" + "".join(f"{count[c]:>13,}" for c in columns))
        return "\n".join(lines)


def read_market(
    root: str | Path, *, corrupt: Literal["refuse", "skip"] | None = None, progress: bool = True
) -> MarketData:
    """Read the file names of a data set in the layout of Market-1501.

    Args:
        root: the data set, or a folder up to two levels above it; the name does not matter.
        corrupt: None does not open the images; "refuse" decodes all of them and raises if one is
            broken; "skip" leaves the broken ones out.
        progress: show a bar while images are decoded.

    Returns:
        MarketData. Identity -1 (junk) is dropped everywhere; identity 0 (distractor) is kept in the
        gallery only.

    Raises:
        FileNotFoundError: no data set at or below `root`, or a folder of it is missing.
        ValueError: several data sets below `root`, a split without images, or no query identity in
            the gallery.
        CorruptImageError: with corrupt="refuse", naming the broken files.

    Notes:
        Paths are sorted, so labels do not depend on the file system. Cameras may have several
        digits; MSMT17 in this layout has 15. Other files (Thumbs.db) are passed over.
    """
    if corrupt not in (None, "refuse", "skip"):
        raise ValueError(
            f"read_market: corrupt must be None, 'refuse' or 'skip', got {corrupt!r}. Choose one."
        )
    root = _find_root(Path(root))
    splits, junk = {}, {}
    for name, folder in FOLDERS.items():
        splits[name], junk[name] = _read_split(name, root / folder)
    if corrupt is not None:
        broken = set(check_images([p for s in splits.values() for p in s.paths], progress=progress))
        if broken and corrupt == "refuse":
            raise CorruptImageError(
                f"read_market: images must decode, got {len(broken)} broken files: "
                f"{_names(sorted(broken))}. Restore them, or pass corrupt='skip' to leave them out."
            )
        for name, split in splits.items():
            kept = [i for i, path in enumerate(split.paths) if path not in broken]
            splits[name] = split.select(kept)
            if not kept:
                raise ValueError(
                    f"read_market: {FOLDERS[name]} must hold images, got only broken ones. "
                    "Restore the data set."
                )
    shared = np.intersect1d(splits["query"].ids, splits["gallery"].ids)
    if not len(shared):
        raise ValueError(
            f"read_market: a query identity must be in the gallery, got "
            f"{splits['query'].num_ids} and {splits['gallery'].num_ids} identities with none in "
            f"common in {root}. Check that query and bounding_box_test belong together."
        )
    identities, labels = np.unique(splits["train"].ids, return_inverse=True)
    train = replace(splits["train"], ids=labels.astype(np.int64))
    splits["train"] = train
    counts = {
        name: {
            "ids": split.num_ids,
            "images": len(split),
            "cameras": split.num_cameras,
            "distractors": int((split.ids == 0).sum()) if name == "gallery" else 0,
            "junk": junk[name],
        }
        for name, split in splits.items()
    }
    return MarketData(root, train, splits["query"], splits["gallery"], identities, counts)


def load_image(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode an image to uint8 (3, height, width), resized with the bilinear filter.

    Raises:
        CorruptImageError: the file is missing, no image, or truncated.
    """
    try:
        with Image.open(path) as image:
            pixels = image.convert("RGB")
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error and more
        raise CorruptImageError(
            f"load_image: path must be a whole image, got {path} ({error}). Restore the file, or "
            "read the data set with corrupt='skip'."
        ) from error
    if pixels.size != (size[1], size[0]):
        pixels = pixels.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(pixels).transpose(2, 0, 1))


def check_images(
    paths: Sequence[Path], *, workers: int = 8, progress: bool = True
) -> dict[Path, str]:
    """Decode every image and return the broken ones with the reason, in the order of `paths`."""
    with ThreadPoolExecutor(workers) as pool:
        results = tqdm(
            pool.map(_reason_broken, paths, chunksize=16),
            total=len(paths),
            desc="checking",
            unit="image",
            disable=None if progress else True,
        )
        return {path: reason for path, reason in zip(paths, results) if reason is not None}


def _reason_broken(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (16, 16))  # reads the whole JPEG, but builds an eighth of it
            image.load()
    except Exception as error:
        return str(error)
    return None


def _find_root(given: Path) -> Path:
    """`given` itself or the one folder up to two levels below it with a bounding_box_train."""
    if not given.is_dir():
        raise FileNotFoundError(
            f"read_market: root must be a folder, got {given}, which does not exist. {_LAYOUT}."
        )
    found = [given] if (given / FOLDERS["train"]).is_dir() else []
    level = [given]
    for _ in range(2):
        if found:
            break
        level = sorted(p for folder in level for p in folder.iterdir() if p.is_dir())
        found = [p for p in level if (p / FOLDERS["train"]).is_dir()]
    named = [p for p in found if re.match(r"market[-_]?1501", p.name, re.IGNORECASE)]
    if len(found) > 1 and len(named) == 1:
        found = named
    if len(found) > 1:
        raise ValueError(
            f"read_market: root must hold one data set, got {len(found)}: {_names(found)}. "
            "Pass one of them."
        )
    if not found:
        listing = sorted(p.name for p in given.iterdir())
        raise FileNotFoundError(
            f"read_market: root must hold a data set, got {given} with "
            f"{_names(listing) or 'nothing in it'}. {_LAYOUT}."
        )
    root = found[0]
    missing = [folder for folder in FOLDERS.values() if not (root / folder).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"read_market: {root} must hold all three folders, got none named "
            f"{' and '.join(missing)}. {_LAYOUT}."
        )
    return root


def _read_split(name: str, folder: Path) -> tuple[Split, int]:
    """The split in `folder`, with its number of junk files."""
    images = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
    paths, ids, cameras, unnamed, dropped = [], [], [], [], Counter[int]()
    for path in images:
        match = _NAME.match(path.name)
        if match is None:
            unnamed.append(path.name)
            continue
        identity = int(match[1])
        if identity < 0 or (identity == 0 and name != "gallery"):
            dropped[identity] += 1
            continue
        paths.append(path)
        ids.append(identity)
        cameras.append(int(match[2]))
    if not paths:
        got = f"{len(images)} images"
        if unnamed:
            got += f", {len(unnamed)} of them with other names ({_names(unnamed)})"
        if dropped:
            got += f", {sum(dropped.values())} junk or distractors"
        raise ValueError(
            f"read_market: {folder} must hold images of identities, got {got}. {_LAYOUT}."
        )
    split = Split(
        name, tuple(paths), np.array(ids, dtype=np.int64), np.array(cameras, dtype=np.int64)
    )
    return split, sum(count for identity, count in dropped.items() if identity < 0)


def _names(items: Sequence[object], most: int = 5) -> str:
    shown = ", ".join(str(item) for item in items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")
