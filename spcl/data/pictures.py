"""One image or label file, read whole and decoded by Pillow, or the reason why it cannot be.

A damaged file can kill faster decoders, and some readers paint what is missing black.  The size
that the header states is looked at before anything is read or unpacked, and no file takes more
memory than an image of that size does.
"""

import io
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from spcl.errors import DataError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_OVERHEAD = 12  # bytes of a chunk besides its data: length, name, CRC
PNG_HEADER = 33  # bytes of the signature and of the first chunk, IHDR
RGB8 = (8, 2)  # PNG bit depth and colour type
SIXTEEN_BITS = ((16, 0), (16, 2), (16, 6))  # grey, RGB, RGBA
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 178_956_970  # Pillow's own limit: 512 MiB of RGB
PIXEL_BYTES = 8  # the most that a pixel takes: RGBA of 16 bits
BESIDES_PIXELS = 64 * 2**20  # bytes of texts, profiles and thumbnails; Pillow's limit for texts
SLICE = 2**12  # bytes inflated at a time; deflate makes at most 1032 bytes of one
HEAD = 32  # bytes in which a PNG or a WEBP states its size
ORIENTATION = 0x0112  # Exif tag
UPRIGHT = 1
OPAQUE = 255

_COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

# Start of frame: JPEG markers that are followed by the image's size.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length

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
            for start in range(0, len(part), SLICE):
                size += len(inflate.decompress(part[start : start + SLICE]))
                if size >= whole:
                    return " after the last of its rows"
    except zlib.error:
        return ""
    return f" after {100 * size // max(whole, 1)}% of its rows"


def other_than_a_file(mode: int) -> str | None:
    """What a file system's entry of this `st_mode` is, "a FIFO", or None of a regular file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def stated_size(file: BinaryIO) -> tuple[int, int] | None:
    """(width, height) that the header of a PNG, JPEG or WEBP states; None of another file."""
    head = file.read(HEAD).ljust(HEAD, b"\0")
    if head.startswith(PNG_SIGNATURE):
        return struct.unpack_from(">II", head, 16)
    if head.startswith(b"\xff\xd8\xff"):
        return _jpeg_size(file)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp_size(head)
    return None


def _webp_size(head: bytes) -> tuple[int, int]:
    def number(start: int, end: int) -> int:
        return int.from_bytes(head[start:end], "little")

    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + number(24, 27), 1 + number(27, 30)
    if kind == b"VP8L":
        return 1 + (number(21, 25) & 0x3FFF), 1 + (number(21, 25) >> 14 & 0x3FFF)
    return number(26, 28) & 0x3FFF, number(28, 30) & 0x3FFF


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """The first start of frame; None where the segments before it make no sense."""
    file.seek(2)
    while (marker := file.read(2)) and marker[0] == 0xFF and len(marker) == 2:
        if marker[1] == 0xFF:  # filled up
            file.seek(-1, os.SEEK_CUR)
        elif marker[1] in _JPEG_FRAMES:
            sizes = file.read(7)
            if len(sizes) < 7:
                return None
            height, width = struct.unpack_from(">HH", sizes, 3)
            return width, height
        elif marker[1] not in _JPEG_ALONE:
            length = int.from_bytes(file.read(2), "big")
            file.seek(max(length - 2, 0), os.SEEK_CUR)
    return None


def _format_name(head: bytes) -> str:
    """What Pillow would take the file for, by its first bytes."""
    Image.init()
    for name, (_, accepts) in Image.OPEN.items():
        if accepts is not None and accepts(head) is True:
            return f"a file of the format {name}"
    return "no image"


def read_picture(root: str, path: str, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read and fully decode one file; DataError says what is wrong with it.

    max_pixels  width times height that a file may have
    """
    file = Path(root, path)
    try:
        special = other_than_a_file(file.stat().st_mode)  # opening a FIFO would wait for ever
        if special:
            raise DataError(f"{path} is {special}, not a file; remove it or put the image there")
        with file.open("rb") as opened:
            data, wrong = _read(opened, path, max_pixels)
        if wrong is None and (data.startswith(PNG_SIGNATURE) or _is_called_png(path)):
            wrong = png_problem(data)
        if wrong is None:
            return Picture(path, data, _decoded(data))
    except MemoryError:
        wrong = "takes more memory than there is"
    except _UNREADABLE as error:
        wrong = f"cannot be decoded ({error})"
    raise DataError(f"{path} {wrong}; extract this file again, it was not converted")


def _is_called_png(path: str) -> bool:
    return path.lower().endswith(".png")


def _read(file: BinaryIO, path: str, max_pixels: int) -> tuple[bytes, str | None]:
    """The bytes of a file, no more than an image of the stated size can have, and what is wrong."""
    stated = stated_size(file)
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    if length == 0:
        return b"", "is empty"
    if stated is None:
        head = file.read(HEAD)
        if head.startswith(b"\xff\xd8") or _is_called_png(path):
            return head, "is not a PNG file" if _is_called_png(path) else "is truncated"
        raise DataError(f"{path} is {_format_name(head)}; use one of {', '.join(FORMATS)}")
    width, height = stated
    if width * height > max_pixels:
        raise DataError(
            f"{path} has {width}x{height} pixels by its header, at most {max_pixels} are read; if "
            f"it is meant to be so large, pass --max-pixels {width * height}"
        )
    most = width * height * PIXEL_BYTES + BESIDES_PIXELS
    if length > most:
        return b"", f"has {length} bytes, more than the {width}x{height} pixels of its header take"
    return file.read(length), None


def _decoded(data: bytes) -> Image.Image:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # else missing rows are silently black
    Image.MAX_IMAGE_PIXELS = None  # looked at above; Pillow's limit would be another one
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    stated = stated_size(io.BytesIO(data))
    if image.size != stated:
        raise ValueError(f"the header states two sizes, {stated} and {image.size}")
    image.load()
    return image


def as_rgb8(picture: Picture) -> tuple[bytes, bool]:
    """Bytes that Pillow's convert("RGB") reads as what the file means, and whether they are new.

    Grey, palette and opaque images are kept as they are; of 16 bits, where the lower eight say
    nothing, the upper eight are written anew.  ValueError says what would be lost otherwise.
    """
    image = picture.image
    if image.format not in FORMATS:  # several pictures in one JPEG
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
    tile = other.tile[0]
    arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    raw = str(arguments[0])
    if not raw.endswith(";16B"):
        raise ValueError(f"is {picture.words}, stored as {raw}: not a 16-bit PNG that can be read")
    swapped = raw.replace(";16B", ";16L"), *arguments[1:]
    other.tile = [tile._replace(args=swapped if isinstance(tile.args, tuple) else swapped[0])]
    other.load()
    return np.asarray(picture.image), np.asarray(other)
