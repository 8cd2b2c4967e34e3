"""What a camera does to a picture: its scene, light, colours, sharpness, and things in the way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin, sqrt
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from oskt.data.draw.figure import Floats

_SCENES = ("street", "park", "plaza", "mall", "parking", "station")
_STRIP = 10  # crop widths that a scene is long


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera: what its pictures share."""

    scene: Image.Image
    floor: int  # px, row of the scene where the ground begins
    yaw: float  # rad, how people mostly walk past it
    pitch: float
    light: tuple[float, float, float]
    ambient: float
    gain: Floats  # per colour
    gamma: float
    contrast: float
    saturation: float
    sharpness: float  # resolution against the crop's
    noise: float
    quality: int  # JPEG


@lru_cache(maxsize=64)
def camera_of(seed: int, index: int, height: int, width: int) -> Camera:
    """Camera `index` (from 1) of the data set `seed`."""
    rng = np.random.default_rng([seed, 3, index])
    scene, floor = _draw_scene(rng, _SCENES[(index - 1) % len(_SCENES)], height, width)
    azimuth, elevation = rng.uniform(-1.2, 1.2), rng.uniform(0.5, 1.1)
    warm = rng.uniform(-0.05, 0.05)
    gain = np.array([1 + warm, 1 + rng.uniform(-0.025, 0.025), 1 - warm]) * rng.uniform(0.93, 1.07)
    return Camera(
        scene=scene,
        floor=floor,
        yaw=2 * pi * index * 0.38 + rng.uniform(-0.3, 0.3),
        pitch=float(rng.uniform(0.02, 0.3)),
        light=(
            sin(azimuth) * cos(elevation),
            -sin(elevation),
            sqrt(0.1) + cos(azimuth) * cos(elevation),
        ),
        ambient=float(rng.uniform(0.5, 0.72)),
        gain=gain.astype(np.float32),
        gamma=float(rng.uniform(0.92, 1.1)),
        contrast=float(rng.uniform(0.88, 1.1)),
        saturation=float(rng.uniform(0.75, 1.1)),
        sharpness=float(rng.uniform(0.8, 1.15)),
        noise=float(rng.uniform(1, 2.5)),
        quality=int(rng.integers(62, 92)),
    )


def background(rng: np.random.Generator, camera: Camera, height: int, width: int) -> Floats:
    """A piece of the camera's scene, (height, width, 3)."""
    zoom = rng.uniform(0.75, 1.2)
    tall, wide = height * zoom, width * zoom
    left = rng.uniform(0, camera.scene.width - wide)
    top = np.clip(camera.floor - tall * rng.uniform(0.58, 0.82), 0, camera.scene.height - tall)
    crop = camera.scene.resize(
        (width, height), Image.Resampling.BILINEAR, (left, top, left + wide, top + tall)
    )
    return np.asarray(crop, dtype=np.float32)


def shadow(scene: Floats, x: float, ground: float, size: float) -> None:
    """Darken the floor around the feet."""
    height, width, _ = scene.shape
    across = np.exp(-(((np.arange(width) - x) / (0.2 * size)) ** 2))
    down = np.exp(-(((np.arange(height) - ground) / (0.035 * size)) ** 2))
    scene *= (1 - 0.5 * np.outer(down, across)[..., None]).astype(np.float32)


def obstruct(rng: np.random.Generator, picture: Image.Image) -> None:
    """Put something between the camera and the person."""
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    kind = rng.integers(5)
    tone = tuple(int(c) for c in rng.integers(40, 150) + rng.integers(-22, 23, 3))
    dark = tuple(c * 2 // 3 for c in tone)
    x = rng.uniform(-0.1, 1.1) * width
    if kind == 0:  # a post
        half = rng.uniform(0.03, 0.08) * width
        draw.rectangle((x - half, 0, x + half, height), fill=tone)
        draw.rectangle((x + half * 0.4, 0, x + half, height), fill=dark)
    elif kind == 1:  # a bush
        top = rng.uniform(0.62, 0.8) * height
        for _ in range(26):
            cx, cy = x + rng.normal(0, 0.26) * width, top + rng.uniform(0, 0.4) * height
            r, shine = rng.uniform(0.06, 0.16) * width, rng.uniform(0.55, 1.2)
            green = tuple(int(c * shine) for c in (62, 88, 50))
            draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=green)
    elif kind == 2:  # a parked car's bonnet
        top = rng.uniform(0.68, 0.82) * height
        draw.rounded_rectangle(
            (x - width, top, x + 0.1 * width, height * 1.1), 0.12 * width, fill=tone
        )
        draw.rectangle(
            (x - width, top + 0.05 * height, x + 0.1 * width, top + 0.065 * height), fill=dark
        )
        draw.ellipse(
            (x - 0.16 * width, top + 0.08 * height, x, top + 0.12 * height), fill=(230, 225, 200)
        )
    elif kind == 3:  # a wheel of a bicycle
        r, cy = rng.uniform(0.28, 0.4) * width, rng.uniform(0.82, 0.9) * height
        line = max(1, width // 28)
        draw.ellipse((x - r, cy - r, x + r, cy + r), outline=(30, 30, 32), width=line)
        draw.line((x, cy, x + r, cy - r * 1.6), fill=tone, width=line)
        draw.line((x + r * 0.6, cy - r * 1.6, x + 1.5 * r, cy - r * 1.7), fill=tone, width=line)
    else:  # a railing
        top = rng.uniform(0.6, 0.75) * height
        bar = max(1, width // 32)
        draw.rectangle((0, top, width, top + 1.5 * bar), fill=tone)
        for column in np.arange(rng.uniform(0, 0.2) * width, width, 0.22 * width):
            draw.rectangle((column, top, column + bar, height), fill=dark)


def expose(
    rng: np.random.Generator, camera: Camera, picture: Image.Image, mood: Floats
) -> Image.Image:
    """The picture as the camera records it; `mood` is the light of the hour, per colour."""
    width, height = picture.size
    sharp = camera.sharpness * rng.uniform(0.75, 1.05)
    if rng.random() < 0.1:
        reach = rng.uniform(0.3, 1.1) * width / 64
        picture = picture.filter(ImageFilter.BoxBlur((2.2 * reach, 0.4 * reach)))
    if sharp < 0.95:
        small = (max(8, round(width * sharp)), max(16, round(height * sharp)))
        bilinear = Image.Resampling.BILINEAR
        picture = picture.resize(small, bilinear).resize((width, height), bilinear)
    image = np.asarray(picture, dtype=np.float32)
    grey = image.mean(axis=2, keepdims=True)
    image = grey + np.float32(camera.saturation) * (image - grey)
    image = np.clip(image * (camera.gain * mood), 0, 255) * np.float32(1 / 255)
    image = np.power(image, np.float32(camera.gamma))
    image = 128 + np.float32(255 * camera.contrast) * (image - np.float32(0.5))
    image += np.float32(camera.noise) * rng.standard_normal(image.shape, dtype=np.float32)
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


def _draw_scene(
    rng: np.random.Generator, kind: str, height: int, width: int
) -> tuple[Image.Image, int]:
    """The strip of world in front of a camera, and the row where its floor begins."""
    w, h, floor = _STRIP * width, 2 * height, round(1.05 * height)
    picture = Image.new("RGB", (w, h))
    draw = ImageDraw.Draw(picture)

    def tone(low: int, high: int, tint: Any = (0, 0, 0)) -> tuple[int, ...]:
        grey = int(rng.integers(low, high))
        return tuple(int(np.clip(grey + t + rng.integers(-8, 9), 0, 255)) for t in tint)

    wall = {
        "street": tone(120, 170, (18, 4, -10)),
        "park": tone(80, 115, (-20, 25, -30)),
        "plaza": tone(150, 195),
        "mall": tone(185, 225, (8, 4, -4)),
        "parking": tone(105, 145, (-4, 0, 8)),
        "station": tone(130, 175, (-10, 2, 10)),
    }[kind]
    ground = {
        "street": tone(125, 160),
        "park": tone(125, 160, (22, 8, -22)),
        "plaza": tone(150, 185, (8, 2, -8)),
        "mall": tone(170, 205, (10, 4, -8)),
        "parking": tone(70, 105),
        "station": tone(105, 140, (4, 2, 0)),
    }[kind]
    for row in range(h):
        near = (row - floor) / (h - floor) if row >= floor else 0
        base, fade = (
            (ground, 1.06 - 0.16 * near) if row >= floor else (wall, 0.8 + 0.25 * row / floor)
        )
        draw.line((0, row, w, row), fill=tuple(min(255, int(c * fade)) for c in base))
    _furnish(rng, draw, kind, tone, w, h, floor, width)
    _pave(rng, draw, kind, ground, w, h, floor)
    blotches = rng.normal(0, 9, (max(2, h // 12), w // 12)).astype(np.float32)
    grain = np.asarray(
        Image.fromarray(blotches, mode=None).resize((w, h), Image.Resampling.BICUBIC)
    )
    grain = grain + rng.normal(0, 3, (h, w))
    image = np.asarray(picture, dtype=np.float32) + grain[..., None]
    grey = image.mean(axis=2, keepdims=True)  # a town is paler than its people's clothes
    image = np.clip(0.35 * image + 0.45 * grey + 0.2 * 140, 0, 255)
    soft = Image.fromarray(image.astype(np.uint8)).filter(ImageFilter.GaussianBlur(width / 90))
    return soft, floor


def _furnish(
    rng: Any, draw: Any, kind: str, tone: Any, w: int, h: int, floor: int, unit: int
) -> None:
    """What stands along the wall."""
    x = 0.0
    while x < w:
        step = unit * rng.uniform(0.5, 1.3)
        if kind == "park":
            r, cx, cy = (
                unit * rng.uniform(0.3, 0.7),
                x + step / 2,
                floor - unit * rng.uniform(0.5, 1.4),
            )
            draw.rectangle(
                (cx - unit * 0.05, cy, cx + unit * 0.05, floor), fill=tone(55, 80, (14, 0, -14))
            )
            for _ in range(9):
                bx, by, br = (
                    cx + rng.normal(0, r * 0.6),
                    cy + rng.normal(0, r * 0.5),
                    r * rng.uniform(0.3, 0.6),
                )
                draw.ellipse(
                    (bx - br, by - br, bx + br, by + br), fill=tone(55, 110, (-16, 24, -26))
                )
        elif kind == "parking":
            top, body = floor - unit * rng.uniform(0.45, 0.6), tone(50, 200)
            draw.rounded_rectangle(
                (x, top + unit * 0.2, x + step, floor + unit * 0.12), unit * 0.1, fill=body
            )
            draw.polygon(
                [
                    (x + step * 0.15, top + unit * 0.2),
                    (x + step * 0.3, top),
                    (x + step * 0.75, top),
                    (x + step * 0.9, top + unit * 0.2),
                ],
                fill=tone(35, 75, (-4, 0, 10)),
            )
            for wheel in (0.22, 0.78):
                cx, r = x + step * wheel, unit * 0.1
                draw.ellipse((cx - r, floor, cx + r, floor + 2 * r), fill=(30, 30, 32))
            step *= 1.15
        else:
            glass = {
                "street": (45, 85),
                "plaza": (90, 150),
                "mall": (200, 245),
                "station": (60, 110),
            }[kind]
            top = floor - unit * rng.uniform(1.0, 2.0)
            bottom = floor - unit * (rng.uniform(0.35, 0.7) if kind == "street" else 0.04)
            draw.rectangle((x, top - unit * 0.06, x + step * 0.82, bottom), fill=tone(70, 210))
            draw.rectangle(
                (x + 2, top, x + step * 0.82 - 2, bottom - 2), fill=tone(*glass, (-4, 2, 8))
            )
            if rng.random() < 0.5:
                sign = tuple(int(c) for c in rng.integers(40, 230, 3))
                draw.rectangle((x, top - unit * 0.22, x + step * 0.8, top - unit * 0.06), fill=sign)
            if rng.random() < 0.3:
                draw.rectangle((x + step * 0.88, 0, x + step * 0.97, floor), fill=tone(50, 110))
        x += step


def _pave(rng: Any, draw: Any, kind: str, ground: Any, w: int, h: int, floor: int) -> None:
    """Joints or markings of the floor, closing up towards the wall."""
    joint = tuple(int(c * 0.84) for c in ground)
    if kind in ("street", "plaza", "mall", "station"):
        for depth in np.linspace(0, 1, 7) ** 2:
            row = floor + depth * (h - floor)
            draw.line((0, row, w, row), fill=joint)
        for column in np.arange(-w / 2, 1.5 * w, w / 36):
            draw.line((column, floor, w / 2 + (column - w / 2) * 1.5, h), fill=joint)
    if kind in ("parking", "station"):
        for column in np.arange(rng.uniform(0, 40), w, w / 9):
            paint = (205, 205, 200) if kind == "parking" else (200, 170, 60)
            draw.polygon(
                [
                    (column, floor + 4),
                    (column + 4, floor + 4),
                    (column - h / 6, h),
                    (column - h / 6 - 10, h),
                ],
                fill=paint,
            )
    draw.line((0, floor, w, floor), fill=tuple(int(c * 0.6) for c in ground), width=2)
