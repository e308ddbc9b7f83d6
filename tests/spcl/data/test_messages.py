"""What messages tell the user to do exists, and works: options, keys of a YAML file, encodings."""

import ast
import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import trees
import yaml
from PIL import Image

from ray_jobs import ingest, train
from spcl.data import inspect
from spcl.data.datasets import DATASETS
from spcl.data.datasets.custom import Description, Files, Labels
from spcl.data.encodings import ENCODINGS
from spcl.data.manifest import ingest_command, read_manifest
from spcl.data.shards import ShardSet
from spcl.data.streets import __main__ as streets

REPOSITORY = Path(__file__).resolve().parents[3]
OTHERS = ("spcl/engine/inputs.py", "spcl/engine/planned.py", "ray_jobs/ingest.py")
MODULES = [
    *sorted((REPOSITORY / "spcl/data").rglob("*.py")),
    *(REPOSITORY / name for name in OTHERS),
]
OWN = {"inspect.py": inspect, "__main__.py": streets, "inputs.py": train, "sampling.py": train}


def strings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def options(command: object) -> set[str]:
    """What a command's own help knows."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        command.main(["--help"])
    return set(re.findall(r"--[a-z][a-z-]+", text.getvalue()))


def test_every_option_that_a_text_names_exists() -> None:
    named = 0
    known = options(ingest)
    assert {"--root", "--label-encoding", "--max-pixels", "--licence"} <= known
    for path in MODULES:
        mine = known | (options(OWN[path.name]) if path.name in OWN else set())
        for text in strings(path):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
                assert option in mine, f"{path.name} names {option}: {text!r}"
                named += 1
            for value in re.findall(r"--label-encoding ([a-z]\S*[a-zA-Z])", text):
                assert value in ENCODINGS, text
    assert named > 60


def test_every_key_of_a_description_that_a_text_names_exists() -> None:
    sections = {"labels": set(Labels.__dataclass_fields__), "splits": set()}
    top = set(Description.__dataclass_fields__)
    assert sections.keys() <= top and "licence" in top
    named = 0
    for path in MODULES:
        if path.name in ("shards.py", "labels.py"):
            continue
        for text in strings(path):
            for section, key in re.findall(r"(?<![\w./])(labels|splits)\.([a-z]\w*)", text):
                assert key in sections[section] or section == "splits", f"{path.name}: {text!r}"
                named += 1
    assert named >= 8
    assert set(Files.__dataclass_fields__) == {"role", "images", "labels"}


# --- the encoding that a message names reads the file ---------------------------------------------


def grey(path: Path) -> None:
    trees.save(path, trees.load(path))


def grey_of_synthia(path: Path) -> None:
    trees.save(path, trees.read_synthia(path)[..., 0])


def small_of_synthia(path: Path) -> None:
    trees.save(path, trees.read_synthia(path)[..., 0].astype(np.uint8))


def palette(path: Path) -> None:
    trees.save(path, trees.load(path), trees.GTA5_PALETTE)


def red(path: Path) -> None:
    trees.save(path, np.dstack([trees.load(path)] + [np.full_like(trees.load(path), 9)] * 2))


def deep(path: Path) -> None:
    trees.save(path, trees.load(path).astype(np.uint16))


def deep_red(path: Path) -> None:
    trees.save_rgb16(path, np.dstack([trees.load(path).astype(np.uint16)] * 3))


def make_cityscapes(root: Path) -> Path:
    return trees.cityscapes_tree(root, 0, 2, 0, trees.SMALL)


SETS: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "gta5": ("train", lambda root: trees.gta5_tree(root, 2, trees.SMALL), "labels/*.png"),
    "synthia": (
        "train",
        lambda root: trees.synthia_tree(root, 2, trees.SMALL, inner=False),
        "GT/LABELS/*.png",
    ),
    "synscapes": (
        "train",
        lambda root: trees.synscapes_tree(root, 2, trees.SMALL),
        "img/class/*.png",
    ),
    "cityscapes": ("val", make_cityscapes, "gtFine/val/*/*_labelIds.png"),
}
RESAVED = {
    "gta5 as grey": (grey, "png8:L"),
    "gta5 in red": (red, "png8:RGB"),
    "gta5 as grey of 16 bits": (deep, "png16:L"),
    "synthia in one channel": (grey_of_synthia, "png16:L"),
    "synthia in one channel of 8 bits": (small_of_synthia, "png8:L"),
    "synscapes with a palette": (palette, "png8:P"),
    "synscapes as grey of 16 bits": (deep, "png16:L"),
    "cityscapes in red": (red, "png8:RGB"),
    "cityscapes in red of 16 bits": (deep_red, "png16:RGB"),
}


def labels(folder: Path) -> list[bytes]:
    data = ShardSet(folder)
    return [np.array(Image.open(io.BytesIO(data.label(n)))).tobytes() for n in range(len(data))]


def run(*argv: object) -> int:
    return ingest.main([*map(str, argv), "--workers", "0"])


@pytest.mark.parametrize("case", RESAVED)
def test_encoding_that_a_message_names_gives_the_same_labels(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture
) -> None:
    damage, encoding = RESAVED[case]
    dataset = case.split()[0]
    split, make, pattern = SETS[dataset]
    root = make(tmp_path / "raw")
    command = ("--dataset", dataset, "--root", root, "--split", split, "--out")
    assert run(*command, tmp_path / "a") == 0
    for path in sorted(root.glob(pattern)):
        damage(path)
    assert run(*command, tmp_path / "b") == 2
    named = re.search(r"read these with (--label-encoding [^\s;]+)", capsys.readouterr().err)
    assert named and named[1] == f"--label-encoding {encoding}"
    assert run(*command, tmp_path / "b", *named[1].split()) == 0
    assert labels(tmp_path / "b" / dataset / split) == labels(tmp_path / "a" / dataset / split)


def test_no_encoding_is_named_that_would_read_other_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Greys of the colours, trainIds, and the high bytes of SYNTHIA are no ids."""

    def luminance(path: Path) -> None:
        Image.open(path).convert("RGB").convert("L").save(path)

    for dataset, damage in (
        ("gta5", luminance),
        ("gta5", lambda path: trees.to_train_ids(path, None)),
        ("synthia", trees.save_synthia_as_8_bits),
    ):
        split, make, pattern = SETS[dataset]
        root = make(tmp_path / "raw" / dataset)
        for path in sorted(root.glob(pattern)):
            damage(path)
        assert run("--dataset", dataset, "--root", root, "--out", tmp_path / "out") == 2
        assert "--label-encoding" not in capsys.readouterr().err


SIM = {
    "name": "sim",
    "class_names": ["road", "car"],
    "labels": {"encoding": "png8:L", "ids": {1: "road", 2: "car"}},
    "splits": {"train": {"role": "source", "images": "rgb/*.png", "labels": "sem/*.png"}},
}


def own(folder: Path, **changes: object) -> tuple[Path, Path]:
    (folder / "sim.yaml").write_text(yaml.safe_dump(SIM | changes))
    for number in range(2):
        rng = np.random.default_rng(number)
        trees.save(folder / f"raw/rgb/{number}.png", rng.integers(0, 255, (8, 9, 3), np.uint8))
        raw = trees.cells((9, 8), (1, 2), rng)
        trees.save(folder / f"raw/sem/{number}.png", raw, trees.GTA5_PALETTE)
    return folder / "sim.yaml", folder / "raw"


def test_of_the_users_own_files_the_key_of_their_yaml_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path, root = own(tmp_path)
    assert run("--dataset", path, "--root", root, "--out", tmp_path) == 2
    assert f"read these with labels.encoding: png8:P in {path}" in capsys.readouterr().err
    fixed = {"encoding": "png8:P", "ids": {1: "road"}}
    path, root = own(tmp_path, labels=fixed)
    assert run("--dataset", path, "--root", root, "--out", tmp_path) == 2
    said = f"value 2 is not in the table of sim ids.*map it .* under labels.ids of {path}, or drop"
    assert re.search(said, capsys.readouterr().err)
    path, root = own(tmp_path, labels=fixed | {"ids": {1: "road", 2: "car"}})
    assert run("--dataset", path, "--root", root, "--out", tmp_path) == 0


def test_unknown_id_of_a_built_in_set_names_a_way_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = trees.gta5_tree(tmp_path / "raw", 2, trees.SMALL)
    trees.set_pixel(root / "labels/00002.png", 40)
    assert run("--dataset", "gta5", "--root", root, "--out", tmp_path / "out") == 2
    said = r"value 40 .*under labels.ids of a YAML file of your own \(--dataset FILE.yaml\)"
    assert re.search(said, capsys.readouterr().err)
    from spcl.data.labels import CLASS_NAMES, GTA5_IDS, IGNORE_INDEX

    ids = {n: "ignore" if to == IGNORE_INDEX else CLASS_NAMES[to] for n, to in GTA5_IDS.items()}
    files = {"role": "source", "images": "images/*.png", "labels": "labels/*.png"}
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "mine",
                "labels": {"encoding": "png8:P", "ids": ids | {40: "ignore"}},
                "splits": {"train": files},
            }
        )
    )
    mine = ("--dataset", tmp_path / "mine.yaml", "--root", root, "--out", tmp_path / "out")
    assert run(*mine) == 0


def test_colours_of_a_description_are_not_read_as_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    colors = {"encoding": "color", "ids": {"1,2,3": "road", "4,5,6": "car"}}
    path, root = own(tmp_path, labels=colors)
    command = ("--dataset", path, "--root", root, "--out", tmp_path)
    assert run(*command, "--label-encoding", "png8:P") == 2
    assert f"{path} are colours; change labels.encoding and labels.ids" in capsys.readouterr().err
    assert run(*command) == 2
    assert "--label-encoding" not in capsys.readouterr().err


@pytest.mark.parametrize("dataset", [*DATASETS, "sim", "gta5-1280x720-jpeg95", "sim-64x48-png"])
def test_command_that_writes_a_split_names_options_and_values_that_exist(dataset: str) -> None:
    command = shlex.split(ingest_command(Path("/data") / dataset / "train"))
    assert command[:2] == ["python", "ray_jobs/ingest.py"]
    arguments = ingest.parse(command[2:])
    assert arguments.dataset in DATASETS or arguments.dataset == "sim.yaml"
    assert bool(arguments.view) == dataset.endswith(("jpeg95", "png"))


def test_command_to_write_the_users_own_split_again_names_their_file(tmp_path: Path) -> None:
    path, root = own(tmp_path, labels=SIM["labels"] | {"encoding": "png8:P"})
    assert run("--dataset", path, "--root", root, "--out", tmp_path / "data") == 0
    folder = tmp_path / "data/sim/train"
    command = ingest_command(folder, read_manifest(folder))
    assert "--dataset sim.yaml --split train" in command and "--name" not in command
    assert ingest.parse(shlex.split(command)[2:]).overwrite
