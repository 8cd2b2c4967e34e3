"""How a person walks: the parts of a body put in place and drawn."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np

from oskt.data.draw.figure import ROUND, Canvas, Floats, View, radius_profile
from oskt.data.draw.wardrobe import Person

Point = tuple[float, float, float]


_TORSO = radius_profile(0.4, 0.8, 0.98, 1.0, 0.98, 0.94, 0.9, 0.86, 0.85, 0.87, 0.9, 0.94)
_HEAD = radius_profile(0.55, 0.86, 0.97, 1.0, 1.0, 0.98, 0.93, 0.84, 0.7, 0.45)
_BOX = radius_profile(0.75, 0.97, 1.0, 1.0, 1.0, 1.0, 0.97, 0.8)
_THIGH = radius_profile(1.2, 1.15, 1.05, 0.95, 0.85)
_CALF = radius_profile(0.95, 1.05, 1.0, 0.85, 0.72)
_CANOPY = radius_profile(0.05, 0.5, 0.72, 0.86, 0.95, 1.0, 1.0)
_ARM = radius_profile(1.1, 1.05, 0.95, 0.9)
_IRON = np.full((1, 1, 3), 44, dtype=np.float32)


@dataclass(frozen=True)
class Pose:
    """One moment of a gait."""

    phase: float  # rad
    left_arm: float  # rad, elbow bend
    right_arm: float
    nod: float  # body units, of the head
    sheltered: bool = False  # under the open umbrella


def draw_pose(rng: np.random.Generator, *, sheltered: bool = False) -> Pose:
    """A random moment; now and then somebody telephones or carries something."""
    bends = 0.25 + 0.2 * rng.random(2)
    if rng.random() < 0.22:
        bends[rng.integers(2)] = rng.uniform(1.2, 2.3)
    left, right = (float(bend) for bend in bends)
    if sheltered:
        right = 2.2
    return Pose(float(rng.uniform(0, 2 * pi)), left, right, float(rng.normal(0, 0.006)), sheltered)


def draw_figure(canvas: Canvas, person: Person, pose: Pose, view: View) -> None:
    """Draw `person` in `pose`."""

    def part(
        top: Point,
        bottom: Point,
        radius: tuple[float, float],
        texture: Floats,
        profile: Floats = ROUND,
    ) -> None:
        canvas.solid(view, top, bottom, radius, texture, profile=profile)

    girth = person.girth * person.bulk
    shoulders = 0.105 * person.shoulders * (0.75 + 0.25 * girth)
    hip = 0.515
    legs = [
        _leg(side * 0.046, hip, pose.phase + (side < 0) * pi, person.stride) for side in (1, -1)
    ]
    drop = min(ankle[2] for _, ankle in legs) - 0.035  # the lower foot stands on the floor

    def down(point: Point) -> Point:
        return point[0], point[1], point[2] - drop

    for side, (knee, ankle) in zip((1, -1), legs):
        thick = 0.047 * (0.6 + 0.4 * person.girth) * (0.7 + 0.3 * person.leg_girth)
        calf = 0.036 * (0.65 + 0.35 * person.girth) * person.leg_girth
        part(down((side * 0.046, 0, hip)), down(knee), (thick, thick), person.thigh, _THIGH)
        part(down(knee), down(ankle), (calf, calf), person.shin, _CALF)
        x, y, z = down(ankle)
        part(
            (x, y - 0.012, z - 0.012),
            (x + side * 0.01, y + 0.062, z - 0.02),
            (0.024, 0.02),
            person.shoe,
        )

    if person.skirt is not None:
        flare = radius_profile(0.8, 0.98, *np.linspace(1.05, person.skirt_flare, 4))
        top, end = down((0, 0, 0.58)), down((0, 0, person.skirt_end))
        canvas.solid(
            view, top, end, (0.096 * girth, 0.08 * girth), person.skirt, profile=flare, cap=False
        )

    torso = (shoulders, 0.066 * girth)
    profile = _TORSO * radius_profile(1, person.flare * girth / person.shoulders)
    part(down((0, 0, 0.88)), down((0, 0, 0.8)), (0.03, 0.03), person.skin)
    canvas.solid(
        view,
        down((0, 0, 0.845)),
        down((0, 0, person.torso_length)),
        torso,
        person.torso,
        profile=profile,
        cap=False,
    )
    if person.torso_length > 0.42 and person.skirt is None:
        part(
            down((0, 0, 0.54)),
            down((0, 0, 0.48)),
            (0.09 * girth, 0.064 * girth),
            person.thigh[:1, :1],
        )

    for side, bend in ((1, pose.left_arm), (-1, pose.right_arm)):
        swing = -0.75 * person.stride * sin(pose.phase + (side < 0) * pi)
        shoulder, elbow, wrist = _arm(side * (shoulders - 0.012), swing, bend)
        thick = 0.03 * (0.6 + 0.4 * girth)
        part(down(shoulder), down(elbow), (thick, thick), person.upper_arm, _ARM)
        part(down(elbow), down(wrist), (thick * 0.84, thick * 0.84), person.forearm, _ARM)
        part(down(wrist), down((wrist[0], wrist[1], wrist[2] - 0.025)), (0.019, 0.019), person.hand)
        if person.bag == "hand" and side > 0:
            x, y, z = down(wrist)
            canvas.solid(
                view,
                (x, y, z - 0.06),
                (x, y, z - 0.17),
                (0.024, 0.07),
                person.bag_texture,
                profile=_BOX,
                cap=False,
            )

    _draw_head(canvas, view, person, drop - pose.nod)
    _draw_extras(canvas, view, person, pose, drop)
    if person.bag == "backpack":
        top, end = down((0, -0.066 * girth - 0.03, 0.83)), down((0, -0.066 * girth - 0.03, 0.58))
        canvas.solid(view, top, end, (0.085, 0.055), person.bag_texture, profile=_BOX, cap=False)
    elif person.bag == "shoulder":
        x = shoulders + 0.012
        canvas.solid(
            view,
            down((x, 0.01, 0.58)),
            down((x, 0.01, 0.43)),
            (0.028, 0.085),
            person.bag_texture,
            profile=_BOX,
            cap=False,
        )


def _draw_head(canvas: Canvas, view: View, person: Person, drop: float) -> None:
    def at(y: float, z: float) -> Point:
        return (0, y, z - drop)

    canvas.solid(
        view, at(0.006, 1.0), at(0.014, 0.86), (0.053, 0.061), person.head, profile=_HEAD, cap=False
    )
    if person.hair_style in ("short", "bob", "long", "tail", "bun") and person.brim is None:
        canvas.solid(view, at(-0.012, 0.967), at(-0.014, 0.945), (0.053, 0.053), person.hair)
    if person.hair_style in ("bob", "long"):
        end = 0.865 if person.hair_style == "bob" else 0.78
        canvas.solid(view, at(-0.026, 0.95), at(-0.04, end), (0.055, 0.036), person.hair)
    elif person.hair_style == "tail":
        canvas.solid(view, at(-0.06, 0.955), at(-0.085, 0.82), (0.018, 0.018), person.hair)
    elif person.hair_style == "bun":
        canvas.solid(view, at(-0.045, 0.995), at(-0.045, 0.985), (0.024, 0.024), person.hair)
    if person.brim is not None and person.wide_brim:
        canvas.solid(view, at(0.0, 0.966), at(0.0, 0.95), (0.088, 0.094), person.brim, cap=False)
    elif person.brim is not None:
        canvas.solid(view, at(0.045, 0.962), at(0.092, 0.953), (0.032, 0.012), person.brim)


def _draw_extras(canvas: Canvas, view: View, person: Person, pose: Pose, drop: float) -> None:
    def at(x: float, y: float, z: float) -> Point:
        return (x, y, z - drop)

    girth = person.girth * person.bulk
    if person.scarf is not None:
        canvas.solid(view, at(0, 0.004, 0.862), at(0, 0.01, 0.828), (0.056, 0.06), person.scarf)
        tail = at(0.03, 0.062 * girth, 0.83), at(0.035, 0.074 * girth, 0.68)
        canvas.solid(view, *tail, (0.022, 0.012), person.scarf)
    if person.hood is not None:
        canvas.solid(view, at(0, -0.05, 0.855), at(0, -0.066, 0.815), (0.066, 0.03), person.hood)
    if person.bag == "trolley":
        canvas.solid(
            view,
            at(-0.12, -0.2, 0.3 + drop),
            at(-0.12, -0.24, 0.03 + drop),
            (0.07, 0.05),
            person.bag_texture,
            profile=_BOX,
            cap=False,
        )
        grip = at(-0.12, -0.02, 0.46), at(-0.12, -0.2, 0.3 + drop)
        canvas.solid(view, *grip, (0.006, 0.006), _IRON)
    if pose.sheltered and person.umbrella is not None:
        canvas.solid(view, at(0.02, 0.05, 1.1), at(0.03, 0.09, 0.66), (0.006, 0.006), _IRON)
        canopy = at(0.02, 0.05, 1.13), at(0.02, 0.05, 0.99)
        canvas.solid(view, *canopy, (0.2, 0.2), person.umbrella, profile=_CANOPY, cap=False)


def _leg(x: float, hip: float, phase: float, stride: float) -> tuple[Point, Point]:
    """Knee and ankle: the leg swings, its knee bends while it comes forward."""
    swing, bend = stride * sin(phase), 0.08 + 1.7 * stride * max(0.0, cos(phase))
    knee = (x * 1.05, 0.235 * sin(swing), hip - 0.235 * cos(swing))
    shin = swing - bend
    return knee, (x * 1.05, knee[1] + 0.235 * sin(shin), knee[2] - 0.235 * cos(shin))


def _arm(x: float, swing: float, bend: float) -> tuple[Point, Point, Point]:
    out = 0.19 if x > 0 else -0.19  # the elbows stand a little away from the body
    elbow = (x + 0.15 * out, 0.155 * sin(swing), 0.795 - 0.155 * cos(swing))
    fore = swing + bend
    wrist = (elbow[0] - 0.02 * out, elbow[1] + 0.145 * sin(fore), elbow[2] - 0.145 * cos(fore))
    return (x, 0.0, 0.795), elbow, wrist
