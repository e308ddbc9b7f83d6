"""What stands where: one street scene as a list of things in metres.

The camera looks along +z at (0, height, 0); x is to the right, y up, the ground is y = 0.
Nothing here knows about pixels, so a scene is the same at every image size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from spcl.data.streets.domains import (
    COLOURS,
    DISTRICTS,
    ROAD,
    SIDEWALK,
    TERRAIN,
    Colour,
    District,
    Look,
    Range,
)

NEAR = 1.0  # m, where drawing begins
FAR = 2000.0  # m, where the ground ends, under the horizon
STREET_END = 90.0  # m, the last structure along the street
LANE = 3.3
PARKING_LANE = 2.2
SLOT = 6.2  # a parking slot's length
NEAREST_ACTOR, FARTHEST_ACTOR = 6.0, 48.0  # z of things on the street; further ones are specks
HEADWAY = 2.5  # least gap between two vehicles

# kind -> (width, height, length) in metres.
SIZES: dict[str, tuple[float, float, float]] = {
    "car": (1.8, 1.5, 4.3),
    "truck": (2.4, 3.3, 7.5),
    "bus": (2.5, 3.1, 11.0),
    "train": (2.6, 3.5, 26.0),
    "person": (0.55, 1.72, 0.4),
    "bicycle": (1.75, 1.05, 0.5),
    "motorcycle": (2.1, 1.15, 0.6),
    "cyclist": (1.75, 1.75, 0.5),
    "motorcyclist": (2.1, 1.65, 0.6),
    "bin": (0.6, 1.1, 0.6),
    "lamp": (0.16, 6.5, 0.2),
    "light": (0.14, 3.4, 0.2),
    "sign": (0.11, 2.7, 0.2),
    "tree": (3.6, 6.0, 3.0),
}
SIZE_SPREAD = 0.06  # relative sigma of an instance's size


@dataclass(frozen=True)
class Camera:
    """height in metres; focal and horizon in image heights; vanish in image widths."""

    height: float
    focal: float
    horizon: float
    vanish: float


@dataclass(frozen=True)
class Ground:
    """A rectangle on the ground: [x0, x1] by [z0, z1] metres, of one class."""

    class_id: int
    x0: float
    x1: float
    z0: float
    z1: float
    colour: Colour


@dataclass(frozen=True)
class Thing:
    """Something upright whose near end stands on the ground at (x, z).

    width is its extent along x about x, length along +z; `style` holds uniform numbers for the
    renderer's choices; `across` says that it points along x.
    """

    kind: str
    x: float
    z: float
    width: float
    height: float
    length: float
    colour: Colour
    style: tuple[float, ...]
    across: bool = False


@dataclass(frozen=True)
class Scene:
    """One scene; things come in the order in which they are painted, far ones first.

    shade_edge  x where the shadow of the houses ends; shade_side is the side it covers (-1 or 1)
    hood        height of the own car's hood in image heights, 0 where it is not seen
    light       factor on all colours
    """

    camera: Camera
    sky: Colour
    ground: tuple[Ground, ...]
    things: tuple[Thing, ...]
    shade_side: int
    shade_edge: float
    hood: float
    light: float


@dataclass
class _Builder:
    """Collects a scene; every draw comes from one generator, in one order."""

    rng: np.random.Generator
    look: Look
    ground: list[Ground] = field(default_factory=list)
    structures: list[Thing] = field(default_factory=list)
    actors: list[Thing] = field(default_factory=list)
    occupied: list[tuple[float, float, float, float]] = field(default_factory=list)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def between(self, limits: Range) -> float:
        return self.uniform(*limits)

    def happens(self, probability: float) -> bool:
        return self.rng.random() < probability

    def side(self) -> int:
        return 1 if self.happens(0.5) else -1

    def count(self, expected: float) -> int:
        return int(self.rng.poisson(expected))

    def choose(self, weights: Sequence[float]) -> int:
        """An index, in proportion to its weight."""
        mark = self.rng.random() * sum(weights)
        for index, weight in enumerate(weights):
            mark -= weight
            if mark < 0:
                return index
        return len(weights) - 1

    def colour(self, pool: str) -> Colour:
        """A colour of the pool, moved by the instance's own offset."""
        base = COLOURS[pool][int(self.rng.random() * len(COLOURS[pool]))]
        r, g, b = self.rng.normal(0.0, self.look.instance, 3)
        return (base[0] + r, base[1] + g, base[2] + b)

    def depth(self, near: float = NEAREST_ACTOR, far: float = FARTHEST_ACTOR) -> float:
        """Log-uniform: as many things near, where they are seen, as far."""
        return near * (far / near) ** self.rng.random()

    def thing(self, kind: str, x: float, z: float, pool: str, across: bool = False) -> Thing:
        scale = 1.0 + SIZE_SPREAD * float(np.clip(self.rng.standard_normal(), -2, 2))
        width, height, length = (scale * s for s in SIZES[kind])
        if across:
            width, length = length, width
        style = tuple(self.rng.random(4).tolist())
        return Thing(kind, x, z, width, height, length, self.colour(pool), style, across)

    def place(self, thing: Thing) -> bool:
        """Put a vehicle on the street unless another is in its way."""
        x0, x1 = thing.x - thing.width / 2, thing.x + thing.width / 2
        z0, z1 = thing.z - HEADWAY / 2, thing.z + thing.length + HEADWAY / 2
        for a0, a1, b0, b1 in self.occupied:
            if x0 < a1 and a0 < x1 and z0 < b1 and b0 < z1:
                return False
        self.occupied.append((x0, x1, z0, z1))
        self.actors.append(thing)
        return True


@dataclass(frozen=True)
class _Street:
    """The cross-section, in metres: kerbs, outer edges of the sidewalks, building lines."""

    left: float
    right: float
    walk_left: float
    walk_right: float
    lanes: tuple[tuple[float, bool], ...]  # (x, is it oncoming)
    parking: tuple[bool, bool]
    junction: tuple[float, float] | None  # z of a crossing street

    def kerb(self, side: int) -> float:
        return self.right if side > 0 else self.left

    def walk(self, side: int) -> float:
        return self.walk_right if side > 0 else self.walk_left


def compose(rng: np.random.Generator, look: Look) -> Scene:
    """Draw one scene of a look."""
    b = _Builder(rng, look)
    camera = Camera(
        height=b.between(look.camera_height),
        focal=b.between(look.focal),
        horizon=b.between(look.horizon),
        vanish=b.uniform(0.42, 0.58),
    )
    district = list(DISTRICTS.values())[b.choose(look.districts)]
    street = _street(b)
    _lay_ground(b, street, district)
    _line_horizon(b)
    for side in (-1, 1):
        _line_street(b, street, district, side)
    _drive(b, street)
    _park(b, street)
    _furnish(b, street)
    _walk(b, street)
    return Scene(
        camera=camera,
        sky=b.colour("sky"),
        ground=tuple(b.ground),
        things=(*_far_first(b.structures), *_far_first(b.actors)),
        shade_side=b.side(),
        shade_edge=b.uniform(-7.0, 7.0),
        hood=b.uniform(0.045, 0.06) if b.happens(look.hood) else 0.0,
        light=math.exp(look.exposure * float(np.clip(rng.standard_normal(), -2, 2))),
    )


def _far_first(things: list[Thing]) -> list[Thing]:
    """Painter's order; at equal depth the outer one first, as the inner hides it."""
    return sorted(things, key=lambda t: (-t.z, -abs(t.x)))


def _street(b: _Builder) -> _Street:
    own = b.uniform(-0.4, 0.4)  # the own lane's middle, seen from the camera
    more_right, more_left = b.choose((3, 1)), 1 + b.choose((3, 1))
    parking = (b.happens(0.6), b.happens(0.6))
    right = own + LANE * (0.5 + more_right) + PARKING_LANE * parking[1]
    left = own - LANE * (0.5 + more_left) - PARKING_LANE * parking[0]
    lanes = [(own + LANE * n, False) for n in range(more_right + 1)]
    lanes += [(own - LANE * (n + 1), True) for n in range(more_left)]
    start = b.uniform(11.0, 40.0)
    junction = (start, start + b.uniform(7.0, 12.0)) if b.happens(b.look.junction) else None
    return _Street(
        left=left,
        right=right,
        walk_left=left - b.uniform(1.8, 4.2),
        walk_right=right + b.uniform(1.8, 4.2),
        lanes=tuple(lanes),
        parking=parking,
        junction=junction,
    )


def _lay_ground(b: _Builder, s: _Street, district: District) -> None:
    """Ground from wide to narrow: what is beyond, sidewalks, verges, road, markings."""
    edge = 200.0
    walk, road = b.colour("sidewalk"), b.colour("road")
    for side in (-1, 1):
        x0, x1 = sorted((s.walk(side), side * edge))
        if b.happens(district.grass):
            b.ground.append(Ground(TERRAIN, x0, x1, NEAR, FAR, b.colour("terrain")))
        else:
            b.ground.append(Ground(SIDEWALK, x0, x1, NEAR, FAR, walk))
    b.ground.append(Ground(SIDEWALK, s.walk_left, s.walk_right, NEAR, FAR, walk))
    for side in (-1, 1):
        if b.happens(0.4 * district.grass + 0.1):  # a verge between kerb and sidewalk
            x0, x1 = sorted((s.kerb(side), s.kerb(side) + side * b.uniform(0.8, 1.6)))
            b.ground.append(Ground(TERRAIN, x0, x1, NEAR, FAR, b.colour("terrain")))
    b.ground.append(Ground(ROAD, s.left, s.right, NEAR, FAR, road))
    kerb = tuple(1.18 * c for c in walk)
    for side in (-1, 1):
        x0, x1 = sorted((s.kerb(side), s.kerb(side) + side * 0.18))
        b.ground.append(Ground(SIDEWALK, x0, x1, NEAR, FAR, kerb))
    if s.junction:
        b.ground.append(Ground(ROAD, -edge, edge, *s.junction, road))
    _mark_road(b, s, road)


def _mark_road(b: _Builder, s: _Street, road: Colour) -> None:
    """A dashed line between lanes, and stripes before a junction: paint, so still road."""
    paint = tuple(min(235.0, c + 105.0) for c in road)
    phase = b.uniform(0.0, 6.0)
    for x, oncoming in s.lanes:
        line = x + LANE / 2 if oncoming else x - LANE / 2
        for n in range(8):
            z = NEAR + phase + 6.0 * n
            if not (s.junction and s.junction[0] - 3.0 < z + 3.0 and z < s.junction[1]):
                b.ground.append(Ground(ROAD, line - 0.07, line + 0.07, z, z + 3.0, paint))
    if s.junction and b.happens(0.6):
        z = s.junction[0] - 3.2
        for n in range(int((s.right - s.left) / 1.1)):
            x = s.left + 0.3 + 1.1 * n
            b.ground.append(Ground(ROAD, x, x + 0.55, z, z + 2.6, paint))


def _line_horizon(b: _Builder) -> None:
    """Houses and trees at the end of the street, so that the ground never meets the bare sky."""
    x = -75.0
    while x < 75.0:
        width = b.uniform(9.0, 22.0)
        z = STREET_END + b.uniform(2.0, 20.0)
        if b.happens(0.55):
            b.structures.append(
                _structure(b, "building", x + width / 2, z, width, b.uniform(6.0, 15.0), 10.0)
            )
        else:
            height = b.uniform(4.0, 10.0)
            b.structures.append(_structure(b, "hedge", x + width / 2, z, width, height, 4.0))
        x += width * b.uniform(0.7, 1.0)


def _structure(
    b: _Builder, kind: str, x: float, z: float, width: float, height: float, length: float
) -> Thing:
    pool = {"hedge": "vegetation"}.get(kind, kind)
    style = tuple(b.rng.random(4).tolist())
    return Thing(kind, x, z, width, height, length, b.colour(pool), style)


def _line_street(b: _Builder, s: _Street, district: District, side: int) -> None:
    """Structures along one side, from the camera to the street's end, leaving junctions open."""
    kinds = ("building", "wall", "fence", "hedge", "open")
    weights = tuple(getattr(district, kind) for kind in kinds)
    setback = b.uniform(0.0, 4.0) * (0.4 + district.grass)
    line = abs(s.walk(side)) + setback
    z = b.uniform(0.5, 3.0) + NEAR
    while z < STREET_END:
        length = b.uniform(7.0, 15.0)
        if s.junction and z + length > s.junction[0] and z < s.junction[1]:
            length = s.junction[0] - z
            if length < 2.0:
                z = s.junction[1] + 0.5
                continue
        _fill(b, kinds[b.choose(weights)], side, line, z, length, district)
        z += length
        if s.junction and abs(z - s.junction[0]) < 1e-6:
            z = s.junction[1] + 0.5


def _fill(
    b: _Builder, kind: str, side: int, line: float, z: float, length: float, district: District
) -> None:
    """One stretch of one side; low structures have something behind them."""
    if kind == "building":
        depth = b.uniform(9.0, 14.0)
        height = b.between(district.building_height)
        gap = 0.0 if district.grass < 0.5 else b.uniform(0.0, 2.5)
        b.structures.append(
            _structure(b, kind, side * (line + depth / 2), z, depth, height, length - gap)
        )
        return
    heights = {"wall": (1.6, 3.4), "fence": (1.2, 2.1), "hedge": (1.0, 3.0)}
    if kind in heights:
        thickness = 1.2 if kind == "hedge" else 0.25
        x = side * (line + thickness / 2)
        b.structures.append(_structure(b, kind, x, z, thickness, b.between(heights[kind]), length))
    for _ in range(1 + b.choose((1, 1, 1))):
        x = side * (line + b.uniform(3.0, 9.0))
        b.structures.append(b.thing("tree", x, z + b.uniform(0.0, length), "vegetation"))
    if b.happens(0.5):
        depth = 10.0
        x = side * (line + b.uniform(9.0, 14.0) + depth / 2)
        height = b.between(district.building_height)
        b.structures.append(_structure(b, "building", x, z, depth, height, length))


def _drive(b: _Builder, s: _Street) -> None:
    """Traffic, largest first as it needs the most room."""
    look = b.look
    for kind, expected in (
        ("train", look.trains),
        ("bus", look.buses),
        ("truck", look.trucks),
        ("car", look.cars),
    ):
        for _ in range(b.count(expected)):
            _drive_one(b, s, kind)
    for kind, expected in (
        ("cyclist", look.cyclists),
        ("motorcyclist", look.motorcyclists),
    ):
        for _ in range(b.count(expected)):
            _ride_one(b, s, kind)


_TRIES = 4  # places tried for a vehicle before it is left out
_NEAREST = {"train": 9.0, "bus": 9.0, "truck": 9.0, "car": 7.0}


def _drive_one(b: _Builder, s: _Street, kind: str) -> None:
    for _ in range(_TRIES):
        if s.junction and b.happens(0.3):
            z = b.uniform(s.junction[0] + 0.5, s.junction[1] - 3.0)
            reach = 0.5 * z + SIZES[kind][2] / 2
            thing = b.thing(kind, b.uniform(-reach, reach), z, kind, across=True)
        else:
            x, oncoming = s.lanes[int(b.rng.random() * len(s.lanes))]
            if kind == "train":  # trams keep to the far side, clear of the own lane
                x, oncoming = s.lanes[-1]
            near = _NEAREST[kind] if oncoming else _NEAREST[kind] + 2.0
            thing = b.thing(kind, x + b.uniform(-0.3, 0.3), b.depth(near), kind)
        if b.place(thing):
            return


def _ride_one(b: _Builder, s: _Street, kind: str) -> None:
    """Riders keep to the kerb or cross; `width` is what is seen of a turned cycle's length."""
    for _ in range(_TRIES):
        thing = b.thing(kind, 0.0, b.depth(6.0, 26.0), "cycle")
        if b.happens(0.4):
            x, seen = b.uniform(s.left, s.right), 1.0
        else:
            side = b.side()
            x, seen = s.kerb(side) - side * b.uniform(0.5, 1.4), b.uniform(0.35, 0.7)
            if kind == "motorcyclist":
                x = s.lanes[int(b.rng.random() * len(s.lanes))][0] + b.uniform(-0.6, 0.6)
        if b.place(_moved(thing, x, seen)):
            return


def _moved(thing: Thing, x: float, seen: float) -> Thing:
    return Thing(
        thing.kind,
        x,
        thing.z,
        thing.width * seen,
        thing.height,
        thing.length,
        thing.colour,
        thing.style,
    )


def _park(b: _Builder, s: _Street) -> None:
    """Cars in the slots at the kerb, cycles on the sidewalks."""
    for side, has_lane in zip((-1, 1), s.parking, strict=True):
        x = s.kerb(side) - side * PARKING_LANE / 2
        z = b.uniform(3.0, 3.0 + SLOT)
        while has_lane and z < FARTHEST_ACTOR:
            crossing = s.junction and s.junction[0] - SLOT < z < s.junction[1] + 1.0
            if not crossing and b.happens(b.look.parking):
                b.place(b.thing("car", x + b.uniform(-0.15, 0.15), z, "car"))
            z += SLOT
    for kind, expected in (("bicycle", b.look.bicycles), ("motorcycle", b.look.motorcycles)):
        for _ in range(b.count(expected)):
            side = b.side()
            first = b.thing(kind, 0.0, b.depth(6.0, 26.0), "cycle")
            x = s.kerb(side) + side * b.uniform(0.5, 1.6)
            for n in range(1 + b.choose((2, 1, 1))):  # they stand in rows
                shift = side * 0.7 * n
                b.actors.append(_moved(first, x + shift, b.uniform(0.45, 1.0)))


def _furnish(b: _Builder, s: _Street) -> None:
    """Lamps, lights, signs, street trees and bins between kerb and sidewalk."""
    look = b.look
    for kind, expected, pool in (
        ("tree", look.trees, "vegetation"),
        ("lamp", look.lamps, "pole"),
        ("light", look.lights, "pole"),
        ("sign", look.signs, "pole"),
        ("bin", look.bins, "bin"),
    ):
        for _ in range(b.count(expected)):
            side = b.side()
            z = b.depth(7.0, 40.0)
            if kind == "light" and s.junction:
                z = s.junction[int(b.rng.random() * 2)] + b.uniform(-2.0, 0.0)
            x = s.kerb(side) + side * b.uniform(0.3, 0.9)
            b.actors.append(b.thing(kind, x, z, pool))


def _walk(b: _Builder, s: _Street) -> None:
    """People on the sidewalks, some in pairs, some on the road."""
    for _ in range(b.count(b.look.people)):
        z = b.depth(6.0, 35.0)
        if b.happens(0.2):
            x = b.uniform(s.left, s.right)
        else:
            side = b.side()
            x = b.uniform(*sorted((s.kerb(side) + side * 0.3, s.walk(side))))
        b.actors.append(b.thing("person", x, z, "cloth"))
        if b.happens(0.25):
            b.actors.append(b.thing("person", x + 0.6, z + 0.2, "cloth"))
