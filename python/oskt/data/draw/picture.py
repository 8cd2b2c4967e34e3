"""One picture of the data set: a person, seen by a camera, cut out by a detector."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import pi

import numpy as np
from PIL import Image

from oskt.data.draw.camera import Camera, background, camera_of, expose, shadow
from oskt.data.draw.clutter import fall, obstruct
from oskt.data.draw.figure import Canvas, Floats, View
from oskt.data.draw.pose import Pose, draw_figure, draw_pose
from oskt.data.draw.wardrobe import Person, draw_person
from oskt.data.draw.world import Sky
from oskt.data.draw.worlds import Scene

# Streams of the seed; camera.py has 3, the plan of identities in __init__.py has 5.
_PERSON, _STRANGER, _TRACK, _IMAGE, _SEASON = 0, 1, 2, 4, 6
_STRANGERS = 400  # in all seasons together


@dataclass(frozen=True, eq=False)
class _Shot:
    """What a picture is taken of, and under which sky."""

    scene: Scene
    lens: Camera
    season: int
    sky: Sky
    rng: np.random.Generator

    def stranger(self) -> Person:
        number = _STRANGERS // len(self.scene.town.seasons)
        return _stranger(self.scene, self.season, int(self.rng.integers(number)))


@lru_cache(maxsize=8)
def person_of(scene: Scene, identity: int) -> Person:
    """Identity `identity` of a data set."""
    wardrobe = scene.town.seasons[season_of(scene, identity)].wardrobe
    return draw_person(scene.stream(_PERSON, identity), wardrobe)


def season_of(scene: Scene, identity: int) -> int:
    """The season in which an identity is filmed."""
    return int(scene.stream(_SEASON, identity).integers(len(scene.town.seasons)))


@lru_cache(maxsize=_STRANGERS)
def _stranger(scene: Scene, season: int, index: int) -> Person:
    """A passer-by, who is nobody's identity."""
    return draw_person(scene.stream(_STRANGER, index), scene.town.seasons[season].wardrobe)


def draw_picture(scene: Scene, identity: int, camera: int, index: int) -> tuple[Image.Image, int]:
    """Picture `index` of `identity` under `camera`, and its JPEG quality.

    A function of its arguments alone. The pictures of one identity under one camera are one walk:
    they share direction, weather and light.
    """
    season, detector = season_of(scene, identity), scene.town.detector
    lens = camera_of(scene, camera, season)
    track = scene.stream(_TRACK, identity, camera)
    usual = track.random() < 0.7
    yaw = lens.yaw + track.normal(0, 0.5) if usual else track.uniform(0, 2 * pi)
    level = track.uniform(*scene.town.optics.mood)
    mood = (level * (1 + track.normal(0, 0.012, 3))).astype(np.float32)
    sky = _sky(scene, lens, season, track)
    rng = scene.stream(_IMAGE, identity, camera, index)
    person = person_of(scene, identity)
    bad = rng.random() < detector.bad
    zoom = rng.uniform(*detector.bad_size) if bad else rng.normal(*detector.size)
    reach = detector.bad_shift
    shift = rng.uniform(-reach, reach, 2) if bad else rng.normal(0, detector.shift, 2)
    shot = _Shot(scene, lens, season, sky, rng)
    picture = _compose(shot, person, yaw + rng.normal(0, 0.25), zoom, shift)
    return expose(rng, lens, picture, mood * sky.gain), lens.quality


def draw_distractor(
    scene: Scene, camera: int, index: int, *, junk: bool
) -> tuple[Image.Image, int]:
    """A box without a labelled person: a passer-by or nobody; junk boxes hold parts of one."""
    season = index % len(scene.town.seasons)
    lens = camera_of(scene, camera, season)
    sky = _sky(scene, lens, season, scene.stream(_TRACK, 0, camera, index))
    rng = scene.stream(_IMAGE, 0, camera, index, int(junk))
    mood = np.full(3, rng.uniform(*scene.town.optics.mood), dtype=np.float32)
    shot = _Shot(scene, lens, season, sky, rng)
    person = shot.stranger()
    if junk:
        zoom, shift = rng.uniform(1.3, 2.2), rng.uniform(-0.45, 0.45, 2)
    else:
        zoom, shift = rng.uniform(0.7, 1.2), rng.uniform(-0.1, 0.1, 2) + (rng.random() < 0.35) * 0.5
    picture = _compose(shot, person, rng.uniform(0, 2 * pi), zoom, shift)
    return expose(rng, lens, picture, mood * sky.gain), lens.quality


def _sky(scene: Scene, lens: Camera, season: int, track: np.random.Generator) -> Sky:
    skies = scene.town.seasons[season].skies
    sky = skies[int(track.integers(len(skies)))]
    return Sky() if lens.strip.indoors else sky


def _compose(shot: _Shot, person: Person, yaw: float, zoom: float, shift: Floats) -> Image.Image:
    """The person, perhaps others and things, before the place; drawn at twice the size."""
    scene, lens, sky, rng = shot.scene, shot.lens, shot.sky, shot.rng
    crowd, wet = scene.town.crowd, sky.fall != "none"
    height, width = scene.height, scene.width
    if wet and person.umbrella is not None:
        zoom *= 0.9  # the box holds the umbrella too
    canvas = Canvas(2 * height, 2 * width)
    size = 2 * height * zoom
    x = 2 * width * (0.5 + shift[0])
    ground = height * (1 + zoom) + 2 * height * (shift[1] + 0.005)
    size *= 1 + 0.35 * (person.height - 1)  # a detector's box follows most of the height
    behind = background(rng, lens, height, width)

    def view(x: float, ground: float, size: float, yaw: float, away: float) -> View:
        lean, ambient = float(rng.normal(0, 0.025)), lens.ambient + sky.haze
        return View(x, ground, size, yaw, lens.pitch, lean, away, lens.light, ambient)

    def moment(who: Person) -> Pose:
        return draw_pose(rng, sheltered=wet and who.umbrella is not None)

    def put(who: Person, pose: Pose, where: View) -> None:
        shadow(behind, where.x / 2, where.ground / 2, where.scale / 2)
        draw_figure(canvas, who, pose, where)

    def put_further(other: Person, across: float, size_there: float) -> None:
        away = ground - (size - size_there) * 0.35
        where = view(x + across * width, away, size_there, rng.uniform(0, 2 * pi), size)
        put(other, moment(other), where)

    put(person, moment(person), view(x, ground, size, yaw, 0.0))
    chance = rng.random()
    if chance < crowd.behind + crowd.front:
        other, side = shot.stranger(), rng.choice((-1, 1))
        if chance < crowd.behind:
            smaller = size * rng.uniform(0.6, 0.9)
            put_further(other, side * rng.uniform(0.3, 1.1), smaller)
        else:
            beside = x + side * width * rng.uniform(0.65, 1.0)
            larger = size * rng.uniform(1.0, 1.15)
            where = view(beside, ground + 0.06 * size, larger, rng.uniform(0, 2 * pi), -size)
            put(other, moment(other), where)
    for _ in range(rng.poisson(crowd.more)):
        put_further(shot.stranger(), rng.uniform(-1.1, 1.1), size * rng.uniform(0.4, 0.7))
    colour, cover = canvas.finish()
    behind *= 1 - cover
    behind += colour
    picture = Image.fromarray(np.clip(behind, 0, 255).astype(np.uint8))
    if rng.random() < crowd.things:
        obstruct(rng, picture)
    if wet:
        fall(rng, picture, sky.fall)
    return picture
