"""MSMT17, versions 1 and 2: list files beside a training and a test folder."""

from __future__ import annotations

import re
from pathlib import Path

from oskt.data.images import absent_files
from oskt.data.split import Listing, Split, shorten

_VERSIONS = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}
_LINE = re.compile(r"(\S.*) (\d+)")
_CAMERA = re.compile(r"[^_]+_[^_]+_(\d+)_")  # identity, image, camera, time of day, ...
LAYOUT = (
    "MSMT17 is <root>/list_{train,val,query,gallery}.txt beside train/ and test/ (V1) or "
    "mask_train_v2/ and mask_test_v2/ (V2); a line of a list is "
    "0000/0000_000_01_0303morning_0015_0.jpg 0"
)


def is_msmt17(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return (folder / "list_train.txt").is_file()


def read_msmt17(root: Path, val: bool) -> Listing:
    """List MSMT17.

    Args:
        root: holds the list files and the folders of one version.
        val: whether list_val.txt counts as training images: 32,621 instead of 30,248. The
            published OSKT code and most toolkits leave it out; TransReID takes it in.

    Raises:
        FileNotFoundError: a list, a folder or a listed image is missing.
        ValueError: the folders of both versions, or a line that is not understood, with file and
            line.

    Notes:
        The identity is the second field of a line, the camera the third field of the file name.
        The fourth, the time of day, has no part in the protocol and is not read.
    """
    version, train, test = _version(root)
    rows = {
        "train": _read_list(root / "list_train.txt", train),
        "query": _read_list(root / "list_query.txt", test),
        "gallery": _read_list(root / "list_gallery.txt", test),
    }
    if val:
        rows["train"] += _read_list(root / "list_val.txt", train)
    splits = {split: Split.of(split, found) for split, found in rows.items()}
    return Listing(root, f"MSMT17 {version}, val {'in' if val else 'out of'} training", splits)


def _version(root: Path) -> tuple[str, Path, Path]:
    """The version and its two folders."""
    found = [
        (version, root / train, root / test)
        for version, (train, test) in _VERSIONS.items()
        if (root / train).is_dir() and (root / test).is_dir()
    ]
    if not found:
        raise FileNotFoundError(
            f"read_data: {root} must hold the images of its lists, got neither train/ and test/ "
            f"nor mask_train_v2/ and mask_test_v2/. {LAYOUT}."
        )
    if len(found) > 1:
        raise ValueError(
            f"read_data: {root} must hold one version of MSMT17, got the folders of V1 and of V2. "
            "Give each its own folder with a copy of the lists."
        )
    return found[0]


def _read_list(file: Path, folder: Path) -> list[tuple[Path, int, int]]:
    if not file.is_file():
        raise FileNotFoundError(f"read_data: {file} must exist, got no such file. {LAYOUT}.")
    rows = []
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        camera = _CAMERA.match(Path(match[1]).name) if match else None
        if match is None or camera is None:
            raise ValueError(
                f"read_data: {file} line {number} must be an image and its identity, got "
                f"{line!r}. {LAYOUT}."
            )
        rows.append((folder / match[1], int(match[2]), int(camera[1])))
    absent = absent_files([row[0] for row in rows])
    if absent:
        raise FileNotFoundError(
            f"read_data: {file} must list images that exist, got {len(absent)} without a file: "
            f"{shorten(absent)}. Unpack the archive again."
        )
    return rows
