"""What comes between a camera and the person."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


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


def fall(rng: np.random.Generator, picture: Image.Image, kind: str) -> None:
    """Rain or snow that comes down, on the picture."""
    veil = Image.new("L", picture.size)
    width, height = picture.size
    unit = width / 64
    flakes = ImageDraw.Draw(veil)
    slant = rng.uniform(-0.15, 0.15)
    for x, y in rng.uniform((0, -0.1), (1, 1), (34, 2)) * (width, height):
        if kind == "rain":
            length = rng.uniform(5, 14) * unit
            flakes.line((x, y, x + slant * length, y + length), fill=int(rng.integers(60, 160)))
        else:
            r = rng.uniform(0.4, 1.1) * unit
            flakes.ellipse((x - r, y - r, x + r, y + r), fill=int(rng.integers(150, 256)))
    veil = veil.filter(ImageFilter.BoxBlur(0.5 * unit))
    ImageDraw.Draw(picture).bitmap((0, 0), veil, fill=(226, 230, 236))
