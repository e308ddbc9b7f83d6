"""What breaks in practice: each of the fifteen defects is met once and told, and clean trees pass.

Numbers 13 (classes a source never shows) and 15 (a file altered after conversion) are told where
they matter: by the evaluator, tests/spcl/test_protocols.py, and by the reader of shards.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trees

from spcl.data.convert import convert
from spcl.data.output import REPORT
from spcl.data.shards import ShardSet
from spcl.errors import DataError

TREES: dict[str, Callable[[Path], Path]] = {
    "gta5": lambda root: trees.gta5_tree(root, 3, trees.SMALL),
    "synthia": lambda root: trees.synthia_tree(root, 3, trees.SMALL),
    "synscapes": lambda root: trees.synscapes_tree(root, 3),
    "cityscapes": lambda root: trees.cityscapes_sequences(
        trees.cityscapes_tree(root, size=trees.SMALL)
    ),
}
SPLITS = [
    ("gta5", "train"),
    ("synthia", "train"),
    ("synscapes", "train"),
    ("synscapes", "train_2k"),
    ("cityscapes", "train"),
    ("cityscapes", "train_labelled"),
    ("cityscapes", "train_sequence"),
    ("cityscapes", "val"),
    ("cityscapes", "val_sequence"),
    ("cityscapes", "test"),
]
LABELS = "RAND_CITYSCAPES/GT/LABELS"


@pytest.fixture(params=SPLITS, ids="/".join)
def clean(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str, Path]:
    dataset, split = request.param
    return dataset, split, TREES[dataset](tmp_path / "raw")


def test_no_check_fires_on_a_clean_tree(clean: tuple[str, str, Path], tmp_path: Path) -> None:
    dataset, split, root = clean
    assert convert(dataset, root, tmp_path / "out", split=split)["checks"] == {}
    data = ShardSet(tmp_path / "out")
    for index in range(len(data)):
        assert data.image(index) and (not data.labelled or data.label(index))


def every(root: Path, pattern: str, damage: Callable[[Path], None]) -> None:
    for path in sorted(root.glob(pattern)):
        damage(path)


def unused(label: Path, raw_id: int, instead: int) -> None:
    raw = trees.load(label)
    trees.save(label, np.where(raw == raw_id, instead, raw).astype(np.uint8), trees.GTA5_PALETTE)


def read_high_bytes(root: Path) -> None:
    every(root, f"{LABELS}/*", trees.save_synthia_as_8_bits)


def no_class_plane(label: Path) -> None:
    pixels = trees.read_synthia(label).copy()
    pixels[..., 0] = 0
    trees.save_rgb16(label, pixels)


ONE = "0000001.png"
# number, what: (dataset, split, damage, check, severity, message)
DEFECTS = {
    "1 labels re-saved with 8 bits": (
        "synthia/train",
        read_high_bytes,
        "label_encoding",
        r"synthia label .*0000000.png decoded to a single class \(0\). 16-bit RGB PNG with the "
        r"class in the red channel expected; got 8-bit RGB PNG. Did another tool re-save the label",
    ),
    "1 nothing in the class plane": (
        "synthia/train",
        lambda root: every(root, f"{LABELS}/*", no_class_plane),
        "one_class_labels",
        r"each of 3 labels decoded to a single class \(raw ids 0\)",
    ),
    "2 channels exchanged": (
        "synthia/train",
        lambda root: trees.show_instances(root / LABELS / ONE),
        "wrong_channel",
        r"values up to 976 found in the class plane: this is the instance channel. synthia stores "
        r"the class in R",
    ),
    "3 another SYNTHIA": (
        "synthia/train",
        trees.make_seqs,
        "wrong_flavour",
        r"looks like SYNTHIA-SEQS \(class 12 = lane marking\), not SYNTHIA-RAND-CITYSCAPES",
    ),
    "4 labels as colours": (
        "gta5/train",
        lambda root: trees.recolor(root / "labels/00001.png"),
        "label_encoding",
        r"labels/00001.png is 8-bit RGB PNG, expected 8-bit palette PNG; .*--label-encoding color "
        r"\(license plates will merge with car\)",
    ),
    "5 trainIds among labelIds": (
        "gta5/train",
        lambda root: trees.to_train_ids(root / "labels/00002.png"),
        "label_space",
        r"1 of 3 labels hold trainIds \(first labels/00002.png\), the others labelIds",
    ),
    "6 an id out of the table": (
        "cityscapes/val",
        lambda root: trees.set_pixel(next(root.glob("gtFine/val/munster/*labelIds.png")), 34, None),
        "unknown_id",
        r"munster_000173_000019_gtFine_labelIds.png: value 34 is not in the table of labelIds "
        r"\(0..33\); map it ",
    ),
    "7 sizes differ": (
        "gta5/train",
        lambda root: trees.shorten_label(root / "labels/00003.png"),
        "size_mismatch",
        r"00003.png: image 64x48, label 64x42, expected equal sizes; left out",
    ),
    "7 proportions differ where sizes may": (
        "synscapes/train_2k",
        lambda root: trees.save(
            root / "img/class/2.png", trees.load(root / "img/class/2.png")[:-9]
        ),
        "size_mismatch",
        r"rgb-2k/2.png: image 256x128, label 180x81, expected equal proportions",
    ),
    "8 a partner is missing": (
        "synthia/train",
        lambda root: (root / LABELS / ONE).unlink(),
        "missing_partner",
        r"images 3, labels 2: no label for 0000001; extract the archives of GT/LABELS again",
    ),
    "9 derived files": (
        "gta5/train",
        lambda root: trees.add_derived(root / "labels/00001.png"),
        "ignored_file",
        r"ignored 1 files matching \*_labelTrainIds.png in labels \(left by another tool\)",
    ),
    "10 a truncated file": (
        "synthia/train",
        lambda root: trees.truncate(root / "RAND_CITYSCAPES/RGB" / ONE),
        "damaged_file",
        r"RGB/0000001.png is truncated after 4\d% of its rows.*; extract this file again, it was "
        r"not converted",
    ),
    "11 a blank image": (
        "gta5/train",
        lambda root: trees.blank(root / "images/00002.png"),
        "blank_image",
        r"images/00002.png is a constant image; kept \(leave it out with --drop-blank\)",
    ),
    "12 a class without images": (
        "gta5/train",
        lambda root: every(root, "labels/*", lambda label: unused(label, 31, 26)),
        "rare_class",
        r"source has no image with more than 5 pixels of: train \(3 images\); rare-class sampling",
    ),
    "14 no frame before": (
        "cityscapes/train_sequence",
        lambda root: next(root.glob("leftImg8bit_sequence/train/*/aachen_000000_000018*")).unlink(),
        "missing_previous",
        r"aachen_000000_000018 not found under leftImg8bit_sequence/",
    ),
}
STOPPING = {"1", "2", "3", "4", "5", "6", "10"}


@pytest.mark.parametrize("case", DEFECTS)
def test_defect_is_told_once(case: str, tmp_path: Path) -> None:
    place, damage, check, message = DEFECTS[case]
    dataset, split = place.split("/")
    root = TREES[dataset](tmp_path / "raw")
    damage(root)
    if case.split()[0] in STOPPING:
        with pytest.raises(DataError, match=message):
            convert(dataset, root, tmp_path / "out", split=split)
        report = json.loads((tmp_path / f"out.{REPORT}").read_text())
        assert not (tmp_path / "out").exists()
    else:
        report = convert(dataset, root, tmp_path / "out", split=split)
    assert list(report["checks"]) == [check]
    assert re.search(message, report["checks"][check]["messages"][0])


def test_sequence_package_that_was_never_there_is_told_at_once(tmp_path: Path) -> None:
    root = trees.cityscapes_tree(tmp_path / "raw", size=trees.SMALL)
    with pytest.raises(
        DataError, match="000018, .* not found under leftImg8bit_sequence/; the 11 "
    ):
        convert("cityscapes", root, tmp_path / "out", split="train_sequence")


def test_file_altered_after_conversion_is_told_by_the_reader(tmp_path: Path) -> None:
    """Number 15."""
    root = TREES["gta5"](tmp_path / "raw")
    convert("gta5", root, tmp_path / "out", split="train")
    shard = tmp_path / "out/shard-00001.arrow"
    image = (root / "images/00002.png").read_bytes()
    trees.flip_byte(shard, shard.read_bytes().index(image) + len(image) // 2)
    data = ShardSet(tmp_path / "out")
    with pytest.raises(DataError, match="sample gta5/00002: image checksum mismatch in .*expected"):
        data.image(1)
    assert data.image(0) and data.image(2)
