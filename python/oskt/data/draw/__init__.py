"""Drawn pedestrians: a person re-identification data set that anybody may have, in any size."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from oskt.data.draw.picture import draw_distractor, draw_picture
from oskt.data.draw.worlds import WORLDS, Scene
from oskt.data.images import as_rgb
from oskt.data.market import FOLDERS
from oskt.data.read import read_data
from oskt.files.tensor_file import write_atomic

__all__ = ["contact_sheet", "make_pedestrians"]

RECIPE = 1  # changes when the same options would draw other pictures
_PLAN = 5  # stream of the seed, beside those of picture.py
_BLOCK = 32  # distractors per job


@dataclass(frozen=True)
class _Job:
    """One identity's pictures, or a block of distractors, for one process."""

    scene: Scene
    folder: str
    identity: int  # 0: distractors, -1: junk
    split: str  # train or test
    shots: tuple[tuple[int, int], ...]  # (camera, index)


def make_pedestrians(
    root: str | Path,
    *,
    train_ids: int = 200,
    test_ids: int = 100,
    images_per_id: int = 12,
    world: str = "plain",
    cameras: int | None = None,
    height: int = 128,
    width: int = 64,
    seed: int = 0,
    distractors: int | None = None,
    junk: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Draw a pedestrian data set in the layout of Market-1501.

    Articulated figures walk past cameras that differ in scene, light, colour, sharpness and noise;
    clothes come from a small palette, so that identities are told apart by details, and bags and
    open jackets make front and back differ.

    A world is a city with its people and cameras, for experiments from one scenario to another:

    - "plain": six places, one season.
    - "a": ten cameras indoors and out that disagree about light and colour, three seasons with
      their clothes, hours and weathers, crowds and things in the way (in the role of MSMT17).
    - "b": a campus in summer under six cool, flat, soft cameras, in tight boxes (Market-1501).
    - "c": two cameras that look down on a passage, noisy, in coarse boxes (CUHK03).

    Args:
        root: the folder to make; it must not exist or be empty.
        train_ids: identities in bounding_box_train, >= 1; their numbers start at 1.
        test_ids: identities in query and bounding_box_test, >= 1; they follow the training ones.
        images_per_id: pictures of each identity, >= 4, over at least two cameras.
        world: "plain", "a", "b" or "c"; identities of different worlds are different people.
        cameras: number of cameras, >= 2; an identity is seen by two or more of them. Default: the
            world's own number.
        height: px of a picture, >= 32, even.
        width: px of a picture, >= 16, even.
        seed: >= 0; the data set is a function of the seed, the world and the sizes above.
        distractors: gallery pictures of identity 0000; default 2 per test identity.
        junk: gallery pictures of identity -1; default 1 per test identity.
        workers: processes; default one per core. The files do not depend on it.
        progress: show a bar.

    Returns:
        The path of the data set. spec.json in it holds the options and counts.

    Raises:
        ValueError: an option outside its range, or an unknown world.
        FileExistsError: `root` is a file or a folder that is not empty.
        OSError: the folder around it cannot be written, or is too small.

    Notes:
        Files appear whole or not at all: they are drawn into a folder beside `root`, or in it where
        it exists, renamed at the end and removed after a failure. About 5 ms per picture of
        128 x 64 and core.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp()) / "people"
        >>> _ = make_pedestrians(root, train_ids=2, test_ids=2, images_per_id=4, progress=False)
        >>> len(list((root / "bounding_box_train").iterdir()))
        8
    """
    root = Path(root)
    if world not in WORLDS:
        raise ValueError(
            f"make_pedestrians: world must be one of {', '.join(WORLDS)}, got {world!r}. "
            "Choose one."
        )
    cameras = WORLDS[world].cameras if cameras is None else cameras
    distractors = 2 * test_ids if distractors is None else distractors
    junk = test_ids if junk is None else junk
    workers = os.cpu_count() or 1 if workers is None else workers
    limits = {
        "train_ids": (train_ids, 1),
        "test_ids": (test_ids, 1),
        "images_per_id": (images_per_id, 4),
        "cameras": (cameras, 2),
        "height": (height, 32),
        "width": (width, 16),
        "seed": (seed, 0),
        "distractors": (distractors, 0),
        "junk": (junk, 0),
        "workers": (workers, 1),
    }
    for name, (value, least) in limits.items():
        if value < least:
            raise ValueError(
                f"make_pedestrians: {name} must be at least {least}, got {value}. Raise it."
            )
    if height % 2 or width % 2:
        raise ValueError(
            f"make_pedestrians: height and width must be even, got {height} x {width}. "
            "Add a pixel: pictures are drawn at twice the size and halved."
        )
    _refuse_existing(root)
    # An empty folder is filled, not replaced: it may be a mount point, a link, or where we are.
    where = root if root.is_dir() else root.parent

    try:
        where.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.partial-", dir=where))
    except OSError as error:
        raise type(error)(
            f"make_pedestrians: root must be in a folder that can be written, got {root} "
            f"({error.strerror}). Choose another name."
        ) from None
    try:
        for folder in FOLDERS.values():
            (partial / folder).mkdir()
        scene = Scene(seed, height, width, world)
        jobs = [
            *_identity_jobs(scene, str(partial), train_ids, test_ids, images_per_id, cameras),
            *_distractor_jobs(scene, str(partial), distractors, junk, cameras),
        ]
        try:
            _run(jobs, workers, progress)
        except OSError as error:
            raise type(error)(
                f"make_pedestrians: root must have room for {sum(len(j.shots) for j in jobs):,} "
                f"pictures, got '{error.strerror or error}' in {where}. Free space or choose "
                "another folder."
            ) from None
        spec: dict[str, Any] = {
            "kind": "drawn pedestrians",
            "recipe": RECIPE,
            "world": world,
            **{name: value for name, (value, _) in limits.items() if name != "workers"},
            "files": {f: len(os.listdir(partial / f)) for f in FOLDERS.values()},
        }
        (partial / "spec.json").write_text(json.dumps(spec, indent=2) + "\n")
        if where == root:
            for made in sorted(partial.iterdir()):  # spec.json, the mark of a whole set, is last
                made.rename(root / made.name)
            partial.rmdir()
        else:
            partial.chmod(0o755)  # mkdtemp makes it private
            _refuse_existing(root)
            partial.rename(root)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return root


def contact_sheet(
    root: str | Path, path: str | Path, *, split: str = "gallery", rows: int = 10, scale: int = 1
) -> Path:
    """Write one picture of a data set: rows are identities, columns are cameras.

    Args:
        root: a data set in the layout of Market-1501.
        path: the PNG to write, whole or not at all; its folder is made.
        split: "train", "query" or "gallery" (without distractors).
        rows: identities to show, spread evenly over the split.
        scale: integer enlargement of each picture.

    Returns:
        `path`.

    Raises:
        ValueError: an unknown split.
        OSError: `path` cannot be written.
    """
    data = read_data(root)
    splits = {"train": data.train, "query": data.query, "gallery": data.gallery}
    if split not in splits:
        raise ValueError(
            f"contact_sheet: split must be one of {', '.join(splits)}, got {split!r}. Choose one."
        )
    shown = splits[split]
    ids = np.unique(shown.ids[shown.ids > 0] if split != "train" else shown.ids)
    ids = ids[np.linspace(0, len(ids) - 1, min(rows, len(ids))).astype(int)]
    cameras = np.unique(shown.cameras)
    with Image.open(shown.paths[0]) as first:
        width, height = first.width * scale, first.height * scale
    gap, margin = max(2, width // 32), max(18, width // 3)
    sheet = Image.new(
        "RGB",
        (margin + len(cameras) * (width + gap), margin // 2 + len(ids) * (height + gap)),
        (24, 24, 28),
    )
    draw = ImageDraw.Draw(sheet)
    for column, camera in enumerate(cameras):
        draw.text((margin + column * (width + gap) + 2, 0), f"c{camera}", fill=(200, 200, 205))
    for row, identity in enumerate(ids):
        top = margin // 2 + row * (height + gap)
        draw.text((2, top + 2), str(identity), fill=(200, 200, 205))
        for column, camera in enumerate(cameras):
            found = np.flatnonzero((shown.ids == identity) & (shown.cameras == camera))
            if len(found):
                with Image.open(shown.paths[found[0]]) as picture:
                    resized = as_rgb(picture).resize((width, height), Image.Resampling.BICUBIC)
                sheet.paste(resized, (margin + column * (width + gap), top))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    write_atomic(path, buffer.getbuffer())
    return Path(path)


def _refuse_existing(root: Path) -> None:
    if os.path.lexists(root) and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(
            f"make_pedestrians: root must not exist or be an empty folder, got {root}. "
            "Remove it or choose another name."
        )


def _identity_jobs(
    scene: Scene, folder: str, train_ids: int, test_ids: int, images: int, cameras: int
) -> Iterator[_Job]:
    """Each identity passes two or more cameras and is taken at least twice by each."""
    for identity in range(1, train_ids + test_ids + 1):
        rng = scene.stream(_PLAN, identity)
        passed = rng.integers(2, min(cameras, images // 2) + 1)
        chosen = np.sort(rng.choice(cameras, passed, replace=False)) + 1
        counts = 2 + rng.multinomial(images - 2 * passed, np.full(passed, 1 / passed))
        shots = tuple((int(c), i) for c, count in zip(chosen, counts) for i in range(count))
        yield _Job(scene, folder, identity, "train" if identity <= train_ids else "test", shots)


def _distractor_jobs(
    scene: Scene, folder: str, distractors: int, junk: int, cameras: int
) -> Iterator[_Job]:
    for identity, total in ((0, distractors), (-1, junk)):
        for start in range(0, total, _BLOCK):
            block = range(start, min(start + _BLOCK, total))
            yield _Job(scene, folder, identity, "test", tuple((i % cameras + 1, i) for i in block))


def _run(jobs: list[_Job], workers: int, progress: bool) -> None:
    total = sum(len(job.shots) for job in jobs)
    with tqdm(total=total, desc="drawing", unit="image", disable=None if progress else True) as bar:
        if workers == 1 or len(jobs) < 8:
            for job in jobs:
                bar.update(_draw_job(job))
            return
        # A fork shares the parent's imports; it is the quick start where it is safe (Linux).
        start = "fork" if sys.platform == "linux" else "spawn"
        context = multiprocessing.get_context(start)
        pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context)
        try:
            for done in as_completed([pool.submit(_draw_job, job) for job in jobs]):
                bar.update(done.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _draw_job(job: _Job) -> int:
    """Draw and store the pictures of a job; returns their number."""
    seen: set[int] = set()
    for camera, index in job.shots:
        if job.identity > 0:
            picture, quality = draw_picture(job.scene, job.identity, camera, index)
        else:
            picture, quality = draw_distractor(job.scene, camera, index, junk=job.identity < 0)
        first = camera not in seen
        seen.add(camera)
        split = "train" if job.split == "train" else "gallery"
        if job.split == "test" and job.identity > 0 and first:
            split = "query"  # one picture per identity and camera, as in Market-1501
        number = f"{job.identity:04d}" if job.identity >= 0 else "-1"
        frame = 25 * index + 1 + 7 * (job.identity % 997)
        name = f"{number}_c{camera}s{1 + job.identity % 6}_{frame:06d}_{index % 100:02d}.jpg"
        picture.save(Path(job.folder, FOLDERS[split], name), quality=quality)
    return len(job.shots)
