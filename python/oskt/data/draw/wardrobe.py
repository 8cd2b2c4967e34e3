"""Who a person is: body, hair, clothes and bags, of a small palette so that many look alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from oskt.data.draw import cloth
from oskt.data.draw.cloth import flat, pick
from oskt.data.draw.figure import Floats
from oskt.data.draw.world import Wardrobe

_SKIN = {
    "pale": (238, 200, 172),
    "light": (220, 176, 142),
    "tan": (190, 140, 104),
    "brown": (140, 96, 68),
    "dark": (96, 66, 50),
}
_HAIR = {
    "black": (28, 24, 24),
    "brown": (58, 40, 30),
    "chestnut": (104, 74, 46),
    "blond": (176, 140, 84),
    "grey": (150, 148, 146),
}
_WOMEN_HAIR = {"bald": 0.02, "short": 0.12, "bob": 0.22, "long": 0.34, "tail": 0.2, "bun": 0.1}
_MEN_HAIR = {"bald": 0.12, "short": 0.72, "bob": 0.1, "long": 0.03, "tail": 0.02, "bun": 0.01}
_SHOES = {
    "black": (32, 32, 36),
    "white": (216, 216, 214),
    "brown": (92, 64, 46),
    "red": (150, 46, 50),
}
_SHOE_SHARE = {"black": 0.45, "white": 0.3, "brown": 0.18, "red": 0.07}
_BOOT_SHARE = {"black": 0.55, "brown": 0.45}


@dataclass(frozen=True, eq=False)
class Person:
    """One identity: everything that does not change from picture to picture."""

    height: float  # against the mean
    girth: float
    bulk: float  # of the clothes: factor of girth above the belt
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
    wide_brim: bool  # all around, not only in front
    shoe: Floats
    bag: str  # none, backpack, shoulder, hand, trolley
    bag_texture: Floats
    stride: float
    hand: Floats
    scarf: Floats | None = None
    hood: Floats | None = None  # hanging behind the neck
    umbrella: Floats | None = None


def draw_person(rng: np.random.Generator, wardrobe: Wardrobe) -> Person:
    """A random identity, in the clothes of a season."""
    woman = rng.random() < 0.5
    skin = flat(_SKIN[pick(rng, wardrobe.skin)], rng)
    hair = flat(_HAIR[pick(rng, wardrobe.hair)], rng)
    first = _cloth(rng, wardrobe)
    second = _cloth(rng, wardrobe)
    inner = _cloth(rng, wardrobe)
    lower = _cloth(rng, wardrobe, below=True)
    bag = pick(rng, wardrobe.bags)
    bag_colour = _cloth(rng, wardrobe)
    top = pick(rng, wardrobe.tops)

    torso = cloth.garment(rng, wardrobe.patterns, first, second)
    if top == "open":
        beneath = cloth.garment(rng, wardrobe.patterns, inner, second)
        cloth.paint_front(torso, beneath, 0.055 + 0.05 * rng.random())
    elif top in ("zip", "coat", "puffer"):
        torso[:, cloth.around(0, 0.008)] *= 0.55
    if top == "puffer":
        torso = cloth.quilt(torso, 7)
    torso[:4] *= 0.8
    torso[-3:] *= 0.75
    cloth.paint_straps(torso, bag, bag_colour, bool(rng.random() < 0.5))
    bare, sleeve = np.broadcast_to(skin, (1, 1, 3)), cloth.sleeve(torso, first, second, rng)
    if top == "puffer":
        sleeve = cloth.quilt(sleeve, 4)
    arm = {
        "tee": (np.concatenate([sleeve[:20], np.broadcast_to(skin, (4, 32, 3))]), bare),
        "vest": (bare, bare),
    }.get(top, (sleeve, sleeve))

    wear = pick(rng, wardrobe.women if woman else wardrobe.men)
    thigh = cloth.cloth_texture(lower, 24)
    if rng.random() < 0.12:
        for centre in (0.25, 0.75):
            thigh[:, cloth.around(centre, 0.04, 32)] = second
    shin = thigh if wear == "trousers" else bare
    skirt = None
    if wear in ("skirt", "dress"):
        tights = flat((60, 52, 52), rng) if rng.random() < wardrobe.tights else skin
        shin = thigh = np.broadcast_to(tights, (1, 1, 3))
        if wear == "skirt":
            skirt = cloth.garment(rng, wardrobe.patterns, lower, second)
        else:
            skirt = torso[24:].copy()
    if wear == "shorts":
        thigh[18:] = skin

    style = pick(rng, _WOMEN_HAIR if woman else _MEN_HAIR)
    hat = pick(rng, wardrobe.hats)
    hat_colour = first if hat == "hood" else _cloth(rng, wardrobe)
    coat = top == "coat"
    person = Person(
        height=float(np.clip(rng.normal(0.96 if woman else 1.02, 0.04), 0.86, 1.1)),
        girth=float(np.clip(rng.normal(0.95 if woman else 1.05, 0.12), 0.78, 1.4)),
        bulk=wardrobe.bulk,
        shoulders=float(rng.normal(0.93 if woman else 1.04, 0.04)),
        torso=torso,
        torso_length=0.33 if coat else float(rng.uniform(0.45, 0.5)),
        flare=float(rng.uniform(0.95, 1.25) if coat else rng.uniform(*wardrobe.hem)),
        upper_arm=arm[0],
        forearm=arm[1],
        thigh=thigh,
        shin=shin,
        leg_girth=float(rng.uniform(0.85, 1.3)) if wear == "trousers" else 0.9,
        skirt=skirt,
        skirt_end=float(rng.choice([0.36, 0.28, 0.14], p=(0.4, 0.4, 0.2))),
        skirt_flare=float(rng.uniform(1.05, 1.5)),
        head=cloth.head(skin, hair, style, hat, hat_colour),
        skin=skin[None, None],
        hair=hair[None, None],
        hair_style=style,
        brim=hat_colour[None, None] * 0.8 if hat in ("cap", "straw") else None,
        wide_brim=hat == "straw",
        shoe=flat(_SHOES[pick(rng, _SHOE_SHARE)], rng)[None, None],
        bag=bag,
        bag_texture=cloth.bag(bag_colour),
        stride=float(rng.uniform(0.25, 0.5)) * (wardrobe.walk if coat or skirt is not None else 1),
        hand=skin[None, None],
    )
    extras = _extras(rng, wardrobe, person, man=not woman, bare_shins=wear != "trousers")
    if top == "hoodie" and hat != "hood":
        extras["hood"] = first[None, None] * 0.92
    return replace(person, **extras)


def _extras(
    rng: np.random.Generator, wardrobe: Wardrobe, person: Person, *, man: bool, bare_shins: bool
) -> dict[str, Any]:
    """What some people have besides, by the field of Person that it changes."""
    scarf, gloves, boots, socks, glasses, beard, umbrella = rng.random(7)
    scarf_colour, glove_colour, canopy, panel = (_cloth(rng, wardrobe) for _ in range(4))
    boot = flat(_SHOES[pick(rng, _BOOT_SHARE)], rng)
    extras: dict[str, Any] = {
        "head": cloth.face(
            person.head,
            person.hair[0, 0],
            glasses=glasses < wardrobe.glasses,
            beard=man and beard < wardrobe.beard,
        )
    }
    if scarf < wardrobe.scarf:
        extras["scarf"] = cloth.scarf(scarf_colour, panel)
    if gloves < wardrobe.gloves:
        extras["hand"] = glove_colour[None, None]
    if boots < wardrobe.boots:
        extras["shin"] = cloth.end_of(person.shin, boot, 0.6)
        extras["shoe"] = boot[None, None]
    elif bare_shins and socks < wardrobe.socks:
        extras["shin"] = cloth.end_of(person.shin, boot, 0.2 + 0.2 * socks)
    if umbrella < wardrobe.umbrella:
        plain = umbrella < 0.5 * wardrobe.umbrella
        extras["umbrella"] = cloth.umbrella(canopy, canopy if plain else panel)
    return extras


def _cloth(rng: np.random.Generator, wardrobe: Wardrobe, *, below: bool = False) -> Floats:
    """A colour of the palette, as often as people wear it, above the belt or below."""
    worn = {name: low if below else high for name, (_, high, low) in wardrobe.cloth.items()}
    return flat(wardrobe.cloth[pick(rng, worn)][0], rng, wardrobe.spread)
