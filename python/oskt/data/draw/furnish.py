"""What stands along the wall of a place, and what covers its floor."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from oskt.data.draw.world import Colour, Season

_STRIP = 10  # crop widths that a place is long


class Brush:
    """Draws on a strip: its sizes and its random colours."""

    def __init__(self, rng: np.random.Generator, season: Season, height: int, width: int) -> None:
        self.rng, self.season = rng, season
        self.unit = width  # px, of a crop
        self.width, self.height, self.floor = _STRIP * width, 2 * height, round(1.05 * height)
        self.picture = Image.new("RGB", (self.width, self.height))
        self.draw = ImageDraw.Draw(self.picture)

    def tone(self, low: int, high: int, tint: Colour = (0, 0, 0)) -> Colour:
        grey = int(self.rng.integers(low, high))
        red, green, blue = (int(np.clip(grey + t + self.rng.integers(-8, 9), 0, 255)) for t in tint)
        return red, green, blue


Furnish: TypeAlias = Callable[[Brush, float, float], float]
Pave: TypeAlias = Callable[[Brush, Colour], None]


def shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, int(c * factor)) for c in colour)
    return red, green, blue


# -- what stands along the wall -------------------------------------------------------------------


def trees(b: Brush, x: float, step: float) -> float:
    unit = b.unit
    r = unit * b.rng.uniform(0.3, 0.7)
    cx, cy = x + step / 2, b.floor - unit * b.rng.uniform(0.5, 1.4)
    bark = b.tone(55, 80, (14, 0, -14))
    b.draw.rectangle((cx - unit * 0.05, cy, cx + unit * 0.05, b.floor), fill=bark)
    for _ in range(9):
        bx, by = cx + b.rng.normal(0, r * 0.6), cy + b.rng.normal(0, r * 0.5)
        br, leaf = r * b.rng.uniform(0.3, 0.6), b.tone(*b.season.leaves)
        if b.season.bare:
            b.draw.line((cx, cy + r, bx, by - br), fill=bark, width=max(1, unit // 40))
        else:
            b.draw.ellipse((bx - br, by - br, bx + br, by + br), fill=leaf)
    return step


def cars(b: Brush, x: float, step: float) -> float:
    unit = b.unit
    top, body = b.floor - unit * b.rng.uniform(0.45, 0.6), b.tone(50, 200)
    waist = top + unit * 0.2
    b.draw.rounded_rectangle((x, waist, x + step, b.floor + unit * 0.12), unit * 0.1, fill=body)
    cabin = [(0.15, waist), (0.3, top), (0.75, top), (0.9, waist)]
    b.draw.polygon([(x + step * at, row) for at, row in cabin], fill=b.tone(35, 75, (-4, 0, 10)))
    for wheel in (0.22, 0.78):
        cx, r = x + step * wheel, unit * 0.1
        b.draw.ellipse((cx - r, b.floor, cx + r, b.floor + 2 * r), fill=(30, 30, 32))
    return step * 1.15


def fronts(glass: tuple[int, int], plinth: bool = False) -> Furnish:
    """House or shop fronts with windows, signs and posts."""

    def furnish(b: Brush, x: float, step: float) -> float:
        unit, rng = b.unit, b.rng
        top = b.floor - unit * rng.uniform(1.0, 2.0)
        bottom = b.floor - unit * (rng.uniform(0.35, 0.7) if plinth else 0.04)
        right = x + step * 0.82
        b.draw.rectangle((x, top - unit * 0.06, right, bottom), fill=b.tone(70, 210))
        b.draw.rectangle((x + 2, top, right - 2, bottom - 2), fill=b.tone(*glass, (-4, 2, 8)))
        if rng.random() < 0.5:
            red, green, blue = (int(c) for c in rng.integers(40, 230, 3))
            sign = (x, top - unit * 0.22, x + step * 0.8, top - unit * 0.06)
            b.draw.rectangle(sign, fill=(red, green, blue))
        if rng.random() < 0.3:
            post = (x + step * 0.88, 0, x + step * 0.97, b.floor)
            b.draw.rectangle(post, fill=b.tone(50, 110))
        return step

    return furnish


def stalls(b: Brush, x: float, step: float) -> float:
    """Market stalls: a striped awning over a counter of goods."""
    unit, rng = b.unit, b.rng
    top, counter = b.floor - unit * rng.uniform(1.3, 1.7), b.floor - unit * 0.45
    red, green, blue = (int(c) for c in rng.integers(50, 220, 3))
    b.draw.rectangle((x, top, x + step, b.floor), fill=b.tone(40, 80))
    for stripe in range(6):
        at = x + step * stripe / 6
        cloth = (225, 222, 212) if stripe % 2 else (red, green, blue)
        b.draw.polygon(
            [(at + step * 0.02, top), (at + step * 0.15, top),
             (at + step / 6, top + unit * 0.35), (at, top + unit * 0.35)],
            fill=cloth,
        )  # fmt: skip
    for _ in range(14):
        r, cx = unit * 0.05, x + step * rng.uniform(0.08, 0.92)
        cy, hue = counter - unit * rng.uniform(0, 0.12), tuple(rng.integers(60, 225, 3).tolist())
        b.draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=hue)
    b.draw.rectangle((x, counter, x + step * 0.96, b.floor), fill=b.tone(90, 150, (20, 4, -18)))
    return step


def columns(b: Brush, x: float, step: float) -> float:
    """A row of round columns before dark bays."""
    unit = b.unit
    b.draw.rectangle(
        (x, b.floor - unit * 1.5, x + step, b.floor - unit * 0.1), fill=b.tone(70, 110, (4, 2, 0))
    )
    stone, half = b.tone(150, 200, (8, 4, -4)), unit * b.rng.uniform(0.09, 0.15)
    for slice_ in range(6):
        left = x + half * 2 * slice_ / 6
        glow = 0.65 + 0.35 * np.sin(0.4 + 0.45 * slice_)
        b.draw.rectangle((left, 0, left + half / 3 + 1, b.floor), fill=shade(stone, glow))
    return step


def railing(b: Brush, x: float, step: float) -> float:
    """A parapet of thin bars, with the far bank behind."""
    unit = b.unit
    bank = b.floor - unit * b.rng.uniform(0.7, 1.1)
    b.draw.rectangle((x, bank, x + step, b.floor), fill=b.tone(95, 125, (-14, 2, 14)))
    iron, line = b.tone(45, 80, (-4, 0, 6)), max(1, unit // 30)
    for bar in np.arange(x, x + step, unit * 0.11):
        b.draw.line((bar, b.floor - unit * 0.5, bar, b.floor), fill=iron, width=line)
    b.draw.rectangle((x, b.floor - unit * 0.54, x + step, b.floor - unit * 0.48), fill=iron)
    return step


def bikes(b: Brush, x: float, step: float) -> float:
    """Parked bicycles before a hedge."""
    unit, rng = b.unit, b.rng
    step *= 0.6
    for _ in range(5):
        cx, cy, r = x + step * rng.random(), b.floor - unit * rng.uniform(0.3, 0.8), unit * 0.22
        b.draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=b.tone(*b.season.leaves))
    r, line, frame = unit * 0.17, max(1, unit // 32), b.tone(50, 190)
    left, right, hub = x + r, x + 3.3 * r, b.floor + unit * 0.02
    for wheel in (left, right):
        b.draw.ellipse((wheel - r, hub - r, wheel + r, hub + r), outline=(34, 34, 36), width=line)
    saddle, bars = (left + 0.7 * r, hub - 1.5 * r), (right - 0.3 * r, hub - 1.7 * r)
    crank = (left + 1.1 * r, hub)
    for start, end in ((left, hub), saddle), (saddle, crank), (crank, bars), (saddle, bars):
        b.draw.line((start, end), fill=frame, width=line + 1)
    b.draw.line((bars, (right, hub)), fill=frame, width=line + 1)
    return step


def hedge(b: Brush, x: float, step: float) -> float:
    """A lawn's edge: low bushes under far trees."""
    unit, rng = b.unit, b.rng
    for reach, low in ((1.5, 0.8), (0.5, 0.05)):
        for _ in range(7):
            cx, cy = x + step * rng.random(), b.floor - unit * rng.uniform(low, reach)
            r = unit * rng.uniform(0.12, 0.3)
            b.draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=b.tone(*b.season.leaves))
    return step


def fence(b: Brush, x: float, step: float) -> float:
    """A wire fence round a sports ground."""
    unit = b.unit
    top, wire = b.floor - unit * 1.25, b.tone(60, 95, (-10, 12, 0))
    b.draw.rectangle((x, top, x + step, b.floor), fill=b.tone(110, 135, (28, -4, -20)))
    for at in np.arange(x, x + step, unit * 0.14):
        b.draw.line((at, top, at + unit * 0.3, b.floor), fill=wire)
        b.draw.line((at + unit * 0.3, top, at, b.floor), fill=wire)
    b.draw.rectangle((x, top - unit * 0.3, x + unit * 0.06, b.floor), fill=wire)
    return step


def steps(b: Brush, x: float, step: float) -> float:
    """A flight of steps up to a portico."""
    unit = b.unit
    stone = b.tone(165, 200, (6, 4, -6))
    lintel = max(0, b.floor - unit * 0.6)  # a wide, low picture begins below it
    b.draw.rectangle((x, 0, x + step * 0.3, lintel), fill=shade(stone, 0.96))
    for tread in range(6):
        row = b.floor - unit * 0.1 * (tread + 1)
        b.draw.rectangle((x, row, x + step, row + unit * 0.06), fill=stone)
        b.draw.rectangle((x, row + unit * 0.06, x + step, row + unit * 0.1), fill=shade(stone, 0.7))
    return step


def doors(b: Brush, x: float, step: float) -> float:
    """A corridor: doors, notice boards and a skirting."""
    unit, rng = b.unit, b.rng
    top = b.floor - unit * 1.45
    if rng.random() < 0.5:
        leaf, right = b.tone(85, 120, (22, 0, -16)), x + unit * 0.62
        b.draw.rectangle((x, top, right, b.floor), fill=shade(leaf, 0.6))
        b.draw.rectangle((x + unit * 0.04, top + unit * 0.04, right - unit * 0.04, b.floor), leaf)
        pane = (x + unit * 0.4, top + unit * 0.2, x + unit * 0.5, top + unit * 0.6)
        b.draw.rectangle(pane, fill=(190, 196, 204))
    else:
        bottom = top + unit * rng.uniform(0.4, 0.6)
        b.draw.rectangle((x, top, x + step * 0.8, bottom), fill=b.tone(120, 150, (26, 8, -20)))
        for _ in range(5):
            px, py = x + step * rng.uniform(0.05, 0.6), top + (bottom - top) * rng.uniform(0.1, 0.6)
            sheet = (px, py, px + unit * 0.12, py + unit * 0.16)
            b.draw.rectangle(sheet, fill=b.tone(190, 235))
    skirting = (x, b.floor - unit * 0.08, x + step, b.floor)
    b.draw.rectangle(skirting, fill=(96, 88, 104))
    return step


# -- what covers the floor ------------------------------------------------------------------------


def tiles(b: Brush, ground: Colour) -> None:
    """Joints that close up towards the wall."""
    w, h, floor, joint = b.width, b.height, b.floor, shade(ground, 0.84)
    for depth in np.linspace(0, 1, 7) ** 2:
        row = floor + depth * (h - floor)
        b.draw.line((0, row, w, row), fill=joint)
    for column in np.arange(-w / 2, 1.5 * w, w / 36):
        b.draw.line((column, floor, w / 2 + (column - w / 2) * 1.5, h), fill=joint)


def lines(paint: Colour) -> Pave:
    """Slanting lines: of parking bays, of a platform."""

    def pave(b: Brush, ground: Colour) -> None:
        w, h, floor = b.width, b.height, b.floor
        for column in np.arange(b.rng.uniform(0, 40), w, w / 9):
            line = [(0, floor + 4), (4, floor + 4), (-h / 6, h), (-h / 6 - 10, h)]
            b.draw.polygon([(column + at, row) for at, row in line], fill=paint)

    return pave


def zebra(b: Brush, ground: Colour) -> None:
    """White bars across the road, near and far."""
    w, h, floor = b.width, b.height, b.floor
    for column in np.arange(0, w, w / 16):
        bar = [(0, 0.06), (w / 30, 0.06), (w / 24, 0.5), (-w / 120, 0.5)]
        b.draw.polygon(
            [(column + at, floor + depth * (h - floor)) for at, depth in bar], fill=(206, 206, 200)
        )


def bricks(b: Brush, ground: Colour) -> None:
    """Courses of two colours."""
    w, h, floor = b.width, b.height, b.floor
    rows = floor + (h - floor) * np.linspace(0, 1, 16) ** 1.6
    for course, (upper, lower) in enumerate(pairwise(rows)):
        if course % 2:
            b.draw.rectangle((0, upper, w, lower), fill=shade(ground, 0.84))
        for column in np.arange(course % 2 * w / 80, w, w / 40):
            b.draw.line((column, upper, column, lower), fill=shade(ground, 0.72))


def verge(b: Brush, ground: Colour) -> None:
    """Grass between the wall and the path."""
    depth = b.floor + 0.12 * (b.height - b.floor)
    b.draw.rectangle((0, b.floor, b.width, depth), fill=b.tone(*b.season.leaves))
