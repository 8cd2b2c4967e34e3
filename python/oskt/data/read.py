"""`read_data`: find a data set, recognise its layout, and give it in one form."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from oskt.data import cuhk03, market, msmt17, table
from oskt.data.fewshot import choose_identities
from oskt.data.images import REMEDY, CorruptImageError, check_images
from oskt.data.source import DataSource
from oskt.data.split import Listing, ReIDSet, Split, shorten


def read_data(
    root: str | Path,
    *,
    variant: Literal["labeled", "detected"] | None = None,
    val: bool | None = None,
    few_shot: float | None = None,
    seed: int | None = None,
    corrupt: Literal["refuse", "skip"] | None = None,
    progress: bool = True,
) -> ReIDSet:
    """Read a person re-identification data set, whichever layout it has.

    The layouts: Market-1501 and all that share it (DukeMTMC-reID, drawn sets), MSMT17 V1 and V2,
    CUHK03-NP, and CSV files of one's own (`oskt.data.table`). Only names are read unless `corrupt`
    is given.

    Args:
        root: the data set, or a folder up to two levels above it, or a CSV file; `?key=value,...`
            behind it gives the four options that follow in text (`oskt.data.source`).
        variant: which boxes of CUHK03-NP; must be chosen where both are there.
        val: whether MSMT17's validation images are training images, too; default False.
        few_shot: share of the training identities to keep, in (0, 1]; see `oskt.data.few_shot`.
        seed: of that choice; default 0.
        corrupt: None does not open the images; "refuse" decodes all of them and raises if one is
            broken; "skip" leaves the broken ones out.
        progress: show a bar while images are decoded.

    Returns:
        ReIDSet. Negative identities (junk) are dropped everywhere. Identity 0 of the gallery marks
        distractors, which stay; but where queries have identity 0 it is a person, and the
        identities of query and gallery move up by one. Identities of training and test that have
        the same number are different persons.

    Raises:
        FileNotFoundError: no data set at or below `root`, or a part of it is missing.
        ValueError: several data sets below `root`, an option that does not belong to this one, a
            line or name that is not understood, a split without images, or no query with a match.
        CorruptImageError: with corrupt="refuse", naming the broken files.

    Notes:
        Paths are sorted, so labels do not depend on the file system. The few-shot identities are
        chosen before images are opened, so they do not depend on which are broken.
    """
    if corrupt not in (None, "refuse", "skip"):
        raise ValueError(
            f"read_data: corrupt must be None, 'refuse' or 'skip', got {corrupt!r}. Choose one."
        )
    source = DataSource.parse(root, variant=variant, val=val, few_shot=few_shot, seed=seed)
    listing = _list(source)
    splits = {
        name: split.select(np.flatnonzero(split.ids >= 0)) for name, split in listing.splits.items()
    }
    junk = {name: len(listing.splits[name]) - len(split) for name, split in splits.items()}
    kept = (source.few_shot, source.seed or 0) if source.few_shot is not None else None
    if kept is not None:
        chosen = choose_identities(splits["train"].ids, *kept)
        splits["train"] = _select(splits["train"], np.isin(splits["train"].ids, chosen))
    if corrupt is not None:
        splits = _decodable(splits, listing, corrupt, progress)
    for name, split in splits.items():
        if not len(split):
            raise ValueError(
                f"read_data: {name} of {listing.root} ({listing.name}) must hold images of "
                f"identities, got none and {junk[name]} of junk. Check that it is whole."
            )
    if (splits["query"].ids == 0).any():
        for name in ("query", "gallery"):
            splits[name] = replace(splits[name], ids=splits[name].ids + 1)
    _require_matches(splits["query"], splits["gallery"], listing)
    identities, labels = np.unique(splits["train"].ids, return_inverse=True)
    splits["train"] = replace(splits["train"], ids=labels.astype(np.int64))
    counts = {
        name: {
            "ids": split.num_ids,
            "images": len(split),
            "cameras": split.num_cameras,
            "distractors": int((split.ids == 0).sum()) if name == "gallery" else 0,
            "junk": junk[name],
            "unread": listing.unread.get(name, 0),
        }
        for name, split in splits.items()
    }
    return ReIDSet(
        listing.root, listing.name, **splits, train_identities=identities, counts=counts,
        few_shot=kept,
    )  # fmt: skip


def _list(source: DataSource) -> Listing:
    """Find the data set and list it by its layout's rules."""
    root = _find(source.path)
    of_cuhk03, of_msmt17 = cuhk03.is_cuhk03(root), msmt17.is_msmt17(root)
    for option, value, belongs, name in (
        ("variant", source.variant, of_cuhk03, "CUHK03-NP"),
        ("val", source.val, of_msmt17, "MSMT17"),
    ):
        if value is not None and not belongs:
            raise ValueError(
                f"read_data: {option} must be left out unless the data set is {name}, got "
                f"{value!r} for {root}. Drop it."
            )
    if of_cuhk03:
        return cuhk03.read_cuhk03(root, source.variant)
    if of_msmt17:
        return msmt17.read_msmt17(root, bool(source.val))
    if market.is_market(root):
        return market.read_market(root)
    return table.read_table(root)


def _find(given: Path) -> Path:
    """`given` itself, or the one folder up to two levels below it that has a known layout."""
    if given.is_file():
        if given.suffix.lower() != ".csv":
            raise ValueError(
                f"read_data: root must be a folder or a CSV file, got the file {given}. Pass the "
                "folder that it lies in."
            )
        return given
    if not given.is_dir():
        raise FileNotFoundError(
            f"read_data: root must be a folder or a CSV file, got {given}, which does not exist. "
            "Check the path."
        )
    level = [given]
    for _ in range(3):
        found = [folder for folder in level if _has_layout(folder)]
        if len(found) > 1:
            raise ValueError(
                f"read_data: root must hold one data set, got {len(found)}: {shorten(found)}. "
                "Pass one of them."
            )
        if found:
            return found[0]
        level = sorted(path for folder in level for path in folder.iterdir() if _is_open(path))
    listing = sorted(path.name for path in given.iterdir())
    raise FileNotFoundError(
        f"read_data: root must hold a data set, got {given} with "
        f"{shorten(listing) or 'nothing in it'}. {market.LAYOUT}. {msmt17.LAYOUT}. {table.LAYOUT}."
    )


def _is_open(path: Path) -> bool:
    """Whether a path is a folder that may be looked into: `lost+found` of a disk may not."""
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK)


def _has_layout(folder: Path) -> bool:
    readers = (cuhk03.is_cuhk03, msmt17.is_msmt17, market.is_market, table.is_table)
    return any(recognises(folder) for recognises in readers)


def _decodable(
    splits: dict[str, Split], listing: Listing, corrupt: str, progress: bool
) -> dict[str, Split]:
    """The splits without the images that do not decode, or an error that names those."""
    paths = dict.fromkeys(path for split in splits.values() for path in split.paths)
    broken = check_images(list(paths), progress=progress)
    if broken and corrupt == "refuse":
        raise CorruptImageError(
            f"read_data: images of {listing.name} must decode, got {len(broken)} broken files: "
            f"{shorten(sorted(broken))}. {REMEDY}"
        )
    return {
        name: _select(split, np.array([path not in broken for path in split.paths], dtype=bool))
        for name, split in splits.items()
    }


def _select(split: Split, keep: NDArray[np.bool_]) -> Split:
    return split.select(np.flatnonzero(keep))


def _require_matches(query: Split, gallery: Split, listing: Listing) -> None:
    """Some query must be findable: its identity in the gallery under another camera."""
    cameras: dict[int, set[int]] = {}
    for identity, camera in set(zip(gallery.ids.tolist(), gallery.cameras.tolist())):
        cameras.setdefault(identity, set()).add(camera)
    seen = set(zip(query.ids.tolist(), query.cameras.tolist()))
    if not any(cameras.get(identity, set()) - {camera} for identity, camera in seen):
        shared = len(np.intersect1d(query.ids, gallery.ids))
        raise ValueError(
            f"read_data: a query identity must be in the gallery under another camera, got "
            f"{query.num_ids} and {gallery.num_ids} identities with {shared} in common and none "
            f"such in {listing.root} ({listing.name}). Check that query and gallery belong "
            "together."
        )
