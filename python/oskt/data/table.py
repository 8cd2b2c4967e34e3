"""A data set of one's own: CSV files with the columns path, id, camera and split."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from oskt.data.images import absent_files
from oskt.data.split import SPLITS, Listing, Split

_COLUMNS = ("path", "id", "camera", "split")
LAYOUT = (
    "A list of your own is a CSV file with the header path,id,camera,split and a line such as "
    "people/17.jpg,17,2,query for every image"
)


def is_table(folder: Path) -> bool:
    """Whether a folder holds a CSV file with our header."""
    return bool(_files(folder))


def read_table(source: Path) -> Listing:
    """List the images that CSV files name.

    Args:
        source: a CSV file, or a folder whose CSV files with our header are read as one. Columns,
            in any order and beside others: path (relative to the file's folder, or absolute);
            id, a whole number, 0 a distractor of the gallery, negative junk; camera, a whole
            number; split, one of train, query and gallery.

    Raises:
        FileNotFoundError: a listed image does not exist, with file and line.
        ValueError: no header, a field that is not understood, or an image twice in a split, with
            file and line.
    """
    files = [source] if source.is_file() else _files(source)
    rows: dict[str, list[tuple[Path, int, int]]] = {split: [] for split in SPLITS}
    places: dict[tuple[str, Path], str] = {}
    for file in files:
        for place, split, row in _read_file(file):
            if (split, row[0]) in places:
                raise ValueError(
                    f"read_data: {place} must name a new image of {split}, got {row[0]}, which "
                    f"{places[split, row[0]]} has. Drop one."
                )
            places[split, row[0]] = place
            rows[split].append(row)
    absent = absent_files([path for _, path in places])
    if absent:
        place = next(place for (_, path), place in places.items() if path == absent[0])
        raise FileNotFoundError(
            f"read_data: {place} must name an image that exists, got {absent[0]} and "
            f"{len(absent) - 1} more without a file. Paths are relative to the CSV file."
        )
    splits = {split: Split.of(split, found) for split, found in rows.items()}
    return Listing(source, "own list", splits)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.csv") if path.is_file() and _has_header(path))


def _read_file(file: Path) -> Iterator[tuple[str, str, tuple[Path, int, int]]]:
    """(file and line, split, (path, identity, camera)) of each line."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"read_data: {file} line {line} must be UTF-8 text, got {error}. Save it in UTF-8."
        ) from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        if not set(_COLUMNS) <= set(header):
            raise ValueError(
                f"read_data: {file} line 1 must have the columns {', '.join(_COLUMNS)}, got "
                f"{','.join(header)!r}. {LAYOUT}."
            )
        reader.fieldnames = header
        for fields in reader:
            place = f"{file} line {reader.line_num}"
            yield place, *_row(place, file.parent, fields)
    except csv.Error as error:
        raise ValueError(
            f"read_data: {file} line {reader.line_num + 1} must be comma-separated values, got "
            f"{error}. Mend the quotes."
        ) from error


def _row(
    place: str, folder: Path, fields: dict[str, str | None]
) -> tuple[str, tuple[Path, int, int]]:
    value = {column: (fields[column] or "").strip() for column in _COLUMNS}
    numbers = {}
    for column in ("id", "camera"):
        try:
            numbers[column] = int(value[column])
        except ValueError:
            raise _wrong(place, column, "a whole number", value[column]) from None
    if value["split"] not in SPLITS:
        raise _wrong(place, "split", f"one of {', '.join(SPLITS)}", value["split"])
    if not value["path"]:
        raise _wrong(place, "path", "an image file", value["path"])
    return value["split"], (folder / value["path"], numbers["id"], numbers["camera"])


def _wrong(place: str, column: str, condition: str, got: str) -> ValueError:
    return ValueError(f"read_data: {place}: {column} must be {condition}, got {got!r}. {LAYOUT}.")


def _has_header(file: Path) -> bool:
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as text:
        names = text.readline().replace('"', "").split(",")
    return set(_COLUMNS) <= {name.strip() for name in names}
