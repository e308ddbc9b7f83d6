import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spcl.data.labels import (
    CITYSCAPES_IDS,
    CLASS_NAMES,
    GTA5_IDS,
    GTA5_PALETTE,
    IGNORE_INDEX,
    NUM_CLASSES,
    lookup_table,
)
from spcl.data.streets.__main__ import main
from spcl.data.streets.domains import CAR, ROAD, SKY, class_offsets
from spcl.data.streets.render import Canvas, render, scene
from spcl.data.streets.trees import write_trees
from spcl.errors import DataError

SMALL = dict(source_images=3, target_images=4, val_images=3, height=24, width=48)


def digest(*address) -> str:
    image, label = render(*address)
    return hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def labels():
    """(domain, split) -> (N, H, W) trainIds."""
    return {
        (domain, split): np.stack([render(0, domain, split, n)[1] for n in range(count)])
        for domain, split, count in (("sim", "train", 150), ("real", "val", 150))
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("streets") / "raw"
    write_trees(out, **SMALL)
    return out


def test_a_scene_does_not_depend_on_what_was_rendered_before():
    addresses = [(0, "sim", "train", 3), (0, "real", "val", 3), (1, "real", "train", 0)]
    forward = [digest(*a) for a in addresses]
    np.random.seed(7)
    backward = [digest(*a) for a in reversed(addresses)]
    assert forward == backward[::-1]


def test_another_process_renders_the_same_bytes():
    program = (
        "import hashlib; from spcl.data.streets.render import render; "
        "i, l = render(0, 'real', 'val', 5); "
        "print(hashlib.sha256(i.tobytes() + l.tobytes()).hexdigest())"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == digest(0, "real", "val", 5)


@pytest.mark.parametrize(
    "other",
    [(1, "sim", "train", 0), (0, "real", "train", 0), (0, "sim", "val", 0), (0, "sim", "train", 1)],
)
def test_each_part_of_the_address_changes_the_scene(other):
    image, label = render(0, "sim", "train", 0)
    other_image, other_label = render(*other)
    assert (image != other_image).mean() > 0.5
    assert (label != other_label).mean() > 0.02


def test_an_unknown_domain_or_split_is_named():
    with pytest.raises(ValueError, match="'rael' is unknown; known: sim, real"):
        render(0, "rael", "train", 0)
    with pytest.raises(ValueError, match="'test' is unknown; known: train, val"):
        render(0, "real", "test", 0)


@pytest.mark.parametrize("size", [(64, 128), (16, 16), (33, 71), (97, 40), (128, 256)])
def test_any_size_gives_image_and_label_of_that_size(size):
    image, label = render(0, "real", "train", 1, *size)
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    assert label.shape == size and label.dtype == np.uint8
    assert set(np.unique(label)) <= {*range(NUM_CLASSES), IGNORE_INDEX}


def test_a_larger_picture_shows_the_same_scene():
    small, large = (render(0, "sim", "train", 4, h, 2 * h)[1] for h in (64, 256))
    assert (small == large[2::4, 2::4]).mean() > 0.85


def test_every_class_is_in_enough_images_of_both_domains(labels):
    for stack in labels.values():
        share = np.array([(stack == k).any((1, 2)).mean() for k in range(NUM_CLASSES)])
        assert share.min() >= 0.04, dict(zip(CLASS_NAMES, share, strict=True))


def test_rare_classes_are_rare_and_little_is_ignored(labels):
    for stack in labels.values():
        pixels = np.array([(stack == k).mean() for k in range(NUM_CLASSES)])
        assert pixels[ROAD] > 0.2
        rare = [CLASS_NAMES.index(n) for n in ("train", "bus", "truck", "rider", "motorcycle")]
        assert pixels[rare].max() < 0.2 * pixels[ROAD]
        assert 0.001 < (stack == IGNORE_INDEX).mean() < 0.05


def test_sky_is_above_and_road_below(labels):
    for stack in labels.values():
        rows = np.arange(stack.shape[1])[None, :, None]
        mean_row = {k: (rows * (stack == k)).sum() / (stack == k).sum() for k in (SKY, CAR, ROAD)}
        assert mean_row[SKY] < mean_row[CAR] < mean_row[ROAD]


def test_far_things_are_painted_first_within_each_layer():
    for n in range(30):
        actors = [t for t in scene(0, "real", "train", n).things if t.kind in ("car", "person")]
        assert [t.z for t in actors] == sorted((t.z for t in actors), reverse=True)


def test_cars_grow_with_their_bottom_row():
    bottoms, heights = [], []
    for n in range(40):
        view = scene(0, "sim", "train", n)
        canvas = Canvas(view.camera, 64, 128)
        for car in (t for t in view.things if t.kind == "car"):
            bottom = canvas.point(car.x, 0.0, car.z)[1]
            bottoms.append(bottom - view.camera.horizon * canvas.plane.height)
            heights.append(bottom - canvas.point(car.x, car.height, car.z)[1])
    assert len(bottoms) > 50
    assert np.corrcoef(bottoms, heights)[0, 1] > 0.9


def test_every_rider_sits_on_a_cycle():
    rider, cycles = CLASS_NAMES.index("rider"), [CLASS_NAMES.index("motorcycle"), 18]
    with_rider = [label for n in range(80) if rider in (label := render(0, "real", "train", n)[1])]
    beside = [np.isin(label, cycles).any() for label in with_rider]
    assert len(with_rider) > 10 and np.mean(beside) > 0.9


def test_class_offsets_belong_to_the_world_and_leave_the_mean_alone():
    first, again, other = (class_offsets(world, "real")[0] for world in (0, 0, 1))
    assert (first == again).all() and not np.allclose(first, other)
    assert np.abs(first[:NUM_CLASSES].mean(0)).max() < 1e-3
    assert 15 < first[:NUM_CLASSES].std() < 45
    assert not class_offsets(0, "sim")[0].any()


def test_gta5_tree_holds_palette_labels_with_the_rendered_ids(tree):
    names = sorted(p.name for p in (tree / "gta5" / "images").iterdir())
    assert names == ["00001.png", "00002.png", "00003.png"]
    for n, name in enumerate(names):
        image, train_ids = render(0, "sim", "train", n, 24, 48)
        label = Image.open(tree / "gta5" / "labels" / name)
        assert label.mode == "P"
        palette = np.array(label.getpalette(), np.uint8).reshape(-1, 3)
        assert (palette[: len(GTA5_PALETTE)] == GTA5_PALETTE).all()
        assert (lookup_table(GTA5_IDS)[np.asarray(label)] == train_ids).all()
        assert (np.asarray(Image.open(tree / "gta5" / "images" / name)) == image).all()


def test_palette_labels_are_stored_in_eight_bits(tree):
    header = (tree / "gta5" / "labels" / "00001.png").read_bytes()
    assert (header[24], header[25]) == (8, 3)  # bit depth, colour type "palette"


def test_cityscapes_tree_is_read_by_its_dataset_and_round_trips(tree):
    from spcl.data.datasets import DATASETS

    dataset, root = DATASETS["cityscapes"], tree / "cityscapes"
    for split, count in (("train", 4), ("val", 3)):
        images = sorted((root / "leftImg8bit" / split).rglob("*.png"))
        assert len(images) == count
        for path in images:
            relative = path.relative_to(root / "leftImg8bit" / split).as_posix()
            key = dataset.image.fullmatch(relative)["key"]
            label = Image.open(root / "gtFine" / split / f"{key}_gtFine_labelIds.png")
            assert label.mode == "L" and np.asarray(label).max() <= 33
    city = root / "gtFine" / "val" / "eschental" / "eschental_000000_000019_gtFine_labelIds.png"
    train_ids = lookup_table(CITYSCAPES_IDS)[np.asarray(Image.open(city))]
    assert (train_ids == render(0, "real", "val", 0, 24, 48)[1]).all()


def test_writing_twice_gives_equal_bytes(tree, tmp_path):
    write_trees(tmp_path / "again", **SMALL)
    files = [p.relative_to(tree) for p in sorted(tree.rglob("*")) if p.is_file()]
    assert Counter(p.suffix for p in files) == {".png": 20, ".json": 1}
    assert all((tree / p).read_bytes() == (tmp_path / "again" / p).read_bytes() for p in files)


def test_a_finished_tree_is_left_alone_and_another_is_refused(tree):
    before = (tree / "streets.json").stat().st_mtime_ns
    write_trees(tree, **SMALL)
    assert (tree / "streets.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="holds world 0, wanted world 1"):
        write_trees(tree, world=1, **SMALL)


def test_a_foreign_folder_is_refused_and_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match=r"no streets\.json"):
        write_trees(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_stopped_write_leaves_nothing(tmp_path):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_trees(tmp_path / "raw", progress=stop, **SMALL)
    assert not list(tmp_path.iterdir())


def test_command_writes_trees_and_a_preview(tmp_path, capsys):
    out, sheet = tmp_path / "raw", tmp_path / "sheet.png"
    counts = "--source-images 2 --target-images 2 --val-images 1".split()
    arguments = ["--out", str(out), "--preview", str(sheet), "--size", "48x24", *counts]
    assert main(arguments) == 0
    assert (out / "streets.json").is_file() and Image.open(sheet).width == 4 * 48
    assert "5/5 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("wide", "--size must be WIDTHxHEIGHT"),
        ("128x4", "height must be between 16 and 4096, got 4"),
    ],
)
def test_command_refuses_a_bad_size(size, message, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "raw"), "--size", size]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: {message}")
