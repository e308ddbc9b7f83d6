"""What a header states, against Pillow, for files as cameras and tools write them."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from spcl.data.pictures import png_problem, stated_size

SIZE = (47, 31)
RGB = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def rgb() -> Image.Image:
    return Image.fromarray(RGB)


EXIF = Image.Exif()
EXIF[0x010E] = "x" * 60_000  # a thumbnail may be as long
ALPHA = Image.fromarray(np.dstack([RGB, RGB[..., 0]]))
FILES = {
    "PNG": saved(rgb(), "PNG"),
    "PNG of 1 bit": saved(rgb().convert("1"), "PNG"),
    "JPEG": saved(rgb(), "JPEG"),
    "JPEG of grey": saved(rgb().convert("L"), "JPEG"),
    "JPEG of four colours": saved(rgb().convert("CMYK"), "JPEG"),
    "progressive JPEG": saved(rgb(), "JPEG", progressive=True),
    "JPEG with Exif": saved(rgb(), "JPEG", exif=EXIF),
    "JPEG with a profile": saved(rgb(), "JPEG", icc_profile=bytes(200_000)),
    "JPEG with restarts": saved(rgb(), "JPEG", restart_marker_blocks=1),
    "JPEG of two pictures": saved(rgb(), "MPO", save_all=True, append_images=[rgb()]),
    "WEBP": saved(rgb(), "WEBP"),
    "lossless WEBP": saved(rgb(), "WEBP", lossless=True),
    "WEBP with alpha": saved(ALPHA, "WEBP"),
    "lossless WEBP with alpha": saved(ALPHA, "WEBP", lossless=True),
    "WEBP that moves": saved(rgb(), "WEBP", save_all=True, append_images=[ALPHA]),
    "WEBP with Exif": saved(rgb(), "WEBP", exif=EXIF),
}


@pytest.mark.parametrize("name", FILES)
def test_stated_size_is_the_size(name: str) -> None:
    assert stated_size(io.BytesIO(FILES[name])) == SIZE
    assert Image.open(io.BytesIO(FILES[name])).size == SIZE


def test_sizes_of_many_bits_are_read_too() -> None:
    for form, options in (("WEBP", {}), ("WEBP", {"lossless": True}), ("JPEG", {}), ("PNG", {})):
        for size in ((16383, 1), (1, 16383), (257, 300)):
            data = saved(Image.new("RGB", size), form, **options)
            assert stated_size(io.BytesIO(data)) == size


def test_fill_bytes_before_a_marker_are_passed() -> None:
    data = FILES["JPEG"]
    assert stated_size(io.BytesIO(data[:2] + b"\xff\xff\xff" + data[2:])) == SIZE


@pytest.mark.parametrize("name", FILES)
def test_any_beginning_of_a_file_states_its_size_or_another_or_none(name: str) -> None:
    """No cut raises, and one behind the header changes nothing."""
    data = FILES[name]
    found = {stated_size(io.BytesIO(data[:length])) for length in range(0, len(data), 7)}
    assert SIZE in found | {stated_size(io.BytesIO(data))}


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"BM", b"\xff\xd8", b"RIFF1234WAVE", bytes(99)])
def test_other_files_state_none(data: bytes) -> None:
    assert stated_size(io.BytesIO(data)) is None


def test_share_of_rows_is_what_was_cut() -> None:
    """Of a file without compression, where bytes are rows."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 300, 3), np.uint8))
    data = saved(image, "PNG", compress_level=0)
    for percent in (10, 35, 80):
        said = png_problem(data[: len(data) * percent // 100])
        share = int(said.split("after ")[1].split("%")[0])
        assert abs(share - percent) <= 1, said
    whole = struct.pack(">I", 0) + b"IEND"
    assert data[-12:-4] == whole and png_problem(data) is None
    assert "after the last of its rows" in png_problem(data[:-12])
