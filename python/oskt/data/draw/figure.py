"""A small renderer of articulated figures: textured round solids with a depth buffer.

Body coordinates: X to the person's left, Y forward, Z up, in units of the body height. A view turns
the body by `yaw` about Z (0 faces the camera, pi/2 walks to the right, pi shows the back), tilts it
by the camera's pitch, and scales it to pixels. Every part of a body is a round solid around an
axis, so shading, occlusion and the wrapping of a texture all follow from one formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, hypot, sin
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
_STEPS = 32
_STRETCH = 1.22  # sideways: a detector's narrow box is resized to the data set's shape
_TWO_PI = np.float32(2 * np.pi)


def radius_profile(*samples: float) -> Floats:
    """Factors of a radius along an axis, from evenly spaced samples, as the table `solid` reads."""
    steps = np.linspace(0, 1, _STEPS + 1)
    return np.interp(steps, np.linspace(0, 1, len(samples)), samples).astype(np.float32)


ROUND = radius_profile(1, 1)


@dataclass(frozen=True)
class View:
    """Where a body stands on the canvas and how it is lit."""

    x: float  # px, of the body's axis
    ground: float  # px, of the floor under the body
    scale: float  # px per body height
    yaw: float  # rad
    pitch: float  # rad, camera looking down
    lean: float  # px sideways per px of height
    away: float  # px, distance behind the picture plane
    light: tuple[float, float, float]  # unit vector: right, down, towards the camera
    ambient: float  # share of light that comes from everywhere, 0..1

    def project(self, point: tuple[float, float, float]) -> tuple[float, float, float]:
        """Pixel column, pixel row and nearness of a point of the body."""
        side, forward, up = point
        across = side * cos(self.yaw) + forward * sin(self.yaw)
        near = forward * cos(self.yaw) - side * sin(self.yaw)
        row = self.ground + self.scale * (near * sin(self.pitch) - up * cos(self.pitch))
        column = self.x + self.scale * _STRETCH * across + self.lean * (self.ground - row)
        return column, row, self.scale * near - self.away


class Canvas:
    """Colour, premultiplied by coverage, and nearness of a picture under construction."""

    def __init__(self, height: int, width: int) -> None:
        self.colour: Floats = np.zeros((height, width, 3), dtype=np.float32)
        self.near: Floats = np.full((height, width), -np.inf, dtype=np.float32)

    def solid(
        self,
        view: View,
        top: tuple[float, float, float],
        bottom: tuple[float, float, float],
        radius: tuple[float, float],
        texture: Floats,
        *,
        profile: Floats = ROUND,
        cap: bool = True,
        turn: float = 0.0,
    ) -> None:
        """Draw one part: the axis top -> bottom, thickened.

        Args:
            radius: half extents (sideways, forward) of the cross-section, body units.
            texture: (v, u, 3): v runs down the axis, u around it, starting in front.
            profile: factor of the radius along the axis, from `radius_profile`.
            cap: round ends; else the solid is cut at the ends of the axis.
            turn: rad, of the part against the body.
        """
        x0, y0, d0 = view.project(top)
        x1, y1, d1 = view.project(bottom)
        yaw = view.yaw + turn
        side, forward = radius[0] * view.scale, radius[1] * view.scale
        wide = _STRETCH * hypot(side * cos(yaw), forward * sin(yaw))
        deep = hypot(side * sin(yaw), forward * cos(yaw))
        reach = wide * float(profile.max()) + 1
        height, width = self.near.shape
        left, right = max(int(min(x0, x1) - reach), 0), min(int(max(x0, x1) + reach) + 2, width)
        upper, lower = max(int(min(y0, y1) - reach), 0), min(int(max(y0, y1) + reach) + 2, height)
        if left >= right or upper >= lower:
            return
        px = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(x0)
        py = np.arange(upper, lower, dtype=np.float32)[:, None] - np.float32(y0)
        vx, vy = np.float32(x1 - x0), np.float32(y1 - y0)
        length_sq = np.float32(max(float(vx * vx + vy * vy), 1e-3))
        raw = (px * vx + py * vy) / length_sq
        s = np.clip(raw, 0, 1)
        qx, qy = px - s * vx, py - s * vy
        r = np.float32(wide) * profile[(s * np.float32(_STEPS)).astype(np.intp)]
        rho = (qx * qx + qy * qy) / (r * r)
        window = self.near[upper:lower, left:right]
        lift = np.sqrt(np.maximum(1 - rho, 0))
        near = np.float32(d0) + s * np.float32(d1 - d0) + lift * np.float32(deep)
        seen = (rho < 1) & (near > window)
        if not cap:
            seen &= (raw >= 0) & (raw <= 1)
        if not seen.any():
            return
        s, r, lift = s[seen], r[seen], lift[seen]
        nx, ny = qx[seen] / r, qy[seen] / r
        lx, ly, lz = (np.float32(c) for c in view.light)
        shade = np.maximum(nx * lx + ny * ly + lift * lz, 0)
        shade = np.float32(view.ambient) + np.float32(1 - view.ambient) * shade
        self.colour[upper:lower, left:right][seen] = _sample(texture, s, nx, yaw) * shade[:, None]
        window[seen] = near[seen]

    def finish(self) -> tuple[Floats, Floats]:
        """Colour (h/2, w/2, 3), premultiplied, and coverage (h/2, w/2, 1), box-filtered."""
        cover = np.isfinite(self.near)[..., None].astype(np.float32)
        return _halve(self.colour), _halve(cover)


def _sample(texture: Floats, s: Floats, across: Floats, yaw: float) -> Floats:
    rows, columns, _ = texture.shape
    if rows == columns == 1:
        return texture[:1, 0]
    v = np.minimum((s * rows).astype(np.intp), rows - 1)
    azimuth = np.arcsin(np.clip(across, -1, 1)) - np.float32(yaw)
    u = np.mod(azimuth / _TWO_PI + np.float32(0.5 / columns), 1)
    sampled: Floats = texture[v, np.minimum((u * columns).astype(np.intp), columns - 1)]
    return sampled


def _halve(image: Floats) -> Floats:
    quarter = np.float32(0.25)
    rows = image[::2] + image[1::2]
    halved: Floats = quarter * (rows[:, ::2] + rows[:, 1::2])
    return halved
