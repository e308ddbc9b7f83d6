"""Which files make up a split: layouts as they come out of archives, names, lists."""

import os
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import trees
import yaml

from ray_jobs import ingest
from spcl.data.convert import convert
from spcl.data.datasets import DATASETS
from spcl.data.datasets.custom import read_description
from spcl.data.layouts import splits_there
from spcl.data.listing import list_samples
from spcl.data.request import Options
from spcl.data.shards import ShardSet
from spcl.errors import DataError


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def move(*pairs: tuple[str, str]) -> Callable[[Path], None]:
    """Each file or folder below the root to another place there."""

    def moving(root: Path) -> None:
        for here, there in pairs:
            (root / there).parent.mkdir(parents=True, exist_ok=True)
            (root / here).rename(root / there)

    return moving


def deeper(name: str) -> Callable[[Path], None]:
    """All of a tree in a folder of its own."""

    def moving(root: Path) -> None:
        inside = os.listdir(root)
        for one in inside:
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / one).rename(root / name / one)

    return moving


def in_parts(root: Path) -> None:
    """As the ten archives of GTA5 unpack, each into its own folder."""
    for kind in ("images", "labels"):
        for number, path in enumerate(sorted((root / kind).iterdir())):
            part = root / f"{number % 3 + 1:02d}_{kind}/{kind}"
            part.mkdir(parents=True, exist_ok=True)
            path.rename(part / path.name)
        (root / kind).rmdir()


def capitals(*folders: str) -> Callable[[Path], None]:
    def renaming(root: Path) -> None:
        for path in [one for folder in folders for one in (root / folder).rglob("*.png")]:
            path.rename(path.with_suffix(".PNG"))

    return renaming


def left_by_macos(root: Path) -> None:
    deeper("gta5")(root)
    shutil.copytree(root / "gta5", root / "__MACOSX")
    shutil.copytree(root / "gta5", root / ".Trash")


def gta5(root: Path) -> Path:
    return trees.gta5_tree(root, 4, trees.SMALL)


def synthia(root: Path) -> Path:
    return trees.synthia_tree(root, 2, trees.SMALL)


def synscapes(root: Path) -> Path:
    return trees.synscapes_tree(root, 2, trees.SMALL)


def cityscapes(root: Path) -> Path:
    return trees.cityscapes_sequences(trees.cityscapes_tree(root, 2, 2, 0, trees.SMALL))


OWN_FOLDERS = move(
    ("leftImg8bit", "leftImg8bit_trainvaltest/leftImg8bit"),
    ("gtFine", "gtFine_trainvaltest/gtFine"),
    ("leftImg8bit_sequence", "leftImg8bit_sequence_trainvaltest/leftImg8bit_sequence"),
)
LAYOUTS: dict[str, tuple[str, str, Callable, Callable]] = {
    "GTA5, parts in their own folders": ("gta5", "train", gta5, in_parts),
    "GTA5, one archive each": (
        "gta5",
        "train",
        gta5,
        move(("images", "01_images/images"), ("labels", "01_labels/labels")),
    ),
    "GTA5, one folder deeper": ("gta5", "train", gta5, deeper("gta5")),
    "GTA5, two folders deeper": ("gta5", "train", gta5, deeper("gta5/gta5")),
    "GTA5, packed by macOS": ("gta5", "train", gta5, left_by_macos),
    "GTA5, endings in capitals": ("gta5", "train", gta5, capitals("images", "labels")),
    "GTA5, images in capitals": ("gta5", "train", gta5, capitals("images")),
    "SYNTHIA, one folder deeper": ("synthia", "train", synthia, deeper("SYNTHIA")),
    "SYNTHIA, endings in capitals": ("synthia", "train", synthia, capitals("RAND_CITYSCAPES")),
    "Synscapes, one folder deeper": ("synscapes", "train", synscapes, deeper("Synscapes_v1")),
    "Synscapes, as packed": ("synscapes", "train", synscapes, deeper("a/Synscapes")),
    "Cityscapes, target": ("cityscapes", "train", cityscapes, OWN_FOLDERS),
    "Cityscapes, val": ("cityscapes", "val", cityscapes, OWN_FOLDERS),
    "Cityscapes, pairs of frames": ("cityscapes", "val_sequence", cityscapes, OWN_FOLDERS),
    "Cityscapes, one folder deeper": ("cityscapes", "val_sequence", cityscapes, deeper("cs")),
    "Cityscapes, labels only deeper": (
        "cityscapes",
        "val",
        cityscapes,
        move(("gtFine", "gtFine_trainvaltest/gtFine")),
    ),
    "Cityscapes, endings in capitals": (
        "cityscapes",
        "val",
        cityscapes,
        capitals("leftImg8bit", "gtFine"),
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts_of_archives_are_the_same_set(tmp_path: Path, case: str) -> None:
    dataset, split, make, moving = LAYOUTS[case]
    root = make(tmp_path / "raw")
    usual = convert(dataset, root, tmp_path / "a", split=split)
    moving(root)
    found = convert(dataset, root, tmp_path / "b", split=split)
    assert found["fingerprint"] == usual["fingerprint"] and found["converted"] > 1
    moved = "capitals" not in case
    assert list(found["checks"]) == (["layout"] if moved else [])
    assert (
        split in splits_there(DATASETS[dataset], root) or DATASETS[dataset].splits[split].on_request
    )
    if dataset == "synscapes":
        assert pq.read_table(tmp_path / "b/index.parquet")["extra_json"].null_count == 0


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "the folder of the images": (
        lambda root: gta5(root) / "images",
        "has no folder images, it holds 4 .png; did you mean --root {raw}?; gta5 must be there",
    ),
    "a folder of Cityscapes": (
        lambda root: cityscapes(root) / "leftImg8bit",
        "it holds train, val; did you mean --root {raw}?; cityscapes",
    ),
    "a city of Cityscapes": (
        lambda root: cityscapes(root) / "leftImg8bit/val/munster",
        "1 .png; did you mean --root {raw}?; cityscapes",
    ),
    "a trailing space": (lambda root: Path(f"{gta5(root)} "), "did you mean '{raw}'?; gta5"),
    "a typing error": (lambda root: gta5(root).with_name("row"), "did you mean '{raw}'?; gta5"),
    "a folder with a trailing space": (
        lambda root: (move(("images", "images "))(gta5(root)), root)[1],
        "it holds images , labels; is 'images ' to be called 'images'?",
    ),
    "a folder in capitals": (
        lambda root: (move(("images", "Images"))(gta5(root)), root)[1],
        "it holds Images, labels; is 'Images' to be called 'images'?",
    ),
    "archives not unpacked": (
        lambda root: (root.mkdir(), (root / "01_images.zip").touch(), root)[2],
        "has no folder images, it holds 1 .zip;",
    ),
    "an archive": (
        lambda root: (root.touch(), root)[1],
        "{raw} is a file; extract it",
    ),
    "two sets below": (
        lambda root: (deeper("a")(gta5(root)), shutil.copytree(root / "a", root / "b"), root)[2],
        "which is meant of a/images, b/images; name one of these with --root: {raw}/a, {raw}/b",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_root_that_is_another_is_told_with_the_right_one(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    root = make(tmp_path / "raw")
    dataset, split = ("cityscapes", "val") if "Cityscapes" in case else ("gta5", "train")
    with pytest.raises(DataError, match=re.escape(message.format(raw=tmp_path / "raw"))):
        convert(dataset, root, tmp_path / "out", split=split)


def test_files_of_another_kind_are_told_by_ending(tmp_path: Path) -> None:
    root = gta5(tmp_path / "raw")
    for path in sorted((root / "images").iterdir()):
        path.rename(path.with_suffix(".jpg"))
    for name in ("a.txt", "b.txt", "README", "c.tif"):
        (root / "images" / name).touch()
    os.mkfifo(root / "images/d.png")
    said = r"images \(found 4 .jpg, 2 .txt, 1 without ending, 1 .tif, 1 a FIFO\); gta5 must be"
    with pytest.raises(DataError, match=said):
        convert("gta5", root, tmp_path / "out", split="train")


def test_every_split_of_unpacked_archives_is_converted_unasked(tmp_path: Path) -> None:
    root = cityscapes(tmp_path / "raw")
    OWN_FOLDERS(root)
    command = ["--dataset", "cityscapes", "--root", str(root), "--out", str(tmp_path)]
    assert ingest.main([*command, "--workers", "0"]) == 0
    assert sorted(os.listdir(tmp_path / "cityscapes")) == ["train", "val"]


def test_what_lies_deeper_is_not_taken_where_the_layout_is_right(tmp_path: Path) -> None:
    root = trees.cityscapes_tree(tmp_path / "raw", 2, 0, 0, trees.SMALL)
    trees.cityscapes_tree(root / "old", 2, 2, 2, trees.SMALL)
    assert splits_there(DATASETS["cityscapes"], root) == ["train"]
    synthia = trees.synthia_tree(tmp_path / "b", 1, trees.SMALL, inner=False)
    (synthia / "GT/LABELS").rename(synthia / "GT/CLASSES")
    trees.synthia_tree(synthia / "old", 1, trees.SMALL, inner=False)
    split = DATASETS["synthia"].splits["train"]
    listed = list_samples(DATASETS["synthia"], synthia, split, "skip")
    assert listed.samples[0].label == "GT/CLASSES/0000000.png"


def test_exact_ending_wins_over_capitals(tmp_path: Path) -> None:
    root = gta5(tmp_path / "raw")
    usual = convert("gta5", root, tmp_path / "a", split="train")
    (root / "images/00002.PNG").write_bytes((root / "images/00001.png").read_bytes())
    again = convert("gta5", root, tmp_path / "b", split="train")
    assert again["fingerprint"] == usual["fingerprint"]
    assert "left out images/00002.PNG" in again["checks"]["ignored_file"]["messages"][0]


def test_folder_that_cannot_be_listed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = gta5(tmp_path / "raw")
    (root / "images/more").mkdir()
    real = os.scandir

    def denied(path: object = ".") -> object:
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match="cannot list .*images/more .Permission denied"):
        convert("gta5", root, tmp_path / "out", split="train")


# --- Unicode --------------------------------------------------------------------------------------

TOWNS = ("Gärten", "Åre", "한국")


def described(folder: Path, images: str = "rgb/**/*.png", labels: str = "sem/**/*.png") -> Path:
    splits = {"train": {"role": "source", "images": images, "labels": labels}}
    text = {"name": "mine", "class_names": ["road", "car", "bus"]}
    text |= {"labels": {"encoding": "png8:L", "ids": {0: "road", 1: "car", 2: "bus"}}}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(text | {"splits": splits}, allow_unicode=True))
    return path


def write_towns(root: Path, images: Callable[[str], str], labels: Callable[[str], str]) -> None:
    for number, town in enumerate(TOWNS):
        rng = np.random.default_rng(number)
        for name in ("Straße é", "1"):
            pixels = rng.integers(0, 255, (12, 16, 3), np.uint8)
            trees.save(root / f"rgb/{images(town)}/{images(name)}.png", pixels)
            raw = trees.cells((16, 12), (0, 1, 2), rng)
            trees.save(root / f"sem/{labels(town)}/{labels(name)}.png", raw)


def converted(tmp_path: Path, name: str, yaml_file: Path, **options: Any) -> ShardSet:
    report = convert(
        read_description(yaml_file),
        tmp_path / "raw",
        tmp_path / name,
        split="train",
        options=Options(**options),
    )
    assert report["checks"] == {}
    return ShardSet(tmp_path / name)


@pytest.mark.parametrize("images", [nfc, nfd])
@pytest.mark.parametrize("labels", [nfc, nfd])
def test_names_join_however_accents_are_stored(
    tmp_path: Path, images: Callable, labels: Callable
) -> None:
    write_towns(tmp_path / "raw", images, labels)
    assert any(nfc(town) != nfd(town) for town in TOWNS)
    data = converted(tmp_path, "out", described(tmp_path))
    # A sample is called as its image is, as ever.
    assert {name.split("/")[2] for name in data.sample_ids} == set(map(images, TOWNS))
    for index in range(len(data)):
        assert (data.class_pixels[index] > 0).all()
    for spell in (nfc, nfd):
        names = "\n".join(f"{spell(town)}/{spell('Straße é')}.png" for town in TOWNS)
        (tmp_path / "list.txt").write_text(names)
        chosen = converted(
            tmp_path, spell.__name__, described(tmp_path), only=tmp_path / "list.txt"
        )
        assert len(chosen) == 3


@pytest.mark.parametrize("in_yaml", [nfc, nfd])
@pytest.mark.parametrize("on_disk", [nfc, nfd])
def test_globs_find_folders_however_accents_are_stored(
    tmp_path: Path, in_yaml: Callable, on_disk: Callable
) -> None:
    for name in ("a", "b"):
        pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
        trees.save(tmp_path / f"raw/{on_disk('Fotos é')}/x/ü_{name}.png", pixels)
        raw = trees.cells((16, 12), (0, 1, 2), np.random.default_rng(0))
        trees.save(tmp_path / f"raw/{on_disk('Bücher')}/{on_disk('ö')}_{name}.png", raw)
    path = described(tmp_path, in_yaml("Fotos é/x/ü_*.png"), in_yaml("Bücher/ö_*.png"))
    assert converted(tmp_path, "out", path).sample_ids == ["mine/train/a", "mine/train/b"]


def test_names_that_only_differ_in_how_accents_are_stored_are_named(tmp_path: Path) -> None:
    write_towns(tmp_path / "raw", nfc, nfc)
    twin = tmp_path / f"raw/rgb/{TOWNS[1]}/{nfd('Straße é')}.png"
    shutil.copy(tmp_path / f"raw/rgb/{TOWNS[1]}/1.png", twin)
    with pytest.raises(DataError, match="but for how its accents are stored .*; remove one"):
        converted(tmp_path, "out", described(tmp_path))


# --- lists ----------------------------------------------------------------------------------------

LISTS = {  # what a list of two of four images may look like
    "lines": "{a}\n{b}",
    "CRLF": "{a}\r\n{b}\r\n",
    "of old Macs": "{a}\r{b}\r",
    "byte order mark": "\ufeff{a}\n{b}\n",
    "trailing blanks": "{a}  \n{b}\t\n\n  \n",
    "leading blanks": "  {a}\n\t{b}\n",
    "comments": "# mine\n{a}\n  # more\n{b}\n",
    "labels behind a tab": "{a}\t{la}\n{b}\t{lb}\n",
    "labels behind a space": "{a} {la}\n{b}   {lb}\n",
    "more behind": "{a}\t{la}\t0.5 1\n{b} 7\n",
    "the same twice": "{a}\n{b}\n{a}\n",
    "from here": "./{a}\n./{b}\n",
    "of another machine": "/data/my sets/{a} /data/my sets/{la}\n/data/my sets/{b}\n",
    "of Windows": "{wa}\n{wb}\r\n",
}
SETS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "gta5": ("train", gta5),
    "synthia": ("train", lambda root: trees.synthia_tree(root, 4, trees.SMALL, inner=False)),
    "synscapes": ("train", lambda root: trees.synscapes_tree(root, 4, trees.SMALL)),
    "cityscapes": ("train_labelled", lambda root: trees.cityscapes_tree(root, 4, 0, 0)),
    "cityscapes without labels": ("train", lambda root: trees.cityscapes_tree(root, 4, 0, 0)),
}


@pytest.mark.parametrize("dataset", SETS)
def test_lists_of_every_form_are_read_for_every_set(tmp_path: Path, dataset: str) -> None:
    split, make = SETS[dataset]
    root = make(tmp_path / "raw")
    known = DATASETS[dataset.split()[0]]
    labelled = known.splits["train_labelled" if dataset.startswith("cityscapes") else split]
    whole = list_samples(known, root, labelled, "skip").samples
    one, two = whole[2], whole[0]
    tried = 0
    for text in LISTS.values():
        text = text.format(
            a=one.image,
            b=two.image,
            la=one.label,
            lb=two.label,
            wa=one.image.replace("/", "\\"),
            wb=two.image.replace("/", "\\"),
        )
        (tmp_path / "list.txt").write_bytes(text.encode())
        listed = list_samples(known, root, known.splits[split], "skip", tmp_path / "list.txt")
        assert [sample.key for sample in listed.samples] == sorted([one.key, two.key]), text
        tried += 1
    assert tried == 14


def test_names_with_blanks_are_whole_names(tmp_path: Path) -> None:
    for name in ("my town/frame 1", "my town/frame 2", "1", "frame", "2", "my"):
        trees.save(tmp_path / f"raw/rgb/{name}.png", np.full((12, 16, 3), len(name), np.uint8))
        raw = trees.cells((16, 12), (0, 1, 2), np.random.default_rng(0))
        trees.save(tmp_path / f"raw/sem/{name}.png", raw)
    dataset = read_description(described(tmp_path))
    for text, keys in (
        ("my town/frame 1.png", ["my town/frame 1"]),
        ("rgb/my town/frame 1.png sem/my town/frame 1.png", ["my town/frame 1"]),
        ("rgb/my town/frame 2.png\tsem/my town/frame 2.png", ["my town/frame 2"]),
        ("2.png\t1", ["2"]),
        ("frame 2", ["my town/frame 2"]),
    ):
        (tmp_path / "list.txt").write_text(text)
        listed = list_samples(
            dataset, tmp_path / "raw", dataset.splits["train"], "skip", tmp_path / "list.txt"
        )
        assert [sample.key for sample in listed.samples] == keys, text


WRONG_LISTS = {
    "": "list.txt is empty; it must name files of this split, one a line",
    "\n \r\n\t\n": "list.txt is empty",
    "\ufeff": "list.txt is empty",
    "# nothing\n": r"names 0 images that are not there \(nothing\)",
    "a/1.png\n9.png\n": r"names 1 images that are not there \(9.png\)",
    "1.png\n": "1.png may be any of rgb/a/1.png, rgb/b/1.png; write it with its folder",
    "c/1.png\n": "c/1.png may be any of rgb/a/1.png, rgb/b/1.png",
    "rgb/a/1.png sem/b/1.png\n": "joins rgb/a/1.png with sem/b/1.png, but",
    "rgb/a/1.png\tsem/a/2.png\n": "joins rgb/a/1.png with sem/a/2.png, but",
    "rgb/a/1.png,sem/b/1.png\n": "names 1 images that are not there",
    "a/1 b/1\n": "joins rgb/a/1.png with sem/b/1.png, but",
    "sem/b/1.png rgb/a/1.png\n": "joins rgb/b/1.png with sem/a/1.png, but",
}


@pytest.mark.parametrize("text", WRONG_LISTS)
def test_list_that_names_something_else_is_refused(tmp_path: Path, text: str) -> None:
    for name in ("a/1", "b/1", "a/2"):
        trees.save(tmp_path / f"raw/rgb/{name}.png", np.zeros((12, 16, 3), np.uint8))
        trees.save(tmp_path / f"raw/sem/{name}.png", np.zeros((12, 16), np.uint8))
    dataset = read_description(described(tmp_path))
    (tmp_path / "list.txt").write_bytes(text.encode())
    message = WRONG_LISTS[text]
    with pytest.raises(DataError, match=message):
        list_samples(
            dataset, tmp_path / "raw", dataset.splits["train"], "skip", tmp_path / "list.txt"
        )


def test_list_in_utf_16_is_told_how_to_be_saved(tmp_path: Path) -> None:
    root = gta5(tmp_path / "raw")
    (tmp_path / "list.txt").write_bytes("00001.png\n".encode("utf-16"))
    with pytest.raises(DataError, match="cannot read the list .*; save it as UTF-8"):
        convert(
            "gta5",
            root,
            tmp_path / "out",
            split="train",
            options=Options(only=tmp_path / "list.txt"),
        )
