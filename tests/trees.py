"""Miniature raw datasets for tests: true to the originals in names, encodings and ids.

An image is a grid of one-class cells that shows every id of the dataset, in class colours with
noise, so a tiny network can learn it.  The functions at the end break one thing each.
"""

import json
import shutil
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from spcl.data.labels import (
    CITYSCAPES_IDS,
    GTA5_IDS,
    GTA5_PALETTE,
    IGNORE_INDEX,
    LABELS,
    SYNTHIA_IDS,
    TRAIN_ID_COLORS,
    lookup_table,
)

CELL = 24  # pixels; smaller where the picture could not show every id
NOISE = 8
SMALL = (64, 48)  # width, height: enough for tests that only look at files

# Ids that GTA5's annotators used, 34 (licence plate) included.
GTA5_USED = (0, *range(4, 9), *range(11, 18), *range(19, 29), *range(30, 35))
CITYSCAPES_USED = tuple(range(34))
SYNTHIA_USED = (*range(13), 14, 15, 17, 19, 21, 22)  # no terrain, truck or train
SYNTHIA_THINGS = (8, 10, 11, 12, 17, 19)
SYNTHIA_INSTANCES = (1, 300, 976)  # above 255, so that a reader of the high byte sees something
SYNSCAPES_USED = (0, 4, *range(7, 9), *range(11, 14), 17, *range(19, 29), *range(31, 34))
SYNSCAPES_2K = 64 / 45  # 2048 / 1440
THINGS = (24, 25, 26, 27, 28, 29, 30, 31, 32, 33)
DUMMY_IDS = np.array((0, 1, 3), np.uint8)  # all that test labels hold
INSTANCE_BASE = 1000

CITYSCAPES_NAMES = {
    "train": ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313"),
    "val": ("frankfurt_000000_000294", "munster_000173_000019"),
    "test": ("berlin_000000_000019",),
}
_MORE = {"train": "zurich", "val": "lindau", "test": "bonn"}  # city of any further frames


def cells(size: tuple[int, int], ids: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """(H, W) uint8 raw ids in square cells, every id at least once."""
    width, height = size
    cell = CELL
    while (width // cell) * (height // cell) < len(ids):
        cell -= 1
    rows, columns = -(-height // cell), -(-width // cell)
    grid = rng.choice(ids, (rows, columns)).astype(np.uint8)
    whole = grid[: height // cell, : width // cell]
    places = rng.permutation(whole.size)[: len(ids)]
    whole[np.unravel_index(places, whole.shape)] = ids
    return grid.repeat(cell, 0).repeat(cell, 1)[:height, :width]


def picture(raw: np.ndarray, colors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8: colours of the ids, with noise."""
    noise = rng.integers(-NOISE, NOISE + 1, (*raw.shape, 3))
    return (colors[raw].astype(int) + noise).clip(0, 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, palette: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.tobytes())
    image.save(path)


def save_rgb16(path: Path, pixels: np.ndarray) -> None:
    """(H, W, 3) uint16 as a 16-bit PNG, which Pillow cannot write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    save_png(path, (width, height, 16, 2, 0, 0, 0), rows)


def packed_rows(pixels: np.ndarray, depth: int) -> bytes:
    """(H, W) uint8 below 2**depth as the rows of a PNG of `depth` bits, unfiltered."""
    bits = np.unpackbits(pixels[..., None], axis=2)[..., -depth:]
    packed = np.packbits(bits.reshape(len(pixels), -1), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in packed)


def save_grey_of_few_bits(path: Path, pixels: np.ndarray, depth: int) -> None:
    """(H, W) uint8 below 2**depth as grey of 1, 2 or 4 bits, which Pillow cannot write."""
    height, width = pixels.shape
    save_png(path, (width, height, depth, 0, 0, 0, 0), packed_rows(pixels, depth))


def save_png(path: Path, header: tuple[int, ...], rows: bytes, *more: tuple[bytes, bytes]) -> None:
    """A PNG by its parts.  header: the seven fields; more: chunks before the pixels."""
    body = b"".join(map(png_chunk, *zip(*more, strict=True))) if more else b""
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", *header))
    end = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(start + body + end)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def gta5_tree(root: Path, n: int = 4, size: tuple[int, int] = (256, 144), seed: int = 0) -> Path:
    """images/ and labels/ of n frames; every fifth has two rows less, as in the release."""
    for number in range(1, n + 1):
        rng = np.random.default_rng((seed, number))
        width, height = size
        raw = cells((width, height - 2 * (number % 5 == 0)), GTA5_USED, rng)
        save(root / f"images/{number:05d}.png", picture(raw, GTA5_PALETTE, rng))
        save(root / f"labels/{number:05d}.png", raw, GTA5_PALETTE)
    return root


def synthia_tree(
    root: Path, n: int = 4, size: tuple[int, int] = (256, 152), seed: int = 2, inner: bool = True
) -> Path:
    """RGB/, GT/LABELS (16-bit), GT/COLOR and Depth/Depth of n frames.

    inner  below RAND_CITYSCAPES/, as the archive unpacks
    """
    base = root / "RAND_CITYSCAPES" if inner else root
    colors = np.zeros((256, 3), np.uint8)
    colors[[raw for raw, to in SYNTHIA_IDS.items() if to != IGNORE_INDEX]] = TRAIN_ID_COLORS[
        [to for to in SYNTHIA_IDS.values() if to != IGNORE_INDEX]
    ]
    for number in range(n):
        rng = np.random.default_rng((seed, number))
        raw = cells(size, SYNTHIA_USED, rng)
        name = f"{number:07d}.png"
        save(base / "RGB" / name, picture(raw, colors, rng))
        save_rgb16(base / "GT/LABELS" / name, synthia_label(raw, rng))
        save(base / "GT/COLOR" / name, colors[raw])
        save(base / "Depth/Depth" / name, np.full(raw.shape, 5, np.uint16))
    return root


def synthia_label(raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint16: class, instance, nothing."""
    label = np.zeros((*raw.shape, 3), np.uint16)
    label[..., 0] = raw
    things = np.isin(raw, SYNTHIA_THINGS)
    label[..., 1][things] = rng.choice(SYNTHIA_INSTANCES, things.sum())
    return label


def synscapes_tree(
    root: Path, n: int = 10, size: tuple[int, int] = (180, 90), seed: int = 3
) -> Path:
    """img/{rgb,rgb-2k,class,instance} and meta of n frames, counted from 1 without zeros."""
    colors = np.array([label.color for label in LABELS], np.uint8)
    for number in range(1, n + 1):
        rng = np.random.default_rng((seed, number))
        raw = cells(size, SYNSCAPES_USED, rng)
        pixels = picture(raw, colors, rng)
        save(root / f"img/rgb/{number}.png", pixels)
        large = tuple(round(side * SYNSCAPES_2K) for side in size)
        save(root / f"img/rgb-2k/{number}.png", np.array(Image.fromarray(pixels).resize(large)))
        save(root / f"img/class/{number}.png", raw)
        save(root / f"img/instance/{number}.png", np.repeat(raw[..., None], 3, 2))
        meta = {"camera": {"intrinsic": {"resx": size[0]}}, "scene": {"sun": 1.5}, "instance": {}}
        (root / "meta").mkdir(exist_ok=True)
        (root / f"meta/{number}.json").write_text(json.dumps(meta, indent=2))
    return root


def cityscapes_sequences(root: Path) -> Path:
    """leftImg8bit_sequence/ of a Cityscapes tree: each image again, and a frame before it."""
    for image in sorted(root.glob("leftImg8bit/*/*/*.png")):
        folder = root / "leftImg8bit_sequence" / image.parent.relative_to(root / "leftImg8bit")
        sequence, frame = image.name.removesuffix("_leftImg8bit.png").rsplit("_", 1)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder / image.name)
        moved = np.roll(load(image), 1, axis=1)
        save(folder / f"{sequence}_{int(frame) - 1:06d}_leftImg8bit.png", moved)
    return root


def cityscapes_names(split: str, n: int) -> list[str]:
    more = [f"{_MORE[split]}_{number:06d}_000019" for number in range(n)]
    return [*CITYSCAPES_NAMES[split], *more][:n]


def cityscapes_tree(
    root: Path,
    train: int = 4,
    val: int = 2,
    test: int = 1,
    size: tuple[int, int] = (256, 128),
    seed: int = 1,
    labels: Sequence[str] = ("labelIds",),
) -> Path:
    """leftImg8bit/ and gtFine/ with polygons, colours, instances and `labels`.

    labels  of "labelIds" (shipped) and "labelTrainIds" (derived by users)
    """
    # Another look than GTA5's: paler, with red and blue exchanged.
    colors = (np.array([label.color[::-1] for label in LABELS]) * 0.7 + 50).astype(np.uint8)
    table = lookup_table(CITYSCAPES_IDS)
    for split, count in (("train", train), ("val", val), ("test", test)):
        for place, name in enumerate(cityscapes_names(split, count)):
            rng = np.random.default_rng((seed, *split.encode(), place))
            scene = cells(size, CITYSCAPES_USED, rng)
            folder = f"{split}/{name.split('_')[0]}/{name}"
            pixels = picture(scene, colors, rng)
            save(root / f"leftImg8bit/{folder}_leftImg8bit.png", pixels)
            raw = DUMMY_IDS[scene % len(DUMMY_IDS)] if split == "test" else scene
            stem = f"{root}/gtFine/{folder}_gtFine"
            _write_polygons(Path(f"{stem}_polygons.json"), raw)
            rgba = np.full((*raw.shape, 4), 255, np.uint8)
            rgba[..., :3] = np.array([label.color for label in LABELS], np.uint8)[raw]
            save(Path(f"{stem}_color.png"), rgba)
            instances = raw.astype(np.uint16)
            instances[np.isin(raw, THINGS)] *= INSTANCE_BASE
            save(Path(f"{stem}_instanceIds.png"), instances)
            for kind in labels:
                ids = raw if kind == "labelIds" else table[raw]
                save(Path(f"{stem}_{kind}.png"), ids)
    return root


def _write_polygons(path: Path, raw: np.ndarray) -> None:
    """One polygon for each run of equal ids, and a licence plate, drawn as what it covers."""
    height, width = raw.shape
    objects = []
    top = 0
    while top < height:
        bottom = top + 1
        while bottom < height and (raw[bottom] == raw[top]).all():
            bottom += 1
        edges = [0, *(np.flatnonzero(np.diff(raw[top].astype(int))) + 1).tolist(), width]
        for left, right in zip(edges, edges[1:], strict=False):
            corners = [[left, top], [right - 1, top], [right - 1, bottom - 1], [left, bottom - 1]]
            objects.append({"label": LABELS[raw[top, left]].name, "polygon": corners})
        top = bottom
    objects.append({"label": "license plate", "polygon": [[0, 0], [1, 0], [1, 1]]})
    text = {"imgHeight": height, "imgWidth": width, "objects": objects}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(text))


# --- defects: each breaks one thing in a clean tree ----------------------------------------------


def load(path: Path) -> np.ndarray:
    """Pixels of a PNG; of a palette file the indices."""
    return np.array(Image.open(path))


def shorten_label(label: Path, rows: int = 6) -> None:
    save(label, load(label)[:-rows], GTA5_PALETTE)


def blank(image: Path, halve: bool = False) -> None:
    """All white; at half the size like the frame 15188 of GTA5."""
    height, width, _ = load(image).shape
    save(image, np.full((height // (1 + halve), width // (1 + halve), 3), 255, np.uint8))


def single_class(label: Path, raw_id: int = 26) -> None:
    save(label, np.full_like(load(label), raw_id), GTA5_PALETTE)


def set_pixel(label: Path, value: int, palette: np.ndarray | None = GTA5_PALETTE) -> None:
    raw = load(label)
    raw[0, 0] = value
    save(label, raw, palette)


def recolor(label: Path) -> None:
    """Saved as colours by another tool."""
    save(label, GTA5_PALETTE[load(label)])


def to_train_ids(label: Path, palette: np.ndarray | None = GTA5_PALETTE) -> None:
    save(label, lookup_table(GTA5_IDS)[load(label)], palette)


def save_synthia_as_8_bits(label: Path) -> None:
    """What a tool makes of 16 bits that reads the high bytes."""
    save(label, np.array(Image.open(label)))


def show_instances(label: Path) -> None:
    """Class and instance exchanged, as by a reader of another channel order."""
    rng = np.random.default_rng(0)
    save_rgb16(label, synthia_label(read_synthia(label)[..., 0], rng)[..., [1, 0, 2]])


def read_synthia(label: Path) -> np.ndarray:
    """(H, W, 3) uint16, by OpenCV."""
    import cv2

    return cv2.imread(str(label), cv2.IMREAD_UNCHANGED)[..., ::-1]


def make_seqs(root: Path) -> None:
    """SYNTHIA-SEQS under the names of RAND-CITYSCAPES: 12 is a lane marking, few classes."""
    for label in sorted(root.rglob("GT/LABELS/*.png")):
        pixels = read_synthia(label).copy()
        pixels[..., 0][np.isin(pixels[..., 0], (17, 19, 21, 22))] = 12
        save_rgb16(label, pixels)


def truncate(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def add_derived(label: Path) -> None:
    """What another tool leaves beside a label."""
    shutil.copy(label, label.with_name(f"{label.stem}_labelTrainIds.png"))
