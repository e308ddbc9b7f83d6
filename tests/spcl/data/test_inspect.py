import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from ray_jobs import ingest
from spcl.cli import guarded
from spcl.data.convert import convert
from spcl.data.datasets import DATASETS
from spcl.data.inspect import facts, main, ranges
from spcl.data.labels import CLASS_NAMES, GTA5_IDS, TRAIN_ID_COLORS, lookup_table
from spcl.data.request import Options
from spcl.data.shards import ShardSet
from spcl.data.sheet import TILE, choose_samples, contact_sheet, tinted

ROOT = Path(__file__).resolve().parents[3]
IMAGES = 6


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A GTA5 tree with one blank image and one label of cars only."""
    root = trees.gta5_tree(tmp_path_factory.mktemp("raw"), IMAGES)
    trees.blank(root / "images/00002.png")
    trees.single_class(root / "labels/00003.png")
    return root


@pytest.fixture(scope="module")
def data(raw, tmp_path_factory):
    """gta5/train, cityscapes/train without labels and cityscapes/val."""
    out = tmp_path_factory.mktemp("data")
    convert("gta5", raw, out / "gta5/train", split="train")
    cityscapes = trees.cityscapes_tree(tmp_path_factory.mktemp("raw"))
    for split in ("train", "val"):
        convert("cityscapes", cityscapes, out / "cityscapes" / split, split=split)
    return out


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def shown(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert guarded(main, [str(a) for a in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def raw_labels(raw):
    return [trees.load(path) for path in sorted((raw / "labels").iterdir())]


def test_json_counts_are_those_of_the_label_files(raw, data, capsys):
    found = json.loads(shown(capsys, data / "gta5/train", "--json"))
    table = lookup_table(GTA5_IDS)
    mapped = [table[label] for label in raw_labels(raw)]
    total = sum(int((label != 255).sum()) for label in mapped)
    for train_id, one in enumerate(found["classes"]):
        pixels = sum(int((label == train_id).sum()) for label in mapped)
        assert (one["train_id"], one["name"]) == (train_id, CLASS_NAMES[train_id])
        assert one["pixels"] == pixels
        assert one["images"] == sum(bool((label == train_id).any()) for label in mapped)
        assert one["share"] == pytest.approx(pixels / total)
    assert found["ignored_pixels"] == sum(int((label == 255).sum()) for label in mapped)
    assert (found["name"], found["role"], found["images"]) == ("gta5/train", "source", IMAGES)
    assert found["flags"] == {"blank": 1, "single_class": 1}
    assert found["image_sizes"] == {"256x144": IMAGES - 1, "256x142": 1}
    shards = list((data / "gta5/train").glob("*.arrow"))
    assert found["shards"] == len(shards)
    assert found["bytes"] == sum(path.stat().st_size for path in shards)
    assert found["absent"] == []


def test_text_says_what_became_of_every_raw_id(data, capsys):
    lines = shown(capsys, data / "gta5/train").splitlines()
    road = next(line for line in lines if " road " in line).split()
    assert road[:4] == ["0", "road", "7", str(IMAGES - 1)]  # one label has cars only
    ignored = next(line for line in lines if " ignored " in line).split()
    assert ignored[:3] == ["255", "ignored", "0-6,9-10,14-16,18,29-30,34"]
    assert any(line.split() == ["flags", "blank", "1,", "single_class", "1"] for line in lines)
    assert not any("warning" in line for line in lines)


def test_longest_bar_is_that_of_the_most_frequent_class(data, capsys):
    lines = shown(capsys, data / "gta5/train").splitlines()
    bars = {line[5:18].strip(): line.count("#") for line in lines if "#" in line}
    assert max(bars, key=bars.get) == "car" and bars["car"] == 30
    assert len(bars) == 19 and min(bars.values()) >= 1


def test_classes_that_no_image_shows_are_a_warning(tmp_path, capsys):
    root = trees.gta5_tree(tmp_path / "raw", 2, trees.SMALL)
    for label in (root / "labels").iterdir():
        pixels = trees.load(label)
        pixels[np.isin(pixels, (27, 31))] = 26
        trees.save(label, pixels, trees.GTA5_PALETTE)
    convert("gta5", root, tmp_path / "gta5/train", split="train")
    text = shown(capsys, tmp_path / "gta5/train")
    assert "warning: no image shows truck, train; is the id map right?" in text.splitlines()


def test_classes_a_set_is_known_not_to_have_are_said_to_be(tmp_path, capsys):
    root = trees.synthia_tree(tmp_path / "raw")
    convert("synthia", root, tmp_path / "synthia/train", split="train")
    text = shown(capsys, tmp_path / "synthia/train")
    assert "warning: no image shows terrain, truck, train; this set is known to have none" in text


def test_without_labels_there_is_no_histogram(data, capsys):
    text = shown(capsys, data / "cityscapes/train")
    assert "4, not labelled" in text and "raw ids" not in text
    assert "classes" not in json.loads(shown(capsys, data / "cityscapes/train", "--json"))


def test_sheet_is_named_for_the_split_and_drawn_where_asked(data, tmp_path, capsys):
    shown(capsys, data / "gta5/train")
    assert os.listdir() == ["gta5-train.png"]
    shown(capsys, data / "gta5/train", "--out", tmp_path / "new/sheet.png", "--samples", "2")
    first, second = Image.open("gta5-train.png"), Image.open("new/sheet.png")
    assert first.height > second.height
    shown(capsys, data / "gta5/train", "--json")
    assert sorted(os.listdir()) == ["gta5-train.png", "new"]


def test_sheet_shows_image_tinted_label_and_a_colour_per_class(raw, data):
    """At the tile's place: the image as it is, then each class in its colour over grey."""
    sheet = np.array(contact_sheet(ShardSet(data / "gta5/train"), [0]))
    height = TILE[0] * 144 // 256
    image = sheet[18 : 18 + height, : TILE[0]]
    label = sheet[18 : 18 + height, TILE[0] + 4 : 2 * TILE[0] + 4]
    original = np.array(Image.open(raw / "images/00001.png"))
    ids = lookup_table(GTA5_IDS)[raw_labels(raw)[0]]
    for row, column in ((12, 12), (60, 84), (132, 228)):  # middles of cells of 24 pixels
        y, x = row * TILE[0] // 256, column * TILE[0] // 256
        assert np.abs(image[y, x].astype(int) - original[row, column]).max() <= 2 * trees.NOISE
        color = TRAIN_ID_COLORS[ids[row, column]] if ids[row, column] != 255 else np.zeros(3)
        expected = 0.6 * color + 0.4 * image[y, x].mean()
        assert np.abs(label[y, x] - expected).max() <= 1
    legend = {tuple(pixel) for pixel in sheet[18 + height :].reshape(-1, 3).tolist()}
    assert {tuple(color) for color in TRAIN_ID_COLORS.tolist()} <= legend


def test_ignored_pixels_are_dark():
    image = np.full((1, 2, 3), 200, np.uint8)
    label = np.array([[255, 1]], np.uint8)
    assert tinted(image, label, np.array([[0, 0, 0], [255, 0, 0]], np.uint8)).tolist() == [
        [[80, 80, 80], [233, 80, 80]]
    ]


def test_samples_cover_every_class_where_so_many_can():
    rng = np.random.default_rng(0)
    pixels = np.zeros((200, 19), np.int32)
    for sample in range(200):  # three frequent classes each, and now and then a rare one
        pixels[sample, rng.choice(8, 3, replace=False)] = 1000
    for rare in range(8, 19):
        pixels[rng.integers(200), rare] = 5
    chosen = choose_samples(pixels, 200, 13)
    assert len(set(chosen)) == 13 and chosen == sorted(chosen)
    assert (pixels[chosen].sum(0) > 0).all()
    assert choose_samples(pixels, 200, 13) == chosen


def test_more_new_classes_go_before_more_pixels_and_more_pixels_before_fewer():
    most = [1, 1, 1, 0, 0]
    assert choose_samples(np.array([[0, 0, 0, 0, 99], most]), 2, 1) == [1]
    few, many = [98, 0, 0, 1, 1], [0, 0, 0, 50, 50]  # two new classes each
    assert choose_samples(np.array([most, few, many]), 3, 2) == [0, 2]
    assert choose_samples(np.array([most, many, few]), 3, 2) == [0, 1]


def test_without_labels_samples_are_spread_evenly():
    assert choose_samples(None, 101, 5) == [0, 25, 50, 75, 100]
    assert choose_samples(None, 3, 12) == [0, 1, 2]


def test_a_parent_folder_is_listed(data, capsys):
    lines = shown(capsys, data).splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["cityscapes/train", "target", "4"],
        ["cityscapes/val", "eval", "2"],
        ["gta5/train", "source", str(IMAGES)],
    ]
    assert [line.split("MiB")[1].strip() for line in lines] == [
        "not labelled",
        "19 of 19 classes",
        "19 of 19 classes",
    ]


def test_other_manifests_and_hidden_folders_are_no_splits(data, tmp_path, capsys):
    for name, text in (("run", "{}"), ("broken", "{"), ("list", "3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text)
    (tmp_path / ".train.tmp").mkdir()
    manifest = (data / "gta5/train/manifest.json").read_bytes()
    (tmp_path / ".train.tmp/manifest.json").write_bytes(manifest)
    assert "no converted split" in refused(capsys, tmp_path)
    shutil.copytree(data / "gta5/train", tmp_path / "train")
    assert [line.split()[0] for line in shown(capsys, tmp_path).splitlines()] == ["train"]


def test_mistakes_are_one_line(data, tmp_path, capsys):
    assert f"did you mean {data / 'gta5'}?" in refused(capsys, data / "gta")
    assert "--samples must be at least 1, got 0" in refused(
        capsys, data / "gta5/train", "--samples", "0"
    )
    assert ".png" in refused(capsys, data / "gta5/train", "--out", "sheet.jpg")
    assert "holds 3 splits; name one" in refused(capsys, data, "--json")
    (tmp_path / "file").write_text("")
    assert "cannot write the sheet" in refused(
        capsys, data / "cityscapes/val", "--out", tmp_path / "file/sheet.png"
    )


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([4], "4"), ([5, 0, 1, 2], "0-2,5"), ([1, 3, 4], "1,3-4")],
)
def test_ranges_join_neighbours(numbers, text):
    assert ranges(numbers) == text


def test_the_command_needs_neither_torch_nor_ray(data, tmp_path):
    code = (
        "import runpy, sys; sys.argv[0] = 'inspect'\n"
        "try: runpy.run_module('spcl.data.inspect', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print(sorted({'torch', 'ray', 'torchvision'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(data / "gta5/train")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "gta5-train.png").is_file()


# --- licences -------------------------------------------------------------------------------------


def _licence(folder: Path) -> tuple[str, str]:
    found = facts(ShardSet(folder))
    return found["licence"], found["redistribution"]


def ingested(*argv: object) -> None:
    assert ingest.main([*map(str, argv), "--workers", "0"]) == 0


def test_licence_is_that_of_what_was_converted(tmp_path: Path) -> None:
    root = trees.gta5_tree(tmp_path / "raw", 2, trees.SMALL)
    place = ("--dataset", "gta5", "--root", root, "--out", tmp_path, "--view", "32x24")
    ingested(*place)
    ingested(*place, "--name", "mine")
    ingested(*place, "--name", "theirs", "--licence", "CC BY 4.0")
    files = {"role": "source", "images": "images/*.png"}
    description = {"name": "own", "splits": {"train": files}}
    for name, licence in (("own", {}), ("said", {"licence": "ours alone"})):
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(description | {"name": name} | licence))
        ingested("--dataset", path, "--root", root, "--out", tmp_path)
        ingested("--dataset", path, "--root", root, "--out", tmp_path, "--name", f"{name}-2")
    said = (DATASETS["gta5"].licence, "none")
    expected = {
        "gta5": said,
        "mine": ("unknown: other data than gta5, in its format", "unknown"),
        "theirs": ("CC BY 4.0", "unknown"),
        "own": ("unknown", "unknown"),
        "own-2": ("unknown", "unknown"),
        "said": ("ours alone", "unknown"),
        "said-2": ("ours alone", "unknown"),
    }
    for name, terms in expected.items():
        assert _licence(tmp_path / name / "train") == terms, name
        if not name.startswith(("own", "said")):
            assert _licence(tmp_path / f"{name}-32x24-jpeg95" / "train") == terms


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_data_set_says_its_licence(dataset: str) -> None:
    known = DATASETS[dataset]
    assert known.licence and known.redistribution in ("none", "sharealike")


def test_rendered_streets_are_this_projects_own(mini_data: Path, tmp_path: Path) -> None:
    rendered = ("MIT, as this project, which rendered it", "allowed")
    for split in ("sim/train", "real/train", "real/val"):
        assert _licence(mini_data / "streets" / split) == rendered
    raw = mini_data / "streets/raw/cityscapes"  # by hand, under whatever name
    for name in (("--name", "elsewhere"), ()):
        place = ("--dataset", "cityscapes", "--root", raw, "--out", tmp_path)
        ingested(*place, "--split", "val", *name)
    assert _licence(tmp_path / "elsewhere/val") == _licence(tmp_path / "cityscapes/val") == rendered


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("streets/real", ("MIT, as this project, which rendered it", "allowed")),
        ("mine", ("unknown: other data than gta5, in its format", "unknown")),
        ("gta5", (DATASETS["gta5"].licence, "none")),
    ],
)
def test_conversions_of_old_are_not_taken_at_their_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, terms: tuple[str, str]
) -> None:
    """They state the licence of the format, whatever the data."""
    root = trees.gta5_tree(tmp_path / "raw", 1, trees.SMALL)
    as_before = {"licence": DATASETS["gta5"].licence, "redistribution": "none"}
    monkeypatch.setattr("spcl.data.request._terms", lambda *_: as_before)
    new = convert("gta5", root, tmp_path / "out", split="train", options=Options(name=name))
    assert _licence(tmp_path / "out") == terms
    monkeypatch.undo()
    again = convert("gta5", root, tmp_path / "again", split="train", options=Options(name=name))
    assert again["fingerprint"] == new["fingerprint"]
