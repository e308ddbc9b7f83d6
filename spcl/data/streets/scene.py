"""One street scene: a camera, ground, and things in metres.

The camera looks along +z at (0, height, 0); x is to the right, y up, the ground is y = 0.
Nothing here knows about pixels, so a scene is the same at every image size.
"""

from dataclasses import dataclass

from spcl.data.streets.domains import Colour


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
