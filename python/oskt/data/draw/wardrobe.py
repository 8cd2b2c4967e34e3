"""Who a person is: body, hair, clothes and bags, of a small palette so that many look alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oskt.data.draw.figure import Floats

_CLOTH = {
    "black": (34, 34, 38),
    "charcoal": (84, 86, 92),
    "white": (222, 222, 218),
    "navy": (40, 50, 92),
    "red": (168, 44, 48),
    "sand": (186, 160, 122),
    "olive": (86, 96, 62),
    "sky": (112, 156, 200),
    "rose": (206, 132, 150),
    "mustard": (206, 160, 44),
    "teal": (34, 128, 124),
    "plum": (104, 48, 104),
}
_TOP_SHARE = (0.11, 0.08, 0.11, 0.09, 0.11, 0.08, 0.08, 0.09, 0.07, 0.07, 0.06, 0.05)
_BOTTOM_SHARE = (0.17, 0.12, 0.10, 0.15, 0.06, 0.11, 0.08, 0.10, 0.03, 0.02, 0.03, 0.03)
_SPREAD = 16  # of a cloth's colour about the palette's, 0..255
_SKIN = ((238, 200, 172), (220, 176, 142), (190, 140, 104), (140, 96, 68), (96, 66, 50))
_HAIR = ((28, 24, 24), (58, 40, 30), (104, 74, 46), (176, 140, 84), (150, 148, 146))
_SHOES = ((32, 32, 36), (216, 216, 214), (92, 64, 46), (150, 46, 50))
_PATTERNS = ("plain", "stripes", "pinstripes", "checks", "fade", "yoke", "logo", "bar", "print")
_PATTERN_SHARE = (0.24, 0.13, 0.07, 0.11, 0.08, 0.11, 0.11, 0.08, 0.07)
_ROWS, _COLUMNS = 64, 128  # of a torso's texture; column 0 is the front


@dataclass(frozen=True, eq=False)
class Person:
    """One identity: everything that does not change from picture to picture."""

    height: float  # against the mean
    girth: float
    shoulders: float
    torso: Floats
    torso_length: float  # z at which the upper garment ends, body units
    flare: float  # of the upper garment's hem
    upper_arm: Floats
    forearm: Floats
    thigh: Floats
    shin: Floats
    leg_girth: float
    skirt: Floats | None
    skirt_end: float
    skirt_flare: float
    head: Floats
    skin: Floats
    hair: Floats
    hair_style: str
    brim: Floats | None
    shoe: Floats
    bag: str  # none, backpack, shoulder, hand
    bag_texture: Floats
    stride: float


def draw_person(rng: np.random.Generator) -> Person:
    """A random identity."""
    woman = rng.random() < 0.5
    skin = _flat(_SKIN[rng.choice(5, p=(0.34, 0.30, 0.18, 0.10, 0.08))], rng)
    hair = _flat(_HAIR[rng.choice(5, p=(0.42, 0.26, 0.14, 0.10, 0.08))], rng)
    first = _cloth(_TOP_SHARE, rng)
    second = _cloth(_TOP_SHARE, rng)
    inner = _cloth(_TOP_SHARE, rng)
    lower = _cloth(_BOTTOM_SHARE, rng)
    bag = str(rng.choice(["none", "backpack", "shoulder", "hand"], p=(0.46, 0.24, 0.18, 0.12)))
    bag_colour = _cloth(_TOP_SHARE, rng)
    kind = str(rng.choice(["shirt", "tee", "open", "zip", "coat"], p=(0.22, 0.32, 0.2, 0.14, 0.12)))

    torso = _garment(rng, first, second)
    if kind == "open":
        _paint_front(torso, _garment(rng, inner, second), 0.055 + 0.05 * rng.random())
    elif kind in ("zip", "coat"):
        torso[:, _columns(0, 0.008)] *= 0.55
    torso[:4] *= 0.8
    torso[-3:] *= 0.75
    _paint_straps(torso, bag, bag_colour, bool(rng.random() < 0.5))
    upper_arm = _sleeve(torso, first, second, rng)
    bare = kind == "tee"

    wear = str(rng.choice(["trousers", "shorts", "skirt", "dress"], p=_lower_share(woman)))
    thigh = _cloth_texture(lower, 24)
    if rng.random() < 0.12:
        for centre in (0.25, 0.75):
            thigh[:, _columns(centre, 0.04, 32)] = second
    shin = thigh if wear == "trousers" else np.broadcast_to(skin, (1, 1, 3)).copy()
    skirt = None
    if wear in ("skirt", "dress"):
        shin = thigh = np.broadcast_to(
            _flat((60, 52, 52), rng) if rng.random() < 0.4 else skin, (1, 1, 3)
        )
        skirt = _garment(rng, lower, second) if wear == "skirt" else torso[24:].copy()
    if wear == "shorts":
        thigh[18:] = skin

    style = rng.choice(
        ["bald", "short", "bob", "long", "tail", "bun"],
        p=(0.02, 0.12, 0.22, 0.34, 0.2, 0.1) if woman else (0.12, 0.72, 0.1, 0.03, 0.02, 0.01),
    )
    hat = str(rng.choice(["none", "cap", "beanie", "hood"], p=(0.8, 0.09, 0.06, 0.05)))
    hat_colour = first if hat == "hood" else _cloth(_TOP_SHARE, rng)
    return Person(
        height=float(np.clip(rng.normal(0.96 if woman else 1.02, 0.04), 0.86, 1.1)),
        girth=float(np.clip(rng.normal(0.95 if woman else 1.05, 0.12), 0.78, 1.4)),
        shoulders=float(rng.normal(0.93 if woman else 1.04, 0.04)),
        torso=torso,
        torso_length=0.33 if kind == "coat" else float(rng.uniform(0.45, 0.5)),
        flare=float(rng.uniform(0.95, 1.25)) if kind == "coat" else float(rng.uniform(0.85, 1.0)),
        upper_arm=np.concatenate([upper_arm[:20], np.broadcast_to(skin, (4, 32, 3))])
        if bare
        else upper_arm,
        forearm=np.broadcast_to(skin, (1, 1, 3)) if bare else upper_arm,
        thigh=thigh,
        shin=shin,
        leg_girth=float(rng.uniform(0.85, 1.3)) if wear == "trousers" else 0.9,
        skirt=skirt,
        skirt_end=float(rng.choice([0.36, 0.28, 0.14], p=(0.4, 0.4, 0.2))),
        skirt_flare=float(rng.uniform(1.05, 1.5)),
        head=_head(skin, hair, str(style), hat, hat_colour),
        skin=skin[None, None],
        hair=hair[None, None],
        hair_style=str(style),
        brim=hat_colour[None, None] * 0.8 if hat == "cap" else None,
        shoe=_flat(_SHOES[rng.choice(4, p=(0.45, 0.3, 0.18, 0.07))], rng)[None, None],
        bag=bag,
        bag_texture=_bag(bag_colour),
        stride=float(rng.uniform(0.25, 0.5)),
    )


def _lower_share(woman: bool) -> tuple[float, ...]:
    return (0.55, 0.15, 0.2, 0.1) if woman else (0.78, 0.22, 0.0, 0.0)


def _flat(colour: tuple[int, ...], rng: np.random.Generator, spread: float = 4) -> Floats:
    """A palette colour with the small deviation that no two bodies or fabrics share."""
    return np.clip(np.array(colour) + rng.normal(0, spread, 3), 4, 250).astype(np.float32)


def _cloth(share: tuple[float, ...], rng: np.random.Generator) -> Floats:
    return _flat(list(_CLOTH.values())[rng.choice(len(_CLOTH), p=share)], rng, _SPREAD)


def _columns(centre: float, half: float, columns: int = _COLUMNS) -> np.ndarray:
    """Texture columns within `half` turns of the direction `centre` (0 front, 0.5 back)."""
    position = (np.arange(columns) + 0.5) / columns
    return np.abs((position - centre + 0.5) % 1 - 0.5) <= half


def _cloth_texture(colour: Floats, rows: int) -> Floats:
    """A trouser leg or sleeve with folds."""
    v = np.linspace(0, 1, rows)[:, None]
    folds = 1 + 0.03 * np.sin(17 * v + 2.0 * np.sin(2 * np.pi * np.arange(32) / 32))
    return (colour * folds[..., None]).astype(np.float32)


def _garment(rng: np.random.Generator, first: Floats, second: Floats) -> Floats:
    """The wrapped texture (v, u, 3) of an upper garment."""
    v, u = np.meshgrid(np.linspace(0, 1, _ROWS), np.arange(_COLUMNS) / _COLUMNS, indexing="ij")
    pattern = _PATTERNS[rng.choice(len(_PATTERNS), p=_PATTERN_SHARE)]
    count, offset, place = int(rng.integers(3, 8)), rng.random(), rng.uniform(0.18, 0.34)
    mix: Floats = np.zeros((_ROWS, _COLUMNS))
    from_front = np.abs((u + 0.5) % 1 - 0.5)
    if pattern == "stripes":
        mix = ((v * count + offset) % 1 < 0.42).astype(float)
    elif pattern == "pinstripes":
        mix = 0.8 * ((u * 4 * count + offset) % 1 < 0.3)
    elif pattern == "checks":
        mix = 0.5 * ((v * count + offset) % 1 < 0.5) + 0.5 * ((u * 3 * count) % 1 < 0.5)
    elif pattern == "fade":
        mix = v**1.5
    elif pattern == "yoke":
        mix = np.where(v < place + 0.1, 1.0, 0.0)
    elif pattern == "logo":
        mix = ((from_front / 0.07) ** 2 + ((v - place - 0.08) / 0.11) ** 2 < 1).astype(float)
    elif pattern == "bar":
        mix = (np.abs(v - place - 0.1) < 0.06).astype(float)
    elif pattern == "print":
        mix = ((np.abs(from_front - 0.5) < 0.12) & (np.abs(v - 0.4) < 0.16)).astype(float)
    folds = 1 + 0.05 * np.sin(9 * v + 4 * np.sin(2 * np.pi * (u + offset)) + 6 * offset)
    mixed = first + mix[..., None] * (second - first)
    return np.asarray(mixed * folds[..., None], dtype=np.float32)


def _paint_front(torso: Floats, inner: Floats, half: float) -> None:
    """Open the garment in front: the one beneath shows between dark edges."""
    v = np.linspace(0, 1, _ROWS)
    for row in range(_ROWS):
        gap = half * (0.75 + 0.5 * v[row])
        torso[row, _columns(0, gap + 0.014)] *= 0.6
        opening = _columns(0, gap)
        torso[row, opening] = inner[row, opening]


def _paint_straps(torso: Floats, bag: str, colour: Floats, left: bool) -> None:
    if bag == "backpack":
        for centre in (0.1, 0.9):
            torso[:34, _columns(centre, 0.022)] = colour * 0.85
    elif bag == "shoulder":
        for row in range(52):
            # The strap runs from one shoulder to the other hip, in front and behind.
            slant = 0.16 - 0.3 * row / 52
            for centre in (slant if left else -slant, 0.5 - slant if left else 0.5 + slant):
                torso[row, _columns(centre % 1, 0.014)] = colour * 0.8


def _sleeve(torso: Floats, first: Floats, second: Floats, rng: np.random.Generator) -> Floats:
    """Sleeves of the garment's own colour, of its pattern, or of the second colour."""
    choice = rng.random()
    if choice < 0.5:
        return _cloth_texture(first, 24)
    if choice < 0.85:
        return torso[4:52:2, 30:62].copy()
    return _cloth_texture(second, 24)


def _head(skin: Floats, hair: Floats, style: str, hat: str, hat_colour: Floats) -> Floats:
    """The wrapped texture of a head: crown at v = 0, chin at v = 1."""
    rows, columns = 32, 64
    v, u = np.meshgrid(np.linspace(0, 1, rows), np.arange(columns) / columns, indexing="ij")
    from_front = np.abs((u + 0.5) % 1 - 0.5)
    head = np.broadcast_to(skin, (rows, columns, 3)).copy()
    hairline = {"bald": 0.0, "short": 0.62, "tail": 0.66, "bun": 0.66}.get(style, 1.0)
    face = 0.15 if hairline == 1.0 else 0.2
    hairy = ((from_front > face) & (v < hairline)) | (v < 0.24)
    if style != "bald":
        head[hairy] = hair
    for side in (0.055, 0.945):
        head[(np.abs(u - side) < 0.022) & (np.abs(v - 0.5) < 0.035)] = (40, 30, 28)
        head[(np.abs(u - side) < 0.035) & (np.abs(v - 0.42) < 0.02)] *= 0.75
    head[(from_front < 0.05) & (np.abs(v - 0.82) < 0.025)] = skin * np.float32(0.62)
    head[(from_front < 0.018) & (np.abs(v - 0.64) < 0.09)] *= 0.88
    if hat in ("cap", "beanie"):
        head[v < (0.32 if hat == "cap" else 0.38)] = hat_colour
        head[np.abs(v - 0.36) < 0.02] *= 0.8
    elif hat == "hood":
        head[(from_front > 0.15) | (v < 0.22)] = hat_colour
    return head.astype(np.float32)


def _bag(colour: Floats) -> Floats:
    texture = np.broadcast_to(colour, (24, 32, 3)).copy()
    texture[7:8] *= 0.6
    texture[15:22, _columns(0.5, 0.12, 32)] *= 0.78
    texture[15:16, _columns(0.5, 0.12, 32)] *= 0.7
    return texture.astype(np.float32)
