"""The two looks of the streets world: every parameter of the domain gap, in one table.

`SIM` is the labelled source, `REAL` the target.  They differ in three ways: each class's colour
and texture moves by its own fixed amount (`class_shift`, `texture_shift`), the whole picture
changes (light, cast, haze, blur, noise), and other things stand in other places.
Grey levels are 0..255, lengths are metres, frequencies are expected counts per scene.
"""

from dataclasses import dataclass

import numpy as np

from spcl.data.labels import IGNORE_INDEX, NUM_CLASSES

# trainIds by name; the order is the table's in `spcl.data.labels`.
(
    ROAD,
    SIDEWALK,
    BUILDING,
    WALL,
    FENCE,
    POLE,
    LIGHT,
    SIGN,
    VEGETATION,
    TERRAIN,
    SKY,
    PERSON,
    RIDER,
    CAR,
    TRUCK,
    BUS,
    TRAIN,
    MOTORCYCLE,
    BICYCLE,
) = range(NUM_CLASSES)
VOID = IGNORE_INDEX

DOMAINS = ("sim", "real")
SPLITS = ("train", "val")

Range = tuple[float, float]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class District:
    """What lines a street: weights of the structures along it, and its ground."""

    building: float
    wall: float
    fence: float
    hedge: float
    open: float
    grass: float  # probability that the ground beyond the sidewalk is terrain
    building_height: Range


DISTRICTS: dict[str, District] = {
    "centre": District(8.0, 0.6, 0.5, 0.5, 0.6, grass=0.15, building_height=(8.0, 18.0)),
    "suburb": District(2.2, 0.8, 1.6, 2.2, 1.8, grass=0.85, building_height=(4.5, 8.0)),
    "arterial": District(2.0, 2.4, 1.4, 1.2, 2.2, grass=0.6, building_height=(5.0, 12.0)),
}


@dataclass(frozen=True)
class Look:
    """One domain."""

    # The class-conditional gap.
    class_shift: float  # sigma of a class's colour offset, grey levels per channel
    texture: float  # factor on every class's texture
    texture_shift: float  # sigma of the log of a class's own texture factor
    # The global gap.
    gain: Colour  # factor per channel: light and colour cast
    contrast: float  # factor about mid-grey
    saturation: float
    haze: float  # per metre; what is seen through d metres keeps exp(-haze * d)
    haze_colour: Colour
    blur: float  # sigma, in image heights
    noise: float  # sigma of sensor noise, grey levels
    vignette: float  # darkening in the corners, 0..1
    shadow: float  # darkening on the shady side of the street, 0..1
    exposure: float  # sigma of the log of a scene's light
    instance: float  # sigma of an instance's colour, grey levels
    # The camera.
    camera_height: Range
    focal: Range  # image heights
    horizon: Range  # from the top, image heights
    hood: float  # probability that the camera's own car is seen
    # The streets.
    districts: tuple[float, float, float]  # probabilities in the order of DISTRICTS
    junction: float  # probability
    parking: float  # probability that a slot at the kerb is taken
    # Who and what is there, expected counts.
    cars: float
    trucks: float
    buses: float
    trains: float
    people: float
    cyclists: float
    motorcyclists: float
    bicycles: float  # parked
    motorcycles: float  # parked
    trees: float
    lamps: float
    lights: float
    signs: float
    bins: float


SIM = Look(
    class_shift=0.0,
    texture=0.8,
    texture_shift=0.0,
    gain=(1.04, 1.0, 0.95),
    contrast=1.08,
    saturation=1.15,
    haze=0.004,
    haze_colour=(205, 215, 228),
    blur=0.0,
    noise=2.0,
    vignette=0.0,
    shadow=0.35,
    exposure=0.08,
    instance=10.0,
    camera_height=(1.3, 1.9),
    focal=(1.45, 1.75),
    horizon=(0.40, 0.50),
    hood=0.25,
    districts=(0.4, 0.25, 0.35),
    junction=0.35,
    parking=0.25,
    cars=2.6,
    trucks=0.28,
    buses=0.20,
    trains=0.12,
    people=2.6,
    cyclists=0.24,
    motorcyclists=0.20,
    bicycles=0.25,
    motorcycles=0.14,
    trees=2.6,
    lamps=2.2,
    lights=1.0,
    signs=1.2,
    bins=0.5,
)

REAL = Look(
    class_shift=32.0,
    texture=1.1,
    texture_shift=0.4,
    gain=(0.90, 0.97, 0.98),
    contrast=0.92,
    saturation=0.85,
    haze=0.010,
    haze_colour=(200, 204, 202),
    blur=0.008,
    noise=5.0,
    vignette=0.18,
    shadow=0.25,
    exposure=0.12,
    instance=14.0,
    camera_height=(1.2, 1.35),
    focal=(1.75, 2.0),
    horizon=(0.38, 0.46),
    hood=1.0,
    districts=(0.6, 0.3, 0.1),
    junction=0.45,
    parking=0.5,
    cars=2.8,
    trucks=0.24,
    buses=0.22,
    trains=0.14,
    people=4.2,
    cyclists=0.50,
    motorcyclists=0.18,
    bicycles=0.7,
    motorcycles=0.18,
    trees=4.2,
    lamps=1.8,
    lights=1.3,
    signs=1.9,
    bins=0.6,
)

LOOKS: dict[str, Look] = {"sim": SIM, "real": REAL}

# Colours before any shift; things of different classes share pools, so colour alone does not tell.
_METAL = ((95, 97, 100), (140, 142, 145), (70, 75, 72))
_BODY = (
    (205, 206, 210),
    (45, 47, 52),
    (122, 124, 130),
    (150, 32, 35),
    (38, 66, 132),
    (228, 228, 224),
    (74, 92, 74),
    (186, 160, 96),
)
COLOURS: dict[str, tuple[Colour, ...]] = {
    "road": ((96, 96, 100), (84, 84, 90), (110, 107, 104)),
    "sidewalk": ((150, 146, 142), (132, 130, 130), (164, 152, 142)),
    "terrain": ((110, 124, 66), (126, 116, 72), (92, 116, 60)),
    "sky": ((128, 168, 216), (168, 190, 214), (188, 194, 202)),
    "building": (
        (158, 138, 120),
        (182, 172, 158),
        (126, 86, 70),
        (196, 186, 168),
        (112, 116, 124),
        (168, 148, 104),
    ),
    "wall": ((142, 132, 122), (158, 152, 146), (128, 98, 84)),
    "fence": ((118, 96, 76), (176, 174, 168), (74, 84, 80)),
    "vegetation": ((62, 94, 44), (80, 108, 50), (52, 80, 48), (98, 112, 54)),
    "trunk": ((84, 68, 54),),
    "pole": _METAL,
    "signal": ((42, 44, 46), (62, 64, 58)),
    "sign": ((208, 44, 44), (44, 84, 178), (226, 224, 218), (222, 186, 46)),
    "bin": _METAL,
    "car": _BODY,
    "truck": _BODY,
    "bus": ((196, 50, 46), (222, 178, 54), (62, 108, 164), (218, 216, 210), (74, 92, 74)),
    "train": ((186, 46, 48), (66, 104, 82), (214, 208, 192), (48, 76, 130)),
    "cycle": ((46, 48, 52), (110, 34, 38), (52, 74, 112), (120, 122, 124)),
    "cloth": (
        (44, 48, 62),
        (122, 40, 44),
        (196, 190, 180),
        (62, 84, 122),
        (96, 92, 84),
        (150, 118, 66),
        (58, 92, 72),
    ),
    "skin": ((206, 164, 136), (150, 108, 82), (100, 72, 56)),
}

# Texture per class: sigma in grey levels at the scale of a pixel, of 1/16 and of 1/4 of the height.
TEXTURE = np.zeros((256, 3), np.float32)
TEXTURE[:NUM_CLASSES] = (
    (4, 3, 5),  # road
    (6, 5, 4),  # sidewalk
    (4, 6, 5),  # building
    (7, 8, 4),  # wall
    (9, 4, 2),  # fence
    (4, 2, 2),  # pole
    (4, 2, 2),  # traffic light
    (4, 2, 2),  # traffic sign
    (14, 11, 6),  # vegetation
    (10, 8, 6),  # terrain
    (1, 3, 10),  # sky
    (6, 5, 2),  # person
    (6, 5, 2),  # rider
    (3, 4, 4),  # car
    (3, 4, 4),  # truck
    (3, 4, 4),  # bus
    (3, 4, 4),  # train
    (7, 4, 2),  # motorcycle
    (7, 4, 2),  # bicycle
)

_CLASS_STREAM = 1  # keeps these draws apart from any scene's
_LUMA_PART = 0.5  # share of a class offset's variance that all three channels have in common
_OFFSET_LIMIT = 2.0  # sigmas; a larger draw would leave 0..255


def class_offsets(world: int, domain: str) -> tuple[np.ndarray, np.ndarray]:
    """What is fixed for a class in one world and domain.

    Returns colour offsets (256, 3) in grey levels, with mean zero over the classes so that they
    say nothing about the picture as a whole, and texture sigmas (256, 3) in grey levels.
    """
    look = LOOKS[domain]
    rng = np.random.default_rng([world, _CLASS_STREAM, DOMAINS.index(domain)])
    luma = rng.standard_normal((NUM_CLASSES, 1))
    chroma = rng.standard_normal((NUM_CLASSES, 3))
    unit = np.sqrt(_LUMA_PART) * luma + np.sqrt(1 - _LUMA_PART) * chroma
    unit = np.clip(unit, -_OFFSET_LIMIT, _OFFSET_LIMIT)
    offsets = np.zeros((256, 3), np.float32)
    offsets[:NUM_CLASSES] = look.class_shift * (unit - unit.mean(0))
    textures = look.texture * TEXTURE
    textures[:NUM_CLASSES] *= np.exp(look.texture_shift * rng.standard_normal((NUM_CLASSES, 3)))
    return offsets, textures.astype(np.float32)
