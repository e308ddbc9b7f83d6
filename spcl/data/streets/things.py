"""How each kind of thing looks: one small drawing per kind, in `DRAW`.

Bare numbers in a drawing are metres, or shares (0..1) of the face or the thing that they divide.
"""

from spcl.data.streets.canvas import (
    SUPERSAMPLE,
    THINNEST,
    Canvas,
    Face,
    Rect,
    draw_solid,
    footprint,
    mix,
    patch,
    side_face,
    tone,
)
from spcl.data.streets.domains import (
    BICYCLE,
    BUILDING,
    BUS,
    CAR,
    COLOURS,
    FENCE,
    LIGHT,
    MOTORCYCLE,
    PERSON,
    POLE,
    RIDER,
    ROAD,
    SIGN,
    TRAIN,
    TRUCK,
    VEGETATION,
    VOID,
    WALL,
    Colour,
)
from spcl.data.streets.layout import Thing

SMALLEST_DETAIL = 1.2  # pixels; finer detail is left out


def _pick(pool: str, u: float) -> Colour:
    """The colour of a pool that a uniform number u stands for."""
    return COLOURS[pool][int(u * len(COLOURS[pool]))]


# --- structures ---------------------------------------------------------------------------------

STOREY = 3.2  # m
BAY = 3.0  # m between windows
MOST_BAYS = 6
NARROWEST_BAY = 4.0  # pixels
PICKETS = 10  # per stretch of fence
_GLASS: Colour = (64, 74, 88)


def draw_building(c: Canvas, t: Thing) -> None:
    base = footprint(t)
    light = 0.72 + 0.25 * t.style[0]
    near, side = draw_solid(c, base, base, (0.0, t.height), t.colour, BUILDING, light)
    for face, run, z in ((side, t.length, t.z + t.length / 2), (near, t.width, t.z)):
        if face and c.pixels(STOREY / 2, z) > SMALLEST_DETAIL:
            _windows(c, t, face, run, z)


def _windows(c: Canvas, t: Thing, face: Face, run: float, z: float) -> None:
    """Rows of glass, cut into windows by piers of the wall's colour; some have a shop below."""
    bays = min(MOST_BAYS, int(c.breadth(face) / NARROWEST_BAY), round(run / BAY))
    if bays < 1:
        return
    glass = mix(_GLASS, tone(t.colour, 0.55), t.style[1] * 0.7)
    pane, pier = c.paint(glass, BUILDING, z), c.paint(tone(t.colour, 0.88), BUILDING, z)
    storeys = max(1, round(t.height / STOREY))
    share = 0.4 + 0.25 * t.style[2]
    for n in range(storeys):
        low = (n + 0.3) / storeys
        c.face(patch(face, 0.04, low, 0.96, low + share / storeys), pane)
    half = 0.2 / bays
    for n in range(bays + 1):
        left, right = max(0.0, n / bays - half), min(1.0, n / bays + half)
        c.face(patch(face, left, 0.0, right, 1.0), pier)
    if t.style[3] < 0.4:
        shop = c.paint(tone(glass, 0.8), BUILDING, z)
        c.face(patch(face, 0.06, 0.02, 0.94, 0.75 / storeys), shop)


def draw_wall(c: Canvas, t: Thing) -> None:
    base = footprint(t)
    light = 0.85 + 0.25 * t.style[0]
    _, side = draw_solid(c, base, base, (0.0, t.height), t.colour, WALL, light)
    if not side:
        return
    z = t.z + t.length / 2
    coping = c.paint(tone(t.colour, 1.2), WALL, z)
    c.face(patch(side, 0.0, 0.92, 1.0, 1.0), coping)
    joint = c.paint(tone(t.colour, 0.72), WALL, z)
    for n in range(1, 4):
        c.face(patch(side, n / 4 - 0.01, 0.0, n / 4 + 0.01, 0.92), joint)


def draw_fence(c: Canvas, t: Thing) -> None:
    """Pickets and rails; the gaps, dark with what lies behind, are fence as well."""
    base = footprint(t)
    behind = mix(t.colour, COLOURS["vegetation"][0], 0.75)
    _, side = draw_solid(c, base, base, (0.0, t.height), behind, FENCE, 1.0)
    if not side:
        return
    z = t.z + t.length / 2
    bar = c.paint(t.colour, FENCE, z)
    for low in (0.12, 0.84):
        c.face(patch(side, 0.0, low, 1.0, low + 0.12), bar)
    for n in range(PICKETS):
        c.face(patch(side, n / PICKETS, 0.0, (n + 0.4) / PICKETS, 1.0), bar)


def draw_hedge(c: Canvas, t: Thing) -> None:
    base = footprint(t)
    draw_solid(c, base, base, (0.0, 0.85 * t.height), t.colour, VEGETATION, 0.85)
    _leaves(c, t, t.x, t.z, 0.75 * t.height, t.width / 2, 0.25 * t.height)
    side = side_face(base, base, 0.0, t.height)
    if side:
        edge = side[0][0]
        for n in range(4):
            z = t.z + t.length * (3.5 - n) / 4
            paint = c.paint(tone(t.colour, 0.8 + 0.12 * (n % 3)), VEGETATION, z)
            c.disc(edge, 0.78 * t.height, z, 0.16 * t.length, 0.25 * t.height, paint)


def draw_tree(c: Canvas, t: Thing) -> None:
    crown = 0.62 * t.height
    trunk = c.paint(COLOURS["trunk"][0], VEGETATION, t.z)
    c.upright(t.x, t.z, 0.28, 0.0, crown, trunk)
    _leaves(c, t, t.x, t.z, crown, t.width / 2, 0.36 * t.height)


def _leaves(c: Canvas, t: Thing, x: float, z: float, y: float, rx: float, ry: float) -> None:
    """A crown: overlapping discs, the lower ones darker."""
    for n in range(5):
        a, d = t.style[n % 4], t.style[(n + 1) % 4]
        factor = 0.75 + 0.13 * n
        paint = c.paint(tone(t.colour, factor), VEGETATION, z)
        dx, dy = (a - 0.5) * 1.1 * rx, (n / 5 - 0.35 + 0.3 * (d - 0.5)) * ry
        c.disc(x + dx, y + dy, z, (0.55 + 0.25 * d) * rx, (0.5 + 0.2 * a) * ry, paint)


# --- vehicles -----------------------------------------------------------------------------------

_TYRE: Colour = (28, 28, 30)
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
    paint = c.paint(_TYRE, class_id, t.z)
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
    glass = c.paint(_GLASS, CAR, t.z)
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
    paint = c.paint(_TYRE, class_id, t.z)
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
    glass = c.paint(_GLASS, class_id, rect[2])
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
    load = mix(_pick("truck", t.style[0]), (210, 210, 206), t.style[1])
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
        glass = c.paint(_GLASS, TRUCK, rect[2])
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


# --- people, cycles, street furniture -----------------------------------------------------------


def draw_person(c: Canvas, t: Thing) -> None:
    h, w = t.height, t.width
    trousers = c.paint(tone(_pick("cloth", t.style[0]), 0.7), PERSON, t.z)
    coat, skin = c.paint(t.colour, PERSON, t.z), c.paint(_pick("skin", t.style[1]), PERSON, t.z)
    stride = 0.1 + 0.2 * t.style[2]
    for sign in (-1, 1):
        c.face(
            (
                (t.x + w * (sign * stride - 0.14), 0.0, t.z),
                (t.x + w * (sign * stride + 0.14), 0.0, t.z),
                (t.x + w * (sign * 0.1 + 0.2), 0.5 * h, t.z),
                (t.x + w * (sign * 0.1 - 0.2), 0.5 * h, t.z),
            ),
            trousers,
        )
    _torso(c, t.x, t.z, 0.42 * h, 0.85 * h, 0.3 * w, 0.48 * w, coat)
    c.disc(t.x, 0.92 * h, t.z, 0.075 * h, 0.085 * h, skin)


def _torso(
    c: Canvas, x: float, z: float, y0: float, y1: float, hip: float, shoulder: float, paint: int
) -> None:
    c.face(
        ((x - hip, y0, z), (x + hip, y0, z), (x + shoulder, y1, z), (x - shoulder, y1, z)), paint
    )


def draw_bicycle(c: Canvas, t: Thing) -> None:
    """Two wheels, a frame, a saddle and a handlebar; turned away it is drawn narrower."""
    _cycle(c, t, BICYCLE, wheel=0.35, body=0.05)


def draw_motorcycle(c: Canvas, t: Thing) -> None:
    _cycle(c, t, MOTORCYCLE, wheel=0.32, body=0.26)


def _cycle(c: Canvas, t: Thing, class_id: int, wheel: float, body: float) -> None:
    w, z, x = t.width, t.z, t.x
    flip = 1 if t.style[3] < 0.5 else -1
    seen = w / 2.0  # the share of its length that is seen, roughly
    tyre = c.paint(_TYRE, class_id, z)
    inside = c.paint((92, 94, 96), class_id, z)
    frame = c.paint(t.colour, class_id, z)
    rx = max(0.09, wheel * seen)
    for end in (-1, 1):
        cx = x + end * (w / 2 - rx)
        c.disc(cx, wheel, z, rx, wheel, tyre)
        if c.pixels(wheel, z) > 2.5 and body < 0.1:
            c.disc(cx, wheel, z, 0.65 * rx, 0.65 * wheel, inside)
    reach = w / 2 - rx
    if body < 0.1:
        _bar(c, (x - flip * reach, wheel), (x - flip * 0.2 * reach, 0.8), z, body, frame)
        _bar(c, (x - flip * 0.2 * reach, 0.8), (x + flip * 0.8 * reach, 0.8), z, body, frame)
        _bar(c, (x, 0.3), (x + flip * 0.8 * reach, 0.8), z, body, frame)
        _bar(c, (x + flip * reach, wheel), (x + flip * 0.75 * reach, 1.0), z, body, frame)
    else:
        c.face(
            (
                (x - flip * reach, 0.3, z),
                (x + flip * 0.9 * reach, 0.3, z),
                (x + flip * 0.6 * reach, 0.95, z),
                (x - flip * reach, 0.8, z),
            ),
            frame,
        )
        _bar(c, (x + flip * reach, wheel), (x + flip * 0.65 * reach, 1.1), z, 0.1, tyre)
    c.upright(x - flip * 0.25 * reach, z, 0.3 * seen + 0.08, 0.85, 0.97, tyre)
    c.upright(x + flip * 0.7 * reach, z, 0.12 + 0.3 * (1 - seen), 0.98, 1.06, tyre)


def _bar(
    c: Canvas, a: tuple[float, float], b: tuple[float, float], z: float, thick: float, paint: int
) -> None:
    """A tube between two points (x, y) at depth z."""
    width = max(SUPERSAMPLE * THINNEST, SUPERSAMPLE * c.pixels(thick, z))
    c.pen.line([c.point(*a, z), c.point(*b, z)], paint, round(width))


def draw_cyclist(c: Canvas, t: Thing) -> None:
    draw_bicycle(c, t)
    _rider(c, t, saddle=0.92, lean=0.14)


def draw_motorcyclist(c: Canvas, t: Thing) -> None:
    draw_motorcycle(c, t)
    _rider(c, t, saddle=0.8, lean=0.08)


def _rider(c: Canvas, t: Thing, saddle: float, lean: float) -> None:
    x, z, h = t.x, t.z, t.height
    flip = 1 if t.style[3] < 0.5 else -1
    seen = t.width / 2.0
    trousers = c.paint(tone(_pick("cloth", t.style[0]), 0.7), RIDER, z)
    coat = c.paint(_pick("cloth", t.style[1]), RIDER, z)
    head = c.paint(_pick("skin" if t.style[2] < 0.4 else "sign", t.style[2]), RIDER, z)
    hip, shoulder = x - flip * 0.25 * seen, x + flip * (lean + 0.02) * seen
    knee = x + flip * 0.22 * seen
    _bar(c, (hip, saddle), (knee, saddle - 0.15), z, 0.2, trousers)
    _bar(c, (knee, saddle - 0.15), (x + flip * 0.02, 0.3), z, 0.16, trousers)
    half = 0.2
    c.face(
        (
            (hip - half, saddle - 0.1, z),
            (hip + half, saddle - 0.1, z),
            (shoulder + half * 1.1, h - 0.24, z),
            (shoulder - half * 1.1, h - 0.24, z),
        ),
        coat,
    )
    _bar(c, (shoulder, h - 0.35), (x + flip * 0.55 * seen, 1.02), z, 0.12, coat)
    c.disc(shoulder + flip * 0.05, h - 0.12, z, 0.13, 0.14, head)


def draw_lamp(c: Canvas, t: Thing) -> None:
    paint = c.paint(t.colour, POLE, t.z)
    c.upright(t.x, t.z, t.width, 0.0, t.height, paint)
    arm = 1.6 if t.x < 0 else -1.6
    _bar(c, (t.x, t.height - 0.1), (t.x + arm, t.height), t.z, 0.1, paint)
    c.upright(t.x + arm, t.z, 0.7, t.height - 0.1, t.height + 0.1, paint)


_SIGNAL: tuple[Colour, ...] = ((226, 40, 34), (238, 176, 48), (60, 214, 120))


def draw_light(c: Canvas, t: Thing) -> None:
    paint = c.paint(t.colour, POLE, t.z)
    c.upright(t.x, t.z, t.width, 0.0, t.height, paint)
    _signal(c, t, t.x, t.height - 0.95)
    if t.style[0] < 0.5:  # an arm with a second one above the lane
        y, x = 5.0, t.x - (2.6 if t.x > 0 else -2.6)
        c.upright(t.x, t.z, t.width, 0.0, y, paint)
        _bar(c, (t.x, y), (x, y), t.z, 0.12, paint)
        _signal(c, t, x, y - 0.6)
        _signal(c, t, t.x, t.height - 0.95)


def _signal(c: Canvas, t: Thing, x: float, y: float) -> None:
    """A housing with three lamps, one lit; seen from the back, none."""
    housing = c.paint(_pick("signal", t.style[1]), LIGHT, t.z)
    c.upright(x, t.z, 0.46, y, y + 1.1, housing)
    if t.style[2] < 0.8:
        lit = int(t.style[3] * 3)
        paint = c.paint(_SIGNAL[lit], LIGHT, t.z)
        c.disc(x, y + 0.9 - 0.34 * lit, t.z, 0.14, 0.14, paint)


def draw_sign(c: Canvas, t: Thing) -> None:
    c.upright(t.x, t.z, t.width, 0.0, t.height, c.paint(t.colour, POLE, t.z))
    face = _pick("sign", t.style[0])
    plate = c.paint(face, SIGN, t.z)
    inner = c.paint(_pick("sign", (t.style[0] + 0.5) % 1.0), SIGN, t.z)
    y, r = t.height - 0.4, 0.42
    shape = t.style[1]
    if shape < 0.35:
        c.disc(t.x, y, t.z, r, r, plate)
        c.disc(t.x, y, t.z, 0.6 * r, 0.6 * r, inner)
    elif shape < 0.6:
        c.face(((t.x - r, y - r, t.z), (t.x + r, y - r, t.z), (t.x, y + r, t.z)), plate)
    elif shape < 0.8:
        c.upright(t.x, t.z, 2 * r, y - r, y + r, plate)
        c.upright(t.x, t.z, 1.1 * r, y - 0.5 * r, y + 0.5 * r, inner)
    else:  # a direction board
        c.upright(t.x, t.z, 1.6, y - 0.3, y + 0.35, plate)


def draw_bin(c: Canvas, t: Thing) -> None:
    rect = footprint(t)
    draw_solid(c, rect, rect, (0.0, t.height), t.colour, VOID)


DRAW = {
    "building": draw_building,
    "wall": draw_wall,
    "fence": draw_fence,
    "hedge": draw_hedge,
    "tree": draw_tree,
    "car": draw_car,
    "truck": draw_truck,
    "bus": draw_bus,
    "train": draw_train,
    "person": draw_person,
    "bicycle": draw_bicycle,
    "motorcycle": draw_motorcycle,
    "cyclist": draw_cyclist,
    "motorcyclist": draw_motorcyclist,
    "lamp": draw_lamp,
    "light": draw_light,
    "sign": draw_sign,
    "bin": draw_bin,
}
