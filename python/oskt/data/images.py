"""Image files: decoding one, and finding those that are absent or do not decode."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

SUFFIXES = {".jpg", ".jpeg", ".png"}
REMEDY = (
    "Restore what is broken or remove it; read_data(corrupt='skip') leaves it out, and so do "
    "`oskt teacher`, `refine`, `finetune` and `evaluate` (--corrupt skip)."
)


class CorruptImageError(ValueError):
    """An image file that cannot be decoded to its end; the message names it."""


def load_image(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode an image to uint8 (3, height, width), resized with the bilinear filter.

    Raises:
        CorruptImageError: the file is missing, no image, or truncated.
    """
    try:
        with Image.open(path) as image:
            pixels = as_rgb(image)
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error and more
        raise CorruptImageError(
            f"load_image: path must be a whole image, got {path} ({error}). {REMEDY}"
        ) from error
    if pixels.size != (size[1], size[0]):
        pixels = pixels.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(pixels).transpose(2, 0, 1))


def as_rgb(image: Image.Image) -> Image.Image:
    """An opened image in 8-bit RGB; 16-bit greys are scaled, which `convert` would clip at 255."""
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda grey: grey / 257 + 0.5)
    return image.convert("RGB")


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


def absent_files(paths: Sequence[Path]) -> list[Path]:
    """The paths that are no files; each folder is listed once, which is quick on slow disks."""
    listed: dict[Path, set[str]] = {}
    for folder in {path.parent for path in paths}:
        listed[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
    # A file system may know a name in another spelling than its listing shows.
    return [p for p in paths if p.name not in listed[p.parent] and not p.is_file()]


def _reason_broken(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (16, 16))  # reads the whole JPEG, but builds an eighth of it
            image.load()
    except Exception as error:
        return str(error)
    return None
