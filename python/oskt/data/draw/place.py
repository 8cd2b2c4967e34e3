"""Places: the strip of world in front of a camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageFilter

from oskt.data.draw import furnish as f
from oskt.data.draw.furnish import Brush, Furnish, Pave, shade
from oskt.data.draw.world import Colour, Season, World

Tones: TypeAlias = tuple[int, int, Colour]  # grey from, to, and tint


@dataclass(frozen=True)
class Place:
    """One kind of surroundings. `furnish` draws what stands between x and x + step px, and returns
    the step that it took."""

    wall: Tones
    ground: Tones
    furnish: Furnish
    pave: tuple[Pave, ...] = ()
    indoors: bool = False


@dataclass(frozen=True, eq=False)
class Strip:
    """The surroundings in front of one camera, some crops wide."""

    picture: Image.Image
    floor: int  # px, row where the ground begins
    indoors: bool


def draw_place(
    rng: np.random.Generator, world: World, season: Season, index: int, height: int, width: int
) -> Strip:
    """The strip before the camera that is number `index` (from 0) of the world."""
    brush = Brush(rng, season, height, width)
    places = [PLACES[name] for name in world.places]
    walls = [brush.tone(*place.wall) for place in places]  # of the whole town
    grounds = [brush.tone(*place.ground) for place in places]
    which = index % len(places)
    place, wall, ground = places[which], walls[which], grounds[which]
    w, h, floor = brush.width, brush.height, brush.floor
    for row in range(h):
        near = (row - floor) / (h - floor) if row >= floor else 0
        base, fade = (
            (ground, 1.06 - 0.16 * near) if row >= floor else (wall, 0.8 + 0.25 * row / floor)
        )
        brush.draw.line((0, row, w, row), fill=shade(base, fade))
    x = 0.0
    while x < w:
        x += place.furnish(brush, x, width * rng.uniform(0.5, 1.3))
    for pave in place.pave:
        pave(brush, ground)
    brush.draw.line((0, floor, w, floor), fill=shade(ground, 0.6), width=2)
    blotches = rng.normal(0, 9, (max(2, h // 12), w // 12)).astype(np.float32)
    grain = np.asarray(
        Image.fromarray(blotches, mode=None).resize((w, h), Image.Resampling.BICUBIC)
    )
    patches, grain = grain, grain + rng.normal(0, 3, (h, w))
    image = np.asarray(brush.picture, dtype=np.float32) + grain[..., None]
    if not place.indoors:
        foliage = np.clip(image[..., 1] - np.maximum(image[..., 0], image[..., 2]), 0, None)
        image += foliage[..., None] * np.array(season.wither)
        deep = season.snow * np.clip(1 + patches[floor:] / 16, 0, 1)[..., None]
        image[floor:] += deep * ((232, 236, 244) - image[floor:])
    grey = image.mean(axis=2, keepdims=True)
    image = np.clip(world.colour * image + world.grey * grey + world.plaster, 0, 255)
    soft = Image.fromarray(image.astype(np.uint8)).filter(ImageFilter.GaussianBlur(width / 90))
    return Strip(soft, floor, place.indoors)


PLACES = {
    "street": Place(
        (120, 170, (18, 4, -10)), (125, 160, (0, 0, 0)), f.fronts((45, 85), plinth=True), (f.tiles,)
    ),
    "park": Place((80, 115, (-20, 25, -30)), (125, 160, (22, 8, -22)), f.trees),
    "plaza": Place((150, 195, (0, 0, 0)), (150, 185, (8, 2, -8)), f.fronts((90, 150)), (f.tiles,)),
    "mall": Place(
        (185, 225, (8, 4, -4)), (170, 205, (10, 4, -8)), f.fronts((200, 245)), (f.tiles,), True
    ),
    "parking": Place(
        (105, 145, (-4, 0, 8)), (70, 105, (0, 0, 0)), f.cars, (f.lines((205, 205, 200)),)
    ),
    "station": Place(
        (130, 175, (-10, 2, 10)),
        (105, 140, (4, 2, 0)),
        f.fronts((60, 110)),
        (f.tiles, f.lines((200, 170, 60))),
        True,
    ),
    "crossing": Place((105, 150, (6, 0, -6)), (80, 105, (0, 0, 2)), f.cars, (f.zebra,)),
    "market": Place((90, 130, (10, 2, -8)), (115, 145, (8, 2, -6)), f.stalls, (f.tiles,)),
    "hall": Place((150, 190, (14, 6, -10)), (140, 170, (14, 4, -14)), f.columns, (f.tiles,), True),
    "bridge": Place((165, 200, (-12, 0, 14)), (110, 140, (4, 0, -4)), f.railing, (f.verge,)),
    "bikes": Place((120, 150, (26, 2, -20)), (165, 190, (6, 4, -4)), f.bikes, (f.tiles,)),
    "shopfront": Place((140, 170, (22, 8, -10)), (180, 205, (4, 4, 0)), f.fronts((70, 120))),
    "lawn": Place((120, 150, (-24, 20, -34)), (165, 190, (10, 6, -10)), f.hedge, (f.verge,)),
    "bricks": Place((150, 185, (30, -6, -26)), (150, 175, (30, -4, -20)), f.hedge, (f.bricks,)),
    "steps": Place((165, 195, (10, 6, -8)), (175, 200, (6, 4, -6)), f.steps, (f.tiles,)),
    "fence": Place((150, 185, (-16, 6, 18)), (150, 175, (26, 0, -18)), f.fence),
    "corridor": Place((165, 195, (6, -6, 8)), (120, 145, (8, -4, 4)), f.doors, (f.tiles,), True),
    "foyer": Place((140, 170, (2, -6, 12)), (150, 175, (6, -4, 6)), f.columns, (f.bricks,), True),
}
