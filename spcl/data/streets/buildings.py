"""Drawings of what lines a street: buildings, walls, fences, hedges and trees.

Bare numbers are metres, or shares (0..1) of the face or the thing that they divide.
"""

from spcl.data.streets.canvas import (
    Canvas,
    Face,
    draw_solid,
    footprint,
    mix,
    patch,
    side_face,
    tone,
)
from spcl.data.streets.domains import BUILDING, COLOURS, FENCE, VEGETATION, WALL
from spcl.data.streets.parts import GLASS, SMALLEST_DETAIL
from spcl.data.streets.scene import Thing

STOREY = 3.2  # m
BAY = 3.0  # m between windows
MOST_BAYS = 6
NARROWEST_BAY = 4.0  # pixels
PICKETS = 10  # per stretch of fence


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
    glass = mix(GLASS, tone(t.colour, 0.55), t.style[1] * 0.7)
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
