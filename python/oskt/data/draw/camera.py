"""What a camera does to a picture: its place, light, colours, sharpness."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin, sqrt

import numpy as np
from PIL import Image, ImageFilter

from oskt.data.draw.figure import Floats
from oskt.data.draw.place import Strip, draw_place
from oskt.data.draw.worlds import Scene

_CAMERA = 3  # stream of the seed, beside those of picture.py


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera: what its pictures share."""

    strip: Strip
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
    lift: Floats  # per colour
    shake: float  # chance of motion blur


@lru_cache(maxsize=128)
def camera_of(scene: Scene, index: int, season: int) -> Camera:
    """Camera `index` (from 1) of a data set in season `season` (from 0) of its world."""
    town, rng = scene.town, scene.stream(_CAMERA, index)
    optics = town.optics
    strip = draw_place(rng, town, town.seasons[season], index - 1, scene.height, scene.width)
    azimuth, elevation = rng.uniform(*optics.azimuth), rng.uniform(*optics.elevation)
    warm, green = rng.uniform(*optics.warm), rng.uniform(*optics.green)
    gain = np.array([1 + warm, 1 + green, 1 - warm]) * rng.uniform(*optics.exposure)
    return Camera(
        strip=strip,
        yaw=2 * pi * index * 0.38 + rng.uniform(-0.3, 0.3),
        pitch=float(rng.uniform(*optics.pitch)),
        light=(
            sin(azimuth) * cos(elevation),
            -sin(elevation),
            sqrt(0.1) + cos(azimuth) * cos(elevation),
        ),
        ambient=float(rng.uniform(*optics.ambient)),
        gain=gain.astype(np.float32),
        gamma=float(rng.uniform(*optics.gamma)),
        contrast=float(rng.uniform(*optics.contrast)),
        saturation=float(rng.uniform(*optics.saturation)),
        sharpness=float(rng.uniform(*optics.sharpness)),
        noise=float(rng.uniform(*optics.noise)),
        quality=int(rng.integers(*optics.quality)),
        lift=rng.uniform(*optics.lift, 3).astype(np.float32),
        shake=optics.shake,
    )


def background(rng: np.random.Generator, camera: Camera, height: int, width: int) -> Floats:
    """A piece of the camera's place, (height, width, 3)."""
    picture = camera.strip.picture
    zoom = rng.uniform(0.75, 1.2)
    tall, wide = height * zoom, width * zoom
    left = rng.uniform(0, picture.width - wide)
    top = np.clip(camera.strip.floor - tall * rng.uniform(0.58, 0.82), 0, picture.height - tall)
    crop = picture.resize(
        (width, height), Image.Resampling.BILINEAR, (left, top, left + wide, top + tall)
    )
    return np.asarray(crop, dtype=np.float32)


def shadow(scene: Floats, x: float, ground: float, size: float) -> None:
    """Darken the floor around the feet."""
    height, width, _ = scene.shape
    across = np.exp(-(((np.arange(width) - x) / (0.2 * size)) ** 2))
    down = np.exp(-(((np.arange(height) - ground) / (0.035 * size)) ** 2))
    scene *= (1 - 0.5 * np.outer(down, across)[..., None]).astype(np.float32)


def expose(
    rng: np.random.Generator, camera: Camera, picture: Image.Image, mood: Floats
) -> Image.Image:
    """The picture as the camera records it; `mood` is the light of the hour, per colour."""
    width, height = picture.size
    sharp = camera.sharpness * rng.uniform(0.75, 1.05)
    if rng.random() < camera.shake:
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
    image = np.float32(255 * camera.contrast) * (image - np.float32(0.5))
    image += np.float32(128) + camera.lift
    image += np.float32(camera.noise) * rng.standard_normal(image.shape, dtype=np.float32)
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
