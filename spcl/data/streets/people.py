"""Drawings of people and cycles, with riders and without.

Bare numbers are metres, or shares (0..1) of the face or the thing that they divide.
"""

from spcl.data.streets.canvas import Canvas, tone
from spcl.data.streets.domains import BICYCLE, MOTORCYCLE, PERSON, RIDER
from spcl.data.streets.parts import TYRE, bar, pick
from spcl.data.streets.scene import Thing


def draw_person(c: Canvas, t: Thing) -> None:
    h, w = t.height, t.width
    trousers = c.paint(tone(pick("cloth", t.style[0]), 0.7), PERSON, t.z)
    coat, skin = c.paint(t.colour, PERSON, t.z), c.paint(pick("skin", t.style[1]), PERSON, t.z)
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
    tyre = c.paint(TYRE, class_id, z)
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
        bar(c, (x - flip * reach, wheel), (x - flip * 0.2 * reach, 0.8), z, body, frame)
        bar(c, (x - flip * 0.2 * reach, 0.8), (x + flip * 0.8 * reach, 0.8), z, body, frame)
        bar(c, (x, 0.3), (x + flip * 0.8 * reach, 0.8), z, body, frame)
        bar(c, (x + flip * reach, wheel), (x + flip * 0.75 * reach, 1.0), z, body, frame)
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
        bar(c, (x + flip * reach, wheel), (x + flip * 0.65 * reach, 1.1), z, 0.1, tyre)
    c.upright(x - flip * 0.25 * reach, z, 0.3 * seen + 0.08, 0.85, 0.97, tyre)
    c.upright(x + flip * 0.7 * reach, z, 0.12 + 0.3 * (1 - seen), 0.98, 1.06, tyre)


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
    trousers = c.paint(tone(pick("cloth", t.style[0]), 0.7), RIDER, z)
    coat = c.paint(pick("cloth", t.style[1]), RIDER, z)
    head = c.paint(pick("skin" if t.style[2] < 0.4 else "sign", t.style[2]), RIDER, z)
    hip, shoulder = x - flip * 0.25 * seen, x + flip * (lean + 0.02) * seen
    knee = x + flip * 0.22 * seen
    bar(c, (hip, saddle), (knee, saddle - 0.15), z, 0.2, trousers)
    bar(c, (knee, saddle - 0.15), (x + flip * 0.02, 0.3), z, 0.16, trousers)
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
    bar(c, (shoulder, h - 0.35), (x + flip * 0.55 * seen, 1.02), z, 0.12, coat)
    c.disc(shoulder + flip * 0.05, h - 0.12, z, 0.13, 0.14, head)
