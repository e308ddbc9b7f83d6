"""What stands where: one street scene as a list of things in metres.

The camera looks along +z at (0, height, 0); x is to the right, y up, the ground is y = 0.
Nothing here knows about pixels, so a scene is the same at every image size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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
WIDE = 200.0  # m, where it ends to the left and the right


@dataclass(frozen=True)
class Plan:
    """How any street is built, in both domains: metres, and probabilities where it says so."""

    vanish: Range = (0.42, 0.58)  # image widths
    hood: Range = (0.025, 0.035)  # image heights
    shade_edge: Range = (-7.0, 7.0)
    # Across the street.
    lane: float = 3.3
    off_lane: float = 0.4  # the camera is at most so far from its lane's middle
    second_lane: float = 0.25  # probability, each way
    parking_lane: float = 2.2
    has_parking: float = 0.6  # probability, each side
    sidewalk: Range = (2.2, 5.0)
    kerb: float = 0.18
    verge: Range = (0.8, 1.6)
    verge_chance: Range = (0.1, 0.4)  # probability without grass, and what full grass adds
    junction_start: Range = (11.0, 40.0)
    junction_length: Range = (7.0, 12.0)
    corner: float = 0.5  # between a crossing street and the next structure
    # Paint on the road.
    dash: float = 3.0
    dash_every: float = 6.0
    dashes: int = 8
    dash_width: float = 0.14
    has_stripes: float = 0.6  # probability before a junction
    stripe: float = 0.55
    stripe_every: float = 1.1
    stripe_length: float = 2.6
    paint: float = 105.0  # grey levels above the road's
    # Along the street.
    end: float = 90.0
    stretch: Range = (7.0, 15.0)
    shortest: float = 2.0
    same_again: float = 0.45  # probability that the next stretch of a side is like the last
    setback: Range = (0.0, 4.0)
    house_depth: Range = (9.0, 14.0)
    house_gap: Range = (0.0, 2.5)
    wall_height: Range = (1.6, 3.4)
    fence_height: Range = (1.2, 2.1)
    hedge_height: Range = (1.0, 3.0)
    hedge_depth: float = 1.2
    wall_depth: float = 0.25
    tree_behind: Range = (3.0, 9.0)
    house_behind: Range = (9.0, 14.0)
    has_house_behind: float = 0.5  # probability
    # The end of the view.
    skyline: float = 75.0  # to the left and the right
    skyline_beyond: Range = (2.0, 20.0)
    skyline_width: Range = (9.0, 22.0)
    skyline_house: float = 0.55  # probability, else trees
    skyline_house_height: Range = (6.0, 15.0)
    skyline_tree_height: Range = (4.0, 10.0)
    # Who is there.
    tries: int = 4  # places tried for a vehicle before it is left out
    headway: float = 2.5  # least gap between two vehicles
    traffic: Range = (9.0, 48.0)  # z; what is further is a speck
    crossing: float = 0.3  # probability that a vehicle is on the crossing street, if there is one
    slot: float = 6.2  # a parking slot's length
    cycles: Range = (6.0, 26.0)  # z
    cycle_crossing: float = 0.4  # probability that a rider crosses
    cycle_from_kerb: Range = (0.5, 1.5)
    cycle_turned: Range = (0.35, 0.7)  # share of its length that is seen when it goes along
    cycle_row: float = 0.7  # between parked cycles
    furniture: Range = (7.0, 40.0)  # z
    furniture_from_kerb: Range = (0.3, 0.9)
    people: Range = (6.0, 35.0)  # z
    on_road: float = 0.2  # probability that somebody walks on the road
    in_pair: float = 0.25  # probability


PLAN = Plan()

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
TINT = 0.4  # spread of an instance's hue, as a share of the spread of its lightness
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
        light, *tint = self.rng.normal(0.0, self.look.instance, 4)
        return tuple(c + light + TINT * t for c, t in zip(base, tint, strict=True))

    def depth(self, near: float, far: float) -> float:
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
        z0, z1 = thing.z - PLAN.headway / 2, thing.z + thing.length + PLAN.headway / 2
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
        vanish=b.between(PLAN.vanish),
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
        shade_edge=b.between(PLAN.shade_edge),
        hood=b.between(PLAN.hood) if b.happens(look.hood) else 0.0,
        light=math.exp(look.exposure * float(np.clip(rng.standard_normal(), -2, 2))),
    )


def _far_first(things: list[Thing]) -> list[Thing]:
    """Painter's order; at equal depth the outer one first, as the inner hides it."""
    return sorted(things, key=lambda t: (-t.z, -abs(t.x)))


def _street(b: _Builder) -> _Street:
    own = b.uniform(-PLAN.off_lane, PLAN.off_lane)  # the own lane's middle, seen from the camera
    more_right, more_left = b.happens(PLAN.second_lane), 1 + b.happens(PLAN.second_lane)
    parking = (b.happens(PLAN.has_parking), b.happens(PLAN.has_parking))
    right = own + PLAN.lane * (0.5 + more_right) + PLAN.parking_lane * parking[1]
    left = own - PLAN.lane * (0.5 + more_left) - PLAN.parking_lane * parking[0]
    lanes = [(own + PLAN.lane * n, False) for n in range(more_right + 1)]
    lanes += [(own - PLAN.lane * (n + 1), True) for n in range(more_left)]
    start = b.between(PLAN.junction_start)
    end = start + b.between(PLAN.junction_length)
    return _Street(
        left=left,
        right=right,
        walk_left=left - b.between(PLAN.sidewalk),
        walk_right=right + b.between(PLAN.sidewalk),
        lanes=tuple(lanes),
        parking=parking,
        junction=(start, end) if b.happens(b.look.junction) else None,
    )


def _lay_ground(b: _Builder, s: _Street, district: District) -> None:
    """Ground from wide to narrow: what is beyond, sidewalks, verges, road, markings."""

    def strip(class_id: int, x0: float, x1: float, colour: Colour) -> None:
        b.ground.append(Ground(class_id, min(x0, x1), max(x0, x1), NEAR, FAR, colour))

    walk, road = b.colour("sidewalk"), b.colour("road")
    for side in (-1, 1):
        grass = b.happens(district.grass)
        class_id, colour = (TERRAIN, b.colour("terrain")) if grass else (SIDEWALK, walk)
        strip(class_id, s.walk(side), side * WIDE, colour)
    strip(SIDEWALK, s.walk_left, s.walk_right, walk)
    verge = PLAN.verge_chance[0] + PLAN.verge_chance[1] * district.grass
    for side in (-1, 1):
        if b.happens(verge):
            width = b.between(PLAN.verge)
            strip(TERRAIN, s.kerb(side), s.kerb(side) + side * width, b.colour("terrain"))
    strip(ROAD, s.left, s.right, road)
    for side in (-1, 1):
        kerb = tuple(1.18 * c for c in walk)  # lighter stone
        strip(SIDEWALK, s.kerb(side), s.kerb(side) + side * PLAN.kerb, kerb)
    if s.junction:
        b.ground.append(Ground(ROAD, -WIDE, WIDE, *s.junction, road))
    _mark_road(b, s, road)


def _mark_road(b: _Builder, s: _Street, road: Colour) -> None:
    """A dashed line between lanes, and stripes before a junction: paint, so still road."""
    paint = tuple(c + PLAN.paint for c in road)
    stripes = s.junction[0] - PLAN.stripe_length - PLAN.corner if s.junction else FAR
    phase = NEAR + b.uniform(0.0, PLAN.dash_every)
    half = PLAN.dash_width / 2
    for x, oncoming in s.lanes:
        line = x + PLAN.lane / 2 if oncoming else x - PLAN.lane / 2
        for n in range(PLAN.dashes):
            z0 = phase + PLAN.dash_every * n
            z1 = z0 + PLAN.dash
            if z1 < stripes or (s.junction and z0 > s.junction[1]):
                b.ground.append(Ground(ROAD, line - half, line + half, z0, z1, paint))
    if s.junction and b.happens(PLAN.has_stripes):
        for n in range(int((s.right - s.left) / PLAN.stripe_every)):
            x = s.left + PLAN.stripe_every * (n + 0.25)
            z = stripes + PLAN.stripe_length
            b.ground.append(Ground(ROAD, x, x + PLAN.stripe, stripes, z, paint))


def _line_horizon(b: _Builder) -> None:
    """Houses and trees at the end of the street, so that the ground never meets the bare sky."""
    x = -PLAN.skyline
    while x < PLAN.skyline:
        width = b.between(PLAN.skyline_width)
        z = PLAN.end + b.between(PLAN.skyline_beyond)
        house = b.happens(PLAN.skyline_house)
        height = b.between(PLAN.skyline_house_height if house else PLAN.skyline_tree_height)
        kind = "building" if house else "hedge"
        depth = PLAN.house_depth[0]
        b.structures.append(_structure(b, kind, x + width / 2, z, width, height, depth))
        x += width * b.uniform(0.7, 1.0)  # they overlap


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
    setback = b.between(PLAN.setback) * (0.4 + district.grass)  # grass: front gardens
    line = abs(s.walk(side)) + setback
    kind = kinds[b.choose(weights)]
    z = NEAR + b.uniform(0.0, PLAN.shortest)
    while z < PLAN.end:
        length = b.between(PLAN.stretch)
        if s.junction and z + length > s.junction[0] and z < s.junction[1]:
            length, following = s.junction[0] - z, s.junction[1] + PLAN.corner
        else:
            following = z + length
        if length >= PLAN.shortest:
            if not b.happens(PLAN.same_again):
                kind = kinds[b.choose(weights)]
            _fill(b, kind, side, line, z, length, district)
        z = following


def _fill(
    b: _Builder, kind: str, side: int, line: float, z: float, length: float, district: District
) -> None:
    """One stretch of one side; low structures have something behind them."""
    if kind == "building":
        depth = b.between(PLAN.house_depth)
        height = b.between(district.building_height)
        gap = b.between(PLAN.house_gap) if district.grass > 0.5 else 0.0
        b.structures.append(
            _structure(b, kind, side * (line + depth / 2), z, depth, height, length - gap)
        )
        return
    if kind != "open":
        height = b.between(getattr(PLAN, f"{kind}_height"))
        depth = PLAN.hedge_depth if kind == "hedge" else PLAN.wall_depth
        x = side * (line + depth / 2)
        b.structures.append(_structure(b, kind, x, z, depth, height, length))
    for _ in range(1 + b.choose((1, 1, 1))):
        x = side * (line + b.between(PLAN.tree_behind))
        b.structures.append(b.thing("tree", x, z + b.uniform(0.0, length), "vegetation"))
    if b.happens(PLAN.has_house_behind):
        depth = PLAN.house_depth[0]
        x = side * (line + b.between(PLAN.house_behind) + depth / 2)
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


def _drive_one(b: _Builder, s: _Street, kind: str) -> None:
    for _ in range(PLAN.tries):
        if s.junction and b.happens(PLAN.crossing):
            z = b.uniform(s.junction[0] + 0.5, s.junction[1] - 3.0)
            reach = 0.5 * z + SIZES[kind][2] / 2
            thing = b.thing(kind, b.uniform(-reach, reach), z, kind, across=True)
        else:
            x, _ = s.lanes[int(b.rng.random() * len(s.lanes))]
            if kind == "train":  # trams keep to the far side, clear of the own lane
                x, _ = s.lanes[-1]
            thing = b.thing(kind, x + b.uniform(-0.3, 0.3), b.depth(*PLAN.traffic), kind)
        if b.place(thing):
            return


def _ride_one(b: _Builder, s: _Street, kind: str) -> None:
    """Riders keep to the kerb or cross; `width` is what is seen of a turned cycle's length."""
    for _ in range(PLAN.tries):
        thing = b.thing(kind, 0.0, b.depth(*PLAN.cycles), "cycle")
        if b.happens(PLAN.cycle_crossing):
            x, seen = b.uniform(s.left, s.right), 1.0
        else:
            side = b.side()
            x = s.kerb(side) - side * b.between(PLAN.cycle_from_kerb)
            seen = b.between(PLAN.cycle_turned)
            if kind == "motorcyclist":
                x = s.lanes[int(b.rng.random() * len(s.lanes))][0] + b.uniform(-0.6, 0.6)
        if b.place(_moved(thing, x, seen)):
            return


def _moved(thing: Thing, x: float, seen: float) -> Thing:
    """A cycle at x, of which a share `seen` of its length shows."""
    return replace(thing, x=x, width=seen * thing.width)


def _park(b: _Builder, s: _Street) -> None:
    """Cars in the slots at the kerb, cycles on the sidewalks."""
    for side, has_lane in zip((-1, 1), s.parking, strict=True):
        x = s.kerb(side) - side * PLAN.parking_lane / 2
        z = PLAN.slot * b.uniform(0.5, 1.5)
        while has_lane and z < PLAN.traffic[1]:
            crossing = s.junction and s.junction[0] - PLAN.slot < z < s.junction[1] + PLAN.corner
            if not crossing and b.happens(b.look.parking):
                b.place(b.thing("car", x + b.uniform(-0.15, 0.15), z, "car"))
            z += PLAN.slot
    for kind, expected in (("bicycle", b.look.bicycles), ("motorcycle", b.look.motorcycles)):
        for _ in range(b.count(expected)):
            side = b.side()
            first = b.thing(kind, 0.0, b.depth(*PLAN.cycles), "cycle")
            x = s.kerb(side) + side * b.between(PLAN.cycle_from_kerb)
            for n in range(1 + b.choose((2, 1, 1))):  # they stand in rows
                shift = side * PLAN.cycle_row * n
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
            z = b.depth(*PLAN.furniture)
            if kind == "light" and s.junction:
                z = s.junction[int(b.rng.random() * 2)] + b.uniform(-2.0, 0.0)
            x = s.kerb(side) + side * b.between(PLAN.furniture_from_kerb)
            b.actors.append(b.thing(kind, x, z, pool))


def _walk(b: _Builder, s: _Street) -> None:
    """People on the sidewalks, some in pairs, some on the road."""
    for _ in range(b.count(b.look.people)):
        z = b.depth(*PLAN.people)
        if b.happens(PLAN.on_road):
            x = b.uniform(s.left, s.right)
        else:
            side = b.side()
            x = b.uniform(*sorted((s.kerb(side) + side * PLAN.kerb, s.walk(side))))
        b.actors.append(b.thing("person", x, z, "cloth"))
        if b.happens(PLAN.in_pair):
            b.actors.append(b.thing("person", x + 0.6, z + 0.2, "cloth"))
