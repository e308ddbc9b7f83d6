"""Raw data sets with one thing changed at random: converted correctly, or refused by name.

    PYTHONPATH=tests python -m tests.mutations 2000

What a label file means is read here by a decoder of our own, slow and obvious, that shares no code
with the converter; whether an image can be read is asked of OpenCV.
"""

import collections
import io
import json
import os
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import trees
from PIL import Image

from spcl.data.convert import convert
from spcl.data.labels import CITYSCAPES_IDS, GTA5_IDS, SYNTHIA_IDS
from spcl.data.output import REPORT
from spcl.data.shards import ShardSet
from spcl.errors import DataError

SIZE = (40, 30)
SAMPLES = 3
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def obvious_png(data: bytes) -> np.ndarray:
    """(H, W, channels) of a PNG that isn't interlaced.  ValueError if it is no such.

    Grey of fewer than 8 bits is no such: readers stretch it.
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError("signature")
    chunks, at = [], 8
    while not chunks or chunks[-1][0] != b"IEND":
        (length,) = struct.unpack(">I", data[at : at + 4].ljust(4, b"\xff"))
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        crc = data[at + 8 + length : at + 12 + length]
        if len(crc) < 4 or struct.unpack(">I", crc)[0] != zlib.crc32(kind + body):
            raise ValueError("chunk")
        chunks.append((kind, body))
        at += 12 + length
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    if depth not in (8, 16) and (depth, colour) not in ((1, 3), (2, 3), (4, 3)) or interlaced:
        raise ValueError("form")
    unit = max(1, CHANNELS[colour] * depth // 8)
    packed = b"".join(body for kind, body in chunks if kind == b"IDAT")
    raw = zlib.decompressobj().decompress(packed)  # its own end may be missing, as for libpng
    stride = -(-width * CHANNELS[colour] * depth // 8)
    above = bytearray(stride)
    rows = []
    for y in range(height):
        line = bytearray(raw[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        if len(line) < stride:
            raise ValueError("rows")
        for x in range(stride):
            a = line[x - unit] if x >= unit else 0
            b, c = above[x], above[x - unit] if x >= unit else 0
            paeth = min((a, b, c), key=lambda v, a=a, b=b, c=c: abs(a + b - c - v))
            line[x] = line[x] + (0, a, b, (a + b) // 2, paeth)[raw[y * (stride + 1)]] & 255
        rows.append(line)
        above = line
    if depth < 8:
        values = [
            [
                line[x * depth // 8] >> (8 - depth - x * depth % 8) & 2**depth - 1
                for x in range(width)
            ]
            for line in rows
        ]
        return np.array(values, np.uint8)[..., None]
    pixels = np.frombuffer(b"".join(rows), ">u2" if depth == 16 else "u1")
    return pixels.reshape(height, width, CHANNELS[colour])


class Set:
    """A kind of tree: how it is made, where its files are, and what its labels mean."""

    def __init__(self, dataset: str, split: str, make: Callable, images: str, labels: str, ids):
        self.dataset, self.split, self.make = dataset, split, make
        self.images, self.labels, self.ids = images, labels, ids

    def train_ids(self, label: Path) -> np.ndarray:
        raw = obvious_png(label.read_bytes())[..., 0]
        return np.vectorize(self.ids.__getitem__)(raw)


def _cityscapes(root: Path) -> Path:
    return trees.cityscapes_tree(root, 0, SAMPLES, 0, SIZE)


SETS = [
    Set(
        "gta5",
        "train",
        lambda root: trees.gta5_tree(root, SAMPLES, SIZE),
        "images/*.png",
        "labels/*.png",
        GTA5_IDS,
    ),
    Set(
        "synthia",
        "train",
        lambda root: trees.synthia_tree(root, SAMPLES, SIZE, inner=False),
        "RGB/*.png",
        "GT/LABELS/*.png",
        SYNTHIA_IDS,
    ),
    Set(
        "synscapes",
        "train",
        lambda root: trees.synscapes_tree(root, SAMPLES, SIZE),
        "img/rgb/*.png",
        "img/class/*.png",
        CITYSCAPES_IDS,
    ),
    Set(
        "cityscapes",
        "val",
        _cityscapes,
        "leftImg8bit/val/*/*.png",
        "gtFine/val/*/*_labelIds.png",
        CITYSCAPES_IDS,
    ),
]

# Mutations: each changes one file (or exchanges two) and returns the files it touched.


def _flip(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    for position in rng.integers(0, len(data), rng.integers(1, 4)):
        data[position] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def _truncate(path: Path, rng: np.random.Generator) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.integers(0, len(data))])


def _append(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 99))))


def _zero_block(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    start = int(rng.integers(0, len(data)))
    data[start : start + 64] = bytes(len(data[start : start + 64]))
    path.write_bytes(data)


def _edit_header(path: Path, rng: np.random.Generator) -> None:
    """Another width, height, depth or colour type, with the right checksum."""
    data = bytearray(path.read_bytes())
    place = int(rng.choice([19, 23, 24, 25, 28]))
    data[place] = int(rng.choice([0, 1, 2, 3, 4, 6, 8, 16, SIZE[0] // 2]))
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def _edit_pixels(path: Path, rng: np.random.Generator) -> None:
    """Damaged pixel data, with the right checksum."""
    data = bytearray(path.read_bytes())
    start = data.index(b"IDAT")
    (length,) = struct.unpack_from(">I", data, start - 4)
    data[start + 4 + int(rng.integers(length))] ^= 1 << int(rng.integers(8))
    crc = zlib.crc32(data[start : start + 4 + length])
    data[start + 4 + length : start + 8 + length] = struct.pack(">I", crc)
    path.write_bytes(data)


def _resize(path: Path, rng: np.random.Generator) -> None:
    image = Image.open(path)
    size = tuple(int(side) for side in rng.integers(8, 60, 2))
    image.resize(size, Image.Resampling.NEAREST).save(path)


def _change_mode(path: Path, rng: np.random.Generator) -> None:
    mode = str(rng.choice(["L", "P", "RGB", "RGBA", "1", "LA", "I;16"]))
    image = Image.open(path)
    image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
    image.save(path)


def _blur(path: Path, rng: np.random.Generator) -> None:
    """Resized with interpolation, there and back: ids that do not exist."""
    image = Image.open(path)
    mode, size = image.mode, image.size
    small = image.convert("L").resize((size[0] // 2, size[1] // 2), Image.Resampling.BILINEAR)
    small.resize(size, Image.Resampling.BILINEAR).convert(mode).save(path)


def _save_as_jpeg(path: Path, rng: np.random.Generator) -> None:
    buffer = io.BytesIO()
    Image.open(path).convert("RGB").save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue())


def _sort_palette(path: Path, rng: np.random.Generator) -> None:
    """What tools do that optimise files: the colours stay, the indices do not."""
    Image.open(path).convert("RGB").quantize(40).save(path)


def _random_ids(path: Path, rng: np.random.Generator) -> None:
    """A few pixels of any value."""
    image = Image.open(path)
    pixels = np.array(image)
    where = tuple(rng.integers(0, side, 5) for side in pixels.shape[:2])
    pixels[where] = rng.integers(0, 256)
    changed = Image.fromarray(pixels)
    if image.mode == "P":
        changed.putpalette(image.getpalette())
    changed.save(path)


def _replace_by_text(path: Path, rng: np.random.Generator) -> None:
    path.write_text("<html>404 Not Found</html>")


def _replace_by_folder(path: Path, rng: np.random.Generator) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_fifo(path: Path, rng: np.random.Generator) -> None:
    path.unlink()
    os.mkfifo(path)


def _few_bits(path: Path, rng: np.random.Generator) -> None:
    """A palette of few colours: Pillow packs it into fewer bits, the ids stay what they are."""
    pixels = np.array(Image.open(path))
    few = Image.fromarray(pixels % int(rng.choice([2, 3, 12]))) if pixels.ndim == 2 else None
    if few is None:
        return _change_mode(path, rng)
    few.putpalette(trees.GTA5_PALETTE[:12].tobytes())
    few.save(path)


def _dangle(path: Path, rng: np.random.Generator) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def _delete(path: Path, rng: np.random.Generator) -> None:
    path.unlink()


def _rename(path: Path, rng: np.random.Generator) -> None:
    names = [f"{path.stem}_copy.png", f"{path.stem}.PNG", f"x{path.name}", f"{path.stem[:-1]}9.png"]
    path.rename(path.with_name(str(rng.choice(names))))


def _exchange_two(path: Path, rng: np.random.Generator) -> None:
    """Two files of a folder change places: each is read as what it is called."""
    other = next(p for p in sorted(path.parent.parent.rglob("*.png")) if p != path)
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


MUTATIONS = [value for name, value in list(globals().items()) if name[0] == "_" and callable(value)]
MUTATIONS = [mutate for mutate in MUTATIONS if mutate is not _cityscapes]


def apply(number: int, root: Path) -> tuple[Set, Path, str]:
    """Make a tree and change it; which set it is, which file was changed, how."""
    rng = np.random.default_rng(number)
    kind = SETS[number % len(SETS)]
    kind.make(root)
    paths = sorted(root.glob(kind.labels if rng.random() < 0.7 else kind.images))
    path = paths[int(rng.integers(len(paths)))]
    mutate = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
    mutate(path, rng)
    return kind, path, mutate.__name__.strip("_")


def verdict(number: int, folder: Path) -> tuple[str, str]:
    """What became of a mutation: (its name, "refused", "left out" or "converted").

    AssertionError where a label is silently wrong, or nothing names the file.
    """
    root, out = folder / "raw", folder / "out"
    kind, path, what = apply(number, root)
    about = f"mutation {number}, {what} of {path.relative_to(root)}"
    try:
        report = convert(kind.dataset, root, out, split=kind.split)
        error = ""
    except DataError as refused:
        error = str(refused)
        written = folder / f"out.{REPORT}"
        report = json.loads(written.read_text()) if written.exists() else {}
        assert not out.exists(), about
    named = error + json.dumps(report.get("checks", {}))
    key = path.name.split("_gtFine")[0].split("_leftImg8bit")[0].removesuffix(".png")
    if error:
        assert key in named, f"{about}: not named in {error}"
        return what, "refused"
    data = ShardSet(out)
    kept = _check_what_was_kept(kind, root, out, data, about)
    if kept < SAMPLES:
        assert key in named, f"{about}: left out without a word"
        return what, "left out"
    return what, "converted"


def _check_what_was_kept(kind: Set, root: Path, out: Path, data: ShardSet, about: str) -> int:
    import pyarrow.parquet as pq

    rows = pq.read_table(out / "index.parquet").to_pylist()
    for index, row in enumerate(rows):
        image = (root / row["source_image_path"]).read_bytes()
        assert data.image(index) == image, about
        assert cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_UNCHANGED) is not None, about
        try:
            expected = kind.train_ids(root / row["source_label_path"])
        except (ValueError, KeyError, zlib.error) as error:
            raise AssertionError(f"{about}: kept, though it cannot be read ({error!r})") from error
        stored = np.array(Image.open(io.BytesIO(data.label(index))))
        assert np.array_equal(stored, expected), f"{about}: wrong label"
        assert (row["height"], row["width"]) == expected.shape, about
    return len(rows)


def main(count: int) -> None:
    """Prints what became of each kind of mutation."""
    outcomes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for number in range(count):
        folder = Path(tempfile.mkdtemp())
        try:
            what, outcome = verdict(number, folder)
            outcomes[what][outcome] += 1
        finally:
            shutil.rmtree(folder)
    names = ("refused", "left out", "converted")
    print(f"{'mutation':<20}" + "".join(f"{name:>12}" for name in names))
    for what in sorted(outcomes):
        print(f"{what:<20}" + "".join(f"{outcomes[what][name]:>12}" for name in names))
    total = sum(outcomes.values(), collections.Counter())
    print(f"{'all':<20}" + "".join(f"{total[name]:>12}" for name in names))


if __name__ == "__main__":
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    main(int(sys.argv[1]))
