"""Pictures of a report: images of the data as small base64 JPEGs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from oskt.data.images import as_rgb
from oskt.data.split import Split
from oskt.evaluation.rankings import RankingLists
from oskt.report.data import Hit, Ranking


def picture(path: str | Path, *, height: int = 128, width: int = 64) -> str:
    """An image file as the base64 text of a JPEG of the given size, in pixels."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        small = as_rgb(image).resize((width, height), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=85, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def rankings(
    lists: Mapping[str, RankingLists], query: Split, gallery: Split
) -> tuple[Ranking, ...]:
    """Turn the ranking lists of some models into pictures.

    Args:
        lists: model name -> its lists; all of the same queries.
        query, gallery: the parts of the data set that were ranked.

    Returns:
        One `Ranking` per query, in the order of the lists.

    Raises:
        ValueError: lists of different queries.
    """
    first = next(iter(lists.values()))
    for name, other in lists.items():
        if other.queries.tolist() != first.queries.tolist():
            raise ValueError(
                f"rankings: lists of '{name}' must be of the queries {first.queries.tolist()}, got "
                f"{other.queries.tolist()}. Pass the same `queries` to ranking_lists."
            )
    cache: dict[int, str] = {}
    result = []
    for row, index in enumerate(first.queries.tolist()):
        hits = {}
        for name, one in lists.items():
            kept = [g for g in one.gallery[row].tolist() if g >= 0]
            for g in kept:
                if g not in cache:
                    cache[g] = picture(gallery.paths[g])
            right = one.right[row].tolist()
            hits[name] = tuple(Hit(cache[g], bool(r)) for g, r in zip(kept, right))
        title = f"id {int(query.ids[index])}, camera {int(query.cameras[index])}"
        result.append(Ranking(picture(query.paths[index]), title, hits))
    return tuple(result)


def samples(
    part: Split, *, identities: int = 12, images: int = 6, seed: int = 0
) -> tuple[tuple[str, ...], ...]:
    """A contact sheet: some identities, each with some of its images, of many cameras first.

    Args:
        part: a part of a data set, usually the training part.
        identities, images: at most so many rows and pictures in a row.
        seed: of the choice of identities.

    Returns:
        Rows of pictures, one identity each.
    """
    ids, cameras = np.asarray(part.ids), np.asarray(part.cameras)
    known = np.unique(ids[ids >= 0])
    chosen = np.random.default_rng(seed).permutation(known)[:identities]
    rows = []
    for identity in sorted(chosen):
        indices = np.flatnonzero(ids == identity)
        # Deal one image of every camera, then a second of each, so that few pictures show many.
        turn = [np.sum(cameras[indices[:n]] == cameras[i]) for n, i in enumerate(indices)]
        dealt: Sequence[int] = [int(i) for i in indices[np.argsort(turn, kind="stable")][:images]]
        rows.append(tuple(picture(part.paths[i]) for i in dealt))
    return tuple(rows)
