"""The layout of Market-1501, which DukeMTMC-reID, CUHK03-NP and drawn sets have, too."""

from __future__ import annotations

import json
import re
from pathlib import Path

from oskt.data.images import SUFFIXES
from oskt.data.split import Listing, Split, shorten

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
LAYOUT = (
    "The Market-1501 layout is <root>/{bounding_box_train,query,bounding_box_test}/"
    "<id>_c<camera>*.jpg, for example 0002_c1s1_000451_03.jpg"
)
_NAME = re.compile(r"(-?\d+)_c(\d+)")
_DUKE_NAME = re.compile(r"\d{4}_c\d_f\d{7}")


def is_market(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return (folder / FOLDERS["train"]).is_dir()


def read_market(root: Path, name: str | None = None) -> Listing:
    """List a data set in the layout of Market-1501.

    Args:
        root: holds the three folders.
        name: of the data set; None tells it from the files.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: no image of a folder has an identity and a camera in its name.

    Notes:
        Cameras may have several digits; MSMT17 in this layout has 15. Files that are no images
        (Thumbs.db) are nothing to this layout; images with other names, and files of such names
        with another suffix (.bmp), count as unread.
    """
    missing = [folder for folder in FOLDERS.values() if not (root / folder).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"read_data: {root} must hold all three folders, got none named "
            f"{' and '.join(missing)}. {LAYOUT}."
        )
    splits, unread = {}, {}
    for split, folder in FOLDERS.items():
        splits[split], unread[split] = _read_folder(split, root / folder)
    return Listing(root, name or _name(root, splits["train"]), splits, unread)


def _read_folder(split: str, folder: Path) -> tuple[Split, int]:
    rows, unread = [], []
    for path in folder.iterdir():
        match, known = _NAME.match(path.name), path.suffix.lower() in SUFFIXES
        if match and known:
            rows.append((path, int(match[1]), int(match[2])))
        elif match or known:
            unread.append(path.name)
    if unread and not rows:
        raise ValueError(
            f"read_data: {folder} must hold {', '.join(sorted(SUFFIXES))} images named by identity "
            f"and camera, got {len(unread)} with other names ({shorten(sorted(unread))}). {LAYOUT}."
        )
    return Split.of(split, rows), len(unread)


def _name(root: Path, train: Split) -> str:
    try:
        if json.loads((root / "spec.json").read_text())["kind"] == "drawn pedestrians":
            return "drawn pedestrians"
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not from `oskt data make`
    if train.paths and all(_DUKE_NAME.match(path.name) for path in train.paths):
        return "Market-1501 layout, file names of DukeMTMC-reID"
    return "Market-1501 layout"
