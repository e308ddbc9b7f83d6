"""Raw images that are no images: bombs, lies about sizes, and what is no file at all.

Each is told by name, before it takes more memory than an image of the size in its header does.
"""

import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import trees

from spcl.data.convert import convert
from spcl.data.output import REPORT
from spcl.data.pictures import BESIDES_PIXELS, MAX_PIXELS, PIXEL_BYTES
from spcl.data.request import Options
from spcl.errors import DataError

MIB = 2**20
UNPACKED = 1024  # MiB that a bomb unpacks to
SPARSE = 20_000 * MIB  # bytes of a file that are not on the disk
SLACK = 96 * MIB  # decoders, and one text chunk of 64 MiB
RGB = (48, 32, 8, 2, 0, 0, 0)
ROWS = bytes(32 * (1 + 48 * 3))


def bomb(mib: int = UNPACKED) -> bytes:
    """A zlib stream of zeros, made without packing them all."""
    packer = zlib.compressobj(9)
    first = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (mib - 1)


def png(header: tuple[int, ...], *chunks: tuple[bytes, bytes], end: bool = True) -> bytes:
    body = trees.png_chunk(b"IHDR", struct.pack(">IIBBBBB", *header))
    body += b"".join(trees.png_chunk(*chunk) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + body + (trees.png_chunk(b"IEND", b"") if end else b"")


PIXELS = (b"IDAT", zlib.compress(ROWS))
TEXTS = {
    "zTXt": (b"zTXt", b"Comment\0\0" + bomb()),
    "iTXt": (b"iTXt", b"Comment\0\1\0\0\0" + bomb()),
    "iCCP": (b"iCCP", b"profile\0\0" + bomb()),
}


def jpeg(width: int, height: int) -> bytes:
    return b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 8, 8, height, width, 0) + b"\xff\xd9"


def webp(width: int, height: int) -> bytes:
    body = b"WEBPVP8X" + struct.pack("<II", 10, 0)
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body)) + body


# What it is called: bytes, what is said of it.
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut.png": (lambda: png(RGB, (b"IDAT", bomb()), end=False), "is truncated after the last"),
    "cut_in_two.png": (
        lambda: png(RGB, (b"IDAT", bomb()), (b"IDAT", bomb()), end=False),
        "is truncated after the last",
    ),
    "whole.png": (lambda: png(RGB, (b"IDAT", bomb())), ""),
    **{
        f"{name}_{place}.png": (
            lambda chunk=chunk, place=place: png(
                RGB, *([chunk, PIXELS] if place == "before" else [PIXELS, chunk])
            ),
            "" if name == "iCCP" else "Decompressed data too large",
        )
        for name, chunk in TEXTS.items()
        for place in ("before", "after")
    },
    "wide.png": (lambda: png((60_000, 60_000, *RGB[2:]), PIXELS), "60000x60000 pixels .*at most"),
    "most.png": (lambda: png((2**31 - 1, 2**31 - 1, *RGB[2:]), PIXELS, end=False), "--max-pixels"),
    "wide.jpg": (lambda: jpeg(65_535, 65_535), "65535x65535 pixels .*--max-pixels 4294836225"),
    "wide.webp": (lambda: webp(2**14, 2**14), "16384x16384 pixels .*--max-pixels 268435456"),
    "two.png": (
        lambda: png(
            RGB, (b"IHDR", struct.pack(">IIBBBBB", 13_000, 13_000, *RGB[2:])), (b"IDAT", bomb())
        ),
        "header states two sizes",
    ),
    "two.jpg": (
        lambda: jpeg(48, 32)[:-2] + jpeg(13_000, 13_000)[2:],
        "cannot be decoded|header states two sizes",
    ),
    "not.png": (lambda: bomb(), "is not a PNG file"),
    "page.jpg": (lambda: b"<html>404", "is no image; use one of PNG, JPEG, WEBP"),
}
LONG = {"long.png": png(RGB, PIXELS), "long.jpg": jpeg(48, 32), "long.webp": webp(48, 32)}

READ = """
import json, os, sys
from spcl.data.pictures import read_picture
def memory(of):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(of))
import numpy, PIL.Image; PIL.Image.init()
before, said = memory("VmRSS"), {}
for name in sorted(os.listdir(sys.argv[1])):
    try:
        picture = read_picture(sys.argv[1], name)
        said[name] = f"read {picture.image.size}"
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps([said, memory("VmHWM") - before]))
"""


def read_all(folder: Path) -> tuple[dict[str, str], int]:
    """What is said of each file of a folder, and by how much the reader has grown at most."""
    run = subprocess.run(
        [sys.executable, "-c", READ, str(folder)], capture_output=True, check=True, text=True
    )
    said, grown = json.loads(run.stdout)
    return said, grown


def test_bombs_take_no_more_than_their_header_promises(tmp_path: Path) -> None:
    for name, (make, _) in BOMBS.items():
        (tmp_path / name).write_bytes(make())
    for name, start in LONG.items():
        (tmp_path / name).write_bytes(start)
        os.truncate(tmp_path / name, SPARSE)
    said, grown = read_all(tmp_path)
    assert len(said) == len(BOMBS) + len(LONG) == 20
    for name, (_, message) in BOMBS.items():
        kind = "read" if said[name].startswith("read (48, 32)") else "DataError"
        assert said[name].startswith(kind) and (kind == "read" or name in said[name])
        assert re.search(message, said[name]), (name, said[name])
    for name in LONG:
        assert re.search(rf"{name} has {SPARSE} bytes, more than the 48x32 pixels", said[name])
    assert grown < SLACK + 48 * 32 * PIXEL_BYTES, f"{grown / MIB:.0f} MiB"


def random_bomb(rng: np.random.Generator) -> bytes:
    """A small image with chunks that unpack to much, at any place, cut or whole."""
    header = (int(rng.integers(1, 200)), int(rng.integers(1, 200)), *RGB[2:])
    colour, depth = [(2, 8), (0, 8), (3, 4), (6, 16)][int(rng.integers(4))]
    header = (*header[:2], depth, colour, 0, 0, int(rng.integers(2)))
    chunks = [PIXELS, (b"IDAT", bomb(int(rng.integers(200, 1000))))]
    chunks += [(b"PLTE", bytes(48)), *TEXTS.values()]
    rng.shuffle(chunks)
    data = png(header, *chunks[: int(rng.integers(1, 6))], end=bool(rng.random() < 0.7))
    if rng.random() < 0.3:
        data = data[: int(rng.integers(40, len(data)))]
    return data


@pytest.mark.parametrize(
    "count", [40, pytest.param(400, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_random_bombs_take_no_more_either(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(count)
    for number in range(count):
        (tmp_path / f"{number:04d}.png").write_bytes(random_bomb(rng))
    said, grown = read_all(tmp_path)
    assert len(said) == count
    named = [name in text and text.startswith("DataError: ") for name, text in said.items()]
    kept = [text.startswith("read (") for text in said.values()]
    assert all(one != other for one, other in zip(named, kept, strict=True))
    assert sum(named) > count / 4
    assert grown < SLACK + 200 * 200 * PIXEL_BYTES, f"{grown / MIB:.0f} MiB"


def test_limit_is_pillows_own_and_a_setting(tmp_path: Path) -> None:
    """A header of exactly the limit passes it; the flag that a message names lets a larger one."""
    from PIL import Image

    from ray_jobs.ingest import parse
    from spcl.data.pictures import read_picture

    assert 2 * (1024**3 // 4 // 3) == MAX_PIXELS == parse(["--verify", "x"]).max_pixels
    trees.save(tmp_path / "x.png", np.zeros((20, 30, 3), np.uint8))
    assert read_picture(str(tmp_path), "x.png", 600).image.size == (30, 20)
    with pytest.raises(DataError, match="30x20 pixels .* at most 599 .*--max-pixels 600$"):
        read_picture(str(tmp_path), "x.png", 599)
    assert Image.MAX_IMAGE_PIXELS is None  # or Pillow would have a limit of its own
    assert BESIDES_PIXELS == 64 * MIB


@pytest.mark.parametrize("role", ["image", "label"])
def test_limit_is_kept_by_the_conversion(tmp_path: Path, role: str) -> None:
    root = trees.gta5_tree(tmp_path / "raw", 2, trees.SMALL)
    path = root / f"{role}s/00002.png"
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"{role}s/00002.png has 20000x20000 .*178956970 are read"):
        convert("gta5", root, tmp_path / "out", split="train")
    trees.gta5_tree(root, 2, trees.SMALL)
    with pytest.raises(DataError, match="--max-pixels 3072"):
        convert("gta5", root, tmp_path / "out", split="train", options=Options(max_pixels=3000))
    assert (
        convert("gta5", root, tmp_path / "out", split="train", options=Options(max_pixels=3072))[
            "converted"
        ]
        == 2
    )


# --- what is no file ------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    short = Path(tempfile.mkdtemp(), "s")  # its path may have 107 bytes
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as made:
        made.bind(str(short))
    short.rename(path)
    short.parent.rmdir()


def folder(path: Path) -> None:
    path.mkdir()


def link_to(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        target = path.parents[3] / f"target-{path.name}"
        make(target)
        path.symlink_to(target)

    return link


SPECIAL: dict[str, tuple[Callable[[Path], None], str]] = {
    "a FIFO": (fifo, "a FIFO"),
    "a socket": (bound_socket, "a socket"),
    "a folder": (folder, "a folder"),
    "a link to a FIFO": (link_to(fifo), "a FIFO"),
    "a link to a socket": (link_to(bound_socket), "a socket"),
    "a link to a folder": (link_to(folder), "a folder"),
    "a link to /dev/zero": (lambda path: path.symlink_to("/dev/zero"), "a device"),
    "a link to /dev/null": (lambda path: path.symlink_to("/dev/null"), "a device"),
}
PLACES = {
    "image": "leftImg8bit/val/munster/munster_000173_000019_leftImg8bit.png",
    "label": "gtFine/val/munster/munster_000173_000019_gtFine_labelIds.png",
}


def replaced(root: Path) -> Iterator[tuple[str, str, Path, str]]:
    for what, (make, kind) in SPECIAL.items():
        for role, place in PLACES.items():
            tree = trees.cityscapes_tree(root / f"{what}-{role}".replace("/", "_"), 0, 2, 0)
            (tree / place).unlink()
            make(tree / place)
            yield what, place, tree, kind


def test_what_is_no_file_is_named_and_not_read(tmp_path: Path) -> None:
    tried = 0
    for what, place, tree, kind in replaced(tmp_path / "raw"):
        out = tmp_path / f"out-{tried}"
        with pytest.raises(DataError, match=f"{place} is {kind}, not a file; remove it"):
            convert("cityscapes", tree, out, split="val")
        checks = json.loads(out.with_name(f"{out.name}.{REPORT}").read_text())["checks"]
        assert place in checks["not_a_file"]["files"], what
        tried += 1
    assert tried == 16


def test_reader_does_not_open_it_either(tmp_path: Path) -> None:
    """Where a file became something else after it was listed."""
    from spcl.data.pictures import read_picture

    for number, (make, kind) in enumerate(SPECIAL.values()):
        path = tmp_path / f"a/b/c/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
        with pytest.raises(DataError, match=f"{number}.png is {kind}, not a file"):
            read_picture(str(path.parent), path.name)
    assert number == 7


def test_facts_and_lists_are_files_too(tmp_path: Path) -> None:
    root = trees.synscapes_tree(tmp_path / "raw", 2)
    (root / "meta/2.json").unlink()
    fifo(root / "meta/2.json")
    with pytest.raises(DataError, match="meta/2.json is not valid JSON .it is a FIFO"):
        convert("synscapes", root, tmp_path / "out", split="train")
    (root / "meta/2.json").unlink()
    (root / "meta/2.json").write_text("{")
    os.truncate(root / "meta/2.json", SPARSE)
    with pytest.raises(DataError, match=f"meta/2.json .*it has {SPARSE} bytes"):
        convert("synscapes", root, tmp_path / "out", split="train")
    fifo(tmp_path / "list.txt")
    with pytest.raises(DataError, match="the list .*list.txt is a FIFO; write the names to a file"):
        convert(
            "synscapes",
            root,
            tmp_path / "out",
            split="train",
            options=Options(only=tmp_path / "list.txt"),
        )


def test_links_that_lead_back_are_not_followed_without_end(tmp_path: Path) -> None:
    root = trees.gta5_tree(tmp_path / "raw", 2, trees.SMALL)
    for name in ("again", "once_more"):  # two: the ways double with each turn
        (root / "images" / name).symlink_to(root / "images")
        (root / "labels" / name).mkdir()
    for name, other in (("again", "once_more"), ("once_more", "again")):  # through each other
        for number in range(3):
            (root / f"labels/{name}/{number}").symlink_to(root / "labels" / other)
    assert convert("gta5", root, tmp_path / "out", split="train")["converted"] == 2


def test_folder_that_is_called_like_an_image_may_hold_it(tmp_path: Path) -> None:
    root = trees.gta5_tree(tmp_path / "raw", 2, trees.SMALL)
    (root / "images/00002.png").rename(tmp_path / "x.png")
    (root / "images/00002.png").mkdir()
    (tmp_path / "x.png").rename(root / "images/00002.png/00002.png")
    report = convert("gta5", root, tmp_path / "out", split="train")
    assert report["converted"] == 2 and report["checks"] == {}
