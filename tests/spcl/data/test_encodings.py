"""Label files of every encoding, against other libraries and against what was written."""

import io
from pathlib import Path

import cv2
import mutations
import numpy as np
import pytest
import torch
import trees
import yaml
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from spcl.data.convert import convert
from spcl.data.datasets.custom import read_description
from spcl.data.encodings import ENCODINGS, from_colors
from spcl.data.labels import GTA5_IDS, GTA5_PALETTE, IGNORE_INDEX, SYNTHIA_IDS, lookup_table
from spcl.data.pictures import as_rgb8, read_picture, sixteen_bits
from spcl.data.request import Options
from spcl.data.shards import ShardSet
from spcl.errors import DataError


def adaptive(path: Path, pixels: np.ndarray) -> None:
    """Written by OpenCV, which filters rows as real files are."""
    assert cv2.imwrite(str(path), np.ascontiguousarray(pixels[..., ::-1]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("write", [trees.save_rgb16, adaptive])
def test_sixteen_bits_are_read_as_by_opencv_and_torchvision(tmp_path: Path, write) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65536, (31, 47, 3)).astype(np.uint16)
    pixels[:5, :, 1] = 976  # as instance ids are
    write(tmp_path / "x.png", pixels)
    high, low = sixteen_bits(read_picture(str(tmp_path), "x.png"))
    ours = high.astype(np.uint16) << 8 | low
    assert (ours == pixels).all()
    assert (ours == cv2.imread(str(tmp_path / "x.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]).all()
    data = torch.frombuffer(bytearray((tmp_path / "x.png").read_bytes()), dtype=torch.uint8)
    theirs = decode_image(data, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    assert theirs.dtype == np.uint16 and (ours == theirs).all()


def test_synthia_classes_are_those_of_opencv_and_pillow_alone_would_see_none(
    tmp_path: Path,
) -> None:
    root = trees.synthia_tree(tmp_path / "raw", 2)
    convert("synthia", root, tmp_path / "out", split="train")
    data = ShardSet(tmp_path / "out")
    for index, label in enumerate(sorted(root.rglob("GT/LABELS/*.png"))):
        classes = trees.read_synthia(label)[..., 0]
        stored = np.array(Image.open(io.BytesIO(data.label(index))))
        assert (stored == lookup_table(SYNTHIA_IDS)[classes]).all()
        assert trees.read_synthia(label)[..., 1].max() > 255
        assert np.array(Image.open(label))[..., 0].max() == 0


def test_synthia_without_its_outer_folder_is_the_same_set(tmp_path: Path) -> None:
    outer = convert(
        "synthia", trees.synthia_tree(tmp_path / "a"), tmp_path / "out/a", split="train"
    )
    inner = convert(
        "synthia",
        trees.synthia_tree(tmp_path / "b", inner=False),
        tmp_path / "out/b",
        split="train",
    )
    assert outer["fingerprint"] == inner["fingerprint"]


@pytest.mark.parametrize("folder", ["GT/CLASSES", "synthia_mapped_to_cityscapes"])
def test_extracted_classes_of_synthia_give_the_same_labels(tmp_path: Path, folder: str) -> None:
    root = trees.synthia_tree(tmp_path / "a", inner=False)
    whole = convert("synthia", root, tmp_path / "out/a", split="train")
    for label in sorted((root / "GT/LABELS").iterdir()):
        trees.save(root / folder / label.name, trees.read_synthia(label)[..., 0].astype(np.uint8))
        label.unlink()
    extracted = convert("synthia", root, tmp_path / "out/b", split="train")
    assert extracted["fingerprint"] == whole["fingerprint"]
    assert folder in extracted["checks"]["label_files"]["messages"][0]


def test_colours_become_ids_and_plates_cars(tmp_path: Path) -> None:
    root = trees.gta5_tree(tmp_path / "raw", 2)
    ids = [trees.load(path) for path in sorted((root / "labels").iterdir())]
    for path in (root / "labels").iterdir():
        trees.recolor(path)
    convert("gta5", root, tmp_path / "out", split="train", options=Options(label_encoding="color"))
    data = ShardSet(tmp_path / "out")
    for index, raw in enumerate(ids):
        assert 34 in raw
        expected = lookup_table(GTA5_IDS)[np.where(raw == 34, 26, raw)]
        # A pole and a group of poles are drawn alike.
        expected = np.where(raw == 18, 5, expected)
        assert (np.array(Image.open(io.BytesIO(data.label(index)))) == expected).all()


def test_colour_that_no_class_has_is_an_error(tmp_path: Path) -> None:
    root = trees.gta5_tree(tmp_path / "raw", 2)
    for path in (root / "labels").iterdir():
        trees.recolor(path)
        pixels = trees.load(path)
        pixels[0, 0] = (1, 2, 3)
        trees.save(path, pixels)
    with pytest.raises(DataError, match=r"1 colours are not in the table of gta5 \(1,2,3\)"):
        convert(
            "gta5", root, tmp_path / "out", split="train", options=Options(label_encoding="color")
        )


def test_colours_are_looked_up_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (9, 3)).astype(np.uint8)
    raw = rng.integers(0, 9, (20, 30))
    ids, strange = from_colors(palette[raw], palette)
    slow = [[palette.tolist().index(color) for color in row] for row in palette[raw].tolist()]
    assert (ids == slow).all() and strange == []


def test_palette_in_another_order_is_refused(tmp_path: Path) -> None:
    """Tools sort palettes by use: the colours stay, the indices are other ids."""
    root = trees.gta5_tree(tmp_path / "raw", 2, trees.SMALL)
    for path in (root / "labels").iterdir():
        raw = trees.load(path)
        swapped = raw.copy()
        swapped[raw == 7], swapped[raw == 8] = 8, 7
        palette = GTA5_PALETTE.copy()
        palette[[7, 8]] = palette[[8, 7]]
        trees.save(path, swapped, palette)
    with pytest.raises(DataError, match="palette is in another order .*index 7 has the colour of"):
        convert("gta5", root, tmp_path / "out", split="train")


def saved(path: Path, image: Image.Image, **options: object):
    image.save(path / "x.png", **options)
    return read_picture(str(path), "x.png")


def as_read(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


RGB = np.random.default_rng(1).integers(0, 256, (12, 10, 3)).astype(np.uint8)
GREY = RGB[..., 0]
OPAQUE = np.dstack([RGB, np.full(GREY.shape, 255, np.uint8)])


@pytest.mark.parametrize(
    ("pixels", "meant"),
    [
        (RGB, RGB),
        (GREY, np.dstack([GREY] * 3)),
        (OPAQUE, RGB),
        (GREY.astype(np.uint16) * 257, np.dstack([GREY] * 3)),
        (GREY.astype(np.uint16) * 256, np.dstack([GREY] * 3)),
    ],
    ids=["RGB", "grey", "opaque", "16 bits twice the same", "16 bits with nothing below"],
)
def test_images_without_loss_are_read_as_they_are_meant(
    tmp_path: Path, pixels: np.ndarray, meant: np.ndarray
) -> None:
    picture = saved(tmp_path, Image.fromarray(pixels))
    data, new = as_rgb8(picture)
    assert (as_read(data) == meant).all()
    assert new == (pixels.dtype == np.uint16) and (new or data == picture.data)


def test_sixteen_bits_of_colour_are_written_anew(tmp_path: Path) -> None:
    trees.save_rgb16(tmp_path / "x.png", RGB.astype(np.uint16) * 257)
    data, new = as_rgb8(read_picture(str(tmp_path), "x.png"))
    assert new and (as_read(data) == RGB).all()


def test_what_would_lose_something_is_refused_by_name(tmp_path: Path) -> None:
    half = OPAQUE.copy()
    half[3, 3, 3] = 100
    turned = Image.Exif()
    turned[0x0112] = 6
    for image, options, message in (
        (Image.fromarray(half), {}, "8-bit RGBA PNG and partly transparent"),
        (Image.fromarray(GREY.astype(np.uint16) * 3), {}, "16-bit grey PNG and uses all its bits"),
        (Image.fromarray(RGB), {"exif": turned}, "orientation 6"),
    ):
        with pytest.raises(ValueError, match=message):
            as_rgb8(saved(tmp_path, image, **options))
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="JPEG CMYK; convert it to 8-bit RGB"):
        as_rgb8(read_picture(str(tmp_path), "x.jpg"))
    Image.fromarray(RGB).save(tmp_path / "x.bmp")
    with pytest.raises(DataError, match="x.bmp is .*BMP; use one of PNG, JPEG, WEBP"):
        read_picture(str(tmp_path), "x.bmp")


def test_every_encoding_holds_what_it_says() -> None:
    assert {name: encoding.top for name, encoding in ENCODINGS.items()} == {
        "png8:P": 255,
        "png8:L": 255,
        "png8:RGB": 255,
        "png16:L": 65535,
        "png16:RGB": 65535,
        "color": 255,
    }
    assert SYNTHIA_IDS[22] == IGNORE_INDEX and SYNTHIA_IDS[3] == 0


# --- few bits -------------------------------------------------------------------------------------

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
ADAM7 += ((0, 1, 1, 2),)  # x, y and steps of the passes, from the PNG specification


def save_palette(path: Path, raw: np.ndarray, depth: int, interlaced: bool) -> None:
    """A palette PNG of our own making: entry n has the colour (n, 255 - n, 7)."""
    colors = bytes(value for n in range(2**depth) for value in (n, 255 - n, 7))
    rows = trees.packed_rows(raw, depth)
    if interlaced:
        parts = [raw[y::dy, x::dx] for x, y, dx, dy in ADAM7]
        rows = b"".join(trees.packed_rows(part, depth) for part in parts if part.size)
    height, width = raw.shape
    trees.save_png(path, (width, height, depth, 3, 0, 0, int(interlaced)), rows, (b"PLTE", colors))


@pytest.mark.parametrize("interlaced", [False, True], ids=["rows", "interlaced"])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_of_few_bits_are_exact(tmp_path: Path, depth: int, interlaced: bool) -> None:
    """Against what was written, OpenCV's colours, and a slow reader of PNG."""
    for width in range(1, 18):  # whole bytes and not
        rng = np.random.default_rng((depth, width))
        raw = rng.integers(0, 2**depth, (11, width)).astype(np.uint8)
        path = tmp_path / f"{width}.png"
        save_palette(path, raw, depth, interlaced)
        picture = read_picture(str(tmp_path), path.name)
        assert picture.form in ENCODINGS["png8:P"].forms
        assert (ENCODINGS["png8:P"].read(picture) == raw).all()
        colors = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert (colors[..., 2] == raw).all() and (colors[..., 1] == 255 - raw).all()
        if not interlaced:
            assert (mutations.obvious_png(path.read_bytes())[..., 0] == raw).all()


@pytest.mark.parametrize("classes", [2, 3, 4, 9, 16, 17])
def test_masks_as_pillow_writes_them_are_exact(tmp_path: Path, classes: int) -> None:
    """Pillow packs a mask of 3 classes into 2 bits; all of them mean the same."""
    names = [f"class{n}" for n in range(classes)]
    bits = next(bits for bits in (1, 2, 4, 8) if 2**bits >= classes)
    raws = []
    for number in range(3):
        rng = np.random.default_rng((classes, number))
        raws.append(trees.cells((41, 30), range(classes), rng))
        trees.save(tmp_path / f"raw/rgb/{number}.png", rng.integers(0, 255, (30, 41, 3), np.uint8))
        palette = rng.integers(0, 255, (classes, 3), np.uint8)
        trees.save(tmp_path / f"raw/mask/{number}.png", raws[-1], palette)
    assert (tmp_path / "raw/mask/0.png").read_bytes()[24:26] == bytes([bits, 3])
    description = {
        "name": "mine",
        "class_names": names,
        "labels": {"encoding": "png8:P", "ids": dict(enumerate(names))},
        "splits": {"train": {"role": "source", "images": "rgb/*.png", "labels": "mask/*.png"}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(description))
    dataset = read_description(tmp_path / "mine.yaml")
    convert(dataset, tmp_path / "raw", tmp_path / "out", split="train")
    data = ShardSet(tmp_path / "out")
    for index, raw in enumerate(raws):
        assert (np.array(Image.open(io.BytesIO(data.label(index)))) == raw).all()


@pytest.mark.parametrize(("depth", "divisor"), [(1, 255), (2, 85), (4, 17)])
def test_grey_of_few_bits_is_refused_with_a_fix_that_works(
    tmp_path: Path, depth: int, divisor: int
) -> None:
    root = trees.synscapes_tree(tmp_path / "raw", 1, trees.SMALL)
    label = root / "img/class/1.png"
    raw = trees.load(label) % 2**depth
    trees.save_grey_of_few_bits(label, raw, depth)
    with pytest.raises(
        DataError,
        match=f"1.png is {depth}-bit grey PNG, expected 8-bit grey.*by {divisor} and save",
    ):
        convert("synscapes", root, tmp_path / "out", split="train")
    trees.save(label, np.array(Image.open(label).convert("L")) // divisor)  # as it says
    assert (trees.load(label) == raw).all()
    assert read_picture(str(root), "img/class/1.png").form in ENCODINGS["png8:L"].forms
