"""Where scenes are drawn: flat polygons in metres onto a plane of paint numbers.

A paint says colour, class and depth, so one drawing gives the image, the label and the haze.
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from spcl.data.streets.domains import Colour
from spcl.data.streets.plan import NEAR
from spcl.data.streets.scene import Camera, Thing

SUPERSAMPLE = 2  # pixels drawn per pixel kept, each way; labels take every second one
THINNEST = 1.0  # pixels; a pole is never thinner, else it would be missing from the label
ASPECT = 2.0  # width / height that the layout is made for; other sizes stretch it

Point = tuple[float, float, float]
Face = tuple[Point, Point, Point, Point]  # bottom left, bottom right, top right, top left
Rect = tuple[float, float, float, float]  # on the ground: x0, x1, z0, z1


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
        if z < NEAR:
            z = NEAR
        return self._u0 + self._fu * x / z, self._v0 - self._fv * (y - self.camera.height) / z

    def face(self, corners: Sequence[Point], paint: int) -> None:
        """Fill the polygon between points in metres."""
        self.pen.polygon([self.point(*corner) for corner in corners], paint)

    def breadth(self, face: Face) -> float:
        """Columns of the finished picture between a face's left and right, 0 outside of it."""
        xs = [self.point(*corner)[0] for corner in face]
        if max(xs) < 0 or min(xs) > SUPERSAMPLE * self.width:
            return 0.0
        return (max(xs) - min(xs)) / SUPERSAMPLE

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
    red, green, blue = (x + (y - x) * share for x, y in zip(a, b, strict=True))
    return red, green, blue


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
