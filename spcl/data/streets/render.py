"""A scene as pixels: (image, trainIds).

Things are drawn far first as flat polygons into one plane of paint numbers; a paint says colour,
class and depth, so the image, the label and the haze are look-ups in that plane.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from spcl.data.streets.domains import (
    BICYCLE,
    BUILDING,
    BUS,
    CAR,
    COLOURS,
    DOMAINS,
    FENCE,
    LIGHT,
    LOOKS,
    MOTORCYCLE,
    PERSON,
    POLE,
    RIDER,
    ROAD,
    SIGN,
    SKY,
    SPLITS,
    TRAIN,
    TRUCK,
    VEGETATION,
    VOID,
    WALL,
    Colour,
    Look,
    class_offsets,
)
from spcl.data.streets.layout import NEAR, Camera, Scene, Thing, compose

SUPERSAMPLE = 2  # pixels drawn per pixel kept, each way; labels take every second one
THINNEST = 1.0  # pixels; a pole is never thinner, else it would be missing from the label
ASPECT = 2.0  # width / height that the layout is made for; other sizes stretch it
SKY_HEIGHT = 14.0  # m; how fast haze thins out above the horizon
_SCENE_STREAM, _PIXEL_STREAM = 2, 3

Point = tuple[float, float, float]
Face = tuple[Point, Point, Point, Point]  # bottom left, bottom right, top right, top left


def scene(world: int, domain: str, split: str, index: int) -> Scene:
    """The scene with this number: what stands where, in metres."""
    return compose(_generator(_SCENE_STREAM, world, domain, split, index), LOOKS[domain])


def render(
    world: int, domain: str, split: str, index: int, height: int = 64, width: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """Picture and truth of one scene, a pure function of its arguments.

    domain  "sim" or "real"
    split   "train" or "val"

    Returns image (H, W, 3) uint8 and trainIds (H, W) uint8 with 255 where nothing is asked.
    """
    view = scene(world, domain, split, index)
    canvas = Canvas(view.camera, height, width)
    _draw(canvas, view)
    rng = _generator(_PIXEL_STREAM, world, domain, split, index)
    offsets, textures = class_offsets(world, domain)
    return _develop(canvas, view, LOOKS[domain], offsets, textures, rng)


def _generator(stream: int, world: int, domain: str, split: str, index: int) -> np.random.Generator:
    for value, known in ((domain, DOMAINS), (split, SPLITS)):
        if value not in known:
            raise ValueError(f"{value!r} is unknown; known: {', '.join(known)}")
    key = [world, stream, DOMAINS.index(domain), SPLITS.index(split), index]
    return np.random.default_rng(key)


class Canvas:
    """A plane of paint numbers, SUPERSAMPLE times the size of the picture."""

    def __init__(self, camera: Camera, height: int, width: int) -> None:
        self.camera = camera
        self.height, self.width = height, width
        rows, columns = SUPERSAMPLE * height, SUPERSAMPLE * width
        self.plane = Image.new("I", (columns, rows))
        self.pen = ImageDraw.Draw(self.plane)
        self.colours: list[Colour] = []
        self.classes: list[int] = []
        self.depths: list[float] = []
        self._u0, self._v0 = camera.vanish * columns, camera.horizon * rows
        self._fu, self._fv = camera.focal * columns / ASPECT, camera.focal * rows

    def paint(self, colour: Colour, class_id: int, depth: float) -> int:
        """A new paint; depth 0 means the ground's own."""
        self.colours.append(colour)
        self.classes.append(class_id)
        self.depths.append(depth)
        return len(self.colours) - 1

    def point(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Where a point in metres is seen, in drawn pixels."""
        z = max(z, NEAR)
        return self._u0 + self._fu * x / z, self._v0 - self._fv * (y - self.camera.height) / z

    def face(self, corners: Face, paint: int) -> None:
        self.pen.polygon([self.point(*corner) for corner in corners], paint)

    def sees(self, face: Face) -> bool:
        """Whether a face may be in the picture; for leaving out detail early."""
        xs = [self.point(*corner)[0] for corner in face]
        return max(xs) > 0 and min(xs) < SUPERSAMPLE * self.width

    def upright(self, x: float, z: float, width: float, y0: float, y1: float, paint: int) -> None:
        """A rectangle that faces the camera, at least THINNEST wide and high."""
        left, top = self.point(x - width / 2, y1, z)
        right, bottom = self.point(x + width / 2, y0, z)
        self.pen.rectangle(_at_least(left, top, right, bottom), paint)

    def disc(self, x: float, y: float, z: float, rx: float, ry: float, paint: int) -> None:
        left, top = self.point(x - rx, y + ry, z)
        right, bottom = self.point(x + rx, y - ry, z)
        self.pen.ellipse(_at_least(left, top, right, bottom), paint)

    def pixels(self, metres: float, z: float) -> float:
        """How many pixels of the finished picture a height covers."""
        return self._fv * metres / max(z, NEAR) / SUPERSAMPLE


def _at_least(left: float, top: float, right: float, bottom: float) -> list[int]:
    """Pixel box of a rectangle, grown about its middle to THINNEST pixels; ends are inclusive."""
    least = SUPERSAMPLE * THINNEST
    wide, high = max(right - left, least), max(bottom - top, least)
    x, y = round((left + right - wide) / 2), round((top + bottom - high) / 2)
    return [x, y, x + round(wide) - 1, y + round(high) - 1]


def tone(colour: Colour, factor: float) -> Colour:
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))


def patch(face: Face, s0: float, t0: float, s1: float, t1: float) -> Face:
    """The part of a face between s0..s1 from left to right and t0..t1 upwards, each 0..1."""
    left0, left1 = _between(face[0], face[3], t0), _between(face[0], face[3], t1)
    right0, right1 = _between(face[1], face[2], t0), _between(face[1], face[2], t1)
    return (
        _between(left0, right0, s0),
        _between(left0, right0, s1),
        _between(left1, right1, s1),
        _between(left1, right1, s0),
    )


def _between(a: Point, b: Point, share: float) -> Point:
    return (
        a[0] + (b[0] - a[0]) * share,
        a[1] + (b[1] - a[1]) * share,
        a[2] + (b[2] - a[2]) * share,
    )


# --- solids -------------------------------------------------------------------------------------

Rect = tuple[float, float, float, float]  # x0, x1, z0, z1


def near_face(base: Rect, top: Rect, y0: float, y1: float) -> Face:
    return (
        (base[0], y0, base[2]),
        (base[1], y0, base[2]),
        (top[1], y1, top[2]),
        (top[0], y1, top[2]),
    )


def side_face(base: Rect, top: Rect, y0: float, y1: float) -> Face | None:
    """The side that the camera at x = 0 sees, near end left; None when it is straight ahead."""
    if base[0] > 0:
        n = 0
    elif base[1] < 0:
        n = 1
    else:
        return None
    return (
        (base[n], y0, base[2]),
        (base[n], y0, base[3]),
        (top[n], y1, top[3]),
        (top[n], y1, top[2]),
    )


def draw_solid(
    c: Canvas,
    base: Rect,
    top: Rect,
    y: tuple[float, float],
    colour: Colour,
    class_id: int,
    side_tone: float = 0.8,
) -> tuple[Face, Face | None]:
    """Side, roof (if below the eye) and near face of a box or frustum; returns near and side."""
    near, side = near_face(base, top, *y), side_face(base, top, *y)
    depth = base[2]
    if side:
        c.face(side, c.paint(tone(colour, side_tone), class_id, (base[2] + base[3]) / 2))
    if y[1] < c.camera.height:
        x0, x1, z0, z1 = top
        roof = ((x0, y[1], z0), (x1, y[1], z0), (x1, y[1], z1), (x0, y[1], z1))
        c.face(roof, c.paint(tone(colour, 1.1), class_id, depth))
    c.face(near, c.paint(colour, class_id, depth))
    return near, side


def footprint(t: Thing) -> Rect:
    return t.x - t.width / 2, t.x + t.width / 2, t.z, t.z + t.length


# --- structures ---------------------------------------------------------------------------------

STOREY = 3.2  # m
BAY = 3.0  # m between windows
MOST_BAYS = 6
SMALLEST_DETAIL = 1.2  # pixels; finer detail is left out
_GLASS: Colour = (64, 74, 88)


def draw_building(c: Canvas, t: Thing) -> None:
    base = footprint(t)
    near, side = draw_solid(
        c, base, base, (0.0, t.height), t.colour, BUILDING, 0.72 + t.style[0] / 4
    )
    glass = mix(_GLASS, tone(t.colour, 0.55), t.style[1] * 0.7)
    for face, run, z in ((side, t.length, t.z + t.length / 2), (near, t.width, t.z)):
        if face and c.pixels(STOREY / 2, z) > SMALLEST_DETAIL and c.sees(face):
            _windows(c, t, face, run, z, glass)


def _windows(c: Canvas, t: Thing, face: Face, run: float, z: float, glass: Colour) -> None:
    """Rows of glass, cut into windows by piers of the wall's colour; a shop or plinth below."""
    storeys = max(1, round(t.height / STOREY))
    pane, pier = c.paint(glass, BUILDING, z), c.paint(tone(t.colour, 0.88), BUILDING, z)
    share = 0.4 + 0.25 * t.style[2]
    for n in range(storeys):
        low = (n + 0.3) / storeys
        c.face(patch(face, 0.04, low, 0.96, low + share / storeys), pane)
    bays = min(MOST_BAYS, max(2, round(run / BAY)))
    for n in range(bays + 1):
        middle = n / bays
        c.face(
            patch(face, max(0.0, middle - 0.2 / bays), 0.0, min(1.0, middle + 0.2 / bays), 1.0),
            pier,
        )
    if t.style[3] < 0.4:
        shop = c.paint(tone(glass, 0.8), BUILDING, z)
        c.face(patch(face, 0.06, 0.02, 0.94, 0.75 / storeys), shop)


def draw_wall(c: Canvas, t: Thing) -> None:
    base = footprint(t)
    near, side = draw_solid(c, base, base, (0.0, t.height), t.colour, WALL, 0.85 + t.style[0] / 4)
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
    near, side = draw_solid(c, base, base, (0.0, t.height), behind, FENCE, 1.0)
    if not side:
        return
    z = t.z + t.length / 2
    bar = c.paint(t.colour, FENCE, z)
    for low in (0.12, 0.84):
        c.face(patch(side, 0.0, low, 1.0, low + 0.12), bar)
    pickets = 10
    for n in range(pickets):
        c.face(patch(side, n / pickets, 0.0, (n + 0.4) / pickets, 1.0), bar)


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


def _shadow(c: Canvas, t: Thing) -> None:
    x0, x1, z0, z1 = footprint(t)
    z0 -= 0.25
    quad = ((x0, 0.0, z0), (x1, 0.0, z0), (x1, 0.0, z1), (x0, 0.0, z1))
    c.face(quad, c.paint((36, 36, 38), ROAD, 0.0))


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
            left, top = c.point(flank, 2 * radius, z - radius)
            right, bottom = c.point(flank, 0.0, z + radius)
            box = [min(left, right), top, max(left, right), c.point(flank, 0.0, z)[1]]
            c.pen.ellipse(box, paint)
    for x in (x0 + 0.15, x1 - 0.15):
        c.upright(x, z0, 0.26, 0.0, 2 * radius * 0.8, paint)


def _lamps(c: Canvas, t: Thing, end: Face | None, class_id: int, height: float) -> None:
    if end is None or t.across or c.pixels(0.2, t.z) < 0.4:
        return
    paint = c.paint(_HEAD if t.x < -1.0 else _TAIL, class_id, t.z)
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
    palette = COLOURS["truck"]
    load = palette[int(t.style[0] * len(palette))]
    cab, box = ((0.0, 0.24), (0.28, 1.0)) if t.x < -1.0 else ((0.76, 1.0), (0.0, 0.72))
    parts = [
        (cab, tone(t.colour, 1.0), 0.82 * t.height, True),
        (box, mix(load, (210, 210, 206), t.style[1]), t.height, False),
    ]
    if not t.across and t.x < -1.0:
        parts.reverse()
    for (a0, a1), colour, height, is_cab in parts:
        rect = _along(t, a0, a1, 0.0 if not is_cab else 0.08)
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


def _pick(pool: str, u: float) -> Colour:
    return COLOURS[pool][int(u * len(COLOURS[pool]))]


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


def _draw(c: Canvas, view: Scene) -> None:
    c.paint(view.sky, SKY, 0.0)  # paint 0 fills the plane
    for g in view.ground:
        corners = ((g.x0, 0.0, g.z0), (g.x1, 0.0, g.z0), (g.x1, 0.0, g.z1), (g.x0, 0.0, g.z1))
        c.face(corners, c.paint(g.colour, g.class_id, 0.0))
    for thing in view.things:
        DRAW[thing.kind](c, thing)
    if view.hood:
        columns, rows = c.plane.size
        box = [-0.1 * columns, rows * (1 - view.hood), 1.1 * columns, rows * (1 + view.hood)]
        c.pen.ellipse(box, c.paint((38, 40, 44), VOID, NEAR))


# --- from paints to pixels ----------------------------------------------------------------------


def _develop(
    c: Canvas,
    view: Scene,
    look: Look,
    offsets: np.ndarray,
    textures: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Look every pixel's paint up, then light, haze, lens and sensor."""
    height, width = c.height, c.width
    paint = np.asarray(c.plane)
    classes = np.array(c.classes, np.uint8)
    colours = np.array(c.colours, np.float32) + offsets[classes]
    image = colours[paint].reshape(height, SUPERSAMPLE, width, SUPERSAMPLE, 3).mean((1, 3))
    kept = paint[::SUPERSAMPLE, ::SUPERSAMPLE]
    label = classes[kept]

    sigma = textures[label]  # (H, W, 3): one per scale
    for scale, cells in enumerate((height, 16, 4)):
        image += (sigma[..., scale] * _noise(rng, cells, height, width))[..., None]

    depth = np.array(c.depths, np.float32)[kept]
    on_ground = depth == 0
    v = (np.arange(height, dtype=np.float32) + 0.5) / height - view.camera.horizon
    below = view.camera.focal * view.camera.height / np.maximum(v, 1e-3)
    above = view.camera.focal * SKY_HEIGHT / np.maximum(-v, 1e-3)
    row_depth = np.where(v > 0, below, above)[:, None]
    depth = np.where(on_ground, row_depth, depth)

    u = (np.arange(width, dtype=np.float32) + 0.5) / width - view.camera.vanish
    x = u * ASPECT * row_depth / view.camera.focal
    shaded = on_ground & (v[:, None] > 0) & ((x - view.shade_edge) * view.shade_side > 0)
    image *= (view.light * (1 - look.shadow * shaded))[..., None]

    clear = np.exp(-look.haze * depth)[..., None]
    image = np.array(look.haze_colour, np.float32) * (1 - clear) + image * clear
    grey = image.mean(-1, keepdims=True)
    image = grey + look.saturation * (image - grey)
    image = 128 + look.contrast * (image * np.array(look.gain, np.float32) - 128)
    if look.vignette:
        radius = (2 * u[None]) ** 2 + (2 * (v[:, None] + view.camera.horizon - 0.5)) ** 2
        image *= (1 - look.vignette * radius / 2)[..., None]
    if look.blur:
        picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        image = np.asarray(picture.filter(ImageFilter.GaussianBlur(look.blur * height)), np.float32)
    image = image + look.noise * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label


def _noise(rng: np.random.Generator, cells: int, height: int, width: int) -> np.ndarray:
    """(H, W) smooth noise of about unit sigma, `cells` blobs high."""
    rows = min(cells, height)
    columns = max(1, round(rows * width / height))
    field = rng.standard_normal((rows, columns), np.float32)
    if (rows, columns) == (height, width):
        return field
    return np.asarray(Image.fromarray(field).resize((width, height), Image.Resampling.BICUBIC))
