"""Textures: what fabrics, heads and bags look like all around."""

from __future__ import annotations

import numpy as np

from oskt.data.draw.figure import Floats
from oskt.data.draw.world import Colour, Shares

_ROWS, _COLUMNS = 64, 128  # of a torso's texture; column 0 is the front


def pick(rng: np.random.Generator, shares: Shares) -> str:
    """One of the names, as often as its weight says."""
    weights = np.array(list(shares.values()))
    return list(shares)[rng.choice(len(weights), p=weights / weights.sum())]


def flat(colour: Colour, rng: np.random.Generator, spread: float = 4) -> Floats:
    """A palette colour with the small deviation that no two bodies or fabrics share."""
    return np.clip(np.array(colour) + rng.normal(0, spread, 3), 4, 250).astype(np.float32)


def around(centre: float, half: float, columns: int = _COLUMNS) -> np.ndarray:
    """Texture columns within `half` turns of the direction `centre` (0 front, 0.5 back)."""
    position = (np.arange(columns) + 0.5) / columns
    return np.abs((position - centre + 0.5) % 1 - 0.5) <= half


def cloth_texture(colour: Floats, rows: int) -> Floats:
    """A trouser leg or sleeve with folds."""
    v = np.linspace(0, 1, rows)[:, None]
    folds = 1 + 0.03 * np.sin(17 * v + 2.0 * np.sin(2 * np.pi * np.arange(32) / 32))
    return (colour * folds[..., None]).astype(np.float32)


def garment(rng: np.random.Generator, patterns: Shares, first: Floats, second: Floats) -> Floats:
    """The wrapped texture (v, u, 3) of an upper garment."""
    v, u = np.meshgrid(np.linspace(0, 1, _ROWS), np.arange(_COLUMNS) / _COLUMNS, indexing="ij")
    pattern = pick(rng, patterns)
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
    elif pattern == "sides":
        mix = (np.abs(from_front - 0.25) < 0.06 + 0.2 * (place - 0.18)).astype(float)
    elif pattern == "halves":
        mix = (u < 0.5).astype(float)
    elif pattern == "dots":
        across, down = (u * 4 * count) % 1 - 0.5, (v * (count + 2) + offset) % 1 - 0.5
        mix = (across**2 + down**2 < 0.09).astype(float)
    elif pattern == "sash":
        mix = (np.abs((v + 2 * from_front * (1 if offset < 0.5 else -1)) % 1 - 0.5) < 0.1) * 1.0
    folds = 1 + 0.05 * np.sin(9 * v + 4 * np.sin(2 * np.pi * (u + offset)) + 6 * offset)
    mixed = first + mix[..., None] * (second - first)
    return np.asarray(mixed * folds[..., None], dtype=np.float32)


def quilt(texture: Floats, seams: int) -> Floats:
    """The rolls of a padded garment."""
    v = np.linspace(0, seams, len(texture), endpoint=False) % 1
    rolls = 0.72 + 0.34 * np.sin(np.pi * np.clip(v, 0.04, 1)) ** 0.7
    return (texture * rolls[:, None, None]).astype(np.float32)


def end_of(texture: Floats, colour: Floats, share: float) -> Floats:
    """A leg's or sleeve's texture with its lower `share` in another colour: boots, socks."""
    rows = 24
    tall = np.broadcast_to(texture, (rows, texture.shape[1], 3)) if len(texture) == 1 else texture
    result = tall.copy()
    result[round(len(tall) * (1 - share)) :] = colour
    return result


def scarf(colour: Floats, other: Floats) -> Floats:
    """Knitted bands."""
    texture = np.broadcast_to(colour, (12, 1, 3)).copy()
    texture[2::4] = other
    return texture


def umbrella(colour: Floats, other: Floats) -> Floats:
    """The eight panels of a canopy."""
    texture = np.broadcast_to(colour, (8, 32, 3)).copy()
    for panel in range(0, 8, 2):
        texture[:, 4 * panel : 4 * panel + 4] = other
    texture[:, ::4] *= 0.8
    return texture.astype(np.float32)


def paint_front(torso: Floats, inner: Floats, half: float) -> None:
    """Open the garment in front: the one beneath shows between dark edges."""
    v = np.linspace(0, 1, _ROWS)
    for row in range(_ROWS):
        gap = half * (0.75 + 0.5 * v[row])
        torso[row, around(0, gap + 0.014)] *= 0.6
        opening = around(0, gap)
        torso[row, opening] = inner[row, opening]


def paint_straps(torso: Floats, bag: str, colour: Floats, left: bool) -> None:
    if bag == "backpack":
        for centre in (0.1, 0.9):
            torso[:34, around(centre, 0.022)] = colour * 0.85
    elif bag == "shoulder":
        for row in range(52):
            # The strap runs from one shoulder to the other hip, in front and behind.
            slant = 0.16 - 0.3 * row / 52
            for centre in (slant if left else -slant, 0.5 - slant if left else 0.5 + slant):
                torso[row, around(centre % 1, 0.014)] = colour * 0.8


def sleeve(torso: Floats, first: Floats, second: Floats, rng: np.random.Generator) -> Floats:
    """Sleeves of the garment's own colour, of its pattern, or of the second colour."""
    choice = rng.random()
    if choice < 0.5:
        return cloth_texture(first, 24)
    if choice < 0.85:
        return torso[4:52:2, 30:62].copy()
    return cloth_texture(second, 24)


def head(skin: Floats, hair: Floats, style: str, hat: str, hat_colour: Floats) -> Floats:
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
    elif hat == "straw":
        head[v < 0.32] = hat_colour
        head[np.abs(v - 0.29) < 0.03] *= 0.55
    elif hat == "hood":
        head[(from_front > 0.15) | (v < 0.22)] = hat_colour
    return head.astype(np.float32)


def face(head: Floats, hair: Floats, glasses: bool, beard: bool) -> Floats:
    """A head's texture with what some faces have."""
    rows, columns, _ = head.shape
    v, u = np.meshgrid(np.linspace(0, 1, rows), np.arange(columns) / columns, indexing="ij")
    from_front, result = np.abs((u + 0.5) % 1 - 0.5), head.copy()
    if beard:
        jaw = (from_front < 0.17) & (v > 0.7 + 0.06 * np.cos(4 * np.pi * from_front))
        result[jaw] = 0.35 * result[jaw] + 0.65 * hair
    if glasses:
        lenses = (np.abs(from_front - 0.058) < 0.036) & (np.abs(v - 0.5) < 0.05)
        frame = (from_front < 0.22) & (np.abs(v - 0.47) < 0.02)
        result[lenses | frame] = (26, 26, 30)
    return result


def bag(colour: Floats) -> Floats:
    texture = np.broadcast_to(colour, (24, 32, 3)).copy()
    texture[7:8] *= 0.6
    texture[15:22, around(0.5, 0.12, 32)] *= 0.78
    texture[15:16, around(0.5, 0.12, 32)] *= 0.7
    return texture.astype(np.float32)
