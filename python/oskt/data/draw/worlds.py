"""The worlds that there are, all of it data, and the streams of random numbers of a data set."""

# ruff: noqa: C408  (name=weight reads better than "name": weight)

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oskt.data.draw.world import Crowd, Detector, Optics, Season, Sky, Wardrobe, World

_PLAIN = World(
    key=(),
    cameras=6,
    places=("street", "park", "plaza", "mall", "parking", "station"),
    seasons=(
        Season(
            Wardrobe(
                cloth={
                    "black": ((34, 34, 38), 0.11, 0.17),
                    "charcoal": ((84, 86, 92), 0.08, 0.12),
                    "white": ((222, 222, 218), 0.11, 0.10),
                    "navy": ((40, 50, 92), 0.09, 0.15),
                    "red": ((168, 44, 48), 0.11, 0.06),
                    "sand": ((186, 160, 122), 0.08, 0.11),
                    "olive": ((86, 96, 62), 0.08, 0.08),
                    "sky": ((112, 156, 200), 0.09, 0.10),
                    "rose": ((206, 132, 150), 0.07, 0.03),
                    "mustard": ((206, 160, 44), 0.07, 0.02),
                    "teal": ((34, 128, 124), 0.06, 0.03),
                    "plum": ((104, 48, 104), 0.05, 0.03),
                }
            )
        ),
    ),
)

# -- "a": every season, hour and light; crowded; many cameras that disagree -----------------------

_WINTER = Wardrobe(
    cloth={
        "black": ((30, 30, 34), 22, 34),
        "anthracite": ((62, 64, 70), 12, 18),
        "navy": ((34, 42, 72), 14, 20),
        "denim": ((66, 84, 118), 2, 16),
        "camel": ((168, 128, 84), 9, 4),
        "cream": ((216, 206, 184), 8, 3),
        "burgundy": ((112, 34, 48), 9, 2),
        "forest": ((44, 72, 54), 8, 2),
        "olive": ((94, 92, 58), 8, 3),
        "scarlet": ((186, 42, 40), 7, 0),
        "cobalt": ((42, 82, 158), 5, 0),
        "silver": ((158, 162, 170), 7, 5),
        "pink": ((204, 128, 148), 4, 0),
        "mustard": ((196, 148, 44), 4, 0),
    },
    spread=11,
    tops=dict(puffer=34, coat=32, zip=14, open=14, hoodie=6),
    patterns=dict(plain=46, yoke=14, checks=9, bar=9, stripes=5, sides=8, logo=4, halves=5),
    women=dict(trousers=86, skirt=14),
    men=dict(trousers=100),
    hats=dict(none=44, beanie=30, hood=18, cap=8),
    bags=dict(none=38, backpack=28, shoulder=20, hand=8, trolley=6),
    bulk=1.15,
    tights=0.95,
    walk=0.62,
    hem=(1.0, 1.12),
    scarf=0.45,
    gloves=0.4,
    boots=0.35,
    glasses=0.14,
    beard=0.2,
    umbrella=0.3,
)
_AUTUMN = Wardrobe(
    cloth={
        "black": ((36, 35, 38), 16, 28),
        "slate": ((88, 94, 104), 10, 12),
        "navy": ((40, 50, 84), 12, 16),
        "denim": ((76, 98, 138), 6, 24),
        "rust": ((166, 82, 42), 8, 2),
        "ochre": ((192, 146, 62), 8, 1),
        "khaki": ((150, 136, 98), 9, 10),
        "olive": ((88, 96, 58), 8, 4),
        "wine": ((120, 42, 58), 8, 2),
        "ivory": ((220, 212, 194), 9, 4),
        "raincoat": ((222, 190, 42), 5, 0),
        "petrol": ((32, 96, 110), 7, 1),
        "mauve": ((150, 114, 146), 5, 1),
    },
    spread=13,
    tops=dict(open=28, zip=22, coat=20, hoodie=18, shirt=12),
    patterns=dict(
        plain=32, stripes=9, checks=13, yoke=9, bar=8, logo=8, print=6, halves=5, sides=6, dots=4
    ),
    women=dict(trousers=72, skirt=18, dress=10),
    men=dict(trousers=96, shorts=4),
    hats=dict(none=66, cap=12, beanie=10, hood=12),
    bags=dict(none=32, backpack=32, shoulder=22, hand=9, trolley=5),
    bulk=1.04,
    tights=0.75,
    walk=0.62,
    hem=(0.95, 1.06),
    scarf=0.16,
    boots=0.2,
    glasses=0.16,
    beard=0.2,
    umbrella=0.75,
)
_SUMMER = Wardrobe(
    cloth={
        "black": ((38, 38, 42), 13, 20),
        "white": ((226, 226, 222), 18, 10),
        "grey": ((140, 144, 150), 11, 10),
        "denim": ((84, 112, 158), 4, 22),
        "navy": ((42, 54, 98), 9, 14),
        "beige": ((200, 180, 146), 7, 12),
        "red": ((190, 48, 50), 9, 3),
        "coral": ((224, 126, 100), 7, 2),
        "yellow": ((226, 190, 70), 6, 1),
        "lime": ((142, 178, 66), 5, 1),
        "green": ((48, 124, 80), 6, 2),
        "turquoise": ((64, 168, 170), 6, 1),
        "violet": ((124, 82, 152), 5, 1),
    },
    tops=dict(tee=58, vest=12, shirt=14, open=12, zip=4),
    patterns=dict(
        plain=26, stripes=13, pinstripes=4, checks=9, fade=6, yoke=8, logo=14, bar=7, print=8,
        halves=3, dots=6, sash=4,
    ),
    women=dict(trousers=34, shorts=28, skirt=20, dress=18),
    men=dict(trousers=50, shorts=50),
    hats=dict(none=72, cap=18, straw=10),
    bags=dict(none=38, backpack=26, shoulder=24, hand=8, trolley=4),
    hem=(0.92, 1.06),
    tights=0.08,
    walk=0.62,
    socks=0.5,
    glasses=0.34,
    beard=0.16,
)  # fmt: skip
_A = World(
    key=(1001,),
    cameras=10,
    places=(
        "street", "park", "mall", "crossing", "parking", "station", "market", "plaza", "hall",
        "bridge",
    ),
    seasons=(
        Season(
            _WINTER,
            skies=(
                Sky(tint=(0.90, 0.95, 1.06), haze=0.2),
                Sky(tint=(1.08, 0.99, 0.86)),
                Sky(tint=(0.70, 0.74, 0.90), haze=0.12),
                Sky(tint=(0.92, 0.96, 1.02), haze=0.24, fall="snow"),
            ),
            wither=(0.5, -0.4, 0.5),
            bare=True,
            snow=0.75,
        ),
        Season(
            _AUTUMN,
            skies=(
                Sky(tint=(0.86, 0.92, 0.98), haze=0.2, fall="rain"),
                Sky(tint=(0.86, 0.76, 0.64), haze=0.1),
                Sky(tint=(1.10, 0.98, 0.80), haze=-0.05),
                Sky(tint=(0.94, 0.96, 1.0), haze=0.16),
            ),
            wither=(1.4, -0.5, -0.3),
        ),
        Season(
            _SUMMER,
            skies=(
                Sky(tint=(1.12, 1.10, 1.04), haze=-0.16),
                Sky(tint=(1.14, 1.0, 0.80), haze=-0.08),
                Sky(tint=(1.0, 1.02, 1.03)),
                Sky(tint=(0.84, 0.76, 0.82), haze=0.1),
            ),
        ),
    ),
    optics=Optics(
        azimuth=(-1.5, 1.5),
        elevation=(0.3, 1.2),
        warm=(-0.12, 0.12),
        green=(-0.05, 0.05),
        exposure=(0.86, 1.2),
        pitch=(0.02, 0.42),
        gamma=(0.78, 1.15),
        contrast=(0.76, 1.16),
        saturation=(0.55, 1.15),
        sharpness=(0.55, 1.3),
        noise=(1, 4.5),
        quality=(50, 92),
        lift=(-8, 12),
        mood=(0.88, 1.12),
        shake=0.14,
    ),
    detector=Detector(size=(0.93, 0.04), shift=0.03, bad=0.1),
    crowd=Crowd(behind=0.2, front=0.07, more=0.5, things=0.24),
    colour=0.5,
    grey=0.36,
    plaster=(18.0, 18.0, 19.0),
)  # fmt: skip

# -- "b": a campus in summer; six cameras with a cool, flat response; tight boxes -----------------

_CAMPUS = Wardrobe(
    cloth={
        "white": ((232, 232, 228), 24, 10),
        "black": ((44, 44, 50), 12, 24),
        "denim": ((92, 116, 156), 4, 26),
        "ash": ((164, 166, 168), 10, 9),
        "azure": ((126, 172, 214), 10, 4),
        "blush": ((232, 176, 184), 9, 4),
        "lemon": ((236, 218, 124), 6, 2),
        "mint": ((156, 208, 176), 6, 2),
        "orange": ((228, 128, 56), 6, 1),
        "crimson": ((188, 42, 66), 7, 3),
        "indigo": ((62, 66, 132), 6, 8),
        "khaki": ((176, 164, 128), 5, 12),
    },
    skin=dict(pale=0.46, light=0.4, tan=0.1, brown=0.03, dark=0.01),
    hair=dict(black=0.74, brown=0.18, chestnut=0.04, blond=0.01, grey=0.03),
    spread=12,
    tops=dict(tee=64, vest=8, shirt=18, open=10),
    patterns=dict(
        plain=27,
        stripes=15,
        pinstripes=3,
        checks=9,
        yoke=6,
        logo=17,
        bar=6,
        print=9,
        dots=5,
        sash=3,
    ),
    women=dict(trousers=28, shorts=30, skirt=22, dress=20),
    men=dict(trousers=42, shorts=58),
    hats=dict(none=86, cap=10, straw=4),
    bags=dict(none=34, backpack=40, shoulder=18, hand=8),
    hem=(0.94, 1.08),
    tights=0.15,
    walk=0.62,
    socks=0.4,
    glasses=0.28,
    beard=0.03,
    umbrella=0.0,
)
_B = World(
    key=(1002,),
    cameras=6,
    places=("bikes", "shopfront", "lawn", "bricks", "steps", "fence"),
    seasons=(
        Season(
            _CAMPUS,
            skies=(
                Sky(tint=(1.06, 1.03, 0.96), haze=-0.1),
                Sky(tint=(0.98, 1.0, 1.02), haze=0.1),
            ),
            leaves=(70, 125, (-24, 22, -40)),
        ),
    ),
    optics=Optics(
        azimuth=(-0.8, 0.8),
        elevation=(0.8, 1.3),
        warm=(-0.09, -0.01),
        green=(0.0, 0.05),
        exposure=(1.0, 1.12),
        pitch=(0.06, 0.2),
        gamma=(0.8, 0.95),
        contrast=(0.72, 0.88),
        saturation=(0.6, 0.85),
        sharpness=(0.55, 0.85),
        noise=(1.5, 3),
        quality=(70, 92),
        lift=(0, 9),
    ),
    detector=Detector(size=(1.0, 0.03), shift=0.02, bad=0.06, bad_size=(0.9, 1.35)),
    crowd=Crowd(behind=0.05, front=0.015, more=0.03, things=0.04),
    colour=0.55,
    grey=0.3,
    plaster=(30.0, 29.0, 22.0),
)  # fmt: skip

# -- "c": two cameras over one indoor passage; saturated, dark and hard; coarse boxes -------------

_PASSAGE = Wardrobe(
    cloth={
        "black": ((28, 28, 32), 24, 30),
        "denim": ((52, 70, 112), 5, 30),
        "steel": ((108, 116, 128), 9, 9),
        "white": ((216, 218, 222), 13, 4),
        "navy": ((32, 40, 80), 11, 12),
        "purple": ((98, 54, 124), 7, 1),
        "red": ((176, 34, 44), 9, 2),
        "royal": ((44, 78, 172), 7, 2),
        "jade": ((40, 128, 96), 5, 1),
        "brown": ((98, 70, 50), 6, 6),
        "pink": ((214, 112, 148), 5, 1),
        "stone": ((148, 138, 118), 6, 8),
    },
    skin=dict(pale=0.4, light=0.44, tan=0.12, brown=0.03, dark=0.01),
    hair=dict(black=0.84, brown=0.12, chestnut=0.02, blond=0.0, grey=0.02),
    spread=10,
    tops=dict(zip=26, hoodie=20, open=20, shirt=16, tee=18),
    patterns=dict(
        plain=32, stripes=11, checks=13, yoke=9, logo=10, bar=8, print=7, halves=4, sides=6
    ),
    women=dict(trousers=78, shorts=6, skirt=10, dress=6),
    men=dict(trousers=92, shorts=8),
    hats=dict(none=91, cap=6, hood=3),
    bags=dict(none=26, backpack=44, shoulder=20, hand=10),
    hem=(0.95, 1.1),
    walk=0.62,
    glasses=0.36,
    beard=0.03,
)
_C = World(
    key=(1003,),
    cameras=2,
    places=("corridor", "foyer"),
    seasons=(Season(_PASSAGE),),
    optics=Optics(
        azimuth=(-0.5, 0.5),
        elevation=(1.0, 1.4),
        warm=(0.0, 0.08),
        green=(-0.07, -0.03),
        exposure=(0.88, 1.04),
        pitch=(0.3, 0.46),
        ambient=(0.62, 0.76),
        gamma=(1.1, 1.3),
        contrast=(1.05, 1.2),
        saturation=(0.95, 1.15),
        sharpness=(0.7, 1.0),
        noise=(4, 6.5),
        quality=(45, 70),
        lift=(2, 12),
        mood=(0.96, 1.04),
    ),
    detector=Detector(size=(0.86, 0.07), shift=0.06, bad=0.2, bad_shift=0.2),
    crowd=Crowd(behind=0.1, front=0.03, more=0.1, things=0.03),
    colour=0.4,
    grey=0.4,
    plaster=(30.0, 25.0, 33.0),
)

WORLDS = {"plain": _PLAIN, "a": _A, "b": _B, "c": _C}


@dataclass(frozen=True)
class Scene:
    """The data set's constants that a picture needs."""

    seed: int
    height: int
    width: int
    world: str = "plain"

    @property
    def town(self) -> World:
        return WORLDS[self.world]

    def stream(self, *purpose: int) -> np.random.Generator:
        """The random numbers for one purpose; worlds share none."""
        return np.random.default_rng([self.seed, *self.town.key, *purpose])
