"""One picture of the data set: a person, seen by a camera, cut out by a detector."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import pi

import numpy as np
from PIL import Image

from oskt.data.draw.camera import Camera, background, camera_of, expose, obstruct, shadow
from oskt.data.draw.figure import Canvas, Floats, View
from oskt.data.draw.pose import draw_figure, draw_pose
from oskt.data.draw.wardrobe import Person, draw_person

_PERSON, _STRANGER, _TRACK, _IMAGE = 0, 1, 2, 4  # streams of the seed; camera.py has 3
_STRANGERS = 400


@dataclass(frozen=True)
class Scene:
    """The data set's constants that a picture needs."""

    seed: int
    height: int
    width: int


@lru_cache(maxsize=8)
def person_of(seed: int, identity: int) -> Person:
    """Identity `identity` of the data set `seed`."""
    return draw_person(np.random.default_rng([seed, _PERSON, identity]))


@lru_cache(maxsize=_STRANGERS)
def _stranger(seed: int, index: int) -> Person:
    """A passer-by, who is nobody's identity."""
    return draw_person(np.random.default_rng([seed, _STRANGER, index]))


def draw_picture(scene: Scene, identity: int, camera: int, index: int) -> tuple[Image.Image, int]:
    """Picture `index` of `identity` under `camera`, and its JPEG quality.

    A function of its arguments alone. The pictures of one identity under one camera are one walk:
    they share direction and light.
    """
    lens = camera_of(scene.seed, camera, scene.height, scene.width)
    track = np.random.default_rng([scene.seed, _TRACK, identity, camera])
    usual = track.random() < 0.7
    yaw = lens.yaw + track.normal(0, 0.5) if usual else track.uniform(0, 2 * pi)
    mood = (track.uniform(0.93, 1.07) * (1 + track.normal(0, 0.012, 3))).astype(np.float32)
    rng = np.random.default_rng([scene.seed, _IMAGE, identity, camera, index])
    person = person_of(scene.seed, identity)
    bad = rng.random() < 0.07
    zoom = rng.uniform(0.74, 1.3) if bad else rng.normal(0.96, 0.025)
    shift = rng.uniform(-0.12, 0.12, 2) if bad else rng.normal(0, 0.022, 2)
    picture = _compose(rng, scene, lens, person, yaw + rng.normal(0, 0.25), zoom, shift)
    return expose(rng, lens, picture, mood), lens.quality


def draw_distractor(
    scene: Scene, camera: int, index: int, *, junk: bool
) -> tuple[Image.Image, int]:
    """A box without a labelled person: a passer-by or nobody; junk boxes hold parts of one."""
    lens = camera_of(scene.seed, camera, scene.height, scene.width)
    rng = np.random.default_rng([scene.seed, _IMAGE, 0, camera, index, int(junk)])
    mood = np.full(3, rng.uniform(0.93, 1.07), dtype=np.float32)
    person = _stranger(scene.seed, int(rng.integers(_STRANGERS)))
    if junk:
        zoom, shift = rng.uniform(1.3, 2.2), rng.uniform(-0.45, 0.45, 2)
    else:
        zoom, shift = rng.uniform(0.7, 1.2), rng.uniform(-0.1, 0.1, 2) + (rng.random() < 0.35) * 0.5
    picture = _compose(rng, scene, lens, person, rng.uniform(0, 2 * pi), zoom, shift)
    return expose(rng, lens, picture, mood), lens.quality


def _compose(
    rng: np.random.Generator,
    scene: Scene,
    lens: Camera,
    person: Person,
    yaw: float,
    zoom: float,
    shift: Floats,
) -> Image.Image:
    """The person, perhaps others and things, before the scene; drawn at twice the size."""
    height, width = scene.height, scene.width
    canvas = Canvas(2 * height, 2 * width)
    size = 2 * height * zoom
    x = 2 * width * (0.5 + shift[0])
    ground = height * (1 + zoom) + 2 * height * (shift[1] + 0.005)
    size *= 1 + 0.35 * (person.height - 1)  # a detector's box follows most of the height

    def view(x: float, ground: float, size: float, yaw: float, away: float) -> View:
        lean = float(rng.normal(0, 0.025))
        return View(x, ground, size, yaw, lens.pitch, lean, away, lens.light, lens.ambient)

    behind = background(rng, lens, height, width)
    shadow(behind, x / 2, ground / 2, size / 2)
    draw_figure(canvas, person, draw_pose(rng), view(x, ground, size, yaw, 0.0))
    chance = rng.random()
    if chance < 0.1:  # somebody further away, or cutting into the picture in front
        other = _stranger(scene.seed, int(rng.integers(_STRANGERS)))
        side = rng.choice((-1, 1))
        if chance < 0.07:
            smaller = size * rng.uniform(0.6, 0.9)
            place = view(
                x + side * width * rng.uniform(0.3, 1.1),
                ground - (size - smaller) * 0.35,
                smaller,
                rng.uniform(0, 2 * pi),
                size,
            )
        else:
            place = view(
                x + side * width * rng.uniform(0.65, 1.0),
                ground + 0.06 * size,
                size * rng.uniform(1.0, 1.15),
                rng.uniform(0, 2 * pi),
                -size,
            )
        shadow(behind, place.x / 2, place.ground / 2, place.scale / 2)
        draw_figure(canvas, other, draw_pose(rng), place)
    colour, cover = canvas.finish()
    behind *= 1 - cover
    behind += colour
    picture = Image.fromarray(np.clip(behind, 0, 255).astype(np.uint8))
    if rng.random() < 0.1:
        obstruct(rng, picture)
    return picture
