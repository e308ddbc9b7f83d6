"""One image or label file, read whole and decoded by Pillow, or the reason why it cannot be.

A damaged file can kill faster decoders, and some readers paint what is missing black.
"""

import io
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from spcl.errors import DataError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_OVERHEAD = 12  # bytes of a chunk besides its data: length, name, CRC
PNG_HEADER = 33  # bytes of the signature and of the first chunk, IHDR
RGB8 = (8, 2)  # PNG bit depth and colour type
SIXTEEN_BITS = ((16, 0), (16, 2), (16, 6))  # grey, RGB, RGBA
FORMATS = ("PNG", "JPEG", "WEBP")
ORIENTATION = 0x0112  # Exif tag
UPRIGHT = 1
OPAQUE = 255

_COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}

# What Pillow raises for damaged files.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    KeyError,
    struct.error,
    Image.DecompressionBombError,
)


class Picture(NamedTuple):
    path: str
    data: bytes
    image: Image.Image

    @property
    def form(self) -> tuple[int, int]:
        """(bit depth, colour type) of a PNG, (0, 0) of another format."""
        return (self.data[24], self.data[25]) if self.image.format == "PNG" else (0, 0)

    @property
    def words(self) -> str:
        """ "8-bit RGB PNG" """
        if self.image.format != "PNG":
            return f"{self.image.format} {self.image.mode}"
        depth, colour = self.form
        return f"{depth}-bit {_COLOUR_TYPES.get(colour, colour)} PNG"

    @property
    def is_rgb8(self) -> bool:
        """Of 16 bits, Pillow would silently drop eight."""
        return self.image.mode == "RGB" and self.form in (RGB8, (0, 0))


def png_problem(data: bytes) -> str | None:
    """Why these bytes are no whole PNG file (chunk checksums, end marker), or None."""
    if not data:
        return "is empty"
    if not data.startswith(PNG_SIGNATURE):
        return "is not a PNG file"
    position, view, pixels = len(PNG_SIGNATURE), memoryview(data), []
    while position + PNG_OVERHEAD <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + PNG_OVERHEAD + length
        if end > len(data):
            break
        (expected,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(view[position + 4 : end - 4]) != expected:
            return f"has a damaged chunk at byte {position} (checksum of {kind!r} is wrong)"
        if kind == b"IEND":
            return None
        if kind == b"IDAT":
            pixels.append(view[position + 8 : end - 4])
        position = end
    if data[position + 4 : position + 8] == b"IDAT":
        pixels.append(view[position + 8 :])
    return f"is truncated{_share(data, pixels)}: the PNG end marker is missing"


def _share(data: bytes, pixels: list[memoryview]) -> str:
    """ " after 41 % of its rows", as far as the header can be read."""
    if len(data) < PNG_HEADER:
        return ""
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    whole = height * (1 + -(-width * depth * _CHANNELS.get(colour, 1) // 8))
    inflate, size = zlib.decompressobj(), 0
    try:
        for part in pixels:
            size += len(inflate.decompress(part))
    except zlib.error:
        return ""
    return f" after {100 * size // max(whole, 1)}% of its rows"


def read_picture(root: str, path: str) -> Picture:
    """Read and fully decode one file; DataError says what is wrong with it."""
    try:
        data = Path(root, path).read_bytes()
        wrong = None
        if data.startswith(PNG_SIGNATURE) or path.endswith(".png"):
            wrong = png_problem(data)
        elif not data:
            wrong = "is empty"
        if wrong is None:
            ImageFile.LOAD_TRUNCATED_IMAGES = False  # else missing rows are silently black
            image = Image.open(io.BytesIO(data))
            image.load()
            return Picture(path, data, image)
    except _UNREADABLE as error:
        wrong = f"cannot be decoded ({error})"
    raise DataError(f"{path} {wrong}; extract this file again, it was not converted")


def as_rgb8(picture: Picture) -> tuple[bytes, bool]:
    """Bytes that Pillow's convert("RGB") reads as what the file means, and whether they are new.

    Grey, palette and opaque images are kept as they are; of 16 bits, where the lower eight say
    nothing, the upper eight are written anew.  ValueError says what would be lost otherwise.
    """
    image = picture.image
    if image.format not in FORMATS:
        raise ValueError(f"is {picture.words}; use one of {', '.join(FORMATS)}")
    turned = image.getexif().get(ORIENTATION, UPRIGHT)
    if turned != UPRIGHT:
        raise ValueError(
            f"is to be turned (Exif orientation {turned}); save it upright, labels too"
        )
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        if np.asarray(image.convert("RGBA"))[..., 3].min() < OPAQUE:
            raise ValueError(f"is {picture.words} and partly transparent; flatten it")
    if picture.form in SIXTEEN_BITS:
        high, low = sixteen_bits(picture)
        if not ((low == 0).all() or (low == high).all()):
            raise ValueError(f"is {picture.words} and uses all its bits; convert it to 8 bits")
        buffer = io.BytesIO()
        Image.fromarray(high).convert("RGB").save(buffer, "PNG")
        return buffer.getvalue(), True
    if image.mode not in ("RGB", "L", "1", "P", "RGBA", "LA", "PA") or picture.form[0] == 16:
        raise ValueError(f"is {picture.words}; convert it to 8-bit RGB")
    return picture.data, False


def sixteen_bits(picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """High and low bytes of a 16-bit PNG: (H, W), (H, W, 3) or (H, W, 4) uint8 each.

    Pillow reads grey as 16 bits and of colour the high byte only; told that the file's byte order
    is the other one, it reads the low byte.
    """
    if picture.image.mode.startswith("I"):
        values = np.asarray(picture.image).astype(np.uint16)
        return (values >> 8).astype(np.uint8), (values & 0xFF).astype(np.uint8)
    other = Image.open(io.BytesIO(picture.data))
    codec, box, offset, arguments = other.tile[0]
    raw = arguments[0] if isinstance(arguments, tuple) else arguments
    if not raw.endswith(";16B"):
        raise ValueError(f"is {picture.words}, stored as {raw}: not a 16-bit PNG that can be read")
    swapped = raw.replace(";16B", ";16L")
    other.tile = [
        (codec, box, offset, (swapped, *arguments[1:]) if isinstance(arguments, tuple) else swapped)
    ]
    other.load()
    return np.asarray(picture.image), np.asarray(other)
