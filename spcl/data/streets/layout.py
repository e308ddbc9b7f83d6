"""What stands where: draws one street scene, of a look, from random numbers.

Every draw comes from one generator, in one order, so that a scene is a function of its seed.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from spcl.data.streets.builder import Builder
from spcl.data.streets.domains import DISTRICTS, ROAD, SIDEWALK, TERRAIN, Colour, District, Look
from spcl.data.streets.plan import FAR, NEAR, PLAN, SIZES, WIDE
from spcl.data.streets.scene import Camera, Ground, Scene, Thing


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
    b = Builder(rng, look)
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


def _street(b: Builder) -> _Street:
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


def _lay_ground(b: Builder, s: _Street, district: District) -> None:
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
        kerb = (1.18 * walk[0], 1.18 * walk[1], 1.18 * walk[2])  # lighter stone
        strip(SIDEWALK, s.kerb(side), s.kerb(side) + side * PLAN.kerb, kerb)
    if s.junction:
        b.ground.append(Ground(ROAD, -WIDE, WIDE, *s.junction, road))
    _mark_road(b, s, road)


def _mark_road(b: Builder, s: _Street, road: Colour) -> None:
    """A dashed line between lanes, and stripes before a junction: paint, so still road."""
    paint = (road[0] + PLAN.paint, road[1] + PLAN.paint, road[2] + PLAN.paint)
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


def _line_horizon(b: Builder) -> None:
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
    b: Builder, kind: str, x: float, z: float, width: float, height: float, length: float
) -> Thing:
    pool = {"hedge": "vegetation"}.get(kind, kind)
    style = tuple(b.rng.random(4).tolist())
    return Thing(kind, x, z, width, height, length, b.colour(pool), style)


def _line_street(b: Builder, s: _Street, district: District, side: int) -> None:
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
    b: Builder, kind: str, side: int, line: float, z: float, length: float, district: District
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


def _drive(b: Builder, s: _Street) -> None:
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


def _drive_one(b: Builder, s: _Street, kind: str) -> None:
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


def _ride_one(b: Builder, s: _Street, kind: str) -> None:
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


def _park(b: Builder, s: _Street) -> None:
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


def _furnish(b: Builder, s: _Street) -> None:
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


def _walk(b: Builder, s: _Street) -> None:
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
