"""The user's own files: globs, encodings, id maps, and what may be wrong with a description."""

import fnmatch
import io
import re
from pathlib import Path

import numpy as np
import pytest
import trees
import yaml
from PIL import Image

from spcl.data.convert import convert
from spcl.data.datasets.custom import _glob, read_description
from spcl.data.shards import ShardSet
from spcl.errors import ConfigError, DataError

NAMES = ["road", "car", "person"]
MEANING = {0: "ignore", 1: "road", 7: "car", 9: "person"}
TRAIN_ID = {0: 255, 1: 0, 7: 1, 9: 2}
COLORS = {0: (0, 0, 0), 1: (10, 20, 30), 7: (200, 0, 1), 9: (0, 200, 255)}
SIM = {
    "name": "my-sim",
    "class_names": NAMES,
    "labels": {"encoding": "png8:L", "ids": MEANING},
    "splits": {
        "train": {"role": "source", "images": "rgb/**/*.png", "labels": "sem/**/*_class.png"}
    },
}


def described(folder: Path, **changes: object) -> Path:
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(SIM | changes))
    return path


def raw_labels(n: int = 4) -> list[np.ndarray]:
    return [trees.cells(trees.SMALL, tuple(MEANING), np.random.default_rng(i)) for i in range(n)]


def write(root: Path, encode) -> list[np.ndarray]:
    """Images and labels in two towns; the raw ids in the order of the samples."""
    labels = raw_labels()
    colors = np.random.default_rng(9).integers(0, 255, (256, 3))
    for number, raw in enumerate(labels):
        town, rng = "ab"[number // 2], np.random.default_rng(number)
        trees.save(root / f"rgb/{town}/{number}.png", trees.picture(raw, colors, rng))
        path = root / f"sem/{town}/{number}_class.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        encode(path, raw)
    return labels


def red(path: Path, raw: np.ndarray) -> None:
    trees.save(path, np.dstack([raw, raw * 0 + 5, raw * 0, raw * 0 + 255]))


def colored(path: Path, raw: np.ndarray) -> None:
    trees.save(path, np.array([COLORS.get(i, (0, 0, 0)) for i in range(10)], np.uint8)[raw])


ENCODERS = {
    "png8:L": trees.save,
    "png8:P": lambda path, raw: trees.save(path, raw, trees.GTA5_PALETTE),
    "png8:RGB": red,
    "png16:L": lambda path, raw: trees.save(path, raw.astype(np.uint16)),
    "png16:RGB": lambda path, raw: trees.save_rgb16(path, np.dstack([raw, raw * 3, raw * 0])),
    "color": colored,
}


@pytest.mark.parametrize("encoding", ENCODERS)
def test_labels_of_every_encoding_are_mapped_by_name(tmp_path: Path, encoding: str) -> None:
    expected = write(tmp_path / "raw", ENCODERS[encoding])
    ids = MEANING
    if encoding == "color":
        ids = {",".join(map(str, COLORS[raw])): name for raw, name in MEANING.items()}
    path = described(tmp_path, labels={"encoding": encoding, "ids": ids})
    convert(read_description(path), tmp_path / "raw", tmp_path / "out", split="train")
    data = ShardSet(tmp_path / "out")
    assert data.sample_ids == [f"my-sim/train/{n}" for n in ("a/0", "a/1", "b/2", "b/3")]
    assert data.class_names == NAMES and data.palette.shape == (3, 3)
    for index, raw in enumerate(expected):
        stored = np.array(Image.open(io.BytesIO(data.label(index))))
        assert (stored == np.vectorize(TRAIN_ID.get)(raw)).all()
        assert data.class_pixels[index].sum() == (raw != 0).sum()


def test_ids_above_255_are_mapped(tmp_path: Path) -> None:
    write(tmp_path / "raw", lambda path, raw: trees.save(path, raw.astype(np.uint16) * 1000))
    ids = {1000 * raw: name for raw, name in MEANING.items()}
    path = described(tmp_path, labels={"encoding": "png16:L", "ids": ids})
    report = convert(read_description(path), tmp_path / "raw", tmp_path / "out", split="train")
    assert report["class_images"] == [4, 4, 4]


def test_target_of_photographs_needs_no_label(tmp_path: Path) -> None:
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3)).astype(np.uint8)
        trees.save(tmp_path / f"raw/drive/{number}.jpg", pixels)
    splits = {"train": {"role": "target", "images": "drive/*.{jpg,jpeg}"}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"name": "my-cars", "splits": splits}))
    dataset = read_description(tmp_path / "data.yaml")
    convert(dataset, tmp_path / "raw", tmp_path / "out", split="train")
    data = ShardSet(tmp_path / "out")
    assert not data.labelled and len(data) == 3 and data.metadata["label_space"] == "cityscapes19"
    assert data.image(2) == (tmp_path / "raw/drive/2.jpg").read_bytes()


def test_unknown_id_and_lossy_image_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "raw", trees.save)
    trees.set_pixel(tmp_path / "raw/sem/a/0_class.png", 33, None)
    image = tmp_path / "raw/rgb/b/3.png"
    trees.save(image, np.dstack([trees.load(image), np.full((48, 64), 7, np.uint8)]))
    with pytest.raises(
        DataError,
        match="a/0_class.png: value 33 is not in the table of my-sim ids.*b/3.png is .*"
        "partly transparent",
    ):
        dataset = read_description(described(tmp_path))
        convert(dataset, tmp_path / "raw", tmp_path / "out", split="train")


@pytest.mark.parametrize(
    ("glob", "path", "key"),
    [
        ("rgb/*.png", "7.png", "7"),
        ("rgb/**/*.png", "7.png", "7"),
        ("rgb/**/*.png", "a/b/7.png", "a/b/7"),
        ("rgb/*/*_left.png", "town/7_left.png", "town/7"),
        ("rgb/*.{png,jpg}", "7.jpg", "7"),
        ("rgb/frame?.png", "frame7.png", "7"),
        ("rgb/[0-9].png", "7.png", "7"),
        ("rgb/[0-9].png", "x.png", None),
        ("rgb/[0-9]*.png", "7x.png", "7/x"),
        ("rgb/f[ab][0-9][0-9].png", "fa07.png", "a/0/7"),
        ("rgb/[!0-9].png", "x.png", "x"),
        ("rgb/[^0-9].png", "7.png", None),
        ("rgb/[!0-9].png", "/.png", None),
        ("rgb/[[].png", "[.png", "["),
        ("rgb/*[.png", "7[.png", "7"),
        ("rgb/*.png ", "7.png", "7"),
        ("rgb/*.png", "a/7.png", None),
        ("rgb/*.png", "7xpng", None),
    ],
)
def test_globs_give_the_key_that_joins(glob: str, path: str, key: str | None) -> None:
    folder, pattern = _glob(glob)
    match = pattern.fullmatch(path)
    assert folder == "rgb"
    assert (match and "/".join(part for part in match.groups() if part)) == key


def test_character_sets_are_those_of_the_shell() -> None:
    """As Python's fnmatch reads them, over all printable characters."""
    for choice in ("[0-9]", "[a-c_]", "[!a-z]", "[.]", "[+*?]", "[(|)]", "[$]", "[a\\d]"):
        _, pattern = _glob(f"rgb/{choice}.png")
        for character in filter(lambda one: one != "/", map(chr, range(33, 127))):
            theirs = fnmatch.fnmatchcase(f"{character}.png", f"{choice}.png")
            assert bool(pattern.fullmatch(f"{character}.png")) == theirs, (choice, character)


def test_characters_join_images_with_labels(tmp_path: Path) -> None:
    expected = write(tmp_path / "raw", trees.save)
    trees.save(tmp_path / "raw/rgb/a/x.png", np.zeros((48, 64, 3), np.uint8))
    files = {"role": "source", "images": "rgb/*/[0-9].png", "labels": "sem/*/[0-9]_class.png"}
    dataset = read_description(described(tmp_path, splits={"train": files}))
    convert(dataset, tmp_path / "raw", tmp_path / "out", split="train")
    data = ShardSet(tmp_path / "out")
    assert data.sample_ids == [f"my-sim/train/{n}" for n in ("a/0", "a/1", "b/2", "b/3")]
    for index, raw in enumerate(expected):
        assert data.class_pixels[index].sum() == (raw != 0).sum()


MISTAKES = {
    "key": ({"licens": "mine"}, "setting 'licens' is unknown; did you mean 'licence'?"),
    "name": ({"name": "My Sim"}, "name must be of a-z, 0-9, _ and -, got 'My Sim'"),
    "class": (
        {"labels": {"ids": {1: "raod"}}},
        "class of 1: 'raod' is unknown; did you mean 'road'?",
    ),
    "encoding": ({"labels": {"encoding": "png8", "ids": MEANING}}, "'png8' is unknown; did you"),
    "id": ({"labels": {"ids": {300: "road"}}}, "labels.ids of png8:L must be 0 to 255, got 300"),
    "named ids": ({"labels": {"ids": "labelIds"}}, "needs the class_names of Cityscapes"),
    "color": (
        {"labels": {"encoding": "color", "ids": {"1,2": "road"}}},
        "must be like \"128,64,128\", got '1,2'",
    ),
    "palette": ({"palette": [[1, 2, 3]]}, "palette must be one [r, g, b] of 0 to 255 a class (3)"),
    "classes": ({"class_names": ["road", "road"]}, "must be 2 to 255 different names"),
    "no splits": ({"splits": None}, "splits must hold key: value pairs"),
    "role": (
        {"splits": {"train": {"role": "sorce", "images": "a/*"}}},
        "'sorce' is unknown; did you mean 'source'?",
    ),
    "no glob": (
        {"splits": {"train": {"role": "source", "images": "a/b.png"}}},
        "a glob needs a wildcard",
    ),
    "range": (
        {"splits": {"train": {"role": "source", "images": "a/{0..9}.png"}}},
        "{0..9} in a glob is no range here; use [0-9], got a/{0..9}.png",
    ),
    "backwards": (
        {"splits": {"train": {"role": "source", "images": "a/[9-0].png"}}},
        "[9-0] in the glob a/[9-0].png is no set of characters",
    ),
    "outside": (
        {"splits": {"train": {"role": "source", "images": "../*.png"}}},
        "globs are relative to the root",
    ),
    "unlike": (
        {"splits": {"train": {"role": "source", "images": "a/*.png", "labels": "b/*/*.png"}}},
        "both need as many; got a/*.png and b/*/*.png",
    ),
    "eval": (
        {"splits": {"val": {"role": "eval", "images": "a/*.png"}}},
        "has the role eval, so it needs labels",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_in_a_description_names_the_file_and_what_to_do(tmp_path: Path, case: str) -> None:
    changes, message = MISTAKES[case]
    with pytest.raises(ConfigError, match="data.yaml: .*" + re.escape(message)):
        read_description(described(tmp_path, **changes))


def test_description_that_is_not_there_or_not_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read .*nothing.yaml"):
        read_description(tmp_path / "nothing.yaml")
    (tmp_path / "data.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_description(tmp_path / "data.yaml")


def test_descriptions_in_the_readme_can_be_read(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[3] / "README.md").read_text()
    for name, end in (("my-sim", "# my-cars.yaml"), ("my-cars", "```")):
        start = text.index(f"# {name}.yaml")
        (tmp_path / "data.yaml").write_text(text[start : text.index(end, start + 1)])
        assert read_description(tmp_path / "data.yaml").name == name
