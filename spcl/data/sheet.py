"""A contact sheet of a converted split: samples beside their labels, and a legend of the classes.

Looked at, a wrong id map shows at once: what is tinted as road must be road.
"""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spcl.data.labels import IGNORE_INDEX, colorize
from spcl.data.shards import ShardSet

TILE = (320, 240)  # width and height in pixels that a picture is fitted into
PAIRS = 3  # samples side by side; of an unlabelled split twice as many
TINT = 0.6  # weight of the class colour over the image's grey
FONT_SIZE = 12
LINE = 18  # pixels of a line of text
GAP = 4
LEGEND_WIDTH = 160


def choose_samples(class_pixels: np.ndarray | None, total: int, count: int) -> list[int]:
    """Sorted indices of `count` of `total` samples that together show as many classes as possible.

    class_pixels  (N, K) pixels of each class, None without labels

    Greedy: the sample with the most classes not shown yet, of those the one where they cover most.
    Once nothing new is left, and without labels, samples at even steps.
    """
    count = min(count, total)
    chosen: list[int] = []
    if class_pixels is not None:
        share = class_pixels / np.maximum(class_pixels.sum(1, keepdims=True), 1)  # (N, K)
        missing = np.ones(class_pixels.shape[1], bool)
        while len(chosen) < count:
            new = (class_pixels[:, missing] > 0).sum(1)  # (N,)
            if not new.any():
                break
            best = int(np.argmax(new + share[:, missing].sum(1) / 2))  # half: a share may be 1
            chosen.append(best)
            missing &= class_pixels[best] == 0
    others = np.setdiff1d(np.arange(total), chosen)
    more = others[np.linspace(0, len(others) - 1, count - len(chosen)).round().astype(int)]
    return sorted([*chosen, *more.tolist()])


def contact_sheet(shards: ShardSet, samples: list[int]) -> Image.Image:
    """The samples, row by row, each an image and, where there is one, the tinted label."""
    parts = 2 if shards.labelled else 1
    columns = min(len(samples), PAIRS * 2 // parts)
    pictures = [_tiles(shards, index) for index in samples]
    height = max(tile.height for tiles in pictures for tile in tiles) + LINE + GAP
    width = parts * (TILE[0] + GAP)
    rows = -(-len(samples) // columns)
    legend = _legend(shards, columns * width) if shards.labelled else None
    below = legend.height if legend else 0
    sheet = Image.new("RGB", (columns * width, rows * height + below), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (index, tiles) in enumerate(zip(samples, pictures, strict=True)):
        left, top = place % columns * width, place // columns * height
        draw.text((left, top), shards.sample_ids[index], fill="black", font=_font())
        for number, tile in enumerate(tiles):
            sheet.paste(tile, (left + number * (TILE[0] + GAP), top + LINE))
    if legend:
        sheet.paste(legend, (0, rows * height))
    return sheet


def _tiles(shards: ShardSet, index: int) -> list[Image.Image]:
    with Image.open(io.BytesIO(shards.image(index))) as file:
        image = file.convert("RGB")
    factor = min(TILE[0] / image.width, TILE[1] / image.height)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    small = image.resize(size, Image.Resampling.BILINEAR)
    if not shards.labelled:
        return [small]
    with Image.open(io.BytesIO(shards.label(index))) as file:
        label = np.asarray(file.resize(size, Image.Resampling.NEAREST))
    return [small, Image.fromarray(tinted(np.asarray(small), label, shards.palette))]


def tinted(image: np.ndarray, label: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: class colours over the image in grey; ignored pixels are dark.

    image (H, W, 3) uint8, label (H, W) trainIds, palette (K, 3)
    """
    grey = image.mean(2, keepdims=True)
    return (TINT * colorize(label, palette) + (1 - TINT) * grey).round().astype(np.uint8)


def _legend(shards: ShardSet, width: int) -> Image.Image:
    """A swatch, trainId and name for each class, and what ignored pixels look like."""
    entries = [
        (tuple(color), f"{train_id} {name}")
        for train_id, (color, name) in enumerate(
            zip(shards.palette.tolist(), shards.class_names, strict=True)
        )
    ]
    entries.append(((0, 0, 0), f"{IGNORE_INDEX} ignored"))
    columns = max(1, width // LEGEND_WIDTH)
    canvas = Image.new("RGB", (width, -(-len(entries) // columns) * LINE + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for place, (color, text) in enumerate(entries):
        left, top = place % columns * LEGEND_WIDTH, place // columns * LINE + GAP
        draw.rectangle((left, top, left + LINE, top + LINE - GAP), fill=color, outline="black")
        draw.text((left + LINE + GAP, top), text, fill="black", font=_font())
    return canvas


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(FONT_SIZE)
