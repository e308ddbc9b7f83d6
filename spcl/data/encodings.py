"""How label files pack their ids: from the pixels of a PNG to an array of raw ids."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spcl.data.pictures import Picture, sixteen_bits

COLOR = "color"


@dataclass(frozen=True)
class Encoding:
    """forms: (PNG bit depth, PNG colour type) that hold it; top: the largest id it can hold."""

    words: str
    forms: frozenset[tuple[int, int]]
    read: Callable[[Picture], np.ndarray]
    top: int = 255


def _pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture.image)  # of a palette file: the indices


def _red(picture: Picture) -> np.ndarray:
    return np.asarray(picture.image)[..., 0]


def _sixteen(picture: Picture) -> np.ndarray:
    high, low = sixteen_bits(picture)
    ids = high.astype(np.uint16) << 8 | low
    return ids[..., 0] if ids.ndim == 3 else ids


_RGB8 = frozenset({(8, 2), (8, 6)})

ENCODINGS: dict[str, Encoding] = {
    # Pillow writes as few bits as the palette needs: 2 for a mask of 3 classes.
    "png8:P": Encoding("8-bit palette PNG", frozenset((bits, 3) for bits in (1, 2, 4, 8)), _pixels),
    "png8:L": Encoding("8-bit grey PNG", frozenset({(8, 0)}), _pixels),
    "png8:RGB": Encoding("8-bit RGB PNG with the class in the red channel", _RGB8, _red),
    "png16:L": Encoding("16-bit grey PNG", frozenset({(16, 0)}), _sixteen, top=65535),
    "png16:RGB": Encoding(
        "16-bit RGB PNG with the class in the red channel", frozenset({(16, 2)}), _sixteen, 65535
    ),
    # `read` gives the colours; `from_colors` looks them up.
    COLOR: Encoding("8-bit RGB PNG in the colours of the classes", _RGB8, _pixels),
}


def from_colors(colors: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(H, W) raw ids, the first of the palette with that colour, and colours it has not.

    colors (H, W, 3 or 4) uint8; palette (N, 3) uint8
    """
    packed = _pack(colors)
    known, first = np.unique(_pack(palette), return_index=True)
    place = np.searchsorted(known, packed).clip(max=len(known) - 1)
    strange = np.unique(packed[known[place] != packed])
    return first[place].astype(np.uint16), [f"{c >> 16},{c >> 8 & 255},{c & 255}" for c in strange]


def _pack(colors: np.ndarray) -> np.ndarray:
    r, g, b = (colors[..., channel].astype(np.int32) for channel in range(3))
    return r << 16 | g << 8 | b
