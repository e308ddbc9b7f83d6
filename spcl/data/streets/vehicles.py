"""Drawings of cars, buses, trucks and trams.

Bare numbers are metres, or shares (0..1) of the face or the thing that they divide.
"""

from spcl.data.streets.canvas import Canvas, Face, Rect, draw_solid, footprint, mix, patch, tone
from spcl.data.streets.domains import BUS, CAR, ROAD, TRAIN, TRUCK, Colour
from spcl.data.streets.parts import GLASS, SMALLEST_DETAIL, TYRE, pick
from spcl.data.streets.scene import Thing

_TAIL: Colour = (170, 24, 22)
_HEAD: Colour = (236, 232, 214)
_SHADOW: Colour = (36, 36, 38)
_CENTRE_LINE = -1.0  # m; what is left of it comes towards the camera


def _along(t: Thing, a0: float, a1: float, inset: float) -> Rect:
    """The part of a vehicle's footprint from a0 to a1 of its length (0..1), narrowed by inset m."""
    x0, x1, z0, z1 = footprint(t)
    if t.across:
        if t.style[3] < 0.5:  # which way it points
            a0, a1 = 1 - a1, 1 - a0
        return x0 + a0 * t.width, x0 + a1 * t.width, z0 + inset, z1 - inset
    return x0 + inset, x1 - inset, z0 + a0 * t.length, z0 + a1 * t.length


def _flank_and_end(t: Thing, near: Face, side: Face | None) -> tuple[Face | None, Face | None]:
    """The long face and the short one, as far as they are seen."""
    return (near, side) if t.across else (side, near)


def _is_oncoming(t: Thing) -> bool:
    return not t.across and t.x < _CENTRE_LINE


def _shadow(c: Canvas, t: Thing) -> None:
    x0, x1, z0, z1 = footprint(t)
    z0 -= 0.25
    quad = ((x0, 0.0, z0), (x1, 0.0, z0), (x1, 0.0, z1), (x0, 0.0, z1))
    c.face(quad, c.paint(_SHADOW, ROAD, 0.0))


def _wheels(c: Canvas, t: Thing, class_id: int, radius: float, axles: tuple[float, ...]) -> None:
    """Tyres: dark boxes under the end, discs under the flank."""
    x0, x1, z0, z1 = footprint(t)
    paint = c.paint(TYRE, class_id, t.z)
    if t.across:
        for a in axles:
            c.disc(x0 + a * t.width, radius, z0, radius, radius, paint)
        return
    flank = x0 if x0 > 0 else x1 if x1 < 0 else None
    if flank is not None:
        for a in axles:
            z = z0 + a * t.length
            ends = [c.point(flank, 0.0, z + d)[0] for d in (-radius, radius)]
            top, bottom = c.point(flank, 2 * radius, z)[1], c.point(flank, 0.0, z)[1]
            c.pen.ellipse([min(ends), top, max(ends), bottom], paint)
    for x in (x0 + 0.15, x1 - 0.15):
        c.upright(x, z0, 0.26, 0.0, 2 * radius * 0.8, paint)


def _lamps(c: Canvas, t: Thing, end: Face | None, class_id: int, height: float) -> None:
    """Head or tail lamps at a height (0..1) of the end."""
    if end is None or t.across or c.pixels(0.6, t.z) < SMALLEST_DETAIL:
        return
    paint = c.paint(_HEAD if _is_oncoming(t) else _TAIL, class_id, t.z)
    for s in (0.04, 0.78):
        c.face(patch(end, s, height, s + 0.18, height + 0.2), paint)


def draw_car(c: Canvas, t: Thing) -> None:
    waist, h = 0.56 * t.height, t.height
    _shadow(c, t)
    _wheels(c, t, CAR, 0.32, (0.2, 0.8))
    body = _along(t, 0.0, 1.0, 0.0)
    near, side = draw_solid(c, body, body, (0.24, waist), t.colour, CAR)
    _wheels_on_flank(c, t, side if not t.across else near, CAR, (0.2, 0.8), 0.32)
    _lamps(c, t, _flank_and_end(t, near, side)[1], CAR, 0.5)
    estate = 0.12 * t.style[0]
    base, top = _along(t, 0.10 - estate / 2, 0.78, 0.06), _along(t, 0.22 - estate, 0.58, 0.2)
    near, side = draw_solid(c, base, top, (waist, h), t.colour, CAR)
    glass = c.paint(GLASS, CAR, t.z)
    for face in (side, near):
        if face:
            c.face(patch(face, 0.08, 0.1, 0.92, 0.82), glass)


def _wheels_on_flank(
    c: Canvas, t: Thing, flank: Face | None, class_id: int, axles: tuple[float, ...], radius: float
) -> None:
    """The upper half of the tyres, which shows before the flank."""
    if flank is None or c.pixels(radius, t.z) < SMALLEST_DETAIL:
        return
    long = max(t.width, t.length)
    paint = c.paint(TYRE, class_id, t.z)
    high = flank[2][1] - flank[0][1]
    for a in axles:
        half = radius / long
        c.face(patch(flank, a - half, 0.0, a + half, 0.8 * radius / high), paint)


def _draw_coach(
    c: Canvas, t: Thing, class_id: int, part: tuple[float, float], windows: tuple[float, float]
) -> tuple[Face, Face | None]:
    """A tall box with a band of windows all round: one bus, or one car of a train."""
    rect = _along(t, *part, 0.0)
    near, side = draw_solid(c, rect, rect, (0.3, t.height), t.colour, class_id)
    glass = c.paint(GLASS, class_id, rect[2])
    skirt = c.paint(tone(t.colour, 0.7), class_id, rect[2])
    flank, end = _flank_and_end(t, near, side)
    for face in (flank, end):
        if face:
            c.face(patch(face, 0.0, 0.0, 1.0, 0.12), skirt)
    if flank:
        c.face(patch(flank, 0.03, windows[0], 0.97, windows[1]), glass)
        post = c.paint(tone(t.colour, 0.8), class_id, rect[2])
        for n in range(1, 5):
            c.face(patch(flank, n / 5 - 0.012, windows[0], n / 5 + 0.012, windows[1]), post)
    if end:
        c.face(patch(end, 0.08, windows[0] - 0.06, 0.92, windows[1] + 0.02), glass)
    return near, side


def draw_bus(c: Canvas, t: Thing) -> None:
    _shadow(c, t)
    _wheels(c, t, BUS, 0.48, (0.2, 0.75))
    near, side = _draw_coach(c, t, BUS, (0.0, 1.0), (0.45, 0.82))
    flank, end = _flank_and_end(t, near, side)
    _wheels_on_flank(c, t, flank, BUS, (0.2, 0.75), 0.48)
    _lamps(c, t, end, BUS, 0.08)
    if end:
        c.face(patch(end, 0.2, 0.88, 0.8, 0.96), c.paint((236, 170, 60), BUS, t.z))


def draw_truck(c: Canvas, t: Thing) -> None:
    """A cab and, higher and without windows, its box, in another colour."""
    _shadow(c, t)
    _wheels(c, t, TRUCK, 0.5, (0.15, 0.35, 0.85))
    load = mix(pick("truck", t.style[0]), (210, 210, 206), t.style[1])
    cab, box = ((0.0, 0.24), (0.28, 1.0)) if _is_oncoming(t) else ((0.76, 1.0), (0.0, 0.72))
    parts = [
        (cab, t.colour, 0.82 * t.height, True),
        (box, load, t.height, False),
    ]
    if _is_oncoming(t):
        parts.reverse()  # the far part first
    for (a0, a1), colour, height, is_cab in parts:
        rect = _along(t, a0, a1, 0.08 if is_cab else 0.0)
        near, side = draw_solid(c, rect, rect, (0.55, height), colour, TRUCK)
        glass = c.paint(GLASS, TRUCK, rect[2])
        seam = c.paint(tone(colour, 0.7), TRUCK, rect[2])
        for face in (side, near):
            if face and is_cab:
                c.face(patch(face, 0.12, 0.5, 0.88, 0.85), glass)
            elif face:
                c.face(patch(face, 0.0, 0.0, 1.0, 0.08), seam)
                c.face(patch(face, 0.48, 0.0, 0.52, 1.0), seam)
        if rect[2] == t.z:
            _lamps(c, t, near, TRUCK, 0.02)


def draw_train(c: Canvas, t: Thing) -> None:
    """A tram: three cars, the far ones first, with a stripe and a pantograph."""
    _shadow(c, t)
    stripe = tone(t.colour, 1.5) if sum(t.colour) < 380 else (120, 40, 44)
    for part in ((0.68, 1.0), (0.34, 0.66), (0.0, 0.32)):
        near, side = _draw_coach(c, t, TRAIN, part, (0.4, 0.78))
        paint = c.paint(stripe, TRAIN, t.z)
        for face in (side, near):
            if face:
                c.face(patch(face, 0.0, 0.24, 1.0, 0.34), paint)
    roof = c.paint((70, 72, 74), TRAIN, t.z)
    c.upright(t.x, t.z + 1.0, 0.9, t.height, t.height + 0.35, roof)
