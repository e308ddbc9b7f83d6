"""A scene as pixels: (image, trainIds).

The scene is drawn once, far things first, as a plane of paint numbers; light, haze, lens and sensor
then work on whole arrays.
"""

import numpy as np
from PIL import Image, ImageFilter

from spcl.data.streets.canvas import ASPECT, SUPERSAMPLE, Canvas
from spcl.data.streets.domains import (
    DOMAINS,
    LOOKS,
    SKY,
    SPLITS,
    VOID,
    Colour,
    Look,
    class_offsets,
)
from spcl.data.streets.layout import compose
from spcl.data.streets.plan import NEAR
from spcl.data.streets.scene import Scene
from spcl.data.streets.things import DRAW

MID_GREY = 128.0
TEXTURE_BLOBS = (16, 4)  # blobs per height of the two coarser textures; the finest is per pixel
SKY_HEIGHT = 14.0  # m; how fast haze thins out above the horizon
HOOD: Colour = (38, 40, 44)
_SCENE_STREAM, _PIXEL_STREAM = 2, 3


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
        c.pen.ellipse(box, c.paint(HOOD, VOID, NEAR))


def _develop(
    c: Canvas,
    view: Scene,
    look: Look,
    offsets: np.ndarray,
    textures: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Look every pixel's paint up, then add texture, light, haze, lens and sensor."""
    paint = np.asarray(c.plane)
    classes = np.array(c.classes, np.uint8)
    label = classes[paint[::SUPERSAMPLE, ::SUPERSAMPLE]]
    image = _average(np.array(c.colours, np.float32) + offsets[classes], paint)
    image += _texture(rng, textures[label])[..., None]
    depth, shaded = _depth_and_shade(c, view, paint)
    image *= (view.light * (1 - look.shadow * shaded))[..., None]
    clear = np.exp(-look.haze * depth)[..., None]
    image = np.array(look.haze_colour, np.float32) * (1 - clear) + image * clear
    return _expose(image, look, rng), label


def _average(colours: np.ndarray, paint: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32: the mean colour of the pixels drawn for each pixel kept."""
    steps = range(SUPERSAMPLE)
    total = sum(colours[paint[i::SUPERSAMPLE, j::SUPERSAMPLE]] for i in steps for j in steps)
    return total / np.float32(SUPERSAMPLE**2)


def _texture(rng: np.random.Generator, sigma: np.ndarray) -> np.ndarray:
    """(H, W) grey levels: noise at three scales, each with its pixel's own sigma (H, W, 3)."""
    height, width = sigma.shape[:2]
    scales = enumerate((height, *TEXTURE_BLOBS))
    return sum(sigma[..., n] * _noise(rng, blobs, height, width) for n, blobs in scales)


def _noise(rng: np.random.Generator, blobs: int, height: int, width: int) -> np.ndarray:
    """(H, W) smooth noise of about unit sigma, so many blobs high."""
    rows = min(blobs, height)
    columns = max(1, round(rows * width / height))
    field = rng.standard_normal((rows, columns), np.float32)
    if rows == height:
        return field
    return np.asarray(Image.fromarray(field).resize((width, height), Image.Resampling.BICUBIC))


def _depth_and_shade(c: Canvas, view: Scene, paint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) metres, and (H, W) bool: ground on which the houses' shadow lies.

    Ground and sky have no depth of their own: it follows from the row.
    """
    camera = view.camera
    v = ((np.arange(c.height, dtype=np.float32) + 0.5) / c.height - camera.horizon)[:, None]
    u = (np.arange(c.width, dtype=np.float32) + 0.5) / c.width - camera.vanish
    distance = np.where(v > 0, camera.height, SKY_HEIGHT) * camera.focal
    row_depth = distance / np.maximum(np.abs(v), 1e-3)
    depth = np.array(c.depths, np.float32)[paint[::SUPERSAMPLE, ::SUPERSAMPLE]]
    on_ground = (depth == 0) & (v > 0)
    x = u * ASPECT * row_depth / camera.focal
    shaded = on_ground & ((x - view.shade_edge) * view.shade_side > 0)
    return np.where(depth == 0, row_depth, depth).astype(np.float32), shaded


def _expose(image: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Cast, contrast, vignette, blur and noise; (H, W, 3) float32 to uint8."""
    height, width = image.shape[:2]
    grey = image.mean(-1, keepdims=True)
    image = (grey + look.saturation * (image - grey)) * np.array(look.gain, np.float32)
    image = MID_GREY + look.contrast * (image - MID_GREY)
    if look.vignette:
        y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
        image *= (1 - look.vignette * (x**2 + y**2) / 2)[..., None]
    if look.blur:
        picture = Image.fromarray(_to_bytes(image))
        image = np.asarray(picture.filter(ImageFilter.GaussianBlur(look.blur * height)))
    return _to_bytes(image + look.noise * rng.standard_normal(image.shape, np.float32))


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
