"""What a world is made of: ranges and chances for people, cameras and crops.

A default is the value of the "plain" world; worlds.py says what is different elsewhere.
"""

# ruff: noqa: C408  (name=weight reads better than "name": weight)

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Range: TypeAlias = tuple[float, float]
Colour: TypeAlias = tuple[int, int, int]
Shares: TypeAlias = dict[str, float]  # weights; their sum does not matter


@dataclass(frozen=True, eq=False)
class Wardrobe:
    """What people wear in one season."""

    cloth: dict[str, tuple[Colour, float, float]]  # colour, weight above the belt, and below
    skin: Shares = field(
        default_factory=lambda: dict(pale=0.34, light=0.30, tan=0.18, brown=0.10, dark=0.08)
    )
    hair: Shares = field(
        default_factory=lambda: dict(black=0.42, brown=0.26, chestnut=0.14, blond=0.10, grey=0.08)
    )
    spread: float = 16  # of a cloth's colour about the palette's, 0..255
    tops: Shares = field(
        default_factory=lambda: dict(shirt=0.22, tee=0.32, open=0.2, zip=0.14, coat=0.12)
    )
    patterns: Shares = field(
        default_factory=lambda: dict(
            plain=0.24, stripes=0.13, pinstripes=0.07, checks=0.11, fade=0.08, yoke=0.11,
            logo=0.11, bar=0.08, print=0.07,
        )
    )  # fmt: skip
    women: Shares = field(
        default_factory=lambda: dict(trousers=0.55, shorts=0.15, skirt=0.2, dress=0.1)
    )
    men: Shares = field(default_factory=lambda: dict(trousers=0.78, shorts=0.22))
    hats: Shares = field(default_factory=lambda: dict(none=0.8, cap=0.09, beanie=0.06, hood=0.05))
    bags: Shares = field(
        default_factory=lambda: dict(none=0.46, backpack=0.24, shoulder=0.18, hand=0.12)
    )
    bulk: float = 1.0  # girth of the clothes
    hem: Range = (0.85, 1.0)  # width of the hem of what is no coat
    tights: float = 0.4  # chance, under skirts
    walk: float = 1.0  # stride in skirts and coats, against that in trousers
    scarf: float = 0.0  # chances
    gloves: float = 0.0
    boots: float = 0.0
    socks: float = 0.0
    glasses: float = 0.0
    beard: float = 0.0  # of men
    umbrella: float = 0.0  # opened where something falls


@dataclass(frozen=True, eq=False)
class Sky:
    """The hour and the weather over outdoor cameras."""

    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)  # gain per colour
    haze: float = 0.0  # added to the share of light that comes from everywhere
    fall: str = "none"  # none, rain, snow

    @property
    def gain(self) -> NDArray[np.float32]:
        return np.array(self.tint, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Season:
    """A part of the year: each identity is filmed in one."""

    wardrobe: Wardrobe
    skies: tuple[Sky, ...] = (Sky(),)  # equally likely
    leaves: tuple[int, int, Colour] = (55, 110, (-16, 24, -26))  # grey from, to, and tint
    wither: tuple[float, float, float] = (0.0, 0.0, 0.0)  # per colour, what a leaf's green becomes
    bare: bool = False  # trees
    snow: float = 0.0  # 0..1, how white the ground is


@dataclass(frozen=True, eq=False)
class Optics:
    """How the cameras of a world stand and what they do to colours."""

    azimuth: Range = (-1.2, 1.2)  # rad, of the light
    elevation: Range = (0.5, 1.1)
    warm: Range = (-0.05, 0.05)  # gain of red, against that of blue
    green: Range = (-0.025, 0.025)
    exposure: Range = (0.93, 1.07)
    pitch: Range = (0.02, 0.3)  # rad, looking down
    ambient: Range = (0.5, 0.72)  # share of light that comes from everywhere
    gamma: Range = (0.92, 1.1)
    contrast: Range = (0.88, 1.1)
    saturation: Range = (0.75, 1.1)
    sharpness: Range = (0.8, 1.15)  # resolution against the crop's
    noise: Range = (1, 2.5)  # 0..255
    quality: tuple[int, int] = (62, 92)  # JPEG
    lift: Range = (0, 0)  # added per colour, 0..255: veiling glare and a cast of the dark
    mood: Range = (0.93, 1.07)  # exposure from walk to walk
    shake: float = 0.1  # chance of motion blur


@dataclass(frozen=True, eq=False)
class Detector:
    """How boxes lie about people, in units of the picture."""

    size: tuple[float, float] = (0.96, 0.025)  # mean, deviation of the person's height
    shift: float = 0.022  # deviation
    bad: float = 0.07  # chance of a bad box, with
    bad_size: Range = (0.74, 1.3)
    bad_shift: float = 0.12  # at most


@dataclass(frozen=True, eq=False)
class Crowd:
    """Who and what else is in a picture."""

    behind: float = 0.07  # chance of somebody further away, in part hidden by the person
    front: float = 0.03  # chance of somebody cutting into the picture
    more: float = 0.0  # mean number of others in the background
    things: float = 0.1  # chance of a thing before the person


@dataclass(frozen=True, eq=False)
class World:
    """A city with its people and its cameras."""

    key: tuple[int, ...]  # its streams of the seed
    cameras: int  # unless asked otherwise
    places: tuple[str, ...]  # of place.PLACES; the cameras take turns
    seasons: tuple[Season, ...]  # equally likely
    optics: Optics = field(default_factory=Optics)
    detector: Detector = field(default_factory=Detector)
    crowd: Crowd = field(default_factory=Crowd)
    colour: float = 0.35  # of the places; a town is paler than its people's clothes
    grey: float = 0.45
    plaster: tuple[float, float, float] = (28.0, 28.0, 28.0)  # what all of a town has in common
