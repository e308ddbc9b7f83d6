"""What drawings of several kinds of things share: colours, the finest detail, tubes."""

from spcl.data.streets.canvas import SUPERSAMPLE, THINNEST, Canvas
from spcl.data.streets.domains import COLOURS, Colour

SMALLEST_DETAIL = 1.2  # pixels; finer detail is left out
GLASS: Colour = (64, 74, 88)
TYRE: Colour = (28, 28, 30)


def pick(pool: str, u: float) -> Colour:
    """The colour of a pool that a uniform number u stands for."""
    return COLOURS[pool][int(u * len(COLOURS[pool]))]


def bar(
    c: Canvas, a: tuple[float, float], b: tuple[float, float], z: float, thick: float, paint: int
) -> None:
    """A tube between two points (x, y) at depth z."""
    width = max(SUPERSAMPLE * THINNEST, SUPERSAMPLE * c.pixels(thick, z))
    c.pen.line([c.point(*a, z), c.point(*b, z)], paint, round(width))
