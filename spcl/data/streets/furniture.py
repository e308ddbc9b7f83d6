"""Drawings of street furniture: lamps, traffic lights, signs and bins.

Bare numbers are metres, or shares (0..1) of the face or the thing that they divide.
"""

from spcl.data.streets.canvas import Canvas, draw_solid, footprint
from spcl.data.streets.domains import LIGHT, POLE, SIGN, VOID, Colour
from spcl.data.streets.parts import bar, pick
from spcl.data.streets.scene import Thing


def draw_lamp(c: Canvas, t: Thing) -> None:
    paint = c.paint(t.colour, POLE, t.z)
    c.upright(t.x, t.z, t.width, 0.0, t.height, paint)
    arm = 1.6 if t.x < 0 else -1.6
    bar(c, (t.x, t.height - 0.1), (t.x + arm, t.height), t.z, 0.1, paint)
    c.upright(t.x + arm, t.z, 0.7, t.height - 0.1, t.height + 0.1, paint)


_SIGNAL: tuple[Colour, ...] = ((226, 40, 34), (238, 176, 48), (60, 214, 120))


def draw_light(c: Canvas, t: Thing) -> None:
    paint = c.paint(t.colour, POLE, t.z)
    c.upright(t.x, t.z, t.width, 0.0, t.height, paint)
    _signal(c, t, t.x, t.height - 0.95)
    if t.style[0] < 0.5:  # an arm with a second one above the lane
        y, x = 5.0, t.x - (2.6 if t.x > 0 else -2.6)
        c.upright(t.x, t.z, t.width, 0.0, y, paint)
        bar(c, (t.x, y), (x, y), t.z, 0.12, paint)
        _signal(c, t, x, y - 0.6)
        _signal(c, t, t.x, t.height - 0.95)


def _signal(c: Canvas, t: Thing, x: float, y: float) -> None:
    """A housing with three lamps, one lit; seen from the back, none."""
    housing = c.paint(pick("signal", t.style[1]), LIGHT, t.z)
    c.upright(x, t.z, 0.46, y, y + 1.1, housing)
    if t.style[2] < 0.8:
        lit = int(t.style[3] * 3)
        paint = c.paint(_SIGNAL[lit], LIGHT, t.z)
        c.disc(x, y + 0.9 - 0.34 * lit, t.z, 0.14, 0.14, paint)


def draw_sign(c: Canvas, t: Thing) -> None:
    c.upright(t.x, t.z, t.width, 0.0, t.height, c.paint(t.colour, POLE, t.z))
    face = pick("sign", t.style[0])
    plate = c.paint(face, SIGN, t.z)
    inner = c.paint(pick("sign", (t.style[0] + 0.5) % 1.0), SIGN, t.z)
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
